//! Micro-kernels: a tile of C in registers, and the choice of the best one for this machine.

use super::pack::{self, Coming, Side};
use super::pieces;
use super::put::{self, Away, Put};
use super::wide::Wide;
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::{Baseline, Isa};
use half::bf16;
use std::ops::Range;

/// A type of packed operands; products are summed in its [`Stored::Real`].
pub(crate) trait GemmScalar: Stored {
    /// Steps of k that lie together in a panel, lane by lane. Panels hold a whole number of groups, the last one with
    /// zeros.
    const GROUP: usize;
    /// Steps of k, whole groups, that are summed in registers. Part of the order of additions: changing it changes results'
    /// last bits.
    const BLOCK: usize;
    /// Whether operands may change roles: whether `x·y` adds what `y·x` does, in the same order.
    const TURNS: bool = true;
    /// Whether of every two steps the second comes first in a panel, to be added first.
    const SECOND_FIRST: bool = false;
    /// Micro-kernels, best first; the last one works on any machine.
    const KERNELS: &'static [Kernel<Self>];
    /// What columns are packed as where they meet few rows.
    type Few: GemmScalar<Real = Self::Real>;

    /// The kernel for that in place of another one, if packing is quicker than as this type: it needs the same instructions, and
    /// makes the same bits where steps are whole groups of both.
    fn few(_: &Kernel<Self>) -> Option<&'static Kernel<Self, Self::Few>> {
        None
    }

    /// The best one for this machine.
    fn kernel() -> &'static Kernel<Self> {
        Self::KERNELS.iter().find(|k| (k.supported)() && (k.pays)()).expect("the portable kernel is always supported")
    }

    /// The elements, if no conversion is needed to pack them into panels of this type.
    fn own(data: Data<'_, Self::Real>) -> Option<&[Self]>;

    /// Widens, where it must be.
    fn from_bf16(x: bf16) -> Self;
}

/// A type of packed operands that matrices have, too.
pub(crate) trait Source: GemmScalar {
    /// What rows are packed as where many meet columns of this type that were packed long ago.
    type Tall: GemmScalar<Real = Self::Real>;

    /// The kernel for that, if there is a better one than for few rows. Its tiles are as wide, and make the same bits.
    fn tall() -> Option<&'static Kernel<Self::Tall, Self>>;

    /// Elements to pack, into panels of this type or another.
    fn data(x: &[Self]) -> Data<'_, Self::Real>;
}

/// Elements of an operand as they are stored. What panels hold is another matter: packing converts.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a, R> {
    Real(&'a [R]),
    Bf16(&'a [bf16]),
}

impl<'a, R> Data<'a, R> {
    pub(super) fn part(self, range: Range<usize>) -> Self {
        match self {
            Data::Real(x) => Data::Real(&x[range]),
            Data::Bf16(x) => Data::Bf16(&x[range]),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Data::Real(x) => x.len(),
            Data::Bf16(x) => x.len(),
        }
    }
}

/// Rows whose two vectors of sums each keep multiply-adds busy: two begin in every cycle, and take four.
const BUSY: usize = 4;

/// Steps of a row of A that a matrix unit reads at once.
pub(super) const TILE_STEPS: usize = 32;

/// Rows of A, whose groups the micro-kernel broadcasts one at a time: they may lie packed, or as they came.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    /// From the first group of the first row on.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one group of steps to the next.
    pub group: usize,
    /// Whether they lie as a matrix unit reads them ([`Kernel::pack_tiles`]).
    pub tiles: bool,
}

impl<T> Rows<'_, T> {
    /// Elements from [`TILE_STEPS`] steps of a row to the next so many, of `all` rows.
    pub fn tile_step(&self, all: usize) -> usize {
        if self.tiles { all * TILE_STEPS } else { TILE_STEPS }
    }

    /// Elements from one row to the next among the last `steps` of them, fewer than [`TILE_STEPS`].
    pub fn last_row(&self, steps: usize) -> usize {
        if self.tiles { steps.next_multiple_of(self.group) } else { self.row }
    }
}

