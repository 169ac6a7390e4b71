//! What a model is: one type for every family, with the standard names of the field.
//!
//! [`Config`] says what the mathematics does; how a family spells it in `config.json` is the business of [`hf`](self)'s
//! reader and writer. Everything that a reader could get wrong is checked in [`Config::check`], before any memory is
//! taken.

use serde::{Deserialize, Serialize};
use wudao_device::{Heads, Routing, Score};

/// The Hugging Face `model_type`: which names and which habits a checkpoint has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Dense (Touvron et al. 2023).
    Llama,
    /// Dense with QK norm.
    Qwen3,
    /// Softmax top-k with renormalisation in every layer (Jiang et al. 2024).
    Mixtral,
    /// Softmax top-k, QK norm, some layers dense.
    Qwen3Moe,
    /// Sigmoid router with correction bias, shared experts, dense first layers, partial rotary embedding.
    Glm4Moe,
}

/// A whole model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names and habits.
    pub family: Family,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// F of the dense feed-forward layers.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G; divides H.
    pub num_key_value_heads: usize,
    /// C; even.
    pub head_dim: usize,
    /// Longest sequence the model is made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Share of a head's columns that is rotated.
    pub partial_rotary_factor: f64,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub attention_bias: bool,
    /// Bias on the attention's output projection too.
    pub attention_output_bias: bool,
    /// RMS norm on every query and key head.
    pub qk_norm: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Begins a document.
    pub bos_token_id: Option<u32>,
    /// Ends a document; the first one is the end of text.
    pub eos_token_id: Vec<u32>,
    /// Fills a batch.
    pub pad_token_id: Option<u32>,
    /// The sparse layers, if any.
    pub moe: Option<MoeConfig>,
}

/// The sparse half of a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// E.
    pub num_experts: usize,
    /// K.
    pub num_experts_per_tok: usize,
    /// F of an expert.
    pub moe_intermediate_size: usize,
    /// Experts that see every token, as one feed-forward of this many times F (0: none).
    pub n_shared_experts: usize,
    /// Softmax, or sigmoid with a correction bias.
    pub sigmoid: bool,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
    /// Multiply the weights in the end.
    pub routed_scaling_factor: f64,
    /// Groups of experts.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// The layers whose feed-forward is dense.
    pub dense_layers: Vec<usize>,
    /// `router_aux_loss_coef` as the checkpoint's file says it; training has its own setting.
    pub router_aux_loss_coef: f64,
}

/// A configuration that no model can have.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// The offending key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Config {
    /// Heads of the fused projection.
    pub fn heads(&self) -> Heads {
        Heads { q: self.num_attention_heads, kv: self.num_key_value_heads, dim: self.head_dim }
    }

    /// Rotated columns of a head.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// The sparse settings of `layer`, or `None` where it is dense.
    pub fn moe_at(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|m| !m.dense_layers.contains(&layer))
    }

    /// Numbers of the sparse layers, ascending.
    pub fn moe_layers(&self) -> Vec<usize> {
        (0..self.num_hidden_layers).filter(|&l| self.moe_at(l).is_some()).collect()
    }

    /// The id that begins and ends a document.
    pub fn end_of_text(&self) -> Option<u32> {
        self.eos_token_id.first().copied()
    }

    /// Refuses what no model can be, naming the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |key, problem: String| Err(ConfigError { key, problem });
        for (key, n) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if n == 0 || n > 1 << 30 {
                return fail(key, format!("{n} is out of range; it must be between 1 and 2^30"));
            }
        }
        if self.moe_layers().len() < self.num_hidden_layers && self.intermediate_size == 0 {
            return fail("intermediate_size", "0, but the model has dense layers".into());
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (h, g) = (self.num_attention_heads, self.num_key_value_heads);
            return fail("num_key_value_heads", format!("{g} does not divide num_attention_heads = {h}"));
        }
        if !(self.partial_rotary_factor > 0.0 && self.partial_rotary_factor <= 1.0) {
            return fail("partial_rotary_factor", format!("{} is not in (0, 1]", self.partial_rotary_factor));
        }
        if self.rotary_dim() == 0 || !self.rotary_dim().is_multiple_of(2) {
            let r = self.rotary_dim();
            return fail("head_dim", format!("head_dim · partial_rotary_factor = {r} must be even and not 0"));
        }
        for (key, x) in [("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)] {
            if !(x > 0.0 && x.is_finite()) {
                return fail(key, format!("{x} must be a positive number"));
            }
        }
        if let Some(id) = self
            .bos_token_id
            .iter()
            .chain(&self.eos_token_id)
            .chain(&self.pad_token_id)
            .find(|&&id| id as usize >= self.vocab_size)
        {
            return fail("eos_token_id", format!("token id {id} is not below vocab_size = {}", self.vocab_size));
        }
        let Some(m) = &self.moe else { return Ok(()) };
        if m.num_experts == 0 || m.num_experts > 1 << 20 {
            return fail("num_experts", format!("{} is out of range; it must be between 1 and 2^20", m.num_experts));
        }
        if m.moe_intermediate_size == 0 {
            return fail("moe_intermediate_size", "must not be 0".into());
        }
        if m.n_group == 0 || !m.num_experts.is_multiple_of(m.n_group) || m.topk_group == 0 || m.topk_group > m.n_group {
            return fail(
                "n_group",
                format!(
                    "{} groups, top {}, of {} experts: groups must divide the experts, and 1 ≤ topk_group ≤ n_group",
                    m.n_group, m.topk_group, m.num_experts
                ),
            );
        }
        let choosable = m.num_experts / m.n_group * m.topk_group;
        if m.num_experts_per_tok == 0 || m.num_experts_per_tok > choosable {
            return fail(
                "num_experts_per_tok",
                format!(
                    "{} is not between 1 and the {choosable} experts a token may choose from",
                    m.num_experts_per_tok
                ),
            );
        }
        if !m.sigmoid && m.n_group != 1 {
            return fail("n_group", "groups need the sigmoid router".into());
        }
        if let Some(l) = m.dense_layers.iter().find(|&&l| l >= self.num_hidden_layers) {
            return fail(
                "dense_layers",
                format!("layer {l} is not below num_hidden_layers = {}", self.num_hidden_layers),
            );
        }
        Ok(())
    }
}

impl MoeConfig {
    /// The router, as the device knows it.
    pub fn routing(&self) -> Routing {
        Routing {
            top_k: self.num_experts_per_tok,
            score: if self.sigmoid { Score::Sigmoid } else { Score::Softmax },
            renormalize: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
            groups: self.n_group,
            top_groups: self.topk_group,
        }
    }
}
