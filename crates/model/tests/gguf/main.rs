//! GGUF files: what we write we read again, family by family; foreign bytes get an answer, never a panic.

mod common;

use common::families::{all_families, every_family, latent_families};
use common::{by_name, model};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;
use wudao_device::{Cpu, DType, QuantKind};
use wudao_model::gguf::{self, Field, File, TensorType, Value};
use wudao_model::model::{Options, Recomputation};
use wudao_model::store::Shard;
use wudao_model::weights::{self, Dtype, Source};
use wudao_model::{Config, Family, MlaConfig, Model, MoeConfig, RopeScaling, Store, WeightOptions};

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

/// A model of every family and habit that a file can hold, and what of it comes back: some settings are not in a file,
/// and a mistral is a llama there.
fn writable() -> Vec<(&'static str, Config, Config)> {
    let change = |name: &str, config: &mut Config| {
        if let Some(mla) = &mut config.mla {
            mla.rope_interleave = true;
            config.rms_norm_eps = 1e-6;
            (config.attention_bias, config.attention_output_bias) = (false, false);
            if let Some(RopeScaling::Yarn { beta_fast, beta_slow, mscale, mscale_all_dim, .. }) =
                &mut config.rope_scaling
            {
                (*beta_fast, *beta_slow, *mscale) = (32.0, 1.0, *mscale_all_dim);
            }
        }
        let moe = config.moe.as_mut();
        match (name, moe) {
            ("qwen3_moe" | "qwen3_moe_norm", Some(m)) => {
                *m = MoeConfig { norm_topk_prob: true, dense_layers: vec![], ..m.clone() };
                (config.attention_bias, config.attention_output_bias) = (false, false);
            }
            // Of a softmax router llama.cpp's groups are others.
            ("deepseek_v2_groups", Some(m)) => (m.n_group, m.topk_group) = (1, 1),
            ("qwen2_moe", Some(m)) => {
                m.dense_layers.clear();
                (config.num_attention_heads, config.head_dim) = (2, 4);
            }
            ("qwen2", _) => {
                let Some(RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. }) = &mut config.rope_scaling
                else {
                    panic!("it is scaled")
                };
                (*beta_fast, *beta_slow, *attention_factor) = (32.0, 1.0, Some(1.5));
                (config.num_attention_heads, config.head_dim) = (2, 4);
            }
            _ => {}
        }
        config.check().unwrap();
    };
    let back = |config: &Config| {
        let mut back = config.clone();
        if back.family == Family::Mistral {
            back.family = Family::Llama;
            back.rope_scaling = Some(RopeScaling::Llama3 {
                factor: 4.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8,
            });
        }
        back.eos_token_id.clear();
        (back.bos_token_id, back.pad_token_id) = (None, None);
        if let Some(m) = &mut back.moe {
            m.router_aux_loss_coef = 0.0;
        }
        back
    };
    let mut all = vec![];
    for (name, mut config) in all_families() {
        change(name, &mut config);
        let back = back(&config);
        all.push((name, config, back));
    }
    all
}

#[test]
fn every_family_comes_back() {
    for (name, config, back) in writable() {
        let (dir, store) = folder(&config);
        let path = dir.path().join("model.gguf");
        gguf::write(&path, &Source::open(dir.path()).unwrap(), TensorType::F32, &[]).unwrap();
        let there = weights::read_config(&path).unwrap();
        let scaling = |c: &Config| c.rope_scaling.clone();
        if let (
            Some(RopeScaling::Yarn { attention_factor: Some(x), .. }),
            Some(RopeScaling::Yarn { attention_factor: Some(y), .. }),
        ) = (scaling(&there), scaling(&back))
        {
            // It is a quotient in the file, in f32.
            wudao_device::check::assert_close(name, "gguf number", DType::F32, &[y], &[x]);
            assert_eq!(Config { rope_scaling: None, ..there.clone() }, Config { rope_scaling: None, ..back });
        } else {
            assert_eq!(there, back, "{name}");
        }
        assert_eq!(loaded(&path, &there).unwrap(), by_name(&dev(), &store), "{name}");
        // Back into a folder: the same bytes as before.
        let again = dir.path().join("again");
        std::fs::create_dir(&again).unwrap();
        weights::copy(&Source::open(&path).unwrap(), &again, Dtype::F32, BIG).unwrap();
        let bytes = |dir: &Path| std::fs::read(dir.join(weights::MODEL)).unwrap();
        assert!(bytes(&again) == bytes(dir.path()), "{name}");
    }
}

