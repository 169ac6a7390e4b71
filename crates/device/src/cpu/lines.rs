//! Cache lines: asked for before they are read, and written past the caches.
//!
//! What a pass over a large tensor reads and writes lies in no cache. A processor alone does not look far enough ahead; and a line that is
//! written is read before, though nobody wants what was there, unless it goes past the caches as a whole.

use std::slice::ChunksMut;

/// Bytes of a line, at least.
const LINE: usize = 64;

/// Bytes ahead for the second cache, and for the first. A core can wait for few lines at a time in its first cache, and for
/// more in its second.
const AHEAD: [usize; 2] = [8192, 2048];

/// Bytes of a row that is long: a page.
const LONG: usize = 4096;

/// Bytes of a result that nobody finds in a cache when it is done.
pub(crate) const AWAY: usize = 8 << 20;

/// Whether a result of so many bytes goes past the caches. For other processors than x86-64 we have no stores that do.
pub(crate) fn away(bytes: usize) -> bool {
    cfg!(target_arch = "x86_64") && bytes >= AWAY
}

/// Asks for one line to be brought into the second cache.
#[inline(always)]
pub(crate) fn fetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for what follows a line in a stretch of memory that is read once, from the first byte to the last.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn fetch_ahead<T>(line: *const T) {
    fetch(line.wrapping_byte_add(AHEAD[0]));
    fetch_first(line.wrapping_byte_add(AHEAD[1]));
}

/// Asks for one line to be brought into the first cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn fetch_first<T>(line: *const T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

/// Asks for so many bytes from an address on.
#[inline(always)]
fn fetch_bytes<T>(first: *const T, bytes: usize) {
    (0..bytes).step_by(LINE).for_each(|at| fetch(first.wrapping_byte_add(at)));
}

/// Asks for a row.
#[inline(always)]
pub(crate) fn fetch_row<T>(row: &[T]) {
    fetch_bytes(row.as_ptr(), size_of_val(row));
}

/// Asks for as much as a row is, some way after it, where rows are read one after another. In long ones a processor sees by itself
/// where this leads.
#[inline(always)]
pub(crate) fn fetch_after<T>(row: &[T]) {
    if size_of_val(row) > LONG {
        return;
    }
    fetch_bytes(row.as_ptr().wrapping_byte_add(AHEAD[0]), size_of_val(row));
}

/// Rows of a result, made one after another. Those that go past the caches are made in one that stays in the first.
pub(crate) struct Rows<'a, T: Copy> {
    rows: ChunksMut<'a, T>,
    /// Where rows are made that go past the caches, and the place of the one that is there.
    made: Option<(Vec<T>, &'a mut [T])>,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// Rows of `width` elements, of which the last may have fewer. Panics if there are to be none in each.
    pub fn new(rows: &'a mut [T], width: usize, away: bool) -> Self {
        let made = rows.get(..width).filter(|_| away).map(|row| (row.to_vec(), &mut [][..]));
        Rows { rows: rows.chunks_mut(width), made }
    }

    /// Where the next one is to be made; it is done when the one after it is asked for, or when this is dropped. Panics if there
    /// is none.
    #[inline(always)]
    pub fn next(&mut self) -> &mut [T] {
        let row = self.rows.next().expect("no more rows than there are");
        match &mut self.made {
            None => row,
            Some((made, place)) => {
                let width = row.len();
                let place = std::mem::replace(place, row);
                stream(&made[..place.len()], place);
                &mut made[..width]
            }
        }
    }
}

impl<T: Copy> Drop for Rows<'_, T> {
    fn drop(&mut self) {
        if let Some((made, place)) = &mut self.made {
            stream(&made[..place.len()], place);
            fence();
        }
    }
}

/// Copies `x` to `y`, of one length, past the caches where whole lines are written.
pub(crate) fn stream<T: Copy>(x: &[T], y: &mut [T]) {
    let first = y.as_ptr().align_offset(LINE).min(y.len());
    let lines = if cfg!(target_arch = "x86_64") { size_of_val(&y[first..]) / LINE } else { 0 };
    let end = first + lines * LINE / size_of::<T>().max(1);
    y[..first].copy_from_slice(&x[..first]);
    y[end..].copy_from_slice(&x[end..]);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        let (x, y) = (x[first..].as_ptr().cast::<f32>(), y[first..].as_mut_ptr().cast::<f32>());
        for at in (0..lines * LINE / size_of::<f32>()).step_by(4) {
            // SAFETY: both have so many lines, and those of `y` are whole ones; the bits are moved as they are.
            unsafe { _mm_stream_ps(y.add(at), _mm_loadu_ps(x.add(at))) }
        }
    }
}

