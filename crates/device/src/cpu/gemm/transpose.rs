//! Packing for the AVX-512 kernels of f32 and bf16: transposing blocks of 16 × 16 groups of 4 bytes in registers.
//!
//! A product with few rows spends as long on packing B as on arithmetic, so this is worth instructions by hand: a block
//! takes 64 shuffles for 256 groups, a fraction of the time that reading it from memory takes.

use super::kernel::{Data, GemmScalar};
use super::pack::{self, Side};
use std::arch::x86_64::*;
use std::ops::Range;

/// As [`pack::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(super) fn pack<T: GemmScalar, const W: usize, const G: usize>(
    side: &Side<T>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    let (false, Data::Own(data)) = (side.lanes_adjacent, side.data) else {
        return pack::pack::<T, W, G>(side, lanes, steps, panel);
    };
    const { assert!(size_of::<T>() * G == 4) };
    assert!(panel.len() == W * steps.len().next_multiple_of(G) && lanes.end <= side.rows && steps.end <= side.pitch);
    assert!(data.len() == side.rows * side.pitch);
    for first in (0..W).step_by(16) {
        let width = (W - first).min(16);
        let have = lanes.len().saturating_sub(first).min(16);
        for at in (0..steps.len()).step_by(16 * G) {
            let count = (steps.len() - at).min(16 * G);
            let start = (lanes.start + first) * side.pitch + steps.start + at;
            let to = at * W + first * G;
            // SAFETY: the block is rows `lanes.start + first ..` of the operand, `have` of them, all below `lanes.end`,
            // and `count` steps, all below `steps.end`; in the panel it is rows `at / G ..`, as many as there are groups,
            // and `width` of the W columns.
            unsafe {
                let (from, to) = (data.as_ptr().wrapping_add(start), panel.as_mut_ptr().wrapping_add(to).cast());
                if [have, width, count] == [16, 16, 16 * G] {
                    whole_block(from, side.pitch, to, W);
                } else {
                    part_of_block(from, side.pitch, to, W, [have, width, count]);
                }
            }
        }
    }
}

/// Transposes 16 × 16 groups.
///
/// # Safety
/// 16 groups in each of 16 rows may be read at `from`, and written at `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn whole_block<T>(from: *const T, from_pitch: usize, to: *mut f32, to_pitch: usize) {
    let mut block = [_mm512_setzero_ps(); 16];
    for (i, row) in block.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *row = unsafe { _mm512_loadu_ps(from.add(i * from_pitch).cast()) };
    }
    for (i, row) in transpose(block).into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to.add(i * to_pitch), row) };
    }
}

/// Transposes `have` rows of `count` elements into rows of `width` groups, the rest of which is zero.
///
/// # Safety
/// So much may be read at `from`, and written at `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn part_of_block<T>(
    from: *const T,
    from_pitch: usize,
    to: *mut f32,
    to_pitch: usize,
    [have, width, count]: [usize; 3],
) {
    let mut block = [_mm512_setzero_ps(); 16];
    let (halves, groups) = (count * size_of::<T>() / 2, (count * size_of::<T>()).div_ceil(4));
    for (i, row) in block.iter_mut().enumerate() {
        if i < have {
            // SAFETY: the caller's promise; masked elements are not read.
            let words = unsafe { _mm512_maskz_loadu_epi16(mask(halves), from.add(i * from_pitch).cast()) };
            *row = _mm512_castsi512_ps(words);
        }
    }
    for (i, row) in transpose(block).into_iter().enumerate() {
        if i < groups {
            // SAFETY: the caller's promise; masked elements are not written.
            unsafe { _mm512_mask_storeu_ps(to.add(i * to_pitch), mask(width) as __mmask16, row) };
        }
    }
}

/// The lowest `n` of 32 bits.
fn mask(n: usize) -> __mmask32 {
    if n >= 32 { !0 } else { (1 << n) - 1 }
}

/// Transposes a block of 16 × 16: pairs, then quads, then quarters of registers, each in two rounds.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn transpose(mut x: [__m512; 16]) -> [__m512; 16] {
    let mut y = x;
    for i in (0..16).step_by(2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    // Now y[2r + h] holds rows 2r, 2r+1 interleaved; join rows 4q .. 4q+3.
    let pairs = |a, b| (_mm512_castps_pd(a), _mm512_castps_pd(b));
    for i in (0..16).step_by(4) {
        for half in 0..2 {
            let (a, b) = pairs(y[i + half], y[i + 2 + half]);
            x[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            x[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // Now quarter p of x[4q + c] holds column 4p + c of rows 4q .. 4q+3; gather the quarters of each column.
    for c in 0..4 {
        y[c] = _mm512_shuffle_f32x4::<0x88>(x[c], x[4 + c]);
        y[4 + c] = _mm512_shuffle_f32x4::<0xdd>(x[c], x[4 + c]);
        y[8 + c] = _mm512_shuffle_f32x4::<0x88>(x[8 + c], x[12 + c]);
        y[12 + c] = _mm512_shuffle_f32x4::<0xdd>(x[8 + c], x[12 + c]);
    }
    for c in 0..4 {
        x[c] = _mm512_shuffle_f32x4::<0x88>(y[c], y[8 + c]);
        x[8 + c] = _mm512_shuffle_f32x4::<0xdd>(y[c], y[8 + c]);
        x[4 + c] = _mm512_shuffle_f32x4::<0x88>(y[4 + c], y[12 + c]);
        x[12 + c] = _mm512_shuffle_f32x4::<0xdd>(y[4 + c], y[12 + c]);
    }
    x
}
