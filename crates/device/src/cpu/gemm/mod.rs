//! Matrix products: where most of a step's time goes.
//!
//! The structure is Goto's (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"), with one
//! level fewer. A call is a list of products (one, or one per expert). [`plan`] cuts each into rectangles of C, the
//! largest first, and the threads take them one by one in a single hand-off: small experts go whole to a thread, large
//! ones are split. A rectangle is computed for one block of [`GemmScalar::BLOCK`] steps of k after another: its rows of A are
//! packed into panels that stay in the second cache ([`pack`]), then for each panel of columns, B's panel is packed and
//! met with each of A's by a micro-kernel that keeps a small tile of C in registers ([`kernel`]). A panel of B is used
//! while it is hot and then forgotten, so that a product with a single row (decoding) reads its weights once, near the speed
//! of memory. Only where several rectangles need the same columns, and that would take longer, do all threads pack these
//! columns once before ([`ahead`]). Few columns, such as the tokens of a small expert turned, all stay in the second cache, and the
//! weights pass by as rows where they are ([`pass`]). And where few rows meet columns that lie side by side already, the
//! micro-kernel reads these where they are, too ([`FEW`]).
//!
//! A matrix unit outruns the caches, so for it a panel of B is shorter than a block: a stretch of steps that lies in the first
//! cache meets all rows, whose sums wait in the second, and then the next stretch does. Its rows of A are packed even where
//! they could be read as they are, in the order in which it reads them ([`Kernel::pack_tiles`]). No bit depends on any of this.
//!
//! The order of additions is part of the contract. One element of C is
//!
//! ```text
//! ((C₀ + s₀) + s₁) + …     s_b = fma chain from 0 over k = b·BLOCK .. (b+1)·BLOCK, in order
//! ```
//!
//! (without `C₀` where C is assigned). So its bits depend on its own row of A, its own column of B and K, never on the
//! number of threads, on how C was cut, or on the other rows of the call; and they are the same on every machine that
//! has a fused multiply-add. bf16 in a matrix unit ([`amx`]), and f32 there in parts ([`thirds`]), have another order within a
//! block, and the same independence.
//!
//! Another type of operand is another [`kernel::Kernel`]: its packed form is known to its two packing functions and its
//! micro-kernel only. bf16 lies there in pairs of steps, as `vdpbf16ps` takes them, and its sums are f32: C may be either
//! ([`put`]).

mod ahead;
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
mod thirds;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod transpose;
mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::lines::{away, fence, fetch};
use super::memory::{Memory, Scratch};
use super::pool::Pool;
use super::real::{Real, Stored};
use super::squares::Squares;
use crate::Gemm;
use ahead::{AHEAD_BYTES, Ahead, Turn};
use kernel::{Cols, Kernel, Rows};
pub(crate) use kernel::{Data, GemmScalar, Source};
use pack::{Coming, Lines, Side, Stretches};
pub(crate) use packed::{Panels, gemm_packed};
pub(in crate::cpu) use panels::{Left, Micro, Operand};
use plan::Size;
use put::Target;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::{LazyLock, Mutex};
pub(crate) use thirds::Thirds;
pub(crate) use wide::Wide;

/// Bytes of the broadcast operand that a thread goes through at a time: what stays in a second-level cache beside the
/// panel of the other, about.
const ROWS_BYTES: usize = 1 << 20;
/// Bytes of columns that stay there while rows pass through.
const COLUMNS_BYTES: usize = 1 << 19;
/// Rows that are few: columns meet them where they are, if they can be read so, or packed in the quickest way
/// ([`GemmScalar::few`]). With more, packing costs less than reading lines that lie apart again and again.
const FEW: usize = 70;

