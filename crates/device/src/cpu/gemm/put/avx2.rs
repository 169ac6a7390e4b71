//! Past the caches, eight sums at a time.

use super::Away;
use crate::cpu::squares::Squares;
use crate::cpu::squares::lanes::avx2::{Lanes, WIDTH};
use std::arch::x86_64::*;

/// The ways past the caches, from rows of a line of sums.
pub(in super::super) const fn away() -> Away<f32> {
    Away { put, turned: false, rounded: None, measured }
}

/// Copies [`WIDTH`] sums to `to`, past the caches.
///
/// # Safety
/// They may be read and written, and `to` is the address of a line.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn stream(sums: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        _mm256_stream_ps(to, _mm256_loadu_ps(sums));
        _mm256_stream_ps(to.wrapping_add(8), _mm256_loadu_ps(sums.wrapping_add(8)));
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn put(sums: *const f32, [rows, cols]: [usize; 2], turned: bool, c: *mut f32, pitch: usize, accumulate: bool) {
    // SAFETY: passed on from the caller; whole rows of sums, to whole lines.
    unsafe {
        if turned || accumulate || cols < WIDTH || !super::lines(c, pitch) {
            return super::put::<f32, WIDTH>(sums, [rows, cols], turned, c, pitch, accumulate);
        }
        for row in 0..rows {
            stream(sums.wrapping_add(row * WIDTH), c.wrapping_add(row * pitch));
        }
    }
}

/// [`Away::measured`], both while a row is in the first cache.
#[target_feature(enable = "avx2,fma")]
unsafe fn measured(sums: *const f32, [rows, cols]: [usize; 2], c: *mut f32, pitch: usize) -> Squares {
    // SAFETY: passed on from the caller; whole rows of sums, to whole lines.
    unsafe {
        if cols < WIDTH || !super::lines(c, pitch) {
            super::put::<f32, WIDTH>(sums, [rows, cols], false, c, pitch, false);
            return Squares::of(sums, [rows, cols], WIDTH);
        }
        let mut squares = Lanes::new();
        for row in 0..rows {
            let sums = sums.wrapping_add(row * WIDTH);
            stream(sums, c.wrapping_add(row * pitch));
            squares.add(sums, WIDTH);
        }
        squares.end(rows * WIDTH).unwrap_or_else(|| Squares::one_by_one(sums, [rows, cols], WIDTH))
    }
}
