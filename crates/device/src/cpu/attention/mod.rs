//! Causal attention within packed segments, with grouped keys and values (Ainslie et al. 2023).
//!
//! The scores of a long segment do not fit any cache, so they are never stored: a tile of queries runs over blocks of
//! keys with a running maximum and a running sum (Milakov & Gimelshein 2018; Dao et al. 2022, "FlashAttention"), and
//! the backward pass computes the probabilities again from the saved log-sum-exp.
//!
//! All products are made by the micro-kernel of the matrix product. It multiplies a packed panel of rows by a packed
//! panel of columns, and a packed panel of columns is nothing but a small row-major matrix with that many columns (in
//! bf16, with pairs of rows interleaved). So the tile of scores that one product leaves in the first cache is, as it lies
//! or nearly so, the right operand of the next. That decides which way round everything is: forward, lanes are queries
//! and scores stand as `[keys, queries]`; backward, lanes are keys and scores stand as `[queries, keys]`. In both, softmax
//! runs along the lanes with no sums across a vector, and only the gradient of the queries takes its operand the other way
//! round: a matrix unit reads it as it lies, for vectors it is packed.
//!
//! In a matrix unit products cost so little that the rest decides: softmax, which is made in one pass from sums to operands
//! ([`softmax`]), and reading heads from where they lie, 64 or 128 elements of every row, which is asked for ahead.
//!
//! Operands may be bf16: then products are summed and softmax is made in f32, and what is multiplied again
//! (probabilities, gradients of scores) is rounded to bf16 first. Factors that scale a product are applied to its sums,
//! never to an operand, which they would round.
//!
//! What a task is depends on the sizes alone, and a segment's tasks on that segment alone; nothing is added to from two
//! tasks. So neither threads nor other segments change a bit.

mod backward;
mod cached;
mod forward;
mod number;
mod paged;
mod round;
mod softmax;
#[cfg(test)]
mod tests;

pub(crate) use backward::attention_backward;
pub(crate) use cached::attention_cached;
pub(crate) use forward::attention;
pub(crate) use paged::attention_paged;

use super::Pool;
use super::gemm::{Micro, Operand};
use super::lines::{away, fetch};
use super::memory::{Memory, Scratch};
use super::real::Stored;
use super::simd::versions;
use crate::Heads;
use number::Number;
use std::ops::Range;

/// Keys (forward) or queries (backward) whose scores are in the cache at a time, about: a multiple of the panel's rows.
const BLOCK: usize = 128;

/// [`BLOCK`] as a multiple of a panel's rows.
fn block(rows: usize) -> usize {
    (BLOCK / rows).max(1) * rows
}

/// What the kernels run on.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a, A: Number> {
    pool: &'a Pool,
    memory: &'a Memory,
    /// Multiplies.
    micro: Micro<A>,
    /// Transposes.
    turner: Micro<A::Real>,
}

impl<'a, A: Number> Context<'a, A> {
    pub fn new(pool: &'a Pool, memory: &'a Memory) -> Self {
        Context { pool, memory, micro: Micro::best(), turner: Micro::best() }
    }

    /// Whether results go past the caches: 16 sums that are rounded are no line.
    fn away(&self, results: &[A]) -> bool {
        self.micro.streams() && size_of::<A>() == size_of::<A::Real>() && away(size_of_val(results))
    }
}

/// Some columns of consecutive rows: a head of a segment.
#[derive(Clone, Copy)]
struct Head<'a, T> {
    /// Whole rows.
    data: &'a [T],
    pitch: usize,
    column: usize,
    dim: usize,
}

impl<'a, T> Head<'a, T> {
    /// Head `h` of the columns of `x`.
    fn new(x: &'a [T], pitch: usize, h: usize, dim: usize) -> Self {
        Head { data: x, pitch, column: h * dim, dim }
    }
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.pitch + self.column..][..self.dim]
    }
    fn columns(&self) -> Range<usize> {
        self.column..self.column + self.dim
    }
    /// See [`fetch_rows`]; those that there are.
    fn fetch(&self, rows: Range<usize>) {
        let rows = rows.start..rows.end.min(self.data.len() / self.pitch);
        let first = self.data.as_ptr().wrapping_add(rows.start * self.pitch + self.column);
        fetch_rows(first, [rows.len(), self.dim], self.pitch);
    }
    /// Rows as lanes, columns summed over.
    fn by_row(&self) -> Operand<'a, T> {
        Operand { data: self.data, pitch: self.pitch, lanes_adjacent: false }
    }
    /// Columns as lanes, rows summed over.
    fn by_column(&self) -> Operand<'a, T> {
        Operand { data: self.data, pitch: self.pitch, lanes_adjacent: true }
    }
}

/// Column of a fused projection's head, counted in heads.
fn key_head(heads: &Heads, kv: usize) -> usize {
    heads.q + kv
}

/// As [`key_head`], for values.
fn value_head(heads: &Heads, kv: usize) -> usize {
    heads.q + heads.kv + kv
}

/// Asks for `rows` rows of `len` elements, `pitch` apart, to be brought into the second cache. A head's rows lie so far
/// apart that the processor does not foresee them, and to wait for each takes longer than its products.
fn fetch_rows<T>(first: *const T, [rows, len]: [usize; 2], pitch: usize) {
    for row in 0..rows {
        for at in (0..len).step_by(64 / size_of::<T>()) {
            fetch(first.wrapping_add(row * pitch + at));
        }
    }
}

versions! {
    /// `out = factor·sums`, rounded.
    fn scaled<A: Stored; S>(factor: A::Real, sums: &[A::Real], out: &mut [A]) {
        out.iter_mut().zip(sums).for_each(|(out, &x)| *out = A::narrow(factor * x));
    }
}

versions! {
    fn scale<R, S>(factor: R, x: &mut [R]) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Cuts a range into pieces of `piece`, the last one shorter.
fn pieces(range: Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(piece).map(move |at| at..(at + piece).min(end))
}

/// Rows of every segment that has any.
fn spans(segments: &[u32]) -> impl Iterator<Item = Range<usize>> {
    segments.windows(2).map(|s| s[0] as usize..s[1] as usize).filter(|s| !s.is_empty())
}

/// Runs `$function::<A, S, N>(arguments)` with `N` the micro-kernel's number of columns, which the compiler must know.
macro_rules! with_lanes {
    ($lanes:expr, $function:ident::<$A:ident, $S:ident>($($argument:expr),*)) => {
        match $lanes {
            32 => $function::<$A, $S, 32>($($argument),*),
            16 => $function::<$A, $S, 16>($($argument),*),
            8 => $function::<$A, $S, 8>($($argument),*),
            lanes => unreachable!("a micro-kernel with {lanes} columns"),
        }
    };
}
use with_lanes;
