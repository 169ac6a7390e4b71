//! What optimizers do to single numbers: AdamW (Loshchilov & Hutter 2019) in the order of operations of PyTorch (decay,
//! moments, corrected step), and Nesterov's momentum; each in one pass over memory.
//!
//! Moments are kept as they are computed, or in bf16. Rounded to the nearest they would stand still: with 8 bits, a moment
//! that should change by less than a five-hundredth of itself does not change at all, and with `beta2 = 0.999` it never
//! comes down by more. So they are rounded up or down by chance, and their mean is what it would be in f32.

use super::bands::{TASK, bands, bands_sum};
use super::elementwise::squares;
use super::simd::versions;
use super::{Pool, Real, Stored};
use crate::{AdamW, Nesterov};
use half::bf16;

/// What a moment is kept in.
pub(crate) trait Kept: Stored {
    /// `x`, rounded by chance if at all: a chance of its own for each salt and each number that lies `beside` it.
    fn keep(x: Self::Real, beside: Self::Real, salt: u32) -> Self;
}
impl Kept for f32 {
    #[inline(always)]
    fn keep(x: f32, _: f32, _: u32) -> f32 {
        x
    }
}
impl Kept for f64 {
    #[inline(always)]
    fn keep(x: f64, _: f64, _: u32) -> f64 {
        x
    }
}
impl Kept for bf16 {
    /// Up with the probability that the bits cut off say, which are 16: they carry if a random number of 16 bits is added.
    /// That number is a hash of `x` and of what lies beside it, so it needs no state and does not depend on where they lie. NaN
    /// stays NaN, as in [`Stored::narrow`].
    #[inline(always)]
    fn keep(x: f32, beside: f32, salt: u32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(hash(bits ^ beside.to_bits().rotate_left(16) ^ salt) >> 16);
        let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        bf16::from_bits((kept >> 16) as u16)
    }
}

/// A number whose bits all depend on all of `x`'s, evenly: two multiplications, and shifts between them (the constants are
/// those of Wellons, "Prospecting for hash functions", 2018).
#[inline(always)]
fn hash(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The salt of a step's moment, the first or the second.
fn salt(step: u64, moment: u32) -> u32 {
    hash(hash(hash(moment) ^ step as u32) ^ (step >> 32) as u32)
}

/// AdamW's factors, in the type of the computation, and the salts of its moments.
#[derive(Clone, Copy)]
struct Step<R> {
    scale: R,
    keep: R,
    beta1: R,
    rest1: R,
    beta2: R,
    rest2: R,
    size: R,
    root: R,
    eps: R,
    salts: [u32; 2],
}

versions! {
    fn update<M: Kept; S>(a: Step<M::Real>, g: &[M::Real], w: &mut [M::Real], m: &mut [M], v: &mut [M]) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * a.scale;
            let first = S::fma(a.beta1, m.widen(), a.rest1 * g);
            let second = S::fma(a.beta2, v.widen(), a.rest2 * (g * g));
            *m = M::keep(first, *w, a.salts[0]);
            *v = M::keep(second, *w, a.salts[1]);
            *w = *w * a.keep - a.size * first / S::fma(second.sqrt(), a.root, a.eps);
        }
    }

    fn momentum<M: Kept; S>(scale: M::Real, mu: M::Real, salt: u32, g: &[M::Real], m: &mut [M], u: &mut [M::Real]) {
        for ((m, u), &g) in m.iter_mut().zip(u).zip(g) {
            let g = scale * g;
            let new = S::fma(mu, m.widen(), g);
            *u = S::fma(mu, new, g);
            *m = M::keep(new, g, salt);
        }
    }
}

