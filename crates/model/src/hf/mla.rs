//! Latent attention in `config.json`.

use super::Keys;
use crate::config::{ConfigError, Family, MlaConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The widths of latent attention, or `None` of a family without.
pub(super) fn read(keys: &Keys, family: Family) -> Result<Option<MlaConfig>, ConfigError> {
    if !family.latent() {
        return Ok(None);
    }
    let count = |key, default| Ok(keys.count(key)?.unwrap_or(default));
    // Only here `null` is not absence: it is a model without that latent.
    let q_lora_rank = match keys.0.contains_key("q_lora_rank") {
        true => keys.count("q_lora_rank")?,
        false => Some(1536),
    };
    Ok(Some(MlaConfig {
        q_lora_rank,
        kv_lora_rank: count("kv_lora_rank", 512)?,
        qk_nope_head_dim: count("qk_nope_head_dim", 128)?,
        qk_rope_head_dim: count("qk_rope_head_dim", 64)?,
        v_head_dim: count("v_head_dim", 128)?,
        // DeepSeek-V2 knows no other way, whatever the file says.
        rope_interleave: family == Family::DeepseekV2 || keys.flag("rope_interleave", true)?,
    }))
}

/// The keys of latent attention.
pub(super) fn write(family: Family, m: &MlaConfig, keys: &mut BTreeMap<&str, Value>) {
    keys.insert("q_lora_rank", json!(m.q_lora_rank));
    keys.insert("kv_lora_rank", json!(m.kv_lora_rank));
    keys.insert("qk_nope_head_dim", json!(m.qk_nope_head_dim));
    keys.insert("qk_rope_head_dim", json!(m.qk_rope_head_dim));
    keys.insert("v_head_dim", json!(m.v_head_dim));
    // Of the rotated part, from which transformers makes the frequencies.
    keys.insert("head_dim", json!(m.qk_rope_head_dim));
    if family == Family::DeepseekV3 {
        keys.insert("rope_interleave", json!(m.rope_interleave));
    }
}
