//! A dense model becomes a sparse one that gives the same answers.

mod common;

use common::families::every_family;
use common::{Batch, by_name, documents, model, solo};
use tempfile::TempDir;
use wudao_device::check::assert_close;
use wudao_device::{Cpu, DType};
use wudao_model::layer::Auxiliary;
use wudao_model::model::{Options, Recomputation};
use wudao_model::store::Shard;
use wudao_model::weights::{self, WeightsError, upcycle};
use wudao_model::{Config, Family, Model, Store, Upcycling};

const BIG: u64 = 1 << 40;

fn how(copies: usize, chosen: usize, split: usize) -> Upcycling {
    Upcycling { copies, chosen, split, family: None, dense_layers: vec![], router_std: 0.3, seed: 5 }
}

/// Dense models without habits that no sparse family has.
fn dense(family: Family) -> Config {
    let families = every_family();
    let of = |name: &str| families.iter().find(|f| f.0 == name).unwrap().1.clone();
    let config = match family {
        // Half the vocabulary of habits: tied, and with fewer heads of keys than of queries.
        Family::Llama => Config { num_key_value_heads: 2, ..of("llama_tied") },
        other => of(other.model_type()),
    };
    Config { intermediate_size: 16, ..config }
}

fn answers(dev: &Cpu, model: &Model<Cpu>, weights: &Store<Cpu>) -> Vec<f64> {
    let batch = Batch::of(&documents(model.config().vocab_size, &[20, 11], 9));
    let mut cx = solo(dev, weights, &batch.packing, Auxiliary::default(), None);
    model.logits(&mut cx, &batch.ids).unwrap().view().to_f64(dev)
}

fn open(dev: &Cpu, dir: &std::path::Path) -> (Model<Cpu>, Store<Cpu>) {
    let config = weights::read_config(dir).unwrap();
    let model = Model::new(dev, &config, config.max_position_embeddings, Options::default()).unwrap();
    let mut weights = model.no_weights(dev);
    weights::load(dev, dir, &config, &mut weights).unwrap();
    (model, weights)
}

