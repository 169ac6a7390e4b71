//! One text, several instruction sets.
//!
//! The kernels outside the matrix product are plain loops that a compiler vectorises well, if it is told that the
//! machine has wide vectors. [`versions!`] compiles a function body three times on x86-64 (AVX-512, AVX2 with FMA, and
//! the baseline) and picks one at run time; elsewhere once. The body is generic over [`Isa`], which knows whether
//! `a·b + c` is one instruction: without the instruction, `mul_add` would be a call into a library.
//!
//! [`Real::exp`] is our own, because a call per element would forbid vectors: no branches, no tables. It is within 2 units
//! in the last place, exact at 0, 0 below the smallest denormal, infinite above the largest number, NaN at NaN.

use super::Real;

/// What a version of a function may use.
pub(crate) trait Isa {
    /// `a·b + c` is one instruction.
    const FMA: bool;

    /// `a·b + c`, with one rounding where the machine can.
    #[inline(always)]
    fn fma<R: Real>(a: R, b: R, c: R) -> R {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }
}

/// With fused multiply-add.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Fused;
#[cfg(target_arch = "x86_64")]
impl Isa for Fused {
    const FMA: bool = true;
}

/// Nothing beyond the target's baseline.
pub(crate) struct Baseline;
impl Isa for Baseline {
    const FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
}