/// Columns of B, of which the micro-kernel reads the vectors of one group of steps at a time: a panel, or as they came.
#[derive(Clone, Copy)]
pub(super) struct Cols<'a, B> {
    /// From the first group on.
    pub data: &'a [B],
    /// Elements from one group of steps to the next.
    pub group: usize,
}

/// Packs a panel: operand, lanes, steps of k, and the panel.
pub(super) type Pack<T> = unsafe fn(&Side<<T as Stored>::Real>, Range<usize>, Range<usize>, &mut [T]);

/// As [`Pack`], checked: one of [`Kernel`]'s.
type PackPanel<K, T> = fn(&K, &Side<<T as Stored>::Real>, Range<usize>, Range<usize>, &mut [T]);

/// `C[rows, cols] (+)= A·B`: `[rows, cols, steps of k]`, A, B, C, elements from one row of C to the next,
/// whether to accumulate, and what is fetched meanwhile. The chain of additions is as the module above says, in every kernel.
pub(super) type MicroKernel<T, B> =
    unsafe fn([usize; 3], Rows<T>, Cols<B>, *mut <T as Stored>::Real, usize, bool, Coming);

/// A micro-kernel, and the packing that belongs to it: rows are packed as `T`, and columns as `B`.
pub(crate) struct Kernel<T: GemmScalar, B: GemmScalar<Real = T::Real> = T> {
    pub(crate) name: &'static str,
    /// Whether this machine has the instructions; the functions below must not be called where it does not.
    pub(super) supported: fn() -> bool,
    /// Whether, where it is supported, it is as fast as those that come after it.
    pub(super) pays: fn() -> bool,
    /// Most rows and columns of a tile.
    pub(super) size: [usize; 2],
    /// Whether a packed panel of A has the rows of a group side by side, or else each row's steps.
    pub(super) rows_adjacent: bool,
    /// Whether `tile` also takes columns that were not packed, if the tile has all of its columns.
    pub(super) cols_in_place: bool,
    /// Steps of a panel of B that meet all rows before the next so many do, at most: no more than lie in the first cache beside
    /// those of A. From one stretch to the next, additions are chained by `add`. Where it is not, there is one stretch.
    pub(super) stretch: usize,
    /// How many times as fast as f32 it multiplies, about, where vectors do the packing.
    pub(super) speed: f64,
    pub(super) pack_rows: Pack<T>,
    pub(super) pack_cols: Pack<B>,
    pub(super) tile: MicroKernel<T, B>,
    /// As `tile` where it accumulates, but the additions may be chained to what is there, if that is cheaper.
    pub(super) add: MicroKernel<T, B>,
    pub(super) put: Put<T::Real>,
    /// As `put`, rounding; where sums are f32.
    pub(super) put_rounded: Option<Put<bf16>>,
    /// The ways past the caches, if there are any.
    pub(super) away: Option<Away<T::Real>>,
}

impl<T: GemmScalar> Kernel<T> {
    /// The one for any machine, with `N` columns and groups of `G` steps; how it rounds, where sums are f32.
    pub(super) const fn portable<const N: usize, const G: usize>(put_rounded: Option<Put<bf16>>) -> Self {
        Kernel {
            name: "portable",
            supported: || true,
            pays: || true,
            size: [PORTABLE_ROWS, N],
            rows_adjacent: true,
            cols_in_place: false,
            stretch: usize::MAX,
            speed: 1.0,
            pack_rows: pack::pack::<T, PORTABLE_ROWS, G>,
            pack_cols: pack::pack::<T, N, G>,
            tile: portable::<T, N, G>,
            add: portable::<T, N, G>,
            put: put::put::<T::Real, N>,
            put_rounded,
            away: None,
        }
    }
}

impl<T: GemmScalar, B: GemmScalar<Real = T::Real>> Kernel<T, B> {
    /// Most rows of a tile.
    pub(super) fn rows(&self) -> usize {
        self.size[0]
    }

