//! Experts that stay in their file: the same bits as with all in memory, whatever the room, and never more than that.

mod common;

use common::families::all_families;
use common::{Batch, documents, model};
use std::path::Path;
use tempfile::TempDir;
use wudao_comm::Solo;
use wudao_device::{Coding, Cpu, DType, Device, QuantKind};
use wudao_model::gguf::{self, TensorType};
use wudao_model::layer::Auxiliary;
use wudao_model::model::{Options, Recomputation};
use wudao_model::store::Shard;
use wudao_model::weights::{self, Budget, Source, load_packed, load_within};
use wudao_model::{Config, Cx, Model, PackedWeights, Packing, PagedCache, Step, WeightOptions};

const BIG: u64 = 1 << 40;

/// Wide enough for blocks; who has experts has eight.
fn wide(config: Config) -> Config {
    let mut config = Config { vocab_size: 67, hidden_size: 64, head_dim: 16, max_position_embeddings: 160, ..config };
    config.intermediate_size = 96;
    config.mla.iter().for_each(|m| config.head_dim = m.qk_nope_head_dim + m.qk_rope_head_dim);
    if let Some(moe) = &mut config.moe {
        (moe.moe_intermediate_size, moe.num_experts) = (32, 8);
        if config.family == wudao_model::Family::Mixtral || config.family == wudao_model::Family::Olmoe {
            config.intermediate_size = 32;
        }
    }
    config
}

/// A model's folder with random weights.
fn folder(config: &Config) -> TempDir {
    let dev = Cpu::new(2);
    let (_, store) = model(&dev, config, DType::F32, Recomputation::None, Shard::WHOLE, 5);
    let dir = TempDir::new().unwrap();
    weights::save(&dev, dir.path(), config, &store, DType::F32, BIG).unwrap();
    dir
}

/// Bytes of an expert.
fn expert_bytes(config: &Config, coding: Coding) -> usize {
    let (d, f) = (config.hidden_size, config.moe.as_ref().unwrap().moe_intermediate_size);
    Cpu::bytes_to_pack(coding, [2 * f, d]) + Cpu::bytes_to_pack(coding, [d, f])
}

fn all_experts(config: &Config) -> usize {
    config.moe_layers().len() * config.moe.as_ref().unwrap().num_experts
}

fn with<'a>(dev: &'a Cpu, weights: &'a PackedWeights<Cpu>, packing: &'a Packing) -> Cx<'a, Cpu> {
    Cx { device: dev, comm: &Solo, weights, packing, aux: Auxiliary::default(), log: None, again: false }
}

/// Losses of documents that are read together, and hidden states of one that is read a token at a time.
fn answers(dev: &Cpu, model: &Model<Cpu>, weights: &PackedWeights<Cpu>) -> Vec<f64> {
    let docs = documents(model.config().vocab_size, &[40, 1, 21], 3);
    let batch = Batch::of(&docs);
    let mut all = model.losses(&mut with(dev, weights, &batch.packing), &batch.ids, &batch.targets).unwrap();
    let mut cache = PagedCache::new(dev, model.config(), 3, model.dtype());
    for past in 0..docs[0].len() {
        let steps = [Step { ids: &docs[0][past..past + 1], past, pages: &[2, 0, 1], wanted: 0..1 }];
        let packing = Step::packing(&steps);
        let h_td = model.decode_batch(&mut with(dev, weights, &packing), &mut cache, &steps).unwrap();
        all.extend(h_td.view().to_f64(dev));
    }
    all
}

fn model_of(dev: &Cpu, config: &Config, options: &WeightOptions) -> Model<Cpu> {
    let options = Options { dtype: options.operands, ..Options::default() };
    Model::new(dev, config, config.max_position_embeddings, options).unwrap()
}

fn within(
    dev: &Cpu,
    path: &Path,
    model: &Model<Cpu>,
    options: &WeightOptions,
    bytes: usize,
) -> Result<PackedWeights<Cpu>, String> {
    let budget = Budget { bytes: bytes + 1000, beside: 1000 };
    let source = Source::open(path).unwrap();
    load_within(dev, source, model.layout(), options, budget).map_err(|error| error.to_string())
}

