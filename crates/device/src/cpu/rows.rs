//! Rows moved and combined: gathering, and the weighted sum of a token's expert outputs.

use super::bands::{TASK, bands, piece};
use super::{Pool, Real};

/// `y[i] = x[index[i]]` for rows of `width` elements.
pub(crate) fn gather<T: Copy + Send + Sync>(pool: &Pool, index: &[u32], width: usize, x: &[T], y: &mut [T]) {
    if width == 0 {
        return;
    }
    bands(pool, index.len(), piece(width), (y,), |at, (y,)| {
        for (&i, y) in index[at].iter().zip(y.chunks_exact_mut(width)) {
            let i = i as usize * width;
            y.copy_from_slice(&x[i..i + width]);
        }
    });
}

/// `acc_dx[index[i]] += dy[i]` in the order of i. Several rows may go to one place, so a task owns some columns of
/// all rows, not some rows.
pub(crate) fn gather_backward<R: Real>(pool: &Pool, index: &[u32], width: usize, dy: &[R], acc_dx: &mut [R]) {
    const COLUMNS: usize = 64;
    let acc = Columns { ptr: acc_dx.as_mut_ptr(), len: acc_dx.len() };
    pool.ranges(width, COLUMNS, |cols| {
        for (i, &to) in index.iter().enumerate() {
            // SAFETY: each task has its own columns, so no two touch the same element.
            let acc = unsafe { acc.run(to as usize * width + cols.start, cols.len()) };
            let dy = &dy[i * width..][cols.clone()];
            acc.iter_mut().zip(dy).for_each(|(a, &d)| *a += d);
        }
    });
}

/// A mutable slice whose tasks own disjoint columns.
struct Columns<T> {
    ptr: *mut T,
    len: usize,
}
// SAFETY: `run` is only called on disjoint elements.
unsafe impl<T: Send> Sync for Columns<T> {}
impl<T> Columns<T> {
    /// # Safety
    /// No other live run overlaps this one.
    #[allow(clippy::mut_from_ref)]
    unsafe fn run(&self, at: usize, n: usize) -> &mut [T] {
        assert!(at + n <= self.len, "element {} of {}", at + n, self.len);
        // SAFETY: in range by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), n) }
    }
}

/// `y[t] = Σ_k w[t,k] · slots[t·K+k]`; without `w` a plain sum.
pub(crate) fn weighted_sum<R: Real>(pool: &Pool, k: usize, width: usize, slots: &[R], w: Option<&[R]>, y: &mut [R]) {
    if width == 0 {
        return;
    }
    bands(pool, y.len() / width, (TASK / (width * k.max(1))).max(1), (y,), |at, (y,)| {
        for (t, y) in at.zip(y.chunks_exact_mut(width)) {
            y.fill(R::ZERO);
            for i in t * k..(t + 1) * k {
                let slot = &slots[i * width..(i + 1) * width];
                match w {
                    Some(w) => y.iter_mut().zip(slot).for_each(|(y, &s)| *y += w[i] * s),
                    None => y.iter_mut().zip(slot).for_each(|(y, &s)| *y += s),
                }
            }
        }
    });
}

/// `dslots[t·K+k] = w[t,k] · dy[t]`, `dw[t,k] = dy[t] · slots[t·K+k]`.
pub(crate) fn weighted_sum_backward<R: Real>(
    pool: &Pool,
    k: usize,
    width: usize,
    slots: &[R],
    w: &[R],
    dy: &[R],
    dslots: &mut [R],
    dw: &mut [R],
) {
    if width == 0 {
        return dw.fill(R::ZERO);
    }
    bands(pool, w.len(), piece(width), (dslots, dw), |at, (dslots, dw)| {
        for ((i, ds), dw) in at.zip(dslots.chunks_exact_mut(width)).zip(dw) {
            let dy = &dy[i / k * width..][..width];
            let slot = &slots[i * width..][..width];
            ds.iter_mut().zip(dy).for_each(|(s, &d)| *s = w[i] * d);
            *dw = super::real::dot(dy, slot);
        }
    });
}
