//! The gated activation (Shazeer 2020): `y = g·σ(g)·u`.
//!
//! With `s = σ(g)`: `du = dy·g·s`, `dg = dy·u·s·(1 + g·(1 − s))`.

use super::bands::{bands, piece};
use super::simd::{sigmoid, versions};
use super::{Pool, Real};

versions! {
    fn rows<R, S>(f: usize, gate_up: &[R], y: &mut [R]) {
        for (x, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = x.split_at(f);
            for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                *y = g * sigmoid::<R, S>(g) * u;
            }
        }
    }

    fn rows_backward<R, S>(f: usize, gate_up: &[R], dy: &[R], dgate_up: &mut [R]) {
        for ((x, dy), d) in gate_up.chunks_exact(2 * f).zip(dy.chunks_exact(f)).zip(dgate_up.chunks_exact_mut(2 * f)) {
            let ((gate, up), (dgate, dup)) = (x.split_at(f), d.split_at_mut(f));
            for ((((dg, du), &g), &u), &dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
                let s = sigmoid::<R, S>(g);
                *du = dy * (g * s);
                *dg = dy * u * (s * S::fma(g, R::ONE - s, R::ONE));
            }
        }
    }
}

/// `y = silu(gate)·up`; `gate_up` is `[N, 2F]`.
pub(crate) fn swiglu<R: Real>(pool: &Pool, f: usize, gate_up: &[R], y: &mut [R]) {
    let n = y.len().checked_div(f).unwrap_or(0);
    bands(pool, n, piece(2 * f), (y,), |at, (y,)| {
        rows(f, &gate_up[at.start * 2 * f..at.end * 2 * f], y);
    });
}

/// Gradient of [`swiglu`].
pub(crate) fn swiglu_backward<R: Real>(pool: &Pool, f: usize, gate_up: &[R], dy: &[R], dgate_up: &mut [R]) {
    let n = dy.len().checked_div(f).unwrap_or(0);
    bands(pool, n, piece(2 * f), (dgate_up,), |at, (dgate_up,)| {
        rows_backward(f, &gate_up[at.start * 2 * f..at.end * 2 * f], &dy[at.start * f..at.end * f], dgate_up);
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{cpu, dot, down, fresh, up};
    use crate::{DType, Device};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn swiglu_matches_the_definition(n in 0usize..20, f in 0usize..70, size in 0.1f64..40.0, seed: u64) {
            let cpu = cpu();
            let x: Vec<f64> = Random(seed).values(n * 2 * f).iter().map(|x| x * size).collect();
            let mut y = fresh(&cpu, [n, f]);
            cpu.swiglu(up(&cpu, [n, 2 * f], &x).view(), y.view_mut());
            let expected: Vec<f64> = (0..n * f)
                .map(|i| {
                    let (g, u) = (x[i / f * 2 * f + i % f], x[i / f * 2 * f + f + i % f]);
                    g * u * 0.5 * (1.0 + (g / 2.0).tanh())
                })
                .collect();
            assert_close("swiglu", "swiglu", DType::F64, &expected, &down(&cpu, &y));
        }
    }

    #[test]
    fn gradient() {
        let (cpu, mut r, (n, f)) = (cpu(), Random(2), (3, 19));
        let x: Vec<f64> = r.values(n * 2 * f).iter().map(|x| 4.0 * x).collect();
        let c = r.values(n * f);
        let mut dx = fresh(&cpu, [n, 2 * f]);
        cpu.swiglu_backward(up(&cpu, [n, 2 * f], &x).view(), up(&cpu, [n, f], &c).view(), dx.view_mut());
        let mut y = fresh(&cpu, [n, f]);
        let loss = |x: &[f64]| {
            cpu.swiglu(up(&cpu, [n, 2 * f], x).view(), y.view_mut());
            dot(&c, &down(&cpu, &y))
        };
        assert_gradient("swiglu", loss, &x, &down(&cpu, &dx));
    }

    #[test]
    fn extreme_gates_stay_finite() {
        let cpu = cpu();
        let x = [-1e30, -800.0, -100.0, 100.0, 800.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0].map(|x: f64| x as f32);
        let x = crate::Tensor::from_host(&cpu, [1, 12], &x);
        let dy = crate::Tensor::from_host(&cpu, [1, 6], &[1f32; 6]);
        let (mut y, mut dx) =
            (crate::Tensor::new(&cpu, [1, 6], DType::F32), crate::Tensor::new(&cpu, [1, 12], DType::F32));
        cpu.swiglu(x.view(), y.view_mut());
        cpu.swiglu_backward(x.view(), dy.view(), dx.view_mut());
        let (y, dx) = (y.view().to_f64(&cpu), dx.view().to_f64(&cpu));
        assert_close("y", "swiglu", DType::F32, &[0.0, 0.0, 0.0, 100.0, 800.0, f64::from(1e30f32)], &y);
        assert_close("dgate", "swiglu", DType::F32, &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], &dx[..6]);
    }
}
