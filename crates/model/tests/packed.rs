//! Weights for inference, in every coding: against the weights that they stand for, and against themselves in other
//! company and with other threads.

mod common;

use common::families::every_family;
use common::{Batch, by_name, documents, golden_dir, model};
use std::collections::BTreeMap;
use std::convert::Infallible;
use wudao_comm::Solo;
use wudao_device::check::assert_close;
use wudao_device::{Coding, Cpu, DType, Device, PAGE, QuantKind, Tensor};
use wudao_model::layer::Auxiliary;
use wudao_model::model::Recomputation;
use wudao_model::store::{Home, Param, Part, Shard, Weights};
use wudao_model::weights::{self, load_packed};
use wudao_model::{Config, Cx, Incoming, Model, PackedWeights, Packing, PagedCache, Step, Store, WeightOptions};

/// Wide enough for blocks; every token meets every expert, so that no rounding changes a choice.
fn wide(config: Config) -> Config {
    let mut config = Config { vocab_size: 67, hidden_size: 64, head_dim: 16, max_position_embeddings: 160, ..config };
    config.intermediate_size = 96;
    if let Some(moe) = &mut config.moe {
        (moe.moe_intermediate_size, moe.num_experts_per_tok, moe.n_group, moe.topk_group) = (32, moe.num_experts, 1, 1);
        if config.family == wudao_model::Family::Mixtral || config.family == wudao_model::Family::Olmoe {
            config.intermediate_size = 32;
        }
    }
    config
}

/// The weights of a store, packed.
fn pack(dev: &Cpu, model: &Model<Cpu>, store: &Store<Cpu>, options: &WeightOptions) -> PackedWeights<Cpu> {
    let values = by_name(dev, store);
    let open = |param: &Param, part: &Part| {
        let values: Vec<f32> = values[&part.name].iter().map(|&x| x as f32).collect();
        let columns = param.shape[1];
        let row = move |i: usize, coding: Coding| coding.encode(&values[i * columns..(i + 1) * columns]).into();
        Ok::<_, Infallible>(Incoming { blocks: None, row: Box::new(row) })
    };
    let Ok(packed) = PackedWeights::new(dev, model.layout(), options, open);
    packed
}

fn with<'a>(device: &'a Cpu, weights: &'a dyn Weights<Cpu>, packing: &'a Packing) -> Cx<'a, Cpu> {
    Cx { device, comm: &Solo, weights, packing, aux: Auxiliary::default(), log: None, again: false }
}

fn losses(dev: &Cpu, model: &Model<Cpu>, weights: &dyn Weights<Cpu>, batch: &Batch) -> Vec<f64> {
    let mut cx = with(dev, weights, &batch.packing);
    model.losses(&mut cx, &batch.ids, &batch.targets).unwrap()
}

