//! Sixteen sums at a time.

use super::super::transpose::{self, mask, transpose};
use super::Away;
use crate::cpu::real::Stored;
use crate::cpu::squares::Squares;
use crate::cpu::squares::lanes::avx512::{self, Lanes as SquareLanes};
use half::bf16;
use std::arch::x86_64::*;

/// A type of which 16 elements are a vector of sums.
pub(in super::super) trait Lanes: Stored<Real = f32> {
    /// # Safety
    /// The masked elements may be read.
    unsafe fn load(mask: __mmask16, from: *const Self) -> __m512;
    /// # Safety
    /// The masked elements may be written.
    unsafe fn store(mask: __mmask16, to: *mut Self, x: __m512);
    /// As [`Lanes::store`] of all of them, past the caches if they are a line.
    ///
    /// # Safety
    /// They may be written.
    unsafe fn stream(to: *mut Self, x: __m512);
}

impl Lanes for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(mask: __mmask16, from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn store(mask: __mmask16, to: *mut f32, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_storeu_ps(to, mask, x) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn stream(to: *mut f32, x: __m512) {
        // SAFETY: the caller's promise; what is streamed is a line.
        unsafe { if to.addr().is_multiple_of(64) { _mm512_stream_ps(to, x) } else { _mm512_storeu_ps(to, x) } }
    }
}

impl Lanes for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(mask: __mmask16, from: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        let x = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn store(mask: __mmask16, to: *mut bf16, x: __m512) {
        let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(x)));
        // SAFETY: the caller's promise.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), mask, halves) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn stream(to: *mut bf16, x: __m512) {
        // SAFETY: the caller's promise.
        unsafe { bf16::store(!0, to, x) }
    }
}

/// As `bf16::narrow`, in the upper half of each element.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) fn rounded(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
}

/// [`Put`] from rows of `N` sums, 16 of them at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(in super::super) unsafe fn put<C: Lanes, const N: usize>(
    sums: *const f32,
    size: [usize; 2],
    turned: bool,
    c: *mut C,
    pitch: usize,
    accumulate: bool,
) {
    // SAFETY: passed on from the caller.
    unsafe { put_lanes::<C, N, false>(sums, size, turned, c, pitch, accumulate) }
}

/// As [`put`]; with `AWAY` past the caches, where 16 of C are a line.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn put_lanes<C: Lanes, const N: usize, const AWAY: bool>(
    sums: *const f32,
    [rows, cols]: [usize; 2],
    turned: bool,
    c: *mut C,
    pitch: usize,
    accumulate: bool,
) {
    let all = |yes| if yes { !0 } else { 0 };
    for top in (0..rows).step_by(16) {
        for first in (0..cols).step_by(16) {
            let (rows, width) = ((rows - top).min(16), (cols - first).min(16));
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, row) in block.iter_mut().enumerate() {
                // SAFETY: these are `rows` rows of N sums; the others are masked.
                *row = unsafe { _mm512_maskz_loadu_ps(all(i < rows), sums.wrapping_add((top + i) * N + first)) };
            }
            let (block, count, width, c) = if turned {
                (transpose(block), width, rows, c.wrapping_add(first * pitch + top))
            } else {
                (block, rows, width, c.wrapping_add(top * pitch + first))
            };
            let width = mask(width) as __mmask16;
            for (i, row) in block.into_iter().enumerate().take(count) {
                let to = c.wrapping_add(i * pitch);
                // SAFETY: the caller owns these elements of C; the others are masked.
                unsafe {
                    if AWAY && !accumulate && width == !0 {
                        C::stream(to, row);
                        continue;
                    }
                    let old = C::load(width & all(accumulate), to);
                    C::store(width, to, _mm512_mask_add_ps(row, all(accumulate), old, row));
                }
            }
        }
    }
}

/// As [`put`]; where rows of sums become rows of C, two vectors of them are one of C, if the processor rounds. With `AWAY` it
/// goes past the caches, if it is a line.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(in super::super) unsafe fn round<const N: usize, const AWAY: bool>(
    sums: *const f32,
    [rows, cols]: [usize; 2],
    turned: bool,
    c: *mut bf16,
    pitch: usize,
    accumulate: bool,
) {
    const { assert!(N == 32) };
    // SAFETY: passed on from the caller; whole rows of sums, and the processor has the instruction.
    unsafe {
        if turned || accumulate || cols < N || !transpose::narrows() {
            return put::<bf16, N>(sums, [rows, cols], turned, c, pitch, accumulate);
        }
        let away = AWAY && super::lines(c, pitch);
        for row in 0..rows {
            transpose::store_rounded(sums.wrapping_add(row * N), c.wrapping_add(row * pitch), away);
        }
    }
}

/// The ways past the caches, from rows of `N` sums.
pub(in super::super) const fn away<const N: usize>() -> Away<f32> {
    Away { put: put_away::<N>, turned: true, rounded: Some(round::<N, true>), measured: put_away_measured::<N> }
}

/// [`Away::measured`], both while a row is in the first cache.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn put_away_measured<const N: usize>(
    sums: *const f32,
    [rows, cols]: [usize; 2],
    c: *mut f32,
    pitch: usize,
) -> Squares {
    const { assert!(N == avx512::WIDTH) };
    // SAFETY: passed on from the caller; whole rows of sums, to whole lines.
    unsafe {
        if cols < N || !super::lines(c, pitch) {
            put_lanes::<f32, N, true>(sums, [rows, cols], false, c, pitch, false);
            return Squares::of(sums, [rows, cols], N);
        }
        let mut squares = SquareLanes::new();
        for row in 0..rows {
            let sums = sums.wrapping_add(row * N);
            transpose::stream(sums, c.wrapping_add(row * pitch));
            squares.add(sums, N);
        }
        squares.end(rows * N).unwrap_or_else(|| Squares::one_by_one(sums, [rows, cols], N))
    }
}

/// As [`put`], past the caches.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn put_away<const N: usize>(
    sums: *const f32,
    [rows, cols]: [usize; 2],
    turned: bool,
    c: *mut f32,
    pitch: usize,
    accumulate: bool,
) {
    const { assert!(N == 32) };
    // SAFETY: passed on from the caller; whole rows of sums, to whole lines.
    unsafe {
        if turned || accumulate || cols < N || !super::lines(c, pitch) {
            return put_lanes::<f32, N, true>(sums, [rows, cols], turned, c, pitch, accumulate);
        }
        for row in 0..rows {
            transpose::stream(sums.wrapping_add(row * N), c.wrapping_add(row * pitch));
        }
    }
}
