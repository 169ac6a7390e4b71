//! Root-mean-square norms, of rows and of attention heads (Zhang & Sennrich 2019).
//!
//! With `r = rstd`, `y = x·r·w` and `g = dy·w`: `dx = r·(g − x·r²·mean(g·x))` and `dw = Σ_rows dy·x·r`.

use super::bands::{bands, piece, reduce_rows};
use super::elementwise::accumulate;
use super::real::{dot, sum};
use super::{Pool, Real};
use crate::Heads;

fn row<R: Real>(eps: f64, x: &[R], w: &[R], y: &mut [R]) -> R {
    let rstd = R::ONE / (dot(x, x) / R::of(x.len() as f64) + R::of(eps)).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = x * rstd * w;
    }
    rstd
}

fn row_backward<R: Real>(x: &[R], w: &[R], rstd: R, dy: &[R], dx: &mut [R]) {
    let n = x.len();
    let (w, dy) = (&w[..n], &dy[..n]);
    let mean = sum(n, |i| dy[i] * w[i] * x[i]) / R::of(n as f64);
    let c = rstd * rstd * mean;
    for i in 0..n {
        dx[i] = rstd * (dy[i] * w[i] - x[i] * c);
    }
}

/// `y = x·rstd·w` per row.
pub(crate) fn rms_norm<R: Real>(pool: &Pool, eps: f64, x: &[R], w: &[R], y: &mut [R], rstd: &mut [R]) {
    let d = w.len();
    if d == 0 {
        return;
    }
    bands(pool, rstd.len(), piece(d), (y, rstd), |at, (y, rstd)| {
        let x = x[at.start * d..at.end * d].chunks_exact(d);
        for ((x, y), rstd) in x.zip(y.chunks_exact_mut(d)).zip(rstd) {
            *rstd = row(eps, x, w, y);
        }
    });
}

/// `dx` assigned, `acc_dw` accumulated.
pub(crate) fn rms_norm_backward<R: Real>(
    pool: &Pool,
    x: &[R],
    w: &[R],
    rstd: &[R],
    dy: &[R],
    dx: &mut [R],
    acc_dw: &mut [R],
) {
    let d = w.len();
    if d == 0 {
        return;
    }
    bands(pool, rstd.len(), piece(d), (dx,), |at, (dx,)| {
        for (t, dx) in at.zip(dx.chunks_exact_mut(d)) {
            row_backward(&x[t * d..][..d], w, rstd[t], &dy[t * d..][..d], dx);
        }
    });
    let dw = reduce_rows(pool, rstd.len(), piece(d), d, |rows, sum| {
        for t in rows {
            for ((s, x), dy) in sum.iter_mut().zip(&x[t * d..][..d]).zip(&dy[t * d..][..d]) {
                *s += (*x * rstd[t] * *dy).f64();
            }
        }
    });
    accumulate(&dw, acc_dw);
}

/// The norm of every query head with `wq` and every key head with `wk`; values are copied.
pub(crate) fn qk_norm<R: Real>(
    pool: &Pool,
    heads: Heads,
    eps: f64,
    x: &[R],
    wq: &[R],
    wk: &[R],
    y: &mut [R],
    rstd: &mut [R],
) {
    let (width, dim, normed) = (heads.width(), heads.dim, heads.q + heads.kv);
    if dim == 0 || normed == 0 {
        return;
    }
    bands(pool, rstd.len() / normed, piece(width), (y, rstd), |at, (y, rstd)| {
        let x = x[at.start * width..at.end * width].chunks_exact(width);
        for ((x, y), rstd) in x.zip(y.chunks_exact_mut(width)).zip(rstd.chunks_exact_mut(normed)) {
            for (h, rstd) in rstd.iter_mut().enumerate() {
                let at = h * dim..(h + 1) * dim;
                *rstd = row(eps, &x[at.clone()], if h < heads.q { wq } else { wk }, &mut y[at]);
            }
            y[normed * dim..].copy_from_slice(&x[normed * dim..]);
        }
    });
}

/// Gradient of [`qk_norm`].
pub(crate) fn qk_norm_backward<R: Real>(
    pool: &Pool,
    heads: Heads,
    x: &[R],
    wq: &[R],
    wk: &[R],
    rstd: &[R],
    dy: &[R],
    dx: &mut [R],
    acc_dwq: &mut [R],
    acc_dwk: &mut [R],
) {
    let (width, dim, normed) = (heads.width(), heads.dim, heads.q + heads.kv);
    if dim == 0 || normed == 0 {
        return;
    }
    let rows = rstd.len() / normed;
    bands(pool, rows, piece(width), (dx,), |at, (dx,)| {
        for (t, dx) in at.zip(dx.chunks_exact_mut(width)) {
            let (x, dy) = (&x[t * width..][..width], &dy[t * width..][..width]);
            for h in 0..normed {
                let at = h * dim..(h + 1) * dim;
                let w = if h < heads.q { wq } else { wk };
                row_backward(&x[at.clone()], w, rstd[t * normed + h], &dy[at.clone()], &mut dx[at]);
            }
            dx[normed * dim..].copy_from_slice(&dy[normed * dim..]);
        }
    });
    let dw = reduce_rows(pool, rows, piece(width), 2 * dim, |rows, sum| {
        for t in rows {
            let (x, dy) = (&x[t * width..][..width], &dy[t * width..][..width]);
            for h in 0..normed {
                let at = h * dim..(h + 1) * dim;
                let sum = if h < heads.q { &mut sum[..dim] } else { &mut sum[dim..] };
                for ((s, x), dy) in sum.iter_mut().zip(&x[at.clone()]).zip(&dy[at]) {
                    *s += (*x * rstd[t * normed + h] * *dy).f64();
                }
            }
        }
    });
    accumulate(&dw[..dim], acc_dwq);
    accumulate(&dw[dim..], acc_dwk);
}
