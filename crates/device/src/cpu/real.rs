//! The numbers that kernels compute in, `f32` and `f64`, behind one small trait, so that a kernel is written once: in
//! `f64` its gradient is proven, in `f32` it is used. A second trait, [`Stored`], adds the type that is only stored: a
//! kernel generic over it reads and writes `bf16` and computes in `f32`, and for `f32` and `f64` themselves it is the
//! same text with nothing to convert.

use super::simd::Isa;
use crate::Element;
use half::bf16;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// What numbers lie in: a type that kernels compute in, or one that is widened to be computed with. Those of tensors are
/// [`Element`]s, too.
pub(crate) trait Stored: bytemuck::Pod + Send + Sync {
    /// The type of the arithmetic.
    type Real: Real;
    /// Widens, exactly.
    fn widen(self) -> Self::Real;
    /// Rounds to the nearest, ties to even; NaN stays NaN.
    fn narrow(x: Self::Real) -> Self;
}

impl Stored for bf16 {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without a branch, so that loops of it vectorise. Adding just less than half a unit, and one more where the last
    /// bit kept is odd, carries into the bits kept exactly when they must be rounded up. A NaN keeps its upper bits and
    /// is made quiet, since the lower ones, which may be all that made it a NaN, are cut off.
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        bf16::from_bits((kept >> 16) as u16)
    }
}

/// The bf16 nearest to an f64, ties to even. By way of an f32 that is rounded to odd (Boldo & Melquiond 2008): its last bit
/// says whether anything was cut off, so that the second rounding sees a tie only where there is one. (`bf16::from_f64`
/// forgets the lower half of its argument.)
#[inline(always)]
pub(crate) fn nearest(x: f64) -> bf16 {
    let single = x as f32;
    let bits = single.to_bits();
    let toward_zero = bits - u32::from(f64::from(single).abs() > x.abs());
    let inexact = u32::from(f64::from(single) != x && !x.is_nan());
    bf16::narrow(f32::from_bits(toward_zero | inexact))
}

/// Converts to the nearest `Y`.
pub(crate) trait To<Y>: Element {
    fn to(self) -> Y;
}
macro_rules! to {
    ($($x:ident to $y:ident: $convert:expr;)+) => {$(
        impl To<$y> for $x {
            #[inline(always)]
            fn to(self) -> $y {
                $convert(self)
            }
        }
    )+};
}
to! {
    u32 to u32: std::convert::identity;
    f32 to f32: std::convert::identity;
    f32 to f64: f64::from;
    f32 to bf16: bf16::narrow;
    f64 to f32: Real::of;
    f64 to f64: std::convert::identity;
    f64 to bf16: nearest;
    bf16 to f32: bf16::widen;
    bf16 to f64: |x: bf16| f64::from(x.widen());
    bf16 to bf16: std::convert::identity;
}

/// A floating-point type that kernels compute in.
pub(crate) trait Real:
    Stored<Real = Self>
    + Element
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    /// Rounds to this type.
    fn of(x: f64) -> Self;
    /// Widens, exactly.
    fn f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    /// One instruction, or a slow call: use [`Isa::fma`].
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `eˣ`: `2ⁿ·eʳ` with `n = round(x/ln 2)` and the Taylor polynomial of `eʳ` on `|r| ≤ ln 2 / 2`. No branch, no
    /// table, no call, so that loops of it vectorise. Within 2 units in the last place.
    fn exp<S: Isa>(self) -> Self;
}

macro_rules! real {
    (
        $t:ident, $int:ident, mantissa $mantissa:literal, bias $bias:literal, exp from $min:literal to $max:literal,
        ln2 $ln2_high:expr, $ln2_low:literal, taylor 1 / $last:literal $($factorial:literal)+
    ) => {
        impl Stored for $t {
            type Real = $t;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(x: $t) -> $t {
                x
            }
        }

        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $t::mul_add(self, b, c)
            }
            #[inline(always)]
            fn exp<S: Isa>(self) -> Self {
                // Comparisons that NaN fails, so that it passes through.
                let x = if self > $max { $max } else { self };
                let x = if x < $min { $min } else { x };
                // Adding 1.5·2^mantissa leaves the rounded integer in the lowest bits.
                const ROUND: $t = 1.5 * (1u64 << $mantissa) as $t;
                let shifted = S::fma(x, std::$t::consts::LOG2_E, ROUND);
                let n = shifted - ROUND;
                // The high part has so few bits that its product with n is exact.
                let r = S::fma(n, -$ln2_high, x);
                let r = S::fma(n, -$ln2_low, r);
                let y: $t = 1.0 / $last;
                $(let y = S::fma(y, r, 1.0 / $factorial);)+
                // In two steps, since 2ⁿ alone may be out of range where the result is not, or is denormal.
                let n = (shifted.to_bits() as $int).wrapping_sub(ROUND.to_bits() as $int);
                let (n, m) = (n >> 1, n.wrapping_sub(n >> 1));
                let power = |n: $int| $t::from_bits((n.wrapping_add($bias) << $mantissa).cast_unsigned());
                y * power(n) * power(m)
            }
        }
    };
}
real!(f32, i32, mantissa 23, bias 127, exp from -104.0 to 89.0, ln2 355.0 / 512.0, -2.121_944_4e-4,
    taylor 1 / 5040.0 720.0 120.0 24.0 6.0 2.0 1.0 1.0);
real!(f64, i64, mantissa 52, bias 1023, exp from -746.0 to 710.0, ln2 0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10,
    taylor 1 / 6_227_020_800.0 479_001_600.0 39_916_800.0 3_628_800.0 362_880.0 40_320.0 5040.0 720.0 120.0 24.0 6.0 2.0
    1.0 1.0);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every upper half, with the lower halves around which rounding changes; against the `half` crate.
    #[test]
    fn bf16_is_rounded_to_the_nearest_even() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                let (got, expected) = (bf16::narrow(x), bf16::from_f32(x));
                assert_eq!(got.is_nan(), x.is_nan());
                assert!(x.is_nan() || got.to_bits() == expected.to_bits(), "{x:e}: {got} instead of {expected}");
            }
            let x = bf16::from_bits(upper);
            assert_eq!(x.widen().to_bits(), u32::from(upper) << 16);
        }
    }

    /// Just beside every tie, by less than an f32 can tell.
    #[test]
    fn an_f64_is_rounded_once() {
        for upper in (0..0x7f7f).chain(0x8000..0xff7f) {
            let [low, high] = [upper, upper + 1].map(bf16::from_bits);
            let tie = (low.to_f64() + high.to_f64()) / 2.0;
            let [below, above] = [1.0 - 1e-15, 1.0 + 1e-15].map(|factor| nearest(tie * factor).to_bits());
            assert_eq!((below, above), (low.to_bits(), high.to_bits()), "around {tie:e}");
            assert_eq!(nearest(tie).to_bits() & 1, 0, "{tie:e} is a tie");
            assert_eq!(nearest(low.to_f64()), low);
        }
        assert_eq!(
            [1e300, -1e300, 1e-300, -f64::INFINITY].map(|x| nearest(x).to_f64()),
            [f64::INFINITY, -f64::INFINITY, 0.0, -f64::INFINITY]
        );
        assert!(nearest(f64::NAN).is_nan());
    }
}