#[test]
fn a_tied_head_is_there_once_more_where_llama_cpp_wants_it() {
    let (_, config, _) = writable().into_iter().find(|(name, ..)| *name == "olmoe").unwrap();
    let config = Config { tie_word_embeddings: true, ..config };
    let (dir, path) = written(&config, TensorType::F32, &[]).unwrap();
    let file = File::open(&path).unwrap();
    let bytes = |name: &str| file.bytes(file.tensor(name).unwrap());
    assert_eq!(bytes("output.weight"), bytes("token_embd.weight"));
    let there = file.config().unwrap();
    assert!(!there.tie_word_embeddings);
    let tied = loaded(dir.path(), &config).unwrap();
    let untied = loaded(&path, &there).unwrap();
    assert_eq!(untied["lm_head.weight"], tied["model.embed_tokens.weight"]);
}

#[test]
fn what_llama_cpp_does_not_compute_is_named_before_anything_is_written() {
    let all = every_family();
    let family = |name: &str| all.iter().find(|f| f.0 == name).unwrap().1.clone();
    let llama3 = Some(RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8,
    });
    for (config, key) in [
        (family("qwen3_moe"), "norm_topk_prob"),
        (family("qwen3_moe_norm"), "attention_bias"),
        (family("qwen2_moe"), "head_dim"),
        (family("qwen2"), "head_dim"),
        (Config { head_dim: 2, ..family("qwen2") }, "rope_scaling"),
        (Config { rope_scaling: llama3, ..family("qwen3") }, "rope_scaling"),
    ] {
        let error = written(&config, TensorType::F32, &[]).unwrap_err();
        assert!(error.contains(key) && error.contains("llama.cpp"), "{key}: {error}");
    }
    let [v2, v3] = ["deepseek_v2", "deepseek_v3"].map(latent);
    let moe = |groups| MoeConfig { n_group: groups, topk_group: 2, ..v2.moe.clone().unwrap() };
    let mla = |rope_interleave| Some(MlaConfig { rope_interleave, ..v3.mla.unwrap() });
    let family = |name: &str| latent_families().into_iter().find(|f| f.0 == name).unwrap().1;
    let old_scaling = |config: &Config, name| Config { rope_scaling: family(name).rope_scaling, ..config.clone() };
    for (config, key) in [
        (Config { rms_norm_eps: 1e-5, ..v3.clone() }, "rms_norm_eps"),
        (Config { attention_bias: true, attention_output_bias: true, ..v3.clone() }, "attention_bias"),
        (Config { mla: mla(false), ..v3.clone() }, "rope_interleave"),
        (Config { num_hidden_layers: 27, ..v3.clone() }, "q_lora_rank"),
        (Config { moe: Some(moe(4)), ..v2.clone() }, "n_group"),
        (Config { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..v2.clone() }, "rope_scaling"),
        (old_scaling(&v2, "deepseek_v2"), "rope_scaling"),
        (old_scaling(&v3, "deepseek_v3"), "rope_scaling"),
        (mscale(&v2, Some(1.0), Some(0.7)), "rope_scaling"),
        (mscale(&v2, None, None), "rope_scaling"),
    ] {
        let error = written(&config, TensorType::F32, &[]).unwrap_err();
        assert!(error.contains(key) && error.contains("llama.cpp"), "{key}: {error}");
    }
    assert!(
        written(&Config { num_hidden_layers: 27, ..v2 }, TensorType::F32, &[]).is_ok(),
        "without a latent of queries"
    );
}

