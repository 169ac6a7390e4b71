//! Ten AdamW steps against PyTorch, for every model type: `reference/golden/*/losses.json`.

use serde_json::Value;
use std::path::{Path, PathBuf};
use wudao_comm::Solo;
use wudao_data::batch::{Batch, IGNORE, Segment};
use wudao_data::document::Lang;
use wudao_device::{Cpu, DType, tolerance};
use wudao_model::weights;
use wudao_train::TrainSettings;
use wudao_train::optimizer::Rates;
use wudao_train::settings::OptimizerKind;
use wudao_train::step::Learner;

fn folders() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
    // Some folders are only about reading.
    folders.retain(|folder| folder.join("losses.json").exists());
    folders.sort();
    folders
}

/// `input_ids` `[rows, columns]` as one batch, each row a document without what comes before or after it.
fn batch(folder: &Path) -> Batch {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = tensors.tensor("input_ids").unwrap();
    let &[rows, seq_len] = ids.shape() else { panic!("input_ids {:?}", ids.shape()) };
    let inputs: Vec<u32> =
        ids.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()) as u32).collect();
    let next = |row: &[u32]| row[1..].iter().copied().chain([IGNORE]).collect::<Vec<_>>();
    let segment = |row: usize| Segment {
        doc: row as u64,
        lang: Lang::Other,
        source: 0,
        offset: 0,
        bytes: 1,
        range: row * seq_len..(row + 1) * seq_len - 1,
    };
    Batch {
        rows,
        seq_len,
        targets: inputs.chunks(seq_len).flat_map(next).collect(),
        positions: (0..rows).flat_map(|_| 0..seq_len as u32).collect(),
        cu_seqlens: (0..=rows).map(|r| (r * seq_len) as u32).collect(),
        segments: (0..rows).map(segment).collect(),
        inputs,
    }
}

#[test]
fn ten_steps_have_pytorchs_losses() {
    let bound = tolerance::of("golden losses", DType::F32);
    let folders = folders();
    let mut types = std::collections::BTreeSet::new();
    for folder in &folders {
        let reference: Value = serde_json::from_slice(&std::fs::read(folder.join("losses.json")).unwrap()).unwrap();
        let number = |key: &str| reference[key].as_f64().unwrap_or_else(|| panic!("{key} of {}", folder.display()));
        assert_eq!(reference["optimizer"], "adamw");
        let config = weights::read_config(folder).unwrap();
        types.insert(config.family.model_type());
        let batch = batch(folder);
        let settings = TrainSettings {
            optimizer: OptimizerKind::AdamW,
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            decay_embeddings: true,
            grad_clip: 0.0,
            bias_update_rate: 0.0,
            seq_len: batch.seq_len,
            ..Default::default()
        };
        let lr = number("lr");
        for cpu in [Cpu::new(2), Cpu::new(2).with_matrix_unit()] {
            let mut learner = Learner::new(&cpu, &Solo, &config, &settings, DType::F32).unwrap();
            weights::load(&cpu, folder, &config, &mut learner.weights).unwrap();
            for (step, expected) in reference["losses"].as_array().unwrap().iter().enumerate() {
                let result = learner.step(std::slice::from_ref(&batch), Rates { lr, muon_lr: lr }).unwrap();
                let (got, expected) = (result.loss, expected.as_f64().unwrap());
                let (difference, folder) = ((got - expected).abs(), folder.display());
                assert!(difference <= bound.allowed(expected), "{folder} step {step}: {got} {expected}");
            }
        }
    }
    assert_eq!(
        types.into_iter().collect::<Vec<_>>(),
        ["glm4_moe", "llama", "mistral", "mixtral", "olmoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]
    );
}
