//! One call: rounding its rows, cutting it into tasks, and computing each.
//!
//! The rows of every product are first rounded, in groups as tall as the micro-kernel or, since groups of a product are
//! of nearly equal height, a little less. Then the products are cut into pieces, some panels of weights by some groups of
//! rows, and threads take them one by one, the largest first. Panels need no packing and rows are rounded once, so cutting
//! across costs nothing: small products (the experts of a few tokens) stay whole, larger ones are split by panels until
//! the threads can share them evenly, and only rows that no longer fit the second cache are split too. Within a piece a
//! panel stays in the first cache while all groups meet it: every weight is read from memory once.

use super::QuantMatrix;
use super::format::BLOCK;
use super::kernel::Kernel;
use super::pack::LANES;
use super::rows::{RowBlock, round_row};
use crate::cpu::bands::{Scattered, TASK};
use crate::cpu::memory::Memory;
use crate::cpu::{Pool, Stored};
use std::ops::Range;

/// Bytes of rounded rows that a piece goes through again and again: what stays in a second-level cache, about.
const ROWS_BYTES: usize = 512 << 10;
/// Multiply-adds, and bytes of weights from memory, that a thread does in a nanosecond, about.
const SPEED: [f64; 2] = [150.0, 12.0];
/// Pieces per thread, if the work is enough: of several products, and of one.
const SHARES: [f64; 2] = [8.0, 4.0];
/// Least nanoseconds of a piece that is worth cutting off.
const LEAST: f64 = 5e3;

/// A call.
pub(super) struct Call<'a> {
    pub pool: &'a Pool,
    pub memory: &'a Memory,
    pub kernel: &'static Kernel,
    /// Rows of x and y of each product.
    pub bands: &'a [Range<usize>],
    pub w: &'a [&'a QuantMatrix],
    /// T, N, K.
    pub shape: [usize; 3],
    pub accumulate: bool,
}

/// Panels of weights of one product by groups of its rows.
struct Piece {
    product: usize,
    groups: Range<usize>,
    panels: Range<usize>,
    cost: f64,
}

