//! From a tile of sums to C: turned, rounded, or added to what is there.
//!
//! Where C has the type of the sums, and lies the way the tile does, the micro-kernel writes it itself. Else it leaves a
//! tile in the first cache, and it goes on from there: a few instructions for 16 elements, beside hundreds of multiply-adds
//! for each.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use super::kernel::{GemmScalar, Kernel};
use crate::cpu::real::{Real, Stored};
use crate::cpu::squares::Squares;
use half::bf16;

/// Writes a tile of sums to C: the sums, whose rows are the kernel's columns apart; `[rows, columns]` of them; whether
/// C has them as `[columns, rows]`; C, elements from one row of C to the next, and whether to accumulate.
pub(super) type Put<C> = unsafe fn(*const <C as Stored>::Real, [usize; 2], bool, *mut C, usize, bool);

/// Ways from sums to C past the caches, where C lies so that they can go: what is larger than a cache takes memory's time once
/// instead of twice, since its lines are not read before they are written.
#[derive(Clone, Copy)]
pub(super) struct Away<R: Real> {
    pub put: Put<R>,
    /// Whether that is so of sums that are turned, too.
    pub turned: bool,
    /// As `put`, rounding, where a row of a tile is a line then.
    pub rounded: Option<Put<bf16>>,
    /// As `put` of sums that lie as C does and are added to nothing, with the sum of their squares.
    pub measured: unsafe fn(*const R, [usize; 2], *mut R, usize) -> Squares,
}

/// A type of C: that of the sums, or one that they are rounded to.
pub(crate) trait Target<T: GemmScalar>: Stored<Real = T::Real> {
    /// Whether it is that of the sums.
    const EXACT: bool;
    /// Whether sums of squares are made on the way ([`crate::cpu::squares`]); of what is exact alone.
    const SQUARES: bool = false;
    /// Whether the kernel has a way past the caches.
    fn away<B: GemmScalar<Real = T::Real>>(kernel: &Kernel<T, B>) -> bool {
        kernel.away.is_some()
    }
    /// With `away`, past the caches if the kernel can: threads that read C must then be handed it behind a fence.
    fn put<B: GemmScalar<Real = T::Real>>(kernel: &Kernel<T, B>, away: bool) -> Put<Self>;
}

impl Target<f64> for f64 {
    const EXACT: bool = true;
    fn put<B: GemmScalar<Real = f64>>(kernel: &Kernel<f64, B>, _: bool) -> Put<f64> {
        kernel.put
    }
}
impl<T: GemmScalar<Real = f32>> Target<T> for f32 {
    const EXACT: bool = true;
    const SQUARES: bool = true;
    fn put<B: GemmScalar<Real = f32>>(kernel: &Kernel<T, B>, away: bool) -> Put<f32> {
        kernel.away.filter(|_| away).map_or(kernel.put, |away| away.put)
    }
}
impl<T: GemmScalar<Real = f32>> Target<T> for bf16 {
    const EXACT: bool = false;
    fn away<B: GemmScalar<Real = f32>>(kernel: &Kernel<T, B>) -> bool {
        kernel.away.is_some_and(|away| away.rounded.is_some())
    }
    fn put<B: GemmScalar<Real = f32>>(kernel: &Kernel<T, B>, away: bool) -> Put<bf16> {
        let rounded = kernel.away.filter(|_| away).and_then(|away| away.rounded).or(kernel.put_rounded);
        rounded.expect("every kernel with sums in f32 rounds them")
    }
}

/// [`Put`] for any machine, from rows of `N` sums.
#[inline(always)]
pub(super) unsafe fn put<C: Stored, const N: usize>(
    sums: *const C::Real,
    [rows, cols]: [usize; 2],
    turned: bool,
    c: *mut C,
    pitch: usize,
    accumulate: bool,
) {
    // SAFETY: the caller passes so many rows of sums.
    let sums = unsafe { std::slice::from_raw_parts(sums.cast::<[C::Real; N]>(), rows) };
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums[..cols].iter().enumerate() {
            // SAFETY: the caller owns these elements of C.
            let c = unsafe { &mut *c.add(if turned { j * pitch + i } else { i * pitch + j }) };
            *c = C::narrow(if accumulate { c.widen() + sum } else { sum });
        }
    }
}

/// Whether rows of C are stretches of whole lines.
#[cfg(target_arch = "x86_64")]
fn lines<C>(c: *const C, pitch: usize) -> bool {
    (c.addr() | (pitch * size_of::<C>())).is_multiple_of(64)
}
