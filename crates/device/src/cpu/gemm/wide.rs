//! bf16 where multiply-adds of f32 are the fastest there are: operands are rounded to bf16 and lie in panels as f32.
//!
//! A product of two bf16 is exact in f32, so a chain of multiply-adds makes what `vdpbf16ps` makes, to the bit, if the second
//! of two steps comes before the first: panels have them in that order. Widening operands once, while they are packed, costs
//! nothing; widening them in registers, as the kernels of [`super::x86`] do with panels of bf16, takes as many instructions
//! as half of the multiply-adds. Columns of weights that were packed once and for all lie as pairs, to be read from memory in two
//! bytes, and with AVX-512 so do columns that meet few rows, since pairs are half as much to write and to read: the kernel
//! [`Wide::by_pairs`] widens them in registers, the columns alone, of which a vector meets many rows.
//!
//! As everywhere, where the processor rounds to bf16, numbers of f32 below 2⁻¹²⁶ are taken as zero on their way into panels.

use super::kernel::{GemmScalar, Kernel};
use super::{Data, multiplies_bf16, put};
use crate::cpu::real::Stored;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// A bf16 as an f32, in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Wide(f32);

impl Stored for Wide {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.0
    }
    #[inline(always)]
    fn narrow(x: f32) -> Wide {
        Wide(bf16::narrow(x).widen())
    }
}

impl Wide {
    /// Kernels of [`Wide::by_pairs`].
    pub(super) const BY_PAIRS: &'static [Kernel<Wide, bf16>] = &[
        #[cfg(target_arch = "x86_64")]
        super::x86::wide_pairs_avx512::KERNEL,
        #[cfg(target_arch = "x86_64")]
        super::x86::wide_pairs_avx2::KERNEL,
    ];

    /// Whether products of bf16 are made so fastest: where nothing multiplies bf16 sooner, and vectors are wide.
    pub fn pay() -> bool {
        !multiplies_bf16() && Self::kernel().name != "portable"
    }

    /// The kernel that multiplies rows by columns packed as pairs, of which there must be whole ones, where that pays.
    pub fn by_pairs() -> Option<&'static Kernel<Wide, bf16>> {
        let cols = bf16::kernel().cols();
        Self::BY_PAIRS.iter().find(|k| Self::pay() && (k.supported)() && k.cols() == cols)
    }
}

impl GemmScalar for Wide {
    const GROUP: usize = 1;
    const BLOCK: usize = bf16::BLOCK;
    type Few = bf16;
    const SECOND_FIRST: bool = true;
    const KERNELS: &'static [Kernel<Wide>] = &[
        #[cfg(target_arch = "x86_64")]
        super::x86::wide_avx512::KERNEL,
        #[cfg(target_arch = "x86_64")]
        super::x86::wide_avx2::KERNEL,
        Kernel::portable::<16, 1>(Some(put::put::<bf16, 16>)),
    ];
    /// With AVX-512 alone: the kernel of AVX2 has so few rows that widening columns again takes what packing has saved.
    fn few(of: &Kernel<Wide>) -> Option<&'static Kernel<Wide, bf16>> {
        Wide::BY_PAIRS.iter().find(|few| few.name == of.name && few.name == "avx512")
    }
    /// They are made when they are packed.
    fn own(_: Data<'_, f32>) -> Option<&[Wide]> {
        None
    }
    #[inline(always)]
    fn from_bf16(x: bf16) -> Wide {
        Wide(x.widen())
    }
}
