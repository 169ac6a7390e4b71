//! The one product of attention over pages: a few rows times a few vectors of [`PAGE`] lanes, summed one step after
//! another. Steps are columns of a head where lanes are keys, and keys where lanes are columns.
//!
//! It is written with intrinsics, row by row, because the compiler, left to itself, now keeps the sums in registers and
//! now in memory, at a third of the speed. Elsewhere the same sums are a plain loop: the bits agree wherever the machine
//! has a fused multiply-add.

use crate::PAGE;
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::Isa;
use half::bf16;

/// `c[i][v] += Σ_s a[i][s]·b[v][s]`, in the order of s: rows i, vectors v of [`PAGE`] lanes.
pub(crate) struct Tile<T: Stored, const N: usize, const V: usize> {
    pub steps: usize,
    /// A number for every step of every row.
    pub a: [*const T::Real; N],
    /// Vectors of the first step, and elements from one step to the next.
    pub b: [*const T; V],
    pub step: usize,
    /// Vectors of every row, one after another.
    pub c: [*mut T::Real; N],
}

/// A type of keys and values in memory.
pub(crate) trait Cached: Stored {
    /// Elements of a row's scale, if it has one.
    const SCALE: usize = 0;
    /// Writes the scale of a row; what the row's numbers must be multiplied by to be narrowed.
    #[inline(always)]
    fn put_scale(_row: impl Iterator<Item = Self::Real>, _to: &mut [Self]) -> Self::Real {
        Self::Real::ONE
    }
    /// The scale in its [`Cached::SCALE`] elements.
    #[inline(always)]
    fn scale(_from: &[Self]) -> Self::Real {
        Self::Real::ONE
    }
    /// # Safety
    /// All that the tile speaks of is there, and nobody else uses `c`.
    #[inline(always)]
    unsafe fn multiply<S: Isa, const N: usize, const V: usize>(tile: Tile<Self, N, V>) {
        // SAFETY: the caller's promise.
        unsafe { plain::<Self, S, N, V>(tile) }
    }
}

impl Cached for f64 {}

/// # Safety
/// As [`Cached::multiply`].
#[inline(always)]
unsafe fn plain<T: Stored, S: Isa, const N: usize, const V: usize>(tile: Tile<T, N, V>) {
    for i in 0..N {
        for v in 0..V {
            // SAFETY: the caller's promise.
            unsafe {
                let c = &mut *tile.c[i].add(v * PAGE).cast::<[T::Real; PAGE]>();
                let mut sums = *c;
                for s in 0..tile.steps {
                    let (a, b) = (*tile.a[i].add(s), &*tile.b[v].add(s * tile.step).cast::<[T; PAGE]>());
                    for l in 0..PAGE {
                        sums[l] = S::fma(a, b[l].widen(), sums[l]);
                    }
                }
                *c = sums;
            }
        }
    }
}

macro_rules! cached {
    ($($t:ident { $($scale:item)* }: $avx512:path, $avx2:path;)+) => {$(
        impl Cached for $t {
            $($scale)*
            #[inline(always)]
            unsafe fn multiply<S: Isa, const N: usize, const V: usize>(tile: Tile<Self, N, V>) {
                #[cfg(target_arch = "x86_64")]
                if S::FMA && N <= x86::ROWS {
                    // SAFETY: the machine has just said that it has these instructions; the rest is the caller's promise.
                    unsafe {
                        if is_x86_feature_detected!("avx512f") {
                            return $avx512(tile);
                        }
                        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                            return $avx2(tile);
                        }
                    }
                }
                // SAFETY: the caller's promise.
                unsafe { plain::<Self, S, N, V>(tile) }
            }
        }
    )+};
}
cached! {
    f32 {}: x86::f32_avx512::multiply, x86::f32_avx2::multiply;
    bf16 {}: x86::bf16_avx512::multiply, x86::bf16_avx2::multiply;
    i8 {
        const SCALE: usize = size_of::<f32>();

        /// The largest number's code is 127. What is not a number makes all of its row so.
        #[inline(always)]
        fn put_scale(row: impl Iterator<Item = f32>, to: &mut [i8]) -> f32 {
            let largest = row.map(f32::abs).fold(0.0, |a: f32, x| if x > a || x.is_nan() { x } else { a });
            let bytes = (largest / 127.0).to_le_bytes();
            to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte as i8);
            if largest > 0.0 { 127.0 / largest } else { 0.0 }
        }

        #[inline(always)]
        fn scale(from: &[i8]) -> f32 {
            f32::from_le_bytes([from[0] as u8, from[1] as u8, from[2] as u8, from[3] as u8])
        }
    }: x86::i8_avx512::multiply, x86::i8_avx2::multiply;
}