    /// Most columns of a tile.
    pub(super) fn cols(&self) -> usize {
        self.size[1]
    }

    /// Columns of one vector.
    pub(super) fn lanes(&self) -> usize {
        self.cols() / 2
    }

    /// A packed panel of columns of op(B).
    pub(super) fn panel<'a>(&self, data: &'a [B]) -> Cols<'a, B> {
        Cols { data, group: self.cols() * B::GROUP }
    }

    /// A packed panel of rows of op(A) that has so many steps, from step `first` on, the first of a group.
    pub(super) fn packed<'a>(&self, panel: &'a [T], steps: usize, first: usize) -> Rows<'a, T> {
        if self.rows_adjacent {
            Rows { data: &panel[first * self.rows()..], row: T::GROUP, group: self.rows() * T::GROUP, tiles: false }
        } else {
            let row = steps.next_multiple_of(T::GROUP);
            Rows { data: &panel[first..], row, group: T::GROUP, tiles: false }
        }
    }

    /// A panel that [`Kernel::pack_tiles`] packed, from step `first` on, the first of a tile.
    pub(super) fn packed_tiles<'a>(&self, panel: &'a [T], steps: usize, first: usize) -> Rows<'a, T> {
        if self.rows_adjacent {
            return self.packed(panel, steps, first);
        }
        Rows { data: &panel[first * self.rows()..], row: TILE_STEPS, group: T::GROUP, tiles: true }
    }

    /// Rows as panels. Where fewer than [`BUSY`] are left for the last one, and half a panel is more, the last two share what they
    /// have. (A matrix unit multiplies whole tiles whatever there is.)
    pub(super) fn row_panels(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
        let most = self.rows();
        let count = rows.len().div_ceil(most);
        let before = count.saturating_sub(1) * most;
        let left = rows.len() - before;
        let share = self.rows_adjacent && most > 2 * BUSY && count > 1 && left < BUSY;
        let last = if share { before - (most - left) / 2 } else { before };
        let start = move |i: usize| rows.start + if i + 1 == count { last } else { (i * most).min(rows.len()) };
        (0..count).map(move |i| start(i)..start(i + 1))
    }

    /// As [`Kernel::pack_rows`], but where a row's steps lie together, it is [`TILE_STEPS`] of them, and then the next row's:
    /// what a matrix unit reads at once is then one stretch of memory, and panels follow one another as it goes through them.
    /// Rows that are a whole row of the operand apart come from the second cache a tenth more slowly, or far more where they
    /// compete for its places.
    pub(super) fn pack_tiles(&self, side: &Side<T::Real>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [T]) {
        if self.rows_adjacent {
            return self.pack_rows(side, lanes, steps, panel);
        }
        for (steps, tile) in pieces(steps, TILE_STEPS).zip(panel.chunks_mut(TILE_STEPS * self.rows())) {
            self.pack_rows(side, lanes.clone(), steps, tile);
        }
    }

    /// Packs rows of op(A) as [`Kernel::pack_tiles`] does, panel after panel.
    pub(super) fn pack_block(&self, side: &Side<T::Real>, lanes: Range<usize>, steps: Range<usize>, panels: &mut [T]) {
        self.pack_panels(Self::pack_tiles, self.rows(), side, self.row_panels(lanes), steps, panels);
    }

    /// Packs columns of op(B), panel after panel.
    pub(super) fn pack_columns(
        &self,
        side: &Side<T::Real>,
        lanes: Range<usize>,
        steps: Range<usize>,
        panels: &mut [B],
    ) {
        self.pack_panels(Self::pack_cols, self.cols(), side, pieces(lanes, self.cols()), steps, panels);
    }

    /// Packs panels of `width` lanes, these of each, in the order in which memory gives them most quickly: lanes that lie side by
    /// side are read across all panels, a few steps at a time, and of others the next panel's are on their way while one is packed.
    pub(super) fn pack_panels<X: GemmScalar<Real = T::Real>>(
        &self,
        pack: PackPanel<Self, X>,
        width: usize,
        side: &Side<T::Real>,
        lanes: impl Iterator<Item = Range<usize>> + Clone,
        steps: Range<usize>,
        panels: &mut [X],
    ) {
        let size = width * steps.len().next_multiple_of(X::GROUP);
        if side.lanes_adjacent {
            for part in pieces(steps.clone(), TILE_STEPS) {
                let [at, end] = [part.start, part.end].map(|step| (step - steps.start) * width);
                let part_of_panel = at..end.next_multiple_of(width * X::GROUP);
                for (lanes, panel) in lanes.clone().zip(panels.chunks_exact_mut(size)) {
                    pack(self, side, lanes, part.clone(), &mut panel[part_of_panel.clone()]);
                }
            }
            return;
        }
        let next = lanes.clone().skip(1).map(Some).chain([None]);
        for ((lanes, next), panel) in lanes.zip(next).zip(panels.chunks_exact_mut(size)) {
            if let Some(next) = next {
                side.stretches(next, steps.clone()).fetch();
            }
            pack(self, side, lanes, steps.clone(), panel);
        }
    }

    /// Packs a panel of rows of op(A).
    pub(super) fn pack_rows(&self, side: &Side<T::Real>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [T]) {
        check_panel::<T>(side, &lanes, &steps, self.rows(), panel.len());
        // SAFETY: a kernel is only handed out where it is supported, and the panel has just been checked.
        unsafe { (self.pack_rows)(side, lanes, steps, panel) }
    }

    /// Packs a panel of columns of op(B).
    pub(super) fn pack_cols(&self, side: &Side<T::Real>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [B]) {
        check_panel::<B>(side, &lanes, &steps, self.cols(), panel.len());
        // SAFETY: as above.
        unsafe { (self.pack_cols)(side, lanes, steps, panel) }
    }

    /// Multiplies rows by columns into `rows × cols` elements at `c`, whose rows are `pitch` apart.
    ///
    /// # Safety
    /// These elements of C may be written.
    pub(super) unsafe fn tile(
        &self,
        [rows, cols, steps]: [usize; 3],
        a: Rows<T>,
        b: Cols<B>,
        c: *mut T::Real,
        pitch: usize,
        accumulate: bool,
        coming: Coming,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(self.tile, [rows, cols, steps], a, b, c, pitch, accumulate, coming) }
    }

    /// As [`Kernel::tile`] where it accumulates, in the order of additions that is cheapest.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn add(
        &self,
        size: [usize; 3],
        a: Rows<T>,
        b: Cols<B>,
        c: *mut T::Real,
        pitch: usize,
        coming: Coming,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(self.add, size, a, b, c, pitch, true, coming) }
    }

    /// # Safety
    /// `kernel` is one of this kernel's, and the elements of C may be written.
    #[inline]
    unsafe fn run(
        &self,
        kernel: MicroKernel<T, B>,
        [rows, cols, steps]: [usize; 3],
        a: Rows<T>,
        b: Cols<B>,
        c: *mut T::Real,
        pitch: usize,
        accumulate: bool,
        coming: Coming,
    ) {
        assert!((1..=self.rows()).contains(&rows) && (1..=self.cols()).contains(&cols) && steps > 0);
        let groups = steps.div_ceil(T::GROUP);
        let needed = if a.tiles {
            let (whole, rest) = (steps / TILE_STEPS, steps % TILE_STEPS);
            whole * a.tile_step(self.rows()) + if rest > 0 { rows * a.last_row(rest) } else { 0 }
        } else {
            (rows - 1) * a.row + (groups - 1) * a.group + T::GROUP
        };
        assert!(a.data.len() >= needed);
        // Rows of single steps have none that would make up the last group of columns.
        assert!(T::GROUP == B::GROUP || steps.is_multiple_of(B::GROUP));
        let packed = b.group == self.cols() * B::GROUP;
        assert!(packed || self.cols_in_place && cols == self.cols());
        assert!(b.data.len() >= (steps.div_ceil(B::GROUP) - 1) * b.group + self.cols() * B::GROUP);
        // SAFETY: the operands have been checked; for C the caller answers.
        unsafe { kernel([rows, cols, steps], a, b, c, pitch, accumulate, coming) }
    }
}

