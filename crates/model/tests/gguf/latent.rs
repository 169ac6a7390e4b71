//! Latent attention: both forms of it, and what is wrong with either.

use super::families::writable;
use super::taken::{Taken, opened};
use super::{dev, folder, loaded, packed_sums, text, written};
use crate::common::by_name;
use std::path::Path;
use wudao_device::Cpu;
use wudao_device::QuantKind;
use wudao_model::gguf::{self, File, TensorType};
use wudao_model::weights::{self, Source};
use wudao_model::{Config, Family, MlaConfig, RopeScaling, Store};

/// A family with latent attention, as files can hold it.
pub fn latent(name: &str) -> Config {
    writable().into_iter().find(|(of, ..)| *of == name).unwrap().1
}

/// The same model with other shares of yarn's sharpening.
pub fn mscale(config: &Config, one: Option<f64>, all: Option<f64>) -> Config {
    let mut config = config.clone();
    let Some(RopeScaling::Yarn { mscale, mscale_all_dim, .. }) = &mut config.rope_scaling else {
        panic!("it is scaled")
    };
    (*mscale, *mscale_all_dim) = (one, all);
    config
}

/// A file as llama.cpp wrote it before it multiplied with latents: one matrix a layer, sizes of heads under the plain keys,
/// and nothing said of a latent or a router that is not there.
fn as_before(path: &Path, config: &Config, store: &Store<Cpu>) -> Taken {
    let (mut taken, m, heads) = (Taken::of(path), config.mla.unwrap(), config.num_attention_heads);
    let [rank, rows] = [m.kv_lora_rank, heads * (m.qk_nope_head_dim + m.v_head_dim)].map(|n| n as u64);
    taken.without("attention.key_length_mla");
    taken.without("attention.value_length_mla");
    taken.count("attention.head_count_kv", heads as u32);
    taken.count("attention.key_length", config.head_dim as u32);
    taken.count("attention.value_length", m.v_head_dim as u32);
    if m.q_lora_rank.is_none() {
        taken.without("attention.q_lora_rank");
    }
    if config.family == Family::DeepseekV2 {
        taken.without("expert_gating_func");
        taken.without("expert_weights_norm");
    }
    let weights = by_name(&dev(), store);
    for l in 0..config.num_hidden_layers {
        taken.tensors.retain(|name, _| !["k", "v"].iter().any(|x| *name == format!("blk.{l}.attn_{x}_b.weight")));
        let whole = &weights[&format!("model.layers.{l}.self_attn.kv_b_proj.weight")];
        let bytes = whole.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
        taken.tensors.insert(format!("blk.{l}.attn_kv_b.weight"), (vec![rank, rows], 0, bytes));
    }
    taken
}

#[test]
fn older_files_of_latent_attention_are_the_same_model() {
    for (name, config, back) in writable().into_iter().filter(|(_, config, _)| config.mla.is_some()) {
        let (dir, store) = folder(&config);
        let [path, before, again] = ["model", "before", "again"].map(|name| dir.path().join(format!("{name}.gguf")));
        gguf::write(&path, &Source::open(dir.path()).unwrap(), TensorType::F32, &[]).unwrap();
        as_before(&path, &config, &store).write(&before);
        assert_eq!(weights::read_config(&before).unwrap(), back, "{name}");
        assert_eq!(loaded(&before, &back).unwrap(), by_name(&dev(), &store), "{name}");
        gguf::write(&again, &Source::open(&before).unwrap(), TensorType::F32, &[]).unwrap();
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&path).unwrap(), "{name}");
        // Row by row, as models that only answer are packed.
        let sums = [dir.path(), &path, &before].map(|path| packed_sums(path, &config));
        assert!(sums[1..].iter().all(|of| *of == sums[0]), "{name}");
    }
}

/// DeepSeek-V2 with groups is not written, but the keys are read as it means them.
#[test]
fn groups_of_a_softmax_router_are_read() {
    let config = latent("deepseek_v2");
    let (_dir, path) = written(&config, TensorType::F32, &[]).unwrap();
    let mut taken = Taken::of(&path);
    taken.count("expert_group_count", 4);
    taken.count("expert_group_used_count", 2);
    taken.write(&path);
    let moe = weights::read_config(&path).unwrap().moe.unwrap();
    assert_eq!((moe.n_group, moe.topk_group, moe.sigmoid), (4, 2, false));
}

#[test]
fn layers_that_predict_several_tokens_are_left_out() {
    let (_, config, back) = writable().into_iter().find(|(name, ..)| *name == "deepseek_v3").unwrap();
    let (dir, store) = folder(&config);
    let path = dir.path().join("model.gguf");
    gguf::write(&path, &Source::open(dir.path()).unwrap(), TensorType::F32, &[]).unwrap();
    let mut taken = Taken::of(&path);
    taken.count("block_count", 3);
    taken.count("nextn_predict_layers", 1);
    let one = taken.tensors["blk.1.attn_k_b.weight"].clone();
    taken.tensors.insert("blk.2.attn_k_b.weight".into(), one.clone());
    taken.tensors.insert("blk.2.nextn.eh_proj.weight".into(), one);
    taken.write(&path);
    assert_eq!(weights::read_config(&path).unwrap(), back);
    assert_eq!(loaded(&path, &back).unwrap(), by_name(&dev(), &store));
}

