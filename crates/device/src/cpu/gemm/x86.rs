//! Micro-kernels for x86-64, one text for every vector type: a tile of `ROWS` rows by two vectors.
//!
//! AVX-512 has 32 registers: 14 rows × 2 vectors of sums, 2 of B, 1 of A. AVX2 has 16: 6 × 2, 2, 1.

macro_rules! kernel {
    (
        $module:ident, $name:literal, [$($feature:tt)+], $t:ty, $vector:ty, $lanes:literal,
        $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident, $pack:expr,
        $rows:literal: $($r:literal)+
    ) => {
        pub(super) mod $module {
            use super::super::kernel::Kernel;
            use super::super::pack::Side;
            use std::arch::x86_64::*;
            use std::ops::Range;

            const COLS: usize = 2 * $lanes;

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
                $pack(side, lanes, steps, panel);
            }

            unsafe fn tile(
                size: [usize; 3],
                a: *const $t,
                b: *const $t,
                c: *mut $t,
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
                c: *mut $t,
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
                    for _ in 0..steps {
                        let (b0, b1) = ($load(b), $load(b.add($lanes)));
                        for (i, [s0, s1]) in sums.iter_mut().enumerate() {
                            let x = $splat(*a.add(i));
                            *s0 = $fma(x, b0, *s0);
                            *s1 = $fma(x, b1, *s1);
                        }
                        a = a.add($rows);
                        b = b.add(COLS);
                    }
                    if cols == COLS {
                        for (i, [s0, s1]) in sums.into_iter().enumerate() {
                            let row = c.add(i * pitch);
                            let (s0, s1) = if accumulate {
                                ($add($load(row), s0), $add($load(row.add($lanes)), s1))
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
    f32_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"], f32, __m512, 16,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, super::super::transpose::pack::<W>,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14
);
kernel!(
    f64_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"], f64, __m512d, 8,
    _mm512_setzero_pd, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_fmadd_pd, super::super::pack::pack::<_, W>,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14
);
kernel!(
    f32_avx2, "avx2", ["avx2" "fma"], f32, __m256, 8,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps, super::super::pack::pack::<_, W>,
    6: 1 2 3 4 5 6
);
kernel!(
    f64_avx2, "avx2", ["avx2" "fma"], f64, __m256d, 4,
    _mm256_setzero_pd, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_fmadd_pd, super::super::pack::pack::<_, W>,
    6: 1 2 3 4 5 6
);