/// Compiles `fn name<R, S>(arguments)` for each instruction set; the caller writes `name(arguments)`. `R` is a [`Real`],
/// `S` the [`Isa`]; or `fn name<A: Stored, …; S>`, with types and bounds as stated. Everything the body calls must be
/// `#[inline(always)]` to be compiled with it.
macro_rules! versions {
    ($($(#[$doc:meta])* fn $name:ident<$R:ident, $S:ident>($($arg:ident: $t:ty),* $(,)?) $(-> $ret:ty)? $body:block)+) => {
        $($crate::cpu::simd::versions! {
            $(#[$doc])* fn $name<$R: $crate::cpu::Real; $S>($($arg: $t),*) $(-> $ret)? $body
        })+
    };
    ($(
        $(#[$doc:meta])*
        $vis:vis fn $name:ident<$($A:ident: $bound:path),+; $S:ident>($($arg:ident: $t:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )+) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($A: $bound),+>($($arg: $t),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($A: $bound,)+ $S: $crate::cpu::simd::Isa>($($arg: $t),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
                fn avx512<$($A: $bound),+>($($arg: $t),*) $(-> $ret)? {
                    body::<$($A,)+ $crate::cpu::simd::Fused>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($A: $bound),+>($($arg: $t),*) $(-> $ret)? {
                    body::<$($A,)+ $crate::cpu::simd::Fused>($($arg),*)
                }
                let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has just said that it has these instructions.
                    return unsafe { if wide { avx512::<$($A),+>($($arg),*) } else { avx2::<$($A),+>($($arg),*) } };
                }
            }
            body::<$($A,)+ $crate::cpu::simd::Baseline>($($arg),*)
        }
    )+};
}
pub(crate) use versions;

/// `1/(1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<R: Real, S: Isa>(x: R) -> R {
    R::ONE / (R::ONE + R::exp::<S>(-x))
}

/// Lanes of a sum or a maximum: enough independent partial results to fill the widest vectors.
pub(crate) const LANES: usize = 16;

/// Folds a slice into [`LANES`] partial results: element `i` goes to lane `i mod LANES`, in order.
#[inline(always)]
pub(crate) fn fold<A: Copy, T: Copy>(x: &[T], start: A, f: impl Fn(A, T) -> A) -> [A; LANES] {
    let mut lanes = [start; LANES];
    fold_on(x, &mut lanes, f);
    lanes
}

/// Goes on with a [`fold`], of which all parts but the last are whole vectors.
#[inline(always)]
pub(crate) fn fold_on<A: Copy, T: Copy>(x: &[T], lanes: &mut [A; LANES], f: impl Fn(A, T) -> A) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            lanes[l] = f(lanes[l], x[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
}

/// [`fold`] over two slices of one length.
#[inline(always)]
pub(crate) fn fold2<A: Copy, T: Copy, U: Copy>(x: &[T], y: &[U], start: A, f: impl Fn(A, T, U) -> A) -> [A; LANES] {
    let mut lanes = [start; LANES];
    let ((whole_x, rest_x), (whole_y, rest_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in whole_x.iter().zip(whole_y) {
        for l in 0..LANES {
            lanes[l] = f(lanes[l], x[l], y[l]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(rest_x).zip(rest_y) {
        *lane = f(*lane, x, y);
    }
    lanes
}

/// [`fold`] over three slices of one length.
#[inline(always)]
pub(crate) fn fold3<A: Copy, T: Copy, U: Copy, V: Copy>(
    x: &[T],
    y: &[U],
    z: &[V],
    start: A,
    f: impl Fn(A, T, U, V) -> A,
) -> [A; LANES] {
    let mut lanes = [start; LANES];
    let ((whole_x, rest_x), (whole_y, rest_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let (whole_z, rest_z) = z.as_chunks::<LANES>();
    for ((x, y), z) in whole_x.iter().zip(whole_y).zip(whole_z) {
        for l in 0..LANES {
            lanes[l] = f(lanes[l], x[l], y[l], z[l]);
        }
    }
    for (((lane, &x), &y), &z) in lanes.iter_mut().zip(rest_x).zip(rest_y).zip(rest_z) {
        *lane = f(*lane, x, y, z);
    }
    lanes
}

/// Joins lanes as a tree.
#[inline(always)]
pub(crate) fn join<A: Copy>(mut lanes: [A; LANES], f: impl Fn(A, A) -> A) -> A {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

/// `Σ x`.
#[inline(always)]
pub(crate) fn sum<R: Real>(x: &[R]) -> R {
    join(fold(x, R::ZERO, |a, x| a + x), |a, b| a + b)
}

/// `Σ x·y`.
#[inline(always)]
pub(crate) fn dot<R: Real, S: Isa>(x: &[R], y: &[R]) -> R {
    join(fold2(x, y, R::ZERO, |a, x, y| S::fma(x, y, a)), |a, b| a + b)
}

/// The larger one; a NaN on the right is passed over.
#[inline(always)]
pub(crate) fn larger<R: Real>(a: R, b: R) -> R {
    if b > a { b } else { a }
}

/// The largest element, passing over NaN.
#[inline(always)]
pub(crate) fn max<R: Real>(x: &[R]) -> R {
    join(fold(x, R::NEG_INFINITY, larger), larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;

    versions! {
        fn exponentials<R, S>(x: &mut [R]) {
            x.iter_mut().for_each(|x| *x = x.exp::<S>());
        }
    }

    /// Distance in units in the last place of `exact` in f32.
    fn ulps(exact: f64, got: f32) -> f64 {
        let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x: Vec<f32> = (0..2_000_000).map(|i| -104.0 + i as f32 * (193.0 / 2e6)).collect();
        let inputs = x.clone();
        exponentials(&mut x);
        let worst = inputs.iter().zip(&x).map(|(&x, &y)| {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) { if y == f32::INFINITY { 0.0 } else { 99.0 } } else { ulps(exact, y) }
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 2.0, "{worst} ulp");

        let mut x: Vec<f64> = Random(1).values(1_000_000).iter().map(|x| x * 745.0).collect();
        let inputs = x.clone();
        exponentials(&mut x);
        let worst = inputs.iter().zip(&x).map(|(&x, &y)| {
            let exact = x.exp();
            if exact == y { 0.0 } else { (y - exact).abs() / (exact.next_up() - exact) }
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_its_edges() {
        let x = [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, -1e30, 1e30, f32::MIN_POSITIVE, -200.0, 88.8, f32::NAN];
        let mut y = x;
        exponentials(&mut y);
        assert_eq!(y[..9], [1.0, 1.0, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 1.0, 0.0, f32::INFINITY]);
        assert!(y[9].is_nan());
        let mut y = x.map(f64::from);
        exponentials(&mut y);
        assert_eq!(y[..7], [1.0, 1.0, 0.0, f64::INFINITY, 0.0, f64::INFINITY, 1.0]);
        assert!(y[9].is_nan());
    }

    #[test]
    fn folds_take_every_element_once() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f64> = (0..n).map(f64::from).collect();
            let total = f64::from(n) * (f64::from(n) - 1.0) / 2.0;
            assert_eq!(sum(&x), total);
            assert_eq!(dot::<_, Baseline>(&x, &vec![1.0; x.len()]), total);
            assert_eq!(max(&x), if n == 0 { f64::NEG_INFINITY } else { f64::from(n) - 1.0 });
        }
    }
}
