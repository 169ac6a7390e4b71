//! Micro-kernels for x86-64.
//!
//! With VNNI one instruction multiplies 64 pairs of bytes and adds them by fours, and it takes the activations' four bytes
//! from memory, spread over the lanes. So a block of 32 costs a row 8 such instructions and 3 more (to number, by the
//! activations' scale, by the weights'): at best 80 % of the peak of multiplying bytes. 14 rows of sums, of a block and of
//! all, and a group's codes make 30 of 32 registers. A block's sums begin with the correction for unsigned codes instead
//! of 0, which is free.
//!
//! With AVX2 a product of an unsigned and a signed byte is added to its neighbour's in 16 bits, saturating. 4-bit codes are
//! at most 15, so even the sum of a whole block fits (8·2·15·128 = 30720). 8-bit codes do not: their sign moves to the
//! activations, and two products of at most 128·127 fit. (A block that holds a NaN may have the code −128; then the
//! sums are NaN whatever the integers are.)

use super::format::QuantKind;
use super::kernel::Lanes;
use super::pack::{GROUPS, HEAD, LANES, Layout, SCALES};
use super::rows::RowBlock;
use crate::cpu::lines::fetch_ahead;
use std::arch::x86_64::*;

pub(super) const INT8: u8 = 0;
pub(super) const INT4: u8 = 1;
pub(super) const INT4_MIN: u8 = 2;

/// Calls `tile_of::<ROWS, KIND>` for the number of rows and the kind.
macro_rules! dispatch {
    ($kind:ident, $rows:expr, [$($r:literal)+], $arguments:tt) => {
        match ($rows, $kind) {
            $(($r, QuantKind::Int8) => tile_of::<$r, { $crate::cpu::quant::x86::INT8 }> $arguments,
            ($r, QuantKind::Int4) => tile_of::<$r, { $crate::cpu::quant::x86::INT4 }> $arguments,
            ($r, QuantKind::Int4Min) => tile_of::<$r, { $crate::cpu::quant::x86::INT4_MIN }> $arguments,)+
            (rows, _) => unreachable!("a group of {rows} rows"),
        }
    };
}

/// A body for each of some numbers, which it knows as a constant.
macro_rules! each {
    ([$($n:literal)+] $i:ident => $body:expr) => {
        $({
            const $i: usize = $n;
            $body
        })+
    };
}

pub(super) use {dispatch, each};

/// A group of four activations, as the instructions take it.
///
/// # Safety
/// `row` may be read.
#[inline(always)]
unsafe fn group(row: *const RowBlock, g: usize) -> i32 {
    // SAFETY: the caller's promise; g is below the number of groups.
    unsafe { (&raw const (*row).codes).cast::<i32>().add(g).read() }
}

pub(super) mod vnni {
    use super::*;

    /// Most rows of a group.
    pub const ROWS: usize = 14;

