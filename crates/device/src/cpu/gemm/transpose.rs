//! Packing for the AVX-512 kernels of f32 and bf16: transposing blocks of 16 × 16 groups of 4 bytes in registers.
//!
//! A product with few rows may spend as long on packing as on arithmetic, so this is worth instructions by hand: a block
//! takes 64 shuffles for 256 groups, a fraction of the time that reading it from memory takes.

pub(super) mod avx2;

use super::kernel::{Data, GemmScalar};
use super::pack::Side;
use super::put;
use crate::cpu::lines::fetch;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// As [`super::pack::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(super) fn pack<T: GemmScalar<Real = f32>, const W: usize, const G: usize>(
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    const { assert!(size_of::<T>() * G == 4) };
    // Steps of a lane are transposed, as pairs if they are bf16; lanes that lie side by side are copied, or interleaved where a
    // group is a pair.
    let narrows = narrows();
    match (T::own(side.data), side.data, side.lanes_adjacent) {
        (Some(x), _, false) => blocks::<T, T, W, G>(load, x, side, lanes, steps, panel),
        (None, Data::Bf16(x), false) if T::SECOND_FIRST => blocks::<T, bf16, W, G>(load, x, side, lanes, steps, panel),
        (None, Data::Bf16(x), false) => blocks::<T, bf16, W, G>(load_widened, x, side, lanes, steps, panel),
        (None, Data::Real(x), false) if narrows => {
            blocks::<T, f32, W, G>(load_rounded::<true>, x, side, lanes, steps, panel)
        }
        (None, Data::Real(x), false) => blocks::<T, f32, W, G>(load_rounded::<false>, x, side, lanes, steps, panel),
        (Some(x), _, true) if G == 1 => singles::<T, T, W>(load, x, side, lanes, steps, panel),
        (_, Data::Bf16(x), true) if G == 1 => singles::<T, bf16, W>(load_widened, x, side, lanes, steps, panel),
        (_, Data::Real(x), true) if G == 1 && narrows => {
            singles::<T, f32, W>(load_as_bf16::<true>, x, side, lanes, steps, panel)
        }
        (_, Data::Real(x), true) if G == 1 => singles::<T, f32, W>(load_as_bf16::<false>, x, side, lanes, steps, panel),
        (_, Data::Bf16(x), true) => pairs::<T, bf16, W>(pair, x, side, lanes, steps, panel),
        (_, Data::Real(x), true) if narrows => pairs::<T, f32, W>(pair_rounded::<true>, x, side, lanes, steps, panel),
        (_, Data::Real(x), true) => pairs::<T, f32, W>(pair_rounded::<false>, x, side, lanes, steps, panel),
    }
}

/// Packs the panel by blocks. `load(address, n)` is 16 groups of steps, zeros after the first n steps; of what panels hold widened
/// it is pairs of bf16, which are widened where they are written: half as much to transpose.
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
    let pair = if T::SECOND_FIRST { 2 } else { G };
    for first in (0..W).step_by(16) {
        let width = mask((W - first).min(16)) as __mmask16;
        let have = lanes.len().saturating_sub(first);
        for at in (0..steps.len()).step_by(16 * pair) {
            let count = (steps.len() - at).min(16 * pair);
            let from = data.as_ptr().wrapping_add((lanes.start + first) * side.pitch + steps.start + at);
            let to = panel.as_mut_ptr().wrapping_add(at * W + first * G).cast::<f32>();
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, row) in block.iter_mut().enumerate().take(have) {
                // SAFETY: a row of the operand below `lanes.end`, and `count` steps of it, all below `steps.end`.
                *row = unsafe { load(from.wrapping_add(i * side.pitch), count) };
                if side.ahead > 0 {
                    let next = from.wrapping_add(i * side.pitch + side.ahead);
                    (0..count * size_of::<X>()).step_by(64).for_each(|line| fetch(next.wrapping_byte_add(line)));
                }
            }
            for (i, row) in transpose(block).into_iter().enumerate().take(count.div_ceil(pair)) {
                // SAFETY: a group of the panel, or two where there are as many steps, and the rest of their W columns from `first`
                // on, at most 16.
                unsafe {
                    if !T::SECOND_FIRST {
                        _mm512_mask_storeu_ps(to.wrapping_add(i * W), width, row);
                        continue;
                    }
                    let (two, [second, one]) = (to.wrapping_add(2 * i * W), widened(row));
                    if 2 * i + 1 < count {
                        _mm512_mask_storeu_ps(two, width, second);
                        _mm512_mask_storeu_ps(two.wrapping_add(W), width, one);
                    } else {
                        _mm512_mask_storeu_ps(two, width, one);
                    }
                }
            }
        }
    }
}

