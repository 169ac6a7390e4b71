//! N ranks compute what one rank computes, and any number of threads gives the same bits.

mod common;

use common::families::{all_families, every_family};
use common::{Batch, auxiliary_for, by_name, documents, log_for, model, pass};
use std::collections::BTreeMap;
use wudao_comm::{Comm, Solo, Threads};
use wudao_device::check::assert_close;
use wudao_device::{Cpu, DType};
use wudao_model::layer::{Auxiliary, RouterLog};
use wudao_model::model::Recomputation;
use wudao_model::store::Shard;
use wudao_model::{Config, Model, Packing};

type Result = (Vec<f64>, BTreeMap<String, Vec<f64>>, RouterLog);

/// One rank's part of a step: its documents, gradients of the dense part summed over ranks, its experts' own.
fn rank(config: &Config, shard: Shard, comm: &dyn Comm<Cpu>, docs: &[Vec<u32>], scale: f64, aux: Auxiliary) -> Result {
    let dev = Cpu::new(1);
    let recompute = if shard.size == 4 { Recomputation::Block } else { Recomputation::None };
    let (model, weights) = model(&dev, config, DType::F64, recompute, shard, 5);
    let mut out = pass(&dev, &model, &weights, comm, &Batch::of(docs), scale, aux);
    comm.all_reduce(&dev, out.grads.dense_mut()).unwrap();
    out.log.all_reduce(comm).unwrap();
    (out.losses, by_name(&dev, &out.grads), out.log)
}

#[test]
fn many_ranks_are_one() {
    for (name, config) in every_family() {
        let docs = documents(config.vocab_size, &[5, 3, 1, 7, 2, 6, 4, 2], 21);
        let whole = Batch::of(&docs);
        let aux = auxiliary_for(&config, whole.ids.len());
        let scale = 1.0 / whole.predictions() as f64;
        let (losses, grads, log) = rank(&config, Shard::WHOLE, &Solo, &docs, scale, aux);
        for size in [2, 4] {
            let results: Vec<Result> = std::thread::scope(|s| {
                let share = docs.len() / size;
                let world = Threads::world(size).into_iter().zip(docs.chunks(share)).enumerate();
                let ranks: Vec<_> = world
                    .map(|(r, (comm, docs))| {
                        let config = &config;
                        s.spawn(move || rank(config, Shard { rank: r, size }, &comm, docs, scale, aux))
                    })
                    .collect();
                ranks.into_iter().map(|r| r.join().unwrap()).collect()
            });
            let theirs: Vec<f64> = results.iter().flat_map(|(losses, ..)| losses.clone()).collect();
            assert_close(&format!("{name}: losses"), "ranks", DType::F64, &losses, &theirs);
            let mut seen = BTreeMap::new();
            for (_, grads_here, log_here) in &results {
                for (tensor, g) in grads_here {
                    let what = format!("{name}, {size} ranks: {tensor}");
                    assert_close(&what, "ranks", DType::F64, &grads[tensor], g);
                    *seen.entry(tensor).or_insert(0) += 1;
                }
                for (a, b) in log.layers.iter().zip(&log_here.layers) {
                    assert_eq!(a.load, b.load, "{name}");
                    assert_close(name, "ranks", DType::F64, &a.score, &b.score);
                    assert_close(name, "ranks", DType::F64, &[a.entropy, a.z], &[b.entropy, b.z]);
                }
            }
            // Every expert has one owner, everything else is everywhere.
            assert!(seen.keys().copied().eq(grads.keys()), "{name}");
            for (tensor, n) in seen {
                assert_eq!(n, if tensor.contains(".experts.") { 1 } else { size }, "{tensor}");
            }
        }
    }
}

/// Fresh weights are a matter of seed and name: not of ranks.
#[test]
fn a_share_of_the_experts_begins_as_in_the_whole() {
    let dev = Cpu::new(1);
    for (name, config) in every_family().into_iter().filter(|(_, c)| c.moe.is_some()) {
        let init = |shard, seed| {
            let options = wudao_model::model::Options { shard, ..Default::default() };
            by_name(&dev, &Model::new(&dev, &config, 8, options).unwrap().init(&dev, seed))
        };
        let whole = init(Shard::WHOLE, 1);
        assert_ne!(whole, init(Shard::WHOLE, 2));
        for rank in 0..2 {
            let share = init(Shard { rank, size: 2 }, 1);
            assert!(share.len() < whole.len());
            assert!(share.iter().all(|(tensor, w)| whole[tensor] == *w), "{name}");
        }
    }
    let (_, config) = every_family().swap_remove(3);
    let options = wudao_model::model::Options { shard: Shard { rank: 0, size: 3 }, ..Default::default() };
    let e = Model::new(&dev, &config, 8, options).err().unwrap();
    assert!(e.to_string().contains("3 ranks"), "{e}");
}

/// Wide enough that every kernel has work for several threads.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (name, config) in every_family() {
        let config = Config { vocab_size: 500, hidden_size: 64, head_dim: 16, max_position_embeddings: 128, ..config };
        let docs = documents(config.vocab_size, &[90, 17, 128, 60, 5], 3);
        let batch = Batch::of(&docs);
        let aux = auxiliary_for(&config, batch.ids.len());
        for dtype in [DType::F32, DType::Bf16] {
            let run = |threads| {
                let dev = Cpu::new(threads);
                let (model, weights) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 7);
                let out = pass(&dev, &model, &weights, &Solo, &batch, 1e-2, aux);
                (out.losses, by_name(&dev, &out.grads), out.log)
            };
            let one = run(1);
            assert!(one.0.iter().chain(one.1.values().flatten()).all(|x| x.is_finite()), "{name}");
            assert!(one == run(2), "{name} in {dtype:?}: two threads");
            assert!(one == run(3), "{name} in {dtype:?}: three threads");
        }
    }
}

/// A decoding step is the last row of a full pass, whether tokens come one by one or in pieces, and after a step back.
#[test]
fn cached_decoding_is_the_full_pass() {
    let dev = Cpu::new(1);
    for (name, config) in all_families() {
        let (model, weights) = model(&dev, &config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
        let ids = documents(config.vocab_size, &[12], 6).remove(0);
        let full_packing = Packing::of_lengths(&[ids.len()]);
        let mut cx = common::solo(&dev, &weights, &full_packing, Auxiliary::default(), None);
        let full = model.logits(&mut cx, &ids).unwrap().view().to_f64(&dev);
        let row = |at: usize| &full[at * config.vocab_size..(at + 1) * config.vocab_size];
        let mut cache = wudao_model::KvCache::new(&dev, &config, ids.len(), DType::F64);
        let feed = |cache: &mut wudao_model::KvCache<Cpu>, n: usize| {
            let at = cache.len()..cache.len() + n;
            let positions = at.clone().map(|p| p as u32).collect();
            let packing = Packing { positions, segments: vec![0, n as u32] };
            let mut log = log_for(&config);
            let mut cx = common::solo(&dev, &weights, &packing, Auxiliary::default(), Some(&mut log));
            let logits = model.decode(&mut cx, cache, &ids[at.clone()]).unwrap();
            assert_eq!(cache.len(), at.end);
            let what = format!("{name}: after token {}", at.end);
            assert_close(&what, "decode", DType::F64, row(at.end - 1), &logits.view().to_f64(&dev));
        };
        (0..ids.len()).for_each(|_| feed(&mut cache, 1));
        cache.truncate(2);
        for n in [4, 1, 5] {
            feed(&mut cache, n);
        }
        cache.truncate(0);
        feed(&mut cache, ids.len());
    }
}
