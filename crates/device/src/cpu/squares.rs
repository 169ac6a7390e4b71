//! Sums of squares of gradients, made while these are, a tile of a product or a row at a time, in the first cache.
//!
//! The norm of a gradient must be known before the first weight moves, and a pass of its own would read all gradients from
//! memory once more. But tiles are made in no fixed order, and each kernel has its own, so the sum must depend on neither: of each
//! square the whole multiples of [`SQUARE_UNIT`] count, and multiples are added as integers.
//!
//! A square of an f32 is exact in f64. With AVX-512 a conversion and a multiply-add do all for eight numbers: in a lane that
//! begins with [`BASE`] the last bit is a unit, so rounding towards zero cuts the square there, whatever the lane holds (rounding
//! to the nearest would not: a tie goes to the even sum). That is so until the lane has doubled, which its exponent tells in the
//! end; then the numbers are taken one by one. AVX2 has no such addition, and rounds each square before.
//!
//! No number may be as large as the root of [`BASE`], 0.18. Where one is, there is no sum, and whoever wants it reads the numbers.

#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) mod lanes;

use super::Real;
use super::simd::versions;
use crate::SQUARE_UNIT;
use std::any::TypeId;

/// The unit of f64 is [`SQUARE_UNIT`] from here up to its double.
pub(in crate::cpu) const BASE: f64 = SQUARE_UNIT / f64::EPSILON;
/// Numbers whose multiples are added up in 64 bits.
const AT_ONCE: usize = (1 << (64 - BITS)) - 1;
/// Bits of a multiple in an f64.
const BITS: u32 = f64::MANTISSA_DIGITS - 1;

/// What the squares of some numbers sum up to, in units.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::cpu) struct Squares {
    pub units: u128,
    pub numbers: usize,
    /// Whether a number was too large, or none.
    pub beyond: bool,
}

impl Squares {
    /// Of some numbers, if they are of the type that this is made for.
    pub fn of_row<R: Real>(row: &[R]) -> Option<Squares> {
        let single = TypeId::of::<R>() == TypeId::of::<f32>();
        // SAFETY: these are f32.
        single.then(|| unsafe { Squares::of(row.as_ptr().cast(), [1, row.len()], 0) })
    }

    /// Of rows of so many numbers, `pitch` apart.
    ///
    /// # Safety
    /// They may be read.
    pub unsafe fn of(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> Squares {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: passed on from the caller, and the machine has the instructions.
            let squares = unsafe {
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                    lanes::avx512::of(first, [rows, cols], pitch)
                } else if is_x86_feature_detected!("avx2") {
                    lanes::avx2::of(first, [rows, cols], pitch)
                } else {
                    None
                }
            };
            if let Some(squares) = squares {
                return squares;
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { Squares::one_by_one(first, [rows, cols], pitch) }
    }

    /// As [`Squares::of`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn one_by_one(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> Squares {
        let (mut units, mut beyond) = (0, false);
        for row in 0..rows {
            // SAFETY: passed on from the caller.
            let row = unsafe { std::slice::from_raw_parts(first.add(row * pitch), cols) };
            for some in row.chunks(AT_ONCE) {
                let (of_some, too_large) = add_up(some);
                units += u128::from(of_some);
                beyond |= too_large;
            }
        }
        Squares { units, numbers: rows * cols, beyond }
    }

    /// With others.
    pub fn and(self, other: Squares) -> Squares {
        let (units, numbers) = (self.units + other.units, self.numbers + other.numbers);
        Squares { units, numbers, beyond: self.beyond || other.beyond }
    }

    /// How much more this is than the sum before.
    pub fn grown(self, before: Squares) -> Option<f64> {
        let units = self.units.cast_signed() - before.units.cast_signed();
        (!self.beyond && !before.beyond).then_some(units as f64 * SQUARE_UNIT)
    }

    /// The sum, if these are all of so many numbers and none was too large.
    pub fn sum(self, numbers: usize) -> Option<f64> {
        (!self.beyond && self.numbers == numbers).then_some(self.units as f64 * SQUARE_UNIT)
    }
}

