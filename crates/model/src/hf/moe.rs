//! The sparse half of `config.json`: how each family spells its router and its experts.

use super::{Keys, fail};
use crate::config::{ConfigError, Family, MoeConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The sparse settings, or `None` of a dense family.
pub(super) fn read(keys: &Keys, family: Family, layers: usize) -> Result<Option<MoeConfig>, ConfigError> {
    // A list of layers longer than any model's would only cost time; `Config::check` names the bound.
    let layers = layers.min(1 << 12);
    // Both spellings are in use; where both stand this one wins, as in transformers.
    let local =
        |default: Option<usize>| match keys.count("num_local_experts")?.or(keys.count("num_experts")?).or(default) {
            Some(n) => Ok(n),
            None => fail("num_local_experts", "missing, and no num_experts either".into()),
        };
    let softmax = |num_experts, per_token, width, norm, aux| -> Result<MoeConfig, ConfigError> {
        Ok(MoeConfig {
            num_experts,
            num_experts_per_tok: keys.count("num_experts_per_tok")?.unwrap_or(per_token),
            moe_intermediate_size: width,
            n_shared_experts: 0,
            sigmoid: false,
            norm_topk_prob: norm,
            routed_scaling_factor: 1.0,
            n_group: 1,
            topk_group: 1,
            dense_layers: vec![],
            router_aux_loss_coef: keys.number("router_aux_loss_coef", aux)?,
        })
    };
    match family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => Ok(None),
        Family::Mixtral => softmax(local(Some(8))?, 2, keys.required("intermediate_size")?, true, 0.001).map(Some),
        Family::Olmoe => {
            let norm = keys.flag("norm_topk_prob", false)?;
            softmax(local(Some(64))?, 8, keys.required("intermediate_size")?, norm, 0.01).map(Some)
        }
        Family::Qwen2Moe => {
            let width = keys.count("moe_intermediate_size")?.unwrap_or(1408);
            let shared = keys.count("shared_expert_intermediate_size")?.unwrap_or(5632);
            if width == 0 || !shared.is_multiple_of(width) {
                let what = format!("{shared} is not supported; only multiples of moe_intermediate_size = {width} are");
                return fail("shared_expert_intermediate_size", what);
            }
            let experts = keys.count("num_experts")?.unwrap_or(60);
            let m = softmax(experts, 4, width, keys.flag("norm_topk_prob", false)?, 0.001)?;
            Ok(Some(MoeConfig { n_shared_experts: shared / width, dense_layers: dense_layers(keys, layers)?, ..m }))
        }
        Family::Qwen3Moe => {
            let width = keys.count("moe_intermediate_size")?.unwrap_or(768);
            let m = softmax(local(None)?, 8, width, keys.flag("norm_topk_prob", false)?, 0.001)?;
            Ok(Some(MoeConfig { dense_layers: dense_layers(keys, layers)?, ..m }))
        }
        Family::Glm4Moe => Ok(Some(MoeConfig {
            num_experts: keys.count("n_routed_experts")?.unwrap_or(128),
            num_experts_per_tok: keys.count("num_experts_per_tok")?.unwrap_or(8),
            moe_intermediate_size: keys.count("moe_intermediate_size")?.unwrap_or(1408),
            n_shared_experts: keys.count("n_shared_experts")?.unwrap_or(1),
            sigmoid: true,
            norm_topk_prob: keys.flag("norm_topk_prob", true)?,
            routed_scaling_factor: keys.number("routed_scaling_factor", 1.0)?,
            n_group: keys.count("n_group")?.unwrap_or(1),
            topk_group: keys.count("topk_group")?.unwrap_or(1),
            dense_layers: first_layers(keys, 1, layers)?,
            router_aux_loss_coef: keys.number("router_aux_loss_coef", 0.0)?,
        })),
        Family::DeepseekV2 => {
            keys.only("scoring_func", &json!("softmax"))?;
            keys.only("norm_topk_prob", &json!(false))?;
            let groups = keys.get("topk_method").is_some_and(|v| v == "group_limited_greedy");
            if !groups {
                keys.only("topk_method", &json!("greedy"))?;
            }
            // Without the method their numbers mean nothing.
            let of = |key| if groups { keys.required(key) } else { Ok(1) };
            Ok(Some(MoeConfig {
                num_experts: keys.count("n_routed_experts")?.unwrap_or(64),
                num_experts_per_tok: keys.required("num_experts_per_tok")?,
                moe_intermediate_size: keys.count("moe_intermediate_size")?.unwrap_or(1407),
                n_shared_experts: keys.count("n_shared_experts")?.unwrap_or(2),
                sigmoid: false,
                norm_topk_prob: false,
                routed_scaling_factor: keys.number("routed_scaling_factor", 1.0)?,
                n_group: of("n_group")?,
                topk_group: of("topk_group")?,
                dense_layers: first_layers(keys, 0, layers)?,
                router_aux_loss_coef: keys.number("router_aux_loss_coef", 0.0)?,
            }))
        }
        Family::DeepseekV3 => {
            keys.only("scoring_func", &json!("sigmoid"))?;
            keys.only("topk_method", &json!("noaux_tc"))?;
            Ok(Some(MoeConfig {
                num_experts: keys.count("n_routed_experts")?.unwrap_or(256),
                num_experts_per_tok: keys.count("num_experts_per_tok")?.unwrap_or(8),
                moe_intermediate_size: keys.count("moe_intermediate_size")?.unwrap_or(2048),
                n_shared_experts: keys.count("n_shared_experts")?.unwrap_or(1),
                sigmoid: true,
                norm_topk_prob: keys.flag("norm_topk_prob", true)?,
                routed_scaling_factor: keys.number("routed_scaling_factor", 2.5)?,
                n_group: keys.count("n_group")?.unwrap_or(8),
                topk_group: keys.count("topk_group")?.unwrap_or(4),
                dense_layers: first_layers(keys, 3, layers)?,
                router_aux_loss_coef: keys.number("router_aux_loss_coef", 0.0)?,
            }))
        }
    }
}

