//! The vocabularies that llama.cpp tests itself with: each text of theirs has the ids that they expect. Files and texts are in
//! the sources of its Python binding (77 MB, MIT).

mod common;

use std::path::{Path, PathBuf};
use wudao_infer::checkpoint::tokenizer;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// All that have expected ids.
const KNOWN: [&str; 15] = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];

fn file(dir: &Path, name: &str, end: &str) -> PathBuf {
    dir.join(format!("ggml-vocab-{name}.gguf{end}"))
}

#[test]
fn ids_are_those_that_llama_cpp_expects() {
    let whole = |dir: &Path| KNOWN.iter().all(|name| file(dir, name, "").exists() && file(dir, name, ".out").exists());
    let dir = match common::llama_cpp(whole) {
        Ok(dir) => dir,
        Err(reason) => return common::skipped(format_args!("llama.cpp's vocabularies cannot be had here: {reason}")),
    };
    let read = |name: &str, end: &str| String::from_utf8(std::fs::read(file(&dir, name, end)).unwrap()).unwrap();
    let mut named = vec![];
    for entry in std::fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        named.extend(name.strip_prefix("ggml-vocab-").and_then(|n| n.strip_suffix(".gguf.out")).map(str::to_owned));
    }
    named.sort();
    assert_eq!(named, KNOWN);
    for name in KNOWN {
        let tokenizer = tokenizer(&file(&dir, name, "")).unwrap();
        let (texts, ids) = (read(name, ".inp"), read(name, ".out"));
        let (texts, ids): (Vec<&str>, Vec<&str>) =
            (texts.strip_suffix(SEPARATOR).unwrap_or(&texts).split(SEPARATOR).collect(), ids.lines().collect());
        assert_eq!(texts.len(), ids.len(), "{name}");
        assert!(texts.len() >= 40, "{name}");
        for (text, ids) in texts.into_iter().zip(ids) {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
        }
    }
}