versions! {
    /// Sum of the multiples, and whether a number is too large, or none.
    fn add_up<R, S>(row: &[R]) -> (u64, bool) {
        let (mut sum, mut beyond) = (0u64, false);
        for x in row {
            let x = x.f64();
            let square = x * x;
            let nearest = square + BASE;
            let up = nearest - BASE > square;
            sum = sum.wrapping_add(nearest.to_bits()).wrapping_sub(BASE.to_bits() + u64::from(up));
            beyond |= square >= BASE || square.is_nan();
        }
        (sum, beyond)
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
            let [squares, one_by_one] = unsafe {
                let (first, size) = (spoilt.as_ptr(), [20, cols]);
                [Squares::of(first, size, 50), Squares::one_by_one(first, size, 50)]
            };
            assert_eq!(squares, one_by_one);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above, and the machine has the instructions.
                let squares = unsafe { lanes::avx2::of(spoilt.as_ptr(), [20, cols], 50) };
                assert_eq!(squares, Some(one_by_one));
            }
            assert_eq!((squares.numbers, squares.beyond), (20 * cols, false));
            let exact = x.chunks(50).flat_map(|row| &row[..cols]).map(|&x| f64::from(x).powi(2)).sum::<f64>();
            assert!((squares.sum(20 * cols).unwrap() / exact - 1.0).abs() < 1e-9);
        }
    }

    /// A row of more numbers than 64 bits hold the largest squares of.
    #[test]
    fn rows_may_be_long() {
        let row = vec![0.17f32; 3 * AT_ONCE];
        let units = (f64::from(row[0]).powi(2) / SQUARE_UNIT) as u128 * row.len() as u128;
        assert_eq!(Squares::of_row(&row), Some(Squares { units, numbers: row.len(), beyond: false }));
        assert_eq!(Squares::of_row(&[0.1f64]), None, "made for f32");
    }

    proptest! {
        /// Any numbers, in any order and any tiles: the sum of each square, cut by itself. Where all are large, lanes double.
        #[test]
        fn the_order_of_numbers_is_nothing(
            exponents in prop_oneof![prop::collection::vec(-40i32..-5, 1..600), prop::collection::vec(-4i32..-2, 1..600)],
            large in prop::option::of(0usize..600), width in 1usize..33, seed: u64,
        ) {
            let mut r = Random(seed);
            let mut x: Vec<f32> = exponents.iter().map(|&e| (r.values(1)[0] * f64::from(e).exp2()) as f32).collect();
            if let Some(place) = large.and_then(|place| x.get_mut(place)) {
                *place = 0.2;
            }
            let inside = x.iter().all(|&x| f64::from(x).powi(2) < BASE);
            let units: u128 = x.iter().map(|&x| (f64::from(x).powi(2) / SQUARE_UNIT) as u128).sum();
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: all these are in the vector, and the machine has the instructions.
                if let Some(squares) = unsafe { lanes::avx2::of(x.as_ptr(), [1, x.len()], 0) } {
                    prop_assert!(inside);
                    prop_assert_eq!(squares, Squares { units, numbers: x.len(), beyond: false });
                } else {
                    prop_assert!(!inside || units >= 1 << BITS, "a lane has doubled");
                }
            }
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
        let large = vec![0.17f32; n];
        let units = (f64::from(0.17f32).powi(2) / SQUARE_UNIT) as u128 * n as u128;
        assert_eq!(
            of(&large, 32),
            Squares { units, numbers: n, beyond: false },
            "each is small enough, and a lane doubles"
        );
        let root = BASE.sqrt() as f32;
        let [inside, outside] = [root.next_down(), root.next_up()];
        assert!(f64::from(inside).powi(2) < BASE && f64::from(outside).powi(2) > BASE);
        assert!(with(inside).is_some());
        for odd in
            [outside, 0.18, -0.18, 1.0, 3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0xff80_0001)]
        {
            assert_eq!(with(odd), None, "{odd}");
        }
        assert_eq!(of(&vec![1e-9; n], 32).sum(n), Some(0.0), "each is less than a unit");
        assert_eq!(of(&vec![1e-3; n], 32).sum(n + 1), None, "not all of them");
        assert_eq!(of(&[], 32).sum(0), Some(0.0), "none at all");
    }
}
