//! The types that attention is computed from, and the exponential that each deserves.
//!
//! Products are summed and softmax is made in [`Stored::Real`]; probabilities and gradients of scores are rounded to the
//! operands' type again before they are multiplied. Exponentials are powers of two, of scores that are multiplied by
//! log₂ e along with their scale: that saves the reduction by ln 2 and its two roundings. They are as good as what becomes
//! of them. For f32 the polynomial is within a roundoff of f32; a probability that is rounded to bf16 loses up to 2⁻⁸ of
//! itself, and a polynomial of degree 4, within 3·10⁻⁶, adds nothing that could be seen beside.

use super::round::{pair, round};
#[cfg(target_arch = "x86_64")]
use super::softmax::Wide;
use super::softmax::{At, Gradients, Running, Space, exponentials, score_gradients};
use crate::Element;
use crate::cpu::gemm::{Micro, Source};
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::Isa;
use half::bf16;

/// A type of queries, keys and values.
pub(crate) trait Number: Source + Element + Stored<Real: Source<Real = <Self as Stored>::Real>> {
    /// `2ˣ` of differences to a maximum, so for x that is hardly above 0. NaN stays NaN.
    fn exp2<S: Isa>(x: Self::Real) -> Self::Real;

    /// Scores `[keys, lanes]` become weights ([`exponentials`]): a right operand, as they lie or in `space`.
    fn weights<'a>(
        lanes: usize,
        at: At<Self::Real>,
        scores: &'a mut [Self::Real],
        running: &mut Running<Self::Real>,
        space: &'a mut [Self],
    ) -> &'a [Self];

    /// Scores `[queries, lanes]` and gradients of probabilities become probabilities and gradients of scores
    /// ([`score_gradients`]): operands, as they lie or in `space`.
    fn gradients<'a>(
        lanes: usize,
        at: At<Self::Real>,
        lse_and_d: (&[Self::Real], &[Self::Real]),
        p_and_ds: (&'a mut [Self::Real], &'a mut [Self::Real]),
        space: Space<'a, Self>,
    ) -> Gradients<'a, Self>;

    /// [`Micro::put_turned`] to this type.
    ///
    /// # Safety
    /// As there.
    unsafe fn put_turned(
        micro: Micro<Self>,
        sums: &[Self::Real],
        size: [usize; 2],
        c: *mut Self,
        pitch: usize,
        away: bool,
    );
}

macro_rules! put_turned {
    ($t:ident, $real:ident) => {
        unsafe fn put_turned(micro: Micro<$t>, sums: &[$real], size: [usize; 2], c: *mut $t, pitch: usize, away: bool) {
            // SAFETY: passed on from the caller.
            unsafe { micro.put_turned(sums, size, c, pitch, away) }
        }
    };
}

macro_rules! as_they_lie {
    ($t:ident) => {
        fn weights<'a>(
            lanes: usize,
            at: At<$t>,
            scores: &'a mut [$t],
            running: &mut Running<$t>,
            _: &'a mut [$t],
        ) -> &'a [$t] {
            exponentials::<$t>(lanes, at, scores, running);
            scores
        }
        fn gradients<'a>(
            lanes: usize,
            at: At<$t>,
            (lse, d): (&[$t], &[$t]),
            (p, ds): (&'a mut [$t], &'a mut [$t]),
            space: Space<'a, $t>,
        ) -> Gradients<'a, $t> {
            assert_eq!(space.pitch, lanes, "rows as they lie");
            score_gradients::<$t>(lanes, at, lse, d, p, ds);
            Gradients { p, ds, rows: ds }
        }
    };
}

impl Number for f64 {
    #[inline(always)]
    fn exp2<S: Isa>(x: f64) -> f64 {
        Real::exp::<S>(x * std::f64::consts::LN_2)
    }
    as_they_lie!(f64);
    put_turned!(f64, f64);
}

impl Number for f32 {
    /// Within 2·10⁻⁸ of itself, and the roundings of as many multiply-adds.
    #[inline(always)]
    fn exp2<S: Isa>(x: f32) -> f32 {
        exp2_by::<S, 6>(
            x,
            [0.000_153_533_62, 0.001_339_887_5, 0.009_618_437, 0.055_503_324, 0.240_226_48, std::f32::consts::LN_2],
        )
    }
    as_they_lie!(f32);
    put_turned!(f32, f32);
}

/// The coefficients of [`exp2_by`] for bf16.
pub(super) const EXP2: [f32; 4] = [0.009_582_854, 0.055_906_426, 0.240_240_99, 0.693_124_1];

