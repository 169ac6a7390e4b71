//! Matrix products: where most of a step's time goes.
//!
//! The structure is Goto's (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"), with one
//! level fewer. A call is a list of products (one, or one per expert). [`plan`] cuts each into rectangles of C, the
//! largest first, and the threads take them one by one in a single hand-off: small experts go whole to a thread, large
//! ones are split. A rectangle is computed for one block of `K_BLOCK` steps of k after another: its rows of A are
//! packed into panels that stay in the second cache ([`pack`]), then for each panel of columns, B's panel is packed and
//! met with each of A's by a micro-kernel that keeps a small tile of C in registers ([`kernel`]). A panel of B is used
//! while it is hot and then forgotten, so there is no buffer of the size of B, threads share nothing, and a product with
//! a single row (decoding) reads its weights once, near the speed of memory.
//!
//! The order of additions is part of the contract. One element of C is
//!
//! ```text
//! ((C₀ + s₀) + s₁) + …     s_b = fma chain from 0 over k = b·K_BLOCK .. (b+1)·K_BLOCK, in order
//! ```
//!
//! (without `C₀` where C is assigned). So its bits depend on its own row of A, its own column of B and K, never on the
//! number of threads, on how C was cut, or on the other rows of the call; and they are the same on every machine that
//! has a fused multiply-add.
//!
//! Another type of operand is another [`kernel::Kernel`]: its packed form is known to its two packing functions and its
//! micro-kernel only (bf16 would lie there in pairs of steps, for `vdpbf16ps`). What bf16 adds beyond an entry in the
//! type's list is a type for C that differs from the operands', and panels of an even number of steps.

mod kernel;
mod pack;
mod panels;
mod plan;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::pool::Pool;
use crate::Gemm;
use bytemuck::Zeroable;
pub(crate) use kernel::GemmScalar;
use kernel::Kernel;
#[cfg(test)]
use kernel::Source;
use pack::Side;
pub(in crate::cpu) use panels::{Micro, Operand};
use plan::{Size, Tile};
use std::cell::RefCell;
use std::ops::Range;

/// Steps of k that are summed in registers. Part of the order of additions: changing it changes results' last bits.
const K_BLOCK: usize = 512;

/// Bytes of A that a thread packs at a time: what stays in a second-level cache beside the panel of B, about.
const A_BLOCK: usize = 1 << 20;

/// A dense row-major matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
}

/// A dense row-major matrix to write.
pub(crate) struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
}

impl<'a, T: Copy> Mat<'a, T> {
    /// Panics if the slice does not have `rows · cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        Mat { data, rows, cols }
    }

    fn band(self, band: &Range<usize>) -> Self {
        Mat::new(&self.data[band.start * self.cols..band.end * self.cols], band.len(), self.cols)
    }
}

impl<'a, T> MatMut<'a, T> {
    /// Panics if the slice does not have `rows · cols` elements.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        MatMut { data, rows, cols }
    }

    /// The first `rows` rows, and the rest.
    fn split(self, rows: usize) -> (Self, Self) {
        let (head, tail) = self.data.split_at_mut(rows * self.cols);
        (MatMut::new(head, rows, self.cols), MatMut::new(tail, self.rows - rows, self.cols))
    }
}

/// `C[M,N] (+)= op(A)[M,K] · op(B)[K,N]`; K may be 0. Panics if the shapes do not fit.
pub(crate) fn gemm<T: GemmScalar>(pool: &Pool, g: Gemm, a: Mat<T>, b: Mat<T>, c: MatMut<T::Sum>) {
    multiply(pool, T::kernel(), g.accumulate, &mut [Product::new(g, a, b, c)]);
}

/// For every expert e: `C[band_e] (+)= A[band_e] · op(B_e)`. Bands ascend, are disjoint, and cover the rows of A and C.
pub(crate) fn gemm_bands<T: GemmScalar>(
    pool: &Pool,
    g: Gemm,
    bands: &[Range<usize>],
    a: Mat<T>,
    b: &[Mat<T>],
    c: MatMut<T::Sum>,
) {
    multiply(pool, T::kernel(), g.accumulate, &mut by_bands(g, bands, a, b, c));
}