/// The second and the first of each pair of bf16, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(pairs: __m512) -> [__m512; 2] {
    let pairs = _mm512_castps_si512(pairs);
    let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
    [_mm512_castsi512_ps(second), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))]
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

/// As [`load`], rounded to bf16 and widened again, by the instruction if pairs are, so that both are the same numbers.
///
/// # Safety
/// `n` elements may be read. With `INSTRUCTION`, the processor has that of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn load_as_bf16<const INSTRUCTION: bool>(from: *const f32, n: usize) -> __m512 {
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    // SAFETY: the caller's promise.
    let x = unsafe { _mm512_maskz_loadu_ps(mask(n) as __mmask16, from) };
    if INSTRUCTION {
        let halves = _mm512_castsi512_si256(round::<true>(x, x));
        return _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    }
    _mm512_castsi512_ps(_mm512_and_si512(put::avx512::rounded(x), upper))
}

/// Packs rows for a kernel that reads each row's steps together: `panel[lane · steps + step]`, one zero more after an odd
/// number of steps. Nothing is written where there are no more lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
pub(super) fn pack_rows(side: &Side<f32>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [bf16]) {
    match (side.data, side.lanes_adjacent) {
        (Data::Bf16(x), false) => straight(load, x, side, lanes, steps, panel),
        (Data::Real(x), false) if narrows() => straight(load_rounded::<true>, x, side, lanes, steps, panel),
        (Data::Real(x), false) => straight(load_rounded::<false>, x, side, lanes, steps, panel),
        (Data::Bf16(x), true) => turned(pair, x, side, lanes, steps, panel),
        (Data::Real(x), true) if narrows() => turned(pair_rounded::<true>, x, side, lanes, steps, panel),
        (Data::Real(x), true) => turned(pair_rounded::<false>, x, side, lanes, steps, panel),
    }
}

/// The case of [`pack_rows`] that is a copy.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn straight<X>(
    load: unsafe fn(*const X, usize) -> __m512,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [bf16],
) {
    let pitch = steps.len().next_multiple_of(2);
    for (lane, out) in lanes.zip(panel.chunks_exact_mut(pitch)) {
        let row = &data[lane * side.pitch..][steps.clone()];
        for (x, out) in row.chunks(32).zip(out.chunks_mut(32)) {
            // SAFETY: so many elements are read, with the instruction if there is one, and so many are written.
            unsafe {
                let row = _mm512_castps_si512(load(x.as_ptr(), x.len()));
                _mm512_mask_storeu_epi16(out.as_mut_ptr().cast(), mask(out.len()), row);
            }
        }
    }
}

