//! Root-mean-square norms, of rows and of attention heads (Zhang & Sennrich 2019).
//!
//! With `r = rstd`, `y = x·r·w` and `g = dy·w`: `dx = r·(g − x·r²·mean(g·x))` and `dw = Σ_rows dy·x·r`.

use super::bands::{bands, bands_sum, piece};
use super::elementwise::accumulate;
use super::lines::{Rows, away, fetch_after};
use super::rope::Turn;
use super::simd::{Isa, fold, fold3, join, versions};
use super::{Pool, Real, Stored};
use crate::Heads;

#[inline(always)]
fn row<R: Real, X: Stored<Real = R>, Y: Stored<Real = R>, S: Isa>(eps: f64, x: &[X], w: &[R], y: &mut [Y]) -> R {
    let add = |sum, x: X| S::fma(x.widen(), x.widen(), sum);
    let squares = join(fold(x, R::ZERO, add), |a, b| a + b);
    let rstd = R::ONE / (squares / R::of(x.len() as f64) + R::of(eps)).sqrt();
    for ((y, x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = Y::narrow(x.widen() * rstd * w);
    }
    rstd
}

/// Gives `dx` of a row, element by element, to `put`; its part of `dw` is added to `dw`, which may be in another place for
/// every head.
#[inline(always)]
fn row_backward<R: Real, X: Stored<Real = R>, Y: Stored<Real = R>, S: Isa>(
    x: &[X],
    w: &[R],
    rstd: R,
    dy: &[Y],
    dx: &mut [X],
    dw: &mut [R],
    put: impl Fn(&mut X, R),
) {
    let add = |sum, dy: Y, w: R, x: X| S::fma(dy.widen() * w, x.widen(), sum);
    let total = join(fold3(dy, w, x, R::ZERO, add), |a, b| a + b);
    let c = rstd * rstd * (total / R::of(x.len() as f64));
    for ((((dx, dw), x), &w), dy) in dx.iter_mut().zip(dw).zip(x).zip(w).zip(dy) {
        let (x, dy) = (x.widen(), dy.widen());
        put(dx, rstd * (dy * w - x * c));
        *dw = S::fma(x * rstd, dy, *dw);
    }
}

versions! {
    fn rms_rows<A: Stored; S>(eps: f64, x: &[A::Real], w: &[A::Real], y: &mut Rows<A>, rstd: &mut [A::Real]) {
        for (x, rstd) in x.chunks_exact(w.len()).zip(rstd) {
            fetch_after(x);
            *rstd = row::<_, _, _, S>(eps, x, w, y.next());
        }
    }

    fn rms_rows_backward<A: Stored; S>(
        x: &[A::Real], w: &[A::Real], rstd: &[A::Real], dy: &[A], acc_dx: &mut [A::Real], dw: &mut [A::Real],
    ) {
        let d = w.len();
        let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(acc_dx.chunks_exact_mut(d));
        for (((x, dy), dx), &rstd) in rows.zip(rstd) {
            row_backward::<_, _, _, S>(x, w, rstd, dy, dx, dw, |dx, d| *dx += d);
        }
    }

    /// Rows from `first` on. What is normed turns before it is rounded.
    fn qk_rows<A: Stored; S>(
        heads: Heads, eps: f64, first: usize, x: &[A], wq: &[A::Real], wk: &[A::Real], turn: &Turn<A::Real>, y: &mut Rows<A>,
        rstd: &mut [A::Real],
    ) {
        let (width, dim, normed) = (heads.width(), heads.dim, heads.q + heads.kv);
        let mut row_y = vec![A::Real::ZERO; normed * dim];
        for (i, (x, rstd)) in x.chunks_exact(width).zip(rstd.chunks_exact_mut(normed)).enumerate() {
            fetch_after(x);
            let (heads_x, values) = x.split_at(normed * dim);
            let pairs = heads_x.chunks_exact(dim).zip(row_y.chunks_exact_mut(dim));
            for (h, ((x, y), rstd)) in pairs.zip(rstd).enumerate() {
                *rstd = row::<_, _, _, S>(eps, x, if h < heads.q { wq } else { wk }, y);
            }
            turn.row(first + i, &mut row_y);
            let (heads_y, copies) = y.next().split_at_mut(normed * dim);
            heads_y.iter_mut().zip(&row_y).for_each(|(y, &x)| *y = A::narrow(x));
            copies.copy_from_slice(values);
        }
    }

    fn qk_rows_backward<A: Stored; S>(
        heads: Heads, first: usize, x: &[A], wq: &[A::Real], wk: &[A::Real], rstd: &[A::Real], turn: &Turn<A::Real>,
        dy: &[A], dx: &mut Rows<A>, dw: &mut [A::Real],
    ) {
        let (width, dim, normed) = (heads.width(), heads.dim, heads.q + heads.kv);
        let (dwq, dwk) = dw.split_at_mut(dim);
        let mut row_dy = vec![A::Real::ZERO; normed * dim];
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for (i, ((x, dy), rstd)) in rows.zip(rstd.chunks_exact(normed)).enumerate() {
            row_dy.iter_mut().zip(dy).for_each(|(to, dy)| *to = dy.widen());
            turn.row(first + i, &mut row_dy);
            let dx = dx.next();
            for (h, &rstd) in rstd.iter().enumerate() {
                let at = h * dim..(h + 1) * dim;
                let (x, dy, dx) = (&x[at.clone()], &row_dy[at.clone()], &mut dx[at]);
                let (w, dw) = if h < heads.q { (wq, &mut *dwq) } else { (wk, &mut *dwk) };
                row_backward::<_, _, _, S>(x, w, rstd, dy, dx, dw, |dx, d| *dx = A::narrow(d));
            }
            dx[normed * dim..].copy_from_slice(&dy[normed * dim..]);
        }
    }
}

/// `y = x·rstd·w` per row.
pub(crate) fn rms_norm<A: Stored>(
    pool: &Pool,
    eps: f64,
    x: &[A::Real],
    w: &[A::Real],
    y: &mut [A],
    rstd: &mut [A::Real],
) {
    let d = w.len();
    if d == 0 {
        return rstd.fill(A::Real::of(1.0 / eps.sqrt()));
    }
    let away = away(size_of_val(y));
    bands(pool, rstd.len(), piece(d), (y, rstd), |at, (y, rstd)| {
        rms_rows(eps, &x[at.start * d..at.end * d], w, &mut Rows::new(y, d, away), rstd);
    });
}

/// `acc_dx` and `acc_dw` accumulated.
pub(crate) fn rms_norm_backward<A: Stored>(
    pool: &Pool,
    x: &[A::Real],
    w: &[A::Real],
    rstd: &[A::Real],
    dy: &[A],
    acc_dx: &mut [A::Real],
    acc_dw: &mut [A::Real],
) {
    let d = w.len();
    let dw = bands_sum(pool, rstd.len(), piece(d), d, (acc_dx,), |at, (acc_dx,), dw| {
        let elements = at.start * d..at.end * d;
        rms_rows_backward(&x[elements.clone()], w, &rstd[at], &dy[elements], acc_dx, dw);
    });
    accumulate(&dw, acc_dw);
}

/// The norm of every query head with `wq` and every key head with `wk`; values are copied.
pub(crate) fn qk_norm<A: Stored>(
    pool: &Pool,
    heads: Heads,
    eps: f64,
    x: &[A],
    wq: &[A::Real],
    wk: &[A::Real],
    turn: &Turn<A::Real>,
    y: &mut [A],
    rstd: &mut [A::Real],
) {
    let (width, away) = (heads.width(), away(size_of_val(y)));
    bands(pool, x.len() / width, piece(width), (y, rstd), |at, (y, rstd)| {
        let y = &mut Rows::new(y, width, away);
        qk_rows(heads, eps, at.start, &x[at.start * width..at.end * width], wq, wk, turn, y, rstd);
    });
}

/// Gradient of [`qk_norm`].
pub(crate) fn qk_norm_backward<A: Stored>(
    pool: &Pool,
    heads: Heads,
    x: &[A],
    wq: &[A::Real],
    wk: &[A::Real],
    rstd: &[A::Real],
    turn: &Turn<A::Real>,
    dy: &[A],
    dx: &mut [A],
    acc_dwq: &mut [A::Real],
    acc_dwk: &mut [A::Real],
) {
    let (width, dim, normed) = (heads.width(), heads.dim, heads.q + heads.kv);
    let away = away(size_of_val(dx));
    let dw = bands_sum(pool, x.len() / width, piece(width), 2 * dim, (dx,), |at, (dx,), dw| {
        let elements = at.start * width..at.end * width;
        let rstd = &rstd[at.start * normed..at.end * normed];
        let dx = &mut Rows::new(dx, width, away);
        qk_rows_backward(heads, at.start, &x[elements.clone()], wq, wk, rstd, turn, &dy[elements], dx, dw);
    });
    accumulate(&dw[..dim], acc_dwq);
    accumulate(&dw[dim..], acc_dwk);
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{added, cpu, dot, down, fresh, up};
    use crate::{Cpu, DType, Device, Heads, Rotation, Tensor};
    use proptest::prelude::*;

    const EPS: f64 = 1e-3;

    /// Numbers for a rotation of so many columns in seven positions.
    fn table(cpu: &Cpu, columns: usize, r: &mut Random) -> Tensor<Cpu> {
        up(cpu, [7, columns], &r.values(7 * columns))
    }

    /// One normed row and its factor, by the definition.
    fn plain(x: &[f64], w: &[f64]) -> (Vec<f64>, f64) {
        let rms = (x.iter().map(|x| x.powi(2)).sum::<f64>() / x.len() as f64 + EPS).sqrt();
        (x.iter().zip(w).map(|(x, w)| w * (x / rms)).collect(), 1.0 / rms)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn rms_norm_matches_the_definition(n in 0usize..20, d in 1usize..70, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let (x, w) = (r.values(n * d), r.values(d));
            let (mut y, mut rstd) = (fresh(&cpu, [n, d]), fresh(&cpu, [n, 1]));
            cpu.rms_norm(EPS, up(&cpu, [n, d], &x).view(), up(&cpu, [1, d], &w).view(), y.view_mut(), rstd.view_mut());
            let (rows, factors): (Vec<_>, Vec<_>) = x.chunks(d).map(|x| plain(x, &w)).unzip();
            assert_close("y", "rms_norm", DType::F64, &rows.concat(), &down(&cpu, &y));
            assert_close("rstd", "rms_norm", DType::F64, &factors, &down(&cpu, &rstd));
        }

        /// What is normed then turns, as though by itself; the heads that turn are halves of those that are normed.
        #[test]
        fn qk_norm_norms_queries_and_keys_alone(n in 0usize..6, kv in 1usize..4, group in 1usize..4, half in 1usize..10, seed: u64) {
            let (cpu, mut r, dim) = (cpu(), Random(seed), 2 * half);
            let heads = Heads { q: kv * group, kv, dim };
            let table = table(&cpu, half / 2 * 2, &mut r);
            let positions: Vec<u32> = (0..n).map(|_| r.below(7) as u32).collect();
            let turning = Heads { q: 2 * heads.q, kv: 2 * kv, dim: half };
            let by = Rotation { heads: turning, table: table.view(), positions: &positions };
            let width = heads.width();
            let (x, wq, wk) = (r.values(n * width), r.values(dim), r.values(dim));
            let (mut y, mut rstd) = (fresh(&cpu, [n, width]), fresh(&cpu, [n, heads.q + kv]));
            let (tx, tq, tk) = (up(&cpu, [n, width], &x), up(&cpu, [1, dim], &wq), up(&cpu, [1, dim], &wk));
            cpu.qk_norm(heads, EPS, tx.view(), tq.view(), tk.view(), &by, y.view_mut(), rstd.view_mut());
            let (mut rows, mut factors) = (Vec::new(), Vec::new());
            for (i, head) in x.chunks(dim).enumerate() {
                let h = i % (heads.q + 2 * kv);
                if h >= heads.q + kv {
                    rows.extend_from_slice(head);
                } else {
                    let (row, factor) = plain(head, if h < heads.q { &wq } else { &wk });
                    rows.extend(row);
                    factors.push(factor);
                }
            }
            let mut turned = up(&cpu, [n, width], &rows);
            cpu.rope(&by, false, turned.view_mut());
            assert_close("y", "qk_norm", DType::F64, &down(&cpu, &turned), &down(&cpu, &y));
            assert_close("rstd", "qk_norm", DType::F64, &factors, &down(&cpu, &rstd));
        }
    }

    #[test]
    fn gradients() {
        for (n, d) in [(4, 5), (3, 33)] {
            let (cpu, mut r) = (cpu(), Random(d as u64));
            let (x, c, start) = (r.values(n * d + d), r.values(n * d), r.values(n * d + d));
            let parts = |x: &[f64]| (up(&cpu, [n, d], &x[..n * d]), up(&cpu, [1, d], &x[n * d..]));
            let (mut y, mut rstd) = (fresh(&cpu, [n, d]), fresh(&cpu, [n, 1]));
            let (tx, w) = parts(&x);
            cpu.rms_norm(EPS, tx.view(), w.view(), y.view_mut(), rstd.view_mut());
            let (mut dx, mut dw) = parts(&start);
            let dy = up(&cpu, [n, d], &c);
            cpu.rms_norm_backward(tx.view(), w.view(), rstd.view(), dy.view(), dx.view_mut(), dw.view_mut());
            let analytic = added(&start, &[down(&cpu, &dx), down(&cpu, &dw)].concat());
            let loss = |x: &[f64]| {
                let (x, w) = parts(x);
                cpu.rms_norm(EPS, x.view(), w.view(), y.view_mut(), rstd.view_mut());
                dot(&c, &down(&cpu, &y))
            };
            assert_gradient("rms_norm", loss, &x, &analytic);
        }
    }

    #[test]
    fn gradients_by_head() {
        for heads in [Heads { q: 2, kv: 2, dim: 4 }, Heads { q: 4, kv: 2, dim: 3 }] {
            let (cpu, mut r, n) = (cpu(), Random(9), 3);
            let (width, dim) = (heads.width(), heads.dim);
            let (x, c, start) = (r.values(n * width + 2 * dim), r.values(n * width), r.values(dim));
            let parts = |x: &[f64]| {
                let (x, w) = x.split_at(n * width);
                (up(&cpu, [n, width], x), up(&cpu, [1, dim], &w[..dim]), up(&cpu, [1, dim], &w[dim..]))
            };
            let (mut y, mut rstd) = (fresh(&cpu, [n, width]), fresh(&cpu, [n, heads.q + heads.kv]));
            let (tx, wq, wk) = parts(&x);
            let table = table(&cpu, 2, &mut r);
            let by = Rotation { heads, table: table.view(), positions: &[3, 0, 6] };
            cpu.qk_norm(heads, EPS, tx.view(), wq.view(), wk.view(), &by, y.view_mut(), rstd.view_mut());
            let mut dx = fresh(&cpu, [n, width]);
            let (mut dwq, mut dwk) = (up(&cpu, [1, dim], &start), up(&cpu, [1, dim], &start));
            let (dy, rs) = (up(&cpu, [n, width], &c), rstd.view());
            let (dq, dk) = (dwq.view_mut(), dwk.view_mut());
            let (gq, gk, dy) = (wq.view(), wk.view(), dy.view());
            cpu.qk_norm_backward(heads, tx.view(), gq, gk, rs, &by, dy, dx.view_mut(), dq, dk);
            let dw = [added(&start, &down(&cpu, &dwq)), added(&start, &down(&cpu, &dwk))].concat();
            let analytic = [down(&cpu, &dx), dw].concat();
            let loss = |x: &[f64]| {
                let (x, wq, wk) = parts(x);
                cpu.qk_norm(heads, EPS, x.view(), wq.view(), wk.view(), &by, y.view_mut(), rstd.view_mut());
                dot(&c, &down(&cpu, &y))
            };
            assert_gradient("qk_norm", loss, &x, &analytic);
        }
    }
}
