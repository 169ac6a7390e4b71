//! AdamW (Loshchilov & Hutter 2019) in the order of operations of PyTorch: decay, moments, corrected step.

use super::bands::{TASK, bands};
use super::simd::{Isa, versions};
use super::{Pool, Real};
use crate::AdamW;

/// The step's factors, in the type of the computation.
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
}

#[inline(always)]
fn one<R: Real, S: Isa>(a: Step<R>, g: R, w: &mut R, m: &mut R, v: &mut R) {
    let g = g * a.scale;
    *m = S::fma(a.beta1, *m, a.rest1 * g);
    *v = S::fma(a.beta2, *v, a.rest2 * (g * g));
    *w = *w * a.keep - a.size * *m / S::fma(v.sqrt(), a.root, a.eps);
}

versions! {
    fn update<R: Real; S>(a: Step<R>, g: &[R], w: &mut [R], m: &mut [R], v: &mut [R]) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            one::<R, S>(a, g, w, m, v);
        }
    }
}

/// One step on a flat stretch.
pub(crate) fn adamw<R: Real>(pool: &Pool, a: &AdamW, g: &[R], w: &mut [R], m: &mut [R], v: &mut [R]) {
    assert!(a.step > 0, "AdamW counts steps from 1");
    let step = a.step.min(i32::MAX as u64) as i32;
    let correct1 = 1.0 - a.beta1.powi(step);
    let correct2 = 1.0 - a.beta2.powi(step);
    let of = R::of;
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
    };
    bands(pool, g.len(), TASK, (w, m, v), |at, (w, m, v)| update(factors, &g[at], w, m, v));
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close};
    use crate::cpu::testing::{cpu, down, up};
    use crate::{AdamW, DType, Device};

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
}