pub(super) fn check_panel<T: GemmScalar>(
    side: &Side<T::Real>,
    lanes: &Range<usize>,
    steps: &Range<usize>,
    width: usize,
    len: usize,
) {
    assert!(lanes.start < lanes.end && lanes.len() <= width && lanes.end <= side.lanes());
    assert!(steps.start < steps.end && steps.end <= side.steps());
    assert!(side.data.len() == side.rows * side.pitch && len == width * steps.len().next_multiple_of(T::GROUP));
}

const PORTABLE_ROWS: usize = 4;

/// The portable micro-kernel; the compiler vectorises over the columns. `G` is the group.
unsafe fn portable<T: GemmScalar, const N: usize, const G: usize>(
    [rows, cols, steps]: [usize; 3],
    a: Rows<T>,
    b: Cols<T>,
    c: *mut T::Real,
    pitch: usize,
    accumulate: bool,
    coming: Coming,
) {
    coming.fetch(usize::MAX);
    let (b, _) = b.data.as_chunks::<G>().0.as_chunks::<N>();
    let mut sums = [[T::Real::ZERO; N]; PORTABLE_ROWS];
    for (i, b) in b[..steps.div_ceil(G)].iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let a: &[T; G] = a.data[i * a.group + r.min(rows - 1) * a.row..].first_chunk().expect("a group");
            for g in (0..G).rev() {
                let a = a[g].widen();
                for (sum, b) in sums.iter_mut().zip(b) {
                    // Without the instruction, a fused one would be a library call a hundred times slower.
                    *sum = Baseline::fma(a, b[g].widen(), *sum);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate().take(rows) {
        // SAFETY: the caller owns `cols` elements of each of these rows of C.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * pitch), cols) };
        for (c, &sum) in c.iter_mut().zip(sums) {
            *c = if accumulate { *c + sum } else { sum };
        }
    }
}

/// A type of packed operands: its kernels.
macro_rules! gemm_scalar {
    (
        $t:ident, group $group:literal, $data:ident, $from_bf16:expr,
        [$($x86:ident)*], portable $cols:literal, $rounded:expr, tall $tall:ident: $tall_kernel:expr
    ) => {
        impl GemmScalar for $t {
            const GROUP: usize = $group;
            const BLOCK: usize = 512 * $group;
            type Few = $t;
            const KERNELS: &'static [Kernel<$t>] = &[
                $(#[cfg(target_arch = "x86_64")] super::x86::$x86::KERNEL,)*
                Kernel::portable::<$cols, $group>($rounded),
            ];
            fn own(data: Data<'_, Self::Real>) -> Option<&[$t]> {
                match data {
                    Data::$data(x) => Some(x),
                    _ => None,
                }
            }
            #[inline(always)]
            fn from_bf16(x: bf16) -> $t {
                $from_bf16(x)
            }
        }
        impl Source for $t {
            type Tall = $tall;
            fn tall() -> Option<&'static Kernel<$tall, $t>> {
                $tall_kernel
            }
            fn data(x: &[$t]) -> Data<'_, Self::Real> {
                Data::$data(x)
            }
        }
    };
}
gemm_scalar!(
    f32, group 1, Real, Stored::widen, [f32_avx512 f32_avx2], portable 16, Some(put::put::<bf16, 16>), tall f32: None
);
gemm_scalar!(f64, group 1, Real, f64::from, [f64_avx512 f64_avx2], portable 8, None, tall f64: None);
gemm_scalar!(
    bf16, group 2, Bf16, std::convert::identity, [bf16_amx bf16_avx512_bf16 bf16_avx512 bf16_avx2], portable 16,
    Some(put::put::<bf16, 16>), tall Wide: Wide::by_pairs()
);
