//! Products with weights of 8 and of 4 bits, for inference: `y[T, N] = x[T, K] · Wᵀ`.
//!
//! Decoding reads every weight once a token, so fewer bits are more tokens, and a prompt's products are four times as
//! fast with bytes as with floats. Weights come in blocks of 32 along K under one scale ([`QuantKind`]); they are packed
//! once, when a model is loaded, into the order in which the micro-kernels read them ([`pack`]), and nothing else of
//! them is kept. Activations are rounded to 8 bits, also in blocks of 32, at the beginning of each product ([`rows`]).
//!
//! The order of additions is part of the contract. With blocks b = 0, 1, … of 32 steps, weights `w = d_b·(q − zero) + m_b`
//! and activations `x ≈ s_b·a`,
//!
//! ```text
//! y = (…((0 ⊕ block 0) ⊕ block 1) …)
//! y ⊕ block b = fma(s_b·Σa, m_b, fma(f32(Σ a·(q − zero))·s_b, d_b, y))      without the outer one where there is no m
//! ```
//!
//! The sums of a block are of integers, exact in any order, below 2²⁴ and so exact as f32; every other operation rounds
//! once. Hence a result's bits depend on its row of x and its row of W, never on the kernel, the other rows of the call, or
//! the number of threads; and they are the same on every machine.
//!
//! Not here: gradients, which nobody takes of coded weights; and other block formats of files, whose weights can be
//! converted to one of these three or to bf16.

#[cfg(target_arch = "x86_64")]
mod amx;
mod format;
mod kernel;
mod pack;
mod product;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::bands::bands;
use super::memory::Block;
use super::{Cpu, slice, slice_mut};
use crate::{DType, View, ViewMut};
pub use format::{BLOCK, QuantKind};
use half::bf16;
pub(super) use kernel::Kernel;
use pack::{LANES, Layout};
use product::Call;
use std::borrow::Cow;
use std::ops::Range;

/// Why weights could not be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuantError {
    /// Rows are not whole blocks.
    #[error("rows of {0} weights are not whole blocks of {BLOCK}")]
    Columns(usize),
    /// A row has the wrong size.
    #[error("row {row} has {found} bytes instead of {expected}")]
    Row {
        /// The row's number.
        row: usize,
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// The matrix does not fit in an address space.
    #[error("a matrix of {0} × {1} weights is too large")]
    Size(usize, usize),
}

/// A matrix `W [N, K]` of coded weights, packed for the kernels. It lies in the device's memory, in huge pages.
pub struct QuantMatrix {
    kind: QuantKind,
    shape: [usize; 2],
    layout: Layout,
    panels: Block,
}

impl QuantMatrix {
    /// From rows of blocks as GGUF files hold them; the codes and scales are kept exactly. `row(i)` gives the bytes of row
    /// i of N, so that rows may come from several tensors, and in another order than they lie in a file.
    pub fn from_blocks<'a>(
        cpu: &Cpu,
        kind: QuantKind,
        shape: [usize; 2],
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self, QuantError> {
        let expected = Self::layout(kind, shape)?.blocks * kind.block_bytes();
        let wrong = (0..shape[0]).map(|i| (i, row(i).len())).find(|&(_, found)| found != expected);
        if let Some((row, found)) = wrong {
            return Err(QuantError::Row { row, found, expected });
        }
        Self::build(cpu, kind, shape, |i| Cow::Borrowed(row(i)))
    }