/// A family with latent attention, as files can hold it.
fn latent(name: &str) -> Config {
    writable().into_iter().find(|(of, ..)| *of == name).unwrap().1
}

/// The same model with other shares of yarn's sharpening.
fn mscale(config: &Config, one: Option<f64>, all: Option<f64>) -> Config {
    let mut config = config.clone();
    let Some(RopeScaling::Yarn { mscale, mscale_all_dim, .. }) = &mut config.rope_scaling else {
        panic!("it is scaled")
    };
    (*mscale, *mscale_all_dim) = (one, all);
    config
}

/// The keys and tensors of a file that has no lists, to be changed.
struct Taken {
    /// The type and the bytes of each value.
    keys: BTreeMap<String, (u32, Vec<u8>)>,
    /// Dimensions, type and bytes of each tensor.
    tensors: BTreeMap<String, (Vec<u64>, u32, Vec<u8>)>,
}

impl Taken {
    fn of(path: &Path) -> Taken {
        let file = File::open(path).unwrap();
        let value = |key: &str| match file.get(key).unwrap() {
            Value::Unsigned(n) => (4, (n as u32).to_le_bytes().to_vec()),
            Value::Float(x) => (6, (x as f32).to_le_bytes().to_vec()),
            Value::Bool(flag) => (7, vec![u8::from(flag)]),
            Value::Text(text) => (8, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()),
            other => panic!("{other:?}"),
        };
        let tensor = |t: &gguf::Tensor| {
            let dims = t.dims.iter().map(|&n| n as u64).collect();
            (t.name.clone(), (dims, t.kind.number(), file.bytes(t).to_vec()))
        };
        Taken {
            keys: file.keys().map(|key| (key.to_owned(), value(key))).collect(),
            tensors: file.tensors().iter().map(tensor).collect(),
        }
    }

    fn count(&mut self, key: &str, n: u32) {
        self.keys.insert(format!("deepseek2.{key}"), (4, n.to_le_bytes().to_vec()));
    }

    fn number(&mut self, key: &str, x: f32) {
        self.keys.insert(format!("deepseek2.{key}"), (6, x.to_le_bytes().to_vec()));
    }

    fn without(&mut self, key: &str) {
        self.keys.remove(&format!("deepseek2.{key}")).unwrap();
    }

