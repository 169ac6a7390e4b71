//! Kernels that look at one element at a time, and the two sums over everything.

use super::bands::{TASK, bands, piece, reduce_rows};
use super::{Pool, Real};

/// `y = c`.
pub(crate) fn fill<T: Copy + Send + Sync>(pool: &Pool, c: T, y: &mut [T]) {
    bands(pool, y.len(), TASK, (y,), |_, (y,)| y.fill(c));
}

/// `y = x`, same type.
pub(crate) fn copy<T: Copy + Send + Sync>(pool: &Pool, x: &[T], y: &mut [T]) {
    bands(pool, y.len(), TASK, (y,), |at, (y,)| y.copy_from_slice(&x[at]));
}

/// `y = convert(x)`.
pub(crate) fn convert<A: Copy + Sync, B: Send>(pool: &Pool, x: &[A], y: &mut [B], to: impl Fn(A) -> B + Sync) {
    bands(pool, y.len(), TASK, (y,), |at, (y,)| {
        for (y, x) in y.iter_mut().zip(&x[at]) {
            *y = to(*x);
        }
    });
}

/// `y = a·x + b·y`; with `b == 0` the old `y` is not read.
pub(crate) fn axpby<R: Real>(pool: &Pool, a: f64, x: &[R], b: f64, y: &mut [R]) {
    let (a, b, assign) = (R::of(a), R::of(b), b == 0.0);
    bands(pool, y.len(), TASK, (y,), |at, (y,)| {
        let x = &x[at];
        if assign {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = a * x);
        } else {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = a * x + b * *y);
        }
    });
}

/// `Σ x²` in f64.
pub(crate) fn sum_of_squares<R: Real>(pool: &Pool, x: &[R]) -> f64 {
    const LANES: usize = 16;
    reduce_rows(pool, x.len(), TASK, 1, |at, sum| {
        let mut lanes = [0.0f64; LANES];
        let chunks = x[at].chunks_exact(LANES);
        let rest = chunks.remainder();
        for c in chunks {
            for (l, v) in lanes.iter_mut().zip(c) {
                *l += v.f64() * v.f64();
            }
        }
        for (l, v) in lanes.iter_mut().zip(rest) {
            *l += v.f64() * v.f64();
        }
        sum[0] = lanes.iter().sum();
    })[0]
}

/// `Σ_rows x` per column in f64.
pub(crate) fn column_sums<R: Real>(pool: &Pool, width: usize, x: &[R]) -> Vec<f64> {
    if width == 0 {
        return Vec::new();
    }
    reduce_rows(pool, x.len() / width, piece(width), width, |rows, sum| {
        for x in x[rows.start * width..rows.end * width].chunks_exact(width) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x.f64());
        }
    })
}

/// `y += b` for every row.
pub(crate) fn add_bias<R: Real>(pool: &Pool, b: &[R], y: &mut [R]) {
    let n = b.len();
    if n == 0 {
        return;
    }
    bands(pool, y.len() / n, piece(n), (y,), |_, (y,)| {
        for y in y.chunks_exact_mut(n) {
            y.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
        }
    });
}

/// `acc += total`, rounded once.
pub(crate) fn accumulate<R: Real>(total: &[f64], acc: &mut [R]) {
    for (a, t) in acc.iter_mut().zip(total) {
        *a = R::of(a.f64() + t);
    }
}