/// Lets whoever takes results over see what was written past the caches.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has it.
    #[allow(unused_unsafe, reason = "safe in newer compilers")]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;
    use crate::{Cpu, DType, Device, Heads, Rotation, Tensor};
    use proptest::prelude::*;
    use std::ops::Range;

    proptest! {
        /// Whatever the width, and wherever rows begin within a line.
        #[test]
        #[cfg_attr(miri, ignore = "stores past the caches are not interpreted")]
        fn rows_are_what_was_made(width in 1usize..90, rows in 0usize..9, short in 0usize..90, start in 0usize..40, away: bool) {
            let n = (rows * width).saturating_sub(short % width);
            let value = |i: usize| 3 * i as u16 + 1;
            let mut all = vec![0; start + n + 7];
            let mut to = Rows::new(&mut all[start..start + n], width, away);
            for first in (0..n).step_by(width) {
                let row = to.next();
                assert_eq!(row.len(), width.min(n - first));
                row.iter_mut().enumerate().for_each(|(i, x)| *x = value(first + i));
            }
            drop(to);
            let expected = (0..start).map(|_| 0).chain((0..n).map(value)).chain([0; 7]);
            prop_assert!(all.into_iter().eq(expected));
        }
    }

    /// What a kernel makes of many rows, and writes past the caches, is what it makes of a few of them.
    #[test]
    #[cfg_attr(miri, ignore = "stores past the caches are not interpreted")]
    fn large_results_are_those_of_small_ones() {
        const SEGMENT: usize = 600;
        let (cpu, mut r, (t, d)) = (Cpu::new(2), Random(3), (7 * SEGMENT, 512));
        let heads = Heads { q: 8, kv: 2, dim: 64 };
        let width = heads.width();
        let mut random = |rows: usize, cols: usize| -> Tensor<Cpu> {
            let x: Vec<f32> = r.values(rows * cols).iter().map(|&x| x as f32).collect();
            Tensor::from_host(&cpu, [rows, cols], &x)
        };
        let (x, qkv, dy, w, wh) = (random(t, d), random(t, width), random(t, d), random(1, d), random(1, heads.dim));
        let table = random(SEGMENT, heads.dim);
        let all = |rows: Range<usize>| -> Vec<Vec<f32>> {
            let n = rows.len();
            let segments: Vec<u32> = (0..=n / SEGMENT).map(|i| (i * SEGMENT) as u32).collect();
            let index: Vec<u32> = rows.clone().map(|i| (i * 11 % t) as u32).collect();
            let positions: Vec<u32> = (0..n).map(|i| (i % SEGMENT) as u32).collect();
            let by = Rotation { heads, table: table.view(), positions: &positions };
            let fresh = |cols| Tensor::zeros(&cpu, [n, cols], DType::F32);
            let [mut gathered, mut copied, mut normed, mut out] = std::array::from_fn(|_| fresh(d));
            let [mut turned, mut dx, mut dqkv] = std::array::from_fn(|_| fresh(width));
            let (mut rstd, mut rstds, mut lse) = (fresh(1), fresh(heads.q + heads.kv), fresh(heads.q));
            let [mut dq, mut dk] = std::array::from_fn(|_| Tensor::zeros(&cpu, [1, heads.dim], DType::F32));
            let (x_rows, qkv, dy) =
                (x.view().rows(rows.clone()), qkv.view().rows(rows.clone()), dy.view().rows(rows.clone()));
            cpu.gather(&index, x.view(), gathered.view_mut());
            cpu.copy(x_rows, copied.view_mut());
            cpu.rms_norm(1e-6, x_rows, w.view(), normed.view_mut(), rstd.view_mut());
            cpu.qk_norm(heads, 1e-6, qkv, wh.view(), wh.view(), &by, turned.view_mut(), rstds.view_mut());
            let (gains, rstds) = ([wh.view(), wh.view()], rstds.view());
            let (dx_rows, dq, dk) = (dx.view_mut(), dq.view_mut(), dk.view_mut());
            cpu.qk_norm_backward(heads, qkv, gains[0], gains[1], rstds, &by, turned.view(), dx_rows, dq, dk);
            cpu.attention(heads, 0.125, &segments, turned.view(), out.view_mut(), lse.view_mut());
            let (turned, out) = (turned.view(), out.view());
            cpu.attention_backward(heads, 0.125, &segments, turned, out, lse.view(), dy, dqkv.view_mut());
            let made = [gathered.view(), copied.view(), normed.view(), turned, dx.view(), out, dqkv.view()];
            made.into_iter().map(|x| x.to_host(&cpu)).collect()
        };
        let large = all(0..t);
        assert!(large.iter().all(|x| size_of_val(&x[..]) >= AWAY), "all go past the caches");
        let small: Vec<_> = (0..7).map(|i| all(i * SEGMENT..(i + 1) * SEGMENT)).collect();
        assert!(small.iter().flatten().all(|x| size_of_val(&x[..]) < AWAY), "none does");
        for (i, large) in large.iter().enumerate() {
            let small: Vec<f32> = small.iter().flat_map(|parts| &parts[i]).copied().collect();
            assert!(*large == small, "result {i}");
        }
    }
}
