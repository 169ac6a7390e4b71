//! Packing: copying a strip of an operand into the order in which the micro-kernel reads it.
//!
//! A panel is `width` lanes (rows of op(A), or columns of op(B)) over some steps of k, stored step by step:
//! `panel[step · width + lane]`, zero where the operand has no more lanes. Operands come either with the lanes of a step
//! adjacent in memory, which is a copy, or with the steps of a lane adjacent, which is a transposition.

use bytemuck::Zeroable;
use std::ops::Range;

/// An operand: a row-major matrix, and which of its directions is k.
#[derive(Clone, Copy)]
pub(super) struct Side<'a, T> {
    pub data: &'a [T],
    /// Elements from one row to the next: the matrix's columns.
    pub pitch: usize,
    pub rows: usize,
    /// True if a row is one step of k, with the lanes side by side; false if a row is a lane.
    pub lanes_adjacent: bool,
}

impl<T> Side<'_, T> {
    /// Asks for part `part` of `parts` of a panel to be brought into the second cache, for packing it soon.
    pub fn prefetch(&self, lanes: Range<usize>, steps: Range<usize>, part: usize, parts: usize) {
        let (rows, cols) = if self.lanes_adjacent { (steps, lanes) } else { (lanes, steps) };
        let share = |i: usize| rows.start + rows.len() * i / parts;
        let line = 64 / size_of::<T>();
        for row in share(part)..share(part + 1) {
            let start = row * self.pitch;
            for at in (start + cols.start..start + cols.end).step_by(line) {
                fetch(self.data.as_ptr().wrapping_add(at));
            }
        }
    }

    pub fn lanes(&self) -> usize {
        if self.lanes_adjacent { self.pitch } else { self.rows }
    }
    pub fn steps(&self) -> usize {
        if self.lanes_adjacent { self.rows } else { self.pitch }
    }
}

/// Asks for one cache line to be brought into the second cache.
fn fetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Packs the panel of `W` lanes that begins with `lanes`. For any machine: the compiler vectorises the copies.
#[inline(always)]
pub(super) fn pack<T: Copy + Zeroable, const W: usize>(
    side: &Side<T>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    assert!(lanes.len() <= W && panel.len() == W * steps.len());
    let (panel, _) = panel.as_chunks_mut::<W>();
    if lanes.len() < W {
        panel.fill([T::zeroed(); W]);
    }
    if side.lanes_adjacent {
        let rows = side.data[steps.start * side.pitch..].chunks(side.pitch).map(|row| &row[lanes.clone()]);
        if lanes.len() == W {
            for (row, out) in rows.zip(panel) {
                *out = *row.first_chunk().expect("W lanes");
            }
        } else {
            for (row, out) in rows.zip(panel) {
                out[..row.len()].copy_from_slice(row);
            }
        }
    } else {
        // A few steps of all lanes at a time, so that the lines that are written stay in the first cache.
        const AT_ONCE: usize = 16;
        let first = lanes.start;
        for (out, at) in panel.chunks_mut(AT_ONCE).zip((steps.start..).step_by(AT_ONCE)) {
            for lane in lanes.clone() {
                let row = &side.data[lane * side.pitch + at..][..out.len()];
                for (x, out) in row.iter().zip(&mut *out) {
                    out[lane - first] = *x;
                }
            }
        }
    }
}
