//! Sums of squares of a product's results, made tile by tile while these lie in the first cache.
//!
//! The norm of a gradient must be known before the first weight moves, and a pass of its own would read all gradients from
//! memory once more. But tiles are made in no fixed order, and each kernel has its own, so the sum must depend on neither: each
//! square is rounded to a multiple of [`SQUARE_UNIT`], and multiples are added as integers. A square of an f32 is exact in f64, and
//! adding [`BASE`] to it rounds it once, so that its multiple stands in the lowest bits: a conversion, a multiply-add and two
//! operations on integers for eight numbers.
//!
//! No number may be as large as the root of [`BASE`], 0.18. Where one is, there is no sum, and whoever wants it reads the numbers.

use crate::SQUARE_UNIT;
use crate::cpu::simd::versions;

/// What is added to a square: the unit of f64 is [`SQUARE_UNIT`] from here up to its double.
pub(super) const BASE: f64 = SQUARE_UNIT / f64::EPSILON;
/// Bits of a multiple in an f64.
const BITS: u32 = f64::MANTISSA_DIGITS - 1;

/// What the squares of some numbers sum up to, in units.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Squares {
    pub units: u128,
    pub numbers: usize,
    /// Whether a number was too large, or none.
    pub beyond: bool,
}

impl Squares {
    /// Of rows of so many numbers, `pitch` apart.
    ///
    /// # Safety
    /// They may be read.
    pub unsafe fn of(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> Squares {
        let numbers = rows * cols;
        assert!(numbers < 1 << (64 - BITS), "{numbers} multiples in 64 bits");
        let add_up = || {
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                // SAFETY: passed on from the caller, and the machine has the instructions.
                return unsafe { wide::add_up(first, [rows, cols], pitch) };
            }
            // SAFETY: passed on from the caller.
            unsafe { add_up(first, [rows, cols], pitch) }
        };
        let (units, any) = add_up();
        Squares { units: units.into(), numbers, beyond: any >> BITS != BASE.to_bits() >> BITS }
    }

    /// With others.
    pub fn and(self, other: Squares) -> Squares {
        let (units, numbers) = (self.units + other.units, self.numbers + other.numbers);
        Squares { units, numbers, beyond: self.beyond || other.beyond }
    }

    /// The sum, if these are all of so many numbers and none was too large.
    pub fn sum(self, numbers: usize) -> Option<f64> {
        (!self.beyond && self.numbers == numbers).then_some(self.units as f64 * SQUARE_UNIT)
    }
}

