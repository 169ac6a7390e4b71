//! Many sequences in one pass over pages: each gets what it gets alone.

mod common;

use common::families::all_families;
use common::{documents, model, solo};
use proptest::prelude::*;
use wudao_device::check::{Random, assert_close};
use wudao_device::{Cpu, DType, PAGE, Tensor};
use wudao_model::layer::Auxiliary;
use wudao_model::model::Recomputation;
use wudao_model::store::Shard;
use wudao_model::{Config, MlaConfig, Model, Packing, PagedCache, Step, Store};

const POOL: usize = 40;

/// A sequence on its way.
struct Way {
    ids: Vec<u32>,
    pages: Vec<u32>,
    read: usize,
    hidden: Vec<f64>,
}

/// Reads all documents, each step some tokens of some of them, as `cut` says: of this many left, how many now.
fn read(
    dev: &Cpu,
    model: &Model<Cpu>,
    weights: &Store<Cpu>,
    docs: &[Vec<u32>],
    dtype: DType,
    seed: u64,
    mut cut: impl FnMut(usize, usize) -> usize,
) -> Vec<Vec<f64>> {
    let mut random = Random(seed);
    let mut free: Vec<u32> = (0..POOL as u32).collect();
    let mut ways: Vec<Way> = (docs.iter())
        .map(|ids| {
            let pages = (0..ids.len().div_ceil(PAGE)).map(|_| free.swap_remove(random.below(free.len()))).collect();
            Way { ids: ids.clone(), pages, read: 0, hidden: vec![] }
        })
        .collect();
    let mut cache = PagedCache::new(dev, model.config(), POOL, dtype);
    while ways.iter().any(|w| w.read < w.ids.len()) {
        let counts: Vec<usize> = ways.iter().enumerate().map(|(i, w)| cut(i, w.ids.len() - w.read)).collect();
        let steps: Vec<Step> = (ways.iter().zip(&counts))
            .filter(|(_, n)| **n > 0)
            .map(|(w, &n)| Step { ids: &w.ids[w.read..w.read + n], past: w.read, pages: &w.pages, wanted: 0..n })
            .collect();
        let packing = Step::packing(&steps);
        let mut cx = solo(dev, weights, &packing, Auxiliary::default(), None);
        let h_td = model.decode_batch(&mut cx, &mut cache, &steps).unwrap();
        let (all, d) = (h_td.view().to_f64(dev), model.config().hidden_size);
        let mut rows = all.chunks(d);
        for (w, n) in ways.iter_mut().zip(counts) {
            w.read += n;
            rows.by_ref().take(n).for_each(|row| w.hidden.extend(row));
        }
    }
    ways.into_iter().map(|w| w.hidden).collect()
}

/// One document, whole, alone.
fn alone(dev: &Cpu, model: &Model<Cpu>, weights: &Store<Cpu>, ids: &[u32], dtype: DType) -> Vec<f64> {
    read(dev, model, weights, &[ids.to_vec()], dtype, 1, |_, left| left).remove(0)
}

fn wider(config: Config) -> Config {
    let mla = config.mla.map(|m| MlaConfig { kv_lora_rank: 24, qk_nope_head_dim: 8, qk_rope_head_dim: 8, ..m });
    Config { vocab_size: 300, hidden_size: 64, head_dim: 16, max_position_embeddings: 160, mla, ..config }
}

#[test]
fn pages_are_the_full_pass() {
    let dev = Cpu::new(2);
    for (name, config) in all_families() {
        let (model, weights) = model(&dev, &config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
        let ids = documents(config.vocab_size, &[29], 6).remove(0);
        let packing = Packing::of_lengths(&[ids.len()]);
        let mut cx = solo(&dev, &weights, &packing, Auxiliary::default(), None);
        let full = model.hidden(&mut cx, &ids).unwrap().view().to_f64(&dev);
        assert_close(name, "decode", DType::F64, &full, &alone(&dev, &model, &weights, &ids, DType::F64));
    }
}

/// Keys and values of 8 bits change logits by little: their error's size against that of the logits.
#[test]
fn a_cache_of_codes_answers_nearly_the_same() {
    let dev = Cpu::new(2);
    let size = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    for (name, config) in all_families() {
        let mut config = wider(config);
        // Every token meets every expert, so that no rounding changes a choice.
        config.moe.iter_mut().for_each(|m| (m.num_experts_per_tok, m.n_group, m.topk_group) = (m.num_experts, 1, 1));
        let (model, weights) = model(&dev, &config, DType::F32, Recomputation::None, Shard::WHOLE, 5);
        let ids = documents(config.vocab_size, &[130], 6).remove(0);
        let logits = |cache| {
            let hidden = alone(&dev, &model, &weights, &ids, cache);
            let h_td = Tensor::from_host(&dev, [ids.len(), config.hidden_size], &narrow(&hidden));
            let packing = Packing::default();
            let cx = solo(&dev, &weights, &packing, Auxiliary::default(), None);
            model.logits_of(&cx, h_td.view()).unwrap().view().to_f64(&dev)
        };
        let (exact, coded) = (logits(DType::F32), logits(DType::I8));
        let apart = size(&mut exact.iter().zip(&coded).map(|(a, b)| a - b)) / size(&mut exact.iter().copied());
        assert!(apart > 0.0, "{name}: codes change something");
        assert_close(name, "coded cache", DType::I8, &[0.0], &[apart]);
    }
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    /// Bit for bit, in every family and type, with any company and any cuts.
    #[test]
    fn company_and_cuts_change_no_bit(lengths in prop::collection::vec(1usize..150, 1..5), seed: u64) {
        for (name, config) in all_families() {
            let config = wider(config);
            for dtype in [DType::F32, DType::Bf16] {
                let dev = Cpu::new(2);
                let (model, weights) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 5);
                let docs = documents(config.vocab_size, &lengths, seed);
                for cache in [dtype, DType::I8] {
                    let mut random = Random(seed);
                    let together = read(&dev, &model, &weights, &docs, cache, seed, |_, left| match random.below(4) {
                        0 => 0,
                        1 => left.min(1),
                        2 => left.min(7),
                        _ => left.min(1 + random.below(100)),
                    });
                    for (ids, got) in docs.iter().zip(together) {
                        let one = alone(&dev, &model, &weights, ids, cache);
                        prop_assert!(one == got, "{} in {:?}, cache in {:?}", name, dtype, cache);
                    }
                }
            }
        }
    }
}