#[test]
fn the_sparse_model_begins_with_the_dense_ones_answers() {
    let dev = Cpu::new(2);
    let sparse_only = [(4, 2, 1), (3, 1, 1), (4, 4, 1), (4, 2, 2), (2, 1, 8)];
    for (family, targets) in [
        (Family::Llama, vec![None, Some(Family::Glm4Moe)]),
        (Family::Mistral, vec![None, Some(Family::Glm4Moe)]),
        (Family::Qwen2, vec![None, Some(Family::Glm4Moe)]),
        (Family::Qwen3, vec![None, Some(Family::Glm4Moe)]),
    ] {
        let config = dense(family);
        let (m, store) = model(&dev, &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
        let dir = TempDir::new().unwrap();
        weights::save(&dev, dir.path(), &config, &store, DType::F32, BIG).unwrap();
        let expected = answers(&dev, &m, &store);
        for target in targets {
            for (copies, chosen, split) in sparse_only {
                let out = TempDir::new().unwrap();
                let how = Upcycling { family: target, ..how(copies, chosen, split) };
                let done = upcycle(dir.path(), out.path(), &how, 2000).unwrap();
                assert_eq!(done.dense, config);
                let (sparse, weights) = open(&dev, out.path());
                assert_eq!(*sparse.config(), done.sparse);
                let moe = done.sparse.moe.unwrap();
                assert_eq!((moe.num_experts, moe.num_experts_per_tok), (copies * split, chosen * split));
                let what =
                    format!("{} as {:?}, {chosen} of {copies} in {split}", family.model_type(), done.sparse.family);
                assert_close(&what, "upcycling", DType::F32, &expected, &answers(&dev, &sparse, &weights));
                // A router that does not choose would prove nothing.
                let all = by_name(&dev, &weights);
                let router = all.iter().find(|(name, _)| name.ends_with("gate.weight")).unwrap().1;
                assert!(copies == 1 || router[0] != router[router.len() - 1], "{what}");
            }
        }
    }
}

#[test]
fn some_layers_may_stay_dense_and_the_seed_decides_the_routers() {
    let dev = Cpu::new(1);
    let config = dense(Family::Qwen3);
    let (m, store) = model(&dev, &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
    let dir = TempDir::new().unwrap();
    weights::save(&dev, dir.path(), &config, &store, DType::F32, BIG).unwrap();
    let of = |seed| {
        let out = TempDir::new().unwrap();
        upcycle(dir.path(), out.path(), &Upcycling { dense_layers: vec![1], seed, ..how(4, 2, 1) }, BIG).unwrap();
        let (sparse, weights) = open(&dev, out.path());
        assert_eq!(sparse.config().moe_layers(), [0]);
        assert_close("half", "upcycling", DType::F32, &answers(&dev, &m, &store), &answers(&dev, &sparse, &weights));
        by_name(&dev, &weights)
    };
    let (a, b, c) = (of(1), of(1), of(2));
    assert!(a == b);
    let differ: Vec<&String> = a.keys().filter(|name| a[*name] != c[*name]).collect();
    assert_eq!(differ, ["model.layers.0.mlp.gate.weight"]);
    assert_eq!(a["model.layers.1.mlp.down_proj.weight"], by_name(&dev, &store)["model.layers.1.mlp.down_proj.weight"]);
}

/// Weights of 16 bits stay exactly what they were, but for their exponents.
#[test]
fn half_precision_stays_exact() {
    let dev = Cpu::new(1);
    let config = dense(Family::Qwen2);
    let (_, store) = model(&dev, &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
    let (dir, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    weights::save(&dev, dir.path(), &config, &store, DType::Bf16, BIG).unwrap();
    upcycle(dir.path(), out.path(), &how(2, 1, 4), BIG).unwrap();
    assert!(weights::tensors(out.path()).unwrap().iter().all(|t| t.dtype == "BF16"));
    let (dense, sparse) = (open(&dev, dir.path()), open(&dev, out.path()));
    let (dense, sparse) = (by_name(&dev, &dense.1), by_name(&dev, &sparse.1));
    let (d, f, width) = (config.hidden_size, config.intermediate_size, config.intermediate_size / 4);
    for e in 0..8 {
        let (mlp, at) = ("model.layers.1.mlp", format!("model.layers.1.mlp.experts.{e}"));
        let from = e % 4 * width;
        let up = &dense[&format!("{mlp}.up_proj.weight")][from * d..(from + width) * d];
        assert_eq!(sparse[&format!("{at}.up_proj.weight")], up);
        let down = &dense[&format!("{mlp}.down_proj.weight")];
        // Four parts of a copy, and half of the answer from the shared expert.
        let wanted: Vec<f64> = (0..d).flat_map(|r| (0..width).map(move |c| 2.0 * down[r * f + from + c])).collect();
        assert_eq!(sparse[&format!("{at}.down_proj.weight")], wanted);
    }
    assert_eq!(
        sparse["model.layers.0.mlp.shared_expert.down_proj.weight"],
        dense["model.layers.0.mlp.down_proj.weight"]
    );
    assert!(sparse["model.layers.0.mlp.shared_expert_gate.weight"].iter().all(|&x| x == 0.0));
}

#[test]
fn what_cannot_be_is_named_before_anything_is_written() {
    let dev = Cpu::new(1);
    let families = every_family();
    let save = |config: &Config| {
        let (_, store) = model(&dev, config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
        let dir = TempDir::new().unwrap();
        weights::save(&dev, dir.path(), config, &store, DType::F32, BIG).unwrap();
        dir
    };
    let qwen3 = save(&dense(Family::Qwen3));
    let refused = |dir: &TempDir, how: Upcycling, key: &str| {
        let out = TempDir::new().unwrap();
        match upcycle(dir.path(), out.path(), &how, BIG).unwrap_err() {
            WeightsError::Upcycling { source, .. } => assert_eq!(source.key, key, "{source}"),
            other => panic!("{other}"),
        }
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    };
    refused(&qwen3, how(0, 1, 1), "experts");
    refused(&qwen3, how(4, 5, 1), "top-k");
    refused(&qwen3, how(4, 0, 1), "top-k");
    refused(&qwen3, how(4, 2, 3), "split");
    refused(&qwen3, how(4, 2, 32), "split");
    refused(&qwen3, Upcycling { router_std: -1.0, ..how(4, 2, 1) }, "router-std");
    refused(&qwen3, Upcycling { family: Some(Family::Qwen2), ..how(4, 2, 1) }, "family");
    refused(&qwen3, Upcycling { family: Some(Family::Mixtral), ..how(4, 2, 1) }, "qk_norm");
    refused(&qwen3, Upcycling { dense_layers: vec![7], ..how(4, 2, 1) }, "dense_layers");
    // Biases on the output, which no sparse family without a norm of queries has.
    let (_, llama) = &families[0];
    refused(&save(llama), how(4, 2, 1), "attention_bias");
    let (_, mixtral) = &families[3];
    refused(&save(mixtral), how(4, 2, 1), "model_type");
    let e = upcycle(TempDir::new().unwrap().path(), qwen3.path(), &how(2, 1, 1), BIG).unwrap_err();
    assert!(e.to_string().contains("config.json"), "{e}");
}
