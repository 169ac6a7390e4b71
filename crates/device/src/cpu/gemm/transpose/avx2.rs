//! As the module above with AVX2, where AVX-512 is not to be had: transposing blocks of 8 lanes × 4 groups of 4 bytes in registers.
//!
//! A block is four vectors, each with 16 bytes of a lane and of the fourth lane after it, so that no element has to cross from
//! one half of a vector to the other: 8 shuffles for 32 groups. What panels hold widened is transposed as pairs, too, and widened
//! where it is written, which takes half as many.

use super::super::kernel::{Data, GemmScalar};
use super::super::pack::{self, Side};
use crate::cpu::lines::fetch;
use bytemuck::Pod;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Lanes of a block.
const LANES: usize = 8;
/// Groups of a block.
const GROUPS: usize = 4;

/// As [`pack::pack`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in super::super) fn pack<T: GemmScalar<Real = f32>, const W: usize, const G: usize>(
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    match (T::own(side.data), side.data) {
        _ if side.lanes_adjacent => pack::pack::<T, W, G>(side, lanes, steps, panel),
        (Some(x), _) => blocks::<T, T, W, G>(load, x, side, lanes, steps, panel),
        (None, Data::Bf16(x)) if T::SECOND_FIRST => blocks::<T, bf16, W, G>(load, x, side, lanes, steps, panel),
        (None, Data::Bf16(x)) => blocks::<T, bf16, W, G>(load_widened, x, side, lanes, steps, panel),
        (None, Data::Real(x)) => blocks::<T, f32, W, G>(load_rounded, x, side, lanes, steps, panel),
    }
}

/// Packs the panel by blocks. `load` has the [`GROUPS`] groups at one address in the lower half, those at the other in the upper.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn blocks<T: GemmScalar, X: Pod, const W: usize, const G: usize>(
    load: Load<X>,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    const { assert!(size_of::<T>() * G == 4 && (W <= LANES && 2 * W >= LANES || W.is_multiple_of(LANES))) };
    assert!(lanes.len() <= W && panel.len() == W * steps.len().next_multiple_of(G));
    assert!(lanes.end <= side.rows && steps.end <= side.pitch && data.len() == side.rows * side.pitch);
    // Of what is widened a group is a step, but a pair of them is transposed.
    let pair = if T::SECOND_FIRST { 2 } else { G };
    let size = GROUPS * pair;
    for first in (0..W).step_by(LANES) {
        let width = (W - first).min(LANES);
        let have = lanes.len().saturating_sub(first).min(width);
        let from = (lanes.start + first) * side.pitch + steps.start;
        let to = panel.as_mut_ptr().wrapping_add(first * G).cast::<f32>();
        // Where a panel has fewer lanes than a block, the next group is written over what one writes too much, and there is a next.
        let all = have == width && lanes.start + first + LANES <= side.rows;
        let whole = if all { steps.len().saturating_sub(usize::from(W < LANES)) / size } else { 0 };
        for at in (0..whole).map(|i| i * size) {
            if side.ahead > 0 && (at * size_of::<X>()).is_multiple_of(64) {
                (0..LANES).for_each(|i| fetch(data.as_ptr().wrapping_add(from + i * side.pitch + at + side.ahead)));
            }
            // SAFETY: `size` steps of eight rows of the operand; in the panel, the groups of these steps, and one more behind them
            // if it has fewer lanes.
            unsafe {
                let groups = block(load, data.as_ptr().wrapping_add(from + at), side.pitch);
                write::<W>(T::SECOND_FIRST, groups, to.wrapping_add(at / G * W), GROUPS * pair / G);
            }
        }
        // What there is not is zero.
        for at in (whole * size..steps.len()).step_by(size) {
            let count = (steps.len() - at).min(size);
            let mut part = [[X::zeroed(); GROUPS * 2]; LANES];
            for (i, part) in part.iter_mut().enumerate().take(have) {
                part[..count].copy_from_slice(&data[from + i * side.pitch + at..][..count]);
            }
            let mut out = [[0.0f32; LANES]; GROUPS * 2];
            // SAFETY: arrays of no less.
            unsafe {
                let groups = block(load, part.as_ptr().cast::<X>(), GROUPS * 2);
                write::<LANES>(T::SECOND_FIRST, groups, out.as_mut_ptr().cast::<f32>(), count.div_ceil(G));
            }
            for (i, out) in out.iter().enumerate().take(count.div_ceil(G)) {
                let group = &mut panel[(at / G + i) * W * G + first * G..][..width * G];
                group.copy_from_slice(&bytemuck::cast_slice(out)[..width * G]);
            }
        }
    }
}

