//! Rotary positions (Su et al. 2021) in Hugging Face's half-split layout: column `i` turns with column `i + R/2`.
//! The rotation is orthogonal, so its inverse is its gradient.

use super::bands::{bands, piece};
use super::simd::versions;
use super::{Pool, Real, Stored};
use crate::Heads;

versions! {
    fn rotate<A: Stored; S>(dim: usize, cos: &[A::Real], sin: &[A::Real], sign: A::Real, heads: &mut [A]) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (x, y, s) = (a.widen(), b.widen(), sign * s);
                *a = A::narrow(x * c - y * s);
                *b = A::narrow(y * c + x * s);
            }
        }
    }
}

/// Rotates the first `r` columns of every query and key head of every row by its position.
pub(crate) fn rope<A: Stored>(
    pool: &Pool,
    heads: Heads,
    r: usize,
    table: &[A::Real],
    positions: &[u32],
    inverse: bool,
    qkv: &mut [A],
) {
    let (width, dim) = (heads.width(), heads.dim);
    if r == 0 {
        return;
    }
    let sign = if inverse { -A::Real::ONE } else { A::Real::ONE };
    bands(pool, positions.len(), piece(width), (qkv,), |at, (qkv,)| {
        for (&p, row) in positions[at].iter().zip(qkv.chunks_exact_mut(width)) {
            let (cos, sin) = table[p as usize * r..][..r].split_at(r / 2);
            rotate(dim, cos, sin, sign, &mut row[..(heads.q + heads.kv) * dim]);
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close};
    use crate::cpu::testing::{cpu, dot, down, up};
    use crate::{DType, Device, Heads};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Against complex multiplication; the inverse undoes it and, being its transpose, is its gradient.
        #[test]
        fn rope_turns_pairs(t in 0usize..9, kv in 1usize..3, group in 1usize..3, half in 0usize..9, rest in 0usize..5, seed: u64) {
            let dim = 2 * half + rest;
            prop_assume!(dim > 0);
            let (cpu, mut r) = (cpu(), Random(seed));
            let heads = Heads { q: kv * group, kv, dim };
            let width = heads.width();
            let positions: Vec<u32> = (0..t).map(|_| r.below(20) as u32).collect();
            let angle = |p: usize, i: usize| p as f64 * 10f64.powf(-(i as f64) / half as f64);
            let table: Vec<f64> = (0..20)
                .flat_map(|p| (0..2 * half).map(move |i| if i < half { angle(p, i).cos() } else { angle(p, i - half).sin() }))
                .collect();
            let table = up(&cpu, [20, 2 * half], &table);
            let x = r.values(t * width);
            let mut y = up(&cpu, [t, width], &x);
            cpu.rope(heads, table.view(), &positions, false, y.view_mut());
            let expected: Vec<f64> = (0..t * width)
                .map(|i| {
                    let (row, col) = (i / width, i % width);
                    let (head, j) = (col / dim, col % dim);
                    if head >= heads.q + kv || j >= 2 * half {
                        return x[i];
                    }
                    let at = row * width + head * dim;
                    let a = angle(positions[row] as usize, j % half);
                    let (re, im) = (x[at + j % half], x[at + half + j % half]);
                    if j < half { re * a.cos() - im * a.sin() } else { re * a.sin() + im * a.cos() }
                })
                .collect();
            assert_close("rope", "rope", DType::F64, &expected, &down(&cpu, &y));

            let c = r.values(t * width);
            let forward = dot(&c, &down(&cpu, &y));
            let mut dx = up(&cpu, [t, width], &c);
            cpu.rope(heads, table.view(), &positions, true, dx.view_mut());
            assert_close("transpose", "gemm", DType::F64, &[forward], &[dot(&x, &down(&cpu, &dx))]);
            cpu.rope(heads, table.view(), &positions, true, y.view_mut());
            assert_close("inverse", "rope", DType::F64, &x, &down(&cpu, &y));
        }
    }
}
