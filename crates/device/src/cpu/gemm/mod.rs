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
//! A matrix unit outruns the caches, so for it a panel of B is shorter than a block: a stretch of steps that lies in the first
//! cache meets all rows, whose sums wait in the second, and then the next stretch does. Its rows of A are packed even where
//! they could be read as they are, in the order in which it reads them ([`Kernel::pack_tiles`]). No bit depends on either.
//!
//! The order of additions is part of the contract. One element of C is
//!
//! ```text
//! ((C₀ + s₀) + s₁) + …     s_b = fma chain from 0 over k = b·K_BLOCK .. (b+1)·K_BLOCK, in order
//! ```
//!
//! (without `C₀` where C is assigned). So its bits depend on its own row of A, its own column of B and K, never on the
//! number of threads, on how C was cut, or on the other rows of the call; and they are the same on every machine that
//! has a fused multiply-add. bf16 in a matrix unit ([`amx`]) has another order within a block, and the same independence.
//!
//! Another type of operand is another [`kernel::Kernel`]: its packed form is known to its two packing functions and its
//! micro-kernel only. bf16 lies there in pairs of steps, as `vdpbf16ps` takes them, and its sums are f32: C may be either
//! ([`put`]).

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod amx;
mod kernel;
mod pack;
mod packed;
mod panels;
mod plan;
mod put;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::pool::Pool;
use super::real::{Real, Stored};
use crate::Gemm;
use kernel::Kernel;
pub(crate) use kernel::{Data, GemmScalar};
use pack::Side;
pub(in crate::cpu) use pack::fetch;
pub(crate) use packed::{Panels, gemm_packed};
pub(in crate::cpu) use panels::{Left, Micro, Operand};
use plan::{Size, Tile};
use put::Target;
use std::cell::RefCell;
use std::ops::Range;

/// Groups of steps of k that are summed in registers. Part of the order of additions: changing it changes results' last
/// bits.
const BLOCK_GROUPS: usize = 512;

/// Bytes of the broadcast operand that a thread goes through at a time: what stays in a second-level cache beside the
/// panel of the other, about.
const ROWS_BYTES: usize = 1 << 20;

/// Bytes of a C that nobody finds in a cache when it is done.
const AWAY: usize = 8 << 20;

/// Steps of k that are summed in registers.
const fn block<T: GemmScalar>() -> usize {
    BLOCK_GROUPS * T::GROUP
}

/// A dense row-major matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, R> {
    data: Data<'a, R>,
    rows: usize,
    cols: usize,
}

/// A dense row-major matrix to write.
pub(crate) struct MatMut<'a, C> {
    data: &'a mut [C],
    rows: usize,
    cols: usize,
}

impl<'a, R: Copy> Mat<'a, R> {
    /// Panics if there are not `rows · cols` elements.
    pub fn new(data: Data<'a, R>, rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        Mat { data, rows, cols }
    }

    fn band(self, band: &Range<usize>) -> Self {
        Mat::new(self.data.part(band.start * self.cols..band.end * self.cols), band.len(), self.cols)
    }
}

impl<'a, C> MatMut<'a, C> {
    /// Panics if the slice does not have `rows · cols` elements.
    pub fn new(data: &'a mut [C], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        MatMut { data, rows, cols }
    }

    /// The first `rows` rows, and the rest.
    fn split(self, rows: usize) -> (Self, Self) {
        let (head, tail) = self.data.split_at_mut(rows * self.cols);
        (MatMut::new(head, rows, self.cols), MatMut::new(tail, self.rows - rows, self.cols))
    }
}

/// `C[M,N] (+)= op(A)[M,K] · op(B)[K,N]`, multiplied in `T`; K may be 0. Panics if the shapes do not fit.
pub(crate) fn gemm<T: GemmScalar, C: Target<T>>(pool: &Pool, g: Gemm, a: Mat<T::Real>, b: Mat<T::Real>, c: MatMut<C>) {
    multiply(pool, T::kernel(), g.accumulate, &mut [Product::new(g, a, b, c)]);
}

