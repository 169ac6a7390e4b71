//! What a model is: one type for every family, with the standard names of the field.
//!
//! [`Config`] says what the mathematics does; how a family spells it in `config.json`, and which combinations it has a
//! spelling for, is the business of [`crate::hf`]. Everything that a reader could get wrong is checked in
//! [`Config::check`], before any memory is taken.
//!
//! In a settings file (TOML) the fields have these names and the defaults below, so that a preset stays short:
//! `head_dim` is `hidden_size / num_attention_heads`, there are as many key/value heads as query heads, and the
//! `intermediate_size` of a mixtral or an olmoe is that of its experts.

use crate::rope::RopeScaling;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wudao_device::{Heads, Routing, Score};

/// The Hugging Face `model_type`: which names and which habits a checkpoint has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Dense (Touvron et al. 2023).
    Llama,
    /// Dense (Jiang et al. 2023), without its sliding window.
    Mistral,
    /// Dense with biases on queries, keys and values (Yang et al. 2024).
    Qwen2,
    /// Dense with QK norm.
    Qwen3,
    /// Softmax top-k with renormalisation in every layer (Jiang et al. 2024).
    Mixtral,
    /// Softmax top-k, a gated shared expert, some layers dense.
    Qwen2Moe,
    /// Softmax top-k in every layer, QK norm over the whole projection (Muennighoff et al. 2024).
    Olmoe,
    /// Softmax top-k, QK norm, some layers dense.
    Qwen3Moe,
    /// Sigmoid router with correction bias, shared experts, dense first layers, partial rotary embedding.
    Glm4Moe,
    /// Latent attention; softmax router, its groups judged by their best expert (DeepSeek-AI 2024a). Not trained here.
    DeepseekV2,
    /// Latent attention; router as in Glm4Moe (DeepSeek-AI 2024b). Not trained here.
    DeepseekV3,
}

/// A whole model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Config {
    /// Names and habits.
    pub family: Family,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// F of the dense feed-forward layers.
    #[serde(default)]
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G; divides H.
    #[serde(default)]
    pub num_key_value_heads: usize,
    /// C; even. With latent attention the width of a query: both its parts.
    #[serde(default)]
    pub head_dim: usize,
    /// Longest sequence the model is made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Scaled rotary frequencies, for sequences longer than those of training.
    pub rope_scaling: Option<RopeScaling>,
    /// Share of a head's columns that is rotated.
    #[serde(default = "one")]
    pub partial_rotary_factor: f64,
    /// Epsilon of every RMS norm.
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// The head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    #[serde(default)]
    pub attention_bias: bool,
    /// Bias on the attention's output projection too.
    #[serde(default)]
    pub attention_output_bias: bool,
    /// RMS norm on queries and keys, each head by itself ([`Config::normed_heads`]).
    #[serde(default)]
    pub qk_norm: bool,
    /// Standard deviation of the initial weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// Begins a document.
    pub bos_token_id: Option<u32>,
    /// Ends a document; the first one is the end of text.
    #[serde(default)]
    pub eos_token_id: Vec<u32>,
    /// Fills a batch.
    pub pad_token_id: Option<u32>,
    /// The sparse layers, if any.
    pub moe: Option<MoeConfig>,
    /// Latent attention instead of grouped-query attention.
    pub mla: Option<MlaConfig>,
}

/// Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): keys and values of a token are made from
/// one short vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaConfig {
    /// Width of the latent that queries are made from; none: they are made from the hidden state.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent that keys and values are made from.
    pub kv_lora_rank: usize,
    /// Columns of a query or key that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Columns that are; all heads share those of the key. Even.
    pub qk_rope_head_dim: usize,
    /// Width of a value.
    pub v_head_dim: usize,
    /// Rotated pairs are neighbours in the weights' rows: columns 0 and 1, 2 and 3, …; otherwise one is half the width away.
    #[serde(default = "yes")]
    pub rope_interleave: bool,
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
    #[serde(default)]
    pub n_shared_experts: usize,
    /// Softmax, or sigmoid with a correction bias.
    #[serde(default)]
    pub sigmoid: bool,
    /// Divide the chosen weights by their sum.
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    /// Multiply the weights in the end.
    #[serde(default = "one")]
    pub routed_scaling_factor: f64,
    /// Groups of experts.
    #[serde(default = "one_group")]
    pub n_group: usize,
    /// Groups a token may choose from.
    #[serde(default = "one_group")]
    pub topk_group: usize,
    /// The layers whose feed-forward is dense.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
    /// `router_aux_loss_coef` as the checkpoint's file says it; training has its own setting.
    #[serde(default)]
    pub router_aux_loss_coef: f64,
}