    /// # Safety
    /// The machine has AVX-512 F, BW and VNNI; `panel` is a panel of this layout at a multiple of 64 bytes; there is a
    /// block for every row and block.
    pub unsafe fn tile(kind: QuantKind, layout: Layout, panel: *const u8, rows: &[RowBlock], sums: &mut [Lanes]) {
        // SAFETY: passed on from the caller.
        unsafe { dispatch!(kind, sums.len(), [1 2 3 4 5 6 7 8 9 10 11 12 13 14], (layout, panel, rows.as_ptr(), sums)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile_of<const R: usize, const KIND: u8>(
        layout: Layout,
        panel: *const u8,
        mut rows: *const RowBlock,
        out: &mut [Lanes],
    ) {
        let mut sums = [_mm512_setzero_ps(); R];
        let step = if KIND == INT8 { GROUPS * 64 } else { GROUPS / 2 * 64 };
        // SAFETY: the caller answers for the panel and the rows; a prefetch never faults.
        unsafe {
            let (mut scales, mut codes) = (panel, panel.add(HEAD));
            for b in 0..layout.blocks {
                // The codes of a block, and a head. With few rows memory is slower than multiplying; with many it is the first
                // group of rows that would wait at every panel.
                (0..=step / 64).for_each(|line| fetch_ahead(codes.wrapping_add(64 * line)));
                // Written out, and every row before the next group: so a group's codes are needed but once, and left to
                // itself the compiler would keep more alive than there are registers.
                let mut dots = [_mm512_setzero_si512(); R];
                if KIND != INT4_MIN {
                    each!([0 1 2 3 4 5 6 7 8 9 10 11 12 13] ROW => if ROW < R {
                        let row = rows.add(ROW);
                        dots[ROW] = _mm512_set1_epi32(if KIND == INT8 { (*row).less_128 } else { (*row).less_8 });
                    });
                }
                each!([0 1 2 3] PAIR => {
                    let w = if KIND == INT8 {
                        [0, 64].map(|half| _mm512_load_si512(codes.add(128 * PAIR + half).cast()))
                    } else {
                        let (both, low) = (_mm512_load_si512(codes.add(64 * PAIR).cast()), _mm512_set1_epi8(15));
                        [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
                    };
                    each!([0 1] SECOND => {
                        each!([0 1 2 3 4 5 6 7 8 9 10 11 12 13] ROW => if ROW < R {
                            let four = _mm512_set1_epi32(group(rows.add(ROW), 2 * PAIR + SECOND));
                            dots[ROW] = _mm512_dpbusd_epi32(dots[ROW], w[SECOND], four);
                        });
                    });
                });
                let d = _mm512_cvtph_ps(_mm256_load_si256(scales.cast()));
                let m = _mm512_cvtph_ps(_mm256_load_si256(scales.add(SCALES).cast()));
                each!([0 1 2 3 4 5 6 7 8 9 10 11 12 13] ROW => if ROW < R {
                    let row = rows.add(ROW);
                    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[ROW]), _mm512_set1_ps((*row).scale));
                    sums[ROW] = _mm512_fmadd_ps(scaled, d, sums[ROW]);
                    if KIND == INT4_MIN {
                        sums[ROW] = _mm512_fmadd_ps(_mm512_set1_ps((*row).sum), m, sums[ROW]);
                    }
                });
                rows = rows.add(R);
                // As `Layout` has it, of numbers that the compiler knows.
                if KIND == INT4_MIN || b % 2 == 1 {
                    scales = codes.add(step);
                    codes = scales.add(HEAD);
                } else {
                    scales = scales.add(SCALES);
                    codes = codes.add(step);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                _mm512_storeu_ps(out.as_mut_ptr(), sum);
            }
        }
    }
}

pub(super) mod avx2 {
    use super::*;

    /// Most rows of a group.
    pub const ROWS: usize = 4;
    /// Lanes of a vector: a panel is gone through twice.
    const HALF: usize = LANES / 2;

    /// # Safety
    /// The machine has AVX2, FMA and F16C; `panel` is a panel of this layout at a multiple of 64 bytes; there is a block
    /// for every row and block.
    pub unsafe fn tile(kind: QuantKind, layout: Layout, panel: *const u8, rows: &[RowBlock], sums: &mut [Lanes]) {
        // SAFETY: passed on from the caller.
        unsafe { dispatch!(kind, sums.len(), [1 2 3 4], (layout, panel, rows.as_ptr(), sums)) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile_of<const R: usize, const KIND: u8>(
        layout: Layout,
        panel: *const u8,
        rows: *const RowBlock,
        out: &mut [Lanes],
    ) {
        let (low, one) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        for half in 0..2 {
            let mut sums = [_mm256_setzero_ps(); R];
            // SAFETY: the caller answers for the panel and the rows; a half of a vector of codes, of scales, and of a row
            // of sums lies within them.
            unsafe {
                let panel = panel.add(half * HALF * 4);
                for b in 0..layout.blocks {
                    let (rows, codes) = (rows.add(b * R), panel.add(layout.codes(b)));
                    // Halves of scales are half as far apart as halves of codes.
                    let scales = panel.sub(half * HALF * 2).add(layout.scales(b));
                    let mut dots = [_mm256_setzero_si256(); R];
                    if KIND == INT8 {
                        for g in 0..GROUPS {
                            let w = _mm256_load_si256(codes.add(64 * g).cast());
                            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                            let size = _mm256_abs_epi8(w);
                            for (r, dot) in dots.iter_mut().enumerate() {
                                let a = _mm256_sign_epi8(_mm256_set1_epi32(group(rows.add(r), g)), w);
                                let pairs = _mm256_maddubs_epi16(size, a);
                                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, one));
                            }
                        }
                    } else {
                        for j in 0..GROUPS / 2 {
                            let both = _mm256_load_si256(codes.add(64 * j).cast());
                            let first = _mm256_and_si256(both, low);
                            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                            for (r, dot) in dots.iter_mut().enumerate() {
                                let a = |g| _mm256_set1_epi32(group(rows.add(r), g));
                                *dot = _mm256_add_epi16(*dot, _mm256_maddubs_epi16(first, a(2 * j)));
                                *dot = _mm256_add_epi16(*dot, _mm256_maddubs_epi16(second, a(2 * j + 1)));
                            }
                        }
                        for (r, dot) in dots.iter_mut().enumerate() {
                            *dot = _mm256_madd_epi16(*dot, one);
                            if KIND == INT4 {
                                *dot = _mm256_add_epi32(*dot, _mm256_set1_epi32((*rows.add(r)).less_8));
                            }
                        }
                    }
                    let d = _mm256_cvtph_ps(_mm_load_si128(scales.cast()));
                    for (r, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                        let row = rows.add(r);
                        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps((*row).scale));
                        *sum = _mm256_fmadd_ps(scaled, d, *sum);
                        if KIND == INT4_MIN {
                            let m = _mm256_cvtph_ps(_mm_load_si128(scales.add(SCALES).cast()));
                            *sum = _mm256_fmadd_ps(_mm256_set1_ps((*row).sum), m, *sum);
                        }
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    _mm256_storeu_ps(out[half * HALF..].as_mut_ptr(), sum);
                }
            }
        }
    }
}
