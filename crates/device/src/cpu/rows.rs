//! Rows moved and combined: gathering, its gradient, and the sum of a token's expert outputs where they lie.

use super::bands::{bands, piece};
use super::elementwise::convert;
use super::lines::{Rows, away, fetch_row};
use super::real::To;
use super::simd::versions;
use super::squares::Squares;
use super::{Pool, Stored};
use std::sync::Mutex;

/// Rows between the one that is moved and the one that is asked for.
const SOON: usize = 2;

versions! {
    /// Adds the rows `rows` of `x` to one row, one after another.
    fn add_rows<A: Stored; S>(rows: &[u32], x: &[A], acc: &mut [A::Real]) {
        let width = acc.len();
        for &i in rows {
            acc.iter_mut().zip(&x[i as usize * width..][..width]).for_each(|(a, x)| *a += x.widen());
        }
    }
}

/// `y[i] = x[index[i]]` for rows of `width` elements.
pub(crate) fn gather<X: To<Y>, Y: Copy + Send>(pool: &Pool, index: &[u32], width: usize, x: &[X], y: &mut [Y]) {
    if width == 0 {
        return;
    }
    let (row, away) = (|i: u32| &x[i as usize * width..][..width], away(size_of_val(y)));
    bands(pool, index.len(), piece(width), (y,), |at, (y,)| {
        let mut y = Rows::new(y, width, away);
        for i in at {
            index.get(i + SOON).into_iter().for_each(|&i| fetch_row(row(i)));
            convert(row(index[i]), y.next());
        }
    });
}

/// `acc_dx[index[i]] += dy[i]` in the order of i. Several rows may go to one place, so a task owns some places, and a
/// stable counting sort by place tells it which rows come there. Returns by how much the sum of squares grows, as
/// [`Squares`] has it.
pub(crate) fn gather_backward<A: Stored>(
    pool: &Pool,
    index: &[u32],
    width: usize,
    dy: &[A],
    acc_dx: &mut [A::Real],
) -> Option<f64> {
    if width == 0 {
        return Some(0.0);
    }
    let places = acc_dx.len() / width;
    // After the first loop `ends[p]` is the number of rows that go to places before p; after the second, up to p.
    let mut ends = vec![0u32; places + 1];
    index.iter().for_each(|&p| ends[p as usize + 1] += 1);
    for p in 0..places {
        ends[p + 1] += ends[p];
    }
    let mut rows = vec![0u32; index.len()];
    for (i, &p) in index.iter().enumerate() {
        let at = &mut ends[p as usize];
        rows[*at as usize] = i as u32;
        *at += 1;
    }
    let squares = Mutex::new(Some([Squares::default(); 2]));
    bands(pool, places, piece(width), (acc_dx,), |at, (acc,)| {
        let mut first = if at.start == 0 { 0 } else { ends[at.start - 1] as usize };
        let mut of_band = Some([Squares::default(); 2]);
        for (&end, acc) in ends[at].iter().zip(acc.chunks_exact_mut(width)) {
            let rows = &rows[first..end as usize];
            first = end as usize;
            if rows.is_empty() {
                continue;
            }
            let before = Squares::of_row(acc);
            add_rows(rows, dy, acc);
            of_band = with(of_band, before.zip(Squares::of_row(acc)).map(<[_; 2]>::from));
        }
        let mut squares = squares.lock().expect("no thread fails while it adds");
        *squares = with(*squares, of_band);
    });
    let [before, after] = squares.into_inner().expect("no thread has failed")?;
    after.grown(before)
}

/// Sums before and after, with others.
fn with(sums: Option<[Squares; 2]>, others: Option<[Squares; 2]>) -> Option<[Squares; 2]> {
    let ([before, after], [others_before, others_after]) = sums.zip(others)?;
    Some([before.and(others_before), after.and(others_after)])
}

