//! Rotary positions (Su et al. 2021) in Hugging Face's half-split layout: column `i` turns with column `i + R/2`.
//! The rotation is orthogonal, so its inverse is its gradient.

use super::bands::{bands, piece};
use super::simd::versions;
use super::{Cpu, Pool, Real, Stored, slice};
use crate::{Element, Heads, Rotation};

/// A rotation, or the rotation back.
pub(crate) struct Turn<'a, R> {
    heads: Heads,
    /// Columns of a head that turn.
    columns: usize,
    table: &'a [R],
    positions: &'a [u32],
    sign: R,
}

impl<'a, R: Real + Element> Turn<'a, R> {
    pub fn new(by: &Rotation<'a, Cpu>, inverse: bool) -> Self {
        let (heads, columns, sign) = (by.heads, by.table.shape()[1], if inverse { -R::ONE } else { R::ONE });
        Turn { heads, columns, table: slice(by.table), positions: by.positions, sign }
    }
}

impl<R: Real> Turn<'_, R> {
    /// Rotates the query and key heads of row `i`, which `row` begins with.
    #[inline(always)]
    pub fn row<A: Stored<Real = R>>(&self, i: usize, row: &mut [A]) {
        let (Heads { q, kv, dim }, half) = (self.heads, self.columns / 2);
        let (cos, sin) = self.table[self.positions[i] as usize * self.columns..][..self.columns].split_at(half);
        for head in row[..(q + kv) * dim].chunks_exact_mut(dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (x, y, s) = (a.widen(), b.widen(), self.sign * s);
                *a = A::narrow(x * c - y * s);
                *b = A::narrow(y * c + x * s);
            }
        }
    }
}

versions! {
    fn rotate<A: Stored; S>(turn: &Turn<A::Real>, first: usize, qkv: &mut [A]) {
        for (i, row) in qkv.chunks_exact_mut(turn.heads.width()).enumerate() {
            turn.row(first + i, row);
        }
    }
}

/// Rotates the first columns of every query and key head of every row by its position.
pub(crate) fn rope<A: Stored>(pool: &Pool, turn: &Turn<A::Real>, qkv: &mut [A]) {
    bands(pool, turn.positions.len(), piece(turn.heads.width()), (qkv,), |at, (qkv,)| rotate(turn, at.start, qkv));
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close};
    use crate::cpu::testing::{cpu, dot, down, up};
    use crate::{DType, Device, Heads, Rotation};
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
            let by = Rotation { heads, table: table.view(), positions: &positions };
            cpu.rope(&by, false, y.view_mut());
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
            cpu.rope(&by, true, dx.view_mut());
            assert_close("transpose", "gemm", DType::F64, &[forward], &[dot(&x, &down(&cpu, &dx))]);
            cpu.rope(&by, true, y.view_mut());
            assert_close("inverse", "rope", DType::F64, &x, &down(&cpu, &y));
        }
    }
}