/// Whether this machine multiplies bf16 sooner than f32.
pub(in crate::cpu) fn multiplies_bf16() -> bool {
    matches!(half::bf16::kernel().name, "amx_bf16" | "avx512_bf16")
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

/// For every expert e: `C_e[M,N] (+)= A[band_e]ᵀ · B[band_e]`; an empty band makes `C_e` zero, or leaves it. The sum of squares of
/// each, where that is asked for and known.
pub(crate) fn gemm_bands_outer<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    g: Gemm,
    bands: &[Range<usize>],
    a: Mat<T::Real>,
    b: Mat<T::Real>,
    c: Vec<MatMut<C>>,
) -> Vec<Option<f64>> {
    assert!(g.ta && !g.tb, "bands are steps of the sum");
    assert_eq!(bands.len(), c.len(), "one C for every band");
    let products = bands.iter().zip(c).map(|(band, c)| Product::new(g, a.band(band), b.band(band), c));
    let mut products: Vec<_> = products.collect();
    multiply(pool, T::kernel(), g.accumulate, &mut products);
    products.iter().map(Product::sum_of_squares).collect()
}

/// What the products of a call have in common.
#[derive(Clone, Copy)]
struct Call {
    accumulate: bool,
    /// Whether results go past the caches where they lie as tiles do: all together are more than caches hold.
    away: bool,
}

impl Call {
    /// One with results of so many bytes.
    fn new(accumulate: bool, bytes: usize) -> Self {
        Call { accumulate, away: !accumulate && away(bytes) }
    }
}

/// One product of a call: `C (+)= op(A) · op(B)`, and how it is computed.
struct Product<'a, R, C> {
    size: Size,
    /// The operand whose elements are broadcast.
    rows: Side<'a, R>,
    /// The operand that vectors are loaded from, mostly packed.
    lanes: Side<'a, R>,
    /// Whether these are the columns and the rows of C, in this order.
    turned: bool,
    c: &'a mut [C],
    /// Columns of C.
    pitch: usize,
    /// Of the results so far, if they are asked for.
    squares: Option<Mutex<Squares>>,
}

impl<'a, R: Real, C: Stored<Real = R>> Product<'a, R, C> {
    fn new(g: Gemm, a: Mat<'a, R>, b: Mat<'a, R>, c: MatMut<'a, C>) -> Self {
        let rows = Side { data: a.data, pitch: a.cols, rows: a.rows, lanes_adjacent: g.ta, ahead: 0 };
        let lanes = Side { data: b.data, pitch: b.cols, rows: b.rows, lanes_adjacent: !g.tb, ahead: 0 };
        assert_eq!(rows.steps(), lanes.steps(), "inner size of a product");
        assert_eq!((rows.lanes(), lanes.lanes()), (c.rows, c.cols), "shape of a product");
        let size = Size { m: c.rows, n: c.cols, k: rows.steps(), packing: [0.0; 2], putting: 0.0 };
        let squares = g.squares.then(Mutex::default);
        Product { size, rows, lanes, turned: false, c: c.data, pitch: c.cols, squares }
    }

    /// The sum of squares of all results, if it was asked for and is known.
    fn sum_of_squares(&self) -> Option<f64> {
        let squares = self.squares.as_ref()?.lock().expect("no thread fails while it adds");
        squares.sum(self.c.len())
    }

