//! Micro-kernels for x86-64, one text for every vector type: a tile of `ROWS` rows by two vectors, or by one.
//!
//! AVX-512 has 32 registers: 14 rows × 2 vectors of sums, 2 of B, 1 of A. AVX2 has 16: 6 × 2, 2, 1. Panels of bf16 hold
//! pairs, and a lane of a vector is a pair. `vdpbf16ps` adds the product of the second of a pair, rounds, and adds that of
//! the first. So do two multiply-adds in f32, because a product of two bf16 is exact there: where the instruction is
//! missing we use them, with more registers for the halves, and the bits are the same. (But for numbers
//! below 2⁻¹²⁶: the instruction takes them as zero and writes them as zero.)

pub(super) use super::amx as bf16_amx;
use super::{GemmScalar, Wide};
use crate::cpu::lines::{fetch_ahead, fetch_first};
use crate::cpu::real::Stored;
use half::bf16;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// Groups of steps between one advance of addresses and the next: on Intel's processors additions of addresses take turns with
/// multiplications on the same ports.
const AT_ONCE: usize = 4;

/// Steps ahead that columns are asked for which lie as they came: too far apart for a processor to see where this leads.
const STEPS_AHEAD: usize = 8;

macro_rules! kernel {
    (
        $module:ident, $name:literal, [$($feature:tt)+] $pays:expr, rows $t:ty, group $group:literal, columns $b:ty, group $pair:literal,
        panels $splat:path, $load:path, $fma:path, $($pack:ident)::+,
        sums $sum:ty, $vector:ty, $lanes:literal, $zero:ident, $load_sums:ident, $store:ident, $add:ident,
        put $($put:ident)::+: $target:path, $rounded:expr, away $away:expr,
        $rows:literal: $($r:literal)+, columns in place $in_place:literal
    ) => {
        pub(super) mod $module {
            use super::super::kernel::{Cols, Kernel, Rows};
            use super::super::pack::{Coming, Side};
            use super::super::put;
            use super::*;
            use std::ops::Range;

            const COLS: usize = 2 * $lanes;
            const GROUP: usize = $group;
            /// Steps of a group of columns.
            const PAIR: usize = $pair;
            /// Whether columns may have been packed long before, because rows are packed as something else.
            const APART: bool = PAIR != GROUP;
            /// Elements of a panel of rows from the steps of a group of columns to the next.
            const PACKED_ROWS: usize = $rows * PAIR;
            /// Elements of a panel of columns from one group to the next.
            const PACKED_COLS: usize = COLS * PAIR;

            pub(in super::super) const KERNEL: Kernel<$t, $b> = Kernel {
                name: $name,
                supported: || $(is_x86_feature_detected!($feature))&&+,
                pays: $pays,
                size: [$rows, COLS],
                rows_adjacent: true,
                cols_in_place: $in_place,
                stretch: usize::MAX,
                speed: 1.0,
                pack_rows: pack_panel::<$t, $rows, GROUP>,
                pack_cols: pack_panel::<$b, COLS, PAIR>,
                tile,
                add: tile,
                put: put_tile::<$sum>,
                put_rounded: $rounded,
                away: $away,
            };

            $(#[target_feature(enable = $feature)])+
            unsafe fn pack_panel<T: GemmScalar<Real = $sum>, const W: usize, const G: usize>(
                side: &Side<$sum>,
                lanes: Range<usize>,
                steps: Range<usize>,
                panel: &mut [T],
            ) {
                super::super::$($pack)::+::pack::<T, W, G>(side, lanes, steps, panel);
            }

            $(#[target_feature(enable = $feature)])+
            unsafe fn put_tile<C: $target>(
                sums: *const $sum,
                size: [usize; 2],
                turned: bool,
                c: *mut C,
                pitch: usize,
                accumulate: bool,
            ) {
                // SAFETY: passed on from the caller.
                unsafe { put::$($put)::+::<C, COLS>(sums, size, turned, c, pitch, accumulate) }
            }

            unsafe fn tile(
                size: [usize; 3],
                a: Rows<$t>,
                b: Cols<$b>,
                c: *mut $sum,
                pitch: usize,
                accumulate: bool,
                coming: Coming,
            ) {
                // Rows lie packed, or as they came if they are in the columns' groups.
                debug_assert!(a.group == GROUP && GROUP == PAIR || (a.row, a.group) == (GROUP, $rows * GROUP));
                // SAFETY: passed on from the caller.
                unsafe {
                    match (size[0], size[1] <= $lanes, a.group == GROUP, b.group == PACKED_COLS) {
                        $(($r, false, false, true) => tile_of::<$r, 2, true, true>(size, a, b, c, pitch, accumulate, coming),)+
                        $(($r, false, true, true) => tile_of::<$r, 2, false, true>(size, a, b, c, pitch, accumulate, coming),)+
                        $(($r, true, false, true) => tile_of::<$r, 1, true, true>(size, a, b, c, pitch, accumulate, coming),)+
                        $(($r, true, true, true) => tile_of::<$r, 1, false, true>(size, a, b, c, pitch, accumulate, coming),)+
                        // Columns that were not packed; a kernel that takes none of those (`run` sees to it) has the functions above.
                        $(($r, false, false, false) => tile_of::<$r, 2, true, { !$in_place }>(size, a, b, c, pitch, accumulate, coming),)+
                        $(($r, false, true, false) => tile_of::<$r, 2, false, { !$in_place }>(size, a, b, c, pitch, accumulate, coming),)+
                        (rows, ..) => unreachable!("a tile of {rows} rows and {} columns", size[1]),
                    }
                }
            }

            /// A tile of exactly `R` rows by `V` vectors; whether rows are packed, and whether columns are.
            $(#[target_feature(enable = $feature)])+
            unsafe fn tile_of<const R: usize, const V: usize, const ROWS_PACKED: bool, const COLS_PACKED: bool>(
                [_, cols, steps]: [usize; 3],
                a: Rows<$t>,
                b: Cols<$b>,
                c: *mut $sum,
                pitch: usize,
                accumulate: bool,
                mut coming: Coming,
            ) {
                // A panel that was packed just before lies in a cache, and mostly meets full tiles; what is asked for in vain costs little.
                let from_memory = R < $rows || APART;
                let mut sums = [[$zero(); V]; R];
                let apart = if COLS_PACKED { PACKED_COLS } else { b.group };
                let mut b = b.data.as_ptr();
                let (row, group) = if ROWS_PACKED { (GROUP, PACKED_ROWS) } else { (a.row, GROUP) };
                // Addresses of every third row: the others are a row and two rows on.
                let mut thirds: [_; $rows / 3 + 1] = std::array::from_fn(|i| a.data.as_ptr().wrapping_add(3 * i * row));
                // One group of steps, so many after where the addresses are. Written out, row by row: left to itself, the compiler
                // may keep a loop, and the sums in memory.
                macro_rules! step {
                    ($at:expr) => {{
                        let b = b.wrapping_add($at * apart);
                        let b_vectors: [_; V] = std::array::from_fn(|v| $load(b.add(v * $lanes * PAIR).cast()));
                        let bytes = V * $lanes * PAIR * size_of::<$b>();
                        if !COLS_PACKED {
                            let next = b.wrapping_add(STEPS_AHEAD * apart);
                            (0..bytes).step_by(64).for_each(|line| fetch_first(next.wrapping_byte_add(line)));
                        } else if from_memory {
                            (0..bytes).step_by(64).for_each(|line| fetch_ahead(b.wrapping_byte_add(line)));
                        }
                        $(if $r <= R {
                            let x = $splat(thirds[($r - 1) / 3].add(($r - 1) % 3 * row + $at * group).cast());
                            for (sum, b) in sums[$r - 1].iter_mut().zip(b_vectors) {
                                *sum = $fma(x, b, *sum);
                            }
                        })+
                    }};
                }
                macro_rules! advance {
                    ($by:expr) => {
                        thirds.iter_mut().for_each(|address| *address = address.wrapping_add($by * group));
                        b = b.wrapping_add($by * apart);
                    };
                }
                // SAFETY: the caller answers for rows of A and columns of B of `steps` steps, and for C; a prefetch never
                // faults.
                unsafe {
                    // Sums that wait lie in the first cache.
                    if pitch != COLS {
                        for i in 0..R {
                            let row = c.wrapping_add(i * pitch);
                            fetch_first(row);
                            fetch_first(row.wrapping_add(cols - 1));
                        }
                    }
                    let groups = steps.div_ceil(PAIR);
                    let at_once = coming.len().div_ceil((groups / AT_ONCE).max(1));
                    for _ in 0..groups / AT_ONCE {
                        coming = coming.fetch(at_once);
                        step!(0);
                        step!(1);
                        step!(2);
                        step!(3);
                        advance!(AT_ONCE);
                    }
                    for _ in 0..groups % AT_ONCE {
                        step!(0);
                        advance!(1);
                    }
                    coming.fetch(usize::MAX);
                    if cols == V * $lanes {
                        $(if $r <= R {
                            let c = c.add(($r - 1) * pitch);
                            for (v, &sum) in sums[$r - 1].iter().enumerate() {
                                let c = c.add(v * $lanes);
                                $store(c, if accumulate { $add($load_sums(c), sum) } else { sum });
                            }
                        })+
                    } else {
                        part_of_rows(sums, cols, c, pitch, accumulate);
                    }
                }
            }

            /// Writes the first `cols` sums of every row.
            #[inline(never)]
            $(#[target_feature(enable = $feature)])+
            unsafe fn part_of_rows<const R: usize, const V: usize>(
                sums: [[$vector; V]; R],
                cols: usize,
                c: *mut $sum,
                pitch: usize,
                accumulate: bool,
            ) {
                for (i, sums) in sums.into_iter().enumerate() {
                    // SAFETY: the caller owns these elements of C.
                    unsafe {
                        let mut row = [0.0; COLS];
                        for (v, sum) in sums.into_iter().enumerate() {
                            $store(row.as_mut_ptr().add(v * $lanes), sum);
                        }
                        let c = std::slice::from_raw_parts_mut(c.add(i * pitch), cols);
                        for (c, sum) in c.iter_mut().zip(row) {
                            *c = if accumulate { *c + sum } else { sum };
                        }
                    }
                }
            }
        }
    };
}

kernel!(
    f32_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"] || true, rows f32, group 1, columns f32, group 1,
    panels splat::f32_512, _mm512_loadu_ps, _mm512_fmadd_ps, transpose,
    sums f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    put avx512::put: put::avx512::Lanes, Some(put::avx512::round::<COLS, false>), away Some(put::avx512::away::<COLS>()),
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, columns in place true
);
kernel!(
    wide_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"] || true, rows Wide, group 1, columns Wide, group 1,
    panels splat::f32_512, _mm512_loadu_ps, _mm512_fmadd_ps, transpose,
    sums f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    put avx512::put: put::avx512::Lanes, Some(put::avx512::round::<COLS, false>), away Some(put::avx512::away::<COLS>()),
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, columns in place false
);
kernel!(
    wide_pairs_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"] || true, rows Wide, group 1, columns bf16, group 2,
    panels splat::two_512::<13>, pairs::load_widened_512, pairs::dot_widened_512, transpose,
    sums f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    put avx512::put: put::avx512::Lanes, Some(put::avx512::round::<COLS, false>), away Some(put::avx512::away::<COLS>()),
    13: 1 2 3 4 5 6 7 8 9 10 11 12 13, columns in place false
);
kernel!(
    f64_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"] || true, rows f64, group 1, columns f64, group 1,
    panels splat::f64_512, _mm512_loadu_pd, _mm512_fmadd_pd, pack,
    sums f64, __m512d, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd,
    put put: Stored<Real = f64>, None, away None,
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, columns in place false
);
kernel!(
    bf16_avx512_bf16, "avx512_bf16", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "avx512bf16"] || !*PAIRS_ARE_SLOW, rows bf16, group 2, columns bf16, group 2,
    panels splat::pairs_512, pairs::load_512, pairs::dot_bf16, transpose,
    sums f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    put avx512::put: put::avx512::Lanes, Some(put::avx512::round::<COLS, false>), away Some(put::avx512::away::<COLS>()),
    14: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, columns in place false
);
kernel!(
    bf16_avx512, "avx512", ["avx512f" "avx512dq" "avx512bw" "avx512vl" "fma"] || true, rows bf16, group 2, columns bf16, group 2,
    panels splat::pairs_512, pairs::load_512, pairs::dot_512, transpose,
    sums f32, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
    put avx512::put: put::avx512::Lanes, Some(put::avx512::round::<COLS, false>), away Some(put::avx512::away::<COLS>()),
    12: 1 2 3 4 5 6 7 8 9 10 11 12, columns in place false
);
kernel!(
    f32_avx2, "avx2", ["avx2" "fma"] || true, rows f32, group 1, columns f32, group 1,
    panels splat::f32_256, _mm256_loadu_ps, _mm256_fmadd_ps, transpose::avx2,
    sums f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    put put: Stored<Real = f32>, Some(put_tile::<bf16>), away Some(put::avx2::away()),
    6: 1 2 3 4 5 6, columns in place true
);
kernel!(
    wide_avx2, "avx2", ["avx2" "fma"] || true, rows Wide, group 1, columns Wide, group 1,
    panels splat::f32_256, _mm256_loadu_ps, _mm256_fmadd_ps, transpose::avx2,
    sums f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    put put: Stored<Real = f32>, Some(put_tile::<bf16>), away Some(put::avx2::away()),
    6: 1 2 3 4 5 6, columns in place false
);
kernel!(
    wide_pairs_avx2, "avx2", ["avx2" "fma"] || true, rows Wide, group 1, columns bf16, group 2,
    panels splat::two_256::<5>, pairs::load_widened_256, pairs::dot_widened_256, transpose::avx2,
    sums f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    put put: Stored<Real = f32>, Some(put_tile::<bf16>), away Some(put::avx2::away()),
    5: 1 2 3 4 5, columns in place false
);
kernel!(
    f64_avx2, "avx2", ["avx2" "fma"] || true, rows f64, group 1, columns f64, group 1,
    panels splat::f64_256, _mm256_loadu_pd, _mm256_fmadd_pd, pack,
    sums f64, __m256d, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd,
    put put: Stored<Real = f64>, None, away None,
    6: 1 2 3 4 5 6, columns in place false
);
kernel!(
    bf16_avx2, "avx2", ["avx2" "fma"] || true, rows bf16, group 2, columns bf16, group 2,
    panels splat::pairs_256, pairs::load_256, pairs::dot_256, transpose::avx2,
    sums f32, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
    put put: Stored<Real = f32>, Some(put_tile::<bf16>), away Some(put::avx2::away()),
    4: 1 2 3 4, columns in place false
);

/// Whether `vdpbf16ps` is slower than the multiply-adds that replace it. Intel's processors since Sapphire Rapids, which are those
/// with arithmetic in f16, leave bf16 to their matrix unit: their vectors take four cycles of a port for 32 products, and two for
/// as many in f32. Such a processor's unit may be hidden by whoever rents it out.
static PAIRS_ARE_SLOW: LazyLock<bool> = LazyLock::new(|| {
    #[allow(unused_unsafe, reason = "safe in newer compilers")]
    // SAFETY: every x86-64 processor has it.
    let vendor = unsafe { __cpuid(0) };
    let intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel";
    intel && is_x86_feature_detected!("avx512fp16")
});

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

    macro_rules! two {
        ($name:ident, $feature:literal, $vector:ty, $splat:ident) => {
            /// That of the second of two steps, and of the first, in a panel of `ROWS` rows.
            ///
            /// # Safety
            /// Both may be read.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name<const ROWS: usize>(at: *const f32) -> [$vector; 2] {
                // SAFETY: the caller's promise.
                unsafe { [$splat(*at), $splat(*at.add(ROWS))] }
            }
        };
    }
    two!(two_512, "avx512f", __m512, _mm512_set1_ps);
    two!(two_256, "avx", __m256, _mm256_set1_ps);
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
        (
            $name:ident, $load:ident, $widened:ident, $load_widened:ident, $dot_widened:ident, $feature:literal,
            $pairs:ty, $vector:ty, $as_float:ident, $shift:ident, $and:ident, $splat:ident, $fma:ident
        ) => {
            /// The second and the first of each pair. A bf16 is the upper half of an f32.
            #[inline]
            #[target_feature(enable = $feature)]
            fn $widened(x: $pairs) -> [$vector; 2] {
                [$as_float($and(x, $splat(0xffff_0000u32.cast_signed()))), $as_float($shift::<16>(x))]
            }

            /// As [`dot_bf16`], of pairs that have been widened.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn $dot_widened(x: [$vector; 2], y: [$vector; 2], sums: $vector) -> $vector {
                $fma(x[1], y[1], $fma(x[0], y[0], sums))
            }

            /// As [`dot_bf16`].
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) fn $name(x: $pairs, y: $pairs, sums: $vector) -> $vector {
                $dot_widened($widened(x), $widened(y), sums)
            }

            /// A vector of pairs, widened.
            ///
            /// # Safety
            /// It may be read at `at`.
            #[inline]
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $load_widened(at: *const bf16) -> [$vector; 2] {
                // SAFETY: the caller's promise.
                $widened(unsafe { $load(at) })
            }
        };
    }
    dot!(
        dot_512,
        load_512,
        widened_512,
        load_widened_512,
        dot_widened_512,
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
        load_256,
        widened_256,
        load_widened_256,
        dot_widened_256,
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