impl Number for bf16 {
    /// Within 3·10⁻⁶ of itself.
    #[inline(always)]
    fn exp2<S: Isa>(x: f32) -> f32 {
        exp2_by::<S, 4>(x, EXP2)
    }
    put_turned!(bf16, f32);
    fn weights<'a>(
        lanes: usize,
        at: At<f32>,
        scores: &'a mut [f32],
        running: &mut Running<f32>,
        space: &'a mut [bf16],
    ) -> &'a [bf16] {
        let space = &mut space[..scores.len().next_multiple_of(2 * lanes)];
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = Wide::new(lanes) {
            wide.weights(at, scores, running, space);
            return space;
        }
        exponentials::<bf16>(lanes, at, scores, running);
        pair(lanes, scores, space);
        space
    }
    fn gradients<'a>(
        lanes: usize,
        at: At<f32>,
        (lse, d): (&[f32], &[f32]),
        (p, ds): (&'a mut [f32], &'a mut [f32]),
        space: Space<'a, bf16>,
    ) -> Gradients<'a, bf16> {
        let len = p.len().next_multiple_of(2 * lanes);
        let space = Space { p: &mut space.p[..len], ds: &mut space.ds[..len], ..space };
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = Wide::new(lanes) {
            let mut space = space;
            wide.gradients(at, (lse, d), (p, ds), &mut space);
            return Gradients { p: space.p, ds: space.ds, rows: space.rows };
        }
        score_gradients::<bf16>(lanes, at, lse, d, p, ds);
        pair(lanes, p, space.p);
        pair(lanes, ds, space.ds);
        for (ds, row) in ds.chunks_exact(lanes).zip(space.rows.chunks_mut(space.pitch)) {
            round(ds, &mut row[..lanes]);
        }
        Gradients { p: space.p, ds: space.ds, rows: space.rows }
    }
}

/// Adding 1.5·2²³ leaves the rounded integer in the lowest bits; with the bias it is the exponent of 2ⁿ.
pub(super) const ROUND: f32 = 1.5 * (1 << 23) as f32 + 127.0;

/// `2ˣ = 2ⁿ·2ʳ` with `n = round(x)` and `2ʳ ≈ 1 + r·(…)`, whose coefficients minimise the largest relative error on
/// `|r| ≤ ½`, the highest first. 0 where `2ⁿ` would be denormal.
#[inline(always)]
fn exp2_by<S: Isa, const DEGREE: usize>(x: f32, coefficients: [f32; DEGREE]) -> f32 {
    // A comparison that NaN fails, so that it passes through.
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut y = coefficients[0];
    for c in &coefficients[1..] {
        y = S::fma(y, r, *c);
    }
    S::fma(y, r, 1.0) * f32::from_bits(shifted.to_bits() << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::check::assert_close;
    use crate::cpu::simd::versions;

    versions! {
        fn powers<A: Number; S>(x: &mut [A::Real]) {
            x.iter_mut().for_each(|x| *x = A::exp2::<S>(*x));
        }
    }

    /// Differences in units of the exact power, so that the table's row speaks of small powers too.
    fn check<A: Number<Real = f32>>(dtype: DType) {
        let x: Vec<f32> = (0..1_000_000).map(|i| 0.5 - i as f32 * 126.5e-6).collect();
        let mut y = x.clone();
        powers::<A>(&mut y);
        let ratios: Vec<f64> = x.iter().zip(&y).map(|(&x, &y)| f64::from(y) / f64::from(x).exp2()).collect();
        assert_close("2ˣ", "attention exponential", dtype, &vec![1.0; ratios.len()], &ratios);
    }

    #[test]
    fn exponentials_are_as_good_as_their_type() {
        check::<f32>(DType::F32);
        check::<bf16>(DType::Bf16);
    }

    fn edges<A: Number<Real = f32>>() {
        let mut x = [0.0, -1.0, -126.0, -127.0, -1e30, f32::NEG_INFINITY, f32::NAN, f32::from_bits(0x7f80_0001)];
        powers::<A>(&mut x);
        assert_eq!(x[..6], [1.0, 0.5, f32::MIN_POSITIVE, 0.0, 0.0, 0.0]);
        assert!(x[6].is_nan() && x[7].is_nan());
    }

    #[test]
    fn exponentials_at_their_edges() {
        edges::<f32>();
        edges::<bf16>();
    }
}
