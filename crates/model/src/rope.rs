//! Rotary positions: the frequencies, and how families stretch them to read further than they were trained.
//!
//! Pair i of the R rotated columns turns by `θ^(−2i/R)` per position (Su et al. 2021). A pair that turns slowly never
//! came round in training, so beyond the trained length its angles are new to the model. The scalings slow such pairs:
//! *linear* all alike (Chen et al. 2023, "Extending context window … via positional interpolation"); *llama3* only those
//! whose wavelength is long beside the trained length (Grattafiori et al. 2024, "The Llama 3 herd of models", and Meta's
//! code); *yarn* by how often a pair turns within the trained length, with sharper attention on top (Peng et al. 2023,
//! eqs. 17–22). Where a paper leaves a choice, transformers' is taken: checkpoints are made with it.
//!
//! Everything is in f64 and rounded once, in the table. Scalings that change with the length of the prompt (dynamic,
//! longrope) are not here.

use crate::config::{Config, ConfigError, fail, not_negative, positive};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use wudao_device::{DType, Device, Tensor};

/// How rotary frequencies are scaled.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub enum RopeScaling {
    /// Every frequency divided by the factor.
    Linear {
        /// How much further than in training.
        factor: f64,
    },
    /// Low frequencies divided by the factor, high ones kept, those between blended.
    Llama3 {
        /// How much further than in training.
        factor: f64,
        /// A pair that turns less often than this within the trained length is slowed in full.
        low_freq_factor: f64,
        /// One that turns more often is kept.
        high_freq_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
    /// As Llama3, blended over the pair's number rather than its frequency; and cosines and sines multiplied by a factor.
    Yarn {
        /// How much further than in training.
        factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by, instead of what the paper recommends.
        attention_factor: Option<f64>,
        /// A pair that turns more often than this within the trained length is kept.
        beta_fast: f64,
        /// One that turns less often is slowed in full.
        beta_slow: f64,
        /// With `mscale_all_dim`: the attention factor is a ratio of two (DeepSeek-V2).
        mscale: Option<f64>,
        /// The denominator's.
        mscale_all_dim: Option<f64>,
        /// The blend begins and ends at whole pairs.
        truncate: bool,
    },
}

pub(crate) fn beta_fast() -> f64 {
    32.0
}
pub(crate) fn beta_slow() -> f64 {
    1.0
}
pub(crate) fn truncate() -> bool {
    true
}

/// [`RopeScaling`] as keys: which of them belong together is for [`TryFrom`] to say.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    rope_type: RopeType,
    factor: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    low_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_max_position_embeddings: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_fast: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_slow: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mscale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mscale_all_dim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncate: Option<bool>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RopeType {
    #[default]
    Linear,
    Llama3,
    Yarn,
}

impl TryFrom<Keys> for RopeScaling {
    type Error = String;

    fn try_from(mut keys: Keys) -> Result<Self, String> {
        let missing = |name| format!("rope_scaling: {name} is missing");
        let trained = keys.original_max_position_embeddings.take();
        let trained = || trained.ok_or_else(|| missing("original_max_position_embeddings"));
        let factor = keys.factor;
        let scaling = match keys.rope_type {
            RopeType::Linear => RopeScaling::Linear { factor },
            RopeType::Llama3 => RopeScaling::Llama3 {
                factor,
                low_freq_factor: keys.low_freq_factor.take().ok_or_else(|| missing("low_freq_factor"))?,
                high_freq_factor: keys.high_freq_factor.take().ok_or_else(|| missing("high_freq_factor"))?,
                original_max_position_embeddings: trained()?,
            },
            RopeType::Yarn => RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: trained()?,
                attention_factor: keys.attention_factor.take(),
                beta_fast: keys.beta_fast.take().unwrap_or(beta_fast()),
                beta_slow: keys.beta_slow.take().unwrap_or(beta_slow()),
                mscale: keys.mscale.take(),
                mscale_all_dim: keys.mscale_all_dim.take(),
                truncate: keys.truncate.take().unwrap_or(truncate()),
            },
        };
        // Each kind took its own keys; one that is left means nothing to it.
        let floats = [
            ("low_freq_factor", keys.low_freq_factor),
            ("high_freq_factor", keys.high_freq_factor),
            ("attention_factor", keys.attention_factor),
            ("beta_fast", keys.beta_fast),
            ("beta_slow", keys.beta_slow),
            ("mscale", keys.mscale),
            ("mscale_all_dim", keys.mscale_all_dim),
            ("truncate", keys.truncate.map(f64::from)),
        ];
        match floats.iter().find(|(_, left)| left.is_some()) {
            Some((name, _)) => Err(format!("rope_scaling: {name} means nothing to this rope_type: remove it")),
            None => Ok(scaling),
        }
    }
}