    /// Where the sums of `rows` rows of it go.
    fn sums<'k, T: GemmScalar<Real = R>, B: GemmScalar<Real = R>>(
        &'k self,
        kernel: &'k Kernel<T, B>,
        call: Call,
        c: *mut C,
        rows: usize,
    ) -> Sums<'k, T, B, C>
    where
        C: Target<T>,
    {
        Sums::new(kernel, call, self.size.k, self.turned, c, self.pitch, rows).measured(self.squares.as_ref())
    }

    /// Chooses the cheaper way round, if there are two.
    fn plan<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>, call: Call)
    where
        C: Target<T>,
    {
        self.estimate(kernel, call);
        if T::TURNS {
            let straight = self.size.cost(kernel.lanes());
            self.turn(kernel, call);
            if self.size.cost(kernel.lanes()) >= straight {
                self.turn(kernel, call);
            }
        }
        let few = self.size.m <= 2 * kernel.rows();
        self.lanes.ahead = if few && !self.lanes.lanes_adjacent { kernel.cols() * self.lanes.pitch } else { 0 };
    }

    /// Exchanges the roles of the operands.
    fn turn<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>, call: Call)
    where
        C: Target<T>,
    {
        std::mem::swap(&mut self.rows, &mut self.lanes);
        std::mem::swap(&mut self.size.m, &mut self.size.n);
        self.turned = !self.turned;
        self.estimate(kernel, call);
    }

    /// Whether rows are read where they are. A matrix unit reads them so fast that they are worth packing unless they meet
    /// few columns.
    fn in_place<T: GemmScalar<Real = R>, B: GemmScalar<Real = R>>(&self, kernel: &Kernel<T, B>) -> bool {
        let worth = !kernel.rows_adjacent && self.size.n > 2 * kernel.cols();
        !worth && self.rows.rows_in_place::<T>(0, &(0..self.size.k)).is_some()
    }

    /// Whether columns are read where they are.
    fn cols_in_place<T: GemmScalar<Real = R>, B: GemmScalar<Real = R>>(&self, kernel: &Kernel<T, B>) -> bool {
        let few = self.size.m <= FEW && self.size.n >= kernel.cols();
        kernel.cols_in_place && few && self.lanes.cols_in_place::<B>(0, &(0..self.size.k)).is_some()
    }

    /// The kernel for few rows in place of this one, if these are few.
    fn few<T: GemmScalar<Real = R>>(&self, kernel: &Kernel<T>) -> Option<&'static Kernel<T, T::Few>> {
        let whole = self.size.k.is_multiple_of(T::Few::GROUP);
        T::few(kernel).filter(|_| whole && self.size.m <= FEW)
    }

    /// Whether columns all stay in the second cache, over `width` of them, while rows pass that are read where they are.
    fn passes<T: GemmScalar<Real = R>>(&self, kernel: &Kernel<T>, width: usize) -> bool {
        let steps = self.size.k.min(T::BLOCK);
        let columns = width.div_ceil(kernel.cols()) * Micro::<T>::panel(kernel.cols(), steps) * size_of::<T>();
        let as_they_are = self.in_place(kernel) && kernel.rows_adjacent && !self.cols_in_place(kernel);
        as_they_are && steps <= kernel.stretch && columns <= COLUMNS_BYTES
    }

    /// What there is to do beside multiplying.
    fn estimate<T: GemmScalar<Real = R>>(&mut self, kernel: &Kernel<T>, call: Call)
    where
        C: Target<T>,
    {
        let in_place = [self.in_place(kernel), self.cols_in_place(kernel)];
        let blocks = if C::EXACT { self.size.k.div_ceil(T::BLOCK) } else { 1 };
        // A pair is transposed as quickly as an element of that size, but lanes that lie side by side must be interleaved.
        let pair = T::GROUP.min(2) as f64;
        let beside = |cost: f64| cost * kernel.speed;
        let packing = |side: &Side<R>, in_place: bool| match in_place {
            true => 0.0,
            false => beside(plan::PACKING) * if side.lanes_adjacent { pair } else { 1.0 },
        };
        let columns = packing(&self.lanes, in_place[1]);
        self.size.packing =
            [packing(&self.rows, in_place[0]), if self.few(kernel).is_some() { columns / 2.0 } else { columns }];
        self.size.putting = if self.turned || !C::EXACT { beside(plan::PUTTING) * blocks as f64 * pair } else { 0.0 };
        if self.turned && call.away && C::away(kernel) {
            self.size.putting += beside(plan::THROUGH) * size_of::<C>() as f64;
        }
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
    let call = Call::new(accumulate, products.iter().map(|p| size_of_val(p.c)).sum());
    products.iter_mut().for_each(|p| p.plan(kernel, call));
    run(pool, kernel, call, products);
}

