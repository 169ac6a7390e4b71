//! Weights that were packed once: products without packing.
//!
//! Inference multiplies by the same matrices again and again, mostly by a row or two, and then packing, which every call of
//! [`super`] does anew, is all the work. Here it is done when a model is loaded: a matrix lies in the panels that the
//! micro-kernel reads, each over all of k, and a product of one row is one stream through memory from the first byte to
//! the last. The order of additions is that of the module above, so the bits are those of the same product unpacked.
//!
//! What loops around what differs: a panel meets all rows before the next is touched, a stretch of steps after the other, so
//! that every weight is read from memory once, whatever the number of rows. Where there are many, another kernel may be better
//! ([`Source::tall`]).

use super::kernel::{GemmScalar, Kernel, Rows, Source};
use super::pack::{Coming, Side};
use super::plan::{self, Size, Tile};
use super::put::Target;
use super::{Call, Mat, MatMut, Micro, Out, ROWS_BYTES, Sums, pieces, with_buffers};
use crate::cpu::bands::bands;
use crate::cpu::memory::{Block, Memory};
use crate::cpu::pool::Pool;
use crate::cpu::real::To;
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

/// W `[N, K]`, of which rows are lanes: panels of [`Kernel::cols`] rows, one after another.
pub(crate) struct Panels<T> {
    shape: [usize; 2],
    block: Block,
    of: PhantomData<T>,
}

impl<T: Source> Panels<T> {
    /// Packs the rows of a matrix; `row(i)` gives the bytes of row i. Panics if they are not K elements.
    pub fn pack<'a>(
        pool: &Pool,
        memory: &Memory,
        shape: [usize; 2],
        row: impl Fn(usize) -> Cow<'a, [u8]> + Sync,
    ) -> Self {
        let (kernel, [n, k]) = (T::kernel(), shape);
        let mut panels = Panels { shape, block: memory.alloc(Self::bytes(shape)), of: PhantomData };
        let size = Self::panel_len(k);
        let out = panels.elements_mut();
        if size == 0 || n == 0 {
            return panels;
        }
        bands(pool, n.div_ceil(kernel.cols()), 1, (out,), |p, (panel,)| {
            let lanes = p.start * kernel.cols()..(p.end * kernel.cols()).min(n);
            let mut rows = vec![T::zeroed(); lanes.len() * k];
            for (i, to) in lanes.clone().zip(rows.chunks_exact_mut(k)) {
                bytemuck::cast_slice_mut(to).copy_from_slice(&row(i));
            }
            let side = Side { data: T::data(&rows), pitch: k, rows: lanes.len(), lanes_adjacent: false, ahead: 0 };
            kernel.pack_cols(&side, 0..lanes.len(), 0..k, panel);
        });
        panels
    }

    /// Bytes that a matrix takes.
    pub fn bytes([n, k]: [usize; 2]) -> usize {
        n.div_ceil(T::kernel().cols()) * Self::panel_len(k) * size_of::<T>()
    }

    /// N and K.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn panel_len(k: usize) -> usize {
        Micro::<T>::panel(T::kernel().cols(), k)
    }

    fn elements(&self) -> &[T] {
        // SAFETY: the block is ours, has that many initialised bytes, of which any are elements, and is not written any more.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast(), Self::bytes(self.shape) / size_of::<T>()) }
    }

    fn elements_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else borrows it.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr().cast(), Self::bytes(self.shape) / size_of::<T>()) }
    }

    fn panel(&self, cols: Range<usize>) -> &[T] {
        let (at, size) = (cols.start / T::kernel().cols(), Self::panel_len(self.shape[1]));
        &self.elements()[at * size..][..size]
    }

    /// Writes the K weights of row i of N.
    pub fn row<Y>(&self, i: usize, y: &mut [Y])
    where
        T: To<Y>,
    {
        assert!(i < self.shape[0] && y.len() == self.shape[1], "row {i} of {:?}", self.shape);
        let cols = T::kernel().cols();
        let groups = self.panel(i..i + 1).chunks_exact(cols * T::GROUP).map(|step| &step[i % cols * T::GROUP..]);
        y.chunks_mut(T::GROUP).zip(groups).for_each(|(y, w)| y.iter_mut().zip(w).for_each(|(y, w)| *y = w.to()));
    }
}

/// More rows than these are worth packing for another kernel.
const SHORT: usize = 4;

/// One product of a call: `C (+)= A · Wᵀ`.
struct Product<'a, T: Source> {
    a: Side<'a, T::Real>,
    w: &'a Panels<T>,
}