    fn write(&self, path: &Path) {
        let keys: Vec<_> = self.keys.iter().map(|(key, (kind, bytes))| (key.as_str(), *kind, &bytes[..])).collect();
        let mut at = 0;
        let tensors = self.tensors.iter().map(|(name, (dims, kind, bytes))| {
            at += bytes.len().next_multiple_of(32);
            (name.as_str(), &dims[..], *kind, (at - bytes.len().next_multiple_of(32)) as u64)
        });
        let mut file = by_hand(3, &keys, &tensors.collect::<Vec<_>>(), 0);
        for (_, _, bytes) in self.tensors.values() {
            file.extend(bytes);
            file.resize(file.len().next_multiple_of(32), 0);
        }
        std::fs::write(path, file).unwrap();
    }
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
        let model = Model::new(&dev(), &config, 8, Options::default()).unwrap();
        let sums = [dir.path(), &path, &before].map(|path| {
            let (source, options) = (Source::open(path).unwrap(), WeightOptions::plain(DType::F32));
            let packed = weights::load_packed(&dev(), &source, model.layout(), &options).unwrap();
            packed.sums_of_squares(&dev()).unwrap()
        });
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

/// A model whose rows are whole blocks.
fn wide() -> Config {
    let (_, llama) = every_family().swap_remove(0);
    Config { hidden_size: 64, intermediate_size: 96, num_key_value_heads: 2, head_dim: 16, vocab_size: 40, ..llama }
}

#[test]
fn matrices_are_coded_as_asked_and_others_are_not() {
    let config = wide();
    let (dir, path) = written(&config, TensorType::Q4_0, &[]).unwrap();
    let file = File::open(&path).unwrap();
    let kind = |name: &str| file.tensor(name).unwrap().kind.name();
    assert_eq!(kind("token_embd.weight"), "Q8_0");
    assert_eq!(kind("output.weight"), "Q8_0");
    assert_eq!(kind("blk.0.attn_q.weight"), "Q4_0");
    assert_eq!(kind("blk.0.attn_q.bias"), "F32");
    assert_eq!(kind("blk.1.ffn_norm.weight"), "F32");
    // Raw blocks, row by row in Hugging Face's order, are the coded rows of the folder.
    let source = Source::open(dir.path()).unwrap();
    for (part, shape) in
        [("model.layers.0.self_attn.q_proj.weight", [64, 64]), ("model.layers.1.mlp.down_proj.weight", [64, 96])]
    {
        let rows = file.part(&config, part, &shape).unwrap();
        assert_eq!((rows.kind(), rows.shape()), (TensorType::Q4_0, shape));
        let plain = source.tensor(part, &shape).unwrap();
        for i in 0..shape[0] {
            let row: Vec<f32> =
                plain.read(i..i + 1, Dtype::F32).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(rows.row(i), wudao_device::cpu::QuantKind::Int4.encode(&row), "{part} row {i}");
        }
    }
    // A second conversion to the same type copies blocks.
    let again = dir.path().join("again.gguf");
    gguf::write(&again, &Source::open(&path).unwrap(), TensorType::Q4_0, &[]).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
    // Rows of 8 columns are no blocks of 32.
    let (_, narrow) = every_family().swap_remove(0);
    let (_dir, path) = written(&narrow, TensorType::Q8_0, &[]).unwrap();
    assert_eq!(File::open(&path).unwrap().tensor("blk.0.attn_q.weight").unwrap().kind, TensorType::BF16);
}

#[test]
fn a_folder_in_fewer_bits_is_rounded_once() {
    let config = wide();
    let (dir, store) = folder(&config);
    for (dtype, name) in [(Dtype::F16, "float16"), (Dtype::BF16, "bfloat16")] {
        let out = dir.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let files = weights::copy(&Source::open(dir.path()).unwrap(), &out, dtype, 20_000).unwrap();
        assert!(files.len() > 4, "in shards");
        assert!(std::fs::read_to_string(out.join("config.json")).unwrap().contains(name));
        let rounded = |x: f64| match dtype {
            Dtype::F16 => half::f16::from_f64(x).to_f64(),
            _ => half::bf16::from_f64(x).to_f64(),
        };
        let expected: BTreeMap<String, Vec<f64>> =
            by_name(&dev(), &store).into_iter().map(|(n, x)| (n, x.into_iter().map(rounded).collect())).collect();
        assert_eq!(loaded(&out, &config).unwrap(), expected);
    }
}

#[test]
fn values_come_back_as_they_were() {
    let fields: Vec<(String, Field)> = [
        ("a", Field::Whole(7)),
        ("b", Field::Number(1e-5)),
        ("c", Field::Flag(true)),
        ("d", Field::Text("悟道".into())),
        ("e", Field::Wholes(vec![-1, 2])),
        ("f", Field::Numbers(vec![0.5, -0.25])),
        ("g", Field::Texts(vec!["".into(), "a b".into()])),
    ]
    .map(|(k, f)| (format!("test.{k}"), f))
    .to_vec();
    let (_dir, path) = written(&wide(), TensorType::F32, &fields).unwrap();
    let file = File::open(&path).unwrap();
    let get = |key: &str| file.get(&format!("test.{key}")).unwrap();
    assert_eq!(get("a").whole(), Some(7));
    assert_eq!(get("b").number(), Some(1e-5), "the decimal, not its nearest number of 32 bits");
    assert_eq!(get("c").flag(), Some(true));
    assert_eq!(get("d").text(), Some("悟道"));
    assert_eq!(
        get("e").array().unwrap().all(|v| if let Value::Signed(n) = v { Some(n) } else { None }),
        Some(vec![-1, 2])
    );
    assert_eq!(get("f").array().unwrap().all(Value::number), Some(vec![0.5, -0.25]));
    assert_eq!(get("g").array().unwrap().all(Value::text), Some(vec!["", "a b"]));
    assert_eq!(get("g").array().unwrap().all(Value::whole), None);
    assert_eq!(file.get("test.h"), None);
    assert!(weights::tensors(&path).unwrap().iter().any(|t| t.name == "blk.0.ffn_up.weight" && t.shape == [96, 64]));
}

/// Small good files.
static GOOD: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let (_, narrow) = every_family().swap_remove(1);
    [narrow, latent("deepseek_v3")].map(good)
});

