//! The gated activation (Shazeer 2020): `y = g·σ(g)·u`.
//!
//! With `s = σ(g)`: `du = dy·g·s`, `dg = dy·u·s·(1 + g·(1 − s))`.

use super::bands::{bands, piece};
use super::{Pool, Real};

#[inline(always)]
fn sigmoid<R: Real>(x: R) -> R {
    R::ONE / (R::ONE + (-x).exp())
}

/// `y = silu(gate)·up`; `gate_up` is `[N, 2F]`.
pub(crate) fn swiglu<R: Real>(pool: &Pool, f: usize, gate_up: &[R], y: &mut [R]) {
    if f == 0 {
        return;
    }
    bands(pool, y.len() / f, piece(2 * f), (y,), |at, (y,)| {
        for (t, y) in at.zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up[t * 2 * f..][..2 * f].split_at(f);
            for i in 0..f {
                y[i] = gate[i] * sigmoid(gate[i]) * up[i];
            }
        }
    });
}

/// Gradient of [`swiglu`].
pub(crate) fn swiglu_backward<R: Real>(pool: &Pool, f: usize, gate_up: &[R], dy: &[R], dgate_up: &mut [R]) {
    if f == 0 {
        return;
    }
    bands(pool, dy.len() / f, piece(2 * f), (dgate_up,), |at, (dgate_up,)| {
        for (t, d) in at.zip(dgate_up.chunks_exact_mut(2 * f)) {
            let (gate, up) = gate_up[t * 2 * f..][..2 * f].split_at(f);
            let (dgate, dup) = d.split_at_mut(f);
            let dy = &dy[t * f..][..f];
            for i in 0..f {
                let s = sigmoid(gate[i]);
                dup[i] = dy[i] * gate[i] * s;
                dgate[i] = dy[i] * up[i] * s * (R::ONE + gate[i] * (R::ONE - s));
            }
        }
    });
}
