//! Which of a file's tensors a Hugging Face tensor is.

use crate::config::{Config, Family};

/// Families that the format has an architecture for, with the architecture's name, which begins its keys. `llama` is
/// several families, and so is `deepseek2`: what a file of them is, is told by its keys.
const ARCHITECTURES: &[(Family, &str)] = &[
    (Family::Llama, "llama"),
    (Family::Mistral, "llama"),
    (Family::Mixtral, "llama"),
    (Family::Qwen2, "qwen2"),
    (Family::Qwen3, "qwen3"),
    (Family::Qwen2Moe, "qwen2moe"),
    (Family::Qwen3Moe, "qwen3moe"),
    (Family::Olmoe, "olmoe"),
    (Family::Glm4Moe, "glm4moe"),
    (Family::DeepseekV2, "deepseek2"),
    (Family::DeepseekV3, "deepseek2"),
];

/// Tensors outside of layers.
const WHOLE: &[(&str, &str)] = &[
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Tensors of a layer, after `model.layers.N.` there and `blk.N.` here.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.o_proj.bias", "attn_output.bias"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("self_attn.q_a_proj.weight", "attn_q_a.weight"),
    ("self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"),
    ("self_attn.q_b_proj.weight", "attn_q_b.weight"),
    ("self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"),
    ("self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"),
    // Or two halves: see `mla`.
    ("self_attn.kv_b_proj.weight", "attn_kv_b.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("mlp.gate.weight", "ffn_gate_inp.weight"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"),
    ("mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
    ("mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"),
    ("mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"),
    ("mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"),
    ("mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"),
    ("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
    ("block_sparse_moe.gate.weight", "ffn_gate_inp.weight"),
];

/// Matrices of an expert, after `mlp.experts.E.` or `block_sparse_moe.experts.E.` there; one tensor of all experts here.
const EXPERT: &[(&str, &str)] = &[
    ("gate_proj.weight", "ffn_gate_exps.weight"),
    ("up_proj.weight", "ffn_up_exps.weight"),
    ("down_proj.weight", "ffn_down_exps.weight"),
    ("w1.weight", "ffn_gate_exps.weight"),
    ("w3.weight", "ffn_up_exps.weight"),
    ("w2.weight", "ffn_down_exps.weight"),
];

/// Where a Hugging Face tensor is in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The name of the tensor that holds it.
    pub name: String,
    /// Which expert's share of that tensor it is, of all its outermost dimension.
    pub expert: Option<usize>,
    /// Rows of a head whose pairs are side by side in the file: row `2j + s` of a head is there row `s·C/2 + j`.
    pub paired: Option<usize>,
}

/// The architecture that files name a family, if there is one.
pub fn architecture(family: Family) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|a| a.0 == family).map(|a| a.1)
}

/// Architectures that can be read, for messages.
pub(super) fn architectures() -> String {
    let mut names: Vec<&str> = ARCHITECTURES.iter().map(|a| a.1).collect();
    names.dedup();
    names.join(", ")
}

/// Where the Hugging Face tensor `part` of a model is, or `None` if the format has no name for it.
pub fn place(config: &Config, part: &str) -> Option<Place> {
    let find = |table: &[(&str, &'static str)], name: &str| table.iter().find(|row| row.0 == name).map(|row| row.1);
    let whole = |name: String, expert| Place { name, expert, paired: None };
    if let Some(name) = find(WHOLE, part) {
        return Some(whole(name.into(), None));
    }
    let (layer, part) = part.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let experts = part.strip_prefix("mlp.experts.").or_else(|| part.strip_prefix("block_sparse_moe.experts."));
    if let Some((expert, matrix)) = experts.and_then(|rest| rest.split_once('.')) {
        return Some(whole(format!("blk.{layer}.{}", find(EXPERT, matrix)?), Some(expert.parse().ok()?)));
    }
    let name = match (config.family, find(LAYER, part)?) {
        (Family::Glm4Moe, "ffn_norm.weight") => "post_attention_norm.weight",
        (_, name) => name,
    };
    let rotated = matches!(name, "attn_q.weight" | "attn_k.weight" | "attn_q.bias" | "attn_k.bias");
    let paired = (rotated && architecture(config.family) == Some("llama")).then_some(config.head_dim);
    Some(Place { paired, ..whole(format!("blk.{layer}.{name}"), None) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::families::{all_families, every_family};
    use crate::gguf::mla::halves;
    use crate::store::{Layout, Shard};
    use std::collections::BTreeSet;

    #[test]
    fn every_tensor_of_every_family_has_a_place_of_its_own() {
        for (name, config) in all_families() {
            // Biases of latent attention have no names.
            let attention_bias = config.attention_bias && config.mla.is_none();
            let config = Config { attention_bias, attention_output_bias: attention_bias, ..config };
            let layout = Layout::new(&config, Shard::WHOLE);
            let params = layout.dense().map(|(_, p)| p).chain(layout.experts().flat_map(|(.., p)| p));
            let mut seen = BTreeSet::new();
            for part in params.flat_map(|p| &p.parts) {
                let place = place(&config, &part.name).unwrap_or_else(|| panic!("{name}: {}", part.name));
                let halves = halves(&config, &place.name).map(|halves| halves.map(|half| half.name).to_vec());
                for tensor in halves.unwrap_or_else(|| vec![place.name]) {
                    assert!(seen.insert((tensor.clone(), place.expert)), "{name}: {tensor} twice");
                }
            }
        }
        let (_, llama) = every_family().swap_remove(0);
        assert_eq!(place(&llama, "model.layers.1.self_attn.q_norm.gain"), None);
        assert_eq!(place(&llama, "model.layers.x.self_attn.q_proj.weight"), None);
    }
}
