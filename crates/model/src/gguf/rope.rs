//! Rotary scaling, as the format spells it.
//!
//! `linear` and `yarn` are keys. What Hugging Face calls `llama3` is not a key but a tensor, `rope_freqs.weight`: what each
//! pair's frequency is divided by. The settings behind it are found again from those numbers. They are determined only
//! up to a common factor of `low_freq_factor`, `high_freq_factor` and the trained length, and by convention the first of
//! these is 1; with fewer than two pairs between the two thresholds nothing but the customary settings is tried. Whatever
//! is found must give back the tensor, or the file is refused.

use super::file::File;
use super::value::{Value, decimal};
use crate::config::Config;
use crate::rope::{RopeScaling, beta_fast, beta_slow};
use crate::weights::WeightsError;
use std::f64::consts::TAU;

/// The tensor of llama3's factors.
pub(super) const FREQUENCIES: &str = "rope_freqs.weight";

/// How far a factor may be from what the settings give, relative to it: those who write files compute in f32, where the
/// power and the blend are a few roundings of 6e-8, magnified where a pair is close to a threshold.
const NEAR: f64 = 1e-4;

/// The scaling of a file's model, whose other settings are `config`'s.
pub(super) fn read(file: &File, arch: &str, config: &Config) -> Result<Option<RopeScaling>, WeightsError> {
    let number = |key: &str| file.typed(&format!("{arch}.rope.{key}"), "a number", Value::number);
    // Absent and 0 are the same to llama.cpp.
    let given = |key: &str| Ok::<_, WeightsError>(number(key)?.filter(|&x| x != 0.0));
    let latent = config.mla.is_some();
    for key in ["scaling.alpha", "scaling.yarn_log_multiplier"] {
        if let Some(x) = given(key)?.filter(|_| !latent || key == "scaling.alpha") {
            return Err(file.wrong(&format!("{arch}.rope.{key}"), &format!("{x} is not supported; only 0 is")));
        }
    }
    let key = format!("{arch}.rope.scaling.type");
    let kind = file.typed(&key, "a text", Value::text)?.unwrap_or("linear");
    let factor = match given("scaling.factor")? {
        Some(factor) => factor,
        None => given("scale_linear")?.unwrap_or(1.0),
    };
    let keys = match kind {
        "none" => None,
        "linear" if factor == 1.0 => None,
        "linear" if latent => {
            return Err(file.wrong(&key, "\"linear\" is not supported in latent attention; \"none\" and \"yarn\" are"));
        }
        "linear" => Some(RopeScaling::Linear { factor }),
        "yarn" => {
            if let Some(x) = number("scaling.yarn_ext_factor")?.filter(|&x| x >= 0.0 && x != 1.0) {
                let key = format!("{arch}.rope.scaling.yarn_ext_factor");
                return Err(file.wrong(&key, &format!("{x} is not supported; only 1 is")));
            }
            let key = format!("{arch}.rope.scaling.original_context_length");
            let trained = file.typed(&key, "a whole number", |v| v.whole()?.try_into().ok())?;
            let stretch = given("scaling.attn_factor")?.filter(|&x| x != 1.0);
            let mscale = if latent { Some(latent_mscale(file, arch, factor, stretch)?) } else { None };
            Some(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: trained.unwrap_or(config.max_position_embeddings),
                attention_factor: stretch.map(|x| x * recommended(factor)),
                beta_fast: given("scaling.yarn_beta_fast")?.unwrap_or(beta_fast()),
                beta_slow: given("scaling.yarn_beta_slow")?.unwrap_or(beta_slow()),
                mscale,
                mscale_all_dim: mscale,
                truncate: true,
            })
        }
        other => {
            let what = format!("{other:?} is not supported; only \"none\", \"linear\" and \"yarn\" are");
            return Err(file.wrong(&key, &what));
        }
    };
    let Some(tensor) = file.tensor(FREQUENCIES).filter(|_| arch == "llama") else { return Ok(keys) };
    let fail = |problem: String| Err(WeightsError::tensor(file.path(), FREQUENCIES, problem));
    if keys.is_some() {
        return fail(format!("{key} is there too; only one of the two is supported"));
    }
    let pairs = config.rotary_dim() / 2;
    if tensor.kind != super::TensorType::F32 || tensor.dims != [pairs] {
        let (kind, dims) = (tensor.kind, &tensor.dims);
        return fail(format!("has type {kind} and shape {dims:?}, expected F32 and [{pairs}]"));
    }
    let factors =
        file.bytes(tensor).as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect::<Vec<_>>();
    match found(&factors, config) {
        Some(scaling) => Ok(scaling),
        None => fail("these frequencies are not supported; those of Hugging Face's rope_type \"llama3\" are".into()),
    }
}

