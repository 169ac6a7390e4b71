//! `tokenizer_config.json` beside a good tokenizer: whatever it holds, the tokenizer works, ends texts with a token of its
//! own or none, and hands the file on byte for byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs;
use wudao_data::manifest::TOKENIZER_FILE;
use wudao_data::tokenizer::{TOKENIZER_CONFIG_FILE, Tokenizer};

/// One that has none of the usual names for the end of a text, so that the file is asked.
const TOKENIZER: &str = r#"{"added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
"post_processor": null, "decoder": null,
"model": {"type": "WordLevel", "vocab": {"<stop>": 0, "hello": 1, "[UNK]": 2}, "unk_token": "[UNK]"}}"#;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join(TOKENIZER_CONFIG_FILE);
    fs::write(folder.path().join(TOKENIZER_FILE), TOKENIZER).expect("room");
    fs::write(&config, data).expect("room");
    let tokenizer = Tokenizer::load(folder.path()).expect("a good tokenizer");
    assert!(tokenizer.end_of_text().is_none_or(|id| (id as usize) < tokenizer.vocab_size()));
    fs::remove_file(&config).expect("it was there");
    tokenizer.save(folder.path()).expect("room");
    assert_eq!(fs::read(&config).expect("it is written"), data);
});