/// Two times 16 bytes of a panel: those at one address in the lower half, those at the other in the upper.
type Load<X> = unsafe fn(*const X, *const X) -> __m256;

/// Transposes a block: what is at an address, and on the next seven rows.
///
/// # Safety
/// It may be read.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn block<X>(load: Load<X>, lower: *const X, pitch: usize) -> [__m256; GROUPS] {
    let upper = lower.wrapping_add(LANES / 2 * pitch);
    let mut block = [_mm256_setzero_ps(); GROUPS];
    for (i, half) in block.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *half = unsafe { load(lower.wrapping_add(i * pitch), upper.wrapping_add(i * pitch)) };
    }
    transpose(block)
}

/// Writes groups of [`LANES`] lanes, `W` apart, as they are, or widened to two steps, the second first where there are two.
///
/// # Safety
/// They may be written.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn write<const W: usize>(widen: bool, groups: [__m256; GROUPS], to: *mut f32, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if !widen {
            for (i, groups) in groups.into_iter().enumerate().take(count) {
                _mm256_storeu_ps(to.wrapping_add(i * W), groups);
            }
            return;
        }
        for (i, groups) in groups.into_iter().enumerate().take(count.div_ceil(2)) {
            let [second, one] = widened(groups);
            let to = to.wrapping_add(2 * i * W);
            if 2 * i + 1 < count {
                _mm256_storeu_ps(to, second);
                _mm256_storeu_ps(to.wrapping_add(W), one);
            } else {
                _mm256_storeu_ps(to, one);
            }
        }
    }
}

/// # Safety
/// 16 bytes may be read at both addresses.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<X>(lower: *const X, upper: *const X) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu2_m128(upper.cast(), lower.cast()) }
}

/// As [`load`], widened to f32.
///
/// # Safety
/// 4 numbers may be read at both addresses.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_widened(lower: *const bf16, upper: *const bf16) -> __m256 {
    // SAFETY: the caller's promise.
    let halves = unsafe { _mm_unpacklo_epi64(_mm_loadl_epi64(lower.cast()), _mm_loadl_epi64(upper.cast())) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// As [`load`], rounded to bf16.
///
/// # Safety
/// 8 numbers may be read at both addresses.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_rounded(lower: *const f32, upper: *const f32) -> __m256 {
    // SAFETY: the caller's promise.
    let [x, y] = unsafe { [load(lower, upper), load(lower.wrapping_add(4), upper.wrapping_add(4))] };
    _mm256_castsi256_ps(_mm256_packus_epi32(rounded(x), rounded(y)))
}

/// As `bf16::narrow`, in the lower half of each element.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn rounded(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
}

/// The second and the first of each pair of bf16, as f32.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn widened(pairs: __m256) -> [__m256; 2] {
    let pairs = _mm256_castps_si256(pairs);
    let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
    [_mm256_castsi256_ps(second), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))]
}

/// Of four groups of lanes i and i + 4 in each vector i, eight lanes of each group.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(x: [__m256; GROUPS]) -> [__m256; GROUPS] {
    let low = [_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1])];
    let high = [_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3])];
    let pairs = |i: usize| (_mm256_castps_pd(low[i]), _mm256_castps_pd(high[i]));
    let mut groups = [_mm256_setzero_ps(); GROUPS];
    for i in 0..2 {
        let (a, b) = pairs(i);
        groups[2 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        groups[2 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
    groups
}
