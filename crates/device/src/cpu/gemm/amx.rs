//! The micro-kernel for processors with a matrix unit: Intel's AMX, sixteen times as many multiply-adds of bf16 a cycle
//! as vectors make.
//!
//! The unit has eight tiles of at most 16 rows of 64 bytes. Two by two of them hold 32 × 32 sums, two hold rows of A
//! (32 steps of k each), two hold columns of B (16 pairs of steps of 16 columns each). A panel of B is what the other bf16
//! kernels read; rows of A lie one after another, as in the operand, and mostly are the operand.
//!
//! The order of additions differs from the other kernels'. Of every 32 steps the unit sums the even and the odd ones by
//! themselves, and adds both to what was there; numbers below 2⁻¹²⁶ are taken and written as zero. A sum's bits still depend
//! on its own row, its own column and K alone.
//!
//! Rust has no stable intrinsics for tiles, so this is assembly. No tile lives from one piece of it to the next.

use super::kernel::{Cols, Kernel, Rows, TILE_STEPS};
use super::pack::{Coming, Side};
use super::put;
use super::transpose;
use crate::cpu::tiles::{self, Shapes};
use half::bf16;
use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows and columns of a tile, 4 bytes each.
pub(super) const TILE: usize = 16;
pub(super) const ROWS: usize = 2 * TILE;
pub(super) const COLS: usize = 2 * TILE;
/// Steps of k that a tile of A holds.
const STEPS: usize = TILE_STEPS;

pub(in super::super) const KERNEL: Kernel<bf16> = Kernel {
    name: "amx_bf16",
    supported,
    pays: || true,
    size: [ROWS, COLS],
    rows_adjacent: false,
    cols_in_place: false,
    stretch: 256,
    speed: 8.0,
    pack_rows,
    pack_cols,
    tile: tile::<false>,
    add: tile::<true>,
    put: put::avx512::put::<f32, COLS>,
    put_rounded: Some(put::avx512::round::<COLS, false>),
    away: Some(put::avx512::away::<COLS>()),
};

/// Whether processor and system have the unit.
pub(in crate::cpu) fn supported() -> bool {
    tiles::supported(tiles::BF16)
}

/// The tiles for `rows` rows of A: sums in 0 to 3, A in 4 and 5, B in 6 and 7.
const fn shapes(rows: usize) -> Shapes {
    let (upper, lower) = if rows > TILE { (TILE as u8, (rows - TILE) as u8) } else { (rows as u8, 1) };
    let [upper, lower, all] = [(upper, 64), (lower, 64), (TILE as u8, 64)];
    Shapes::new([upper, upper, lower, lower, upper, lower, all, all])
}

/// [`shapes`] for every number of rows.
pub(super) static SHAPES: [Shapes; ROWS + 1] = {
    let mut all = [shapes(1); ROWS + 1];
    let mut rows = 1;
    while rows <= ROWS {
        all[rows] = shapes(rows);
        rows += 1;
    }
    all
};

