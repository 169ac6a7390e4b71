//! From logits to the next token.
//!
//! The order is that of Hugging Face and vLLM: logit bias, repetition penalty, frequency and presence penalty,
//! temperature, top-k, top-p, min-p, then a draw. Temperature 0 is greedy, ties to the lower id. The repetition penalty
//! looks at the whole text, the other two only at what was written after the prompt, as OpenAI defines them. The random
//! stream depends on the seed alone, so a completion is reproducible whatever else the machine does.
//!
//! [`log_probabilities`] is about the model, not about the draw: it takes the logits as they left the head.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

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
    /// Taken off the logit of every token written so far, once (OpenAI); 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logit of a token as often as it was written so far (OpenAI); 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens (OpenAI): -100 all but bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random stream.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A setting out of its range.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{key} = {value} is out of range: it must be {range}")]
pub struct SamplingError {
    /// The setting.
    pub key: &'static str,
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
            ("presence_penalty", self.presence_penalty, self.presence_penalty.abs() <= 2.0, "between -2 and 2"),
            ("frequency_penalty", self.frequency_penalty, self.frequency_penalty.abs() <= 2.0, "between -2 and 2"),
        ];
        let bias = |&(_, bias): &(u32, f32)| ("logit_bias", bias, bias.abs() <= 100.0, "between -100 and 100");
        for (key, value, ok, range) in rules.into_iter().chain(self.logit_bias.iter().map(bias)) {
            if !ok || !value.is_finite() {
                return Err(SamplingError { key, value, range });
            }
        }
        Ok(())
    }

    /// Logit bias and the three penalties.
    fn penalize(&self, logits: &mut [f32], history: &[u32], prompt: usize) {
        for &(id, bias) in &self.logit_bias {
            if let Some(x) = logits.get_mut(id as usize) {
                *x += bias;
            }
        }
        if self.repetition_penalty != 1.0 {
            for (id, _) in counted(history) {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x = if *x > 0.0 { *x / self.repetition_penalty } else { *x * self.repetition_penalty };
                }
            }
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            for (id, count) in counted(history.get(prompt..).unwrap_or_default()) {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x -= self.frequency_penalty * count as f32 + self.presence_penalty;
                }
            }
        }
    }
}

/// Each token with how often it is there.
fn counted(ids: &[u32]) -> Vec<(u32, usize)> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
}

/// The log probability of one token, and of the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// The log softmax of `logits` (before bias, penalties and temperature) at `id`, and at the `top` best tokens.
pub fn log_probabilities(logits: &[f32], id: u32, top: usize) -> Logprob {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x - best).exp()).sum();
    let log_sum = f64::from(best) + sum.ln();
    let at = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top - 1, better);
    }
    order.truncate(top);
    order.sort_unstable_by(better);
    Logprob { logprob: at(id), top: order.into_iter().map(|id| (id, at(id))).collect() }
}

/// Draws tokens for one sequence. A copy draws the same.
#[derive(Clone)]
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

    /// The next token after `history`, whose first `prompt` tokens were given and not written. `logits` has one entry per
    /// token; entries that are not numbers are never drawn.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32], prompt: usize) -> u32 {
        let s = &self.settings;
        s.penalize(logits, history, prompt);
        logits.iter_mut().for_each(|x| *x = if x.is_nan() { f32::NEG_INFINITY } else { *x });
        if s.temperature == 0.0 {
            return likeliest(logits);
        }
        let mut ranks = Ranks { order: Vec::new(), sorted: 0, logits };
        ranks.order = (0..logits.len() as u32).collect();
        let most = if s.top_k == 0 { logits.len() } else { s.top_k.min(logits.len()) };
        let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let weight = |id: u32| ((f64::from(logits[id as usize]) - best) / f64::from(s.temperature)).exp();
        let total: f64 = if most < logits.len() {
            (0..most).map(|i| weight(ranks.get(i))).sum()
        } else {
            (0..logits.len() as u32).map(weight).sum()
        };
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        // Weights are looked at from the best on, and mostly the first few decide.
        let (mut kept, mut sum) = (most, total);
        if s.top_p < 1.0 || s.min_p > 0.0 {
            let enough = if s.top_p < 1.0 { f64::from(s.top_p) * total } else { f64::INFINITY };
            (kept, sum) = (0, 0.0);
            while kept < most && sum < enough {
                let w = weight(ranks.get(kept));
                if kept > 0 && w < f64::from(s.min_p) {
                    break;
                }
                sum += w;
                kept += 1;
            }
        }
        let mut left = uniform * sum;
        let at = (0..kept).find(|&i| {
            left -= weight(ranks.get(i));
            left < 0.0
        });
        ranks.get(at.unwrap_or(0))
    }
}

/// The best token, of equals the lowest; none of the logits is NaN. The largest number is found in lanes, as vectors do it:
/// one by one, a vocabulary takes as long as a small layer.
fn likeliest(logits: &[f32]) -> u32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (whole, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for x in whole {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = larger(*lane, x);
        }
    }
    let best = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b));
    logits.iter().position(|&x| x == best).unwrap_or(0) as u32
}

/// Tokens from the best on, sorted as far as they were asked for: to sort a whole vocabulary takes longer than a small
/// model's step.
struct Ranks<'a> {
    order: Vec<u32>,
    sorted: usize,
    logits: &'a [f32],
}

