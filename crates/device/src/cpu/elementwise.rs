//! Kernels that look at one element at a time, and the two sums over everything.

use super::bands::{TASK, bands, bands_sum, piece};
use super::lines::{Rows, away, fetch_after};
use super::real::To;
use super::simd::{LANES, fold_on, join, versions};
use super::{Pool, Real, Stored};

/// `y = c`.
pub(crate) fn fill<T: Copy + Send + Sync>(pool: &Pool, c: T, y: &mut [T]) {
    bands(pool, y.len(), TASK, (y,), |_, (y,)| y.fill(c));
}

/// `y = x`, byte for byte.
pub(crate) fn copy(pool: &Pool, x: &[u8], y: &mut [u8]) {
    bands(pool, y.len(), 4 * TASK, (y,), |at, (y,)| y.copy_from_slice(&x[at]));
}

/// Elements that are seen to at a time where they are not rows.
const ROW: usize = 1024;

versions! {
    /// `y = x` on one thread.
    pub(crate) fn convert<Y: Copy, X: To<Y>; S>(x: &[X], y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to());
    }

    fn scale<X: Stored, Y: Stored<Real = X::Real>; S>(a: X::Real, x: &[X], y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::narrow(a * x.widen()));
    }

    fn combine<X: Stored, Y: Stored<Real = X::Real>; S>(a: X::Real, x: &[X], b: X::Real, y: &mut [Y]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = Y::narrow(a * x.widen() + b * y.widen()));
    }

    pub(crate) fn squares<A: Stored; S>(x: &[A]) -> f64 {
        let add = |sum, x: A| { let x = x.widen().f64(); S::fma(x, x, sum) };
        let mut lanes = [0.0f64; LANES];
        for x in x.chunks(ROW) {
            fetch_after(x);
            fold_on(x, &mut lanes, add);
        }
        join(lanes, |a, b| a + b)
    }

    /// Four rows at a time, since the sums are the most to load and store.
    fn add_rows<A: Stored; S>(x: &[A], sum: &mut [f64]) {
        let width = sum.len();
        let of = |x: &A| x.widen().f64();
        let fours = x.chunks_exact(4 * width);
        let rest = fours.remainder();
        for x in fours {
            let ((x0, x1), (x2, x3)) = (x[..2 * width].split_at(width), x[2 * width..].split_at(width));
            for ((((s, x0), x1), x2), x3) in sum.iter_mut().zip(x0).zip(x1).zip(x2).zip(x3) {
                *s += (of(x0) + of(x1)) + (of(x2) + of(x3));
            }
        }
        for x in rest.chunks_exact(width) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += of(x));
        }
    }

    fn add_to_rows<A: Stored; S>(b: &[A::Real], y: &mut [A]) {
        for y in y.chunks_exact_mut(b.len()) {
            y.iter_mut().zip(b).for_each(|(y, &b)| *y = A::narrow(y.widen() + b));
        }
    }
}

/// `y = x`, converting between types where they differ.
pub(crate) fn assign<X: To<Y>, Y: Copy + Send>(pool: &Pool, x: &[X], y: &mut [Y]) {
    let away = away(size_of_val(y));
    bands(pool, y.len(), TASK, (y,), |at, (y,)| {
        let mut y = Rows::new(y, ROW, away);
        for x in x[at].chunks(ROW) {
            fetch_after(x);
            convert(x, y.next());
        }
    });
}

/// `y = a·x + b·y`; with `b == 0` the old `y` is not read.
pub(crate) fn axpby<X: Stored, Y: Stored<Real = X::Real>>(pool: &Pool, a: f64, x: &[X], b: f64, y: &mut [Y]) {
    let [fa, fb] = [a, b].map(X::Real::of);
    bands(pool, y.len(), TASK, (y,), |at, (y,)| {
        if b == 0.0 {
            scale(fa, &x[at], y);
        } else {
            combine(fa, &x[at], fb, y);
        }
    });
}

/// `Σ x²` in f64.
pub(crate) fn sum_of_squares<A: Stored>(pool: &Pool, x: &[A]) -> f64 {
    bands_sum(pool, x.len(), TASK, 1, (), |at, (), sum: &mut [f64]| sum[0] = squares(&x[at]))[0]
}

/// `Σ_rows x` per column in f64.
pub(crate) fn column_sums<A: Stored>(pool: &Pool, width: usize, x: &[A]) -> Vec<f64> {
    let rows = x.len().checked_div(width).unwrap_or(0);
    bands_sum(pool, rows, piece(width), width, (), |rows, (), sum: &mut [f64]| {
        add_rows(&x[rows.start * width..rows.end * width], sum);
    })
}

/// `y += b` for every row.
pub(crate) fn add_bias<A: Stored>(pool: &Pool, b: &[A::Real], y: &mut [A]) {
    let n = b.len();
    if n == 0 {
        return;
    }
    bands(pool, y.len() / n, piece(n), (y,), |_, (y,)| add_to_rows(b, y));
}