impl From<RopeScaling> for Keys {
    fn from(scaling: RopeScaling) -> Self {
        match scaling {
            RopeScaling::Linear { factor } => Keys { factor, ..Keys::default() },
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                Keys {
                    rope_type: RopeType::Llama3,
                    factor,
                    low_freq_factor: Some(low_freq_factor),
                    high_freq_factor: Some(high_freq_factor),
                    original_max_position_embeddings: Some(original_max_position_embeddings),
                    ..Keys::default()
                }
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
            } => Keys {
                rope_type: RopeType::Yarn,
                factor,
                original_max_position_embeddings: Some(original_max_position_embeddings),
                attention_factor,
                beta_fast: Some(beta_fast),
                beta_slow: Some(beta_slow),
                mscale,
                mscale_all_dim,
                truncate: (!truncate).then_some(false),
                ..Keys::default()
            },
        }
    }
}

impl RopeScaling {
    pub(crate) fn check(&self, theta: f64) -> Result<(), ConfigError> {
        let trained = |n: usize| {
            if n > 0 && n <= 1 << 30 {
                Ok(())
            } else {
                fail("original_max_position_embeddings", format!("{n} is no length"))
            }
        };
        match *self {
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor", high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let problem = format!("{high_freq_factor} must be above low_freq_factor = {low_freq_factor}");
                    return fail("high_freq_factor", problem);
                }
                trained(original_max_position_embeddings)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate: _,
            } => {
                positive("factor", factor)?;
                positive("beta_slow", beta_slow)?;
                positive("beta_fast", beta_fast)?;
                if beta_fast < beta_slow {
                    return fail("beta_fast", format!("{beta_fast} is below beta_slow = {beta_slow}"));
                }
                attention_factor.map_or(Ok(()), |x| positive("attention_factor", x))?;
                mscale.map_or(Ok(()), |x| not_negative("mscale", x))?;
                mscale_all_dim.map_or(Ok(()), |x| not_negative("mscale_all_dim", x))?;
                if theta <= 1.0 {
                    return fail("rope_theta", format!("{theta} must be above 1 for yarn: pairs must slow down"));
                }
                trained(original_max_position_embeddings)
            }
        }
    }

    /// The frequencies of `r / 2` pairs, scaled.
    fn scale(&self, plain: Vec<f64>, theta: f64, r: usize) -> Vec<f64> {
        let each = |f: &dyn Fn(usize, f64) -> f64| plain.iter().enumerate().map(|(i, &x)| f(i, x)).collect();
        // `keep` 1 keeps a frequency, 0 divides it by the factor.
        let blend = |x: f64, factor: f64, keep: f64| keep * x + (1.0 - keep) * x / factor;
        match *self {
            RopeScaling::Linear { factor } => each(&|_, x| x / factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                each(&|_, x| {
                    let turns = original_max_position_embeddings as f64 * x / TAU;
                    let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    blend(x, factor, keep.clamp(0.0, 1.0))
                })
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } => {
                // The (broken) number of the pair that turns so often within the trained length.
                let pair = |turns: f64| {
                    let length = original_max_position_embeddings as f64;
                    r as f64 * (length / (turns * TAU)).ln() / (2.0 * theta.ln())
                };
                let (mut from, mut to) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (from, to) = (from.floor(), to.ceil());
                }
                let (from, mut to) = (from.max(0.0), to.min(r as f64 - 1.0));
                if from == to {
                    to += 0.001; // as in transformers: a step, where the blend has no width
                }
                each(&|i, x| blend(x, factor, 1.0 - ((i as f64 - from) / (to - from)).clamp(0.0, 1.0)))
            }
        }
    }

    /// What cosines and sines are multiplied by; attention's scores by its square.
    pub fn attention_factor(&self) -> f64 {
        let &RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self else { return 1.0 };
        let recommended = |mscale: f64| recommended(factor, mscale);
        let given = |x: Option<f64>| x.filter(|&x| x != 0.0);
        match (attention_factor, given(mscale), given(mscale_all_dim)) {
            (Some(x), ..) => x,
            (None, Some(one), Some(all)) => recommended(one) / recommended(all),
            _ => recommended(1.0),
        }
    }

    /// What latent attention multiplies its scores by on top: yarn's factor is meant for all columns, most of which are
    /// not rotated there (DeepSeek-V2, section 3.1.4).
    pub(crate) fn latent_factor(&self) -> f64 {
        match *self {
            RopeScaling::Yarn { factor, mscale_all_dim: Some(all), .. } if all != 0.0 => {
                recommended(factor, all).powi(2)
            }
            _ => 1.0,
        }
    }
}

