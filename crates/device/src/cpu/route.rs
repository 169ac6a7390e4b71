//! The router: scores, the choice of experts, their weights, and what training wants to know about it.
//!
//! The choice is by `score + bias`, the weight by the score alone (DeepSeek-V3, section 2.1.2). With a group limit, the
//! experts of the groups that lost are out of the question, whatever their scores: DeepSeek's code masks them with -∞, and
//! so does transformers by now (older versions masked with 0, which wins against a negative `score + bias`). A NaN loses
//! against everything, so that a choice is K distinct experts even where the model has diverged.

use super::bands::{TASK, bands};
use super::simd::{Baseline, dot, max, sigmoid, sum, versions};
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

/// How many of its best experts make a group's score.
fn counted(routing: &Routing) -> usize {
    match routing.score {
        Score::Softmax => 1,
        Score::Sigmoid => 2,
    }
}

/// Leaves only the experts of the best groups.
fn limit_groups(routing: &Routing, key: &mut [Option<f64>]) {
    let size = key.len() / routing.groups;
    let mut groups: Vec<Option<f64>> = (key.chunks_exact(size))
        .map(|group| {
            let mut sum = 0.0;
            pick(&mut group.to_vec(), counted(routing), |_, k| sum += k);
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

versions! {
    /// Scores of a row, the log-sum-exp of its logits, and the entropy of the scores.
    fn score_row<R, S>(score: Score, x: &[R], s: &mut [R]) -> (R, R) {
        let top = max(x);
        for (s, &x) in s.iter_mut().zip(x) {
            *s = (x - top).exp::<S>();
        }
        let total = sum(s);
        let log_total = total.ln();
        let mut entropy = R::ZERO;
        match score {
            Score::Softmax => {
                s.iter_mut().for_each(|s| *s = *s / total);
                // −ln p is the log of the total less the distance to the top, so that no score needs a logarithm.
                for (&p, &x) in s.iter().zip(x) {
                    entropy += if p == R::ZERO { R::ZERO } else { p * (log_total - (x - top)) };
                }
            }
            Score::Sigmoid => {
                s.iter_mut().zip(x).for_each(|(s, &x)| *s = sigmoid::<R, S>(x));
                let total = sum(s);
                for &s in &*s {
                    let p = s / total;
                    // 0·ln 0 is 0; NaN stays.
                    entropy += if p == R::ZERO { R::ZERO } else { -(p * p.ln()) };
                }
            }
        }
        let lse = top + log_total;
        (lse, entropy)
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
            let (lse, entropy) = score_row(routing.score, x, s);
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
            let shared = if routing.renormalize { dot::<R, Baseline>(w, dw) } else { R::ZERO };
            for (&i, &dw) in choice.iter().zip(dw) {
                d[i as usize] += (scale * dw - shared) / total;
            }
            match routing.score {
                Score::Softmax => {
                    // ∂lse/∂x = softmax, so z·lse² adds 2·z·lse inside the product with the scores.
                    let c = R::of(2.0 * z) * stats[2 * t] - dot::<R, Baseline>(s, d);
                    d.iter_mut().zip(s).for_each(|(d, &s)| *d = s * (*d + c));
                }
                Score::Sigmoid => d.iter_mut().zip(s).for_each(|(d, &s)| *d *= s * (R::ONE - s)),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{cpu, dot, down, fresh, up};
    use crate::{Cpu, DType, Device, Routing, Score, Tensor};
    use proptest::prelude::*;

    struct Out {
        scores: Tensor<Cpu>,
        choice: Tensor<Cpu>,
        weights: Tensor<Cpu>,
        stats: Tensor<Cpu>,
    }

    fn run(cpu: &Cpu, routing: &Routing, [t, e]: [usize; 2], logits: &[f64], bias: Option<&[f64]>) -> Out {
        let k = routing.top_k;
        let mut o = Out {
            scores: fresh(cpu, [t, e]),
            choice: Tensor::new(cpu, [t, k], DType::U32),
            weights: fresh(cpu, [t, k]),
            stats: fresh(cpu, [t, 2]),
        };
        let bias = bias.map(|b| up(cpu, [1, e], b));
        cpu.route(
            routing,
            up(cpu, [t, e], logits).view(),
            bias.as_ref().map(Tensor::view),
            o.scores.view_mut(),
            o.choice.view_mut(),
            o.weights.view_mut(),
            o.stats.view_mut(),
        );
        o
    }

    fn choices(cpu: &Cpu, o: &Out) -> Vec<u32> {
        o.choice.view().to_host(cpu)
    }

    const SOFTMAX: Routing =
        Routing { top_k: 2, score: Score::Softmax, renormalize: true, scale: 1.0, groups: 1, top_groups: 1 };
    const SIGMOID: Routing = Routing { score: Score::Sigmoid, scale: 2.5, ..SOFTMAX };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against sorting: all experts of the best groups, by falling key.
        #[test]
        fn routing_matches_sorting(
            t in 0usize..9, groups in 1usize..5, size in 2usize..6, limit in 1usize..5, k in 1usize..5,
            sigmoid: bool, renormalize: bool, biased: bool, coarse: bool, seed: u64,
        ) {
            let (cpu, mut r, e) = (cpu(), Random(seed), groups * size);
            let top_groups = limit.min(groups);
            let top_k = k.min(if groups == 1 { e } else { top_groups * size });
            let score = if sigmoid { Score::Sigmoid } else { Score::Softmax };
            let routing = Routing { top_k, score, renormalize, scale: 1.5, groups, top_groups };
            // Coarse logits make many ties.
            let step = if coarse { 2.0 } else { 1024.0 };
            let logits: Vec<f64> = r.values(t * e).iter().map(|x| (x * step).round() / step).collect();
            let bias: Vec<f64> = r.values(e).iter().map(|x| (x * step).round() / step - 0.5).collect();
            let bias = biased.then_some(&bias[..]);
            let o = run(&cpu, &routing, [t, e], &logits, bias);
            let scores = down(&cpu, &o.scores);
            let (mut expected_scores, mut choice, mut weights, mut stats) = (vec![], vec![], vec![], vec![]);
            for (x, got) in logits.chunks(e).zip(scores.chunks(e)) {
                let z: f64 = x.iter().map(|x| x.exp()).sum();
                let s: Vec<f64> = x.iter().map(|x| if sigmoid { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / z }).collect();
                let total: f64 = s.iter().sum();
                stats.extend([z.ln(), -s.iter().map(|s| s / total * (s / total).ln()).sum::<f64>()]);
                expected_scores.extend_from_slice(&s);
                // Ties are decided on the scores as computed.
                let key: Vec<f64> = (0..e).map(|i| got[i] + bias.map_or(0.0, |b| b[i])).collect();
                let falling = |of: &[f64]| {
                    let mut order: Vec<usize> = (0..of.len()).collect();
                    order.sort_by(|&a, &b| of[b].total_cmp(&of[a]));
                    order
                };
                let group_scores: Vec<f64> = key.chunks(size)
                    .map(|g| { let mut g = g.to_vec(); g.sort_by(|a, b| b.total_cmp(a)); if sigmoid { g[0] + g[1] } else { g[0] } })
                    .collect();
                let open = &falling(&group_scores)[..top_groups];
                let chosen: Vec<usize> = falling(&key).into_iter()
                    .filter(|i| groups == 1 || open.contains(&(i / size))).take(top_k).collect();
                let sum: f64 = if renormalize { chosen.iter().map(|&i| s[i]).sum() } else { 1.0 };
                weights.extend(chosen.iter().map(|&i| 1.5 * s[i] / sum));
                choice.extend(chosen.iter().map(|&i| i as u32));
            }
            assert_close("scores", "route", DType::F64, &expected_scores, &scores);
            prop_assert_eq!(choices(&cpu, &o), choice);
            assert_close("weights", "route", DType::F64, &weights, &down(&cpu, &o.weights));
            assert_close("stats", "route", DType::F64, &stats, &down(&cpu, &o.stats));
        }

        /// Whatever the logits, also where the model has diverged: K distinct experts in range.
        #[test]
        fn choices_are_distinct_and_in_range(sigmoid: bool, groups in 1usize..4, seed: u64) {
            let (cpu, mut r, e) = (cpu(), Random(seed), groups * 4);
            let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300, -1e300, 1.0];
            let logits: Vec<f64> = (0..8 * e).map(|_| odd[r.below(odd.len())]).collect();
            let score = if sigmoid { Score::Sigmoid } else { Score::Softmax };
            let routing = Routing { top_k: 4, score, groups, top_groups: 1, ..SOFTMAX };
            let o = run(&cpu, &routing, [8, e], &logits, None);
            for row in choices(&cpu, &o).chunks(4) {
                let mut row = row.to_vec();
                row.sort_unstable();
                row.dedup();
                prop_assert!(row.len() == 4 && row.iter().all(|&c| (c as usize) < e), "{:?}", row);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_expert_and_the_bias_only_chooses() {
        let cpu = cpu();
        let o = run(&cpu, &SOFTMAX, [1, 4], &[0.0; 4], None);
        assert_eq!(choices(&cpu, &o), [0, 1]);
        assert_close("weights", "route", DType::F64, &[0.5, 0.5], &down(&cpu, &o.weights));
        assert_close("stats", "route", DType::F64, &[4f64.ln(), 4f64.ln()], &down(&cpu, &o.stats));
        let o = run(&cpu, &SIGMOID, [1, 4], &[0.0; 4], Some(&[0.0, 0.0, 3.0, 4.0]));
        assert_eq!(choices(&cpu, &o), [3, 2]);
        assert_close("weights", "route", DType::F64, &[1.25, 1.25], &down(&cpu, &o.weights));
    }

    #[test]
    fn nan_loses_against_everything() {
        let cpu = cpu();
        let x = [f64::NAN, -3.0, 2.0, 1.0];
        assert_eq!(choices(&cpu, &run(&cpu, &SIGMOID, [1, 4], &x, None)), [2, 3]);
        let routing = Routing { groups: 2, top_groups: 1, ..SIGMOID };
        let x = [9.0, f64::NAN, -3.0, -3.0];
        assert_eq!(choices(&cpu, &run(&cpu, &routing, [1, 4], &x, None)), [2, 3]);
    }

    /// With negative keys a losing group masked to zero would win; here it is out.
    #[test]
    fn losing_groups_are_excluded_whatever_the_bias() {
        let cpu = cpu();
        let routing = Routing { groups: 2, top_groups: 1, ..SIGMOID };
        let bias = [-1.0, -1.5, -9.0, -9.0];
        assert_eq!(choices(&cpu, &run(&cpu, &routing, [1, 4], &[0.0; 4], Some(&bias))), [0, 1]);
    }

    #[test]
    fn gradients() {
        let (t, e) = (4, 6);
        for score in [Score::Softmax, Score::Sigmoid] {
            for (renormalize, groups, top_k) in [(true, 1, 2), (false, 1, 3), (true, 2, 2), (true, 1, 1), (false, 2, 6)]
            {
                let (cpu, mut r) = (cpu(), Random(top_k as u64));
                let routing = Routing { top_k, score, renormalize, scale: 1.5, groups, top_groups: groups };
                let x: Vec<f64> = r.values(t * e).iter().map(|x| 2.0 * x).collect();
                let (c, balance, bias) = (r.values(t * top_k), r.values(e), r.values(e));
                let z = if score == Score::Softmax { 0.3 } else { 0.0 };
                let loss = |x: &[f64]| {
                    let o = run(&cpu, &routing, [t, e], x, Some(&bias));
                    let (scores, stats) = (down(&cpu, &o.scores), down(&cpu, &o.stats));
                    let aux: f64 = scores.chunks(e).map(|s| dot(s, &balance)).sum();
                    let lse: f64 = stats.chunks(2).map(|s| s[0] * s[0]).sum();
                    dot(&c, &down(&cpu, &o.weights)) + aux + z * lse
                };
                let o = run(&cpu, &routing, [t, e], &x, Some(&bias));
                let (dw, mut dx) = (up(&cpu, [t, top_k], &c), fresh(&cpu, [t, e]));
                let (s, c, w, st) = (o.scores.view(), o.choice.view(), o.weights.view(), o.stats.view());
                cpu.route_backward(&routing, &balance, z, s, c, w, st, dw.view(), dx.view_mut());
                assert_gradient(&format!("{routing:?}"), loss, &x, &down(&cpu, &dx));
            }
        }
    }
}