/// For every expert e: `C[band_e] (+)= A[band_e] · op(B_e)`. Bands ascend, are disjoint, and cover the rows of A and C.
pub(crate) fn gemm_bands<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    g: Gemm,
    bands: &[Range<usize>],
    a: Mat<T::Real>,
    b: &[Mat<T::Real>],
    c: MatMut<C>,
) {
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
    let mut products: Vec<_> = products.collect();
    assert_eq!(at, a.rows, "bands cover all rows");
    multiply(pool, T::kernel(), g.accumulate, &mut products);
}

/// For every expert e: `acc_C_e[M,N] += A[band_e]ᵀ · B[band_e]`; empty bands leave `C_e`.
pub(crate) fn gemm_bands_outer<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    bands: &[Range<usize>],
    a: Mat<T::Real>,
    b: Mat<T::Real>,
    acc_c: Vec<MatMut<C>>,
) {
    assert_eq!(bands.len(), acc_c.len(), "one C for every band");
    let products = bands.iter().zip(acc_c).map(|(band, c)| Product::new(Gemm::TN_ACC, a.band(band), b.band(band), c));
    multiply(pool, T::kernel(), true, &mut products.collect::<Vec<_>>());
}

/// One product of a call: `C (+)= op(A) · op(B)`, and how it is computed.
struct Product<'a, R, C> {
    size: Size,
    /// The operand whose elements are broadcast.
    rows: Side<'a, R>,
    /// The operand that is packed into vectors.
    lanes: Side<'a, R>,
    /// Whether these are the columns and the rows of C, in this order.
    turned: bool,
    c: &'a mut [C],
    /// Columns of C.
    pitch: usize,
}

impl<'a, R: Real, C: Stored<Real = R>> Product<'a, R, C> {
    fn new(g: Gemm, a: Mat<'a, R>, b: Mat<'a, R>, c: MatMut<'a, C>) -> Self {
        let rows = Side { data: a.data, pitch: a.cols, rows: a.rows, lanes_adjacent: g.ta, ahead: 0 };
        let lanes = Side { data: b.data, pitch: b.cols, rows: b.rows, lanes_adjacent: !g.tb, ahead: 0 };
        assert_eq!(rows.steps(), lanes.steps(), "inner size of a product");
        assert_eq!((rows.lanes(), lanes.lanes()), (c.rows, c.cols), "shape of a product");
        let size = Size { m: c.rows, n: c.cols, k: rows.steps(), packing: [0.0; 2], putting: 0.0 };
        Product { size, rows, lanes, turned: false, c: c.data, pitch: c.cols }
    }

    /// Chooses the cheaper way round.
    fn plan<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>)
    where
        C: Target<T>,
    {
        self.estimate(kernel);
        let straight = self.size.cost(kernel.lanes());
        self.turn(kernel);
        if self.size.cost(kernel.lanes()) >= straight {
            self.turn(kernel);
        }
        let few = self.size.m <= 2 * kernel.rows();
        self.lanes.ahead = if few && !self.lanes.lanes_adjacent { kernel.cols() * self.lanes.pitch } else { 0 };
    }

    /// Exchanges the roles of the operands.
    fn turn<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>)
    where
        C: Target<T>,
    {
        std::mem::swap(&mut self.rows, &mut self.lanes);
        std::mem::swap(&mut self.size.m, &mut self.size.n);
        self.turned = !self.turned;
        self.estimate(kernel);
    }

    /// Whether rows are read where they are. A matrix unit reads them so fast that they are worth packing unless they meet
    /// few columns.
    fn in_place<T: GemmScalar<Real = R>>(&self, kernel: &Kernel<T>) -> bool {
        let worth = !kernel.rows_adjacent && self.size.n > 2 * kernel.cols();
        !worth && self.rows.rows_in_place::<T>(0, &(0..self.size.k)).is_some()
    }

    /// What there is to do beside multiplying.
    fn estimate<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>)
    where
        C: Target<T>,
    {
        let in_place = self.in_place(kernel);
        let blocks = if C::EXACT { self.size.k.div_ceil(block::<T>()) } else { 1 };
        // A group is transposed as quickly as an element of that size, but lanes that lie side by side must be interleaved.
        let beside = |cost: f64| cost * kernel.speed;
        let packing = |side: &Side<R>| beside(plan::PACKING) * if side.lanes_adjacent { T::GROUP as f64 } else { 1.0 };
        self.size.packing = [if in_place { 0.0 } else { packing(&self.rows) }, packing(&self.lanes)];
        self.size.putting =
            if self.turned || !C::EXACT { beside(plan::PUTTING) * (blocks * T::GROUP) as f64 } else { 0.0 };
    }
}