/// Sums of `blocks` times 32 steps into up to 32 × 32 elements at `c`, whose rows are `pitch` bytes apart; with `more` they
/// are added to what is there.
///
/// # Safety
/// The unit is [`supported`] and its tiles have the [`shapes`] for `rows`. So many rows of A, `row` bytes apart, and `step`
/// from 32 steps to the next 32, have so many steps; B has so many groups of 16 pairs; rows of 32 sums may be written (and
/// read, with `more`) at `c`.
unsafe fn sum(
    rows: usize,
    a: *const bf16,
    [row, step]: [usize; 2],
    b: *const bf16,
    blocks: usize,
    c: *mut f32,
    pitch: usize,
    more: bool,
) {
    let lower = a.wrapping_byte_add(TILE * row);
    let c_lower = c.wrapping_byte_add(TILE * pitch);
    macro_rules! sum {
        ($start:literal, $lower_start:literal) => {
            if rows > TILE {
                asm!(
                    $start, $lower_start,
                    "2:",
                    "tileloadd tmm4, [{a} + {row}]",
                    "tileloadd tmm6, [{b} + {width}]",
                    "tileloadd tmm7, [{b} + {width} + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{lower} + {row}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, {step}",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "add {lower}, {step}",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {b}, 2048",
                    "dec {blocks}",
                    "jnz 2b",
                    "tilestored [{c} + {pitch}], tmm0",
                    "tilestored [{c} + {pitch} + 64], tmm1",
                    "tilestored [{c_lower} + {pitch}], tmm2",
                    "tilestored [{c_lower} + {pitch} + 64], tmm3",
                    a = inout(reg) a => _, lower = inout(reg) lower => _, b = inout(reg) b => _,
                    blocks = inout(reg) blocks => _, row = in(reg) row, step = in(reg) step, width = in(reg) 4 * COLS,
                    c = in(reg) c, c_lower = in(reg) c_lower, pitch = in(reg) pitch,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            } else {
                asm!(
                    $start,
                    "2:",
                    "tileloadd tmm4, [{a} + {row}]",
                    "tileloadd tmm6, [{b} + {width}]",
                    "tileloadd tmm7, [{b} + {width} + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, {step}",
                    "add {b}, 2048",
                    "dec {blocks}",
                    "jnz 2b",
                    "tilestored [{c} + {pitch}], tmm0",
                    "tilestored [{c} + {pitch} + 64], tmm1",
                    a = inout(reg) a => _, b = inout(reg) b => _,
                    blocks = inout(reg) blocks => _, row = in(reg) row, step = in(reg) step, width = in(reg) 4 * COLS,
                    c = in(reg) c, pitch = in(reg) pitch,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        };
    }
    // SAFETY: the caller's promises.
    unsafe {
        if more {
            sum!(
                "tileloadd tmm0, [{c} + {pitch}]\ntileloadd tmm1, [{c} + {pitch} + 64]",
                "tileloadd tmm2, [{c_lower} + {pitch}]\ntileloadd tmm3, [{c_lower} + {pitch} + 64]"
            );
        } else {
            sum!("tilezero tmm0\ntilezero tmm1", "tilezero tmm2\ntilezero tmm3");
        }
    }
}

/// A block of working space.
#[repr(C, align(64))]
pub(super) struct Aligned<T>(pub T);

/// With `CHAINED`, what accumulates is loaded into the tiles first, if C has all columns of a tile.
unsafe fn tile<const CHAINED: bool>(
    [rows, cols, steps]: [usize; 3],
    a: Rows<bf16>,
    b: Cols<bf16>,
    c: *mut f32,
    pitch: usize,
    accumulate: bool,
    coming: Coming,
) {
    coming.fetch(usize::MAX);
    debug_assert_eq!(a.group, 2, "rows whose steps lie together");
    // Written before it is read, and not before that: clearing it would take as long as a tenth of a short product.
    let mut sums = Aligned(MaybeUninit::<[f32; ROWS * COLS]>::uninit());
    let direct = (CHAINED || !accumulate) && cols == COLS;
    let (to, to_pitch) = if direct { (c, 4 * pitch) } else { (sums.0.as_mut_ptr().cast(), 4 * COLS) };
    let chained = CHAINED && accumulate && direct;
    let (blocks, rest) = (steps / STEPS, steps % STEPS);
    // SAFETY: this kernel is only handed out where the unit is supported. The caller answers for rows of A and a panel of B
    // of `steps` steps, and for `rows × cols` elements of C; other sums go to a buffer.
    unsafe {
        SHAPES[rows].set();
        if blocks > 0 {
            let apart = [2 * a.row, 2 * a.tile_step(ROWS)];
            sum(rows, a.data.as_ptr(), apart, b.data.as_ptr(), blocks, to, to_pitch, chained);
        }
        if rest > 0 {
            // What is left, filled up with zeros on both sides.
            let (mut a_rest, mut b_rest) = (Aligned([bf16::ZERO; ROWS * STEPS]), Aligned([bf16::ZERO; COLS * STEPS]));
            for (row, out) in a_rest.0.chunks_exact_mut(STEPS).enumerate().take(rows) {
                let from = blocks * a.tile_step(ROWS) + row * a.last_row(rest);
                out[..rest].copy_from_slice(&a.data[from..][..rest]);
            }
            let from = b.data.as_ptr().add(blocks * STEPS * COLS);
            let len = rest.next_multiple_of(2) * COLS;
            b_rest.0[..len].copy_from_slice(std::slice::from_raw_parts(from, len));
            sum(rows, a_rest.0.as_ptr(), [2 * STEPS, 0], b_rest.0.as_ptr(), 1, to, to_pitch, chained || blocks > 0);
        }
        if !direct {
            put::avx512::put::<f32, COLS>(to, [rows, cols], false, c, pitch, accumulate);
        }
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn pack_cols(side: &Side<f32>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [bf16]) {
    transpose::pack::<bf16, COLS, 2>(side, lanes, steps, panel);
}

#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
unsafe fn pack_rows(side: &Side<f32>, lanes: Range<usize>, steps: Range<usize>, panel: &mut [bf16]) {
    transpose::pack_rows(side, lanes, steps, panel);
}

/// Keeps the unit busy for `steps` times four products of tiles: what [`super::super::peak`] measures.
///
/// # Safety
/// The unit is [`supported`].
pub(in crate::cpu) unsafe fn burn(steps: usize) {
    // SAFETY: the caller's promise; nothing but tiles is touched.
    unsafe {
        SHAPES[ROWS].set();
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// Floating-point operations of a step of [`burn`].
pub(in crate::cpu) const BURN_FLOPS: usize = 4 * 2 * TILE * TILE * STEPS;
