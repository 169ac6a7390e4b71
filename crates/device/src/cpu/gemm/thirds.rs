//! f32 on a matrix unit that multiplies bf16 only: every number in three parts.
//!
//! 24 bits of an f32 are three times the 8 of a bf16: `x = x₁ + x₂ + x₃`, each part what the ones before it leave, rounded
//! to the nearest, so that `|x₂| ≤ 2⁻⁹|x|` and `|x₃| ≤ 2⁻¹⁸|x|`. Of the nine products of parts the six largest are summed,
//!
//! ```text
//! x·y ≈ x₃y₁ + x₂y₁ + x₂y₂ + x₁y₂ + x₁y₃ + x₁y₁
//! ```
//!
//! and what is left out is below `2⁻²⁶|xy|`, a quarter of what rounding the product to f32 costs. The unit adds products to
//! sums of f32, of 32 steps at a time, so fewer roundings follow one another than in a chain of multiply-adds: results are
//! as good (a test compares both with f64), and come at a sixth of the speed of bf16, which is two to three times that of
//! vectors. Henry, Tang & Heinecke 2019 ("Leveraging the bfloat16 artificial intelligence datatype for higher-precision
//! computations") describe it; libraries for GPUs offer it as emulation of f32.
//!
//! The order of additions is the unit's ([`super::amx`]). Parts below 2⁻¹²⁶ are taken as zero, so that a number below 2⁻¹⁰⁸
//! loses its last bits; what is infinite, or rounds to infinity in bf16 (above 3.39e38), gives NaN.

use super::kernel::{GemmScalar, Kernel};
use super::put;
use crate::cpu::real::Stored;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// An f32 in three parts, in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Thirds([bf16; 3]);

impl Stored for Thirds {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        let [x, y, z] = self.0.map(bf16::widen);
        x + (y + z)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Thirds {
        let first = bf16::narrow(x);
        let rest = x - first.widen();
        let second = bf16::narrow(rest);
        Thirds([first, second, bf16::narrow(rest - second.widen())])
    }
}

/// Steps that a tile of the unit holds.
const GROUP: usize = super::kernel::TILE_STEPS;

impl Thirds {
    /// Whether there is such a unit. Elsewhere multiply-adds of f32 are what is fast.
    pub fn pay() -> bool {
        Self::kernel().name != "portable"
    }
}

impl GemmScalar for Thirds {
    const GROUP: usize = GROUP;
    const BLOCK: usize = 512;
    type Few = Thirds;
    /// Products of parts come in the order of the broadcast operand's.
    const TURNS: bool = false;
    const KERNELS: &'static [Kernel<Thirds>] = &[
        #[cfg(target_arch = "x86_64")]
        amx::KERNEL,
        Kernel::portable::<16, { GROUP }>(Some(put::put::<bf16, 16>)),
    ];
    /// They are made when they are packed.
    fn own(_: super::Data<'_, f32>) -> Option<&[Thirds]> {
        None
    }
    #[inline(always)]
    fn from_bf16(x: bf16) -> Thirds {
        Thirds([x, bf16::ZERO, bf16::ZERO])
    }
}

