//! What the proofs share: weights that are neither small nor alike, packed batches, and results by name.
#![allow(dead_code)] // Every test file is a crate of its own and uses a part.

pub mod families;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use wudao_comm::{Comm, Solo};
use wudao_device::check::Random;
use wudao_device::{Cpu, DType, Device, IGNORE, Tensor};
use wudao_model::layer::Auxiliary;
use wudao_model::model::Recomputation;
use wudao_model::store::{Kind, Shard};
use wudao_model::{Config, Cx, Model, Packing, RouterLog, Store};

/// What PyTorch and transformers computed.
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden")
}

/// Random weights of order one, each tensor from its name, so that any shard has the same. Routers and embeddings are
/// wide, so that no token's choice is close.
pub fn randomize(device: &Cpu, store: &mut Store<Cpu>, seed: u64) {
    for (home, param) in store.params() {
        for part in &param.parts {
            let name = part.name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            let mut random = Random(name);
            let shape = [part.rows.len(), param.shape[1]];
            let (mean, width) = match param.kind {
                Kind::Norm => (1.0, 0.3),
                Kind::Bias => (0.0, 0.3),
                Kind::Correction => (0.0, 0.1),
                Kind::Embedding => (0.0, 1.0),
                Kind::Router => (0.0, 0.8),
                Kind::Matrix | Kind::Expansion | Kind::Output | Kind::Head => (0.0, 2.0 / (shape[1] as f64).sqrt()),
            };
            let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| mean + width * random.uniform()).collect();
            let values = Tensor::from_host(device, shape, &values);
            device.copy(values.view(), store.get_mut(home).rows(part.rows.clone()));
        }
    }
}

/// Every tensor under its name, as f64.
pub fn by_name(device: &Cpu, store: &Store<Cpu>) -> BTreeMap<String, Vec<f64>> {
    let mut all = BTreeMap::new();
    for (home, param) in store.params() {
        for part in &param.parts {
            all.insert(part.name.clone(), store.get(home).rows(part.rows.clone()).to_f64(device));
        }
    }
    all
}

/// Documents, packed: ids, next-token targets that stop at the edges, and how they lie.
#[derive(Clone)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    pub packing: Packing,
}

impl Batch {
    pub fn of(documents: &[Vec<u32>]) -> Batch {
        let targets = documents.iter().flat_map(|d| d[1..].iter().copied().chain([IGNORE])).collect();
        let lengths: Vec<usize> = documents.iter().map(Vec::len).collect();
        Batch { ids: documents.concat(), targets, packing: Packing::of_lengths(&lengths) }
    }

    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }
}

/// Random documents of these lengths.
pub fn documents(vocab: usize, lengths: &[usize], seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    lengths.iter().map(|&n| (0..n).map(|_| random.below(vocab) as u32).collect()).collect()
}

/// Strong auxiliary losses, as far as the routers have them.
pub fn auxiliary_for(config: &Config, tokens: usize) -> Auxiliary {
    let softmax = config.moe.as_ref().is_none_or(|m| !m.sigmoid);
    Auxiliary { balance: 0.3, z: if softmax { 0.2 } else { 0.0 }, tokens: tokens as f64 }
}

/// An empty log for a model.
pub fn log_for(config: &Config) -> RouterLog {
    RouterLog::new(config.moe_layers().len(), config.moe.as_ref().map_or(0, |m| m.num_experts))
}

/// A pass without other ranks.
pub fn solo<'a>(
    device: &'a Cpu,
    weights: &'a Store<Cpu>,
    packing: &'a Packing,
    aux: Auxiliary,
    log: Option<&'a mut RouterLog>,
) -> Cx<'a, Cpu> {
    Cx { device, comm: &Solo, weights, packing, aux, log, again: false }
}

/// What a training pass gives.
pub struct Outcome {
    pub losses: Vec<f64>,
    pub grads: Store<Cpu>,
    pub log: RouterLog,
}

/// One forward and backward pass over a batch.
pub fn pass(
    device: &Cpu,
    model: &Model<Cpu>,
    weights: &Store<Cpu>,
    comm: &dyn Comm<Cpu>,
    batch: &Batch,
    scale: f64,
    aux: Auxiliary,
) -> Outcome {
    let mut log = log_for(model.config());
    let mut grads = model.zeros(device);
    let mut cx = Cx { comm, ..solo(device, weights, &batch.packing, aux, Some(&mut log)) };
    let losses = model.losses_and_gradients(&mut cx, &mut grads, &batch.ids, &batch.targets, scale).unwrap();
    Outcome { losses, grads, log }
}

/// A model with random weights.
pub fn model(
    device: &Cpu,
    config: &Config,
    dtype: DType,
    recompute: Recomputation,
    shard: Shard,
    seed: u64,
) -> (Model<Cpu>, Store<Cpu>) {
    let options = wudao_model::model::Options { dtype, recompute, shard };
    let model = Model::new(device, config, config.max_position_embeddings, options).unwrap();
    let mut weights = model.no_weights(device);
    randomize(device, &mut weights, seed);
    (model, weights)
}