impl Call<'_> {
    /// Panics if shapes or bands do not fit.
    pub fn run<A: Stored<Real = f32>, C: Stored<Real = f32>>(&self, x: &[A], y: &mut [C]) {
        let [t, n, k] = self.shape;
        self.check();
        assert_eq!((x.len(), y.len()), (t * k, t * n), "elements of x and y");
        let (blocks, groups) = (k / BLOCK, self.groups());
        let space = self.memory.alloc(t * blocks * size_of::<RowBlock>());
        // SAFETY: the block has that many initialised bytes, is aligned to a cache line, is ours alone, and any bits are a
        // `RowBlock`.
        let rounded = unsafe { std::slice::from_raw_parts_mut(space.as_ptr().cast::<RowBlock>(), t * blocks) };
        self.round(x, &groups, rounded);
        let (rounded, y) = (&*rounded, Scattered::new(y));
        let pieces = self.pieces(&groups);
        self.pool.run(pieces.len(), |i| self.compute(&pieces[i], &groups, rounded, &y));
    }

    fn check(&self) {
        let ([t, n, k], mut at) = (self.shape, 0);
        assert_eq!(self.bands.len(), self.w.len(), "one W for every band");
        for (band, w) in self.bands.iter().zip(self.w) {
            assert_eq!(w.shape, [n, k], "shape of W");
            assert!(band.start == at && band.end >= at, "bands ascend and cover all rows");
            at = band.end;
        }
        assert_eq!(at, t, "bands cover all rows");
    }

    /// Rows of every group, and its product; they ascend and cover all rows.
    fn groups(&self) -> Vec<(usize, Range<usize>)> {
        let mut groups = Vec::new();
        for (product, band) in self.bands.iter().enumerate() {
            let count = band.len().div_ceil(self.kernel.rows);
            let edge = |i: usize| band.start + i * band.len() / count;
            groups.extend((0..count).map(|i| (product, edge(i)..edge(i + 1))));
        }
        groups
    }

    /// Rounds all rows; a group's lie where they would in `[T, blocks]`, interleaved.
    fn round<A: Stored<Real = f32>>(&self, x: &[A], groups: &[(usize, Range<usize>)], rounded: &mut [RowBlock]) {
        let [t, _, k] = self.shape;
        let (blocks, rounded) = (k / BLOCK, Scattered::new(rounded));
        let round = |i: usize| {
            let rows = groups[i].1.clone();
            // SAFETY: groups are disjoint, and each is rounded once.
            let out = unsafe { rounded.run(rows.start * blocks, rows.len() * blocks) };
            for (r, row) in x[rows.start * k..rows.end * k].chunks_exact(k).enumerate() {
                round_row(row, rows.len(), &mut out[r..]);
            }
        };
        if t * k <= TASK { (0..groups.len()).for_each(round) } else { self.pool.run(groups.len(), round) }
    }

    /// The pieces of all products, the largest first. Their bounds may depend on the number of threads, results do not.
    fn pieces(&self, groups: &[(usize, Range<usize>)]) -> Vec<Piece> {
        let [_, n, k] = self.shape;
        let (threads, panels) = (self.pool.threads(), n.div_ceil(LANES));
        let most = (ROWS_BYTES / (self.kernel.rows * k / BLOCK * size_of::<RowBlock>())).max(1);
        // Whole products, of no more rows than fit the cache.
        let mut whole = Vec::new();
        let mut first = 0;
        for same in groups.chunk_by(|a, b| a.0 == b.0) {
            for part in same.chunks(most) {
                let rows: usize = part.iter().map(|g| g.1.len()).sum();
                let product = part[0].0;
                let compute = (rows * n * k) as f64 / SPEED[0];
                let cost = compute.max(self.w[product].bytes() as f64 / SPEED[1]);
                whole.push(Piece { product, groups: first..first + part.len(), panels: 0..panels, cost });
                first += part.len();
            }
        }
        if threads == 1 {
            return whole;
        }
        let total: f64 = whole.iter().map(|p| p.cost).sum();
        // One product alone is cut into equal parts: their number should then be a multiple of the threads.
        let (shares, even) = if whole.len() == 1 { (SHARES[1], threads) } else { (SHARES[0], 1) };
        let limit = (total / (threads as f64 * shares)).max(LEAST);
        let mut pieces = Vec::new();
        for p in whole {
            let parts = ((p.cost / limit).ceil() as usize).next_multiple_of(even).min(panels);
            let edge = |i: usize| i * panels / parts;
            pieces.extend((0..parts).map(|i| Piece {
                panels: edge(i)..edge(i + 1),
                groups: p.groups.clone(),
                cost: p.cost / parts as f64,
                ..p
            }));
        }
        pieces.sort_by(|a, b| b.cost.total_cmp(&a.cost));
        pieces
    }

    fn compute<C: Stored<Real = f32>>(
        &self,
        piece: &Piece,
        groups: &[(usize, Range<usize>)],
        rounded: &[RowBlock],
        y: &Scattered<C>,
    ) {
        let ([_, n, k], w) = (self.shape, self.w[piece.product]);
        let blocks = k / BLOCK;
        let mut sums = [[0.0; LANES]; MOST_ROWS];
        for p in piece.panels.clone() {
            let (panel, cols) = (w.panel(p), p * LANES..((p + 1) * LANES).min(n));
            for (_, rows) in &groups[piece.groups.clone()] {
                let sums = &mut sums[..rows.len()];
                self.kernel.tile(w.kind, w.layout, panel, &rounded[rows.start * blocks..rows.end * blocks], sums);
                for (row, sums) in rows.clone().zip(sums) {
                    // SAFETY: pieces are disjoint in product and rows, or in panels; and so are these elements.
                    let y = unsafe { y.run(row * n + cols.start, cols.len()) };
                    for (y, &sum) in y.iter_mut().zip(&*sums) {
                        *y = C::narrow(if self.accumulate { y.widen() + sum } else { sum });
                    }
                }
            }
        }
    }
}

/// Most rows of any micro-kernel.
const MOST_ROWS: usize = 16;
