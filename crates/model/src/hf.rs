//! `config.json`: how each family spells what the mathematics does.
//!
//! Read are the keys that change what the model computes; a value that we do not compute (a sliding window, another
//! activation, weights quantised in a way that we do not read) is refused by name. Everything else in the file is
//! harmless and ignored. Written are the keys that transformers 4 and 5 both read, so some facts are said twice:
//! `rope_theta` and `rope_parameters`, `torch_dtype` and `dtype`, `num_experts` and `num_local_experts`.
//!
//! A family cannot spell everything: a mixtral has no dense layers, a qwen3 always norms its queries. Such a
//! configuration is refused before training, not when the checkpoint is written.

mod mla;
mod moe;
mod rope;

use crate::config::{Config, ConfigError, Family, fail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use wudao_device::DType;

const FAMILIES: &[(Family, &str, &str)] = &[
    (Family::Llama, "llama", "LlamaForCausalLM"),
    (Family::Mistral, "mistral", "MistralForCausalLM"),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM"),
    (Family::Mixtral, "mixtral", "MixtralForCausalLM"),
    (Family::Qwen2Moe, "qwen2_moe", "Qwen2MoeForCausalLM"),
    (Family::Qwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM"),
    (Family::Olmoe, "olmoe", "OlmoeForCausalLM"),
    (Family::Glm4Moe, "glm4_moe", "Glm4MoeForCausalLM"),
    (Family::DeepseekV2, "deepseek_v2", "DeepseekV2ForCausalLM"),
    (Family::DeepseekV3, "deepseek_v3", "DeepseekV3ForCausalLM"),
];

impl Family {
    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        FAMILIES.iter().find(|f| f.0 == self).map_or("", |f| f.1)
    }

    /// The family of a `model_type`.
    pub fn of_model_type(model_type: &str) -> Option<Family> {
        FAMILIES.iter().find(|f| f.1 == model_type).map(|f| f.0)
    }

    /// The class in transformers.
    pub fn architecture(self) -> &'static str {
        FAMILIES.iter().find(|f| f.0 == self).map_or("", |f| f.2)
    }

    /// Where queries have biases, attention's output has one too.
    fn biases_output(self) -> bool {
        !matches!(self, Family::Qwen2 | Family::Qwen2Moe | Family::Glm4Moe)
    }

    /// Multi-head latent attention.
    pub(crate) fn latent(self) -> bool {
        matches!(self, Family::DeepseekV2 | Family::DeepseekV3)
    }
}

/// A JSON value as an error shows it: at most a line of it.
fn shown(v: &Value) -> String {
    let s = v.to_string();
    if s.chars().count() <= 60 { s } else { s.chars().take(57).chain("...".chars()).collect() }
}

/// The object, with typed access. `null` is the same as absence, as in Python.
struct Keys(Map<String, Value>);

