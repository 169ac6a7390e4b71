//! Micro-kernels: a tile of C in registers, and the choice of the best one for this machine.

use super::pack::{self, Side};
use crate::Element;
use bytemuck::Zeroable;
use half::bf16;
use std::ops::Range;

/// A type of packed operands.
pub(crate) trait GemmScalar: Element + Source<Self> {
    /// What products are summed in, and the type of C.
    type Sum: Scalar + Source<Self>;
    /// Another type that operands may have; packing converts it.
    type Other: Element;
    /// Steps of k that lie together in a panel, lane by lane. Panels hold a whole number of groups, the last one with
    /// zeros.
    const GROUP: usize;
    /// Micro-kernels, best first; the last one works on any machine.
    const KERNELS: &'static [Kernel<Self>];

    /// The best one that this machine supports.
    fn kernel() -> &'static Kernel<Self> {
        Self::KERNELS.iter().find(|k| (k.supported)()).expect("the portable kernel is always supported")
    }

    fn widen(self) -> Self::Sum;
    fn convert(other: Self::Other) -> Self;
}

/// An element type that panels of `T` can be packed from.
pub(crate) trait Source<T: GemmScalar>: Element {
    fn data(x: &[Self]) -> Data<'_, T>;
}

/// Elements to pack panels of `T` from.
pub(crate) enum Data<'a, T: GemmScalar> {
    Own(&'a [T]),
    Other(&'a [T::Other]),
}

impl<T: GemmScalar> Clone for Data<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: GemmScalar> Copy for Data<'_, T> {}

impl<T: GemmScalar> Data<'_, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Data::Own(x) => x.len(),
            Data::Other(x) => x.len(),
        }
    }
}

/// Packs a panel: operand, lanes, steps of k, and the panel.
pub(super) type Pack<T> = unsafe fn(&Side<T>, Range<usize>, Range<usize>, &mut [T]);

/// `C[rows, cols] (+)= A·B` for packed panels: `[rows, cols, steps of k]`, A, B, C, elements from one row of C to the
/// next, and whether to accumulate. The chain of additions is as the module above says, in every kernel.
pub(super) type MicroKernel<T> = unsafe fn([usize; 3], *const T, *const T, *mut <T as GemmScalar>::Sum, usize, bool);

/// A micro-kernel, and the packing that belongs to it.
pub(crate) struct Kernel<T: GemmScalar> {
    pub(crate) name: &'static str,
    /// Whether this machine has the instructions; the functions below must not be called where it does not.
    pub(super) supported: fn() -> bool,
    /// Most rows and columns of a tile.
    pub(super) size: [usize; 2],
    pub(super) pack_rows: Pack<T>,
    pub(super) pack_cols: Pack<T>,
    pub(super) tile: MicroKernel<T>,
}

impl<T: GemmScalar> Kernel<T> {
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
        c: *mut T::Sum,
        pitch: usize,
        accumulate: bool,
    ) {
        assert!((1..=self.rows()).contains(&rows) && (1..=self.cols()).contains(&cols));
        let padded = steps.next_multiple_of(T::GROUP);
        assert!(a.len() >= self.rows() * padded && b.len() >= self.cols() * padded);
        // SAFETY: the panels have been checked; for C the caller answers.
        unsafe { (self.tile)([rows, cols, steps], a.as_ptr(), b.as_ptr(), c, pitch, accumulate) }
    }
}

fn check_panel<T: GemmScalar>(side: &Side<T>, lanes: &Range<usize>, steps: &Range<usize>, width: usize, len: usize) {
    assert!(lanes.start < lanes.end && lanes.len() <= width && lanes.end <= side.lanes());
    assert!(steps.start < steps.end && steps.end <= side.steps());
    assert!(side.data.len() == side.rows * side.pitch && len == width * steps.len().next_multiple_of(T::GROUP));
}

/// Arithmetic of the portable kernel.
pub(crate) trait Scalar: Element + std::ops::Add<Output = Self> {
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

/// The portable micro-kernel; the compiler vectorises over the columns. `G` is the group.
unsafe fn portable<T: GemmScalar, const N: usize, const G: usize>(
    [rows, cols, steps]: [usize; 3],
    a: *const T,
    b: *const T,
    c: *mut T::Sum,
    pitch: usize,
    accumulate: bool,
) {
    let groups = steps.div_ceil(G);
    // SAFETY: the caller passes packed panels of this many steps.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<[[T; G]; PORTABLE_ROWS]>(), groups),
            std::slice::from_raw_parts(b.cast::<[[T; G]; N]>(), groups),
        )
    };
    let mut sums = [[T::Sum::zeroed(); N]; PORTABLE_ROWS];
    for (a, b) in a.iter().zip(b) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for g in (0..G).rev() {
                let a = a[g].widen();
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.multiply_add(b[g].widen(), *sum);
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

const fn portable_kernel<T: GemmScalar, const N: usize, const G: usize>() -> Kernel<T> {
    Kernel {
        name: "portable",
        supported: || true,
        size: [PORTABLE_ROWS, N],
        pack_rows: pack::pack::<T, PORTABLE_ROWS, G>,
        pack_cols: pack::pack::<T, N, G>,
        tile: portable::<T, N, G>,
    }
}

/// A type of packed operands: its sums, the other type it can be packed from, and its kernels.
macro_rules! gemm_scalar {
    (
        $t:ident, group $group:literal, sum $sum:ident: $widen:expr, other $other:ident: $convert:expr,
        [$($x86:ident)*], portable $cols:literal
    ) => {
        impl Source<$t> for $t {
            fn data(x: &[$t]) -> Data<'_, $t> {
                Data::Own(x)
            }
        }
        impl Source<$t> for $other {
            fn data(x: &[$other]) -> Data<'_, $t> {
                Data::Other(x)
            }
        }
        impl GemmScalar for $t {
            type Sum = $sum;
            type Other = $other;
            const GROUP: usize = $group;
            const KERNELS: &'static [Kernel<$t>] = &[
                $(#[cfg(target_arch = "x86_64")] super::x86::$x86::KERNEL,)*
                portable_kernel::<$t, $cols, $group>(),
            ];
            #[inline(always)]
            fn widen(self) -> $sum {
                $widen(self)
            }
            #[inline(always)]
            fn convert(other: $other) -> $t {
                $convert(other)
            }
        }
    };
}
gemm_scalar!(
    f32, group 1, sum f32: std::convert::identity, other bf16: widen, [f32_avx512 f32_avx2], portable 16
);
gemm_scalar!(
    f64, group 1, sum f64: std::convert::identity, other f32: f64::from, [f64_avx512 f64_avx2], portable 8
);
gemm_scalar!(
    bf16, group 2, sum f32: widen, other f32: round, [bf16_avx512_bf16 bf16_avx512 bf16_avx2], portable 16
);

/// `bf16::to_f32` in few instructions.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// `bf16::from_f32` without a branch: to the nearest, ties to even.
#[inline(always)]
fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x40_0000;
    bf16::from_bits(((if x.is_nan() { quiet } else { nearest }) >> 16) as u16)
}