/// C of one product, which threads write disjoint rectangles of.
struct Out<C>(*mut C);
// SAFETY: tiles of a plan are disjoint, so no two threads touch the same element.
unsafe impl<C: Send> Sync for Out<C> {}

fn multiply<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    kernel: &Kernel<T>,
    accumulate: bool,
    products: &mut [Product<T::Real, C>],
) {
    products.iter_mut().for_each(|p| p.plan(kernel));
    run(pool, kernel, accumulate, products);
}

/// All products of a call in one hand-off.
fn run<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    kernel: &Kernel<T>,
    accumulate: bool,
    products: &mut [Product<T::Real, C>],
) {
    if !accumulate {
        products.iter_mut().filter(|p| p.size.k == 0).for_each(|p| p.c.fill(C::zeroed()));
    }
    let sizes: Vec<Size> = products.iter().map(|p| p.size).collect();
    let steps = sizes.iter().map(|size| size.k).max().unwrap_or(0).clamp(1, block::<T>());
    let most_rows = (ROWS_BYTES / size_of::<T>() / steps).next_multiple_of(kernel.rows()) - kernel.rows();
    let tiles = plan::tiles(&sizes, [kernel.rows(), kernel.cols()], most_rows, pool.threads());
    let outs: Vec<Out<C>> = products.iter_mut().map(|p| Out(p.c.as_mut_ptr())).collect();
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
    /// A thread's working space, kept between calls.
    static BUFFER: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with buffers of `n`, `m` and `sums` elements.
fn with_buffers<T: GemmScalar>([n, m, sums]: [usize; 3], f: impl FnOnce(&mut [T], &mut [T], &mut [T::Real])) {
    let [n, m] = [n, m].map(|n| (n * size_of::<T>()).div_ceil(size_of::<Line>()));
    let sums = (sums * size_of::<T::Real>()).div_ceil(size_of::<Line>());
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < n + m + sums {
            *buffer = vec![Line([0; 64]); n + m + sums];
        }
        let (first, rest) = buffer.split_at_mut(n);
        let (second, rest) = rest.split_at_mut(m);
        use bytemuck::cast_slice_mut as cast;
        f(cast(first), cast(second), cast(&mut rest[..sums]));
    });
}

