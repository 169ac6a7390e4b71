//! `config.json`: what transformers wrote is understood, what we write is read back, and what we cannot run is refused
//! by name.

mod common;

use common::families::all_families;
use proptest::prelude::*;
use serde_json::{Value, json};
use wudao_device::DType;
use wudao_model::{Config, Family, RopeScaling};

fn golden(case: &str) -> Vec<u8> {
    std::fs::read(common::golden_dir().join(case).join("config.json")).unwrap()
}

fn changed(case: &str, change: impl FnOnce(&mut Value)) -> Result<Config, String> {
    let mut v: Value = serde_json::from_slice(&golden(case)).unwrap();
    change(&mut v);
    Config::from_json(v.to_string().as_bytes()).map_err(|e| e.to_string())
}

fn with(case: &str, key: &str, value: Value) -> Result<Config, String> {
    changed(case, |v| v[key] = value)
}

fn without(case: &str, key: &str) -> Result<Config, String> {
    changed(case, |v| drop(v.as_object_mut().unwrap().remove(key)))
}

#[test]
fn what_transformers_wrote() {
    let c = |case| Config::from_json(&golden(case)).unwrap();

    let llama = c("llama");
    assert_eq!((llama.family, llama.vocab_size, llama.head_dim), (Family::Llama, 101, 16));
    assert!(llama.attention_bias && llama.attention_output_bias && !llama.qk_norm);
    assert_eq!((llama.bos_token_id, &llama.eos_token_id[..], llama.pad_token_id), (None, &[0][..], None));
    assert_eq!((llama.rope_theta, llama.rms_norm_eps), (10000.0, 1e-3));

    let qwen3 = c("qwen3");
    assert!(qwen3.tie_word_embeddings && qwen3.qk_norm && !qwen3.attention_bias);
    assert_eq!(qwen3.rope_theta, 1e6);

    let mixtral = c("mixtral");
    assert_eq!(mixtral.head_dim, 8, "null is hidden_size / num_attention_heads");
    let m = mixtral.moe.unwrap();
    assert_eq!((m.num_experts, m.num_experts_per_tok, m.moe_intermediate_size), (8, 2, 20));
    assert!(m.norm_topk_prob && !m.sigmoid);

    let qwen3_moe = c("qwen3_moe");
    assert_eq!(qwen3_moe.moe_layers(), [0]);
    assert!(!qwen3_moe.moe.unwrap().norm_topk_prob);
    let norm = c("qwen3_moe_norm");
    assert_eq!(norm.moe_layers(), [1], "decoder_sparse_step = 2");
    assert!(norm.attention_bias && norm.attention_output_bias);

    let glm = c("glm4_moe");
    assert_eq!((glm.rotary_dim(), &glm.eos_token_id[..]), (8, &[0, 3][..]));
    assert!(glm.attention_bias && !glm.attention_output_bias && glm.qk_norm);
    let m = glm.moe.unwrap();
    assert_eq!((m.n_group, m.topk_group, m.routed_scaling_factor, m.n_shared_experts), (2, 1, 1.75, 1));
    assert!(m.sigmoid && m.norm_topk_prob);
    assert_eq!(m.dense_layers, [0]);
    assert!(!c("glm4_moe_plain").qk_norm);

    let mistral = c("mistral");
    assert!(mistral.moe.is_none() && !mistral.attention_bias && !mistral.qk_norm);
    assert!(matches!(mistral.rope_scaling, Some(RopeScaling::Llama3 { high_freq_factor: 2.0, .. })));
    let qwen2 = c("qwen2");
    assert!(qwen2.attention_bias && !qwen2.attention_output_bias && !qwen2.qk_norm);
    assert!(matches!(qwen2.rope_scaling, Some(RopeScaling::Yarn { beta_fast: 4.0, attention_factor: None, .. })));
    let qwen2_moe = c("qwen2_moe");
    assert_eq!(qwen2_moe.moe_layers(), [1]);
    assert!(qwen2_moe.attention_bias && !qwen2_moe.attention_output_bias && qwen2_moe.shared_expert_gate());
    let m = qwen2_moe.moe.unwrap();
    assert_eq!((m.num_experts, m.n_shared_experts, m.norm_topk_prob, m.sigmoid), (8, 2, false, false));
    let olmoe = c("olmoe");
    assert_eq!((olmoe.normed_heads().dim, olmoe.pad_token_id), (32, None));
    assert_eq!(olmoe.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    let m = olmoe.moe.unwrap();
    assert_eq!((m.num_experts, m.moe_intermediate_size, m.norm_topk_prob), (8, 20, false));

    let sizes = |c: &Config| {
        let m = c.mla.unwrap();
        (m.q_lora_rank, m.kv_lora_rank, m.qk_nope_head_dim, m.qk_rope_head_dim, m.v_head_dim, m.rope_interleave)
    };
    let v2 = c("deepseek_v2");
    assert_eq!(sizes(&v2), (None, 16, 12, 8, 10, true));
    assert_eq!((v2.head_dim, v2.rotary_dim(), v2.cache_width()), (20, 8, 24));
    let m = v2.moe.unwrap();
    assert_eq!(
        (m.sigmoid, m.norm_topk_prob, m.n_group, m.n_shared_experts, &m.dense_layers[..]),
        (false, false, 1, 2, &[0][..])
    );
    let groups = c("deepseek_v2_groups");
    assert!(groups.attention_bias && groups.attention_output_bias);
    let m = groups.moe.as_ref().unwrap();
    assert_eq!((groups.mla.unwrap().q_lora_rank, m.n_group, m.topk_group), (Some(14), 4, 2));
    let v3 = c("deepseek_v3");
    assert_eq!(sizes(&v3), (Some(14), 16, 12, 8, 10, true));
    let m = v3.moe.unwrap();
    assert_eq!(
        (m.sigmoid, m.norm_topk_prob, m.n_group, m.topk_group, m.routed_scaling_factor),
        (true, true, 4, 2, 2.5)
    );
    assert!(!c("deepseek_v3_plain").mla.unwrap().rope_interleave);
}

#[test]
fn defaults_are_those_of_transformers() {
    assert_eq!(without("qwen3", "head_dim").unwrap().head_dim, 128);
    assert_eq!(without("qwen3_moe", "head_dim").unwrap().head_dim, 8);
    assert_eq!(without("llama", "num_key_value_heads").unwrap().num_key_value_heads, 4);
    assert_eq!(without("llama", "rms_norm_eps").unwrap().rms_norm_eps, 1e-6);
    assert_eq!(without("glm4_moe", "rms_norm_eps").unwrap().rms_norm_eps, 1e-5);
    assert_eq!(without("llama", "eos_token_id").unwrap().eos_token_id, [2]);
    assert_eq!(with("llama", "pad_token_id", json!(-1)).unwrap().pad_token_id, None);
    assert_eq!(without("mixtral", "rope_parameters").unwrap().rope_theta, 1e6);
    assert_eq!(without("qwen3", "rope_parameters").unwrap().rope_theta, 1e4);
    assert_eq!(without("glm4_moe", "rope_parameters").unwrap().partial_rotary_factor, 0.5);
    assert!(!without("qwen3_moe_norm", "norm_topk_prob").unwrap().moe.unwrap().norm_topk_prob);
    assert!(without("glm4_moe_plain", "norm_topk_prob").unwrap().moe.unwrap().norm_topk_prob);
    assert_eq!(without("glm4_moe", "first_k_dense_replace").unwrap().moe.unwrap().dense_layers, [0]);
    assert_eq!(without("mistral", "bos_token_id").unwrap().bos_token_id, Some(1));
    assert!(without("qwen2_moe", "qkv_bias").unwrap().attention_bias);
    assert!(!with("qwen2_moe", "qkv_bias", json!(false)).unwrap().attention_bias);
    assert_eq!(without("olmoe", "rms_norm_eps").unwrap().rms_norm_eps, 1e-5);
    assert_eq!(without("olmoe", "pad_token_id").unwrap().pad_token_id, Some(1));
    // As DeepSeek's files of before: the method may be missing, and without it groups mean nothing.
    assert_eq!(without("deepseek_v3", "q_lora_rank").unwrap().mla.unwrap().q_lora_rank, Some(1536));
    assert_eq!(without("deepseek_v2", "topk_method").unwrap().moe.unwrap().n_group, 1);
    assert_eq!(with("deepseek_v2", "n_group", json!(4)).unwrap().moe.unwrap().n_group, 1);
    assert_eq!(without("deepseek_v3", "first_k_dense_replace").unwrap().moe.unwrap().dense_layers, [0, 1]);
    assert_eq!(without("deepseek_v3", "bos_token_id").unwrap().bos_token_id, Some(0));
    assert!(with("deepseek_v2", "rope_interleave", json!(false)).unwrap().mla.unwrap().rope_interleave);
    // Both names of the number of experts, and which of them wins.
    let renamed = changed("qwen3_moe", |v| {
        let n = v.as_object_mut().unwrap().remove("num_local_experts").unwrap();
        v["num_experts"] = n;
    });
    assert_eq!(renamed.unwrap().moe.unwrap().num_experts, 8);
    assert_eq!(with("qwen3_moe", "num_experts", json!(4)).unwrap().moe.unwrap().num_experts, 8);
    // The keys of transformers 4.
    let old = changed("glm4_moe", |v| {
        v.as_object_mut().unwrap().remove("rope_parameters");
        v["rope_theta"] = json!(500000);
        v["partial_rotary_factor"] = json!(0.25);
        v["rope_scaling"] = Value::Null;
        v["torch_dtype"] = json!("bfloat16");
    });
    let old = old.unwrap();
    assert_eq!((old.rope_theta, old.rotary_dim()), (500000.0, 4));
    assert_eq!(with("llama", "rope_theta", json!(7.0)).unwrap().rope_theta, 10000.0, "rope_parameters wins");
}

#[test]
fn what_we_do_not_compute_is_refused_by_name() {
    for (case, key, value) in [
        ("llama", "model_type", json!("gpt2")),
        ("llama", "hidden_act", json!("gelu")),
        ("llama", "mlp_bias", json!(true)),
        ("llama", "rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("llama", "rope_scaling", json!({"rope_type": 3})),
        ("llama", "rope_parameters", json!({"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0})),
        ("llama", "rope_parameters", json!({"full_attention": {"rope_type": "default"}})),
        ("llama", "quantization_config", json!({"quant_method": "gptq"})),
        ("llama", "quantization_config", json!({"quant_method": "fp8", "weight_block_size": [64, 128]})),
        ("llama", "quantization_config", json!({"quant_method": "fp8", "activation_scheme": "static"})),
        ("llama", "quantization_config", json!("fp8")),
        ("qwen3", "use_sliding_window", json!(true)),
        ("qwen3", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("mixtral", "sliding_window", json!(32)),
        ("mistral", "sliding_window", json!(63)),
        ("olmoe", "clip_qkv", json!(8.0)),
        ("qwen2", "use_sliding_window", json!(true)),
        ("qwen2_moe", "shared_expert_intermediate_size", json!(47)),
        ("mixtral", "router_jitter_noise", json!(0.1)),
        ("deepseek_v2", "norm_topk_prob", json!(true)),
        ("deepseek_v2", "topk_method", json!("noaux_tc")),
        ("deepseek_v2", "moe_layer_freq", json!(2)),
        ("deepseek_v3", "scoring_func", json!("softmax")),
        ("deepseek_v3", "topk_method", json!("greedy")),
    ] {
        let e = with(case, key, value).unwrap_err();
        assert!(e.starts_with(key) && e.contains("only") | e.contains("supported are"), "{key}: {e}");
    }
    // A sliding window that is switched off may keep its size.
    with("qwen3_moe", "sliding_window", json!(4096)).unwrap();
    let fp8 =
        json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"});
    with("llama", "quantization_config", fp8).unwrap();
    with("mistral", "sliding_window", json!(64)).unwrap();
    without("mistral", "sliding_window").unwrap();
    let longer = changed("mistral", |v| {
        v["max_position_embeddings"] = json!(4097);
        v.as_object_mut().unwrap().remove("sliding_window");
    });
    assert!(longer.unwrap_err().starts_with("sliding_window: 4096"), "that is what transformers assumes");
    with("llama", "some_new_key", json!([1, 2])).unwrap();
}

#[test]
fn rotary_scalings_old_and_new() {
    let of = |key, value| with("llama", key, value).unwrap();
    // As published Qwen2.5 and Llama 3.1 files spell them; the object of before wins where both stand.
    let c = of("rope_scaling", json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}));
    assert_eq!(c.rope_theta, 1e4);
    let yarn = |attention_factor, beta_fast| RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 16,
        attention_factor,
        beta_fast,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    assert_eq!(c.rope_scaling, Some(yarn(None, 32.0)));
    let c = of(
        "rope_parameters",
        json!({"rope_type": "yarn", "rope_theta": 5e5, "factor": null, "original_max_position_embeddings": 16,
            "attention_factor": 1.25, "beta_fast": 0, "beta_slow": null, "truncate": true}),
    );
    assert_eq!((c.rope_theta, c.rope_scaling), (5e5, Some(yarn(Some(1.25), 32.0))), "64 / 16 positions");
    let c =
        of("rope_parameters", json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}));
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    assert_eq!(c.rope_scaling, Some(llama3));
    assert_eq!(
        of("rope_scaling", json!({"rope_type": "linear", "factor": 2})).rope_scaling,
        Some(RopeScaling::Linear { factor: 2.0 })
    );
    assert_eq!(of("rope_scaling", json!({})).rope_scaling, None);
    for (key, value, named) in [
        ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling: factor is missing"),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "rope_parameters: low_freq_factor is missing",
        ),
        ("rope_scaling", json!({"rope_type": "linear", "factor": "2"}), "factor: must be a number"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": -2}), "factor: -2"),
    ] {
        let e = with("llama", key, value).unwrap_err();
        assert!(e.starts_with(named), "{e}");
    }
}

#[test]
fn wrong_types_and_missing_keys_are_named() {
    for (case, key, value) in [
        ("llama", "vocab_size", json!("many")),
        ("llama", "hidden_size", json!(-4)),
        ("llama", "num_hidden_layers", json!(2.5)),
        ("llama", "rms_norm_eps", json!("1e-6")),
        ("llama", "attention_bias", json!(1)),
        ("llama", "eos_token_id", json!("</s>")),
        ("llama", "eos_token_id", json!([0, -7])),
        ("llama", "bos_token_id", json!(101)),
        ("llama", "rope_parameters", json!([1])),
        ("llama", "num_attention_heads", json!(0)),
        ("llama", "vocab_size", json!(1u64 << 60)),
        ("qwen3_moe", "mlp_only_layers", json!({"0": true})),
        ("qwen3_moe", "decoder_sparse_step", json!(0)),
        ("glm4_moe", "n_group", json!(3)),
        ("glm4_moe", "num_experts_per_tok", json!(5)),
        ("deepseek_v3", "kv_lora_rank", json!(0)),
        ("deepseek_v3", "qk_rope_head_dim", json!(7)),
        ("deepseek_v3", "v_head_dim", json!("wide")),
        ("deepseek_v3", "num_key_value_heads", json!(2)),
    ] {
        let e = with(case, key, value).unwrap_err();
        assert!(e.starts_with(key), "{key}: {e}");
    }
    for key in ["model_type", "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"] {
        let e = without("qwen3", key).unwrap_err();
        assert!(e.starts_with(&format!("{key}: missing")), "{e}");
    }
    assert!(without("qwen3_moe", "num_local_experts").unwrap_err().contains("num_experts"));
    for bytes in [&b""[..], b"[]", b"{\"model_type\": \"llama\"", b"\xff\xfe"] {
        assert!(Config::from_json(bytes).unwrap_err().to_string().starts_with("config.json"));
    }
}

/// A family has no spelling for these, so nobody may train them.
#[test]
fn combinations_without_a_spelling_are_refused() {
    let families: std::collections::BTreeMap<_, _> = all_families().into_iter().collect();
    let refused = |name: &str, key: &str, change: &dyn Fn(&mut Config)| {
        let mut c = families[name].clone();
        c.check().unwrap();
        change(&mut c);
        let e = c.check().unwrap_err();
        assert_eq!(e.key, key, "{name}: {e}");
        assert!(e.problem.contains(c.family.model_type()), "{e}");
    };
    refused("qwen3", "qk_norm", &|c| c.qk_norm = false);
    refused("llama", "qk_norm", &|c| c.qk_norm = true);
    refused("llama", "attention_output_bias", &|c| c.attention_output_bias = false);
    refused("llama", "num_attention_heads", &|c| c.hidden_size = 10);
    refused("llama", "partial_rotary_factor", &|c| c.partial_rotary_factor = 0.5);
    refused("llama", "moe", &|c| c.moe = families["mixtral"].moe.clone());
    refused("mixtral", "moe", &|c| c.moe = None);
    refused("mixtral", "attention_bias", &|c| c.attention_bias = true);
    refused("mixtral", "dense_layers", &|c| c.moe.as_mut().unwrap().dense_layers = vec![0]);
    refused("mixtral", "intermediate_size", &|c| c.intermediate_size = 7);
    refused("mixtral", "n_shared_experts", &|c| c.moe.as_mut().unwrap().n_shared_experts = 1);
    refused("mixtral", "norm_topk_prob", &|c| c.moe.as_mut().unwrap().norm_topk_prob = false);
    refused("qwen3_moe", "sigmoid", &|c| c.moe.as_mut().unwrap().sigmoid = true);
    refused("qwen3_moe", "routed_scaling_factor", &|c| c.moe.as_mut().unwrap().routed_scaling_factor = 2.0);
    refused("glm4_moe", "sigmoid", &|c| {
        let m = c.moe.as_mut().unwrap();
        (m.sigmoid, m.n_group, m.topk_group) = (false, 1, 1);
    });
    refused("glm4_moe", "attention_output_bias", &|c| c.attention_output_bias = true);
    refused("glm4_moe", "dense_layers", &|c| c.moe.as_mut().unwrap().dense_layers = vec![1]);
    refused("mistral", "attention_bias", &|c| c.attention_bias = true);
    refused("qwen2", "attention_bias", &|c| c.attention_bias = false);
    refused("qwen2", "attention_output_bias", &|c| c.attention_output_bias = true);
    refused("qwen2", "qk_norm", &|c| c.qk_norm = true);
    refused("qwen2_moe", "n_shared_experts", &|c| c.moe.as_mut().unwrap().n_shared_experts = 0);
    refused("olmoe", "qk_norm", &|c| c.qk_norm = false);
    refused("olmoe", "head_dim", &|c| c.head_dim = 4);
    refused("olmoe", "num_key_value_heads", &|c| c.num_key_value_heads = 2);
    refused("olmoe", "dense_layers", &|c| c.moe.as_mut().unwrap().dense_layers = vec![0]);
    refused("olmoe", "intermediate_size", &|c| c.intermediate_size = 7);
    refused("glm4_moe", "n_shared_experts", &|c| c.moe.as_mut().unwrap().n_shared_experts = 0);
}

#[test]
fn a_short_preset_has_sensible_defaults() {
    let preset = json!({
        "family": "mixtral", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    });
    let c: Config = serde_json::from_value(preset.clone()).unwrap();
    c.check().unwrap();
    assert_eq!((c.head_dim, c.num_key_value_heads, c.intermediate_size), (16, 4, 32));
    assert_eq!((c.rope_theta, c.rms_norm_eps, c.initializer_range), (10000.0, 1e-6, 0.02));
    assert!(c.moe.as_ref().unwrap().norm_topk_prob);
    let mut unknown = preset.clone();
    unknown["hiden_size"] = json!(1);
    assert!(serde_json::from_value::<Config>(unknown).unwrap_err().to_string().contains("hiden_size"));
    let mut unknown = preset;
    unknown["moe"]["top_k"] = json!(1);
    assert!(serde_json::from_value::<Config>(unknown).unwrap_err().to_string().contains("top_k"));
}

fn any_scaling() -> impl Strategy<Value = Option<RopeScaling>> {
    let (factor, length, some) = (0.5f64..64.0, 1usize..9000, || proptest::option::of(0.1f64..3.0));
    let yarn = (some(), some(), some(), 1.0f64..50.0, 0.1f64..1.0, any::<bool>());
    (0..4, factor, length, 0.1f64..2.0, 0.1f64..8.0, yarn).prop_map(|(kind, factor, length, low, more, y)| match kind {
        0 => None,
        1 => Some(RopeScaling::Linear { factor }),
        2 => Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: low + more,
            original_max_position_embeddings: length,
        }),
        _ => Some(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: length,
            attention_factor: y.0,
            beta_fast: y.3,
            beta_slow: y.4,
            mscale: y.1,
            mscale_all_dim: y.2,
            truncate: y.5,
        }),
    })
}

