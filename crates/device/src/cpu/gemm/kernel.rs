//! Micro-kernels: a tile of C in registers, and the choice of the best one for this machine.

use super::pack::{self, Side};
use crate::Element;
use std::ops::Range;

/// A type that matrices can be multiplied in.
pub(crate) trait GemmScalar: Element {
    /// Micro-kernels, best first; the last one works on any machine.
    const KERNELS: &'static [Kernel<Self>];

    /// The best one that this machine supports.
    fn kernel() -> &'static Kernel<Self> {
        Self::KERNELS.iter().find(|k| (k.supported)()).expect("the portable kernel is always supported")
    }
}

/// Packs a panel: operand, lanes, steps of k, and the panel.
pub(super) type Pack<T> = unsafe fn(&Side<T>, Range<usize>, Range<usize>, &mut [T]);

/// `C[rows, cols] (+)= A·B` for packed panels: `[rows, cols, steps of k]`, A, B, C, elements from one row of C to the
/// next, and whether to accumulate. The chain of additions is as the module above says, in every kernel.
pub(super) type MicroKernel<T> = unsafe fn([usize; 3], *const T, *const T, *mut T, usize, bool);

/// A micro-kernel, and the packing that belongs to it.
pub(crate) struct Kernel<T: 'static> {
    pub(crate) name: &'static str,
    /// Whether this machine has the instructions; the functions below must not be called where it does not.
    pub(super) supported: fn() -> bool,
    /// Most rows and columns of a tile.
    pub(super) size: [usize; 2],
    pub(super) pack_rows: Pack<T>,
    pub(super) pack_cols: Pack<T>,
    pub(super) tile: MicroKernel<T>,
}

impl<T> Kernel<T> {
    /// Most rows of a tile.
    pub(super) fn rows(&self) -> usize {
        self.size[0]
    }

    /// Most columns of a tile.
    pub(super) fn cols(&self) -> usize {
        self.size[1]
    }

    /// Packs a panel of rows of op(A).
    pub(super) fn pack_rows(&self, side: &Side<T>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [T]) {
        check_panel(side, &lanes, &steps, self.rows(), panel.len());
        // SAFETY: a kernel is only handed out where it is supported, and the panel has just been checked.
        unsafe { (self.pack_rows)(side, lanes, steps, panel) }
    }

    /// Packs a panel of columns of op(B).
    pub(super) fn pack_cols(&self, side: &Side<T>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [T]) {
        check_panel(side, &lanes, &steps, self.cols(), panel.len());
        // SAFETY: as above.
        unsafe { (self.pack_cols)(side, lanes, steps, panel) }
    }

    /// Multiplies two packed panels into `rows × cols` elements at `c`, whose rows are `pitch` apart.
    ///
    /// # Safety
    /// These elements of C may be written.
    pub(super) unsafe fn tile(
        &self,
        [rows, cols, steps]: [usize; 3],
        a: &[T],
        b: &[T],
        c: *mut T,
        pitch: usize,
        accumulate: bool,
    ) {
        assert!((1..=self.rows()).contains(&rows) && (1..=self.cols()).contains(&cols));
        assert!(a.len() >= self.rows() * steps && b.len() >= self.cols() * steps);
        // SAFETY: the panels have been checked; for C the caller answers.
        unsafe { (self.tile)([rows, cols, steps], a.as_ptr(), b.as_ptr(), c, pitch, accumulate) }
    }
}

fn check_panel<T>(side: &Side<T>, lanes: &Range<usize>, steps: &Range<usize>, width: usize, len: usize) {
    assert!(lanes.start < lanes.end && lanes.len() <= width && lanes.end <= side.lanes());
    assert!(steps.start < steps.end && steps.end <= side.steps());
    assert!(side.data.len() == side.rows * side.pitch && len == width * steps.len());
}

/// Arithmetic of the portable kernel.
pub(super) trait Scalar: Copy + bytemuck::Zeroable + std::ops::Add<Output = Self> {
    fn multiply_add(self, b: Self, c: Self) -> Self;
}

macro_rules! scalar {
    ($t:ty) => {
        impl Scalar for $t {
            #[inline(always)]
            fn multiply_add(self, b: Self, c: Self) -> Self {
                // Without the instruction, `mul_add` would be a library call a hundred times slower.
                if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    self.mul_add(b, c)
                } else {
                    self * b + c
                }
            }
        }
    };
}
scalar!(f32);
scalar!(f64);

const PORTABLE_ROWS: usize = 4;

/// The portable micro-kernel; the compiler vectorises over the columns.
unsafe fn portable<T: Scalar, const N: usize>(
    [rows, cols, steps]: [usize; 3],
    a: *const T,
    b: *const T,
    c: *mut T,
    pitch: usize,
    accumulate: bool,
) {
    // SAFETY: the caller passes packed panels of this many steps.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<[T; PORTABLE_ROWS]>(), steps),
            std::slice::from_raw_parts(b.cast::<[T; N]>(), steps),
        )
    };
    let mut sums = [[T::zeroed(); N]; PORTABLE_ROWS];
    for (a, b) in a.iter().zip(b) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = a.multiply_add(b, *sum);
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

const fn portable_kernel<T: Scalar, const N: usize>() -> Kernel<T> {
    Kernel {
        name: "portable",
        supported: || true,
        size: [PORTABLE_ROWS, N],
        pack_rows: pack::pack::<T, PORTABLE_ROWS>,
        pack_cols: pack::pack::<T, N>,
        tile: portable::<T, N>,
    }
}

impl GemmScalar for f32 {
    #[cfg(target_arch = "x86_64")]
    const KERNELS: &'static [Kernel<f32>] =
        &[super::x86::f32_avx512::KERNEL, super::x86::f32_avx2::KERNEL, portable_kernel::<f32, 16>()];
    #[cfg(not(target_arch = "x86_64"))]
    const KERNELS: &'static [Kernel<f32>] = &[portable_kernel::<f32, 16>()];
}

impl GemmScalar for f64 {
    #[cfg(target_arch = "x86_64")]
    const KERNELS: &'static [Kernel<f64>] =
        &[super::x86::f64_avx512::KERNEL, super::x86::f64_avx2::KERNEL, portable_kernel::<f64, 8>()];
    #[cfg(not(target_arch = "x86_64"))]
    const KERNELS: &'static [Kernel<f64>] = &[portable_kernel::<f64, 8>()];
}
