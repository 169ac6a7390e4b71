//! Packing for the AVX-512 kernels of f32 and bf16: transposing blocks of 16 × 16 groups of 4 bytes in registers.
//!
//! A product with few rows may spend as long on packing as on arithmetic, so this is worth instructions by hand: a block
//! takes 64 shuffles for 256 groups, a fraction of the time that reading it from memory takes.

use super::kernel::{Data, GemmScalar};
use super::pack::{self, Side};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// As [`pack::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(super) fn pack<T: GemmScalar<Real = f32>, const W: usize, const G: usize>(
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    const { assert!(size_of::<T>() * G == 4) };
    match (T::own(side.data), side.data) {
        (Some(x), _) if !side.lanes_adjacent => blocks::<T, T, W, G>(load, x, side, lanes, steps, panel),
        (None, Data::Bf16(x)) if !side.lanes_adjacent => {
            blocks::<T, bf16, W, G>(load_widened, x, side, lanes, steps, panel)
        }
        _ => pack::pack::<T, W, G>(side, lanes, steps, panel),
    }
}

/// Packs the panel by blocks. `load(address, n)` is 16 groups of steps, zeros after the first n steps.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn blocks<T: GemmScalar, X, const W: usize, const G: usize>(
    load: unsafe fn(*const X, usize) -> __m512,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    assert!(panel.len() == W * steps.len().next_multiple_of(G) && lanes.end <= side.rows && steps.end <= side.pitch);
    assert!(data.len() == side.rows * side.pitch);
    for first in (0..W).step_by(16) {
        let width = mask((W - first).min(16)) as __mmask16;
        let have = lanes.len().saturating_sub(first);
        for at in (0..steps.len()).step_by(16 * G) {
            let count = (steps.len() - at).min(16 * G);
            let from = data.as_ptr().wrapping_add((lanes.start + first) * side.pitch + steps.start + at);
            let to = panel.as_mut_ptr().wrapping_add(at * W + first * G).cast::<f32>();
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, row) in block.iter_mut().enumerate().take(have) {
                // SAFETY: a row of the operand below `lanes.end`, and `count` steps of it, all below `steps.end`.
                *row = unsafe { load(from.wrapping_add(i * side.pitch), count) };
                if side.ahead > 0 {
                    pack::fetch(from.wrapping_add(i * side.pitch + side.ahead));
                }
            }
            for (i, row) in transpose(block).into_iter().enumerate().take(count.div_ceil(G)) {
                // SAFETY: a group of the panel, and the rest of its W columns from `first` on, at most 16.
                unsafe { _mm512_mask_storeu_ps(to.wrapping_add(i * W), width, row) };
            }
        }
    }
}

/// 64 bytes, of which the first `n` elements are read.
///
/// # Safety
/// They may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn load<T>(from: *const T, n: usize) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_castsi512_ps(unsafe { _mm512_maskz_loadu_epi16(mask(n * size_of::<T>() / 2), from.cast()) })
}

/// As [`load`], widened to f32.
///
/// # Safety
/// `n` elements may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn load_widened(from: *const bf16, n: usize) -> __m512 {
    // SAFETY: the caller's promise.
    let halves = unsafe { _mm256_maskz_loadu_epi16(mask(n) as __mmask16, from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// The lowest `n` of 32 bits.
pub(super) fn mask(n: usize) -> __mmask32 {
    if n >= 32 { !0 } else { (1 << n) - 1 }
}

/// Transposes a block of 16 × 16: pairs, then quads, then quarters of registers, each in two rounds.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(super) fn transpose(mut x: [__m512; 16]) -> [__m512; 16] {
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