/// For every expert e: `C[band_e] (+)= A[band_e] · W_eᵀ`. Bands ascend, are disjoint, and cover the rows of A and C.
pub(crate) fn gemm_packed<T: Source, C: Target<T> + Target<T::Tall>>(
    pool: &Pool,
    accumulate: bool,
    bands: &[Range<usize>],
    a: Mat<T::Real>,
    w: &[&Panels<T>],
    c: MatMut<C>,
) {
    let kernel = T::kernel();
    assert_eq!(bands.len(), w.len(), "one W for every band");
    assert_eq!(a.rows, c.rows, "rows of A and C");
    let n = c.cols;
    let (mut products, mut sizes, mut outs, mut rest, mut at) = (vec![], vec![], vec![], c, 0);
    for (band, w) in bands.iter().zip(w) {
        assert_eq!((band.start, w.shape), (at, [rest.cols, a.cols]), "bands ascend and cover all rows; shape of W");
        at = band.end;
        let none = MatMut { data: &mut [], rows: 0, cols: 0 };
        let (own, tail) = std::mem::replace(&mut rest, none).split(band.len());
        rest = tail;
        if own.data.is_empty() {
            continue;
        }
        if a.cols == 0 {
            if !accumulate {
                own.data.fill(C::zeroed());
            }
            continue;
        }
        let (own_a, m) = (a.band(band), band.len());
        products
            .push(Product { a: Side { data: own_a.data, pitch: a.cols, rows: m, lanes_adjacent: false, ahead: 0 }, w });
        sizes.push(Size { m, n: own.cols, k: a.cols, packing: [plan::PACKING * kernel.speed, 0.0], putting: 0.0 });
        outs.push(Out(own.data.as_mut_ptr()));
    }
    assert_eq!(at, a.rows, "bands cover all rows");
    let call = Call::new(accumulate, a.rows * n * size_of::<C>());
    let tall = T::tall().filter(|_| a.cols.is_multiple_of(T::GROUP));
    let (mr, step) = tall.map_or((kernel.rows(), size_of::<T>()), |tall| (tall.rows(), size_of::<T::Tall>()));
    let most = ROWS_BYTES / step / a.cols.max(1) / mr * mr;
    let tiles = plan::tiles(&sizes, [mr, kernel.cols()], most.max(mr), pool.threads(), true);
    pool.run(tiles.len(), |i| {
        let tile = &tiles[i];
        let (p, c) = (&products[tile.product], outs[tile.product].0);
        // SAFETY: the tile lies within its product's C, of which `outs` holds the address, borrowed until we return, and
        // it is disjoint from all others.
        unsafe {
            match tall {
                Some(tall) if tile.rows.len() > SHORT => compute(tall, call, p, c, tile),
                _ => compute(kernel, call, p, c, tile),
            }
        }
    });
}

/// One rectangle of C.
///
/// # Safety
/// `c` is the address of the product's C, `tile` lies within it, and nobody else touches these elements meanwhile.
unsafe fn compute<T: GemmScalar, B: Source<Real = T::Real>, C: Target<T>>(
    kernel: &Kernel<T, B>,
    call: Call,
    p: &Product<B>,
    c: *mut C,
    tile: &Tile,
) {
    let ([mr, nr], [n, k]) = (kernel.size, p.w.shape);
    // A single row needs no company, and rows that lie well may stay where they are.
    let in_place = |first: usize, steps: &Range<usize>| match T::own(p.a.data) {
        Some(data) if tile.rows.len() == 1 && steps.len().is_multiple_of(T::GROUP) => {
            Some(Rows { data: &data[first * k + steps.start..], row: k, group: T::GROUP, tiles: false })
        }
        _ => p.a.rows_in_place(first, steps),
    };
    let mut sums = Sums::new(kernel, call, k, false, c, n, tile.rows.len());
    if sums.panels == 1 {
        // Nobody else meets a stretch while it lies in the first cache.
        (sums.stretch, sums.stretches) = (T::BLOCK, false);
    }
    let packed = in_place(tile.rows.start, &(0..k)).is_none();
    let strip = Micro::<T>::panel(mr, k);
    let strips = if packed { sums.panels } else { 0 };
    with_buffers::<T>([0, strips * strip, sums.len(1)], |_, a, space| {
        if packed {
            for (rows, strip) in kernel.row_panels(tile.rows.clone()).zip(a.chunks_exact_mut(strip)) {
                kernel.pack_tiles(&p.a, rows, 0..k, strip);
            }
        }
        for cols in pieces(tile.cols.clone(), nr) {
            let panel = p.w.panel(cols.clone());
            for steps in pieces(0..k, T::BLOCK).flat_map(|block| pieces(block, sums.stretch)) {
                let b = kernel.panel(&panel[steps.start * nr..]);
                for (i, rows) in kernel.row_panels(tile.rows.clone()).enumerate() {
                    let a = match in_place(rows.start, &steps) {
                        Some(rows) if !packed => rows,
                        _ => kernel.packed_tiles(&a[i * strip..], k, steps.start),
                    };
                    let part = [rows, cols.clone(), steps.clone()];
                    // SAFETY: the part lies within the tile, hence within C.
                    unsafe { sums.add([i, 0], part, a, b, space, Coming::NONE) };
                }
            }
        }
    });
    sums.finish();
}