fn rope_theta() -> f64 {
    10000.0
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn initializer_range() -> f64 {
    0.02
}
fn one() -> f64 {
    1.0
}
fn one_group() -> usize {
    1
}
fn yes() -> bool {
    true
}

// `remote = "Self"` makes the derived functions inherent ones, so that these can fill in what depends on other fields.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut c = Self::deserialize(deserializer)?;
        if c.num_key_value_heads == 0 {
            c.num_key_value_heads = c.num_attention_heads;
        }
        if let (Some(m), 0) = (&c.mla, c.head_dim) {
            c.head_dim = m.qk_nope_head_dim.saturating_add(m.qk_rope_head_dim);
        }
        if c.head_dim == 0 {
            c.head_dim = c.hidden_size / c.num_attention_heads.max(1);
        }
        if let (Family::Mixtral | Family::Olmoe, 0, Some(m)) = (c.family, c.intermediate_size, &c.moe) {
            c.intermediate_size = m.moe_intermediate_size;
        }
        Ok(c)
    }
}
impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// A configuration that no model can have, or a file that does not say what the model is.
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

    /// Heads as the QK norm sees them: OLMoE norms all queries of a token as one, and all keys as one, of which there are
    /// as many.
    pub fn normed_heads(&self) -> Heads {
        match self.family {
            Family::Olmoe => Heads { q: 1, kv: 1, dim: self.num_attention_heads * self.head_dim },
            _ => self.heads(),
        }
    }

    /// A token takes a share of the shared expert's answer, not all of it.
    pub fn shared_expert_gate(&self) -> bool {
        self.family == Family::Qwen2Moe
    }

    /// Rotated columns of a head.
    pub fn rotary_dim(&self) -> usize {
        match &self.mla {
            Some(m) => m.qk_rope_head_dim,
            None => (self.head_dim as f64 * self.partial_rotary_factor) as usize,
        }
    }

    /// Numbers that a cache keeps of a token's keys in one layer, and as many of its values: the keys themselves, or their
    /// latent and what is rotated.
    pub fn cache_width(&self) -> usize {
        let (heads, dim) = self.cache_heads();
        heads * dim
    }

    /// The same as heads and the width of each.
    pub fn cache_heads(&self) -> (usize, usize) {
        match &self.mla {
            Some(m) => (1, m.kv_lora_rank + m.qk_rope_head_dim),
            None => (self.num_key_value_heads, self.head_dim),
        }
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

    /// Refuses what no model can be, and what the family has no spelling for, naming the key.
    pub fn check(&self) -> Result<(), ConfigError> {
        in_range("vocab_size", self.vocab_size, 1 << 30)?;
        in_range("hidden_size", self.hidden_size, 1 << 24)?;
        in_range("num_hidden_layers", self.num_hidden_layers, 1 << 12)?;
        in_range("num_attention_heads", self.num_attention_heads, 1 << 16)?;
        in_range("num_key_value_heads", self.num_key_value_heads, 1 << 16)?;
        in_range("head_dim", self.head_dim, 1 << 16)?;
        in_range("max_position_embeddings", self.max_position_embeddings, 1 << 30)?;
        if self.moe_layers().len() < self.num_hidden_layers || self.intermediate_size > 0 {
            in_range("intermediate_size", self.intermediate_size, 1 << 28)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (h, g) = (self.num_attention_heads, self.num_key_value_heads);
            return fail("num_key_value_heads", format!("{g} does not divide num_attention_heads = {h}"));
        }
        if let Some(m) = &self.mla {
            m.check(self)?;
        }
        if !(self.partial_rotary_factor > 0.0 && self.partial_rotary_factor <= 1.0) {
            return fail("partial_rotary_factor", format!("{} is not in (0, 1]", self.partial_rotary_factor));
        }
        if self.rotary_dim() == 0 || !self.rotary_dim().is_multiple_of(2) {
            let r = self.rotary_dim();
            return fail("head_dim", format!("head_dim · partial_rotary_factor = {r} must be even and not 0"));
        }
        positive("rope_theta", self.rope_theta)?;
        self.rope_scaling.as_ref().map_or(Ok(()), |s| s.check(self.rope_theta))?;
        positive("rms_norm_eps", self.rms_norm_eps)?;
        not_negative("initializer_range", self.initializer_range)?;
        let ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let eos = self.eos_token_id.iter().map(|&id| ("eos_token_id", Some(id)));
        for (key, id) in ids.into_iter().chain(eos) {
            if let Some(id) = id.filter(|&id| id as usize >= self.vocab_size) {
                return fail(key, format!("token id {id} is not below vocab_size = {}", self.vocab_size));
            }
        }
        if let Some(m) = &self.moe {
            m.check(self.num_hidden_layers)?;
        }
        self.check_family()?;
        // Below this no product of sizes overflows, in bytes either. In floating point, because here they still may.
        let [d, q, kv] = [self.hidden_size, self.num_attention_heads, self.num_key_value_heads].map(|n| n as f64);
        let expert = |m: &MoeConfig| (m.num_experts + m.n_shared_experts) as f64 * m.moe_intermediate_size as f64;
        let widest = self.moe.as_ref().map_or(0.0, expert).max(self.intermediate_size as f64);
        let attention = match &self.mla {
            Some(m) => m.parameters(self),
            None => d * 2.0 * (q + kv) * self.head_dim as f64,
        };
        let layer = attention + 3.0 * d * widest;
        let most = self.num_hidden_layers as f64 * layer + 2.0 * self.vocab_size as f64 * d;
        if most > (1u64 << 50) as f64 {
            return fail("hidden_size", format!("the model would have {most:.1e} parameters; 2^50 is the most"));
        }
        Ok(())
    }
}

