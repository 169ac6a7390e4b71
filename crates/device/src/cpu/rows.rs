//! Rows moved and combined: gathering, and the weighted sum of a token's expert outputs.

use super::bands::{bands, piece};
use super::simd::{dot, versions};
use super::{Pool, Real};

/// `y[i] = x[index[i]]` for rows of `width` elements.
pub(crate) fn gather<T: Copy + Send + Sync>(pool: &Pool, index: &[u32], width: usize, x: &[T], y: &mut [T]) {
    if width == 0 {
        return;
    }
    bands(pool, index.len(), piece(width), (y,), |at, (y,)| {
        for (&i, y) in index[at].iter().zip(y.chunks_exact_mut(width)) {
            let i = i as usize * width;
            y.copy_from_slice(&x[i..i + width]);
        }
    });
}

/// `acc_dx[index[i]] += dy[i]` in the order of i. Several rows may go to one place, so a task owns some places, and a
/// stable counting sort by place tells it which rows come there.
pub(crate) fn gather_backward<R: Real>(pool: &Pool, index: &[u32], width: usize, dy: &[R], acc_dx: &mut [R]) {
    if width == 0 {
        return;
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
    bands(pool, places, piece(width), (acc_dx,), |at, (acc,)| {
        let mut first = if at.start == 0 { 0 } else { ends[at.start - 1] as usize };
        for (&end, acc) in ends[at].iter().zip(acc.chunks_exact_mut(width)) {
            for &i in &rows[first..end as usize] {
                acc.iter_mut().zip(&dy[i as usize * width..]).for_each(|(a, &d)| *a += d);
            }
            first = end as usize;
        }
    });
}

versions! {
    fn combine<R, S>(k: usize, slots: &[R], w: Option<&[R]>, width: usize, y: &mut [R]) {
        for (t, y) in y.chunks_exact_mut(width).enumerate() {
            for i in t * k..(t + 1) * k {
                let slot = &slots[i * width..(i + 1) * width];
                let w = w.map_or(R::ONE, |w| w[i]);
                if i == t * k {
                    y.iter_mut().zip(slot).for_each(|(y, &s)| *y = w * s);
                } else {
                    y.iter_mut().zip(slot).for_each(|(y, &s)| *y = S::fma(w, s, *y));
                }
            }
        }
    }

    fn combine_backward<R, S>(w: R, dy: &[R], slot: &[R], dslot: &mut [R]) -> R {
        dslot.iter_mut().zip(dy).for_each(|(s, &d)| *s = w * d);
        dot::<R, S>(dy, slot)
    }
}

/// `y[t] = Σ_k w[t,k] · slots[t·K+k]`; without `w` a plain sum.
pub(crate) fn weighted_sum<R: Real>(pool: &Pool, k: usize, width: usize, slots: &[R], w: Option<&[R]>, y: &mut [R]) {
    if width == 0 || k == 0 {
        return y.fill(R::ZERO);
    }
    bands(pool, y.len() / width, piece(width * k), (y,), |at, (y,)| {
        let slots = &slots[at.start * k * width..at.end * k * width];
        combine(k, slots, w.map(|w| &w[at.start * k..at.end * k]), width, y);
    });
}

/// `dslots[t·K+k] = w[t,k] · dy[t]`, `dw[t,k] = dy[t] · slots[t·K+k]`.
pub(crate) fn weighted_sum_backward<R: Real>(
    pool: &Pool,
    k: usize,
    width: usize,
    slots: &[R],
    w: &[R],
    dy: &[R],
    dslots: &mut [R],
    dw: &mut [R],
) {
    if width == 0 {
        return dw.fill(R::ZERO);
    }
    bands(pool, w.len(), piece(width), (dslots, dw), |at, (dslots, dw)| {
        for ((i, ds), dw) in at.zip(dslots.chunks_exact_mut(width)).zip(dw) {
            *dw = combine_backward(w[i], &dy[i / k * width..][..width], &slots[i * width..][..width], ds);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{added, cpu, dot, down, fresh, up};
    use crate::{DType, Device, Tensor};
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
            cpu.gather_backward(&index, up(&cpu, [n, d], &dy).view(), dx.view_mut());
            let expected: Vec<f64> = (0..rows * d)
                .map(|i| start[i] + (0..n).filter(|&j| index[j] as usize == i / d).map(|j| dy[j * d + i % d]).sum::<f64>())
                .collect();
            assert_close("dx", "gather", DType::F64, &expected, &down(&cpu, &dx));
        }

        #[test]
        fn weighted_sum_matches_a_plain_loop(t in 0usize..40, k in 1usize..5, d in 0usize..40, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let (slots, w) = (r.values(t * k * d), r.values(t * k));
            let tslots = up(&cpu, [t * k, d], &slots);
            let mut y = fresh(&cpu, [t, d]);
            cpu.weighted_sum(k, tslots.view(), Some(up(&cpu, [t, k], &w).view()), y.view_mut());
            let sum = |i: usize, w: &dyn Fn(usize) -> f64| {
                (0..k).map(|c| w(i / d * k + c) * slots[(i / d * k + c) * d + i % d]).sum::<f64>()
            };
            let expected: Vec<f64> = (0..t * d).map(|i| sum(i, &|s| w[s])).collect();
            assert_close("weighted", "weighted_sum", DType::F64, &expected, &down(&cpu, &y));
            cpu.weighted_sum(k, tslots.view(), None, y.view_mut());
            let expected: Vec<f64> = (0..t * d).map(|i| sum(i, &|_| 1.0)).collect();
            assert_close("plain", "weighted_sum", DType::F64, &expected, &down(&cpu, &y));
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
        let (x, c) = (r.values(t * k * d + t * k), r.values(t * d));
        let loss = |x: &[f64]| {
            let (slots, w) = x.split_at(t * k * d);
            let (slots, w) = (up(&cpu, [t * k, d], slots), up(&cpu, [t, k], w));
            let mut y = fresh(&cpu, [t, d]);
            cpu.weighted_sum(k, slots.view(), Some(w.view()), y.view_mut());
            dot(&c, &down(&cpu, &y))
        };
        let (slots, w) = (up(&cpu, [t * k, d], &x[..t * k * d]), up(&cpu, [t, k], &x[t * k * d..]));
        let (mut dslots, mut dw) = (fresh(&cpu, [t * k, d]), fresh(&cpu, [t, k]));
        let dy = up(&cpu, [t, d], &c);
        cpu.weighted_sum_backward(slots.view(), w.view(), dy.view(), dslots.view_mut(), dw.view_mut());
        let analytic = [down(&cpu, &dslots), down(&cpu, &dw)].concat();
        assert_gradient("weighted_sum", loss, &x, &analytic);

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
