//! Rows handed out to threads.
//!
//! Almost every kernel is a loop over rows that writes a few tensors with that many rows. [`bands`] cuts the rows into
//! pieces whose bounds depend on the sizes alone, never on the threads, and gives each piece its own exclusive part
//! of every output. The one unsafe split of a mutable slice in these kernels is here.

use super::{Pool, Real};
use std::marker::PhantomData;
use std::ops::Range;

/// About this many elements make a task worth handing out.
pub(crate) const TASK: usize = 1 << 15;

/// Rows per task if a row has `width` elements.
pub(crate) fn piece(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// A mutable slice that several threads cut disjoint bands from.
pub(crate) struct Shared<'a, T> {
    ptr: *mut T,
    width: usize,
    life: PhantomData<&'a mut [T]>,
}
// SAFETY: the slice is borrowed exclusively for 'a, and `band` is only called on disjoint bands.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(slice: &'a mut [T], rows: usize) -> Self {
        assert!(slice.len().is_multiple_of(rows), "{} elements in {rows} rows", slice.len());
        Shared { ptr: slice.as_mut_ptr(), width: slice.len() / rows, life: PhantomData }
    }

    /// # Safety
    /// `band` lies within the rows, and no other live band overlaps it.
    unsafe fn band(&self, band: &Range<usize>) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(band.start * self.width), band.len() * self.width) }
    }
}

/// One or several mutable slices that are cut at the same rows.
pub(crate) trait Split<'a> {
    /// The slices, ready to be shared between threads.
    type Shared: Sync;
    fn share(self, rows: usize) -> Self::Shared;
    /// # Safety
    /// `band` lies within the rows, and no other live band overlaps it.
    unsafe fn band(shared: &Self::Shared, band: &Range<usize>) -> Self;
}

macro_rules! split {
    ($(($($t:ident $x:tt),+))+) => {$(
        impl<'a, $($t: Send),+> Split<'a> for ($(&'a mut [$t],)+) {
            type Shared = ($(Shared<'a, $t>,)+);
            fn share(self, rows: usize) -> Self::Shared {
                ($(Shared::new(self.$x, rows),)+)
            }
            unsafe fn band(shared: &Self::Shared, band: &Range<usize>) -> Self {
                // SAFETY: the caller's promise, for each slice.
                ($(unsafe { shared.$x.band(band) },)+)
            }
        }
    )+};
}
impl<'a> Split<'a> for () {
    type Shared = ();
    fn share(self, _: usize) -> Self::Shared {}
    unsafe fn band(_: &Self::Shared, _: &Range<usize>) -> Self {}
}
split!((A 0) (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3));

/// Cuts `rows` rows into pieces of `piece` rows and calls `f` with each piece and the part of every output that
/// belongs to it, on all threads.
pub(crate) fn bands<'a, O: Split<'a>>(
    pool: &Pool,
    rows: usize,
    piece: usize,
    out: O,
    f: impl Fn(Range<usize>, O) + Sync,
) {
    if rows == 0 {
        return;
    }
    let shared = out.share(rows);
    pool.ranges(rows, piece, |band| {
        // SAFETY: `ranges` calls each of its disjoint ranges once, and all lie in 0..rows.
        let part = unsafe { O::band(&shared, &band) };
        f(band, part);
    });
}

/// [`bands`] for kernels that also sum something over all rows: a piece adds its rows to a zeroed `[width]` partial sum,
/// and the partial sums of all pieces are added in order, in f64.
pub(crate) fn bands_sum<'a, O: Split<'a>, R: Real>(
    pool: &Pool,
    rows: usize,
    piece: usize,
    width: usize,
    out: O,
    f: impl Fn(Range<usize>, O, &mut [R]) + Sync,
) -> Vec<f64> {
    let mut total = vec![0.0; width];
    if rows == 0 || width == 0 {
        return total;
    }
    let piece = piece.max(1);
    let pieces = rows.div_ceil(piece);
    let mut partial = vec![R::ZERO; pieces * width];
    let (out, sums) = (out.share(rows), (&mut partial[..],).share(pieces));
    pool.ranges(rows, piece, |band| {
        let i = band.start / piece;
        // SAFETY: `ranges` calls each of its disjoint ranges once, all lie in 0..rows, and each has its own sum.
        let (part, (sum,)) = unsafe { (O::band(&out, &band), <(&mut [R],)>::band(&sums, &(i..i + 1))) };
        f(band, part, sum);
    });
    for sum in partial.chunks_exact(width) {
        for (t, s) in total.iter_mut().zip(sum) {
            *t += s.f64();
        }
    }
    total
}

/// A mutable slice of which tasks own parts that are not bands of rows: some columns, or one head's.
pub(crate) struct Scattered<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}
// SAFETY: the slice is borrowed exclusively for 'a, and `run` is only called on disjoint elements.
unsafe impl<T: Send> Sync for Scattered<'_, T> {}

impl<'a, T> Scattered<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Scattered { ptr: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Elements `at..at + n`.
    ///
    /// # Safety
    /// No other live run overlaps this one.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn run(&self, at: usize, n: usize) -> &mut [T] {
        assert!(at + n <= self.len, "element {} of {}", at + n, self.len);
        // SAFETY: in range by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), n) }
    }
    /// The address of `rows` rows of `n` elements, `pitch` apart, from element `at` on: for those who write by address. To
    /// write there, no other live run may overlap.
    pub fn rows(&self, at: usize, [rows, n]: [usize; 2], pitch: usize) -> *mut T {
        assert!(rows == 0 || at + (rows - 1) * pitch + n <= self.len, "{rows} rows from element {at} on");
        self.ptr.wrapping_add(at)
    }
}