pub(crate) fn fail<T>(key: &'static str, problem: String) -> Result<T, ConfigError> {
    Err(ConfigError { key, problem })
}

fn in_range(key: &'static str, n: usize, most: usize) -> Result<(), ConfigError> {
    if n == 0 || n > most {
        return fail(key, format!("{n} is out of range; it must be between 1 and {most}"));
    }
    Ok(())
}

pub(crate) fn positive(key: &'static str, x: f64) -> Result<(), ConfigError> {
    if x > 0.0 && x.is_finite() { Ok(()) } else { fail(key, format!("{x} must be a positive number")) }
}

pub(crate) fn not_negative(key: &'static str, x: f64) -> Result<(), ConfigError> {
    if x >= 0.0 && x.is_finite() { Ok(()) } else { fail(key, format!("{x} must be 0 or a positive number")) }
}

impl MlaConfig {
    fn check(&self, c: &Config) -> Result<(), ConfigError> {
        if let Some(rank) = self.q_lora_rank {
            in_range("q_lora_rank", rank, 1 << 16)?;
        }
        in_range("kv_lora_rank", self.kv_lora_rank, 1 << 16)?;
        in_range("qk_nope_head_dim", self.qk_nope_head_dim, 1 << 12)?;
        in_range("qk_rope_head_dim", self.qk_rope_head_dim, 1 << 12)?;
        in_range("v_head_dim", self.v_head_dim, 1 << 12)?;
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return fail("qk_rope_head_dim", format!("{} must be even: columns turn in pairs", self.qk_rope_head_dim));
        }
        let (h, g) = (c.num_attention_heads, c.num_key_value_heads);
        if g != h {
            return fail(
                "num_key_value_heads",
                format!("{g} must be num_attention_heads = {h}: each has its own keys"),
            );
        }
        let width = self.qk_nope_head_dim + self.qk_rope_head_dim;
        if c.head_dim != width {
            let problem = format!("{} must be qk_nope_head_dim + qk_rope_head_dim = {width}, or left out", c.head_dim);
            return fail("head_dim", problem);
        }
        Ok(())
    }

    /// Elements of a layer's projections. In floating point, which cannot overflow.
    pub(crate) fn parameters(&self, c: &Config) -> f64 {
        let [d, h] = [c.hidden_size, c.num_attention_heads].map(|n| n as f64);
        let [rank, nope, rope, value] =
            [self.kv_lora_rank, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim].map(|n| n as f64);
        let queries = h * (nope + rope);
        let q = self.q_lora_rank.map_or(d * queries, |rank| rank as f64 * (d + queries));
        q + d * (rank + rope) + rank * h * (nope + value) + h * value * d
    }
}

impl MoeConfig {
    fn check(&self, layers: usize) -> Result<(), ConfigError> {
        in_range("num_experts", self.num_experts, 1 << 16)?;
        in_range("moe_intermediate_size", self.moe_intermediate_size, 1 << 28)?;
        if self.n_shared_experts > 1 << 12 {
            return fail("n_shared_experts", format!("{} is out of range; the most is 4096", self.n_shared_experts));
        }
        let (groups, top) = (self.n_group, self.topk_group);
        if groups == 0 || !self.num_experts.is_multiple_of(groups) || top == 0 || top > groups {
            return fail(
                "n_group",
                format!(
                    "{groups} groups, top {top}, of {} experts: groups must divide the experts, and 1 ≤ topk_group ≤ n_group",
                    self.num_experts
                ),
            );
        }
        let choosable = self.num_experts / groups * top;
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > choosable {
            let k = self.num_experts_per_tok;
            return fail(
                "num_experts_per_tok",
                format!("{k} is not between 1 and the {choosable} experts a token may choose from"),
            );
        }
        if self.sigmoid && groups > 1 && self.num_experts / groups < 2 {
            return fail(
                "n_group",
                "a group's score is the sum of its two best: it must hold two experts or more".into(),
            );
        }
        positive("routed_scaling_factor", self.routed_scaling_factor)?;
        not_negative("router_aux_loss_coef", self.router_aux_loss_coef)?;
        if let Some(l) = self.dense_layers.iter().find(|&&l| l >= layers) {
            return fail("dense_layers", format!("layer {l} is not below num_hidden_layers = {layers}"));
        }
        if !self.dense_layers.is_sorted_by(|a, b| a < b) {
            return fail("dense_layers", "must be ascending, each layer once".into());
        }
        Ok(())
    }

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
