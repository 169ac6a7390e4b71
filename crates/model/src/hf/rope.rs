//! The rotary settings in `config.json`: `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before.

use super::{Keys, fail, shown};
use crate::config::{ConfigError, Family};
use crate::rope::{RopeScaling, beta_fast, beta_slow, truncate};
use serde_json::{Map, Value, json};

/// What a file says about rotary positions.
pub(super) struct Rope {
    pub theta: f64,
    pub share: f64,
    pub scaling: Option<RopeScaling>,
}

impl Keys {
    /// The rotary settings, old or new. Where both stand transformers takes the old object, and so do we; what it does
    /// not say is taken from the file's own keys.
    pub(super) fn rope(&self, family: Family, longest: usize) -> Result<Rope, ConfigError> {
        let mut found = None;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(v) = self.get(key) else { continue };
            let Some(object) = v.as_object() else {
                return fail(key, format!("must be an object, found {}", shown(v)));
            };
            if found.is_none() && !object.is_empty() {
                found = Some((key, Keys(object.clone())));
            }
        }
        let (key, inner) = found.unwrap_or_else(|| ("rope_parameters", Keys(Map::new())));
        let theta = if family == Family::Mixtral { 1e6 } else { 1e4 };
        let theta = inner.number("rope_theta", self.number("rope_theta", theta)?)?;
        let share = inner.number("partial_rotary_factor", self.number("partial_rotary_factor", 0.5)?)?;
        let scaling = inner.scaling(key, longest)?;
        // The other families rotate whole heads, whatever the file says.
        Ok(Rope { theta, share: if family == Family::Glm4Moe { share } else { 1.0 }, scaling })
    }

    /// This object's scaling. Errors within it name `key`, under which it stands.
    fn scaling(&self, key: &'static str, longest: usize) -> Result<Option<RopeScaling>, ConfigError> {
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        let must = |name: &'static str| match self.typed(name, "a number", Value::as_f64)? {
            Some(x) => Ok(x),
            None => fail(key, format!("{name} is missing")),
        };
        let number = |name: &'static str| self.typed(name, "a number", Value::as_f64);
        let trained = || Ok(self.count("original_max_position_embeddings")?.unwrap_or(longest));
        // In transformers these defaults stand for 0 too.
        let or = |name, default| Ok(number(name)?.filter(|&x| x != 0.0).unwrap_or(default));
        match kind.map_or(Some("default"), Value::as_str) {
            // A frequency for each kind of layer has objects inside.
            Some("default") if !self.0.values().any(Value::is_object) => Ok(None),
            Some("linear") => Ok(Some(RopeScaling::Linear { factor: must("factor")? })),
            Some("llama3") => Ok(Some(RopeScaling::Llama3 {
                factor: must("factor")?,
                low_freq_factor: must("low_freq_factor")?,
                high_freq_factor: must("high_freq_factor")?,
                original_max_position_embeddings: trained()?,
            })),
            Some("yarn") => {
                let trained = trained()?;
                Ok(Some(RopeScaling::Yarn {
                    factor: number("factor")?.unwrap_or(longest as f64 / trained as f64),
                    original_max_position_embeddings: trained,
                    attention_factor: number("attention_factor")?,
                    beta_fast: or("beta_fast", beta_fast())?,
                    beta_slow: or("beta_slow", beta_slow())?,
                    mscale: number("mscale")?,
                    mscale_all_dim: number("mscale_all_dim")?,
                    truncate: self.flag("truncate", truncate())?,
                }))
            }
            _ => {
                let it = shown(&Value::Object(self.0.clone()));
                fail(
                    key,
                    format!(
                        "{it} is not supported; only rope_type \"default\", \"linear\", \"llama3\" and \"yarn\" are"
                    ),
                )
            }
        }
    }
}

/// `rope_parameters`, and `rope_scaling` where there is one.
pub(super) fn write(theta: f64, scaling: Option<&RopeScaling>) -> (Value, Option<Value>) {
    let Some(scaling) = scaling else { return (json!({ "rope_theta": theta, "rope_type": "default" }), None) };
    // Numbers in a flat enum have no way to fail.
    let old = serde_json::to_value(scaling).expect("JSON from numbers");
    let mut new = old.clone();
    new["rope_theta"] = json!(theta);
    (new, Some(old))
}
