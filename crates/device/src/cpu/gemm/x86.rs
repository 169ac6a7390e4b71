//! Micro-kernels for x86-64, one text for every vector type: a tile of `ROWS` rows by two vectors.
//!
//! AVX-512 has 32 registers: 14 rows × 2 vectors of sums, 2 of B, 1 of A. AVX2 has 16: 6 × 2, 2, 1. Panels of bf16 hold
//! pairs, and a lane of a vector is a pair. `vdpbf16ps` adds the product of the second of a pair, rounds, and adds that of
//! the first. So do two multiply-adds in f32, because a product of two bf16 is exact there: where the instruction is
//! missing we use them, with more registers for the halves, and the bits are the same. (But for numbers
//! below 2⁻¹²⁶: the instruction takes them as zero and writes them as zero.)

use half::bf16;
use std::arch::x86_64::*;

macro_rules! kernel {
    (
        $module:ident, $name:literal, [$($feature:tt)+], $t:ty, group $group:literal,
        panels $splat:path, $load:path, $fma:path, $pack:ident,
        sums $sum:ty, $lanes:literal, $zero:ident, $load_sums:ident, $store:ident, $add:ident,
        $rows:literal: $($r:literal)+
    ) => {
        pub(super) mod $module {
            use super::super::kernel::Kernel;
            use super::super::pack::Side;
            use super::*;
            use std::ops::Range;

            const COLS: usize = 2 * $lanes;
            const GROUP: usize = $group;

            pub(in super::super) const KERNEL: Kernel<$t> = Kernel {
                name: $name,
                supported: || $(is_x86_feature_detected!($feature))&&+,
                size: [$rows, COLS],
                pack_rows: pack_panel::<$rows>,
                pack_cols: pack_panel::<COLS>,
                tile,
            };

            $(#[target_feature(enable = $feature)])+
            unsafe fn pack_panel<const W: usize>(
                side: &Side<$t>,
                lanes: Range<usize>,
                steps: Range<usize>,
                panel: &mut [$t],
            ) {
                super::super::$pack::pack::<$t, W, GROUP>(side, lanes, steps, panel);
            }

            unsafe fn tile(
                size: [usize; 3],
                a: *const $t,
                b: *const $t,
                c: *mut $sum,
                pitch: usize,
                accumulate: bool,
            ) {
                // SAFETY: passed on from the caller.
                unsafe {
                    match size[0] {
                        $($r => tile_of::<$r>(size, a, b, c, pitch, accumulate),)+
                        rows => unreachable!("a tile of {rows} rows"),
                    }
                }
            }

            /// A tile of exactly `R` rows.
            $(#[target_feature(enable = $feature)])+
            unsafe fn tile_of<const R: usize>(
                [_, cols, steps]: [usize; 3],
                mut a: *const $t,
                mut b: *const $t,
                c: *mut $sum,
                pitch: usize,
                accumulate: bool,
            ) {
                let mut sums = [[$zero(); 2]; R];
                // SAFETY: the caller answers for panels of `steps` steps and for C; a prefetch never faults.
                unsafe {
                    for i in 0..R {
                        let row = c.wrapping_add(i * pitch);
                        _mm_prefetch::<_MM_HINT_T0>(row.cast());
                        _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(COLS - 1).cast());
                    }
                    for _ in 0..steps.div_ceil(GROUP) {
                        let (b0, b1) = ($load(b), $load(b.add($lanes * GROUP)));
                        for (i, [s0, s1]) in sums.iter_mut().enumerate() {
                            let x = $splat(a.add(i * GROUP));
                            *s0 = $fma(x, b0, *s0);
                            *s1 = $fma(x, b1, *s1);
                        }
                        a = a.add($rows * GROUP);
                        b = b.add(COLS * GROUP);
                    }
                    if cols == COLS {
                        for (i, [s0, s1]) in sums.into_iter().enumerate() {
                            let row = c.add(i * pitch);
                            let (s0, s1) = if accumulate {
                                ($add($load_sums(row), s0), $add($load_sums(row.add($lanes)), s1))
                            } else {
                                (s0, s1)
                            };
                            $store(row, s0);
                            $store(row.add($lanes), s1);
                        }
                    } else {
                        for (i, [s0, s1]) in sums.into_iter().enumerate() {
                            let mut sums = [0.0; COLS];
                            $store(sums.as_mut_ptr(), s0);
                            $store(sums.as_mut_ptr().add($lanes), s1);
                            let row = std::slice::from_raw_parts_mut(c.add(i * pitch), cols);
                            for (c, s) in row.iter_mut().zip(sums) {
                                *c = if accumulate { *c + s } else { s };
                            }
                        }
                    }
                }
            }
        }
    };
}

kernel!(
    f32_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"], f32, group 1,
    panels splat::f32_512, _mm512_loadu_ps, _mm512_fmadd_ps, transpose,
    sums f32, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14
);
kernel!(
    f64_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"], f64, group 1,
    panels splat::f64_512, _mm512_loadu_pd, _mm512_fmadd_pd, pack,
    sums f64, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14
);
kernel!(
    bf16_avx512_bf16, "avx512_bf16", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "avx512bf16"], bf16, group 2,
    panels splat::pairs_512, pairs::load_512, pairs::dot_bf16, transpose,
    sums f32, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14
);
kernel!(
    bf16_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"], bf16, group 2,
    panels splat::pairs_512, pairs::load_512, pairs::dot_512, transpose,
    sums f32, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    12: 1 2 3 4 5 6 7 8 9 10 11 12
);
kernel!(
    f32_avx2, "avx2", ["avx2" "fma"], f32, group 1,
    panels splat::f32_256, _mm256_loadu_ps, _mm256_fmadd_ps, pack,
    sums f32, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    6: 1 2 3 4 5 6
);
kernel!(
    f64_avx2, "avx2", ["avx2" "fma"], f64, group 1,
    panels splat::f64_256, _mm256_loadu_pd, _mm256_fmadd_pd, pack,
    sums f64, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd,
    6: 1 2 3 4 5 6
);
kernel!(
    bf16_avx2, "avx2", ["avx2" "fma"], bf16, group 2,
    panels splat::pairs_256, pairs::load_256, pairs::dot_256, pack,
    sums f32, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    4: 1 2 3 4
);