/// All products of a call in one hand-off.
fn run<T: GemmScalar, C: Target<T>>(pool: &Pool, kernel: &Kernel<T>, call: Call, products: &mut [Product<T::Real, C>]) {
    if !call.accumulate {
        products.iter_mut().filter(|p| p.size.k == 0).for_each(|p| p.c.fill(C::zeroed()));
    }
    let sizes: Vec<Size> = products.iter().map(|p| p.size).collect();
    let steps = sizes.iter().map(|size| size.k).max().unwrap_or(0).clamp(1, T::BLOCK);
    let most_rows = (ROWS_BYTES / size_of::<T>() / steps).next_multiple_of(kernel.rows()) - kernel.rows();
    let cut = |sizes: &[Size], ahead| plan::tiles(sizes, kernel.size, most_rows, pool.threads(), ahead);
    let turns = ahead::turns(kernel, products, cut(&sizes, false), |sizes| cut(sizes, true), AHEAD_BYTES);
    take(pool, kernel, call, products, &turns);
}

/// The turns of a call, one after another.
fn take<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    kernel: &Kernel<T>,
    call: Call,
    products: &mut [Product<T::Real, C>],
    turns: &[Turn],
) {
    let outs: Vec<Out<C>> = products.iter_mut().map(|p| Out(p.c.as_mut_ptr())).collect();
    let products = &*products;
    for turn in turns {
        let packed = ahead::pack(pool, kernel, products, turn);
        let packed: &[T] = packed.as_ref().map_or(&[], |packed| bytemuck::cast_slice(packed.get()));
        pool.run(turn.tiles.len(), |i| {
            let tile = &turn.tiles[i];
            let columns = &turn.columns[tile.product];
            let [start, end] = [tile.cols.start, tile.cols.end].map(|col| columns.cols.start + col);
            let part = [tile.rows.clone(), start..end, columns.steps.clone()];
            let (p, c) = (&products[columns.product], outs[columns.product].0);
            let ahead = columns.ahead(kernel, packed, tile.cols.start);
            // SAFETY: the tile lies within its product's C, of which `outs` holds the address, borrowed until we return, and
            // it is disjoint from all others of this turn.
            unsafe {
                match (ahead, p.few(kernel)) {
                    (None, Some(few)) => compute(few, call, p, c, part, None),
                    (None, None) if p.passes(kernel, tile.cols.len()) => pass(kernel, call, p, c, part),
                    _ => compute(kernel, call, p, c, part, ahead),
                }
            }
        });
    }
}

/// A cache line, the unit of the packing buffers.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Huge pages for working space: rows go through it as fast as through the second cache, if pages do not hold them up.
static MEMORY: LazyLock<Memory> = LazyLock::new(Memory::default);

thread_local! {
    /// A thread's working space, kept between calls.
    static BUFFER: RefCell<Option<Scratch<Line>>> = const { RefCell::new(None) };
}

/// Calls `f` with buffers of `n`, `m` and `sums` elements.
fn with_buffers<T: GemmScalar>([n, m, sums]: [usize; 3], f: impl FnOnce(&mut [T], &mut [T], &mut [T::Real])) {
    let [n, m] = [n, m].map(|n| (n * size_of::<T>()).div_ceil(size_of::<Line>()));
    let sums = (sums * size_of::<T::Real>()).div_ceil(size_of::<Line>());
    BUFFER.with_borrow_mut(|buffer| {
        let lines = n + m + sums;
        let buffer = match buffer {
            Some(buffer) if buffer.len() >= lines => buffer,
            _ => buffer.insert(Scratch::new(&MEMORY, lines)),
        };
        let (first, rest) = buffer.slice().split_at_mut(n);
        let (second, rest) = rest.split_at_mut(m);
        use bytemuck::cast_slice_mut as cast;
        f(cast(first), cast(second), cast(&mut rest[..sums]));
    });
}

