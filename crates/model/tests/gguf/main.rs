//! GGUF files: what we write we read again, family by family; foreign bytes get an answer, never a panic.

#[path = "../common/mod.rs"]
mod common;

mod bytes;
mod coding;
mod families;
mod latent;
mod split;
mod taken;

use common::families::every_family;
use common::{by_name, model};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use wudao_device::{Cpu, DType};
use wudao_model::gguf::{self, Field, TensorType};
use wudao_model::model::{Options, Recomputation};
use wudao_model::store::Shard;
use wudao_model::weights::{self, Source};
use wudao_model::{Config, Model, Store, WeightOptions};

const BIG: u64 = 1 << 40;

fn dev() -> Cpu {
    Cpu::new(1)
}

fn text(e: impl std::error::Error) -> String {
    let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
    format!("{e}{source}")
}

/// A model's folder with random weights.
fn folder(config: &Config) -> (TempDir, Store<Cpu>) {
    let (_, store) = model(&dev(), config, DType::F32, Recomputation::None, Shard::WHOLE, 5);
    let dir = TempDir::new().unwrap();
    weights::save(&dev(), dir.path(), config, &store, DType::F32, BIG).unwrap();
    (dir, store)
}

/// The same model as a GGUF file beside its folder.
fn written(config: &Config, dtype: TensorType, fields: &[(String, Field)]) -> Result<(TempDir, PathBuf), String> {
    let (dir, _) = folder(config);
    let path = dir.path().join("model.gguf");
    gguf::write(&path, &Source::open(dir.path()).unwrap(), dtype, fields).map_err(text)?;
    Ok((dir, path))
}

fn loaded(path: &Path, config: &Config) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let model = Model::new(&dev(), config, 8, Options::default()).unwrap();
    let mut store = model.zeros(&dev());
    weights::load(&dev(), path, config, &mut store).map(|()| by_name(&dev(), &store)).map_err(text)
}

/// Sums of squares of a model's weights, packed row by row as they are for whoever only answers.
fn packed_sums(path: &Path, config: &Config) -> Vec<f64> {
    let model = Model::new(&dev(), config, 8, Options::default()).unwrap();
    let (source, options) = (Source::open(path).unwrap(), WeightOptions::plain(DType::F32));
    let packed = weights::load_packed(&dev(), &source, model.layout(), &options).unwrap();
    packed.sums_of_squares(&dev()).unwrap()
}

/// A model whose rows are whole blocks.
fn wide() -> Config {
    let (_, llama) = every_family().swap_remove(0);
    Config { hidden_size: 64, intermediate_size: 96, num_key_value_heads: 2, head_dim: 16, vocab_size: 40, ..llama }
}