    /// As [`QuantMatrix::from_blocks`], from rows of which each is made when it is its turn. Panics if one has the wrong size.
    pub(super) fn from_rows<'a>(
        cpu: &Cpu,
        kind: QuantKind,
        shape: [usize; 2],
        row: impl Fn(usize) -> Cow<'a, [u8]> + Sync,
    ) -> Result<Self, QuantError> {
        let expected = Self::layout(kind, shape)?.blocks * kind.block_bytes();
        Self::build(cpu, kind, shape, |i| {
            let bytes = row(i);
            assert_eq!(bytes.len(), expected, "bytes of row {i}");
            bytes
        })
    }

    /// Codes the rows of a dense matrix: see [`QuantKind::encode`]. Panics if there are not `N · K` weights.
    pub fn from_f32(cpu: &Cpu, kind: QuantKind, shape: [usize; 2], weights: &[f32]) -> Result<Self, QuantError> {
        Self::layout(kind, shape)?;
        assert_eq!(weights.len(), shape[0] * shape[1], "weights of {shape:?}");
        Self::build(cpu, kind, shape, |i| Cow::Owned(kind.encode(&weights[i * shape[1]..][..shape[1]])))
    }

    /// The layout of panels, if there can be such a matrix.
    fn layout(kind: QuantKind, [n, k]: [usize; 2]) -> Result<Layout, QuantError> {
        if k == 0 || !k.is_multiple_of(BLOCK) {
            return Err(QuantError::Columns(k));
        }
        // No kind has more than 4 bytes a weight, in a file or in a panel with its padding.
        let bytes = n.max(1).checked_next_multiple_of(LANES).and_then(|n| n.checked_mul(k)?.checked_mul(4));
        let fits = bytes.is_some_and(|bytes| bytes < isize::MAX as usize / 2);
        if fits { Ok(Layout::new(kind, k / BLOCK)) } else { Err(QuantError::Size(n, k)) }
    }

    fn build<'a>(
        cpu: &Cpu,
        kind: QuantKind,
        shape: [usize; 2],
        row: impl Fn(usize) -> Cow<'a, [u8]> + Sync,
    ) -> Result<Self, QuantError> {
        let n = shape[0];
        let (layout, count) = (Self::layout(kind, shape)?, n.div_ceil(LANES));
        let panels = cpu.memory.alloc(count * layout.bytes);
        let matrix = QuantMatrix { kind, shape, layout, panels };
        // SAFETY: the block has that many initialised bytes and nobody else knows of it.
        let all = unsafe { std::slice::from_raw_parts_mut(matrix.panels.as_ptr(), count * layout.bytes) };
        bands(&cpu.pool, count, 1, (all,), |p, (panel,)| {
            let rows = p.start * LANES..(p.end * LANES).min(n);
            pack::pack(kind, layout, rows.map(&row), panel);
        });
        Ok(matrix)
    }

    /// How the weights are coded.
    pub fn kind(&self) -> QuantKind {
        self.kind
    }

    /// N and K.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.panels().len()
    }

    /// Bytes that weights of this kind and shape take.
    pub(super) fn bytes_of(kind: QuantKind, [n, k]: [usize; 2]) -> usize {
        n.div_ceil(LANES) * Layout::new(kind, k / BLOCK).bytes
    }

    /// Writes the K weights of row i of N, each rounded once to f32: what an embedding table is asked for.
    pub fn row(&self, i: usize, weights: &mut [f32]) {
        assert!(i < self.shape[0] && weights.len() == self.shape[1], "row {i} of {:?}", self.shape);
        let panel = self.panel(i / LANES);
        for (b, weights) in weights.chunks_exact_mut(BLOCK).enumerate() {
            let ([d, m], codes) = pack::unpack(self.kind, self.layout, panel, b, i % LANES);
            weights.iter_mut().zip(codes).for_each(|(w, code)| *w = format::weight(self.kind, d, m, code));
        }
    }

    /// All weights, row by row, each rounded once to f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let [n, k] = self.shape;
        let mut weights = vec![0.0; n * k];
        weights.chunks_exact_mut(k).enumerate().for_each(|(i, row)| self.row(i, row));
        weights
    }

    fn panels(&self) -> &[u8] {
        let bytes = self.shape[0].div_ceil(LANES) * self.layout.bytes;
        // SAFETY: the block is ours, has that many initialised bytes, and is not written after it was packed.
        unsafe { std::slice::from_raw_parts(self.panels.as_ptr(), bytes) }
    }

    fn panel(&self, i: usize) -> &[u8] {
        &self.panels()[i * self.layout.bytes..][..self.layout.bytes]
    }
}

impl Cpu {
    /// The instructions that coded weights are multiplied with.
    pub fn quant_instructions(&self) -> &'static str {
        self.quant_kernel.name
    }

    /// For every expert e: `y[band_e] (+)= x[band_e] · W_eᵀ`; x and y are f32 or bf16. See the text of the module on what is
    /// rounded, and in which order sums are made. Bands ascend, are disjoint, and cover the rows of x and y. Panics if the
    /// shapes do not fit.
    pub fn quant(&self, bands: &[Range<usize>], x: View<Self>, w: &[&QuantMatrix], accumulate: bool, y: ViewMut<Self>) {
        let (pool, memory, kernel) = (&*self.pool, &self.memory, self.quant_kernel);
        let ([t, k], [rows, n]) = (x.shape(), y.shape());
        assert_eq!(t, rows, "rows of x and y");
        let call = Call { pool, memory, kernel, bands, w, shape: [t, n, k], accumulate };
        match (x.dtype(), y.dtype()) {
            (DType::F32, DType::F32) => call.run::<f32, f32>(slice(x), slice_mut(y)),
            (DType::F32, DType::Bf16) => call.run::<f32, bf16>(slice(x), slice_mut(y)),
            (DType::Bf16, DType::F32) => call.run::<bf16, f32>(slice(x), slice_mut(y)),
            (DType::Bf16, DType::Bf16) => call.run::<bf16, bf16>(slice(x), slice_mut(y)),
            other => panic!("no product with coded weights of types {other:?}"),
        }
    }
}
