//! Rounding tiles of f32 sums to bf16 operands.
//!
//! Every score is rounded on its way to the next product, gradients of scores twice, so where the machine has instructions
//! for it they are used by hand: the compiler knows no type that would make it choose them. They take and give denormal
//! numbers as zeros, which is all that their bits differ in from the loops.

use super::with_lanes;
use crate::cpu::real::Stored;
use crate::cpu::simd::{Isa, versions};
use half::bf16;

/// `y = x`, rounded.
pub(super) fn round(x: &[f32], y: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if x86::supported() {
        // SAFETY: the machine has just said that it has the instructions.
        return unsafe { x86::round(x, y) };
    }
    round_by_loops(x, y);
}

/// Rows of `lanes` elements, rounded, two by two with their elements alternating; a last one alone with zeros.
pub(super) fn pair(lanes: usize, rows: &[f32], pairs: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if x86::supported() {
        // SAFETY: the machine has just said that it has the instructions.
        return unsafe { x86::pair(lanes, rows, pairs) };
    }
    pair_by_loops(lanes, rows, pairs);
}

versions! {
    fn round_by_loops<A: Stored; S>(x: &[A::Real], y: &mut [A]) {
        assert_eq!(x.len(), y.len());
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = A::narrow(x));
    }
}

versions! {
    fn pair_by_loops<A: Stored; S>(lanes: usize, rows: &[A::Real], pairs: &mut [A]) {
        with_lanes!(lanes, pair_of::<A, S>(rows, pairs))
    }
}

#[inline(always)]
fn pair_of<A: Stored, S: Isa, const N: usize>(rows: &[A::Real], pairs: &mut [A]) {
    let (rows, pairs) = (rows.as_chunks::<N>().0, pairs.as_chunks_mut::<2>().0.as_chunks_mut::<N>().0);
    assert_eq!(rows.len().div_ceil(2), pairs.len());
    for (rows, pairs) in rows.chunks(2).zip(pairs) {
        match rows {
            [a, b] => (0..N).for_each(|l| pairs[l] = [A::narrow(a[l]), A::narrow(b[l])]),
            _ => (0..N).for_each(|l| pairs[l] = [A::narrow(rows[0][l]), A::zeroed()]),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::bf16;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    pub(super) fn supported() -> bool {
        is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
    }

    /// Two vectors, rounded, one after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn both(first: __m512, second: __m512) -> __m512i {
        // SAFETY: vectors of one size, of which any bits are valid.
        unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }

    /// Up to 16 elements, then zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(x: &[f32]) -> __m512 {
        let mask = if x.len() < 16 { (1 << x.len()) - 1 } else { !0 };
        // SAFETY: masked elements are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn round(x: &[f32], y: &mut [bf16]) {
        assert_eq!(x.len(), y.len());
        let (whole, rest) = x.as_chunks::<32>();
        let (whole_y, rest_y) = y.as_chunks_mut::<32>();
        for (x, y) in whole.iter().zip(whole_y) {
            // SAFETY: 32 elements of each.
            unsafe {
                let (first, second) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
                _mm512_storeu_si512(y.as_mut_ptr().cast(), both(first, second));
            }
        }
        let (first, second) = rest.split_at(rest.len().min(16));
        let mask = (1 << rest_y.len()) - 1;
        // SAFETY: masked elements are not written.
        unsafe { _mm512_mask_storeu_epi16(rest_y.as_mut_ptr().cast(), mask, both(load(first), load(second))) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn pair(lanes: usize, rows: &[f32], pairs: &mut [bf16]) {
        let (rows, pairs) = (rows.chunks_exact(lanes), pairs.chunks_exact_mut(2 * lanes));
        assert!(lanes.is_multiple_of(16) && rows.len().div_ceil(2) == pairs.len());
        // Alternately from the first and from the second half.
        let alternate: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
        // SAFETY: 32 elements of 16 bits.
        let alternate = unsafe { _mm512_loadu_si512(alternate.as_ptr().cast()) };
        let mut rows = rows;
        for pairs in pairs {
            let (a, b) = (rows.next().unwrap_or(&[]), rows.next());
            for (a, (l, pairs)) in
                a.as_chunks::<16>().0.iter().zip(pairs.as_chunks_mut::<32>().0.iter_mut().enumerate())
            {
                // SAFETY: 16 elements of each row, 32 of the pairs.
                unsafe {
                    let b = b.map_or(_mm512_setzero_ps(), |b| _mm512_loadu_ps(b[l * 16..(l + 1) * 16].as_ptr()));
                    let words = both(_mm512_loadu_ps(a.as_ptr()), b);
                    _mm512_storeu_si512(pairs.as_mut_ptr().cast(), _mm512_permutexvar_epi16(alternate, words));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;

    /// Every length and what is special, by instructions and by loops.
    #[test]
    fn rounding_is_to_the_nearest_even() {
        let mut r = Random(5);
        for n in 0..100 {
            let mut x: Vec<f32> = r.values(n).iter().map(|&x| x as f32).collect();
            let special = [f32::INFINITY, -0.0, f32::NAN, f32::MAX, 1.0 + 0.5f32.powi(8), 1.0 + 3.0 * 0.5f32.powi(8)];
            special.iter().zip(&mut x).for_each(|(&s, x)| *x = s);
            let exact: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            let mut y = vec![[bf16::ONE; 2]; n];
            let (y, z) = y.as_flattened_mut().split_at_mut(n);
            round(&x, y);
            round_by_loops(&x, z);
            let same = |y: &[bf16]| {
                y.iter().zip(&exact).all(|(y, &e)| y.to_bits() == e || (y.is_nan() && bf16::from_bits(e).is_nan()))
            };
            assert!(same(y) && same(z), "{n}: {y:?} {z:?} {exact:?}");
        }
    }

    #[test]
    fn pairs_alternate() {
        let mut r = Random(5);
        for lanes in [16, 32] {
            for rows in 1..6usize {
                let x: Vec<f32> = r.values(rows * lanes).iter().map(|&x| x as f32).collect();
                let len = rows.next_multiple_of(2) * lanes;
                let (mut y, mut z) = (vec![bf16::ONE; len], vec![bf16::ONE; len]);
                pair(lanes, &x, &mut y);
                pair_by_loops(lanes, &x, &mut z);
                let at = |row: usize, lane: usize| x.get(row * lanes + lane).map_or(bf16::ZERO, |&x| bf16::from_f32(x));
                let expected: Vec<bf16> =
                    (0..len).map(|i| at(i / (2 * lanes) * 2 + i % 2, i % (2 * lanes) / 2)).collect();
                assert_eq!(y, expected);
                assert_eq!(z, expected);
            }
        }
    }
}
