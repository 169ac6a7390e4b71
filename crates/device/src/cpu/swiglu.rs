//! The gated activation (Shazeer 2020) with a weight per row: `y = w·(g·σ(g)·u)`.
//!
//! With `s = σ(g)` and `d = w·dy`: `du = d·g·s`, `dg = d·u·s·(1 + g·(1 − s))`, `dw = Σ dy·g·s·u`. The backward pass works in
//! place, since gate, up and `dy` are the widest tensors of an expert, and leaves `y` where `dy` was: it has all that `y`
//! is made of at hand, and keeping `y` from the forward pass would cost memory.

use super::bands::{bands, piece};
use super::lines::fetch_after;
use super::simd::{Isa, sigmoid, sum, versions};
use super::{Pool, Real, Stored};

/// Columns whose terms of `dw` are kept before they are added up.
const BLOCK: usize = 512;

/// `(σ(g), g·σ(g), g·σ(g)·u)`
#[inline(always)]
fn gated<R: Real, S: Isa>(g: R, u: R) -> (R, R, R) {
    let s = sigmoid::<R, S>(g);
    let silu = g * s;
    (s, silu, silu * u)
}

versions! {
    fn row<A: Stored; S>(w: A::Real, gate_up: &[A], y: &mut [A]) {
        let (gate, up) = gate_up.split_at(y.len());
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = A::narrow(w * gated::<A::Real, S>(g.widen(), u.widen()).2);
        }
    }

    /// Gradient of a row in place; the result is that of its weight.
    fn row_backward<A: Stored; S>(w: A::Real, gate_up: &mut [A], dy: &mut [A]) -> A::Real {
        let mut terms = [A::Real::ZERO; BLOCK];
        let mut dw = A::Real::ZERO;
        let (gate, up) = gate_up.split_at_mut(dy.len());
        for ((gate, up), dy) in gate.chunks_mut(BLOCK).zip(up.chunks_mut(BLOCK)).zip(dy.chunks_mut(BLOCK)) {
            let n = dy.len();
            for (((g, u), dy), term) in gate.iter_mut().zip(up).zip(dy).zip(&mut terms) {
                let (gr, ur, dr) = (g.widen(), u.widen(), dy.widen());
                let (s, silu, act) = gated::<A::Real, S>(gr, ur);
                let d = w * dr;
                *u = A::narrow(d * silu);
                *g = A::narrow(d * ur * (s * S::fma(gr, A::Real::ONE - s, A::Real::ONE)));
                *dy = A::narrow(w * act);
                *term = dr * act;
            }
            dw += sum(&terms[..n]);
        }
        dw
    }
}

/// `y = w·silu(gate)·up`; `gate_up` is `[N, 2F]`, `w` one per row, or 1.
pub(crate) fn swiglu<A: Stored>(pool: &Pool, f: usize, gate_up: &[A], w: Option<&[A::Real]>, y: &mut [A]) {
    let n = y.len().checked_div(f).unwrap_or(0);
    bands(pool, n, piece(2 * f), (y,), |at, (y,)| {
        for (i, y) in at.zip(y.chunks_exact_mut(f)) {
            let gate_up = &gate_up[i * 2 * f..(i + 1) * 2 * f];
            fetch_after(gate_up);
            row(w.map_or(A::Real::ONE, |w| w[i]), gate_up, y);
        }
    });
}