/// One rectangle of C.
///
/// # Safety
/// `c` is the address of the product's C, `tile` lies within it, and nobody else touches these elements meanwhile.
unsafe fn compute<T: GemmScalar, C: Target<T>>(
    kernel: &Kernel<T>,
    accumulate: bool,
    p: &Product<T::Real, C>,
    c: *mut C,
    tile: &Tile,
) {
    let ([mr, nr], k, block, panel) = (kernel.size, p.size.k, block::<T>(), Micro::<T>::panel);
    let row_panels = tile.rows.len().div_ceil(mr);
    let packed_rows = if p.in_place(kernel) { 0 } else { row_panels };
    // Sums of a column of tiles wait in `sums` where they are not complete after one stretch of steps, or not of C's type, or
    // do not lie as C does; those that must be rounded once, but are not complete after one block, wait in `totals`.
    let stretches = k.min(block) > kernel.stretch;
    let waiting = !C::EXACT && k > block;
    let large = p.size.m * p.size.n * size_of::<C>() >= AWAY;
    let away = large && kernel.away.is_some() && !accumulate && !p.turned && (waiting || k <= block);
    let direct = C::EXACT && !p.turned && !away;
    let (one, all) = (mr * nr, row_panels * mr * nr);
    let own = if stretches { all } else { one };
    let totals = if waiting { all * tile.cols.len().div_ceil(nr) } else { 0 };
    let stretch = k.min(block).min(kernel.stretch);
    let sizes = [packed_rows * panel(mr, k.min(block)), panel(nr, stretch), own + totals];
    with_buffers::<T>(sizes, |a_block, b_panel, sums| {
        let (sums, totals) = sums.split_at_mut(own);
        for steps in pieces(0..k, block) {
            let (first, last) = (steps.start == 0, steps.end == k);
            let a_panels = || pieces(tile.rows.clone(), mr).zip(pieces(0..usize::MAX, panel(mr, steps.len())));
            if packed_rows > 0 {
                for (rows, at) in a_panels() {
                    kernel.pack_tiles(&p.rows, rows, steps.clone(), &mut a_block[at]);
                }
            }
            for (j, cols) in pieces(tile.cols.clone(), nr).enumerate() {
                for part in pieces(steps.clone(), stretch) {
                    let b_panel = &mut b_panel[..panel(nr, part.len())];
                    kernel.pack_cols(&p.lanes, cols.clone(), part.clone(), b_panel);
                    let [begins, ends] = [part.start == steps.start, part.end == steps.end];
                    // Meanwhile the next one is fetched from memory, a piece with each product of panels.
                    let (next_cols, next_part) = if ends {
                        (
                            cols.end..(cols.end + nr).min(tile.cols.end),
                            steps.start..(steps.start + stretch).min(steps.end),
                        )
                    } else {
                        (cols.clone(), part.end..(part.end + stretch).min(steps.end))
                    };
                    for (i, (rows, at)) in a_panels().enumerate() {
                        if p.lanes.ahead == 0 {
                            p.lanes.prefetch(next_cols.clone(), next_part.clone(), i, row_panels);
                        }
                        let size = [rows.len(), cols.len(), part.len()];
                        let a = match p.rows.rows_in_place(rows.start, &part) {
                            Some(rows) if packed_rows == 0 => rows,
                            _ => kernel.packed_tiles(&a_block[at], steps.len(), part.start - steps.start),
                        };
                        // SAFETY: the rectangle `rows × cols` lies within the tile, hence within C, whose rows are `pitch`
                        // apart; sums and totals are whole tiles.
                        unsafe {
                            let to = if p.turned { [cols.start, rows.start] } else { [rows.start, cols.start] };
                            let c = c.add(to[0] * p.pitch + to[1]);
                            let adding = accumulate || !first;
                            let direct = direct && (!stretches || !adding && cols.len() == nr);
                            // Whole tiles alone are chained, so in `sums` they are whole.
                            let (to, pitch, size) = if direct {
                                (c.cast(), p.pitch, size)
                            } else {
                                let at = if stretches { i * one } else { 0 };
                                (sums[at..].as_mut_ptr(), nr, [size[0], nr, size[2]])
                            };
                            if begins {
                                kernel.tile(size, a, b_panel, to, pitch, direct && adding);
                            } else {
                                kernel.add(size, a, b_panel, to, pitch);
                            }
                            if direct {
                                continue;
                            }
                            let size = [rows.len(), cols.len()];
                            if ends && waiting {
                                let total = totals[(j * row_panels + i) * one..].as_mut_ptr();
                                (kernel.put)(to, size, false, total, nr, !first);
                                if last {
                                    C::put(kernel, away)(total, size, p.turned, c, p.pitch, accumulate);
                                }
                            } else if ends {
                                C::put(kernel, away)(to, size, p.turned, c, p.pitch, adding);
                            }
                        }
                    }
                }
            }
        }
    });
    if away {
        fence();
    }
}

/// Lets whoever takes the tile over see what was written past the caches.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it.
    #[allow(unused_unsafe, reason = "safe in newer compilers")]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

/// Cuts a range into pieces of `piece`, the last one shorter.
fn pieces(range: Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(piece).map(move |start| start..(start + piece).min(end))
}
