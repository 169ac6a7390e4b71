//! Against PyTorch and transformers: logits, the loss and every gradient of tiny random models, from the files that
//! `reference/golden.py` wrote. Their ten AdamW losses are proven where the optimizer lives.

mod common;

use common::{Batch, by_name, golden_dir, pass, solo};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use wudao_comm::Solo;
use wudao_device::check::assert_close;
use wudao_device::{Cpu, DType};
use wudao_model::layer::Auxiliary;
use wudao_model::model::Options;
use wudao_model::store::Kind;
use wudao_model::{KvCache, Model, Packing, Store, weights};

const CASES: [&str; 11] = [
    "llama",
    "qwen3",
    "mixtral",
    "qwen3_moe",
    "qwen3_moe_norm",
    "glm4_moe",
    "glm4_moe_plain",
    "mistral",
    "qwen2",
    "qwen2_moe",
    "olmoe",
];

/// Models with latent attention, which is not trained: logits and tokens alone.
const LATENT: [&str; 4] = ["deepseek_v2", "deepseek_v2_groups", "deepseek_v3", "deepseek_v3_plain"];

/// A file of expected values.
struct Expected(BTreeMap<String, Vec<f64>>);

impl Expected {
    fn read(path: &Path) -> Expected {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |t: &safetensors::tensor::TensorView| match t.dtype() {
            Dtype::F32 => t.data().as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
            Dtype::I64 => t.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect(),
            other => panic!("{other:?}"),
        };
        Expected(file.iter().map(|(name, t)| (name.to_owned(), numbers(&t))).collect())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.0[name].iter().map(|&id| id as u32).collect()
    }
}

fn open(dev: &Cpu, case: &str) -> (Model<Cpu>, Store<Cpu>) {
    let dir = golden_dir().join(case);
    let config = weights::read_config(&dir).unwrap();
    let model = Model::new(dev, &config, config.max_position_embeddings, Options::default()).unwrap();
    let mut weights = model.no_weights(dev);
    weights::load(dev, &dir, &config, &mut weights).unwrap();
    (model, weights)
}

/// Loss and all gradients of documents, against a file.
fn prove(dev: &Cpu, case: &str, model: &Model<Cpu>, weights: &Store<Cpu>, documents: &[Vec<u32>], expected: &Expected) {
    let batch = Batch::of(documents);
    let scale = 1.0 / batch.predictions() as f64;
    let out = pass(dev, model, weights, &Solo, &batch, scale, Auxiliary::default());
    let loss = out.losses.iter().sum::<f64>() * scale;
    assert_close(&format!("{case}: loss"), "golden logits", DType::F32, &expected.0["loss"], &[loss]);
    let grads = by_name(dev, &out.grads);
    for (home, param) in out.grads.params() {
        if param.kind == Kind::Correction {
            assert_eq!(out.grads.get(home).to_f64(dev).iter().sum::<f64>(), out.log.layers[0].load.iter().sum::<f64>());
            continue;
        }
        for part in &param.parts {
            let theirs = &expected.0[&format!("grad.{}", part.name)];
            assert_close(&format!("{case}: {}", part.name), "golden gradients", DType::F32, theirs, &grads[&part.name]);
        }
    }
    let theirs = expected.0.keys().filter(|name| name.starts_with("grad.")).count();
    let ours = grads.keys().filter(|name| !name.ends_with("e_score_correction_bias")).count();
    assert_eq!(ours, theirs, "{case}: tensors with a gradient");
}

#[test]
fn logits_loss_and_gradients() {
    let devices = [Cpu::new(2), Cpu::new(2).with_matrix_unit()];
    for (dev, case) in devices.iter().flat_map(|dev| CASES.map(|case| (dev, case))) {
        let expected = Expected::read(&golden_dir().join(case).join("golden.safetensors"));
        let ids = expected.ids("input_ids");
        let rows: Vec<Vec<u32>> = ids.chunks(ids.len() / 2).map(<[u32]>::to_vec).collect();
        let (model, weights) = open(dev, case);
        let batch = Batch::of(&rows);
        let mut cx = solo(dev, &weights, &batch.packing, Auxiliary::default(), None);
        let logits = model.logits(&mut cx, &batch.ids).unwrap().view().to_f64(dev);
        assert_close(&format!("{case}: logits"), "golden logits", DType::F32, &expected.0["logits"], &logits);
        prove(dev, case, &model, &weights, &rows, &expected);
    }
}

