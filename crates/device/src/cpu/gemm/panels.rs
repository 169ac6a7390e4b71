//! The micro-kernel by itself, for a kernel that multiplies many small matrices and packs each operand once.
//!
//! Attention is such a kernel: the tile of scores that one product leaves in the first cache is the packed operand of the
//! next one, so nothing but the outermost operands is ever packed.

use super::kernel::{GemmScalar, Kernel, Source};
use super::pack::{Coming, Side};
use super::pieces;
use super::put::Target;
use std::ops::Range;

/// A row-major matrix to pack from.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Operand<'a, T> {
    /// Whole rows.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub pitch: usize,
    /// True if a row is a step of the sum, with the lanes side by side; false if a row is a lane.
    pub lanes_adjacent: bool,
}

impl<'a, X: Source> Operand<'a, X> {
    fn side(&self) -> Side<'a, X::Real> {
        let rows = self.data.len() / self.pitch;
        Side { data: X::data(self.data), pitch: self.pitch, rows, lanes_adjacent: self.lanes_adjacent, ahead: 0 }
    }
}

/// Rows of A, packed by [`Micro::pack_rows`]: from the first wanted panel on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Left<'a, T> {
    pub panels: &'a [T],
    /// Steps that every panel has.
    pub steps: usize,
    /// The first wanted one, the first of a group.
    pub first: usize,
}

/// A micro-kernel.
pub(in crate::cpu) struct Micro<T: GemmScalar>(&'static Kernel<T>);

impl<T: GemmScalar> Clone for Micro<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: GemmScalar> Copy for Micro<T> {}

impl<T: GemmScalar> Micro<T> {
    /// The best one for this machine.
    pub fn best() -> Self {
        Micro(T::kernel())
    }

    /// Every one that runs on this machine.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        T::KERNELS.iter().filter(|k| (k.supported)()).map(Micro)
    }

    /// Rows of a panel of A.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// Columns of the panel of B.
    pub fn cols(&self) -> usize {
        self.0.cols()
    }

    /// Whether rows of A that lie one after another in memory, steps together, are its panels.
    pub fn rows_in_place(&self) -> bool {
        !self.0.rows_adjacent
    }

    /// Whether [`Micro::put_turned`] can write sums as they are past the caches.
    pub fn streams(&self) -> bool {
        self.0.away.is_some_and(|away| away.turned)
    }

    /// Elements of a panel of `lanes` lanes and `steps` steps: whole groups of [`GemmScalar::GROUP`] steps.
    pub fn panel(lanes: usize, steps: usize) -> usize {
        lanes * steps.next_multiple_of(T::GROUP)
    }

    /// Packs `lanes` as rows of A: panels of [`Micro::rows`] lanes (zeros after the last lane), one after another. The
    /// operand is of the panels' type, or one that is converted to it (sums of bf16 products are rounded).
    pub fn pack_rows<X: Source<Real = T::Real>>(
        &self,
        x: Operand<X>,
        lanes: Range<usize>,
        steps: Range<usize>,
        panels: &mut [T],
    ) {
        let (side, size) = (x.side(), Self::panel(self.rows(), steps.len()));
        if x.lanes_adjacent && self.0.rows_adjacent {
            let lanes = pieces(lanes, self.rows());
            return self.0.pack_panels(Kernel::pack_rows, self.rows(), &side, lanes, steps, panels);
        }
        for (i, lanes) in pieces(lanes, self.rows()).enumerate() {
            self.0.pack_rows(&side, lanes, steps.clone(), &mut panels[i * size..(i + 1) * size]);
        }
    }

    /// Packs up to [`Micro::cols`] lanes as the columns of one panel of B, with zeros after the last lane. In bf16 the
    /// panel holds pairs: lane l of step s is element `(s / 2 · cols + l)·2 + s mod 2`, and zero for a step that makes
    /// up the last pair.
    pub fn pack_cols<X: Source<Real = T::Real>>(
        &self,
        x: Operand<X>,
        lanes: Range<usize>,
        steps: Range<usize>,
        panel: &mut [T],
    ) {
        let size = Self::panel(self.cols(), steps.len());
        self.0.pack_cols(&x.side(), lanes, steps, &mut panel[..size]);
    }

    /// `C[m, n] (+)= A[m, k] · B[k, n]`. `b` is one panel, so `n` is at most [`Micro::cols`]; rows of `c` are `pitch` apart.
    pub fn multiply(
        &self,
        [m, n, k]: [usize; 3],
        a: Left<T>,
        b: &[T],
        c: &mut [T::Real],
        pitch: usize,
        accumulate: bool,
    ) {
        assert!(k > 0 && n > 0 && n <= pitch && (m == 0 || c.len() >= (m - 1) * pitch + n), "a product beyond C");
        let (panel, b) = (Self::panel(self.rows(), a.steps), self.0.panel(b));
        for (i, rows) in pieces(0..m, self.rows()).enumerate() {
            let (size, a) = ([rows.len(), n, k], self.0.packed(&a.panels[i * panel..], a.steps, a.first));
            // SAFETY: rows `rows` of C are inside the slice, as asserted, and it is borrowed exclusively.
            unsafe {
                let c = c.as_mut_ptr().add(rows.start * pitch);
                if accumulate {
                    self.0.add(size, a, b, c, pitch, Coming::NONE);
                } else {
                    self.0.tile(size, a, b, c, pitch, false, Coming::NONE);
                }
            }
        }
    }

    /// Writes sums `[m, n]`, whose rows are [`Micro::cols`] apart, to C as `[n, m]`, rounded if C is. With `away`, past the caches
    /// if the kernel can: threads that read C must then be handed it behind a fence.
    ///
    /// # Safety
    /// `n` rows of `m` elements of C, `pitch` apart, may be written.
    pub unsafe fn put_turned<C: Target<T>>(
        &self,
        sums: &[T::Real],
        [m, n]: [usize; 2],
        c: *mut C,
        pitch: usize,
        away: bool,
    ) {
        assert!(n <= self.cols() && sums.len() >= m * self.cols());
        // SAFETY: so many sums there are, for C the caller answers, and a kernel is only handed out where it is supported.
        unsafe { C::put(self.0, away)(sums.as_ptr(), [m, n], true, c, pitch, false) }
    }
}