/// Both of yarn's `mscale`s. In latent attention llama.cpp takes one number, a tenth of which is in the file, for the two:
/// cosines and sines are not stretched, and scores are multiplied by the square of what yarn recommends for that share, as
/// ours are ([`RopeScaling::latent_factor`]). Without the number, with a factor of attention's own or with linear scaling it
/// sharpens attention in ways in which no model was trained.
fn latent_mscale(file: &File, arch: &str, factor: f64, stretch: Option<f64>) -> Result<f64, WeightsError> {
    let no = |key: &str, what: String| Err(file.wrong(&format!("{arch}.rope.scaling.{key}"), &what));
    if let Some(x) = stretch {
        return no("attn_factor", format!("{x} is not supported in latent attention; only 1 is"));
    }
    if factor < 1.0 {
        return no("factor", format!("{factor} is not supported in latent attention; only 1 and more is"));
    }
    let key = format!("{arch}.rope.scaling.yarn_log_multiplier");
    match file.typed(&key, "a number", Value::number)?.filter(|&x| x != 0.0) {
        Some(tenth) => Ok(decimal((tenth * 10.0) as f32)),
        None => no("yarn_log_multiplier", "missing or 0, which is not supported with yarn in latent attention".into()),
    }
}

/// What yarn's cosines and sines are multiplied by if nobody says otherwise.
pub(super) fn recommended(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// What the frequency of each pair is divided by.
pub(super) fn factors(config: &Config, scaling: Option<&RopeScaling>) -> Vec<f64> {
    let with = |rope_scaling| crate::rope::frequencies(&Config { rope_scaling, ..config.clone() });
    with(None).iter().zip(with(scaling.cloned())).map(|(plain, scaled)| plain / scaled).collect()
}

/// The settings that give these factors; `Some(None)` if there is nothing to scale.
fn found(factors: &[f64], config: &Config) -> Option<Option<RopeScaling>> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    if factors.iter().any(|c| !(1.0..=factor).contains(c)) {
        return None;
    }
    if factor == 1.0 {
        return Some(None);
    }
    let llama3 = |high, trained: f64| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: high,
        original_max_position_embeddings: trained as usize,
    };
    let customary = std::iter::once(13).chain(2..=20).map(|bits| llama3(4.0, f64::from(1 << bits)));
    let fits = |scaling: &RopeScaling| {
        let ours = self::factors(config, Some(scaling));
        scaling.check(config.rope_theta).is_ok()
            && ours.iter().zip(factors).all(|(ours, theirs)| (ours - theirs).abs() <= NEAR * theirs)
    };
    let solved = solve(factors, factor, config).map(|(high, trained)| llama3(high, trained));
    customary.chain(solved).find(fits).map(Some)
}

/// `high_freq_factor` and the trained length from two pairs between the thresholds, where
/// `turns per position · length = 1 + keep · (high − 1)` and `keep` is how much of its frequency a pair keeps.
fn solve(factors: &[f64], factor: f64, config: &Config) -> Option<(f64, f64)> {
    let plain = crate::rope::frequencies(&Config { rope_scaling: None, ..config.clone() });
    let between = |&(_, &c): &(f64, &f64)| c > 1.0 + NEAR && c < factor * (1.0 - NEAR);
    let mut pairs = plain.into_iter().zip(factors).filter(between);
    let turn_and_keep = |(x, &c): (f64, &f64)| (x / TAU, (1.0 / c - 1.0 / factor) / (1.0 - 1.0 / factor));
    let (turn, keep) = turn_and_keep(pairs.next()?);
    let (other_turn, other_keep) = turn_and_keep(pairs.next_back()?);
    let ratio = other_turn / turn;
    let width = (ratio - 1.0) / (other_keep - keep * ratio);
    let trained = ((1.0 + keep * width) / turn).round();
    let high = ((1.0 + width) * 1000.0).round() / 1000.0;
    (high > 1.0 && (1.0..=(1u32 << 30) as f64).contains(&trained)).then_some((high, trained))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::families::every_family;

    #[test]
    fn settings_are_found_again_from_their_factors() {
        let config = Config { head_dim: 128, rope_theta: 5e5, ..every_family().swap_remove(0).1 };
        for (factor, low, high, trained) in
            [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 0.5, 2.0, 4096), (2.5, 1.0, 9.0, 5000)]
        {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: trained,
            };
            // As a file has them.
            let there: Vec<f64> = factors(&config, Some(&scaling)).iter().map(|&c| f64::from(c as f32)).collect();
            let expected = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high / low,
                original_max_position_embeddings: (trained as f64 / low) as usize,
            };
            assert_eq!(found(&there, &config), Some(Some(expected)));
        }
        assert_eq!(found(&[1.0; 64], &config), Some(None));
        let ramp: Vec<f64> = (0..64).map(|i| 1.0 + f64::from(i) / 10.0).collect();
        assert_eq!(found(&ramp, &config), None, "no such settings");
        assert_eq!(found(&[0.5; 64], &config), None);
        assert_eq!(found(&[f64::NAN; 64], &config), None);
    }
}
