//! The micro-kernel for matrix extensions of x86-64 (AMX-INT8): sixteen rows by sixteen lanes by a block of 32 in one
//! instruction.
//!
//! A block must be scaled before it is added to the next, so its integers leave the matrix registers at once, and what
//! remains are the four instructions a row that scale and add them: those are now the limit, at two and a half times the
//! speed of VNNI. The integers of a block wait in the first cache while the next one is multiplied.
//!
//! Nothing of them outlives a call. The instructions are written as assembly: the
//! compiler has no stable names for them, and never touches these registers itself. Sums of integers are exact, and what
//! follows is what every kernel does, so the bits are the same.

use super::format::QuantKind;
use super::kernel::Lanes;
use super::pack::{GROUPS, LANES, Layout, SCALES};
use super::rows::RowBlock;
use super::x86::{INT4_MIN, INT8, dispatch, each, vnni};
use crate::cpu::lines::fetch_ahead;
use crate::cpu::tiles::{self, Shapes};
use std::arch::asm;
use std::arch::x86_64::*;

/// Most rows of a group.
pub(super) const ROWS: usize = 16;
/// Rows for which the matrix registers pay.
const MANY: usize = 8;

/// Whether the machine has the instructions, and the system lets this process use their registers.
pub(super) fn supported() -> bool {
    tiles::supported(tiles::INT8)
}

/// How the matrix registers are cut for so many rows: 0 holds a block's integers, 1 its rows of activations, 2 its codes.
const fn shapes(rows: usize) -> Shapes {
    let (dots, activations, codes) = ((rows as u8, 64), (rows as u8, 32), (GROUPS as u8, 64));
    let unused = (1, 1);
    Shapes::new([dots, activations, codes, unused, unused, unused, unused, unused])
}

/// Places in the first cache for a block's integers, and for its codes if they must be unpacked.
#[repr(C, align(64))]
struct Space {
    dots: [[[i32; LANES]; ROWS]; 2],
    codes: [[u8; GROUPS * 64]; 2],
}

/// # Safety
/// [`supported`] has said so; `panel` is a panel of this layout at a multiple of 64 bytes; there is a block for every row
/// and block.
pub(super) unsafe fn tile(kind: QuantKind, layout: Layout, panel: *const u8, rows: &[RowBlock], sums: &mut [Lanes]) {
    // SAFETY: passed on from the caller.
    unsafe {
        if sums.len() < MANY {
            return vnni::tile(kind, layout, panel, rows, sums);
        }
        dispatch!(kind, sums.len(), [8 9 10 11 12 13 14 15 16], (layout, panel, rows.as_ptr(), sums))
    }
}

/// The codes of a block as bytes, at `to` if they lie otherwise.
///
/// # Safety
/// They may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpacked<const KIND: u8>(codes: *const u8, to: &mut [u8; GROUPS * 64]) -> *const u8 {
    if KIND == INT8 {
        return codes;
    }
    let (to, low) = (to.as_mut_ptr(), _mm512_set1_epi8(15));
    // SAFETY: half as many bytes as there are codes, to a place that has room for all.
    unsafe {
        each!([0 1 2 3] PAIR => {
            let both = _mm512_load_si512(codes.add(64 * PAIR).cast());
            _mm512_store_si512(to.add(128 * PAIR).cast(), _mm512_and_si512(both, low));
            _mm512_store_si512(to.add(128 * PAIR + 64).cast(), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low));
        });
    }
    to
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn tile_of<const R: usize, const KIND: u8>(
    layout: Layout,
    panel: *const u8,
    rows: *const RowBlock,
    out: &mut [Lanes],
) {
    let mut space = std::mem::MaybeUninit::<Space>::uninit();
    let space = space.as_mut_ptr();
    let mut sums = [_mm512_setzero_ps(); R];
    // SAFETY: the caller answers for the panel and the rows, and that the registers may be used; each instruction reads and
    // writes as many bytes as `shapes` says, of rows that are 48 and 64 bytes apart; a prefetch never faults.
    unsafe {
        const { &shapes(R) }.set();
        for b in 0..=layout.blocks {
            if b < layout.blocks {
                let codes = panel.add(layout.codes(b));
                (0..=layout.step / 64).for_each(|line| fetch_ahead(codes.wrapping_add(64 * line)));
                let codes = unpacked::<KIND>(codes, &mut (*space).codes[b % 2]);
                asm!(
                    "tilezero tmm0",
                    "tileloadd tmm1, [{rows} + {row}*1]",
                    "tileloadd tmm2, [{codes} + {line}*1]",
                    "tdpbsud tmm0, tmm1, tmm2",
                    "tilestored [{dots} + {line}*1], tmm0",
                    rows = in(reg) rows.add(b * R),
                    row = in(reg) size_of::<RowBlock>(),
                    codes = in(reg) codes,
                    line = in(reg) 64usize,
                    dots = in(reg) &raw mut (*space).dots[b % 2],
                    options(nostack),
                );
            }
            // Meanwhile those of the block before are scaled and added.
            let Some(b) = b.checked_sub(1) else { continue };
            let (scales, rows, dots) = (panel.add(layout.scales(b)), rows.add(b * R), &raw const (*space).dots[b % 2]);
            let d = _mm512_cvtph_ps(_mm256_load_si256(scales.cast()));
            let m = _mm512_cvtph_ps(_mm256_load_si256(scales.add(SCALES).cast()));
            each!([0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] ROW => if ROW < R {
                let row = rows.add(ROW);
                let mut dot = _mm512_load_si512((&raw const (*dots)[ROW]).cast());
                if KIND != INT4_MIN {
                    let less = if KIND == INT8 { (*row).less_128 } else { (*row).less_8 };
                    dot = _mm512_add_epi32(dot, _mm512_set1_epi32(less));
                }
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps((*row).scale));
                sums[ROW] = _mm512_fmadd_ps(scaled, d, sums[ROW]);
                if KIND == INT4_MIN {
                    sums[ROW] = _mm512_fmadd_ps(_mm512_set1_ps((*row).sum), m, sums[ROW]);
                }
            });
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            _mm512_storeu_ps(out.as_mut_ptr(), sum);
        }
    }
}
