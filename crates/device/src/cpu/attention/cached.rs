//! Attention of new tokens over a cache: many at once when a prompt is read, one at a time when text is written.
//!
//! A prompt takes the tiles of the forward pass. A few rows would leave its lanes empty and pack all keys for little:
//! they read each key and each value once, as they lie, and are as fast as memory. To that end the cache is cut into
//! stretches of whole rows, and each thread reads its own from one end to the other, for all heads at once; what the
//! stretches give is put together as the blocks of the forward pass are. The two ways add in different orders, so where a
//! sequence is cut into calls may change its last bits.

use super::forward::{Output, Task, compute};
use super::number::Number;
use super::{Context, Head, Scratch, pieces};
use crate::Heads;
use crate::cpu::bands::{Scattered, bands, piece};
use crate::cpu::gemm::Operand;
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::{Isa, LANES, larger, max, sum, versions};
use std::f64::consts::LOG2_E;

/// From this many rows on, tiles are faster.
const TILES: usize = 8;
/// Queries of a task.
const QUERIES: usize = 256;
/// Keys of a stretch: few enough that a short cache feeds several threads.
const KEYS: usize = 64;

/// Attention of one sequence against caches that hold its past.
pub(crate) fn attention_cached<A: Number>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    past: usize,
    qkv: &[A],
    (k_cache, v_cache): (&mut [A], &mut [A]),
    out: &mut [A],
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
        return few(cx, heads, scale, past, qkv, (k_cache, v_cache), out);
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
        compute(cx, &task, &Output { out: &out, lse: None, first: shared * group, pitch: heads.q, away: false });
    });
}

/// A few rows. What a stretch of keys gives one head of one row is `[maximum, sum, outputs]`: the largest of its scores
/// (with all scales), and the sums of exponentials of the scores less that, alone and times the values.
fn few<A: Number>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    past: usize,
    qkv: &[A],
    (k_cache, v_cache): (&[A], &[A]),
    out: &mut [A],
) {
    let (dim, kv, n) = (heads.dim, heads.kv * heads.dim, qkv.len() / heads.width());
    let (stretches, part) = ((past + n).div_ceil(KEYS), dim + 2);
    let mut queries = Scratch::new(cx.memory, n * heads.q * dim);
    for (q, row) in queries.slice().chunks_exact_mut(heads.q * dim).zip(qkv.chunks_exact(heads.width())) {
        q.iter_mut().zip(row).for_each(|(q, &x)| *q = Stored::widen(x) * A::Real::of(scale * LOG2_E));
    }
    let mut parts = Scratch::new(cx.memory, stretches * n * heads.q * part);
    bands(cx.pool, stretches, 1, (parts.slice(),), |stretch, (parts,)| {
        let keys = stretch.start * KEYS..(stretch.end * KEYS).min(past + n);
        let (k, v) = (&k_cache[keys.start * kv..keys.end * kv], &v_cache[keys.start * kv..keys.end * kv]);
        let count = n * heads.q * keys.len();
        let (mut lanes, mut scores) = (Scratch::new(cx.memory, count * LANES), Scratch::new(cx.memory, count));
        products::<A>(heads, queries.get(), k, lanes.slice());
        add_lanes(cx, lanes.get(), scores.slice());
        attend::<A>(heads, past, keys.start, v, scores.slice(), parts);
    });
    let parts = parts.get();
    bands(cx.pool, n * heads.q, piece(stretches * part), (out,), |rows, (out,)| {
        let mut sums = Scratch::new(cx.memory, dim);
        for (r, out) in rows.zip(out.chunks_exact_mut(dim)) {
            // Stretches that begin after a row has ended give it nothing.
            let seen = (past + r / heads.q + 1).div_ceil(KEYS);
            join_parts::<A>(&parts[r * part..], n * heads.q * part, seen, sums.slice(), out);
        }
    });
}

/// Sums of [`LANES`] neighbours. To add them vector by vector, they are turned.
fn add_lanes<A: Number>(cx: Context<A>, lanes: &[A::Real], sums: &mut [A::Real]) {
    let cols = cx.turner.cols();
    let mut turned = Scratch::new(cx.memory, cols * LANES);
    let lanes = Operand { data: lanes, pitch: LANES, lanes_adjacent: false };
    for at in pieces(0..sums.len(), cols) {
        cx.turner.pack_cols(lanes, at.clone(), 0..LANES, turned.slice());
        add_rows(turned.get(), cols, &mut sums[at]);
    }
}