/// A code, which a scale belongs to.
impl Stored for i8 {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
    /// To the nearest code, ties to even. What is not a number is 0: its row's scale says so.
    #[inline(always)]
    fn narrow(x: f32) -> i8 {
        x.round_ties_even() as i8
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{PAGE, Tile};
    use half::bf16;
    use std::arch::x86_64::*;

    /// Most rows.
    pub const ROWS: usize = 4;

    macro_rules! kernel {
        ($module:ident, [$($feature:tt)+], $t:ty, $lanes:literal, $splat:ident, $load:path, $fma:ident, $sums:ident, $store:ident) => {
            pub mod $module {
                use super::*;

                /// # Safety
                /// As [`super::super::Cached::multiply`], and the machine has the instructions.
                $(#[target_feature(enable = $feature)])+
                pub unsafe fn multiply<const N: usize, const V: usize>(tile: Tile<$t, N, V>) {
                    // As many of the tile's vectors at once as the registers hold sums for.
                    const { assert!(N <= ROWS) };
                    // SAFETY: the caller's promise.
                    unsafe {
                        if $lanes == PAGE {
                            return columns(&tile, std::array::from_fn::<usize, V, _>(|v| v * PAGE));
                        }
                        for v in 0..V {
                            columns(&tile, [v * PAGE, v * PAGE + $lanes]);
                        }
                    }
                }

                /// The machine's vectors that begin at these lanes of every row.
                #[inline]
                $(#[target_feature(enable = $feature)])+
                unsafe fn columns<const N: usize, const V: usize, const M: usize>(tile: &Tile<$t, N, V>, at: [usize; M]) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let mut sums: [[_; M]; N] =
                            std::array::from_fn(|i| std::array::from_fn(|m| $sums(tile.c[i].add(at[m]))));
                        let mut b: [_; M] = std::array::from_fn(|m| tile.b[at[m] / PAGE].add(at[m] % PAGE));
                        for s in 0..tile.steps {
                            let vectors: [_; M] = std::array::from_fn(|m| $load(b[m]));
                            row!(0, N, sums, vectors, $fma, $splat, tile.a, s);
                            row!(1, N, sums, vectors, $fma, $splat, tile.a, s);
                            row!(2, N, sums, vectors, $fma, $splat, tile.a, s);
                            row!(3, N, sums, vectors, $fma, $splat, tile.a, s);
                            for b in &mut b {
                                *b = b.wrapping_add(tile.step);
                            }
                        }
                        for i in 0..N {
                            for m in 0..M {
                                $store(tile.c[i].add(at[m]), sums[i][m]);
                            }
                        }
                    }
                }
            }
        };
    }
    macro_rules! row {
        ($i:literal, $n:ident, $sums:ident, $vectors:ident, $fma:ident, $splat:ident, $a:expr, $s:ident) => {
            if $i < $n {
                let x = $splat(*$a[$i].add($s));
                for (sum, b) in $sums[$i].iter_mut().zip($vectors) {
                    *sum = $fma(x, b, *sum);
                }
            }
        };
    }

    /// # Safety
    /// 16 numbers are there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn wide_512(x: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm256_loadu_si256(x.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    /// # Safety
    /// 8 numbers are there.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn wide_256(x: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm_loadu_si128(x.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    /// # Safety
    /// 16 codes are there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes_512(x: *const i8) -> __m512 {
        // SAFETY: the caller's promise.
        let codes = unsafe { _mm_loadu_si128(x.cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    }

    /// # Safety
    /// 8 codes are there.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes_256(x: *const i8) -> __m256 {
        // SAFETY: the caller's promise.
        let codes = unsafe { _mm_loadl_epi64(x.cast()) };
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))
    }

    kernel!(
        i8_avx512,
        ["avx512f"],
        i8,
        16,
        _mm512_set1_ps,
        codes_512,
        _mm512_fmadd_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps
    );
    kernel!(i8_avx2, ["avx2" "fma"], i8, 8, _mm256_set1_ps, codes_256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps);
    kernel!(
        f32_avx512,
        ["avx512f"],
        f32,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_fmadd_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps
    );
    kernel!(
        bf16_avx512,
        ["avx512f"],
        bf16,
        16,
        _mm512_set1_ps,
        wide_512,
        _mm512_fmadd_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps
    );
    kernel!(f32_avx2, ["avx2" "fma"], f32, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps);
    kernel!(bf16_avx2, ["avx2" "fma"], bf16, 8, _mm256_set1_ps, wide_256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;
    use crate::cpu::simd::Fused;

    /// One tile by intrinsics (if the machine has them) and by the plain loop.
    fn both<T: Cached<Real = f32>, const N: usize, const V: usize>(seed: u64) {
        let mut r = Random(seed);
        for steps in [0, 1, 7, 16, 33] {
            let mut numbers = |n: usize| r.values(n).into_iter().map(|x| x as f32).collect::<Vec<f32>>();
            let (a, c, step) = (numbers(N * steps), numbers(N * V * PAGE), V * PAGE + 3);
            let b: Vec<T> = numbers(step * steps + V * PAGE).into_iter().map(|x| T::narrow(100.0 * x)).collect();
            let mut out = [c.clone(), c];
            for (way, c) in out.iter_mut().enumerate() {
                let tile = Tile::<T, N, V> {
                    steps,
                    a: std::array::from_fn(|i| a[i * steps..].as_ptr()),
                    b: std::array::from_fn(|v| b[v * PAGE..].as_ptr()),
                    step,
                    c: std::array::from_fn(|i| c[i * V * PAGE..].as_mut_ptr()),
                };
                // SAFETY: the vectors have that many elements, and `c` is ours.
                unsafe { if way == 0 { T::multiply::<Fused, N, V>(tile) } else { plain::<T, Fused, N, V>(tile) } }
            }
            assert_eq!(out[0], out[1], "{steps} steps, {N} rows, {V} vectors");
        }
    }

    #[test]
    fn intrinsics_add_as_the_plain_loop() {
        both::<f32, 4, 4>(1);
        both::<f32, 2, 4>(2);
        both::<f32, 1, 1>(3);
        both::<bf16, 4, 4>(4);
        both::<bf16, 1, 4>(5);
        both::<bf16, 2, 1>(6);
        both::<i8, 4, 4>(7);
        both::<i8, 2, 1>(8);
        both::<i8, 1, 4>(9);
    }

    #[test]
    fn a_row_of_codes_is_the_row_to_half_a_code() {
        let mut r = Random(4);
        for size in [1e-20f32, 1.0, 3e4] {
            let row: Vec<f32> = r.values(70).into_iter().map(|x| size * x as f32).collect();
            let mut scale = [0i8; 4];
            let factor = i8::put_scale(row.iter().copied(), &mut scale);
            let (scale, largest) = (<i8 as Cached>::scale(&scale), row.iter().fold(0.0f32, |a, x| a.max(x.abs())));
            let codes: Vec<i8> = row.iter().map(|x| i8::narrow(x * factor)).collect();
            assert_eq!(codes.iter().map(|c| c.unsigned_abs()).max(), Some(127));
            for (&x, &code) in row.iter().zip(&codes) {
                assert!((code.widen() * scale - x).abs() <= largest / 253.0, "{x} as {code} of {scale}");
            }
        }
        let mut scale = [1i8; 4];
        assert_eq!(i8::put_scale([0.0f32, -0.0].into_iter(), &mut scale), 0.0);
        assert_eq!(<i8 as Cached>::scale(&scale), 0.0);
        i8::put_scale([1.0, f32::NAN, 2.0].into_iter(), &mut scale);
        assert!(<i8 as Cached>::scale(&scale).is_nan());
    }
}
