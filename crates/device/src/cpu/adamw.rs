//! AdamW (Loshchilov & Hutter 2019) in the order of operations of PyTorch: decay, moments, corrected step.

use super::bands::{TASK, bands};
use super::{Pool, Real};
use crate::AdamW;

/// One step on a flat stretch.
pub(crate) fn adamw<R: Real>(pool: &Pool, a: &AdamW, g: &[R], w: &mut [R], m: &mut [R], v: &mut [R]) {
    assert!(a.step > 0, "AdamW counts steps from 1");
    let step = a.step.min(i32::MAX as u64) as i32;
    let correct1 = 1.0 - a.beta1.powi(step);
    let correct2 = 1.0 - a.beta2.powi(step);
    let keep = R::of(1.0 - a.lr * a.weight_decay);
    let (beta1, rest1) = (R::of(a.beta1), R::of(1.0 - a.beta1));
    let (beta2, rest2) = (R::of(a.beta2), R::of(1.0 - a.beta2));
    let (size, root, eps) = (R::of(a.lr / correct1), R::of(1.0 / correct2.sqrt()), R::of(a.eps));
    let scale = R::of(a.grad_scale);
    bands(pool, g.len(), TASK, (w, m, v), |at, (w, m, v)| {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(&g[at]) {
            let g = g * scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *w = *w * keep - size * *m / (v.sqrt() * root + eps);
        }
    });
}