/// One rectangle of C, over some steps of k: whole blocks, and all steps if sums cannot wait in C. `ahead` holds panels of its
/// columns over these steps, if they are packed already.
///
/// # Safety
/// `c` is the address of the product's C, `height` and `width` lie within it, and nobody else touches these elements meanwhile.
unsafe fn compute<T: GemmScalar, B: GemmScalar<Real = T::Real>, C: Target<T>>(
    kernel: &Kernel<T, B>,
    call: Call,
    p: &Product<T::Real, C>,
    c: *mut C,
    [height, width, steps]: [Range<usize>; 3],
    ahead: Option<Ahead<B>>,
) {
    const { assert!(size_of::<B>() <= size_of::<T>(), "room for a panel of columns") };
    let ([mr, nr], k, panel, panel_b) = (kernel.size, p.size.k, Micro::<T>::panel, Micro::<B>::panel);
    let sums = p.sums(kernel, call, c, height.len());
    let (panels, packed, as_they_are) = (sums.panels, !p.in_place(kernel), p.cols_in_place(kernel));
    let a_size = if packed { panels * panel(mr, k.min(T::BLOCK)) } else { 0 };
    let b_size = if ahead.is_none() { panel_b(nr, sums.stretch.min(k)) } else { 0 };
    let sizes = [b_size, a_size, sums.len(width.len().div_ceil(nr))];
    let mut lines = Lines::default();
    with_buffers::<T>(sizes, |b_panel, a_block, space| {
        let b_panel: &mut [B] = bytemuck::cast_slice_mut(b_panel);
        for steps in pieces(steps, T::BLOCK) {
            let size = panel(mr, steps.len());
            if packed {
                kernel.pack_block(&p.rows, height.clone(), steps.clone(), &mut a_block[..panels * size]);
            }
            for (j, cols) in pieces(width.clone(), nr).enumerate() {
                for part in pieces(steps.clone(), sums.stretch) {
                    let b = match ahead {
                        Some(ahead) => kernel.panel(ahead.stretch(j, &part)),
                        None if as_they_are && cols.len() == nr => {
                            p.lanes.cols_in_place(cols.start, &part).expect("these are")
                        }
                        None => {
                            let b_panel = &mut b_panel[..panel_b(nr, part.len())];
                            kernel.pack_cols(&p.lanes, cols.clone(), part.clone(), b_panel);
                            kernel.panel(b_panel)
                        }
                    };
                    // Meanwhile the next one comes from memory, a piece with each product of panels.
                    let (next_j, next_cols, next) = if part.end == steps.end {
                        (j + 1, cols.end..(cols.end + nr).min(width.end), steps.start)
                    } else {
                        (j, cols.clone(), part.end)
                    };
                    let next_steps = next..next.saturating_add(sums.stretch).min(steps.end);
                    let next = match ahead {
                        Some(ahead) if !next_cols.is_empty() => Stretches::of(ahead.stretch(next_j, &next_steps)),
                        None if p.lanes.ahead == 0 => p.lanes.stretches(next_cols, next_steps),
                        _ => Stretches::none(),
                    };
                    let next = lines.of(&next);
                    for (i, rows) in kernel.row_panels(height.clone()).enumerate() {
                        let coming = next.part(i, panels);
                        let a = match p.rows.rows_in_place(rows.start, &part) {
                            Some(rows) if !packed => rows,
                            _ => {
                                kernel.packed_tiles(&a_block[i * size..][..size], steps.len(), part.start - steps.start)
                            }
                        };
                        let part = [rows, cols.clone(), part.clone()];
                        // SAFETY: the part lies within the rectangle, hence within C.
                        unsafe { sums.add([i, j], part, a, b, space, coming) };
                    }
                }
            }
        }
    });
    sums.finish();
}

/// [`compute`] with few columns ([`Product::passes`]): rows come from memory, each once and evenly, beside the products of those
/// before them.
///
/// # Safety
/// As there.
unsafe fn pass<T: GemmScalar, C: Target<T>>(
    kernel: &Kernel<T>,
    call: Call,
    p: &Product<T::Real, C>,
    c: *mut C,
    [height, width, steps]: [Range<usize>; 3],
) {
    let (nr, panel) = (kernel.cols(), Micro::<T>::panel);
    let sums = p.sums(kernel, call, c, height.len());
    let columns = width.len().div_ceil(nr);
    let mut lines = Lines::default();
    with_buffers::<T>([columns * panel(nr, p.size.k.min(T::BLOCK)), 0, sums.len(columns)], |panels, _, space| {
        for steps in pieces(steps, T::BLOCK) {
            let size = panel(nr, steps.len());
            let panels = &mut panels[..columns * size];
            kernel.pack_columns(&p.lanes, width.clone(), steps.clone(), panels);
            let mut rest = kernel.row_panels(height.clone()).enumerate().peekable();
            while let Some((i, rows)) = rest.next() {
                let a = p.rows.rows_in_place(rows.start, &steps).expect("these are");
                let next = p.rows.stretches(rest.peek().map_or(0..0, |(_, rows)| rows.clone()), steps.clone());
                let next = lines.of(&next);
                for (j, (cols, b)) in pieces(width.clone(), nr).zip(panels.chunks_exact(size)).enumerate() {
                    let (part, coming) = ([rows.clone(), cols, steps.clone()], next.part(j, columns));
                    let b = kernel.panel(b);
                    // SAFETY: the part lies within the rectangle, hence within C.
                    unsafe { sums.add([i, j], part, a, b, space, coming) };
                }
            }
        }
    });
    sums.finish();
}

