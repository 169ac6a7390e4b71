//! From metadata to [`Config`], and back.
//!
//! Read are the keys that llama.cpp reads for these architectures; one that would change what the model computes, and whose
//! value we do not compute, is refused by name. Some facts are not keys but tensors that are there or not: a head of its
//! own, biases, norms on queries and keys. Some are not in a file at all, because the architecture implies them (whether
//! the chosen experts' weights are divided by their sum), and some are lost for good (how weights began).
//!
//! Written is only what llama.cpp computes as we do: where the architecture implies what a model has otherwise, the model is
//! refused, naming the setting.

use super::file::File;
use super::names::{architecture, architectures};
use super::value::Value;
use super::write::Field;
use crate::config::{Config, ConfigError, Family, MoeConfig, fail};
use crate::rope::{self, RopeScaling};
use crate::weights::WeightsError;

/// What the model of a file is.
pub(super) fn read(file: &File) -> Result<Config, WeightsError> {
    let arch = file.architecture()?;
    let keys = Keys { file, arch };
    let family = keys.family()?;
    keys.refuse_the_unsupported(family)?;
    let hidden_size = keys.required("embedding_length")?;
    let num_attention_heads = keys.required("attention.head_count")?;
    let mla = if family.latent() { Some(super::mla::read(&keys, num_attention_heads)?) } else { None };
    let head_dim = match (&mla, keys.count("attention.key_length")?) {
        (Some(m), _) => m.qk_nope_head_dim + m.qk_rope_head_dim,
        (None, Some(n)) => n,
        (None, None) => hidden_size / num_attention_heads.max(1),
    };
    let rotated = match &mla {
        // Of those columns that turn all do.
        Some(_) => head_dim,
        None => {
            keys.only("attention.value_length", head_dim)?;
            if family != Family::Glm4Moe {
                keys.only("rope.dimension_count", head_dim)?;
            }
            keys.count("rope.dimension_count")?.unwrap_or(head_dim)
        }
    };
    // Layers that predict several tokens come last; they are left out.
    let extra = if has_router_keys(family) { keys.count("nextn_predict_layers")?.unwrap_or(0) } else { 0 };
    let num_hidden_layers = keys.required("block_count")?.saturating_sub(extra);
    let has = |name: &str| file.tensor(name).is_some();
    let Some(embedding) = file.tensor("token_embd.weight") else {
        return Err(WeightsError::tensor(
            file.path(),
            "token_embd.weight",
            "missing; is it a file of a vocabulary only?",
        ));
    };
    let mut eos = vec![];
    for key in ["eos_token_id", "eot_token_id"] {
        eos.extend(token(file, key)?.filter(|id| !eos.contains(id)));
    }
    let mut config = Config {
        family,
        vocab_size: embedding.shape()[0],
        hidden_size,
        intermediate_size: keys.count("feed_forward_length")?.unwrap_or(0),
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: match &mla {
            Some(_) => num_attention_heads,
            None => keys.count("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        },
        head_dim,
        max_position_embeddings: keys.required("context_length")?,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(1e4),
        rope_scaling: None,
        partial_rotary_factor: rotated as f64 / head_dim.max(1) as f64,
        rms_norm_eps: match keys.number("attention.layer_norm_rms_epsilon")? {
            Some(eps) => eps,
            None => return Err(file.missing(&keys.full("attention.layer_norm_rms_epsilon"))),
        },
        tie_word_embeddings: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        attention_output_bias: has("blk.0.attn_output.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        initializer_range: 0.02,
        bos_token_id: token(file, "bos_token_id")?,
        eos_token_id: eos,
        pad_token_id: token(file, "padding_token_id")?,
        moe: None,
        mla,
    };
    config.moe = keys.moe(&config)?;
    let checked =
        |config: &Config| config.check().map_err(|source| WeightsError::Config { path: file.path().into(), source });
    // Its sizes must be possible before frequencies are computed from them, and its layers and experts be there before
    // anyone makes a table of their tensors.
    checked(&config)?;
    layers(file, &config)?;
    config.rope_scaling = super::rope::read(file, arch, &config)?;
    checked(&config)?;
    Ok(config)
}

/// Refuses a file that has not the layers, and in each the experts, of which its keys speak.
fn layers(file: &File, config: &Config) -> Result<(), WeightsError> {
    for l in 0..config.num_hidden_layers {
        let part = |name: &str| (format!("blk.{l}.{name}.weight"), file.tensor(&format!("blk.{l}.{name}.weight")));
        let fail = |name: &str, problem: String| Err(WeightsError::tensor(file.path(), name, problem));
        if let (name, None) = part("attn_norm") {
            return fail(&name, format!("missing, though there are {} layers", config.num_hidden_layers));
        }
        let Some(m) = config.moe_at(l) else { continue };
        match part("ffn_gate_exps") {
            (_, Some(t)) if t.shape()[0] == m.num_experts => {}
            (name, Some(t)) => {
                return fail(&name, format!("has shape {:?}, expected {} experts", t.shape(), m.num_experts));
            }
            (name, None) => {
                let old = "experts that are tensors of their own are of an old kind of file: convert the model again";
                return fail(&name, format!("missing; {old}"));
            }
        }
    }
    Ok(())
}

/// A token's id, if the file names one. Some files say −1 for none.
fn token(file: &File, key: &str) -> Result<Option<u32>, WeightsError> {
    let key = format!("tokenizer.ggml.{key}");
    let id = |v: Value| match v {
        Value::Signed(-1) => Some(None),
        v => v.whole()?.try_into().ok().map(Some),
    };
    Ok(file.typed(&key, "a token id", id)?.flatten())
}

/// The keys of an architecture.
pub(super) struct Keys<'a> {
    pub file: &'a File,
    arch: &'a str,
}

impl Keys<'_> {
    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// A count. In some models there is one for each layer, as a list; no such model is one of ours.
    pub fn count(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        self.file.typed(&self.full(key), "one whole number, not negative", |v| v.whole()?.try_into().ok())
    }

    pub fn required(&self, key: &str) -> Result<usize, WeightsError> {
        self.count(key)?.ok_or_else(|| self.file.missing(&self.full(key)))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.file.typed(&self.full(key), "a number", Value::number)
    }

    /// Refuses any value of a count but the one that we compute.
    pub fn only(&self, key: &str, supported: usize) -> Result<(), WeightsError> {
        match self.count(key)? {
            Some(n) if n != supported => {
                Err(self.file.wrong(&self.full(key), &format!("{n} is not supported; only {supported} is")))
            }
            _ => Ok(()),
        }
    }

    fn family(&self) -> Result<Family, WeightsError> {
        // A mistral cannot be told from a llama, and is none the worse for it.
        let sparse = self.count("expert_count")?.unwrap_or(0) > 0;
        Ok(match self.arch {
            "llama" if sparse => Family::Mixtral,
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "qwen2moe" => Family::Qwen2Moe,
            "qwen3moe" => Family::Qwen3Moe,
            "olmoe" => Family::Olmoe,
            "glm4moe" => Family::Glm4Moe,
            // Files from before the key was invented are of softmax routers.
            "deepseek2" => match self.count("expert_gating_func")?.unwrap_or(0) {
                0 | 1 => Family::DeepseekV2,
                2 => Family::DeepseekV3,
                n => {
                    let what = format!("{n} is not supported; only 1 (softmax) and 2 (sigmoid) are");
                    return Err(self.file.wrong(&self.full("expert_gating_func"), &what));
                }
            },
            other => {
                let what = format!("{other:?} is not supported; supported are {}", architectures());
                return Err(self.file.wrong("general.architecture", &what));
            }
        })
    }

    fn refuse_the_unsupported(&self, family: Family) -> Result<(), WeightsError> {
        debug_assert_eq!(architecture(family), Some(self.arch));
        let no = |key: &str, what: String| Err(self.file.wrong(&self.full(key), &what));
        let longest = self.required("context_length")?;
        if let Some(window) = self.count("attention.sliding_window")?.filter(|&w| w > 0 && w < longest) {
            return no(
                "attention.sliding_window",
                format!("{window} is not supported; only 0 is, or {longest} and more"),
            );
        }
        // A clamp, a scale of attention's scores, one that depends on positions, tokens that see those after them.
        for key in ["attention.clamp_kqv", "attention.scale", "attention.temperature_scale"] {
            if let Some(x) = self.number(key)?.filter(|&x| x != 0.0) {
                return no(key, format!("{x} is not supported; only 0 is"));
            }
        }
        let causal = self.file.typed(&self.full("attention.causal"), "true or false", Value::flag)?;
        if causal == Some(false) {
            return no("attention.causal", "false is not supported; only true is".into());
        }
        let sections = self.file.get(&self.full("rope.dimension_sections"));
        if sections
            .is_some_and(|v| v.array().and_then(|a| a.all(Value::whole)).is_none_or(|a| a.iter().any(|&n| n > 0)))
        {
            return no(
                "rope.dimension_sections",
                "positions of several dimensions are not supported; only text is".into(),
            );
        }
        let gating = self.count("expert_gating_func")?.filter(|&n| n != 0);
        let (ours, name) = if has_sigmoid_router(family) { (2, "sigmoid") } else { (1, "softmax") };
        if let Some(n) = gating.filter(|&n| n != ours) {
            return no("expert_gating_func", format!("{n} is not supported; only {ours} ({name}) is"));
        }
        if !has_router_keys(family) {
            let scale = self.number("expert_weights_scale")?.filter(|&x| x != 0.0 && x != 1.0);
            if let Some(x) = scale {
                return no("expert_weights_scale", format!("{x} is not supported; only 1 is"));
            }
            for key in ["expert_group_count", "nextn_predict_layers"] {
                if let Some(n) = self.count(key)?.filter(|&n| n > 1 || (n == 1 && key != "expert_group_count")) {
                    return no(key, format!("{n} is not supported; only 0 is"));
                }
            }
        }
        Ok(())
    }

    /// The sparse half.
    fn moe(&self, config: &Config) -> Result<Option<MoeConfig>, WeightsError> {
        let family = config.family;
        if matches!(family, Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3) {
            if let Some(n) = self.count("expert_count")?.filter(|&n| n > 0) {
                let what = format!("{n} is not supported in this architecture; only 0 is");
                return Err(self.file.wrong(&self.full("expert_count"), &what));
            }
            return Ok(None);
        }
        let keyed = has_router_keys(family);
        let used = self.required("expert_used_count")?;
        let wide = self.count("expert_feed_forward_length")?.filter(|&n| n > 0);
        let moe_intermediate_size = match family {
            Family::Mixtral | Family::Olmoe => config.intermediate_size,
            // As llama.cpp derives it for files that are older than the key.
            _ => wide.unwrap_or(config.intermediate_size / used.max(1)),
        };
        let n_shared_experts = match family {
            _ if keyed => self.required("expert_shared_count")?,
            Family::Qwen2Moe => {
                let shared = self.count("expert_shared_feed_forward_length")?.filter(|&n| n > 0);
                let shared = shared.unwrap_or(config.intermediate_size);
                if moe_intermediate_size == 0 || !shared.is_multiple_of(moe_intermediate_size) {
                    let what = format!(
                        "{shared} is not supported; only multiples of the experts' {moe_intermediate_size} are"
                    );
                    return Err(self.file.wrong(&self.full("expert_shared_feed_forward_length"), &what));
                }
                shared / moe_intermediate_size
            }
            _ => 0,
        };
        let dense = if keyed { self.count("leading_dense_block_count")?.unwrap_or(0) } else { 0 };
        let norm = self.file.typed(&self.full("expert_weights_norm"), "true or false", Value::flag)?;
        if norm == Some(true) && family == Family::DeepseekV2 {
            let what = "true is not supported with a softmax router; only false is";
            return Err(self.file.wrong(&self.full("expert_weights_norm"), what));
        }
        let scale = self.number("expert_weights_scale")?.filter(|&x| keyed && x != 0.0);
        let groups = |key: &str| Ok::<_, WeightsError>(self.count(key)?.filter(|&n| keyed && n > 0).unwrap_or(1));
        Ok(Some(MoeConfig {
            num_experts: self.required("expert_count")?,
            num_experts_per_tok: used,
            moe_intermediate_size,
            n_shared_experts,
            sigmoid: has_sigmoid_router(family),
            norm_topk_prob: if keyed { norm.unwrap_or(false) } else { implied_norm(family) },
            routed_scaling_factor: scale.unwrap_or(1.0),
            n_group: groups("expert_group_count")?,
            topk_group: groups("expert_group_used_count")?,
            dense_layers: (0..dense.min(config.num_hidden_layers).min(1 << 12)).collect(),
            router_aux_loss_coef: 0.0,
        }))
    }
}

/// Whether the format has keys for all of a family's router, and for layers without one. Of the others' the architecture
/// implies it.
pub(super) fn has_router_keys(family: Family) -> bool {
    family == Family::Glm4Moe || family.latent()
}

fn has_sigmoid_router(family: Family) -> bool {
    matches!(family, Family::Glm4Moe | Family::DeepseekV3)
}

/// Whether llama.cpp divides the chosen experts' weights by their sum, where that is not a key.
pub(super) fn implied_norm(family: Family) -> bool {
    matches!(family, Family::Mixtral | Family::Qwen3Moe)
}

/// What llama.cpp computes of a family: where it computes less than the family can say, the rest must be refused.
struct Limits {
    /// Queries of all heads are as wide as the stream.
    square: bool,
    /// A head that is not the embedding.
    head: bool,
}

fn limits(family: Family) -> Limits {
    match family {
        Family::Qwen2 => Limits { square: true, head: false },
        Family::Qwen2Moe | Family::Olmoe => Limits { square: true, head: true },
        _ => Limits { square: false, head: false },
    }
}

/// Whether a file of this family must have a head, even one that is the embedding.
pub(super) fn needs_head(family: Family) -> bool {
    limits(family).head
}

/// The keys that say what a model is. Refuses a model that llama.cpp does not compute, naming the setting.
pub(super) fn write(config: &Config) -> Result<Vec<(String, Field)>, ConfigError> {
    config.check()?;
    let family = config.family.model_type();
    let Some(arch) = architecture(config.family) else {
        return fail("model_type", format!("GGUF files of a {family} cannot be written here"));
    };
    let must = |key, holds: bool, how: &str| {
        if holds { Ok(()) } else { fail(key, format!("llama.cpp computes a {family} only {how}")) }
    };
    let wide = config.num_attention_heads * config.head_dim;
    let square = !limits(config.family).square || wide == config.hidden_size;
    must("head_dim", square, "with head_dim · num_attention_heads = hidden_size")?;
    let biased = !config.attention_output_bias || arch == "llama";
    must("attention_bias", biased, "without a bias on attention's output")?;
    let llama3 = matches!(config.rope_scaling, Some(RopeScaling::Llama3 { .. }));
    must("rope_scaling", !llama3 || arch == "llama", "without llama3's scaling of frequencies")?;
    let mut to = Writer { arch, fields: vec![] };
    to.fields.push(("general.architecture".into(), Field::Text(arch.into())));
    to.count("block_count", config.num_hidden_layers);
    to.count("context_length", config.max_position_embeddings);
    to.count("embedding_length", config.hidden_size);
    to.count("feed_forward_length", config.intermediate_size);
    to.count("attention.head_count", config.num_attention_heads);
    match &config.mla {
        Some(m) => super::mla::write(config, m, &mut to, must)?,
        None => {
            to.count("attention.head_count_kv", config.num_key_value_heads);
            to.count("attention.key_length", config.head_dim);
            to.count("attention.value_length", config.head_dim);
        }
    }
    to.number("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    to.count("vocab_size", config.vocab_size);
    to.count("rope.dimension_count", config.rotary_dim());
    to.number("rope.freq_base", config.rope_theta);
    match &config.rope_scaling {
        // Llama3's is a tensor.
        None | Some(RopeScaling::Llama3 { .. }) => {}
        Some(RopeScaling::Linear { factor }) => {
            must("rope_scaling", config.mla.is_none(), "with yarn")?;
            to.text("rope.scaling.type", "linear");
            to.number("rope.scaling.factor", *factor);
        }
        Some(scaling) => to.yarn(config, scaling, must)?,
    }
    if let Some(m) = &config.moe {
        to.moe(config, m, must)?;
    }
    Ok(to.fields)
}

pub(super) struct Writer {
    arch: &'static str,
    fields: Vec<(String, Field)>,
}

impl Writer {
    fn put(&mut self, key: &str, field: Field) {
        self.fields.push((format!("{}.{key}", self.arch), field));
    }
    pub fn count(&mut self, key: &str, n: usize) {
        // `Config::check` bounds all counts far below this type's.
        self.put(key, Field::Whole(n as u32));
    }
    fn number(&mut self, key: &str, x: f64) {
        self.put(key, Field::Number(x as f32));
    }
    fn text(&mut self, key: &str, text: &str) {
        self.put(key, Field::Text(text.into()));
    }

    fn yarn(
        &mut self,
        config: &Config,
        scaling: &RopeScaling,
        must: impl Fn(&'static str, bool, &str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let &RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            mscale_all_dim,
            truncate,
            ..
        } = scaling
        else {
            return Ok(());
        };
        must("rope_scaling", beta_fast == rope::beta_fast() && beta_slow == rope::beta_slow(), "with betas 32 and 1")?;
        must("rope_scaling", truncate, "with yarn's blend between whole pairs")?;
        self.text("rope.scaling.type", "yarn");
        self.number("rope.scaling.factor", factor);
        self.count("rope.scaling.original_context_length", original_max_position_embeddings);
        self.number("rope.scaling.yarn_beta_fast", beta_fast);
        self.number("rope.scaling.yarn_beta_slow", beta_slow);
        if config.mla.is_some() {
            // See `rope::latent_mscale`.
            let plain = (scaling.attention_factor() - 1.0).abs() <= f64::from(f32::EPSILON) && factor >= 1.0;
            let share = mscale_all_dim.filter(|&x| x != 0.0);
            must("rope_scaling", plain && share.is_some(), "with yarn's mscale = mscale_all_dim, and that not 0")?;
            share.into_iter().for_each(|x| self.number("rope.scaling.yarn_log_multiplier", 0.1 * x));
            return Ok(());
        }
        // llama.cpp multiplies what it recommends by this.
        let stretch = scaling.attention_factor() / super::rope::recommended(factor);
        if (stretch - 1.0).abs() > f64::from(f32::EPSILON) {
            self.number("rope.scaling.attn_factor", stretch);
        }
        Ok(())
    }

    fn moe(
        &mut self,
        config: &Config,
        m: &MoeConfig,
        must: impl Fn(&'static str, bool, &str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        self.count("expert_count", m.num_experts);
        self.count("expert_used_count", m.num_experts_per_tok);
        self.count("expert_feed_forward_length", m.moe_intermediate_size);
        if config.family == Family::Qwen2Moe {
            self.count("expert_shared_feed_forward_length", m.n_shared_experts * m.moe_intermediate_size);
        }
        if !has_router_keys(config.family) {
            let implied = implied_norm(config.family);
            must("norm_topk_prob", m.norm_topk_prob == implied, &format!("with {implied}"))?;
            return must("dense_layers", m.dense_layers.is_empty(), "with experts in every layer");
        }
        self.count("expert_shared_count", m.n_shared_experts);
        self.count("leading_dense_block_count", m.dense_layers.len());
        self.count("expert_gating_func", if m.sigmoid { 2 } else { 1 });
        self.number("expert_weights_scale", m.routed_scaling_factor);
        self.put("expert_weights_norm", Field::Flag(m.norm_topk_prob));
        // Choosing from all groups is choosing from one, and llama.cpp wants it said so.
        if m.topk_group < m.n_group {
            must("n_group", m.n_group < m.num_experts, "with groups of several experts")?;
            must("n_group", m.sigmoid, "with groups judged by their two best experts")?;
            self.count("expert_group_count", m.n_group);
            self.count("expert_group_used_count", m.topk_group);
        }
        Ok(())
    }
}