/// How much sharper attention should be at `factor` times the trained length (Peng et al. 2023, eq. 22), by a share.
fn recommended(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// What each pair of rotated columns turns by per position.
pub(crate) fn frequencies(config: &Config) -> Vec<f64> {
    let (r, theta) = (config.rotary_dim(), config.rope_theta);
    let plain = (0..r / 2).map(|i| theta.powf(-2.0 * i as f64 / r as f64)).collect();
    match &config.rope_scaling {
        None => plain,
        Some(scaling) => scaling.scale(plain, theta, r),
    }
}

/// Cosines, then sines, of `position · frequency` for the R/2 pairs of the rotated columns, times yarn's attention factor.
pub(crate) fn rope_table<D: Device>(device: &D, config: &Config, positions: usize, dtype: DType) -> Tensor<D> {
    let (r, frequency) = (config.rotary_dim(), frequencies(config));
    let by = config.rope_scaling.as_ref().map_or(1.0, RopeScaling::attention_factor);
    let mut table = Tensor::new(device, [positions, r], dtype);
    // In pieces: of a long context the table is large enough.
    for from in (0..positions).step_by(1024) {
        let piece = from..(from + 1024).min(positions);
        let mut wide = Vec::with_capacity(piece.len() * r);
        for p in piece.clone() {
            wide.extend(frequency.iter().map(|f| by * (p as f64 * f).cos()));
            wide.extend(frequency.iter().map(|f| by * (p as f64 * f).sin()));
        }
        let wide = Tensor::from_host(device, [piece.len(), r], &wide);
        device.copy(wide.view(), table.view_mut().rows(piece));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::families::every_family;
    use wudao_device::check::assert_close;

    fn yarn(factor: f64, original_max_position_embeddings: usize) -> RopeScaling {
        serde_json::from_value(serde_json::json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_max_position_embeddings
        }))
        .unwrap()
    }

    fn scaled(theta: f64, head_dim: usize, scaling: RopeScaling) -> Config {
        let llama = every_family().swap_remove(0).1;
        let config = Config { rope_theta: theta, head_dim, rope_scaling: Some(scaling), ..llama };
        config.check().unwrap();
        config
    }

    /// The settings of published models, every eighth of the frequencies, and the factor: `golden.py --rope`.
    fn golden() -> Vec<(&'static str, Config, f64, [f64; 8])> {
        let linear = scaled(1e4, 16, RopeScaling::Linear { factor: 8.0 });
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let (mut deepseek, mut gpt_oss) = (yarn(40.0, 4096), yarn(32.0, 4096));
        if let RopeScaling::Yarn { mscale, mscale_all_dim, .. } = &mut deepseek {
            (*mscale, *mscale_all_dim) = (Some(0.707), Some(1.0));
        }
        if let RopeScaling::Yarn { truncate, .. } = &mut gpt_oss {
            *truncate = false;
        }
        #[rustfmt::skip]
        let all = vec![
            ("linear", linear, 1.0,
                [0.125, 0.03952847, 0.0125, 0.003952847, 0.00125, 0.0003952847, 0.000125, 3.952847e-05]),
            ("llama3", scaled(5e5, 128, llama3), 1.0,
                [1.0, 0.1939228, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 1.289173e-06]),
            ("yarn", scaled(1e6, 128, yarn(4.0, 32768)), 1.13862944,
                [1.0, 0.1778279, 0.03162278, 0.005375321, 0.0006029411, 4.445699e-05, 7.905694e-06, 1.405853e-06]),
            ("yarn_mscale", scaled(1e4, 64, deepseek), 0.921042355,
                [1.0, 0.3162278, 0.1, 0.02687936, 0.0055, 0.0007905694, 2.5e-05, 7.905694e-06]),
            ("yarn_untruncated", scaled(1.5e5, 64, gpt_oss), 1.34657359,
                [1.0, 0.225418, 0.05081327, 0.006794959, 0.0004564839, 1.818834e-05, 4.099978e-06, 9.24209e-07]),
        ];
        all
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        for (name, config, factor, expected) in golden() {
            let ours = frequencies(&config);
            assert_eq!(ours.len(), config.head_dim / 2);
            let some: Vec<f64> = ours.iter().copied().step_by(ours.len() / 8).collect();
            assert_close(name, "rope frequency", DType::F32, &expected, &some);
            let ours = config.rope_scaling.unwrap().attention_factor();
            assert_close(name, "rope frequency", DType::F32, &[factor], &[ours]);
        }
    }

    #[test]
    fn a_given_attention_factor_wins_and_multiplies_the_table() {
        let mut scaling = yarn(4.0, 16);
        if let RopeScaling::Yarn { attention_factor, .. } = &mut scaling {
            *attention_factor = Some(1.5);
        }
        let device = wudao_device::Cpu::new(1);
        let table = rope_table(&device, &scaled(1e4, 8, scaling), 3, DType::F64).view().to_f64(&device);
        assert_eq!(table[..8], [1.5, 1.5, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0]);
        for row in table.chunks(8) {
            let squares: Vec<f64> = (0..4).map(|i| row[i] * row[i] + row[i + 4] * row[i + 4]).collect();
            assert_close("cos² + sin²", "rope", DType::F64, &[2.25; 4], &squares);
        }
    }

    #[test]
    fn what_no_scaling_can_be_is_named() {
        let refused = |key: &str, theta: f64, value: serde_json::Value| {
            let scaling: RopeScaling = serde_json::from_value(value).unwrap();
            assert_eq!(scaling.check(theta).unwrap_err().key, key, "{scaling:?}");
        };
        let llama3 = |low: f64, high: f64, trained: usize| {
            serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": trained})
        };
        refused("factor", 1e4, serde_json::json!({"rope_type": "linear", "factor": 0.0}));
        refused("high_freq_factor", 1e4, llama3(4.0, 4.0, 8));
        refused("original_max_position_embeddings", 1e4, llama3(1.0, 4.0, 0));
        refused("rope_theta", 1.0, serde_json::to_value(yarn(4.0, 16)).unwrap());
        let mut bad = serde_json::to_value(yarn(4.0, 16)).unwrap();
        bad["beta_fast"] = 0.5.into();
        refused("beta_fast", 1e4, bad);
    }
}