/// What packed weights stand for.
fn unpacked(dev: &Cpu, packed: &PackedWeights<Cpu>, store: &mut Store<Cpu>) {
    for (home, param) in store.params() {
        let rows: Vec<u32> = (0..param.shape[0] as u32).collect();
        let operand = match home {
            Home::Dense(id) => packed.operand(id),
            Home::Expert(layer, e, part) => packed.experts(layer, part)[e],
        };
        let mut wide = Tensor::new(dev, param.shape, DType::F32);
        dev.gather(&rows, operand, wide.view_mut());
        dev.copy(wide.view(), store.get_mut(home));
    }
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Blocks of weights answer as the weights that they stand for, multiplied out in f64.
#[test]
fn coded_weights_are_those_that_they_stand_for() {
    let dev = Cpu::new(2);
    for (name, config) in every_family() {
        let config = wide(config);
        let batch = Batch::of(&documents(config.vocab_size, &[40, 21], 3));
        let (exact, mut reference) = model(&dev, &config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
        let (narrow, store) = model(&dev, &config, DType::F32, Recomputation::None, Shard::WHOLE, 5);
        for kind in QuantKind::ALL {
            let packed = pack(&dev, &narrow, &store, &WeightOptions::coded(Coding::Quant(kind)));
            unpacked(&dev, &packed, &mut reference);
            let expected = losses(&dev, &exact, &reference, &batch);
            let found = losses(&dev, &narrow, &packed, &batch);
            let apart = expected.iter().zip(&found).map(|(a, b)| a - b);
            let share = rms(apart) / rms(expected.iter().copied());
            assert_close(&format!("{name} in {kind:?}"), "coded losses", DType::F32, &[0.0], &[share]);
        }
    }
}

/// Without blocks packing changes nothing: to the bit in f32, and in bf16 if that is what the weights are.
#[test]
fn packed_floats_are_the_store() {
    let dev = Cpu::new(2);
    for (name, config) in every_family() {
        let batch = Batch::of(&documents(config.vocab_size, &[9, 14], 3));
        for dtype in [DType::F32, DType::Bf16] {
            let (model, mut store) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 5);
            let options = WeightOptions::plain(dtype);
            unpacked(&dev, &pack(&dev, &model, &store, &options), &mut store);
            let packed = pack(&dev, &model, &store, &options);
            let expected = losses(&dev, &model, &store, &batch);
            assert_eq!(losses(&dev, &model, &packed, &batch), expected, "{name} in {dtype:?}");
        }
    }
}

/// Hidden states of documents that are read together, some tokens a step, or alone.
fn read(dev: &Cpu, model: &Model<Cpu>, weights: &dyn Weights<Cpu>, docs: &[Vec<u32>], cut: usize) -> Vec<Vec<f64>> {
    let pages = |i: usize| -> Vec<u32> { (0..10).map(|p| (p * docs.len() + i) as u32).collect() };
    let pages: Vec<Vec<u32>> = (0..docs.len()).map(pages).collect();
    let mut cache = PagedCache::new(dev, model.config(), 10 * docs.len(), model.dtype());
    let (mut hidden, mut at) = (vec![vec![]; docs.len()], 0);
    while docs.iter().any(|ids| at < ids.len()) {
        let left: Vec<usize> = (0..docs.len()).filter(|&i| at < docs[i].len()).collect();
        let steps: Vec<Step> = (left.iter())
            .map(|&i| {
                let ids = &docs[i][at..docs[i].len().min(at + cut)];
                Step { ids, past: at, pages: &pages[i], wanted: 0..ids.len() }
            })
            .collect();
        let packing = Step::packing(&steps);
        let mut cx = with(dev, weights, &packing);
        let h_td = model.decode_batch(&mut cx, &mut cache, &steps).unwrap().view().to_f64(dev);
        let mut rows = h_td.chunks(model.config().hidden_size);
        for (&i, step) in left.iter().zip(&steps) {
            rows.by_ref().take(step.ids.len()).for_each(|row| hidden[i].extend(row));
        }
        at += cut;
    }
    hidden
}

/// Bit for bit, in every family and coding: together as alone, in any pieces, with any number of threads.
#[test]
fn company_cuts_and_threads_change_no_bit() {
    const { assert!(150 < 10 * PAGE) };
    for (name, config) in every_family() {
        let config = wide(config);
        let docs = documents(config.vocab_size, &[37, 1, 18, 64, 5], 11);
        for coding in Coding::ALL {
            let options = WeightOptions::coded(coding);
            let mut expected: Option<Vec<Vec<f64>>> = None;
            for threads in 1..=3 {
                let dev = Cpu::new(threads);
                let (model, store) = model(&dev, &config, options.operands, Recomputation::None, Shard::WHOLE, 5);
                let weights = pack(&dev, &model, &store, &options);
                let together = read(&dev, &model, &weights, &docs, [100, 7, 1][threads - 1]);
                let expected = expected.get_or_insert_with(|| {
                    let alone = |ids: &Vec<u32>| read(&dev, &model, &weights, std::slice::from_ref(ids), 1).remove(0);
                    docs.iter().map(alone).collect()
                });
                assert!(*expected == together, "{name} in {coding:?} with {threads} threads");
            }
        }
    }
}

/// From files of transformers: what is packed is what a store would have been given.
#[test]
fn files_are_packed_as_they_are_read() {
    let dev = Cpu::new(2);
    for case in ["llama", "mixtral", "qwen3_moe_norm", "glm4_moe", "qwen2_moe"] {
        let dir = golden_dir().join(case);
        let config = weights::read_config(&dir).unwrap();
        let model = Model::new(&dev, &config, 16, Default::default()).unwrap();
        let mut store = model.no_weights(&dev);
        weights::load(&dev, &dir, &config, &mut store).unwrap();
        for coding in Coding::ALL {
            let options = WeightOptions { operands: DType::F32, coding: Some(coding) };
            let loaded = load_packed(&dev, &weights::Source::open(&dir).unwrap(), model.layout(), &options).unwrap();
            let expected = pack(&dev, &model, &store, &options);
            let [found, expected_sums] = [&loaded, &expected].map(|w| w.sums_of_squares(&dev).unwrap());
            assert_eq!(found, expected_sums, "{case} in {coding:?}");
            let [mut a, mut b] = [0, 1].map(|_| model.no_weights(&dev));
            unpacked(&dev, &loaded, &mut a);
            unpacked(&dev, &expected, &mut b);
            let of = |store: &Store<Cpu>| -> BTreeMap<String, Vec<f64>> { by_name(&dev, store) };
            assert_eq!(of(&a), of(&b), "{case} in {coding:?}");
        }
    }
    let dir = golden_dir().join("llama");
    let deeper = Config { num_hidden_layers: 9, ..weights::read_config(&dir).unwrap() };
    let model = Model::<Cpu>::new(&dev, &deeper, 8, Default::default()).unwrap();
    let source = weights::Source::open_as(&dir, &deeper).unwrap();
    let missing = load_packed(&dev, &source, model.layout(), &WeightOptions::plain(DType::F32));
    assert!(missing.is_err_and(|e| e.to_string().contains("missing")));
}