/// `acc_y[t] += Σ_c x[index[t·k + c]]`, one after another.
pub(crate) fn gather_sum<A: Stored>(
    pool: &Pool,
    k: usize,
    index: &[u32],
    width: usize,
    x: &[A],
    acc_y: &mut [A::Real],
) {
    if width == 0 {
        return;
    }
    bands(pool, acc_y.len() / width, piece(width * (k + 1)), (acc_y,), |at, (acc,)| {
        for (t, acc) in at.zip(acc.chunks_exact_mut(width)) {
            add_rows(&index[t * k..(t + 1) * k], x, acc);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{added, cpu, dot, down, fresh, up};
    use crate::{Cpu, DType, Device, SQUARE_UNIT, Tensor};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn gather_and_its_transpose(rows in 1usize..40, n in 0usize..80, d in 0usize..140, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let index: Vec<u32> = (0..n).map(|_| r.below(rows) as u32).collect();
            let (x, dy, start) = (r.values(rows * d), r.values(n * d), r.values(rows * d));
            let mut y = fresh(&cpu, [n, d]);
            cpu.gather(&index, up(&cpu, [rows, d], &x).view(), y.view_mut());
            let expected: Vec<f64> = (0..n * d).map(|i| x[index[i / d] as usize * d + i % d]).collect();
            prop_assert_eq!(down(&cpu, &y), expected);
            let mut dx = up(&cpu, [rows, d], &start);
            let grown = cpu.gather_backward(&index, up(&cpu, [n, d], &dy).view(), dx.view_mut());
            prop_assert_eq!(grown, if n * d == 0 { Some(0.0) } else { None }, "squares of f64 are not made");
            let expected: Vec<f64> = (0..rows * d)
                .map(|i| start[i] + (0..n).filter(|&j| index[j] as usize == i / d).map(|j| dy[j * d + i % d]).sum::<f64>())
                .collect();
            assert_close("dx", "gather", DType::F64, &expected, &down(&cpu, &dx));
        }

        #[test]
        fn gather_sum_adds_to_what_is_there(
            rows in 1usize..40, t in 0usize..40, k in 0usize..5, d in 0usize..40, seed: u64,
        ) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let index: Vec<u32> = (0..t * k).map(|_| r.below(rows) as u32).collect();
            let (x, start) = (r.values(rows * d), r.values(t * d));
            let mut y = up(&cpu, [t, d], &start);
            cpu.gather_sum(k, &index, up(&cpu, [rows, d], &x).view(), y.view_mut());
            let expected: Vec<f64> = (0..t * d)
                .map(|i| index[i / d * k..][..k].iter().fold(start[i], |sum, &j| sum + x[j as usize * d + i % d]))
                .collect();
            prop_assert_eq!(down(&cpu, &y), expected);
        }
    }

    /// What the sum of squares has grown by is that of the whole, each cut by itself, on any number of threads.
    #[test]
    fn gather_backward_counts_squares() {
        let (mut r, [rows, n]) = (Random(3), [400, 900]);
        for (d, size) in [(1, 1e-3), (37, 1e-3), (512, 1e-9), (9000, 0.04)] {
            let n = if d > 5000 { 30 } else { n };
            let mut f32s = |n: usize| r.values(n).iter().map(|x| (x * size) as f32).collect::<Vec<f32>>();
            let (dy, start) = (f32s(n * d), f32s(rows * d));
            let index: Vec<u32> = (0..n).map(|i| (i * i % rows) as u32).collect();
            let grown = |threads: usize, start: &[f32]| {
                let cpu = Cpu::new(threads);
                let mut dx = Tensor::from_host(&cpu, [rows, d], start);
                let grown = cpu.gather_backward(&index, Tensor::from_host(&cpu, [n, d], &dy).view(), dx.view_mut());
                (grown, dx.view().to_host::<f32>(&cpu))
            };
            let units = |x: &[f32]| x.iter().map(|&x| (f64::from(x).powi(2) / SQUARE_UNIT) as i128).sum::<i128>();
            let (first, after) = grown(1, &start);
            assert_eq!(first, Some((units(&after) - units(&start)) as f64 * SQUARE_UNIT), "{d}");
            for threads in [2, 3] {
                assert_eq!(grown(threads, &start).0, first);
            }
            for odd in [0.2, f32::NAN] {
                let mut start = start.clone();
                start[index[5] as usize * d] = odd;
                assert_eq!(grown(2, &start).0, None, "{odd} is too large, or none");
                start[index[5] as usize * d] = 0.0;
                start[(rows - 1) * d] = odd;
                assert_eq!(
                    grown(2, &start).0.is_some(),
                    !index.contains(&(rows as u32 - 1)),
                    "a row that nothing comes to"
                );
            }
        }
    }

    #[test]
    fn gather_moves_rows_of_every_type() {
        let cpu = cpu();
        let x = Tensor::from_host(&cpu, [3, 2], &[1u32, 2, 3, 4, 5, 6]);
        let mut y = Tensor::new(&cpu, [2, 2], DType::U32);
        cpu.gather(&[2, 0], x.view(), y.view_mut());
        assert_eq!(y.view().to_host::<u32>(&cpu), [5, 6, 1, 2]);
        let x = Tensor::from_host(&cpu, [2, 1], &[half::bf16::ONE, half::bf16::NEG_ONE]);
        let mut y = Tensor::new(&cpu, [3, 1], DType::Bf16);
        cpu.gather(&[1, 1, 0], x.view(), y.view_mut());
        assert_eq!(y.view().to_f64(&cpu), [-1.0, -1.0, 1.0]);
    }

    #[test]
    fn gradients() {
        let (cpu, mut r, (t, k, d)) = (cpu(), Random(5), (5, 3, 7));
        let (x, c) = (r.values(t * k * d), r.values(t * d));
        // A permutation: the place of slot i is 4·i mod 15, so slot of place p is 4·p mod 15, and its token is a third.
        let places: Vec<u32> = (0..t * k).map(|i| (4 * i % (t * k)) as u32).collect();
        let tokens: Vec<u32> = places.iter().map(|i| i / k as u32).collect();
        let loss = |x: &[f64]| {
            let mut y = up(&cpu, [t, d], &vec![0.0; t * d]);
            cpu.gather_sum(k, &places, up(&cpu, [t * k, d], x).view(), y.view_mut());
            dot(&c, &down(&cpu, &y))
        };
        let mut dx = fresh(&cpu, [t * k, d]);
        cpu.gather(&tokens, up(&cpu, [t, d], &c).view(), dx.view_mut());
        assert_gradient("gather_sum", loss, &x, &down(&cpu, &dx));

        let index = [4u32, 0, 4, 1];
        let c = &c[..4 * d];
        let loss = |x: &[f64]| {
            let mut y = fresh(&cpu, [4, d]);
            cpu.gather(&index, up(&cpu, [t, d], x).view(), y.view_mut());
            dot(c, &down(&cpu, &y))
        };
        let start = r.values(t * d);
        let mut dx = up(&cpu, [t, d], &start);
        cpu.gather_backward(&index, up(&cpu, [4, d], c).view(), dx.view_mut());
        assert_gradient("gather", loss, &x[..t * d], &added(&start, &down(&cpu, &dx)));
    }
}