/// GLM's and DeepSeek's dense layers: so many first ones. Another spacing of the sparse ones than 1 nobody has published.
fn first_layers(keys: &Keys, default: usize, layers: usize) -> Result<Vec<usize>, ConfigError> {
    keys.only("moe_layer_freq", &json!(1))?;
    Ok((0..keys.count("first_k_dense_replace")?.unwrap_or(default).min(layers)).collect())
}

/// Qwen's dense layers: a list, and all but every n-th.
fn dense_layers(keys: &Keys, layers: usize) -> Result<Vec<usize>, ConfigError> {
    let step = keys.count("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return fail("decoder_sparse_step", "0; it must be 1 or more".into());
    }
    let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let list = |v: &Value| v.as_array()?.iter().map(whole).collect::<Option<Vec<usize>>>();
    let dense = keys.typed("mlp_only_layers", "a list of layer numbers", list)?.unwrap_or_default();
    Ok((0..layers).filter(|l| dense.contains(l) || !(l + 1).is_multiple_of(step)).collect())
}

/// The keys of a sparse model.
pub(super) fn write(family: Family, m: &MoeConfig, keys: &mut BTreeMap<&str, Value>) {
    keys.insert("num_experts_per_tok", json!(m.num_experts_per_tok));
    keys.insert("output_router_logits", json!(false));
    keys.insert("router_aux_loss_coef", json!(m.router_aux_loss_coef));
    let deepseek = matches!(family, Family::DeepseekV2 | Family::DeepseekV3);
    if !deepseek && !matches!(family, Family::Glm4Moe | Family::Qwen2Moe) {
        keys.insert("num_local_experts", json!(m.num_experts));
    }
    if matches!(family, Family::Qwen2Moe | Family::Qwen3Moe | Family::Olmoe) {
        keys.insert("num_experts", json!(m.num_experts));
    }
    if matches!(family, Family::Qwen2Moe | Family::Qwen3Moe) {
        keys.insert("decoder_sparse_step", json!(1));
        keys.insert("mlp_only_layers", json!(m.dense_layers));
    }
    if family == Family::Qwen2Moe {
        keys.insert("shared_expert_intermediate_size", json!(m.n_shared_experts * m.moe_intermediate_size));
    }
    if deepseek {
        let [score, method] = match (family, m.n_group) {
            (Family::DeepseekV3, _) => ["sigmoid", "noaux_tc"],
            (_, 1) => ["softmax", "greedy"],
            _ => ["softmax", "group_limited_greedy"],
        };
        keys.insert("scoring_func", json!(score));
        keys.insert("topk_method", json!(method));
        keys.insert("moe_layer_freq", json!(1));
    }
    if deepseek || family == Family::Glm4Moe {
        keys.insert("n_routed_experts", json!(m.num_experts));
        keys.insert("n_shared_experts", json!(m.n_shared_experts));
        keys.insert("n_group", json!(m.n_group));
        keys.insert("topk_group", json!(m.topk_group));
        keys.insert("routed_scaling_factor", json!(m.routed_scaling_factor));
        keys.insert("first_k_dense_replace", json!(m.dense_layers.len()));
    }
    if !matches!(family, Family::Mixtral | Family::Olmoe) {
        keys.insert("moe_intermediate_size", json!(m.moe_intermediate_size));
    }
    if family != Family::Mixtral {
        keys.insert("norm_topk_prob", json!(m.norm_topk_prob));
    }
}
