//! From logits to the next token.
//!
//! The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p, then a draw. Temperature 0 is
//! greedy, ties to the lower id. The random stream depends on the seed alone, so a completion is reproducible.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the best token always.
    pub temperature: f32,
    /// Only the best `top_k` tokens; 0 is all.
    pub top_k: usize,
    /// Only the best tokens whose probabilities sum to `top_p` (Holtzman et al. 2020); 1 is all.
    pub top_p: f32,
    /// Only tokens with at least `min_p` times the best token's probability (Nguyen et al. 2024); 0 is all.
    pub min_p: f32,
    /// Logits of tokens already in the text are divided (positive) or multiplied (negative) by this (Keskar et al. 2019); 1
    /// is off.
    pub repetition_penalty: f32,
    /// Seed of the random stream.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.8, top_k: 0, top_p: 0.95, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A setting out of its range.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{key} = {value} is out of range: it must be {range}")]
pub struct SamplingError {
    key: &'static str,
    value: f32,
    range: &'static str,
}

impl Sampling {
    /// Refuses settings out of range, naming the key.
    pub fn check(&self) -> Result<(), SamplingError> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0"),
        ];
        for (key, value, ok, range) in rules {
            if !ok || !value.is_finite() {
                return Err(SamplingError { key, value, range });
            }
        }
        Ok(())
    }
}

/// Draws tokens for one sequence.
pub struct Sampler {
    settings: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    pub fn new(settings: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(settings.seed);
        Sampler { settings, random }
    }

    /// The next token after `history`. `logits` has one entry per token; entries that are not numbers are never drawn.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> u32 {
        let s = &self.settings;
        logits.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NEG_INFINITY);
        if s.repetition_penalty != 1.0 {
            let mut seen = history.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x = if *x > 0.0 { *x / s.repetition_penalty } else { *x * s.repetition_penalty };
                }
            }
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if s.temperature == 0.0 {
            return order.into_iter().min_by(better).unwrap_or(0);
        }
        if s.top_k > 0 && s.top_k < order.len() {
            order.select_nth_unstable_by(s.top_k - 1, better);
            order.truncate(s.top_k);
        }
        order.sort_unstable_by(better);
        let best = f64::from(logits[order[0] as usize]);
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - best) / f64::from(s.temperature)).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if s.top_p < 1.0 {
            let enough = f64::from(s.top_p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let keep = weights.iter().position(|w| {
                sum += w;
                sum >= enough
            });
            weights.truncate(keep.map_or(weights.len(), |i| i + 1));
        }
        if s.min_p > 0.0 {
            let keep = weights.iter().take_while(|&&w| w >= f64::from(s.min_p)).count();
            weights.truncate(keep.max(1));
        }
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * weights.iter().sum::<f64>();
        let at = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        order[at.unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Sampling {
        Sampling { temperature: 1.0, top_p: 1.0, ..Sampling::default() }
    }

    fn draw(s: Sampling, logits: &[f32], history: &[u32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(s);
        (0..n).map(|_| sampler.sample(&mut logits.to_vec(), history)).collect()
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let n = 20_000;
        let mut counts = [0f64; 3];
        draw(settings(), &logits, &[], n).into_iter().for_each(|id| counts[id as usize] += 1.0);
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (count, &x) in counts.iter().zip(&logits) {
            let p = f64::from(x).exp() / total;
            // Five standard deviations of a binomial.
            let sigma = (p * (1.0 - p) / n as f64).sqrt();
            assert!((count / n as f64 - p).abs() < 5.0 * sigma, "{count} of {n}, expected {p}");
        }
    }

    #[test]
    fn greedy_takes_the_best_and_the_lower_of_equals() {
        let s = Sampling { temperature: 0.0, ..settings() };
        assert_eq!(draw(s.clone(), &[1.0, 5.0, 5.0, f32::NAN], &[], 3), [1, 1, 1]);
        assert_eq!(draw(Sampling { repetition_penalty: 10.0, ..s }, &[1.0, 5.0, 4.0], &[1], 1), [2]);
    }

    #[test]
    fn filters_keep_only_what_they_say() {
        let logits: Vec<f32> = [0.5f64, 0.3, 0.15, 0.05].iter().map(|p| p.ln() as f32).collect();
        let only = |s: Sampling| {
            let mut ids = draw(s, &logits, &[], 2000);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(only(Sampling { top_k: 2, ..settings() }), [0, 1]);
        assert_eq!(only(Sampling { top_p: 0.75, ..settings() }), [0, 1]);
        assert_eq!(only(Sampling { min_p: 0.2, ..settings() }), [0, 1, 2]);
        assert_eq!(only(settings()), [0, 1, 2, 3]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..settings() };
        assert_eq!(bad.check().unwrap_err().to_string(), "top_p = 0 is out of range: it must be above 0 and at most 1");
        assert!(Sampling { temperature: f32::NAN, ..settings() }.check().is_err());
        assert!(settings().check().is_ok());
    }

    proptest! {
        #[test]
        fn any_logits_give_a_token_and_the_same_seed_the_same_token(
            logits in prop::collection::vec(prop::num::f32::ANY, 1..50),
            history in prop::collection::vec(0u32..60, 0..10),
            (t, k, p, m, r) in (0f32..3.0, 0usize..60, 0.01f32..=1.0, 0f32..=1.0, 0.1f32..3.0),
            seed: u64,
        ) {
            let s = Sampling { temperature: t, top_k: k, top_p: p, min_p: m, repetition_penalty: r, seed };
            let a = draw(s.clone(), &logits, &history, 3);
            prop_assert!(a.iter().all(|&id| (id as usize) < logits.len()));
            prop_assert_eq!(a, draw(s, &logits, &history, 3));
        }
    }
}
