//! Attention of new tokens over a cache: many at once when a prompt is read, one at a time when text is written.
//!
//! A prompt takes the tiles of the forward pass. A few rows would leave its lanes empty and pack all keys for little:
//! they read each key and each value once, as they lie, and are as fast as memory. The two add in different orders, so
//! where a sequence is cut into calls may change its last bits.

use super::forward::{Task, compute};
use super::{Context, Head, Scratch};
use crate::Heads;
use crate::cpu::Real;
use crate::cpu::bands::{Scattered, bands};
use crate::cpu::gemm::GemmScalar;
use crate::cpu::simd::{dot, max, sum, versions};

/// From this many rows on, tiles are faster.
const TILES: usize = 8;
/// Queries of a task.
const QUERIES: usize = 256;

/// Attention of one sequence against caches that hold its past.
pub(crate) fn attention_cached<R: Real + GemmScalar<Sum = R>>(
    cx: Context<R>,
    heads: Heads,
    scale: f64,
    past: usize,
    qkv: &[R],
    (k_cache, v_cache): (&mut [R], &mut [R]),
    out: &mut [R],
) {
    let (width, dim, group, kv) = (heads.width(), heads.dim, heads.q / heads.kv, heads.kv * heads.dim);
    for (i, row) in qkv.chunks_exact(width).enumerate() {
        let at = (past + i) * kv..(past + i + 1) * kv;
        k_cache[at.clone()].copy_from_slice(&row[heads.q * dim..][..kv]);
        v_cache[at].copy_from_slice(&row[heads.q * dim + kv..][..kv]);
    }
    let n = qkv.len() / width;
    let (k_cache, v_cache) = (&k_cache[..(past + n) * kv], &v_cache[..(past + n) * kv]);
    if n < TILES {
        // Heads that share keys are neighbours, so a thread finds these keys in its cache again.
        return bands(cx.pool, n * heads.q, group, (out,), |at, (out,)| {
            let mut scratch = Scratch::new(cx.memory, past + n);
            for (r, out) in at.zip(out.chunks_exact_mut(dim)) {
                let (i, h) = (r / heads.q, r % heads.q);
                let keys = Head::new(k_cache, kv, h / group, dim);
                let values = Head::new(v_cache, kv, h / group, dim);
                let p = &mut scratch.slice()[..past + i + 1];
                one_query(R::of(scale), &qkv[i * width + h * dim..][..dim], keys, values, p, out);
            }
        });
    }
    let out = Scattered::new(out);
    let chunks = n.div_ceil(QUERIES);
    cx.pool.run(chunks * heads.kv, |i| {
        // The last rows see the most keys: they go first.
        let (first, shared) = ((chunks - 1 - i / heads.kv) * QUERIES, i % heads.kv);
        let rows = first..(first + QUERIES).min(n);
        let task = Task {
            scale,
            keys: Head::new(k_cache, kv, shared, dim),
            values: Head::new(v_cache, kv, shared, dim),
            queries: (shared * group..(shared + 1) * group).map(|h| Head::new(qkv, width, h, dim)).collect(),
            rows,
            past,
        };
        let put = |row: usize, head, column, x: &[R]| {
            let at = (row * heads.q + shared * group + head) * dim + column;
            // SAFETY: each (row, head) belongs to one task.
            unsafe { out.run(at, x.len()) }.copy_from_slice(x);
        };
        compute(cx, &task, put, |_, _, _| {});
    });
}

versions! {
    /// One query against as many keys as `p` has elements.
    fn one_query<R, S>(scale: R, q: &[R], keys: Head<R>, values: Head<R>, p: &mut [R], out: &mut [R]) {
        for (j, p) in p.iter_mut().enumerate() {
            *p = scale * dot::<R, S>(q, keys.row(j));
        }
        let top = max(p);
        p.iter_mut().for_each(|p| *p = (*p - top).exp::<S>());
        let factor = R::ONE / sum(p);
        out.fill(R::ZERO);
        for (j, &p) in p.iter().enumerate() {
            out.iter_mut().zip(values.row(j)).for_each(|(o, &v)| *o = S::fma(p, v, *o));
        }
        out.iter_mut().for_each(|o| *o *= factor);
    }
}