/// The transposed case of [`pack_rows`]: 16 pairs of steps of 16 lanes at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn turned<X>(
    pair: Pair<X>,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [bf16],
) {
    let pitch = steps.len().next_multiple_of(2);
    assert!(panel.len() >= lanes.len() * pitch && lanes.end <= side.pitch && steps.end <= side.rows);
    assert!(data.len() == side.rows * side.pitch);
    for first in (0..lanes.len()).step_by(16) {
        let width = (lanes.len() - first).min(16);
        for at in (0..steps.len()).step_by(32) {
            let count = (steps.len() - at).min(32);
            let from = data.as_ptr().wrapping_add((steps.start + at) * side.pitch + lanes.start + first);
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, row) in block.iter_mut().enumerate().take(count.div_ceil(2)) {
                let [one, two] = [2 * i, 2 * i + 1].map(|step| from.wrapping_add(step * side.pitch));
                let have = mask(width) as __mmask16;
                // SAFETY: `width` lanes of a step below `steps.end`; the second is only read if it is one, too.
                *row = unsafe { pair([have, if 2 * i + 1 < count { have } else { 0 }], one, two) };
            }
            for (lane, row) in transpose(block).into_iter().enumerate().take(width) {
                let to = panel.as_mut_ptr().wrapping_add((first + lane) * pitch + at);
                // SAFETY: these pairs of a row of the panel.
                unsafe { _mm512_mask_storeu_ps(to.cast(), mask(count.div_ceil(2)) as __mmask16, row) };
            }
        }
    }
}

/// Whether the processor rounds to bf16.
pub(super) fn narrows() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// 16 lanes of two steps as pairs; of each step those that its mask lets through are read, the others are zero.
type Pair<X> = unsafe fn([__mmask16; 2], *const X, *const X) -> __m512;

/// [`Pair`] of bf16.
///
/// # Safety
/// What the masks let through may be read.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn pair(masks: [__mmask16; 2], one: *const bf16, two: *const bf16) -> __m512 {
    // SAFETY: the caller's promise.
    let [one, two] =
        unsafe { [_mm256_maskz_loadu_epi16(masks[0], one.cast()), _mm256_maskz_loadu_epi16(masks[1], two.cast())] };
    let upper = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(two));
    _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(one), upper))
}

/// [`Pair`] of f32, rounded.
///
/// # Safety
/// What the masks let through may be read. With `INSTRUCTION`, the processor has that of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn pair_rounded<const INSTRUCTION: bool>(masks: [__mmask16; 2], one: *const f32, two: *const f32) -> __m512 {
    // SAFETY: the caller's promise.
    let [one, two] = unsafe { [_mm512_maskz_loadu_ps(masks[0], one), _mm512_maskz_loadu_ps(masks[1], two)] };
    interleave(round::<INSTRUCTION>(one, two))
}

/// Packs lanes that lie side by side: each row of W lanes is a step. `load(address, n)` is 16 elements, zeros after the first n.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn singles<T: GemmScalar, X, const W: usize>(
    load: unsafe fn(*const X, usize) -> __m512,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    assert!(size_of::<T>() == 4 && panel.len() == W * steps.len());
    assert!(lanes.len() <= W && lanes.end <= side.pitch && steps.end <= side.rows);
    assert!(data.len() == side.rows * side.pitch);
    for at in 0..steps.len() {
        let from = data.as_ptr().wrapping_add((steps.start + at) * side.pitch + lanes.start);
        let at = if T::SECOND_FIRST && at ^ 1 < steps.len() { at ^ 1 } else { at };
        let to = panel.as_mut_ptr().wrapping_add(at * W).cast::<f32>();
        for first in (0..W).step_by(16) {
            let width = mask((W - first).min(16)) as __mmask16;
            let have = lanes.len().saturating_sub(first).min(16);
            // SAFETY: lanes of a step below `steps.end`; a step of a panel has W lanes, of which `width` lets those from
            // `first` on through.
            unsafe { _mm512_mask_storeu_ps(to.wrapping_add(first), width, load(from.wrapping_add(first), have)) };
        }
    }
}