/// The groups at an address in every lane.
mod splat {
    use super::*;

    macro_rules! splat {
        ($name:ident, $feature:literal, $t:ty, $read:ty, $vector:ty, $splat:ident) => {
            /// # Safety
            /// A group may be read at `at`.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(at: *const $t) -> $vector {
                // SAFETY: the caller's promise.
                $splat(unsafe { at.cast::<$read>().read_unaligned() })
            }
        };
    }
    splat!(f32_512, "avx512f", f32, f32, __m512, _mm512_set1_ps);
    splat!(f64_512, "avx512f", f64, f64, __m512d, _mm512_set1_pd);
    splat!(pairs_512, "avx512f", bf16, i32, __m512i, _mm512_set1_epi32);
    splat!(f32_256, "avx", f32, f32, __m256, _mm256_set1_ps);
    splat!(f64_256, "avx", f64, f64, __m256d, _mm256_set1_pd);
    splat!(pairs_256, "avx", bf16, i32, __m256i, _mm256_set1_epi32);
}

/// Pairs of bf16.
mod pairs {
    use super::*;

    /// # Safety
    /// 32 elements may be read at `at`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn load_512(at: *const bf16) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    /// # Safety
    /// 16 elements may be read at `at`.
    #[inline]
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn load_256(at: *const bf16) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    /// `(sums + x₁·y₁) + x₀·y₀`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(x: __m512i, y: __m512i, sums: __m512) -> __m512 {
        // SAFETY: vectors of one size, of which any bits are valid.
        unsafe {
            use std::mem::transmute;
            _mm512_dpbf16_ps(sums, transmute::<__m512i, __m512bh>(x), transmute::<__m512i, __m512bh>(y))
        }
    }

    macro_rules! dot {
        ($name:ident, $feature:literal, $pairs:ty, $vector:ty, $as_float:ident, $shift:ident, $and:ident, $splat:ident, $fma:ident) => {
            /// As [`dot_bf16`]. A bf16 is the upper half of an f32.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn $name(x: $pairs, y: $pairs, sums: $vector) -> $vector {
                let first = |x| $as_float($shift::<16>(x));
                let second = |x| $as_float($and(x, $splat(0xffff_0000u32.cast_signed())));
                $fma(first(x), first(y), $fma(second(x), second(y), sums))
            }
        };
    }
    dot!(
        dot_512,
        "avx512f",
        __m512i,
        __m512,
        _mm512_castsi512_ps,
        _mm512_slli_epi32,
        _mm512_and_si512,
        _mm512_set1_epi32,
        _mm512_fmadd_ps
    );
    dot!(
        dot_256,
        "avx2,fma",
        __m256i,
        __m256,
        _mm256_castsi256_ps,
        _mm256_slli_epi32,
        _mm256_and_si256,
        _mm256_set1_epi32,
        _mm256_fmadd_ps
    );
}