/// Any configuration that passes the check, near those of [`all_families`].
fn any_config() -> impl Strategy<Value = Config> {
    let sizes = (1usize..200, 1usize..9, 1usize..5, 1usize..5, 1usize..20, 1usize..2000);
    let numbers = (1e-3f64..1e7, 1e-9f64..1e-2, 0.0f64..1.0, 0.0f64..1.0, 0.1f64..5.0);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(0u32..50));
    let moe = (1usize..5, 1usize..4, 1usize..5, 1usize..99, proptest::collection::btree_set(0usize..8, 0..5));
    (0..all_families().len(), sizes, numbers, flags, moe, any_scaling()).prop_filter_map(
        "not a model",
        |(which, s, x, f, m, scaling)| {
            let mut c = all_families().swap_remove(which).1;
            let (vocab, layers, kv, group, half, positions) = s;
            (c.vocab_size, c.num_hidden_layers, c.num_key_value_heads) = (vocab + 50, layers, kv);
            (c.num_attention_heads, c.head_dim) = (kv * group, half * 4);
            (c.hidden_size, c.max_position_embeddings) = (kv * group * (1 + half), positions);
            (c.rope_theta, c.rms_norm_eps, c.initializer_range) = (x.0, x.1, x.2);
            c.rope_scaling = scaling;
            (c.tie_word_embeddings, c.bos_token_id, c.pad_token_id) = (f.0, f.3, f.3.map(|id| id / 2));
            c.eos_token_id = (0..m.0 as u32 - 1).collect();
            c.intermediate_size = m.3 + 1;
            c.attention_bias = match c.family {
                Family::Mistral | Family::Mixtral => false,
                Family::Qwen2 => true,
                _ => f.1,
            };
            let quiet = matches!(c.family, Family::Qwen2 | Family::Qwen2Moe | Family::Glm4Moe);
            c.attention_output_bias = c.attention_bias && !quiet;
            if let Some(mla) = &mut c.mla {
                (mla.q_lora_rank, mla.kv_lora_rank) = (f.3.map(|rank| rank as usize + 1), positions);
                (mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim) = (group, 2 * half, layers);
                mla.rope_interleave = c.family == Family::DeepseekV2 || f.2;
                (c.num_key_value_heads, c.head_dim) = (kv * group, group + 2 * half);
            }
            if c.family == Family::Olmoe {
                (c.num_key_value_heads, c.hidden_size) = (kv * group, kv * group * c.head_dim);
            }
            if let Some(moe) = &mut c.moe {
                let theirs = matches!(c.family, Family::Mixtral | Family::Olmoe);
                moe.moe_intermediate_size = if theirs { m.3 + 1 } else { m.3 };
                moe.router_aux_loss_coef = x.3;
                moe.num_experts_per_tok = m.1;
                if c.family == Family::Olmoe {
                    moe.norm_topk_prob = f.2;
                }
                if matches!(c.family, Family::Qwen2Moe | Family::Qwen3Moe) {
                    moe.norm_topk_prob = f.2;
                    moe.dense_layers = m.4.iter().copied().filter(|&l| l < layers).collect();
                }
                if matches!(c.family, Family::Glm4Moe | Family::DeepseekV2 | Family::DeepseekV3) {
                    (moe.n_group, moe.topk_group) = (m.2, m.2.min(m.0));
                    moe.num_experts = m.2 * (m.0 + 1);
                    moe.routed_scaling_factor = x.4;
                    moe.dense_layers = (0..layers.min(m.0 - 1)).collect();
                    moe.norm_topk_prob = f.2 && c.family != Family::DeepseekV2;
                } else {
                    moe.num_experts = m.0 * m.2;
                }
            }
            c.check().ok().map(|()| c)
        },
    )
}