/// Where the sums of a rectangle of C go. Those of a panel of columns wait where they are not complete after one stretch of
/// steps, or not of C's type, or do not lie as C does; those that must be rounded once, but are not complete after one
/// block, wait once more.
struct Sums<'a, T: GemmScalar, B: GemmScalar<Real = T::Real>, C> {
    kernel: &'a Kernel<T, B>,
    accumulate: bool,
    /// Steps in all.
    k: usize,
    c: *mut C,
    pitch: usize,
    turned: bool,
    /// Panels of rows.
    panels: usize,
    /// Steps of a stretch, at most.
    stretch: usize,
    /// Whether a block is several stretches.
    stretches: bool,
    /// Whether sums wait for the other blocks.
    waiting: bool,
    /// Whether C is written past the caches.
    away: bool,
    /// Squares of the results so far, and where they go in the end, if they are asked for.
    squares: Option<(Cell<Squares>, &'a Mutex<Squares>)>,
}

impl<'a, T: GemmScalar, B: GemmScalar<Real = T::Real>, C: Target<T>> Sums<'a, T, B, C> {
    /// Of `rows` rows of a product of `k` steps.
    fn new(kernel: &'a Kernel<T, B>, call: Call, k: usize, turned: bool, c: *mut C, pitch: usize, rows: usize) -> Self {
        let block = T::BLOCK;
        let (stretch, waiting) = (block.min(kernel.stretch), !C::EXACT && k > block);
        let away = call.away && C::away(kernel) && !turned && (waiting || k <= block);
        let (panels, stretches) = (rows.div_ceil(kernel.rows()), k.min(block) > stretch);
        let accumulate = call.accumulate;
        Sums { kernel, accumulate, k, c, pitch, turned, panels, stretch, stretches, waiting, away, squares: None }
    }

    /// With the squares of results added to others, if they are asked for, and C is a type of which that is made.
    fn measured(mut self, to: Option<&'a Mutex<Squares>>) -> Self {
        const { assert!(!C::SQUARES || C::EXACT && size_of::<C>() == size_of::<f32>()) };
        self.squares = to.filter(|_| C::SQUARES).map(|to| (Cell::default(), to));
        self
    }

    /// Sums of one tile.
    fn one(&self) -> usize {
        self.kernel.rows() * self.kernel.cols()
    }

    /// Tiles of the first place to wait in.
    fn own(&self) -> usize {
        if self.stretches { self.panels } else { 1 }
    }

    /// Sums that wait, with so many panels of columns.
    fn len(&self, columns: usize) -> usize {
        (self.own() + if self.waiting { self.panels * columns } else { 0 }) * self.one()
    }