fn good(config: Config) -> Vec<u8> {
    let fields = [("test.list".to_owned(), Field::Texts(vec!["a".into(), "b".into()]))];
    let (_dir, path) = written(&config, TensorType::F32, &fields).unwrap();
    std::fs::read(path).unwrap()
}

/// Opens bytes as a file and reads all of it.
fn opened(bytes: &[u8]) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).map_err(text)?;
    for key in file.keys() {
        let value = file.get(key).unwrap();
        value.array().map(|a| a.iter().count());
    }
    for t in file.tensors() {
        assert_eq!(file.bytes(t).len(), t.bytes);
    }
    let config = file.config().map_err(text)?;
    let source = Source::open_as(&path, &config).map_err(text)?;
    source.complete().map_err(text)?;
    loaded(&path, &config).map(drop)
}

#[test]
fn every_shorter_file_is_refused() {
    for good in &*GOOD {
        assert_eq!(opened(good), Ok(()));
        let header = good.len().min(3000);
        for n in (0..header).chain([good.len() - 1]) {
            let error = opened(&good[..n]).unwrap_err();
            assert!(error.contains("x.gguf"), "{n}: {error}");
        }
    }
}

/// A file by hand: keys and tensors as they are given.
fn by_hand(version: u32, keys: &[(&str, u32, &[u8])], tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(version.to_le_bytes());
    b.extend((tensors.len() as u64).to_le_bytes());
    b.extend((keys.len() as u64).to_le_bytes());
    let name = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    for (key, kind, value) in keys {
        name(&mut b, key);
        b.extend(kind.to_le_bytes());
        b.extend(*value);
    }
    for (n, dims, kind, offset) in tensors {
        name(&mut b, n);
        b.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
        b.extend(kind.to_le_bytes());
        b.extend(offset.to_le_bytes());
    }
    b.resize(b.len().next_multiple_of(32) + data, 0);
    b
}