impl Ranks<'_> {
    /// The best first, of equals the lower.
    fn better(&self, a: &u32, b: &u32) -> Ordering {
        self.logits[*b as usize].total_cmp(&self.logits[*a as usize]).then(a.cmp(b))
    }

    /// The token of this rank.
    fn get(&mut self, rank: usize) -> u32 {
        if rank >= self.sorted {
            let (from, to) = (self.sorted, (8 * self.sorted).max(rank + 1).max(64).min(self.order.len()));
            let mut order = std::mem::take(&mut self.order);
            let rest = &mut order[from..];
            if to - from < rest.len() {
                rest.select_nth_unstable_by(to - from - 1, |a, b| self.better(a, b));
            }
            rest[..to - from].sort_unstable_by(|a, b| self.better(a, b));
            (self.order, self.sorted) = (order, to);
        }
        self.order[rank]
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
        (0..n).map(|_| sampler.sample(&mut logits.to_vec(), history, 0)).collect()
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

    proptest! {
        #[test]
        fn the_likeliest_is_found_in_lanes(logits in prop::collection::vec(-4i8..4, 1..80)) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            prop_assert_eq!(Some(likeliest(&logits) as usize), best);
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
    fn penalties_come_in_order_and_know_the_prompt() {
        let logits = [1.0f32, -1.0, 4.0, 0.0];
        let s = Sampling {
            logit_bias: vec![(0, 1.0), (9, 5.0)],
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            ..settings()
        };
        let mut out = logits;
        // 0 and 1 are of the prompt; 0 and 2 are written, 2 twice.
        s.penalize(&mut out, &[0, 1, 2, 0, 2], 2);
        assert_eq!(out, [(1.0 + 1.0) / 2.0 - 0.75, -2.0, 4.0 / 2.0 - 1.25, 0.0]);
        let greedy = Sampling { temperature: 0.0, logit_bias: vec![(2, -100.0)], ..settings() };
        assert_eq!(draw(greedy, &logits, &[], 1), [0]);
    }

    #[test]
    fn log_probabilities_are_of_one_distribution() {
        let logits = [0.5f32, 2.0, f32::NEG_INFINITY, 2.0, 700.0, f32::NAN];
        let all = log_probabilities(&logits[..4], 0, 4);
        let sum: f64 = all.top.iter().map(|&(_, p)| f64::from(p).exp()).sum();
        // f32 log probabilities: each term is within one rounding of itself.
        assert!((sum - 1.0).abs() < f64::from(f32::EPSILON) * 4.0, "{sum}");
        assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0, 2]);
        assert!(all.top.contains(&(0, all.logprob)));
        let two = log_probabilities(&logits, 4, 2);
        assert_eq!((two.logprob, two.top[0], two.top[1].0), (0.0, (4, 0.0), 1));
        assert!(log_probabilities(&logits, 1, 0).top.is_empty());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..settings() };
        assert_eq!(bad.check().unwrap_err().to_string(), "top_p = 0 is out of range: it must be above 0 and at most 1");
        assert!(Sampling { temperature: f32::NAN, ..settings() }.check().is_err());
        assert!(settings().check().is_ok());
    }

    proptest! {
        /// Against sorting everything, with so many tokens that the ranks are sorted in several goes.
        #[test]
        fn a_lazy_order_draws_as_a_whole_one(
            n in 1usize..3000, coarse: bool, (t, k, p, m) in (0.1f32..3.0, 0usize..4000, 0.5f32..=1.3, -0.05f32..0.05), seed: u64,
        ) {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let step = if coarse { 4.0 } else { 1024.0 };
            let logits: Vec<f32> = (0..n).map(|_| ((random.next_u32() >> 16) as f32 / 8192.0 * step).round() / step).collect();
            let s = Sampling { temperature: t, top_k: k, top_p: p.min(1.0), min_p: m.max(0.0), seed, ..settings() };
            let mut order: Vec<u32> = (0..n as u32).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            order.truncate(if k == 0 { n } else { k });
            let best = f64::from(logits[order[0] as usize]);
            let weight = |id: &u32| ((f64::from(logits[*id as usize]) - best) / f64::from(t)).exp();
            let mut by_id = order.clone();
            if k == 0 || k >= n {
                by_id.sort_unstable();
            }
            let total: f64 = by_id.iter().map(weight).sum();
            let mut cut = total;
            if s.top_p < 1.0 || s.min_p > 0.0 {
                let mut sum = 0.0;
                let enough = if s.top_p < 1.0 { f64::from(s.top_p) * total } else { f64::INFINITY };
                let kept = order.iter().position(|id| {
                    let stop = sum >= enough || sum > 0.0 && weight(id) < f64::from(s.min_p);
                    sum += if stop { 0.0 } else { weight(id) };
                    stop
                });
                order.truncate(kept.unwrap_or(n));
                cut = sum;
            }
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            for drawn in draw(s, &logits, &[], 5) {
                let mut left = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * cut;
                let expected = order.iter().find(|id| {
                    left -= weight(id);
                    left < 0.0
                });
                prop_assert_eq!(drawn, *expected.unwrap_or(&order[0]));
            }
        }

        #[test]
        fn any_logits_give_a_token_and_the_same_seed_the_same_token(
            logits in prop::collection::vec(prop::num::f32::ANY, 1..50),
            history in prop::collection::vec(0u32..60, 0..10),
            (t, k, p, m, r) in (0f32..3.0, 0usize..60, 0.01f32..=1.0, 0f32..=1.0, 0.1f32..3.0),
            seed: u64,
        ) {
            let s = Sampling { temperature: t, top_k: k, top_p: p, min_p: m, repetition_penalty: r, seed, ..settings() };
            let a = draw(s.clone(), &logits, &history, 3);
            prop_assert!(a.iter().all(|&id| (id as usize) < logits.len()));
            prop_assert_eq!(a, draw(s, &logits, &history, 3));
        }
    }
}