/// Gradient of [`swiglu`] in place: `gate_up` becomes its gradient and `dy` becomes `y`. `dw` has no elements if there are
/// no weights.
pub(crate) fn swiglu_backward<A: Stored>(
    pool: &Pool,
    f: usize,
    w: Option<&[A::Real]>,
    gate_up: &mut [A],
    dy: &mut [A],
    dw: &mut [A::Real],
) {
    if f == 0 {
        return dw.fill(A::Real::ZERO);
    }
    bands(pool, dy.len() / f, piece(2 * f), (gate_up, dy, dw), |at, (gate_up, dy, dw)| {
        let rows = gate_up.chunks_exact_mut(2 * f).zip(dy.chunks_exact_mut(f));
        for (i, (gate_up, dy)) in rows.enumerate() {
            fetch_after(gate_up);
            fetch_after(dy);
            let total = row_backward(w.map_or(A::Real::ONE, |w| w[at.start + i]), gate_up, dy);
            if let Some(dw) = dw.get_mut(i) {
                *dw = total;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{cpu, dot, down, fresh, up, up_as};
    use crate::{Cpu, DType, Device, Tensor};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn swiglu_matches_the_definition(
            n in 0usize..20, f in 0usize..70, size in 0.1f64..40.0, weighted: bool, seed: u64,
        ) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let x: Vec<f64> = r.values(n * 2 * f).iter().map(|x| x * size).collect();
            let w = if weighted { r.values(n) } else { vec![1.0; n] };
            let tw = weighted.then(|| up(&cpu, [n, 1], &w));
            let mut y = fresh(&cpu, [n, f]);
            cpu.swiglu(up(&cpu, [n, 2 * f], &x).view(), tw.as_ref().map(Tensor::view), y.view_mut());
            let expected: Vec<f64> = (0..n * f)
                .map(|i| {
                    let (g, u) = (x[i / f * 2 * f + i % f], x[i / f * 2 * f + f + i % f]);
                    w[i / f] * g * u * 0.5 * (1.0 + (g / 2.0).tanh())
                })
                .collect();
            assert_close("swiglu", "swiglu", DType::F64, &expected, &down(&cpu, &y));
        }

        /// What takes the place of `dy` is what the forward pass made, to the bit.
        #[test]
        fn the_backward_pass_leaves_y(n in 0usize..9, f in 0usize..40, weighted: bool, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            for dtype in [DType::F32, DType::F64, DType::Bf16] {
                let sums = Cpu::statistics(dtype);
                let mut x = up_as(&cpu, dtype, [n, 2 * f], &r.values(n * 2 * f));
                let mut dy = up_as(&cpu, dtype, [n, f], &r.values(n * f));
                let w = weighted.then(|| up_as(&cpu, sums, [n, 1], &r.values(n)));
                let mut dw = weighted.then(|| Tensor::new(&cpu, [n, 1], sums));
                let w = w.as_ref().map(Tensor::view);
                let mut y = Tensor::new(&cpu, [n, f], dtype);
                cpu.swiglu(x.view(), w, y.view_mut());
                cpu.swiglu_backward(w, x.view_mut(), dy.view_mut(), dw.as_mut().map(Tensor::view_mut));
                prop_assert_eq!(down(&cpu, &y), down(&cpu, &dy));
            }
        }
    }

    #[test]
    fn gradient() {
        // The last is wider than a block of the weight's gradient.
        for (n, f, weighted) in [(3, 19, false), (3, 19, true), (2, super::BLOCK + 5, true)] {
            let (cpu, mut r) = (cpu(), Random(2));
            let x: Vec<f64> = [r.values(n * 2 * f).iter().map(|x| 4.0 * x).collect(), r.values(n)].concat();
            let c = r.values(n * f);
            let parts = |x: &[f64]| {
                (up(&cpu, [n, 2 * f], &x[..n * 2 * f]), weighted.then(|| up(&cpu, [n, 1], &x[n * 2 * f..])))
            };
            let (mut dx, w) = parts(&x);
            let (mut dy, mut dw) = (up(&cpu, [n, f], &c), weighted.then(|| fresh(&cpu, [n, 1])));
            let into = dw.as_mut().map(Tensor::view_mut);
            cpu.swiglu_backward(w.as_ref().map(Tensor::view), dx.view_mut(), dy.view_mut(), into);
            let dw = dw.map_or(vec![0.0; n], |dw| down(&cpu, &dw));
            let mut y = fresh(&cpu, [n, f]);
            let loss = |x: &[f64]| {
                let (x, w) = parts(x);
                cpu.swiglu(x.view(), w.as_ref().map(Tensor::view), y.view_mut());
                dot(&c, &down(&cpu, &y))
            };
            assert_gradient("swiglu", loss, &x, &[down(&cpu, &dx), dw].concat());
        }
    }

    #[test]
    fn extreme_gates_stay_finite() {
        let cpu = cpu();
        let x = [-1e30, -800.0, -100.0, 100.0, 800.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0].map(|x: f64| x as f32);
        let mut x = Tensor::from_host(&cpu, [1, 12], &x);
        let mut dy = Tensor::from_host(&cpu, [1, 6], &[1f32; 6]);
        cpu.swiglu_backward(None, x.view_mut(), dy.view_mut(), None);
        let (y, dx) = (dy.view().to_f64(&cpu), x.view().to_f64(&cpu));
        assert_close("y", "swiglu", DType::F32, &[0.0, 0.0, 0.0, 100.0, 800.0, f64::from(1e30f32)], &y);
        assert_close("dgate", "swiglu", DType::F32, &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], &dx[..6]);
    }
}