    /// Multiplies panel `i` of rows by panel `j` of columns over one stretch of steps, and writes what is complete to C. Of one
    /// panel of columns, all panels of rows come before the next stretch, and all stretches before the next block.
    ///
    /// # Safety
    /// These rows and columns of C may be written.
    #[inline]
    unsafe fn add(
        &self,
        [i, j]: [usize; 2],
        [rows, cols, steps]: [Range<usize>; 3],
        a: Rows<T>,
        b: Cols<B>,
        space: &mut [T::Real],
        coming: Coming,
    ) {
        let (kernel, nr, one, block) = (self.kernel, self.kernel.cols(), self.one(), T::BLOCK);
        let (sums, totals) = space.split_at_mut(self.own() * one);
        let [begins, ends] =
            [steps.start.is_multiple_of(block), steps.end.is_multiple_of(block) || steps.end == self.k];
        let (first, last) = (steps.start < block, steps.end == self.k);
        let adding = self.accumulate || !first;
        // Whole tiles alone are chained, so where they wait they are whole.
        let whole = !self.stretches || !adding && cols.len() == nr;
        let direct = C::EXACT && !self.turned && !self.away && whole;
        let to = if self.turned { [cols.start, rows.start] } else { [rows.start, cols.start] };
        let [rows, cols] = [rows.len(), cols.len()];
        // SAFETY: for C the caller answers; what waits has room for whole tiles.
        unsafe {
            let c = self.c.add(to[0] * self.pitch + to[1]);
            let (to, pitch, size) = if direct {
                (c.cast(), self.pitch, [rows, cols, steps.len()])
            } else {
                let at = if self.stretches { i * one } else { 0 };
                // A matrix unit multiplies whole tiles; with vectors, those that nobody asked for are left out.
                let wide = if kernel.rows_adjacent { cols.next_multiple_of(kernel.lanes()) } else { nr };
                (sums[at..].as_mut_ptr(), nr, [rows, wide, steps.len()])
            };
            if ends && adding && !direct && !self.waiting {
                // What it is added to comes meanwhile.
                let [lines, columns] = if self.turned { [cols, rows] } else { [rows, cols] };
                for line in 0..lines {
                    let at = c.wrapping_add(line * self.pitch);
                    (0..columns).step_by(64 / size_of::<C>()).for_each(|column| fetch(at.wrapping_add(column)));
                }
            }
            if begins {
                kernel.tile(size, a, b, to, pitch, direct && adding, coming);
            } else {
                kernel.add(size, a, b, to, pitch, coming);
            }
            if direct || !ends {
                if last {
                    self.measure(to, [rows, cols], pitch);
                }
                return;
            }
            if !self.waiting {
                if let (true, Some((squares, _)), Some(away)) = (self.away && last, &self.squares, kernel.away) {
                    let of_tile = (away.measured)(to, [rows, cols], c.cast(), self.pitch);
                    return squares.set(squares.get().and(of_tile));
                }
                C::put(kernel, self.away)(to, [rows, cols], self.turned, c, self.pitch, adding);
                if last {
                    let in_c = if self.turned { [cols, rows] } else { [rows, cols] };
                    let (first, size, pitch) =
                        if adding { (c.cast(), in_c, self.pitch) } else { (to, [rows, cols], nr) };
                    self.measure(first, size, pitch);
                }
                return;
            }
            let total = totals[(j * self.panels + i) * one..].as_mut_ptr();
            (kernel.put)(to, [rows, cols], false, total, nr, !first);
            if last {
                C::put(kernel, self.away)(total, [rows, cols], self.turned, c, self.pitch, self.accumulate);
            }
        }
    }

    /// Adds up the squares of so many rows and columns of results, rows `pitch` apart, if that is asked for.
    ///
    /// # Safety
    /// These may be read, and are of the type of sums.
    #[inline]
    unsafe fn measure(&self, first: *const T::Real, size: [usize; 2], pitch: usize) {
        if let Some((squares, _)) = &self.squares {
            // SAFETY: the caller's promise; squares are asked for where sums are f32 alone.
            squares.set(squares.get().and(unsafe { Squares::of(first.cast(), size, pitch) }));
        }
    }

    /// Lets whoever takes the rectangle over see what was written past the caches.
    fn finish(self) {
        if self.away {
            fence();
        }
        if let Some((squares, to)) = self.squares {
            let mut to = to.lock().expect("no thread fails while it adds");
            *to = to.and(squares.get());
        }
    }
}

/// Cuts a range into pieces of `piece`, the last one shorter.
fn pieces(range: Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let end = range.end;
    range.step_by(piece).map(move |start| start..(start + piece).min(end))
}