proptest! {
    #[test]
    fn what_we_write_we_read(c in any_config()) {
        for dtype in [DType::F32, DType::Bf16] {
            let text = c.to_json(dtype);
            prop_assert_eq!(&Config::from_json(text.as_bytes()).unwrap(), &c);
        }
        let own = serde_json::to_string(&c).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Config>(&own).unwrap(), &c);
        serde_json::from_str::<Value>(&c.generation_json()).unwrap();
    }

    /// Foreign bytes get an answer, never a panic.
    #[test]
    fn garbled_files_are_answered(case in 0usize..13, edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let case = ["llama", "qwen3", "mixtral", "qwen3_moe", "qwen3_moe_norm", "glm4_moe", "glm4_moe_plain",
            "mistral", "qwen2", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3"][case];
        let mut bytes = golden(case);
        for (at, byte) in edits {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        if let Err(e) = Config::from_json(&bytes) {
            prop_assert!(!e.to_string().is_empty());
        }
    }

    /// So do values that are well-formed and absurd.
    #[test]
    fn absurd_numbers_are_answered(case in 0usize..5, key in 0usize..17, n in any::<u64>()) {
        let case = ["llama", "qwen3_moe", "glm4_moe", "deepseek_v2_groups", "deepseek_v3"][case];
        let key = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "moe_intermediate_size", "n_routed_experts", "num_local_experts",
            "first_k_dense_replace", "n_shared_experts", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
            "qk_rope_head_dim", "v_head_dim"][key];
        let _ = with(case, key, json!(n));
    }
}
