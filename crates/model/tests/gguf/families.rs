//! What we write we read again, family by family.

use super::latent::{latent, mscale};
use super::{BIG, dev, folder, loaded, written};
use crate::common::by_name;
use crate::common::families::{all_families, every_family, latent_families};
use std::path::Path;
use wudao_device::DType;
use wudao_model::gguf::{self, File, TensorType};
use wudao_model::weights::{self, Dtype, Source};
use wudao_model::{Config, Family, MlaConfig, MoeConfig, RopeScaling};

/// A model of every family and habit that a file can hold, and what of it comes back: some settings are not in a file,
/// and a mistral is a llama there.
pub fn writable() -> Vec<(&'static str, Config, Config)> {
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
