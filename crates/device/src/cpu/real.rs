//! The numbers that kernels compute in, `f32` and `f64`, behind one small trait, so that a kernel is written once: in
//! `f64` its gradient is proven, in `f32` it is used.

use crate::Element;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point type that kernels compute in.
pub(crate) trait Real:
    Element
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
    fn exp(self) -> Self;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
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
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
        }
    };
}
real!(f32);
real!(f64);

/// Lanes of a sum: enough independent partial sums to fill the widest vectors.
pub(crate) const LANES: usize = 16;

/// `Σ f(i)` over `0..n` in a fixed order that vectorises: [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum<R: Real>(n: usize, f: impl Fn(usize) -> R) -> R {
    let mut lanes = [R::ZERO; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    add_lanes(lanes)
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(crate) fn add_lanes<R: Real>(mut lanes: [R; LANES]) -> R {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = lanes[i] + lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// `Σ a·b`.
#[inline(always)]
pub(crate) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let n = a.len();
    let b = &b[..n];
    sum(n, |i| a[i] * b[i])
}