#[test]
fn logits_of_latent_attention() {
    let dev = Cpu::new(2);
    for case in LATENT {
        let expected = Expected::read(&golden_dir().join(case).join("golden.safetensors"));
        let ids = expected.ids("input_ids");
        let (model, weights) = open(&dev, case);
        let batch = Batch::of(&ids.chunks(ids.len() / 2).map(<[u32]>::to_vec).collect::<Vec<_>>());
        let mut cx = solo(&dev, &weights, &batch.packing, Auxiliary::default(), None);
        let logits = model.logits(&mut cx, &batch.ids).unwrap().view().to_f64(&dev);
        assert_close(&format!("{case}: logits"), "golden logits", DType::F32, &expected.0["logits"], &logits);
        // Scores come from the same pass; gradients do not exist, and say so.
        let losses = model.losses(&mut cx, &batch.ids, &batch.targets).unwrap();
        assert!(losses.iter().all(|x| x.is_finite()) && losses.iter().any(|&x| x > 0.0), "{case}");
        let mut grads = model.zeros(&dev);
        let e = model.losses_and_gradients(&mut cx, &mut grads, &batch.ids, &batch.targets, 1.0).unwrap_err();
        assert!(e.to_string().contains("cannot be trained"), "{e}");
    }
}

/// The likeliest token, 32 times: reading the prompt in one piece and then token by token, over a cache.
#[test]
fn greedy_tokens() {
    let dev = Cpu::new(2);
    for case in CASES.into_iter().chain(LATENT) {
        let bytes = std::fs::read(golden_dir().join(case).join("greedy.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(expected[key].clone()).unwrap() };
        let (prompt, tokens) = (ids("prompt"), ids("tokens"));
        assert_eq!(tokens.len(), 32);
        let (model, weights) = open(&dev, case);
        let mut cache = KvCache::new(&dev, model.config(), prompt.len() + tokens.len(), DType::F32);
        let (mut next, mut ours) = (prompt, vec![]);
        while ours.len() < tokens.len() {
            let past = cache.len() as u32;
            let positions = (past..past + next.len() as u32).collect();
            let packing = Packing { positions, segments: vec![0, next.len() as u32] };
            let mut cx = solo(&dev, &weights, &packing, Auxiliary::default(), None);
            let logits = model.decode(&mut cx, &mut cache, &next).unwrap().view().to_f64(&dev);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            ours.push(best as u32);
            next = vec![best as u32];
        }
        assert_eq!(ours, tokens, "{case}");
    }
}

/// Weights of 8 bits are made wide as they are read, and what they give is what transformers computes from them.
#[test]
fn weights_of_eight_bits() {
    let dev = Cpu::new(2);
    let expected = Expected::read(&golden_dir().join("fp8").join("golden.safetensors"));
    let (model, weights) = open(&dev, "fp8");
    let batch = Batch::of(&[expected.ids("input_ids")]);
    let mut cx = solo(&dev, &weights, &batch.packing, Auxiliary::default(), None);
    let logits = model.logits(&mut cx, &batch.ids).unwrap().view().to_f64(&dev);
    assert_close("fp8: logits", "golden logits", DType::F32, &expected.0["logits"], &logits);
}

#[test]
fn packed_documents_are_as_if_alone() {
    let dev = Cpu::new(2);
    for case in ["llama", "qwen3_moe"] {
        let expected = Expected::read(&golden_dir().join(case).join("packed.safetensors"));
        let (model, weights) = open(&dev, case);
        let documents: Vec<Vec<u32>> = (0..3).map(|i| expected.ids(&format!("doc{i}.input_ids"))).collect();
        let batch = Batch::of(&documents);
        let mut cx = solo(&dev, &weights, &batch.packing, Auxiliary::default(), None);
        let logits = model.logits(&mut cx, &batch.ids).unwrap().view().to_f64(&dev);
        let theirs: Vec<f64> = (0..3).flat_map(|i| expected.0[&format!("doc{i}.logits")].clone()).collect();
        assert_close(&format!("{case}: packed logits"), "golden logits", DType::F32, &theirs, &logits);
        prove(&dev, case, &model, &weights, &documents, &expected);
    }
}