/// The micro-kernel. A group of 32 steps of a panel of rows is `[row][part][step]`, of a panel of columns
/// `[pair of steps][part][column][step of the pair]`: in either a part is a tile whose rows are lines of memory.
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::super::amx::{Aligned, COLS, ROWS, SHAPES, TILE, supported as has_unit};
    use super::super::kernel::{Cols, Kernel, Rows, check_panel};
    use super::super::pack::{Coming, Side};
    use super::super::put::{self, avx512::Lanes};
    use super::super::transpose::{interleave, mask, narrows, round, transpose};
    use super::super::{Data, pieces};
    use super::{GROUP, Thirds};
    use crate::cpu::lines::fetch;
    use half::bf16;
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::mem::MaybeUninit;
    use std::ops::Range;

    pub(super) const KERNEL: Kernel<Thirds> = Kernel {
        name: "amx_f32",
        supported: || has_unit() && narrows(),
        pays: || true,
        size: [ROWS, COLS],
        rows_adjacent: false,
        cols_in_place: false,
        stretch: usize::MAX,
        speed: 5.0,
        pack_rows,
        pack_cols,
        tile,
        add: tile,
        put: put::avx512::put::<f32, COLS>,
        put_rounded: Some(put::avx512::round::<COLS, false>),
        away: Some(put::avx512::away::<COLS>()),
    };

    /// bf16 of a part of a row's group, and of a pair of steps' columns.
    const ROW_PART: usize = GROUP;
    const COLS_PART: usize = 2 * COLS;

    unsafe fn tile(
        [rows, cols, steps]: [usize; 3],
        a: Rows<Thirds>,
        b: Cols<Thirds>,
        c: *mut f32,
        pitch: usize,
        accumulate: bool,
        coming: Coming,
    ) {
        coming.fetch(usize::MAX);
        debug_assert!(a.row == GROUP && (a.tiles || steps <= GROUP), "rows as this kernel packs them");
        let mut sums = Aligned(MaybeUninit::<[f32; ROWS * COLS]>::uninit());
        let direct = !accumulate && cols == COLS;
        let (to, to_pitch) = if direct { (c, 4 * pitch) } else { (sums.0.as_mut_ptr().cast(), 4 * COLS) };
        // SAFETY: this kernel is only handed out where the unit is supported. The caller answers for rows of A and a panel of B
        // of `steps` steps, made up to whole groups, and for `rows × cols` elements of C; other sums go to a buffer.
        unsafe {
            SHAPES[rows].set();
            sum(rows, a.data.as_ptr(), b.data.as_ptr(), steps.div_ceil(GROUP), to, to_pitch);
            if !direct {
                put::avx512::put::<f32, COLS>(to, [rows, cols], false, c, pitch, accumulate);
            }
        }
    }

    /// Sums of so many groups into up to 32 × 32 elements at `c`, whose rows are `pitch` bytes apart. The largest product comes
    /// last, so that the others lose little; each part of A is loaded once.
    ///
    /// # Safety
    /// The unit is supported and its tiles have the [`SHAPES`] for `rows`. Groups of so many rows of A and of all columns of B
    /// may be read; rows of 32 sums may be written at `c`.
    unsafe fn sum(rows: usize, a: *const Thirds, b: *const Thirds, groups: usize, c: *mut f32, pitch: usize) {
        const ROW: usize = size_of::<Thirds>() * GROUP;
        const PAIR: usize = size_of::<Thirds>() * 2 * COLS;
        let (lower, c_lower) = (a.wrapping_byte_add(TILE * ROW), c.wrapping_byte_add(TILE * pitch));
        macro_rules! products {
            (upper) => {
                "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n"
            };
            (both) => {
                concat!(products!(upper), "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n")
            };
        }
        macro_rules! rows {
            (upper $part:tt) => {
                concat!("tileloadd tmm4, [{a} + {row} + ", $part, " * 64]\n")
            };
            (both $part:tt) => {
                concat!(rows!(upper $part), "tileloadd tmm5, [{lower} + {row} + ", $part, " * 64]\n")
            };
        }
        macro_rules! cols {
            ($part:tt) => {
                concat!(
                    "tileloadd tmm6, [{b} + {pair} + ",
                    $part,
                    " * 128]\n",
                    "tileloadd tmm7, [{b} + {pair} + ",
                    $part,
                    " * 128 + 64]\n"
                )
            };
        }
        macro_rules! zero {
            (upper) => {
                "tilezero tmm0\ntilezero tmm1\n"
            };
            (both) => {
                concat!(zero!(upper), "tilezero tmm2\ntilezero tmm3\n")
            };
        }
        macro_rules! store {
            (upper) => {
                "tilestored [{c} + {pitch}], tmm0\ntilestored [{c} + {pitch} + 64], tmm1\n"
            };
            (both) => {
                concat!(
                    store!(upper),
                    "tilestored [{c_lower} + {pitch}], tmm2\ntilestored [{c_lower} + {pitch} + 64], tmm3\n"
                )
            };
        }
        macro_rules! sum {
            ($which:ident) => {
                asm!(
                    zero!($which),
                    "2:",
                    rows!($which 2), cols!(0), products!($which),
                    rows!($which 1), products!($which),
                    cols!(1), products!($which),
                    rows!($which 0), products!($which),
                    cols!(2), products!($which),
                    cols!(0), products!($which),
                    "add {a}, {step}",
                    "add {lower}, {step}",
                    "add {b}, {step}",
                    "dec {groups}",
                    "jnz 2b",
                    store!($which),
                    // Not all of them are in the text for `upper`.
                    "/* {c_lower} */",
                    a = inout(reg) a => _, lower = inout(reg) lower => _, b = inout(reg) b => _,
                    groups = inout(reg) groups => _, row = in(reg) ROW, pair = in(reg) PAIR, step = const GROUP * PAIR / 2,
                    c = in(reg) c, c_lower = in(reg) c_lower, pitch = in(reg) pitch,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        const { assert!(ROWS == COLS, "a group of rows has the size of one of columns") };
        // SAFETY: the caller's promises.
        unsafe { if rows > TILE { sum!(both) } else { sum!(upper) } }
    }

    /// The parts of 16 pairs, of which `x` are the first and `y` the second.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    fn parts(mut x: __m512, mut y: __m512) -> [__m512i; 3] {
        let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut parts = [_mm512_setzero_si512(); 3];
        for part in &mut parts {
            *part = _mm512_castps_si512(interleave(round::<true>(x, y)));
            x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
            y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_and_si512(*part, upper)));
        }
        parts
    }

    /// Writes the parts of 16 pairs, `apart` from one part to the next.
    ///
    /// # Safety
    /// Three times 32 elements may be written there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    unsafe fn store(pairs: [__m512; 2], to: *mut bf16, apart: usize) {
        for (i, part) in parts(pairs[0], pairs[1]).into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_si512(to.wrapping_add(i * apart).cast(), part) };
        }
    }

    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    unsafe fn pack_cols(side: &Side<f32>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [Thirds]) {
        match side.data {
            Data::Real(x) => pack_cols_of(x, side, lanes, steps, panel),
            Data::Bf16(x) => pack_cols_of(x, side, lanes, steps, panel),
        }
    }

    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    unsafe fn pack_rows(side: &Side<f32>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [Thirds]) {
        match side.data {
            Data::Real(x) => pack_rows_of(x, side, lanes, steps, panel),
            Data::Bf16(x) => pack_rows_of(x, side, lanes, steps, panel),
        }
    }

    /// 16 lanes of 32 steps: of each lane the even steps, and the odd ones. Zero where there are no more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    fn evens_and_odds(x: __m512, y: __m512) -> [__m512; 2] {
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
        [_mm512_permutex2var_ps(x, evens, y), _mm512_permutex2var_ps(x, odds, y)]
    }

    /// 16 elements, of which the first `n` are read; the others are zero.
    ///
    /// # Safety
    /// They may be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    unsafe fn load<X: Lanes>(from: *const X, n: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { X::load(mask(n.min(16)) as __mmask16, from) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    fn pack_cols_of<X: Lanes>(
        data: &[X],
        side: &Side<f32>,
        lanes: Range<usize>,
        steps: Range<usize>,
        panel: &mut [Thirds],
    ) {
        check_panel::<Thirds>(side, &lanes, &steps, COLS, panel.len());
        let panel = bytemuck::cast_slice_mut::<_, bf16>(panel);
        let pairs = panel.as_chunks_mut::<{ 3 * COLS_PART }>().0;
        if side.lanes_adjacent {
            for (pair, at) in pairs.iter_mut().zip((0..).step_by(2)) {
                for first in (0..COLS).step_by(16) {
                    let have = lanes.len().saturating_sub(first);
                    let step = |step: usize| {
                        let have = if step < steps.len() { have } else { 0 };
                        let from = data.as_ptr().wrapping_add((steps.start + step) * side.pitch + lanes.start + first);
                        // SAFETY: lanes of a step, both below their ends, or none.
                        unsafe { load(from, have) }
                    };
                    // SAFETY: 16 columns of every part of the pair.
                    unsafe { store([step(at), step(at + 1)], pair[2 * first..].as_mut_ptr(), COLS_PART) };
                }
            }
            return;
        }
        for (group, part) in pairs.chunks_exact_mut(GROUP / 2).zip(pieces(steps, GROUP)) {
            for first in (0..COLS).step_by(16) {
                for (half, pairs) in group.chunks_exact_mut(8).enumerate() {
                    let mut block = [_mm512_setzero_ps(); 16];
                    for (i, row) in block.iter_mut().enumerate().take(lanes.len().saturating_sub(first)) {
                        let from = (lanes.start + first + i) * side.pitch + part.start + 16 * half;
                        let from = data.as_ptr().wrapping_add(from);
                        // SAFETY: steps of a lane, both below their ends, or none.
                        *row = unsafe { load(from, part.len().saturating_sub(16 * half)) };
                        if side.ahead > 0 {
                            fetch(from.wrapping_add(side.ahead));
                        }
                    }
                    for (pair, steps) in pairs.iter_mut().zip(transpose(block).as_chunks().0) {
                        // SAFETY: 16 columns of every part of the pair.
                        unsafe { store(*steps, pair[2 * first..].as_mut_ptr(), COLS_PART) };
                    }
                }
            }
        }
    }

    /// Nothing is written where there are no more lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
    fn pack_rows_of<X: Lanes>(
        data: &[X],
        side: &Side<f32>,
        lanes: Range<usize>,
        steps: Range<usize>,
        panel: &mut [Thirds],
    ) {
        check_panel::<Thirds>(side, &lanes, &steps, ROWS, panel.len());
        let panel = bytemuck::cast_slice_mut::<_, bf16>(panel);
        let groups = panel.as_chunks_mut::<{ 3 * ROW_PART }>().0.chunks_exact_mut(ROWS);
        for (rows, part) in groups.zip(pieces(steps, GROUP)) {
            if !side.lanes_adjacent {
                for (lane, row) in lanes.clone().zip(rows) {
                    let from = data.as_ptr().wrapping_add(lane * side.pitch + part.start);
                    // SAFETY: steps of a lane, both below their ends, or none; every part of the row.
                    unsafe {
                        let [x, y] =
                            [load(from, part.len()), load(from.wrapping_add(16), part.len().saturating_sub(16))];
                        store(evens_and_odds(x, y), row.as_mut_ptr(), ROW_PART);
                    }
                }
                continue;
            }
            for (first, rows) in (0..lanes.len()).step_by(16).zip(rows.chunks_mut(16)) {
                let have = (lanes.len() - first).min(16);
                let block = |odd: usize| {
                    let mut block = [_mm512_setzero_ps(); 16];
                    for (row, step) in block.iter_mut().zip((part.start + odd..part.end).step_by(2)) {
                        // SAFETY: lanes of a step, both below their ends.
                        *row =
                            unsafe { load(data.as_ptr().wrapping_add(step * side.pitch + lanes.start + first), have) };
                    }
                    transpose(block)
                };
                for ((even, odd), row) in block(0).into_iter().zip(block(1)).zip(rows).take(have) {
                    // SAFETY: every part of the row.
                    unsafe { store([even, odd], row.as_mut_ptr(), ROW_PART) };
                }
            }
        }
    }
}