/// `acc += total`, rounded once.
pub(crate) fn accumulate<R: Real>(total: &[f64], acc: &mut [R]) {
    for (a, t) in acc.iter_mut().zip(total) {
        *a = R::of(a.f64() + t);
    }
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close};
    use crate::cpu::testing::{added, cpu, down, fresh, up};
    use crate::{Cpu, DType, Device, Nesterov, Tensor};
    use half::bf16;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn sums_and_combinations_match_plain_loops(rows in 0usize..70, cols in 0usize..70, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let shape = [rows, cols];
            let (x, y, b) = (r.values(rows * cols), r.values(rows * cols), r.values(cols));
            let tx = up(&cpu, shape, &x);

            let mut ty = up(&cpu, shape, &y);
            cpu.axpby(2.0, tx.view(), -3.0, ty.view_mut());
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 2.0 * x - 3.0 * y).collect();
            assert_close("axpby", "axpby", DType::F64, &expected, &down(&cpu, &ty));
            let mut ty = fresh(&cpu, shape);
            cpu.axpby(2.0, tx.view(), 0.0, ty.view_mut());
            let expected: Vec<f64> = x.iter().map(|x| 2.0 * x).collect();
            assert_close("axpby over NaN", "axpby", DType::F64, &expected, &down(&cpu, &ty));

            let squares = x.iter().rev().map(|x| x.powi(2)).sum::<f64>();
            assert_close("Σx²", "sum_of_squares", DType::F64, &[squares], &[cpu.sum_of_squares(tx.view())]);
            let (mut m, mut u) = (up(&cpu, shape, &y), fresh(&cpu, shape));
            let a = Nesterov { momentum: 0.75, step: 1, grad_scale: 0.5 };
            let size = cpu.nesterov(&a, tx.view(), m.view_mut(), u.view_mut());
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 0.5 * x + 0.75 * y).collect();
            assert_close("momentum", "axpby", DType::F64, &expected, &down(&cpu, &m));
            let expected: Vec<f64> = x.iter().zip(&expected).map(|(x, m)| 0.5 * x + 0.75 * m).collect();
            assert_close("Nesterov", "axpby", DType::F64, &expected, &down(&cpu, &u));
            let squares = expected.iter().map(|x| x.powi(2)).sum::<f64>();
            assert_close("its size", "sum_of_squares", DType::F64, &[squares], &[size]);
            let sums: Vec<f64> = (0..cols).map(|j| (0..rows).rev().map(|i| x[i * cols + j]).sum()).collect();
            assert_close("column sums", "column_sums", DType::F64, &sums, &cpu.column_sums(tx.view()));

            let mut ty = up(&cpu, shape, &y);
            cpu.add_bias(up(&cpu, [1, cols], &b).view(), ty.view_mut());
            let expected: Vec<f64> = y.iter().enumerate().map(|(i, y)| y + b[i % cols]).collect();
            assert_close("bias", "add_bias", DType::F64, &expected, &down(&cpu, &ty));
            let mut db = up(&cpu, [1, cols], &b);
            cpu.add_bias_backward(tx.view(), db.view_mut());
            assert_close("db", "add_bias", DType::F64, &sums, &added(&b, &down(&cpu, &db)));
        }
    }

    fn through<T: crate::Element>(cpu: &Cpu, values: &[T], dtype: DType) -> Tensor<Cpu> {
        let x = Tensor::from_host(cpu, [1, values.len()], values);
        let mut y = Tensor::new(cpu, [1, values.len()], dtype);
        cpu.copy(x.view(), y.view_mut());
        y
    }

    #[test]
    fn copies_convert_between_the_floating_point_types() {
        let cpu = cpu();
        let values = Random(3).values(1000);
        for dtype in [DType::F32, DType::F64, DType::Bf16] {
            let once = through(&cpu, &values, dtype);
            let back = match dtype {
                DType::Bf16 => through(&cpu, &once.view().to_host::<bf16>(&cpu), DType::F64),
                DType::F32 => through(&cpu, &once.view().to_host::<f32>(&cpu), DType::F64),
                _ => through(&cpu, &once.view().to_host::<f64>(&cpu), DType::F64),
            };
            assert_close("there and back", "copy", dtype, &values, &down(&cpu, &back));
        }
        let ids = through(&cpu, &[0u32, 7, u32::MAX], DType::U32);
        assert_eq!(ids.view().to_host::<u32>(&cpu), [0, 7, u32::MAX]);
        let single: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let half = through(&cpu, &single, DType::Bf16);
        assert_eq!(
            half.view().to_f64(&cpu),
            down(&cpu, &through(&cpu, &half.view().to_host::<bf16>(&cpu), DType::F32))
        );
    }

    #[test]
    fn fill_writes_every_type() {
        let cpu = cpu();
        for dtype in [DType::F32, DType::F64, DType::Bf16] {
            let mut x = Tensor::new(&cpu, [3, 5], dtype);
            cpu.fill(1.5, x.view_mut());
            assert_eq!(x.view().to_f64(&cpu), [1.5; 15]);
        }
        let mut x = Tensor::new(&cpu, [2, 2], DType::U32);
        cpu.fill(9.0, x.view_mut());
        assert_eq!(x.view().to_host::<u32>(&cpu), [9; 4]);
    }
}
