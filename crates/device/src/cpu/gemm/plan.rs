//! Cutting the products of a call into tasks.
//!
//! A task is a rectangle of one product's C over all of k. Rectangles should be large, because a row of A is packed
//! again for every rectangle to the side and a column of B for every one below, and they should be small, so that the
//! threads finish together although experts differ in size and other programs disturb. The compromise: a rectangle
//! has at most an eighth of a thread's fair share of the call (half if there is only one product, because its parts are
//! equal, or a quarter where packing is less of the work), unless that is too little to be worth a hand-off. Largest
//! first, so that the small ones fill the gaps at the end.
//!
//! The cut depends on the number of threads; results do not (see the module above).

use std::cmp::Ordering;
use std::ops::{Range, RangeInclusive};

/// Cost of packing a step of a lane, and of putting a sum that is turned or rounded, in multiply-adds of the time of f32.
pub(super) const PACKING: f64 = 8.0;
/// As [`PACKING`].
pub(super) const PUTTING: f64 = 8.0;
/// As [`PACKING`], of a byte of C that goes through the caches and might have gone past them: memory reads it first.
pub(super) const THROUGH: f64 = 6.0;
/// Rectangles per thread, if the work is enough: of several products, of one, and of one whose columns are packed already.
const SHARES: [f64; 3] = [8.0, 2.0, 4.0];
/// Rows of a rectangle that keep a thread busy while columns that were packed before come from memory.
const TALL: usize = 128;
/// Least cost of a rectangle that is worth cutting off, in multiply-adds: about 10 µs.
const LEAST: f64 = 1e6;

/// Size of one product, and what there is to do beside multiplying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    /// Rows that are broadcast.
    pub m: usize,
    /// Lanes of vectors.
    pub n: usize,
    /// Steps that are summed over.
    pub k: usize,
    /// Cost of packing an element of either operand.
    pub packing: [f64; 2],
    /// Cost of putting an element of C.
    pub putting: f64,
}

impl Size {
    /// Estimated time, in multiply-adds, with vectors of `lanes`. Fewer than three rows do not keep the multipliers busy.
    pub fn cost(&self, lanes: usize) -> f64 {
        let [m, n, k] = [self.m, self.n, self.k].map(|x| x as f64);
        let busy = self.m.max(3) * self.n.next_multiple_of(lanes);
        k * (busy as f64 + self.packing[0] * m + self.packing[1] * n) + self.putting * m * n
    }
}

/// A rectangle of the C of product number `product`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tile {
    pub product: usize,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

/// Covers every product with m, n, k > 0 by disjoint rectangles whose sides are multiples of the micro-kernel's
/// `[rows, columns]` (except at the ends) and which have at most `most_rows` rows. `ahead`: columns are packed already.
pub(super) fn tiles(products: &[Size], micro: [usize; 2], most_rows: usize, threads: usize, ahead: bool) -> Vec<Tile> {
    let lanes = micro[1] / 2;
    let total: f64 = products.iter().map(|p| p.cost(lanes)).sum();
    // One product alone is cut into equal parts: their number should then be a multiple of the threads.
    let (shares, even) = if products.len() == 1 { (SHARES[1 + usize::from(ahead)], threads) } else { (SHARES[0], 1) };
    let limit = if threads == 1 { f64::INFINITY } else { (total / (threads as f64 * shares)).max(LEAST) };
    let mut tiles = Vec::new();
    for (product, size) in products.iter().enumerate() {
        if size.m == 0 || size.n == 0 || size.k == 0 {
            continue;
        }
        let least_rows = if ahead { TALL.min(most_rows) } else { 1 };
        let [height, width] = sides(size, micro, least_rows..=most_rows, limit, even);
        for top in (0..size.m).step_by(height) {
            for left in (0..size.n).step_by(width) {
                let (rows, cols) = (top..(top + height).min(size.m), left..(left + width).min(size.n));
                let part = Size { m: rows.len(), n: cols.len(), ..*size };
                tiles.push((part.cost(lanes), Tile { product, rows, cols }));
            }
        }
    }
    tiles.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

/// Height and width of the rectangles of one product: the cheapest grid with enough of them, of which each has so many rows
/// if there are so many.
fn sides(size: &Size, micro: [usize; 2], rows: RangeInclusive<usize>, limit: f64, even: usize) -> [usize; 2] {
    let lanes = micro[1] / 2;
    let [down, across] = [size.m.div_ceil(micro[0]), size.n.div_ceil(micro[1])];
    let enough = (size.cost(lanes) / limit).ceil().clamp(1.0, (down * across) as f64) as usize;
    let least = down.div_ceil((rows.end() / micro[0]).max(1));
    let most = (least.max(enough) + even - 1).min(down).min(least.max(size.m / rows.start()));
    let grids = (least..=most).map(|grid_rows| {
        let height = down.div_ceil(grid_rows);
        let width = across.div_ceil(enough.div_ceil(grid_rows).min(across));
        let count = down.div_ceil(height) * across.div_ceil(width);
        let [height, width] = [height * micro[0], width * micro[1]];
        let cost = Size { m: height.min(size.m), n: width.min(size.n), ..*size }.cost(lanes);
        (count.next_multiple_of(even) as f64 * cost, [height, width])
    });
    grids.min_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal)).expect("at least one grid").1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(m: usize, n: usize, k: usize) -> Size {
        Size { m, n, k, packing: [PACKING; 2], putting: 0.0 }
    }

    proptest! {
        #[test]
        fn tiles_cover_every_element_once(
            sizes in prop::collection::vec((0usize..70, 0usize..150, 0usize..4000), 0..5),
            threads in 1usize..9,
            big in 0usize..300,
        ) {
            let mut sizes: Vec<Size> = sizes.into_iter().map(|(m, n, k)| size(m, n, k)).collect();
            if let Some(first) = sizes.first_mut() {
                first.m += big;
            }
            let mut seen: Vec<Vec<u8>> = sizes.iter().map(|s| vec![0; s.m * s.n]).collect();
            for t in tiles(&sizes, [14, 32], 56, threads, false) {
                prop_assert!(t.rows.len() <= 56 && !t.rows.is_empty() && !t.cols.is_empty());
                for i in t.rows {
                    for j in t.cols.clone() {
                        seen[t.product][i * sizes[t.product].n + j] += 1;
                    }
                }
            }
            for (s, seen) in sizes.iter().zip(seen) {
                prop_assert!(seen.iter().all(|&n| n == u8::from(s.k > 0)));
            }
        }
    }

    #[test]
    fn small_experts_stay_whole_and_large_ones_are_split() {
        let expert = |m| size(m, 768, 512);
        let sizes: Vec<Size> = [64; 31].into_iter().chain([4000]).map(expert).collect();
        let tiles = tiles(&sizes, [14, 32], 504, 2, false);
        for p in 0..31 {
            assert_eq!(tiles.iter().filter(|t| t.product == p).count(), 1);
        }
        assert!(tiles.iter().filter(|t| t.product == 31).count() >= 8);
    }

    #[test]
    fn one_product_is_cut_evenly() {
        for threads in [2, 3, 4, 8] {
            for ahead in [false, true] {
                let tiles = tiles(&[size(4096, 1536, 512)], [14, 32], 504, threads, ahead);
                assert_eq!(tiles.len() % threads, 0, "{threads}: {}", tiles.len());
            }
        }
    }
}