/// Packs lanes that lie side by side: each row of W lanes with the next one, the two steps of a pair.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
fn pairs<T: GemmScalar, X, const W: usize>(
    pair: Pair<X>,
    data: &[X],
    side: &Side<f32>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    assert!(size_of::<T>() == 2 && T::GROUP == 2, "pairs of bf16");
    assert!(panel.len() == W * steps.len().next_multiple_of(2) && lanes.end <= side.pitch && steps.end <= side.rows);
    assert!(data.len() == side.rows * side.pitch);
    for at in (0..steps.len()).step_by(2) {
        let from = data.as_ptr().wrapping_add((steps.start + at) * side.pitch + lanes.start);
        let to = panel.as_mut_ptr().wrapping_add(at * W);
        for first in (0..W).step_by(16) {
            let width = mask((W - first).min(16)) as __mmask16;
            let have = mask(lanes.len().saturating_sub(first)) as __mmask16 & width;
            let masks = [have, if at + 1 < steps.len() { have } else { 0 }];
            let (one, two) = (from.wrapping_add(first), from.wrapping_add(side.pitch + first));
            // SAFETY: what `have` lets through are lanes of a step below `steps.end`; the second is only read if it is one,
            // too. A pair of steps of a panel has W lanes, of which `width` lets those from `first` on through.
            unsafe { _mm512_mask_storeu_ps(to.wrapping_add(2 * first).cast(), width, pair(masks, one, two)) };
        }
    }
}

/// Of `[x₀ … x₁₅, y₀ … y₁₅]` the pairs `x₀ y₀, x₁ y₁, …`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::cpu) fn interleave(halves: __m512i) -> __m512 {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: an array of that size.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves))
}

/// Writes 32 sums as bf16 to 64 bytes at `to`; `away`: past the caches.
///
/// # Safety
/// They may be read and written, and are a line if `away`. The processor has the instruction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn store_rounded(sums: *const f32, to: *mut bf16, away: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = round::<true>(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.wrapping_add(16)));
        if away {
            _mm512_stream_si512(to.cast(), halves);
        } else {
            _mm512_storeu_si512(to.cast(), halves);
        }
    }
}

/// Copies 32 sums to `to`, past the caches.
///
/// # Safety
/// They may be read and written, and `to` is the address of a line.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn stream(sums: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        _mm512_stream_ps(to, _mm512_loadu_ps(sums));
        _mm512_stream_ps(to.wrapping_add(16), _mm512_loadu_ps(sums.wrapping_add(16)));
    }
}

/// 32 numbers as bf16, those of `x` first, as `bf16::narrow` rounds them; but with the instruction, which the processor must
/// have then, numbers below 2⁻¹²⁶ are taken as zero, as the instructions that multiply bf16 take them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn round<const INSTRUCTION: bool>(x: __m512, y: __m512) -> __m512i {
    if INSTRUCTION {
        let halves;
        // SAFETY: the processor has the instruction, which touches registers alone. It is written so, and not by its
        // intrinsic, because that could not be made part of functions that are compiled for processors without it.
        unsafe {
            std::arch::asm!(
                "vcvtne2ps2bf16 {halves}, {y}, {x}",
                halves = lateout(zmm_reg) halves, x = in(zmm_reg) x, y = in(zmm_reg) y,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        return halves;
    }
    const HALF: [u16; 32] = {
        let mut upper = [0; 32];
        let mut i = 0;
        while i < 32 {
            upper[i] = 2 * i as u16 + 1;
            i += 1;
        }
        upper
    };
    // SAFETY: an array of that size.
    let upper = unsafe { _mm512_loadu_si512(HALF.as_ptr().cast()) };
    _mm512_permutex2var_epi16(put::avx512::rounded(x), upper, put::avx512::rounded(y))
}

/// 32 numbers, of which the first `n` are read, as bf16 in the places of 16.
///
/// # Safety
/// `n` elements may be read. With `INSTRUCTION`, the processor has that of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn load_rounded<const INSTRUCTION: bool>(from: *const f32, n: usize) -> __m512 {
    let read = mask(n);
    // SAFETY: the caller's promise.
    let [x, y] = unsafe {
        [
            _mm512_maskz_loadu_ps(read as __mmask16, from),
            _mm512_maskz_loadu_ps((read >> 16) as __mmask16, from.wrapping_add(16)),
        ]
    };
    _mm512_castsi512_ps(round::<INSTRUCTION>(x, y))
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