/// Bit for bit, with room for one expert, for fewer than a token chooses, for half, for all but one.
fn room_changes_no_bit(name: &str, config: &Config, path: &Path, options: &WeightOptions) {
    let dev = Cpu::new(2);
    let model = model_of(&dev, config, options);
    let everything = load_packed(&dev, &Source::open(path).unwrap(), model.layout(), options).unwrap();
    let expected = answers(&dev, &model, &everything);
    let coding = options.coding.unwrap_or(Coding::Quant(QuantKind::Int8));
    let (one, count) = (expert_bytes(config, coding), all_experts(config));
    let fixed = everything.bytes() - count * one;
    let mut found = vec![];
    for room in [1, 2, count / 2, count - 1] {
        let weights = within(&dev, path, &model, options, fixed + room * one + one / 2).unwrap();
        assert_eq!(weights.bytes(), fixed + room * one + one / 2, "{name}");
        assert_eq!(weights.active_bytes(model.layout(), 2), everything.active_bytes(model.layout(), 2), "{name}");
        assert!(answers(&dev, &model, &weights) == expected, "{name} in {options:?} with room for {room} of {count}");
        let reads = weights.expert_reads().unwrap();
        assert!(reads.held <= reads.room && reads.held >= one, "{name}: {reads:?}");
        let misses = (reads.wanted - reads.found) as usize;
        assert!(
            misses >= room && reads.bytes > 0 && (reads.bytes as usize).is_multiple_of(misses),
            "{name}: {reads:?}"
        );
        found.push(reads.found);
    }
    assert!(found.is_sorted() && found[0] < found[3], "more room, more hits: {name}: {found:?}");
    let weights = within(&dev, path, &model, options, fixed + one).unwrap();
    assert_eq!(weights.sums_of_squares(&dev).unwrap(), everything.sums_of_squares(&dev).unwrap(), "{name}");
    let whole = within(&dev, path, &model, options, everything.bytes()).unwrap();
    assert!(whole.expert_reads().is_none(), "{name}: all have room");
    let none = within(&dev, path, &model, options, fixed + one - 1).map(drop);
    let least = format!("give it {}K at least", (fixed + one + 1000).div_ceil(1024));
    assert!(none.is_err_and(|error| error.contains(&least)), "{name}");
}

#[test]
fn the_room_of_experts_changes_no_bit() {
    let mut families = 0;
    for (name, config) in all_families().into_iter().filter(|(_, config)| config.moe.is_some()) {
        let config = wide(config);
        let dir = folder(&config);
        let codings = [Coding::F32, Coding::Bf16, Coding::Quant(QuantKind::Int8), Coding::Quant(QuantKind::Int4)];
        for coding in codings {
            room_changes_no_bit(name, &config, dir.path(), &WeightOptions::coded(coding));
        }
        families += 1;
    }
    assert!(families > 8, "{families} sparse models");
}

/// From the blocks of a file as they lie there.
#[test]
fn experts_stay_in_a_gguf_file_too() {
    let (_, config) = all_families().into_iter().find(|(name, _)| *name == "mixtral").unwrap();
    let config = wide(config);
    let dir = folder(&config);
    let path = dir.path().join("model.gguf");
    gguf::write(&path, &Source::open(dir.path()).unwrap(), TensorType::Q8_0, &[]).unwrap();
    let options = WeightOptions { operands: DType::F32, coding: None };
    room_changes_no_bit("mixtral", &config, &path, &options);
}

/// A model without experts is in memory or nowhere.
#[test]
fn a_dense_model_fits_or_does_not() {
    let (dev, (_, config)) = (Cpu::new(1), all_families().swap_remove(0));
    let (config, options) = (wide(config), WeightOptions::plain(DType::F32));
    assert!(config.moe.is_none());
    let (dir, model) = (folder(&config), model_of(&dev, &config, &options));
    let bytes = within(&dev, dir.path(), &model, &options, 1 << 30).unwrap().bytes();
    assert!(within(&dev, dir.path(), &model, &options, bytes).unwrap().expert_reads().is_none());
    let error = within(&dev, dir.path(), &model, &options, bytes - 1).err().unwrap();
    assert!(error.contains("needs more memory"), "{error}");
}

/// The device never holds more than the model in memory less what has no room.
#[test]
fn memory_is_bounded() {
    let (_, config) = all_families().into_iter().find(|(name, _)| *name == "qwen3_moe_norm").unwrap();
    let mut config = wide(config);
    config.moe.as_mut().unwrap().num_experts = 64;
    let dir = folder(&config);
    for coding in [Coding::F32, Coding::Bf16, Coding::Quant(QuantKind::Int8), Coding::Quant(QuantKind::Int4)] {
        let options = WeightOptions::coded(coding);
        let (one, count) = (expert_bytes(&config, coding), all_experts(&config));
        let peak = |room: Option<usize>| {
            let dev = Cpu::new(2);
            let model = model_of(&dev, &config, &options);
            let weights = match room {
                None => load_packed(&dev, &Source::open(dir.path()).unwrap(), model.layout(), &options).unwrap(),
                Some(room) => {
                    let elsewhere = Cpu::new(1);
                    let source = Source::open(dir.path()).unwrap();
                    let whole = load_packed(&elsewhere, &source, model.layout(), &options).unwrap().bytes();
                    within(&dev, dir.path(), &model, &options, whole - (count - room) * one).unwrap()
                }
            };
            answers(&dev, &model, &weights);
            dev.peak_bytes()
        };
        let everything = peak(None);
        for room in [1, 5, 40] {
            let found = peak(Some(room));
            let bound = everything - (count - room) * one;
            assert!(found <= bound, "{coding:?}: {found} bytes with room for {room} of {count}, bound {bound}");
        }
    }
}