impl Keys {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        key: &'static str,
        want: &str,
        f: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(v) = self.get(key) else { return Ok(None) };
        f(v).map(Some).map_or_else(|| fail(key, format!("must be {want}, found {}", shown(v))), Ok)
    }

    fn count(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number, not negative", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    fn required(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.count(key)?.map_or_else(|| fail(key, "missing".into()), Ok)
    }

    fn number(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.typed(key, "a number", Value::as_f64)?.unwrap_or(default))
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A token id; some files say -1 for none. `default` holds where the key is absent, not where it is `null`.
    fn ids(&self, key: &'static str, default: &[u32]) -> Result<Vec<u32>, ConfigError> {
        if !self.0.contains_key(key) {
            return Ok(default.to_vec());
        }
        let id = |v: &Value| match v.as_i64() {
            Some(-1) => Some(None),
            n => n.and_then(|n| u32::try_from(n).ok()).map(Some),
        };
        let ids = self.typed(key, "a token id, a list of token ids, or null", |v| match v.as_array() {
            Some(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            None => id(v).map(|id| vec![id]),
        })?;
        Ok(ids.into_iter().flatten().flatten().collect())
    }

    /// Refuses a sliding window that a sequence could outgrow. In qwen's files the switch is `use_sliding_window`, and
    /// this key may keep a value that nobody reads.
    fn no_window(&self, family: Family, longest: usize) -> Result<(), ConfigError> {
        let window = match family {
            // Without the key transformers assumes one.
            Family::Mistral if !self.0.contains_key("sliding_window") => Some(4096),
            Family::Mistral | Family::Mixtral => self.count("sliding_window")?,
            _ => None,
        };
        match window.filter(|&w| w < longest) {
            Some(w) => {
                let what =
                    format!("{w} is not supported; only null is, or max_position_embeddings = {longest} and more");
                fail("sliding_window", what)
            }
            None => Ok(()),
        }
    }

    /// Refuses any value of `key` but the one that we compute.
    fn only(&self, key: &'static str, supported: &Value) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(v) if v != supported && v.as_f64().is_none_or(|x| Some(x) != supported.as_f64()) => {
                fail(key, format!("{} is not supported; only {supported} is", shown(v)))
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Reads a `config.json` and checks it. The error names the key.
    pub fn from_json(bytes: &[u8]) -> Result<Config, ConfigError> {
        let object = match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return fail("config.json", format!("must be an object, found {}", shown(&other))),
            Err(e) => return fail("config.json", format!("is not JSON: {e}")),
        };
        let keys = Keys(object);
        let known = FAMILIES.iter().map(|f| f.1).collect::<Vec<_>>().join(", ");
        let Some(model_type) = keys.typed("model_type", "a string", |v| v.as_str().map(str::to_owned))? else {
            return fail("model_type", format!("missing; supported are {known}"));
        };
        let Some(family) = Family::of_model_type(&model_type) else {
            return fail("model_type", format!("{model_type:?} is not supported; supported are {known}"));
        };
        refuse_the_unsupported(&keys)?;

        let (hidden_size, num_attention_heads) = (keys.required("hidden_size")?, keys.required("num_attention_heads")?);
        let mla = mla::read(&keys, family)?;
        let num_key_value_heads = match (keys.count("num_key_value_heads")?, family) {
            (Some(n), _) => n,
            (None, Family::Llama | Family::Olmoe | Family::DeepseekV2 | Family::DeepseekV3) => num_attention_heads,
            (None, _) => return fail("num_key_value_heads", "missing".into()),
        };
        let head_dim = match (keys.count("head_dim")?, family, &mla) {
            // The file's is the width of the rotated part.
            (_, _, Some(m)) => m.qk_nope_head_dim.saturating_add(m.qk_rope_head_dim),
            (Some(n), ..) => n,
            (None, Family::Qwen3, _) => 128,
            (None, ..) => hidden_size / num_attention_heads.max(1),
        };
        let attention_bias = match family {
            Family::Mistral | Family::Mixtral => false,
            Family::Qwen2 => true,
            Family::Qwen2Moe => keys.flag("qkv_bias", true)?,
            _ => keys.flag("attention_bias", false)?,
        };
        let max_position_embeddings = keys.required("max_position_embeddings")?;
        keys.no_window(family, max_position_embeddings)?;
        let rope = keys.rope(family, max_position_embeddings)?;
        let num_hidden_layers = keys.required("num_hidden_layers")?;
        let eps = if matches!(family, Family::Mixtral | Family::Olmoe | Family::Glm4Moe) { 1e-5 } else { 1e-6 };
        let (bos, eos, pad): (&[u32], &[u32], &[u32]) = match family {
            Family::Llama | Family::Mistral | Family::Mixtral => (&[1], &[2], &[]),
            Family::Olmoe => (&[], &[50279], &[1]),
            Family::DeepseekV2 => (&[1], &[2], &[]),
            Family::DeepseekV3 => (&[0], &[1], &[]),
            _ => (&[], &[], &[]),
        };
        let config = Config {
            family,
            vocab_size: keys.required("vocab_size")?,
            hidden_size,
            intermediate_size: keys.required("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            partial_rotary_factor: rope.share,
            rms_norm_eps: keys.number("rms_norm_eps", eps)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            attention_bias,
            attention_output_bias: attention_bias && family.biases_output(),
            qk_norm: match family {
                Family::Qwen3 | Family::Qwen3Moe | Family::Olmoe => true,
                Family::Glm4Moe => keys.flag("use_qk_norm", false)?,
                _ => false,
            },
            initializer_range: keys.number("initializer_range", 0.02)?,
            bos_token_id: keys.ids("bos_token_id", bos)?.first().copied(),
            eos_token_id: keys.ids("eos_token_id", eos)?,
            pad_token_id: keys.ids("pad_token_id", pad)?.first().copied(),
            moe: moe::read(&keys, family, num_hidden_layers)?,
            mla,
        };
        config.check()?;
        Ok(config)
    }

    /// The `config.json` of a checkpoint whose weights are stored as `dtype`.
    pub fn to_json(&self, dtype: DType) -> String {
        let name = match dtype {
            DType::Bf16 => "bfloat16",
            DType::F64 => "float64",
            DType::F32 | DType::U32 | DType::I8 => "float32",
        };
        self.to_json_as(name, None)
    }

    /// As [`Config::to_json`], with the name of the type in PyTorch, and how matrices have fewer bits.
    pub(crate) fn to_json_as(&self, dtype: &str, quantization: Option<Value>) -> String {
        let (mut rope, rope_scaling) = rope::write(self.rope_theta, self.rope_scaling.as_ref());
        let eos = match &self.eos_token_id[..] {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let mut keys: BTreeMap<&str, Value> = BTreeMap::from([
            ("architectures", json!([self.family.architecture()])),
            ("attention_dropout", json!(0.0)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("dtype", json!(dtype)),
            ("eos_token_id", eos),
            ("head_dim", json!(self.head_dim)),
            ("hidden_act", json!("silu")),
            ("hidden_size", json!(self.hidden_size)),
            ("initializer_range", json!(self.initializer_range)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("max_position_embeddings", json!(self.max_position_embeddings)),
            ("model_type", json!(self.family.model_type())),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_key_value_heads", json!(self.num_key_value_heads)),
            ("pad_token_id", json!(self.pad_token_id)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("rope_theta", json!(self.rope_theta)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("torch_dtype", json!(dtype)),
            ("use_cache", json!(true)),
            ("vocab_size", json!(self.vocab_size)),
        ]);
        match self.family {
            Family::Mistral | Family::Mixtral | Family::Qwen2 => None,
            Family::Qwen2Moe => keys.insert("qkv_bias", json!(self.attention_bias)),
            _ => keys.insert("attention_bias", json!(self.attention_bias)),
        };
        match self.family {
            Family::Llama => {
                keys.insert("mlp_bias", json!(false));
                keys.insert("pretraining_tp", json!(1));
            }
            Family::Mistral => drop(keys.insert("sliding_window", Value::Null)),
            Family::Olmoe => drop(keys.insert("clip_qkv", Value::Null)),
            Family::Mixtral => {
                keys.insert("sliding_window", Value::Null);
                keys.insert("router_jitter_noise", json!(0.0));
            }
            Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe => {
                keys.insert("sliding_window", Value::Null);
                keys.insert("use_sliding_window", json!(false));
            }
            Family::Glm4Moe => {
                rope["partial_rotary_factor"] = json!(self.partial_rotary_factor);
                keys.insert("partial_rotary_factor", json!(self.partial_rotary_factor));
                keys.insert("use_qk_norm", json!(self.qk_norm));
                // Absent means one multi-token-prediction layer.
                keys.insert("num_nextn_predict_layers", json!(0));
            }
            Family::DeepseekV2 => drop(keys.insert("mlp_bias", json!(false))),
            Family::DeepseekV3 => drop(keys.insert("num_nextn_predict_layers", json!(0))),
        }
        if let Some(m) = &self.mla {
            mla::write(self.family, m, &mut keys);
        }
        keys.insert("rope_parameters", rope);
        if let Some(scaling) = rope_scaling {
            keys.insert("rope_scaling", scaling);
        }
        if let Some(m) = &self.moe {
            moe::write(self.family, m, &mut keys);
        }
        if let Some(how) = quantization {
            keys.insert("quantization_config", how);
        }
        pretty(keys)
    }

    /// The `generation_config.json` of a checkpoint.
    pub fn generation_json(&self) -> String {
        let mut keys: BTreeMap<&str, Value> = BTreeMap::from([("_from_model_config", json!(true))]);
        if let Some(id) = self.bos_token_id {
            keys.insert("bos_token_id", json!(id));
        }
        match &self.eos_token_id[..] {
            [] => {}
            [one] => drop(keys.insert("eos_token_id", json!(one))),
            several => drop(keys.insert("eos_token_id", json!(several))),
        }
        if let Some(id) = self.pad_token_id {
            keys.insert("pad_token_id", json!(id));
        }
        pretty(keys)
    }

    /// Refuses what the family has no spelling for.
    pub(crate) fn check_family(&self) -> Result<(), ConfigError> {
        let name = self.family.model_type();
        let must = |key, holds: bool, how: &str| {
            if holds { Ok(()) } else { fail(key, format!("{name} {how}")) }
        };
        let glm = self.family == Family::Glm4Moe;
        let latent = self.family.latent();
        must(
            "mla",
            self.mla.is_some() == latent,
            if latent { "has latent attention: it needs mla" } else { "has grouped-query attention: leave mla out" },
        )?;
        match self.family {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
                must("moe", self.moe.is_none(), "is dense: leave moe out")?
            }
            _ => must("moe", self.moe.is_some(), "is sparse: it needs moe")?,
        }
        match self.family {
            Family::Qwen3 | Family::Qwen3Moe | Family::Olmoe => {
                must("qk_norm", self.qk_norm, "always norms queries and keys: true")?
            }
            Family::Glm4Moe => {}
            _ => must("qk_norm", !self.qk_norm, "has no norm on queries and keys: false")?,
        }
        match self.family {
            Family::Mistral | Family::Mixtral => must("attention_bias", !self.attention_bias, "has no biases: false")?,
            Family::Qwen2 => must("attention_bias", self.attention_bias, "always has biases: true")?,
            _ => {}
        }
        if self.family.biases_output() {
            let same = self.attention_bias == self.attention_output_bias;
            let how = "has a bias on all attention projections or on none: as attention_bias";
            must("attention_output_bias", same, how)?;
        } else {
            must("attention_output_bias", !self.attention_output_bias, "has no bias on the output: false")?;
        }
        if !glm {
            must("partial_rotary_factor", self.partial_rotary_factor == 1.0, "rotates whole heads: 1.0")?;
        }
        if self.family == Family::Olmoe {
            // The norms' widths are derived from hidden_size; keys as wide as queries are what the kernel can norm.
            let [h, g] = [self.num_attention_heads, self.num_key_value_heads];
            must("head_dim", self.head_dim * h == self.hidden_size, "has hidden_size / num_attention_heads of them")?;
            must("num_key_value_heads", g == h, "is supported with as many of them as num_attention_heads")?;
        }
        if let Some(m) = &self.mla {
            let free = self.family == Family::DeepseekV3;
            must("rope_interleave", m.rope_interleave || free, "always turns neighbouring columns: true")?;
        }
        if matches!(self.family, Family::Llama | Family::DeepseekV2) {
            let whole = self.hidden_size.is_multiple_of(self.num_attention_heads);
            must("num_attention_heads", whole, "needs a hidden_size that is a multiple of it, even with a head_dim")?;
        }
        let Some(m) = &self.moe else { return Ok(()) };
        if glm || latent {
            let prefix = m.dense_layers.iter().copied().eq(0..m.dense_layers.len());
            must("dense_layers", prefix, "has its dense layers first: 0, 1, … without a gap")?;
            must("n_shared_experts", m.n_shared_experts > 0, "always has a shared expert: 1 or more")?;
            if self.family == Family::DeepseekV2 {
                must("sigmoid", !m.sigmoid, "has a softmax router: false")?;
                return must("norm_topk_prob", !m.norm_topk_prob, "does not divide the weights by their sum: false");
            }
            must("sigmoid", m.sigmoid, "has a sigmoid router: true")?;
            let two = m.num_experts / m.n_group >= 2;
            return must("num_experts", two, "takes the two best of each group: two experts in each, or more");
        }
        must("sigmoid", !m.sigmoid, "has a softmax router: false")?;
        must("n_group", m.n_group == 1, "has no groups of experts: 1")?;
        if self.family == Family::Qwen2Moe {
            must("n_shared_experts", m.n_shared_experts > 0, "always has a shared expert: 1 or more")?;
        } else {
            must("n_shared_experts", m.n_shared_experts == 0, "has no shared expert: 0")?;
        }
        must("routed_scaling_factor", m.routed_scaling_factor == 1.0, "does not scale the weights: 1.0")?;
        if self.family == Family::Mixtral {
            must("norm_topk_prob", m.norm_topk_prob, "always divides the weights by their sum: true")?;
        }
        if matches!(self.family, Family::Mixtral | Family::Olmoe) {
            must("dense_layers", m.dense_layers.is_empty(), "is sparse in every layer: leave them out")?;
            let same = m.moe_intermediate_size == self.intermediate_size;
            must("intermediate_size", same, "calls its experts' width so: as moe_intermediate_size")?;
        }
        Ok(())
    }
}

/// As `save_pretty` writes it: keys sorted, inner ones too.
fn pretty(keys: BTreeMap<&str, Value>) -> String {
    let keys: BTreeMap<&str, Value> = (keys.into_iter())
        .map(|(key, mut value)| {
            value.sort_all_objects();
            (key, value)
        })
        .collect();
    // Maps of strings to values have no way to fail.
    serde_json::to_string_pretty(&keys).expect("JSON from JSON values") + "\n"
}

/// Weights of 8 bits that we make wide again when they are read: e4m3, a scale for each block of 128 × 128. Whatever is
/// not converted is in the file as it is.
fn is_fp8(v: &Value) -> bool {
    let says = |key: &str, only: Value| v.get(key).is_none_or(|v| v.is_null() || *v == only);
    v.get("quant_method").is_some_and(|m| m == "fp8")
        && says("weight_block_size", json!([128, 128]))
        && says("fmt", json!("e4m3"))
        && says("activation_scheme", json!("dynamic"))
        && says("expert_dtype", json!("fp8"))
}

fn refuse_the_unsupported(keys: &Keys) -> Result<(), ConfigError> {
    keys.only("hidden_act", &json!("silu"))?;
    keys.only("mlp_bias", &json!(false))?;
    keys.only("router_jitter_noise", &json!(0.0))?;
    keys.only("use_sliding_window", &json!(false))?;
    if let Some(v) = keys.get("clip_qkv") {
        return fail("clip_qkv", format!("{} is not supported; only null is", shown(v)));
    }
    if let Some(v) = keys.get("quantization_config").filter(|v| !is_fp8(v)) {
        let what = "only unquantised weights are, or \"fp8\": e4m3 in blocks of 128 x 128, activations dynamic";
        return fail("quantization_config", format!("{} is not supported; {what}", shown(v)));
    }
    let full = |v: &Value| v.as_array().is_some_and(|types| types.iter().all(|t| t == "full_attention"));
    if let Some(v) = keys.get("layer_types").filter(|v| !full(v)) {
        return fail("layer_types", format!("{} is not supported; only \"full_attention\" is", shown(v)));
    }
    Ok(())
}