/// What is wrong with a file of latent attention, and what is said about it.
#[test]
fn what_is_wrong_with_latent_attention_is_named() {
    type Change = fn(&mut Taken);
    let changes: [(&str, Change, &str); 20] = [
        ("deepseek_v3", |t| t.without("attention.kv_lora_rank"), "attention.kv_lora_rank: missing"),
        ("deepseek_v3", |t| t.without("attention.q_lora_rank"), "attention.q_lora_rank: missing"),
        ("deepseek_v3", |t| t.without("attention.value_length_mla"), "attention.value_length_mla: missing"),
        ("deepseek_v3", |t| t.without("rope.dimension_count"), "rope.dimension_count: missing"),
        ("deepseek_v3", |t| t.without("expert_shared_count"), "expert_shared_count: missing"),
        ("deepseek_v3", |t| t.count("attention.kv_lora_rank", u32::MAX), "attention.key_length: "),
        ("deepseek_v3", |t| t.count("attention.value_length_mla", u32::MAX), "v_head_dim"),
        ("deepseek_v3", |t| t.count("attention.value_length_mla", 7), "attn_v_b.weight\": has shape"),
        ("deepseek_v3", |t| t.count("attention.key_length_mla", 4), "key_length_mla: 4 must be above"),
        ("deepseek_v3", |t| t.count("attention.key_length_mla", 9), "attn_k_b.weight\": has shape [4, 8, 4]"),
        ("deepseek_v3", |t| t.count("attention.head_count_kv", 4), "head_count_kv: 4 is not supported; only 1"),
        // Without this key it is an older file, where the same keys mean something else.
        ("deepseek_v3", |t| t.without("attention.key_length_mla"), "head_count_kv: 1 is not supported; only 4"),
        ("deepseek_v3", |t| t.count("expert_gating_func", 3), "expert_gating_func: 3"),
        ("deepseek_v3", |t| t.number("attention.temperature_scale", 0.1), "temperature_scale: 0.1"),
        ("deepseek_v3", |t| t.without("rope.scaling.yarn_log_multiplier"), "yarn_log_multiplier: missing or 0"),
        ("deepseek_v3", |t| t.number("rope.scaling.attn_factor", 2.0), "attn_factor: 2"),
        ("deepseek_v3", |t| t.number("rope.scaling.factor", 0.5), "factor: 0.5"),
        ("deepseek_v3", |t| drop(t.tensors.remove("blk.1.attn_v_b.weight")), "attn_v_b.weight\": missing"),
        (
            "deepseek_v3",
            |t| {
                let keys = t.tensors.get_mut("blk.1.attn_k_b.weight").unwrap();
                keys.0.swap(0, 1);
            },
            "attn_k_b.weight\": has shape [4, 4, 8], expected [4, 8, 4]",
        ),
        (
            "deepseek_v2",
            |t| drop(t.keys.insert("deepseek2.expert_weights_norm".into(), (7, vec![1]))),
            "expert_weights_norm: true",
        ),
    ];
    for (name, change, says) in changes {
        let (_dir, path) = written(&latent(name), TensorType::F32, &[]).unwrap();
        let mut taken = Taken::of(&path);
        change(&mut taken);
        taken.write(&path);
        let error = opened(&std::fs::read(&path).unwrap()).unwrap_err();
        assert!(error.contains(says) && error.contains("x.gguf"), "{says}: {error}");
    }
    // Both kinds of file at once.
    let config = latent("deepseek_v3");
    let (dir, store) = folder(&config);
    let path = dir.path().join("model.gguf");
    gguf::write(&path, &Source::open(dir.path()).unwrap(), TensorType::F32, &[]).unwrap();
    let mut taken = Taken::of(&path);
    taken.tensors.extend(as_before(&path, &config, &store).tensors);
    taken.write(&path);
    let error = loaded(&path, &config).unwrap_err();
    assert!(error.contains("attn_kv_b.weight\": no deepseek_v3 has it"), "{error}");
}

/// A half whose rows are columns of the model's matrix has its own blocks.
#[test]
fn a_matrix_in_halves_is_decoded_from_its_blocks() {
    let sizes = MlaConfig {
        kv_lora_rank: 64,
        qk_nope_head_dim: 32,
        qk_rope_head_dim: 16,
        v_head_dim: 32,
        ..latent("deepseek_v3").mla.unwrap()
    };
    let config = Config { hidden_size: 64, head_dim: 48, mla: Some(sizes), ..latent("deepseek_v3") };
    let (dir, path) = written(&config, TensorType::Q8_0, &[]).unwrap();
    let name = "model.layers.1.self_attn.kv_b_proj.weight";
    let plain = &loaded(dir.path(), &config).unwrap()[name];
    let coded = |x: Vec<f64>| {
        let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
        QuantKind::Int8.decode(&QuantKind::Int8.encode(&x)).into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let mut expected = plain.clone();
    for head in expected.chunks_exact_mut(64 * 64) {
        let (keys, values) = head.split_at_mut(32 * 64);
        for j in 0..64 {
            let column = coded((0..32).map(|i| keys[i * 64 + j]).collect());
            column.into_iter().enumerate().for_each(|(i, x)| keys[i * 64 + j] = x);
        }
        values.chunks_exact_mut(64).for_each(|row| row.copy_from_slice(&coded(row.to_vec())));
    }
    assert!(expected != *plain && loaded(&path, &config).unwrap()[name] == expected);
    let file = File::open(&path).unwrap();
    assert_eq!(file.tensor("blk.1.attn_k_b.weight").unwrap().dims, [32, 64, 4]);
    assert_eq!(file.tensor("blk.1.attn_v_b.weight").unwrap().dims, [64, 32, 4]);
    let wrong = file.expansion(&config, name, &[64, 256]).map(drop).map_err(text).unwrap_err();
    assert!(wrong.contains("attn_k_b.weight") && wrong.contains("[64, 256]"), "{wrong}");
    assert!(file.expansion(&config, "model.norm.weight", &[64]).unwrap().is_none());
}