/// For every expert e: `acc_C_e[M,N] += A[band_e]ᵀ · B[band_e]`; empty bands leave `C_e`.
pub(crate) fn gemm_bands_outer<T: GemmScalar>(
    pool: &Pool,
    bands: &[Range<usize>],
    a: Mat<T>,
    b: Mat<T>,
    acc_c: Vec<MatMut<T::Sum>>,
) {
    multiply(pool, T::kernel(), true, &mut by_bands_outer(bands, a, b, acc_c));
}

fn by_bands<'a, T: GemmScalar>(
    g: Gemm,
    bands: &[Range<usize>],
    a: Mat<'a, T>,
    b: &[Mat<'a, T>],
    c: MatMut<'a, T::Sum>,
) -> Vec<Product<'a, T>> {
    assert!(!g.ta, "bands are rows of A as stored");
    assert_eq!(bands.len(), b.len(), "one B for every band");
    assert_eq!(a.rows, c.rows, "rows of A and C");
    let (mut rest, mut at) = (c, 0);
    let products = bands.iter().zip(b).map(|(band, b)| {
        assert_eq!(band.start, at, "bands ascend and cover all rows");
        at = band.end;
        let none = MatMut { data: &mut [], rows: 0, cols: 0 };
        let (own, tail) = std::mem::replace(&mut rest, none).split(band.len());
        rest = tail;
        Product::new(g, a.band(band), *b, own)
    });
    let products = products.collect();
    assert_eq!(at, a.rows, "bands cover all rows");
    products
}

fn by_bands_outer<'a, T: GemmScalar>(
    bands: &[Range<usize>],
    a: Mat<'a, T>,
    b: Mat<'a, T>,
    acc_c: Vec<MatMut<'a, T::Sum>>,
) -> Vec<Product<'a, T>> {
    assert_eq!(bands.len(), acc_c.len(), "one C for every band");
    bands.iter().zip(acc_c).map(|(band, c)| Product::new(Gemm::TN_ACC, a.band(band), b.band(band), c)).collect()
}

/// One product of a call: `C (+)= op(A) · op(B)`, the operands as the packing sees them.
struct Product<'a, T: GemmScalar> {
    size: Size,
    a: Side<'a, T>,
    b: Side<'a, T>,
    c: &'a mut [T::Sum],
}

impl<'a, T: GemmScalar> Product<'a, T> {
    fn new(g: Gemm, a: Mat<'a, T>, b: Mat<'a, T>, c: MatMut<'a, T::Sum>) -> Self {
        let a = Side { data: T::data(a.data), pitch: a.cols, rows: a.rows, lanes_adjacent: g.ta };
        let b = Side { data: T::data(b.data), pitch: b.cols, rows: b.rows, lanes_adjacent: !g.tb };
        assert_eq!(a.steps(), b.steps(), "inner size of a product");
        assert_eq!((a.lanes(), b.lanes()), (c.rows, c.cols), "shape of a product");
        Product { size: Size { m: c.rows, n: c.cols, k: a.steps() }, a, b, c: c.data }
    }
}

/// C of one product, which threads write disjoint rectangles of.
struct Out<T>(*mut T);
// SAFETY: tiles of a plan are disjoint, so no two threads touch the same element.
unsafe impl<T: Send> Sync for Out<T> {}

