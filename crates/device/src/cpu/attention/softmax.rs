//! Softmax, and its gradient: from sums of products to the operands of the next products.
//!
//! A block of scores stands as rows of as many lanes as the micro-kernel has columns: forward, rows are keys and lanes
//! queries; backward, rows are queries and lanes keys. So nothing is ever summed across a vector. Plain loops do it for any
//! type and machine, in place, and what must be rounded is rounded in a second pass ([`super::round`]). With bf16 in a matrix
//! unit these passes are what attention spends its time on, so there the two are one, by hand ([`wide`]).

#[cfg(target_arch = "x86_64")]
mod wide;

use super::number::Number;
use super::with_lanes;
use crate::cpu::real::Real;
use crate::cpu::simd::{Isa, larger, versions};
#[cfg(target_arch = "x86_64")]
pub(super) use wide::Wide;

/// Most columns of any micro-kernel.
pub(super) const MOST_LANES: usize = 32;

/// Where a block of scores is, and what they are multiplied by as exponents of two.
#[derive(Clone, Copy)]
pub(crate) struct At<R> {
    /// The first key, and the first query. A query sees the keys that are not after it.
    pub key: usize,
    pub query: usize,
    pub scale: R,
}

/// Space for operands, where they cannot lie where the sums are.
pub(crate) struct Space<'a, A> {
    /// For right operands: probabilities, and gradients of scores.
    pub p: &'a mut [A],
    pub ds: &'a mut [A],
    /// For gradients of scores as rows, which begin so many elements apart.
    pub rows: &'a mut [A],
    pub pitch: usize,
}

/// Probabilities and gradients of scores as operands, as [`Space`] has them.
pub(crate) struct Gradients<'a, A> {
    pub p: &'a [A],
    pub ds: &'a [A],
    pub rows: &'a [A],
}

/// The softmax so far, for every query of a tile.
pub(crate) struct Running<R> {
    /// The largest score, with all scales.
    pub max: [R; MOST_LANES],
    /// Sum of the exponentials of the scores less the maximum.
    pub sum: [R; MOST_LANES],
    /// What the last block's new maximum multiplies older sums by.
    pub factor: [R; MOST_LANES],
}

impl<R: Real> Running<R> {
    pub fn new() -> Self {
        Running { max: [R::NEG_INFINITY; MOST_LANES], sum: [R::ZERO; MOST_LANES], factor: [R::ZERO; MOST_LANES] }
    }
}

versions! {
    /// Scores `[keys, lanes]` become exponentials of what they are less than the running maximum; the keys after a query
    /// become 0.
    pub(super) fn exponentials<A: Number; S>(
        lanes: usize, at: At<A::Real>, scores: &mut [A::Real], running: &mut Running<A::Real>,
    ) {
        with_lanes!(lanes, exponentials_of::<A, S>(at, scores, running))
    }

    /// Scores `[queries, lanes]` become probabilities, and `ds`, the gradient of the probabilities, becomes that of the
    /// scores, but for their scale. Of every query `lse` has the log of its softmax's denominator (as an exponent of two),
    /// and `d` what its probabilities times their gradients sum up to.
    pub(super) fn score_gradients<A: Number; S>(
        lanes: usize, at: At<A::Real>, lse: &[A::Real], d: &[A::Real], p: &mut [A::Real], ds: &mut [A::Real],
    ) {
        with_lanes!(lanes, score_gradients_of::<A, S>(at, lse, d, p, ds))
    }
}

#[inline(always)]
fn exponentials_of<A: Number, S: Isa, const N: usize>(
    At { key, query, scale }: At<A::Real>,
    scores: &mut [A::Real],
    running: &mut Running<A::Real>,
) {
    let (rows, _) = scores.as_chunks_mut::<N>();
    let hidden_from = (query + 1).saturating_sub(key).min(rows.len());
    for (i, row) in rows[hidden_from..].iter_mut().enumerate() {
        // This key is 1 + i places after the first query, if that is in the block at all.
        let hidden = key + hidden_from + i - query;
        row[..hidden.min(N)].fill(A::Real::NEG_INFINITY);
    }
    let mut top = [A::Real::NEG_INFINITY; N];
    for row in &*rows {
        for l in 0..N {
            top[l] = larger(top[l], row[l]);
        }
    }
    let old: [A::Real; N] = *running.max.first_chunk().expect("lanes");
    let max: [A::Real; N] = std::array::from_fn(|l| larger(old[l], top[l] * scale));
    let mut sum = [A::Real::ZERO; N];
    for row in rows {
        for l in 0..N {
            row[l] = A::exp2::<S>(S::fma(row[l], scale, -max[l]));
            sum[l] += row[l];
        }
    }
    for l in 0..N {
        let factor = A::exp2::<S>(old[l] - max[l]);
        running.factor[l] = factor;
        running.sum[l] = S::fma(running.sum[l], factor, sum[l]);
        running.max[l] = max[l];
    }
}

#[inline(always)]
fn score_gradients_of<A: Number, S: Isa, const N: usize>(
    At { key, query, scale }: At<A::Real>,
    lse: &[A::Real],
    d: &[A::Real],
    p: &mut [A::Real],
    ds: &mut [A::Real],
) {
    let (p, ds) = (p.as_chunks_mut::<N>().0, ds.as_chunks_mut::<N>().0);
    for (i, (((p, ds), &lse), &d)) in p.iter_mut().zip(ds).zip(lse).zip(d).enumerate() {
        p.iter_mut().for_each(|p| *p = A::exp2::<S>(S::fma(*p, scale, -lse)));
        let seen = (query + i + 1).saturating_sub(key);
        if seen < N {
            p[seen..].fill(A::Real::ZERO);
        }
        for l in 0..N {
            ds[l] = p[l] * (ds[l] - d);
        }
    }
}