versions! {
    fn add_rows<R, S>(rows: &[R], width: usize, sums: &mut [R]) {
        sums.fill(R::ZERO);
        for row in rows.chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(s, &x)| *s += x);
        }
    }
}

versions! {
    /// Products of every head of every row with every key, `[rows and heads, keys]`, as [`LANES`] sums each.
    fn products<A: Number; S>(heads: Heads, queries: &[A::Real], keys: &[A], lanes: &mut [A::Real]) {
        let Heads { q, kv, dim } = heads;
        let (n, count, group) = (queries.len() / (q * dim), keys.len() / (kv * dim), q / kv);
        let lanes = lanes.as_chunks_mut::<LANES>().0;
        for (j, row) in keys.chunks_exact(kv * dim).enumerate() {
            for (shared, key) in row.chunks_exact(dim).enumerate() {
                for i in 0..n {
                    for r in i * q + shared * group..i * q + (shared + 1) * group {
                        lanes[r * count + j] = product::<A, S>(&queries[r * dim..][..dim], key);
                    }
                }
            }
        }
    }

    /// What the values from row `first` of the cache on give every head of every row.
    fn attend<A: Number; S>(
        heads: Heads,
        past: usize,
        first: usize,
        values: &[A],
        scores: &mut [A::Real],
        parts: &mut [A::Real],
    ) {
        let Heads { q, kv, dim } = heads;
        let (count, group, part) = (values.len() / (kv * dim), q / kv, dim + 2);
        for (r, (scores, part)) in scores.chunks_exact_mut(count).zip(parts.chunks_exact_mut(part)).enumerate() {
            let (seen, hidden) = scores.split_at_mut((past + r / q + 1).saturating_sub(first).min(count));
            let top = max(seen);
            seen.iter_mut().for_each(|p| *p = A::exp2::<S>(*p - top));
            hidden.fill(A::Real::ZERO);
            (part[0], part[1]) = (top, sum(seen));
            part[2..].fill(A::Real::ZERO);
        }
        let n = scores.len() / (count * q);
        for (j, row) in values.chunks_exact(kv * dim).enumerate() {
            for (shared, value) in row.chunks_exact(dim).enumerate() {
                for i in 0..n {
                    for r in i * q + shared * group..i * q + (shared + 1) * group {
                        let p = scores[r * count + j];
                        let sums = &mut parts[r * part + 2..][..dim];
                        sums.iter_mut().zip(value).for_each(|(s, &v)| *s = S::fma(p, Stored::widen(v), *s));
                    }
                }
            }
        }
    }

    /// The output of a row's head from what `count` stretches gave it, in order; they are `pitch` apart.
    fn join_parts<A: Number; S>(parts: &[A::Real], pitch: usize, count: usize, sums: &mut [A::Real], out: &mut [A]) {
        let parts = || parts.chunks(pitch).take(count);
        let top = parts().fold(A::Real::NEG_INFINITY, |top, part| larger(top, part[0]));
        let mut total = A::Real::ZERO;
        sums.fill(A::Real::ZERO);
        for part in parts() {
            let factor = A::exp2::<S>(part[0] - top);
            total = S::fma(part[1], factor, total);
            sums.iter_mut().zip(&part[2..]).for_each(|(s, &x)| *s = S::fma(x, factor, *s));
        }
        let factor = A::Real::ONE / total;
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = A::narrow(*s * factor));
    }
}

/// As [`crate::cpu::simd::fold2`] of `x·y`. A rest is filled up with zeros, so that the sums stay in registers.
#[inline(always)]
fn product<A: Number, S: Isa>(x: &[A::Real], y: &[A]) -> [A::Real; LANES] {
    let mut sums = [A::Real::ZERO; LANES];
    let mut add = |x: &[A::Real; LANES], y: &[A; LANES]| {
        for l in 0..LANES {
            sums[l] = S::fma(x[l], Stored::widen(y[l]), sums[l]);
        }
    };
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks(), y.as_chunks());
    x.iter().zip(y).for_each(|(x, y)| add(x, y));
    if !x_rest.is_empty() {
        let (mut x, mut y) = ([A::Real::ZERO; LANES], [A::zeroed(); LANES]);
        x[..x_rest.len()].copy_from_slice(x_rest);
        y[..y_rest.len()].copy_from_slice(y_rest);
        add(&x, &y);
    }
    sums
}