/// All products of a call in one hand-off.
fn multiply<T: GemmScalar>(pool: &Pool, kernel: &Kernel<T>, accumulate: bool, products: &mut [Product<T>]) {
    if !accumulate {
        products.iter_mut().filter(|p| p.size.k == 0).for_each(|p| p.c.fill(T::Sum::zeroed()));
    }
    let sizes: Vec<Size> = products.iter().map(|p| p.size).collect();
    let most_rows = (A_BLOCK / size_of::<T>() / K_BLOCK).next_multiple_of(kernel.rows()) - kernel.rows();
    let tiles = plan::tiles(&sizes, [kernel.rows(), kernel.cols()], most_rows, pool.threads());
    let outs: Vec<Out<T::Sum>> = products.iter_mut().map(|p| Out(p.c.as_mut_ptr())).collect();
    let products = &*products;
    pool.run(tiles.len(), |i| {
        let tile = &tiles[i];
        // SAFETY: the tile lies within its product's C, of which `outs` holds the address, borrowed until we return, and
        // it is disjoint from all others.
        unsafe { compute(kernel, accumulate, &products[tile.product], outs[tile.product].0, tile) }
    });
}

/// A cache line, the unit of the packing buffers.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// A thread's packing buffer, kept between calls.
    static BUFFER: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with two buffers of `n` and `m` elements.
fn with_buffers<T: GemmScalar>(n: usize, m: usize, f: impl FnOnce(&mut [T], &mut [T])) {
    let lines = |n: usize| (n * size_of::<T>()).div_ceil(size_of::<Line>());
    BUFFER.with_borrow_mut(|buffer| {
        let need = lines(n) + lines(m);
        if buffer.len() < need {
            *buffer = vec![Line([0; 64]); need];
        }
        let (first, second) = buffer[..need].split_at_mut(lines(n));
        f(bytemuck::cast_slice_mut(first), bytemuck::cast_slice_mut(second));
    });
}

/// One rectangle of C.
///
/// # Safety
/// `c` is the address of the product's C, `tile` lies within it, and nobody else touches these elements meanwhile.
unsafe fn compute<T: GemmScalar>(kernel: &Kernel<T>, accumulate: bool, p: &Product<T>, c: *mut T::Sum, tile: &Tile) {
    let [mr, nr] = kernel.size;
    let Size { n, k, .. } = p.size;
    let k_block = k.min(K_BLOCK).next_multiple_of(T::GROUP);
    let row_panels = tile.rows.len().div_ceil(mr);
    with_buffers(row_panels * mr * k_block, nr * k_block, |a_block, b_panel| {
        for steps in pieces(0..k, K_BLOCK) {
            let accumulate = accumulate || steps.start > 0;
            let a_panels = || {
                pieces(tile.rows.clone(), mr).zip(pieces(0..usize::MAX, mr * steps.len().next_multiple_of(T::GROUP)))
            };
            for (rows, at) in a_panels() {
                kernel.pack_rows(&p.a, rows, steps.clone(), &mut a_block[at]);
            }
            for cols in pieces(tile.cols.clone(), nr) {
                // Meanwhile the next panel is fetched from memory, a part with each piece of work: with many rows they
                // are the products of panels, with few rows there are not enough of those, and packing is the work.
                let next = cols.end..(cols.end + nr).min(tile.cols.end);
                let fetch = |part, parts| p.b.prefetch(next.clone(), steps.clone(), part, parts);
                let few = row_panels < 3;
                let piece = if few { 16 } else { K_BLOCK };
                for (i, some) in pieces(steps.clone(), piece).enumerate() {
                    if few {
                        fetch(i, steps.len().div_ceil(piece));
                    }
                    let at = nr * (some.start - steps.start)..nr * (some.end - steps.start).next_multiple_of(T::GROUP);
                    kernel.pack_cols(&p.b, cols.clone(), some, &mut b_panel[at]);
                }
                for (i, (rows, at)) in a_panels().enumerate() {
                    if !few {
                        fetch(i, row_panels);
                    }
                    // SAFETY: the rectangle `rows × cols` lies within the tile, hence within C, whose rows are n apart.
                    unsafe {
                        let c = c.add(rows.start * n + cols.start);
                        kernel.tile([rows.len(), cols.len(), steps.len()], &a_block[at], b_panel, c, n, accumulate);
                    }
                }
            }
        }
    });
}

/// Cuts a range into pieces of `piece`, the last one shorter.
fn pieces(range: Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(piece).map(move |start| start..(start + piece).min(end))
}