#[test]
fn what_is_wrong_is_named() {
    let list = |kind: u32, len: u64| [kind.to_le_bytes().as_slice(), &len.to_le_bytes()].concat();
    let nested: Vec<u8> = (0..6).flat_map(|_| list(9, 1)).collect();
    let split = 2u16.to_le_bytes();
    let alignment = 3u32.to_le_bytes();
    for (bytes, says) in [
        (b"PK\x03\x04 and so on".to_vec(), "not a GGUF file"),
        (by_hand(1, &[], &[], 0), "version 1"),
        (by_hand(9, &[], &[], 0), "version 9"),
        (by_hand(3u32.swap_bytes(), &[], &[], 0), "big-endian"),
        (by_hand(3, &[("k", 77, &[])], &[], 64), "type of values 77"),
        (by_hand(3, &[("k", 7, &[2])], &[], 64), "neither true nor false"),
        (by_hand(3, &[("k", 0, &[2]), ("k", 0, &[2])], &[], 64), "twice"),
        (by_hand(3, &[("k", 9, &list(4, u64::MAX))], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("k", 9, &list(4, 1 << 40))], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("k", 9, &nested)], &[], 64), "nested deeper"),
        (by_hand(3, &[("k", 8, &u64::MAX.to_le_bytes())], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("split.count", 2, &split)], &[], 0), "llama-gguf-split"),
        (by_hand(3, &[("general.alignment", 4, &alignment)], &[], 0), "power of two"),
        (by_hand(3, &[], &[("t", &[], 0, 0)], 64), "0 dimensions"),
        (by_hand(3, &[], &[("t", &[1, 1, 1, 1, 1], 0, 0)], 64), "5 dimensions"),
        (by_hand(3, &[], &[("t", &[4], 0, 0), ("t", &[4], 0, 32)], 64), "twice"),
        (by_hand(3, &[], &[("t", &[4], 99, 0)], 64), "unknown type 99"),
        (by_hand(3, &[], &[("t", &[0], 0, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[1 << 40, 1 << 40], 0, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[1 << 62], 0, 0)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[33], 8, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[4], 0, 16)], 64), "multiple of the alignment"),
        (by_hand(3, &[], &[("t", &[4], 0, u64::MAX - 31)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[17], 0, 0)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[16], 0, 0), ("u", &[4], 0, 32)], 64), "also those of"),
        (by_hand(3, &[], &[("t", &[16], 0, 0)], 64), "general.architecture: missing"),
        (by_hand(3, &[("general.architecture", 8, b"\x04\0\0\0\0\0\0\0bert")], &[], 0), "supported are llama, qwen2"),
    ] {
        let error = opened(&bytes).unwrap_err();
        assert!(error.contains(says), "{says}: {error}");
    }
    // More keys and tensors than bytes: refused before anything is allocated for them.
    for at in [8, 16] {
        let mut bytes = by_hand(3, &[], &[], 64);
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(opened(&bytes).unwrap_err().contains("do not fit"));
    }
}

#[test]
fn what_is_not_computed_is_named() {
    let flag = |key: &str, f: Field| (format!("llama.{key}"), f);
    for (field, says) in [
        (flag("attention.sliding_window", Field::Whole(4)), "sliding_window: 4"),
        (flag("attention.causal", Field::Flag(false)), "causal: false"),
        (flag("attention.clamp_kqv", Field::Number(8.0)), "clamp_kqv: 8"),
        (flag("expert_weights_scale", Field::Number(2.0)), "expert_weights_scale: 2"),
        (flag("rope.scaling.type", Field::Text("longrope".into())), "longrope"),
        (flag("rope.scaling.alpha", Field::Number(1.0)), "alpha: 1"),
        (flag("rope.scaling.factor", Field::Text("x".into())), "must be a number"),
    ] {
        let (_, path) = &written(&wide(), TensorType::F32, &[field]).unwrap();
        let error = weights::read_config(path).map_err(text).unwrap_err();
        assert!(error.contains(says) && error.contains("model.gguf"), "{says}: {error}");
    }
    // A tensor that a llama has not, and one that is missing.
    let (_dir, path) = written(&wide(), TensorType::F32, &[]).unwrap();
    let good = std::fs::read(&path).unwrap();
    let config = weights::read_config(&path).unwrap();
    let at = good.windows(21).position(|w| w == b"blk.1.ffn_down.weight").unwrap();
    let mut bad = good.clone();
    bad[at + 4] = b'9';
    std::fs::write(&path, &bad).unwrap();
    let error = loaded(&path, &config).unwrap_err();
    assert!(error.contains("blk.9.ffn_down.weight") && error.contains("no llama has it"), "{error}");
    let qwen = Config { family: Family::Qwen3, ..config };
    assert!(Source::open_as(&path, &qwen).map(drop).map_err(text).unwrap_err().contains("give the model that family"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A few bytes changed anywhere in the header: an error or a model, never a panic.
    #[test]
    fn changed_bytes_get_an_answer(
        which in 0usize..2,
        changes in prop::collection::vec((0usize..5000, any::<u8>()), 1..4),
    ) {
        let mut bytes = GOOD[which].clone();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = opened(&bytes);
    }

    #[test]
    fn random_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(opened(&bytes).is_err());
        prop_assert!(opened(&[b"GGUF\x03\0\0\0", &bytes[..]].concat()).is_err());
    }
}