/// Sum of the multiples, and all bits that are set in any `x² + BASE`: that of a number that is too large, or none, has a larger
/// exponent, hence some bit that the exponent of `BASE` has not.
///
/// # Safety
/// The numbers may be read.
unsafe fn add_up(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> (u64, u64) {
    (0..rows).fold((0, BASE.to_bits()), |(sum, any): (u64, u64), row| {
        // SAFETY: passed on from the caller.
        let of_row = add_up_row(unsafe { std::slice::from_raw_parts(first.add(row * pitch), cols) });
        (of_row.0.wrapping_add(sum), of_row.1 | any)
    })
}

versions! {
    fn add_up_row<R, S>(row: &[R]) -> (u64, u64) {
        let (mut sum, mut any) = (0u64, BASE.to_bits());
        for x in row {
            let x = x.f64();
            let bits = S::fma(x, x, BASE).to_bits();
            sum = sum.wrapping_add(bits).wrapping_sub(BASE.to_bits());
            any |= bits;
        }
        (sum, any)
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::BASE;
    use std::arch::x86_64::*;

    /// [`super::add_up`] by hand: a compiler would add across the vector after each.
    ///
    /// # Safety
    /// The numbers may be read.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn add_up(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> (u64, u64) {
        let (mut sum, mut any) = (_mm512_setzero_si512(), _mm512_castpd_si512(_mm512_set1_pd(BASE)));
        let (pairs, rest) = (cols / 16, cols % 16);
        for row in 0..rows {
            let row = first.wrapping_add(row * pitch);
            for pair in 0..pairs {
                let at = row.wrapping_add(16 * pair);
                // SAFETY: these are 16 of the row.
                let x = unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.wrapping_add(8))] };
                add(x, &mut sum, &mut any);
            }
            if rest > 0 {
                let at = row.wrapping_add(16 * pairs);
                let mask = ((1u32 << rest) - 1) as u16;
                let [low, high] = mask.to_le_bytes();
                // SAFETY: what is masked is not read.
                let x = unsafe { [_mm256_maskz_loadu_ps(low, at), _mm256_maskz_loadu_ps(high, at.wrapping_add(8))] };
                add(x, &mut sum, &mut any);
            }
        }
        let added = (16 * rows * cols.div_ceil(16)) as u64;
        let (sum, any) = (_mm512_reduce_add_epi64(sum) as u64, _mm512_reduce_or_epi64(any) as u64);
        (sum.wrapping_sub(added.wrapping_mul(BASE.to_bits())), any)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn add(x: [__m256; 2], sum: &mut __m512i, any: &mut __m512i) {
        let [a, b] = x.map(|x| {
            let x = _mm512_cvtps_pd(x);
            _mm512_castpd_si512(_mm512_fmadd_pd(x, x, _mm512_set1_pd(BASE)))
        });
        *sum = _mm512_add_epi64(*sum, _mm512_add_epi64(a, b));
        *any = _mm512_ternarylogic_epi64::<0xfe>(*any, a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;
    use proptest::prelude::*;

    /// Tiles of 14 rows, and the rows that are left.
    fn of(x: &[f32], width: usize) -> Squares {
        let tile = |x: &[f32]| {
            let rest = x.len() % width;
            // SAFETY: all these are in the slice.
            unsafe {
                let rows = Squares::of(x.as_ptr(), [x.len() / width, width], width);
                rows.and(Squares::of(x.as_ptr().add(x.len() - rest), [1, rest], 0))
            }
        };
        x.chunks(14 * width).map(tile).fold(Squares::default(), Squares::and)
    }

    /// Rows that are apart, with numbers between them that are not the tile's; and the two ways to add up.
    #[test]
    fn only_what_is_in_the_tile_counts() {
        let mut r = Random(3);
        for cols in 1..=33 {
            let x: Vec<f32> = r.values(20 * 50).iter().map(|x| (x / 100.0) as f32).collect();
            let mut spoilt = x.clone();
            spoilt.chunks_mut(50).for_each(|row| row[cols..].fill(f32::NAN));
            // SAFETY: 20 rows of 50.
            let (squares, (units, any)) = unsafe {
                let (first, size) = (spoilt.as_ptr(), [20, cols]);
                (Squares::of(first, size, 50), add_up(first, size, 50))
            };
            assert_eq!(squares, Squares { units: units.into(), numbers: 20 * cols, beyond: false });
            assert_eq!(any >> BITS, BASE.to_bits() >> BITS);
            let exact = x.chunks(50).flat_map(|row| &row[..cols]).map(|&x| f64::from(x).powi(2)).sum::<f64>();
            assert!((squares.sum(20 * cols).unwrap() / exact - 1.0).abs() < 1e-9);
        }
    }

    proptest! {
        /// Any numbers, in any order and any tiles: the sum of each square, rounded by itself.
        #[test]
        fn the_order_of_numbers_is_nothing(
            exponents in prop::collection::vec(-40i32..-5, 1..600), large in prop::option::of(0usize..600),
            width in 1usize..33, seed: u64,
        ) {
            let mut r = Random(seed);
            let mut x: Vec<f32> = exponents.iter().map(|&e| (r.values(1)[0] * f64::from(e).exp2()) as f32).collect();
            if let Some(place) = large.and_then(|place| x.get_mut(place)) {
                *place = 0.2;
            }
            let inside = x.iter().all(|&x| f64::from(x).powi(2) < BASE);
            let units: u128 = x.iter().map(|&x| (f64::from(x).powi(2) / SQUARE_UNIT).round_ties_even() as u128).sum();
            for width in [width, 32, 1] {
                let squares = of(&x, width);
                prop_assert_eq!((squares.numbers, squares.beyond), (x.len(), !inside));
                prop_assert!(!inside || squares.units == units, "{} and {units}", squares.units);
                x.reverse();
                x.rotate_left(1);
            }
        }
    }

    #[test]
    fn what_is_too_large_or_missing_has_no_sum() {
        let n = 200;
        let with = |odd: f32| {
            let mut x = vec![1e-3f32; n];
            x[77] = odd;
            of(&x, 32).sum(n)
        };
        assert!((with(1e-3).unwrap() / (n as f64 * 1e-6) - 1.0).abs() < 1e-6);
        assert!(with(0.17).is_some());
        for odd in [0.18, -0.18, 1.0, 3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0xff80_0001)] {
            assert_eq!(with(odd), None, "{odd}");
        }
        assert_eq!(of(&vec![1e-9; n], 32).sum(n), Some(0.0), "each is less than half a unit");
        assert_eq!(of(&vec![1e-3; n], 32).sum(n + 1), None, "not all of them");
        assert_eq!(of(&[], 32).sum(0), Some(0.0), "none at all");
    }
}
