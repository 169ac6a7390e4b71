//! The router: scores, the choice of experts, their weights, and what training wants to know about it.
//!
//! The choice is by `score + bias`, the weight by the score alone (DeepSeek-V3, section 2.1.2). With a group limit, the
//! experts of the groups that lost are out of the question, whatever their scores: this is the paper's rule. A NaN
//! loses against everything, so that a choice is K distinct experts even where the model has diverged.

use super::bands::{TASK, bands};
use super::{Pool, Real};
use crate::{Routing, Score};

/// Added to the sum of sigmoid weights before the division, as in DeepSeek-V3.
const TINY: f64 = 1e-20;

/// What [`route`] writes for its rows.
pub(crate) struct Routed<'a, R> {
    pub scores: &'a mut [R],
    pub choice: &'a mut [u32],
    pub weights: &'a mut [R],
    pub stats: &'a mut [R],
}

/// Picks the `n` best of `key`, best first, ties to the lower index, NaN last; `key` of a picked one becomes `None`.
fn pick(key: &mut [Option<f64>], n: usize, mut take: impl FnMut(usize, f64)) {
    for _ in 0..n {
        let mut best: Option<(usize, f64)> = None;
        for (i, k) in key.iter().enumerate() {
            if let Some(k) = *k
                && best.is_none_or(|(_, b)| k > b)
            {
                best = Some((i, k));
            }
        }
        let Some((i, k)) = best else { return };
        key[i] = None;
        take(i, k);
    }
}

/// NaN as the worst of all.
fn ordered(x: f64) -> Option<f64> {
    Some(if x.is_nan() { f64::NEG_INFINITY } else { x })
}

/// Leaves only the experts of the best groups.
fn limit_groups(routing: &Routing, key: &mut [Option<f64>]) {
    let size = key.len() / routing.groups;
    let mut groups: Vec<Option<f64>> = (key.chunks_exact(size))
        .map(|group| {
            let mut sum = 0.0;
            pick(&mut group.to_vec(), 2, |_, k| sum += k);
            ordered(sum)
        })
        .collect();
    let mut keep = vec![false; routing.groups];
    pick(&mut groups, routing.top_groups, |g, _| keep[g] = true);
    for (group, keep) in key.chunks_exact_mut(size).zip(keep) {
        if !keep {
            group.fill(None);
        }
    }
}

/// Scores, choices, weights and statistics of every row.
pub(crate) fn route<R: Real>(
    pool: &Pool,
    routing: &Routing,
    e: usize,
    logits: &[R],
    bias: Option<&[R]>,
    out: Routed<R>,
) {
    let k = routing.top_k;
    let rows = out.stats.len() / 2;
    let outs = (out.scores, out.choice, out.weights, out.stats);
    bands(pool, rows, (TASK / (e * (k + 4))).max(1), outs, |at, (scores, choice, weights, stats)| {
        let mut key = vec![None; e];
        for (i, t) in at.enumerate() {
            let x = &logits[t * e..(t + 1) * e];
            let s = &mut scores[i * e..(i + 1) * e];
            let max = x.iter().fold(R::NEG_INFINITY, |m, &v| if v > m { v } else { m });
            for (s, &x) in s.iter_mut().zip(x) {
                *s = (x - max).exp();
            }
            let total = super::real::sum(e, |i| s[i]);
            let lse = max + total.ln();
            match routing.score {
                Score::Softmax => s.iter_mut().for_each(|s| *s = *s / total),
                Score::Sigmoid => {
                    for (s, &x) in s.iter_mut().zip(x) {
                        *s = R::ONE / (R::ONE + (-x).exp());
                    }
                }
            }
            let total = match routing.score {
                Score::Softmax => R::ONE,
                Score::Sigmoid => super::real::sum(e, |i| s[i]),
            };
            let entropy = super::real::sum(e, |i| {
                let p = s[i] / total;
                if p > R::ZERO { -(p * p.ln()) } else { p }
            });
            stats[2 * i] = lse;
            stats[2 * i + 1] = entropy;

            for (j, key) in key.iter_mut().enumerate() {
                *key = ordered((s[j] + bias.map_or(R::ZERO, |b| b[j])).f64());
            }
            if routing.groups > 1 {
                limit_groups(routing, &mut key);
            }
            let choice = &mut choice[i * k..(i + 1) * k];
            let mut n = 0;
            pick(&mut key, k, |j, _| {
                choice[n] = j as u32;
                n += 1;
            });
            let w = &mut weights[i * k..(i + 1) * k];
            for (w, &c) in w.iter_mut().zip(&*choice) {
                *w = s[c as usize];
            }
            let factor = R::of(routing.scale) / denominator(routing, w);
            w.iter_mut().for_each(|w| *w *= factor);
        }
    });
}

/// What the chosen scores are divided by.
fn denominator<R: Real>(routing: &Routing, chosen: &[R]) -> R {
    if !routing.renormalize {
        return R::ONE;
    }
    let total = chosen.iter().fold(R::ZERO, |a, &b| a + b);
    if routing.score == Score::Sigmoid { total + R::of(TINY) } else { total }
}

/// Gradient of the weights and of the auxiliary losses with respect to the logits.
pub(crate) fn route_backward<R: Real>(
    pool: &Pool,
    routing: &Routing,
    e: usize,
    balance: &[f64],
    z: f64,
    (scores, choice, weights, stats): (&[R], &[u32], &[R], &[R]),
    dweights: &[R],
    dlogits: &mut [R],
) {
    let k = routing.top_k;
    if e == 0 {
        return;
    }
    let scale = R::of(routing.scale);
    let balance: Vec<R> =
        if balance.is_empty() { vec![R::ZERO; e] } else { balance.iter().map(|&b| R::of(b)).collect() };
    bands(pool, dlogits.len() / e, (TASK / (4 * e)).max(1), (dlogits,), |at, (dlogits,)| {
        let mut chosen = vec![R::ZERO; k];
        for (t, d) in at.zip(dlogits.chunks_exact_mut(e)) {
            let s = &scores[t * e..(t + 1) * e];
            let choice = &choice[t * k..(t + 1) * k];
            let (w, dw) = (&weights[t * k..(t + 1) * k], &dweights[t * k..(t + 1) * k]);
            d.copy_from_slice(&balance);
            for (c, &i) in chosen.iter_mut().zip(choice) {
                *c = s[i as usize];
            }
            // w = scale·s/S: dw/ds has a direct part and, through S, one that is the same for all the chosen.
            let total = denominator(routing, &chosen);
            let shared = if routing.renormalize { super::real::dot(w, dw) } else { R::ZERO };
            for (&i, &dw) in choice.iter().zip(dw) {
                d[i as usize] += (scale * dw - shared) / total;
            }
            match routing.score {
                Score::Softmax => {
                    // ∂lse/∂x = softmax, so z·lse² adds 2·z·lse inside the product with the scores.
                    let c = R::of(2.0 * z) * stats[2 * t] - super::real::dot(s, d);
                    d.iter_mut().zip(s).for_each(|(d, &s)| *d = s * (*d + c));
                }
                Score::Sigmoid => d.iter_mut().zip(s).for_each(|(d, &s)| *d *= s * (R::ONE - s)),
            }
        }
    });
}