/// One step on a flat stretch.
pub(crate) fn adamw<M: Kept>(pool: &Pool, a: &AdamW, g: &[M::Real], w: &mut [M::Real], m: &mut [M], v: &mut [M]) {
    assert!(a.step > 0, "AdamW counts steps from 1");
    let step = a.step.min(i32::MAX as u64) as i32;
    let correct1 = 1.0 - a.beta1.powi(step);
    let correct2 = 1.0 - a.beta2.powi(step);
    let of = M::Real::of;
    let factors = Step {
        scale: of(a.grad_scale),
        keep: of(1.0 - a.lr * a.weight_decay),
        beta1: of(a.beta1),
        rest1: of(1.0 - a.beta1),
        beta2: of(a.beta2),
        rest2: of(1.0 - a.beta2),
        size: of(a.lr / correct1),
        root: of(1.0 / correct2.sqrt()),
        eps: of(a.eps),
        salts: [1, 2].map(|moment| salt(a.step, moment)),
    };
    bands(pool, g.len(), TASK, (w, m, v), |at, (w, m, v)| update(factors, &g[at], w, m, v));
}

/// `m = scale·g + μ·m`, `u = scale·g + μ·m`, and `Σ u²` in f64.
pub(crate) fn nesterov<M: Kept>(pool: &Pool, a: &Nesterov, g: &[M::Real], m: &mut [M], u: &mut [M::Real]) -> f64 {
    let [scale, mu] = [a.grad_scale, a.momentum].map(M::Real::of);
    let salt = salt(a.step, 1);
    bands_sum(pool, g.len(), TASK, 1, (m, u), |at, (m, u), sum: &mut [f64]| {
        momentum(scale, mu, salt, &g[at], m, u);
        sum[0] = squares(u);
    })[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Random, assert_close};
    use crate::cpu::testing::{cpu, down, up};
    use crate::{DType, Device, Tensor};
    use proptest::prelude::*;

    /// The textbook form, with corrected moments written out, over several steps.
    #[test]
    fn steps_match_the_paper() {
        let (cpu, mut r, n) = (cpu(), Random(4), 37);
        let start = r.values(n);
        let gradients: Vec<Vec<f64>> = (0..5).map(|_| r.values(n)).collect();
        let (lr, beta1, beta2, eps, decay, scale): (f64, f64, f64, f64, f64, f64) = (0.02, 0.9, 0.95, 1e-8, 0.1, 0.3);
        let zeros = vec![0.0; n];
        let (mut w, mut m, mut v) = (up(&cpu, [n, 1], &start), up(&cpu, [n, 1], &zeros), up(&cpu, [n, 1], &zeros));
        for (i, g) in gradients.iter().enumerate() {
            let a = AdamW { lr, beta1, beta2, eps, weight_decay: decay, step: i as u64 + 1, grad_scale: scale };
            cpu.adamw(&a, up(&cpu, [n, 1], g).view(), w.view_mut(), m.view_mut(), v.view_mut());
        }
        let expected: Vec<f64> = (0..n)
            .map(|i| {
                let mut w = start[i];
                for step in 1..=gradients.len() {
                    // Moments as explicit weighted averages of the gradients so far.
                    let average = |beta: f64, power: i32| {
                        let terms = gradients[..step].iter().rev().enumerate();
                        (1.0 - beta)
                            * terms.map(|(age, g)| beta.powi(age as i32) * (g[i] * scale).powi(power)).sum::<f64>()
                            / (1.0 - beta.powi(step as i32))
                    };
                    w -= lr * (average(beta1, 1) / (average(beta2, 2).sqrt() + eps) + decay * w);
                }
                w
            })
            .collect();
        assert_close("weights", "adamw", DType::F64, &expected, &down(&cpu, &w));
    }

    proptest! {
        /// What is kept is one of the two neighbours, and over many steps as often the upper one as its nearness says, whatever
        /// the number and the step that they begin at: 4,096 choices of probability p are within 5 standard deviations.
        #[test]
        fn rounding_by_chance_is_right_in_the_mean(bits in 0u32..0x7f7f_0000, negative: bool, first in 1u64..1 << 40, moment in 1u32..3, beside: f32) {
            let x = f32::from_bits(bits | u32::from(negative) << 31);
            let (below, p) = (x.to_bits() >> 16, f64::from(bits & 0xffff) / 65536.0);
            let n = 4096u32;
            let mut ups = 0;
            for step in (first..).take(n as usize) {
                let kept = u32::from(bf16::keep(x, beside, salt(step, moment)).to_bits());
                prop_assert!(kept == below || kept == below + 1, "{x:e} became {:e}", f32::from_bits(kept << 16));
                ups += kept - below;
            }
            let (mean, deviation) = (f64::from(n) * p, (f64::from(n) * p * (1.0 - p)).sqrt());
            prop_assert!((f64::from(ups) - mean).abs() <= 5.0 * deviation + 1e-9, "{ups} of {n} instead of {mean}");
        }

        /// The same over many numbers in one step, whose lower bits alone differ; and over one number, beside many that do.
        #[test]
        fn neighbours_are_rounded_independently(upper in 0u32..0x7f7f, step in 1u64..1 << 40, beside: f32) {
            let (n, salt) = (1u32 << 16, salt(step, 1));
            let ups = |of: &dyn Fn(u32) -> bf16| (0..n).map(|lower| u32::from(of(lower).to_bits()) - upper).sum::<u32>();
            let [x, b] = [upper, beside.to_bits() >> 16].map(|upper| move |lower: u32| f32::from_bits(upper << 16 | lower));
            let alike = ups(&|lower| bf16::keep(x(0x4000), b(lower), salt));
            // Of one probability: 5 standard deviations.
            prop_assert!((f64::from(alike) - f64::from(n) / 4.0).abs() <= 5.0 * (f64::from(n) * 3.0 / 16.0).sqrt(), "{alike}");
            let ups = ups(&|lower| bf16::keep(x(lower), beside, salt));
            // Choices of every probability: their variances add up to n/6.
            let deviation = (f64::from(n) / 6.0).sqrt();
            prop_assert!((f64::from(ups) - f64::from(n - 1) / 2.0).abs() <= 5.0 * deviation, "{ups}");
        }
    }

    #[test]
    fn what_needs_no_rounding_stays() {
        for step in 1..100 {
            for x in [0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE] {
                assert_eq!(bf16::keep(x, 0.5, salt(step, 1)).widen().to_bits(), x.to_bits(), "{x}");
            }
            for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001] {
                assert!(bf16::keep(f32::from_bits(bits), 0.5, salt(step, 1)).widen().is_nan(), "{bits:x}");
            }
        }
        assert_ne!(salt(1, 1), salt(1, 2));
        assert_ne!(salt(1, 1), salt(1 + (1 << 32), 1));
    }

    /// The second moment of gradients of size one after a much larger one: it goes down by a thousandth of itself in each step,
    /// which rounded to the nearest bf16 is nothing. Its mean over many numbers follows f32's, and so do the weights.
    #[test]
    fn narrow_moments_follow_wide_ones() {
        let (cpu, n, steps) = (cpu(), 4096, 2000);
        let start: Vec<f32> = Random(5).values(n).iter().map(|&x| x as f32).collect();
        let run = |kept: DType| {
            let mut w = Tensor::from_host(&cpu, [n, 1], &start);
            let [mut m, mut v] = [0; 2].map(|_| Tensor::zeros(&cpu, [n, 1], kept));
            for step in 1..=steps {
                // Signs that differ between numbers and steps, so that no two of them have the same moments.
                let size = if step == 1 { 300.0f32 } else { 1.0 };
                let sign = |i: u32| if hash(i ^ salt(step, 3)) & 1 == 0 { size } else { -size };
                let g = Tensor::from_host(&cpu, [n, 1], &(0..n as u32).map(sign).collect::<Vec<_>>());
                let a =
                    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step, grad_scale: 1.0 };
                cpu.adamw(&a, g.view(), w.view_mut(), m.view_mut(), v.view_mut());
            }
            [w, m, v].map(|x| x.view().to_f64(&cpu))
        };
        let ([wide_w, _, wide_v], [w, _, v]) = (run(DType::F32), run(DType::Bf16));
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
        assert!((mean(&v) / mean(&wide_v) - 1.0).abs() < 5e-3, "{} instead of {}", mean(&v), mean(&wide_v));
        let distance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        let moved = distance(&wide_w, &start.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        assert!(distance(&w, &wide_w) < 2e-3 * moved, "{} of {moved}", distance(&w, &wide_w));
    }
}
