//! Squares in lanes of vectors, cut to whole units by rounding towards zero.

macro_rules! of {
    ($feature:literal) => {
        /// As [`Squares::of`], if no lane has doubled.
        ///
        /// # Safety
        /// As there.
        #[target_feature(enable = $feature)]
        pub unsafe fn of(first: *const f32, [rows, cols]: [usize; 2], pitch: usize) -> Option<Squares> {
            let mut lanes = Lanes::new();
            for row in 0..rows {
                for col in (0..cols).step_by(WIDTH) {
                    // SAFETY: these are of the row.
                    unsafe { lanes.add(first.wrapping_add(row * pitch + col), cols - col) };
                }
            }
            lanes.end(rows * cols)
        }
    };
}

pub mod avx512 {
    use super::super::{BASE, BITS, Squares};
    use std::arch::x86_64::*;

    /// Numbers whose squares are added at a time.
    pub const WIDTH: usize = 32;

    /// Sums of squares in registers: each begins with [`BASE`], where the last bit is a unit.
    pub struct Lanes([__m512d; WIDTH / 8]);

    impl Lanes {
        #[inline]
        #[target_feature(enable = "avx512f,avx512vl")]
        pub fn new() -> Self {
            Lanes([_mm512_set1_pd(BASE); WIDTH / 8])
        }

        /// Adds those of the first `n` of [`WIDTH`] numbers.
        ///
        /// # Safety
        /// They may be read.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vl")]
        pub unsafe fn add(&mut self, at: *const f32, n: usize) {
            for (i, sum) in self.0.iter_mut().enumerate() {
                let have = n.saturating_sub(8 * i).min(8);
                // SAFETY: what is masked is not read.
                let x = unsafe { _mm256_maskz_loadu_ps(((1u32 << have) - 1) as u8, at.wrapping_add(8 * i)) };
                let x = _mm512_cvtps_pd(x);
                *sum = _mm512_fmadd_round_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(x, x, *sum);
            }
        }

        /// All together, of so many numbers, if no lane has doubled.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vl")]
        pub fn end(self, numbers: usize) -> Option<Squares> {
            let lanes = self.0.map(|sum| _mm512_castpd_si512(sum));
            // A lane that has doubled, or is no number, has a larger exponent, hence some bit that the exponent of BASE has not.
            let (mut sum, mut any) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for lane in lanes {
                sum = _mm512_add_epi64(sum, lane);
                any = _mm512_or_si512(any, lane);
            }
            let (sum, any) = (_mm512_reduce_add_epi64(sum) as u64, _mm512_reduce_or_epi64(any) as u64);
            let units = sum.wrapping_sub(BASE.to_bits().wrapping_mul(WIDTH as u64));
            let inside = any >> BITS == BASE.to_bits() >> BITS;
            inside.then_some(Squares { units: units.into(), numbers, beyond: false })
        }
    }

    of!("avx512f,avx512vl");
}

/// Instructions that add have no mode of rounding here: squares are scaled to units, and rounded by an instruction of their own.
pub mod avx2 {
    use super::super::{BASE, BITS, Squares};
    use crate::SQUARE_UNIT;
    use std::arch::x86_64::*;

    /// Numbers whose squares are added at a time.
    pub const WIDTH: usize = 16;
    /// [`BASE`] in units.
    const UNITS: f64 = BASE / SQUARE_UNIT;

    /// Sums of squares in registers, in units: each begins with [`UNITS`], where the last bit is one.
    pub struct Lanes([__m256d; WIDTH / 4]);

    impl Lanes {
        #[inline]
        #[target_feature(enable = "avx2")]
        pub fn new() -> Self {
            Lanes([_mm256_set1_pd(UNITS); WIDTH / 4])
        }

        /// Adds those of the first `n` of [`WIDTH`] numbers.
        ///
        /// # Safety
        /// They may be read.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub unsafe fn add(&mut self, at: *const f32, n: usize) {
            let mut some = [0.0; WIDTH];
            let mut at = at;
            if n < WIDTH {
                // SAFETY: the caller's promise.
                some[..n].copy_from_slice(unsafe { std::slice::from_raw_parts(at, n) });
                at = some.as_ptr();
            }
            for (i, sum) in self.0.iter_mut().enumerate() {
                // SAFETY: so many numbers, or an array of them.
                let x = _mm256_cvtps_pd(unsafe { _mm_loadu_ps(at.wrapping_add(4 * i)) });
                let units = _mm256_mul_pd(x, _mm256_mul_pd(x, _mm256_set1_pd(1.0 / SQUARE_UNIT)));
                let whole = _mm256_round_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(units);
                *sum = _mm256_add_pd(*sum, whole);
            }
        }

        /// All together, of so many numbers, if no lane has doubled.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub fn end(self, numbers: usize) -> Option<Squares> {
            // As with AVX-512.
            let (mut sum, mut any) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for lane in self.0 {
                sum = _mm256_add_epi64(sum, _mm256_castpd_si256(lane));
                any = _mm256_or_si256(any, _mm256_castpd_si256(lane));
            }
            let mut both = [[0u64; 4]; 2];
            for (both, lanes) in both.iter_mut().zip([sum, any]) {
                // SAFETY: an array of that size.
                unsafe { _mm256_storeu_si256(both.as_mut_ptr().cast(), lanes) };
            }
            let sum = both[0].iter().fold(0, |a: u64, &b| a.wrapping_add(b));
            let any = both[1].iter().fold(0, |a, &b| a | b);
            let units = sum.wrapping_sub(UNITS.to_bits().wrapping_mul(WIDTH as u64));
            let inside = any >> BITS == UNITS.to_bits() >> BITS;
            inside.then_some(Squares { units: units.into(), numbers, beyond: false })
        }
    }

    of!("avx2");
}
