//! The forward pass.

use super::{Context, Head, Scratch, block, key_head, spans, turn, value_head, with_lanes};
use crate::Heads;
use crate::cpu::Real;
use crate::cpu::bands::Scattered;
use crate::cpu::gemm::GemmScalar;
use crate::cpu::simd::{Isa, larger, versions};
use std::ops::Range;

/// Queries of a task: enough that packing all keys before them costs little beside.
const QUERIES: usize = 256;
/// Most columns of any micro-kernel.
const MOST_LANES: usize = 32;

/// What a task computes: some queries of all heads that share a key head.
pub(super) struct Task<'a, R> {
    pub scale: f64,
    /// Key heads and value heads, and one query head after another.
    pub keys: Head<'a, R>,
    pub values: Head<'a, R>,
    pub queries: Vec<Head<'a, R>>,
    /// Rows of the query heads to compute.
    pub rows: Range<usize>,
    /// Query row i sees the keys `0..=past + i`.
    pub past: usize,
}

/// `out = softmax(scale·q·kᵀ)·v` and the log of the softmax's denominator.
pub(crate) fn attention<R: Real + GemmScalar<Sum = R>>(
    cx: Context<R>,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    qkv: &[R],
    out: &mut [R],
    lse: &mut [R],
) {
    let (width, dim, group) = (heads.width(), heads.dim, heads.q / heads.kv);
    // The longest first, so that the threads finish together.
    let mut tasks = Vec::new();
    for segment in spans(segments) {
        for first in (0..segment.len()).step_by(QUERIES) {
            tasks.extend((0..heads.kv).map(|kv| (segment.clone(), first, kv)));
        }
    }
    tasks.sort_by_key(|t| std::cmp::Reverse(t.1));
    let (out, lse) = (Scattered::new(out), Scattered::new(lse));
    cx.pool.run(tasks.len(), |i| {
        let (segment, first, kv) = &tasks[i];
        let rows = &qkv[segment.start * width..segment.end * width];
        let task = Task {
            scale,
            keys: Head::new(rows, width, key_head(&heads, *kv), dim),
            values: Head::new(rows, width, value_head(&heads, *kv), dim),
            queries: (kv * group..(kv + 1) * group).map(|h| Head::new(rows, width, h, dim)).collect(),
            rows: *first..(first + QUERIES).min(segment.len()),
            past: 0,
        };
        let at = |row: usize, head: usize| (segment.start + row) * heads.q + kv * group + head;
        let put = |row, head, column, x: &[R]| {
            // SAFETY: each (row, head) belongs to one task.
            unsafe { out.run(at(row, head) * dim + column, x.len()) }.copy_from_slice(x);
        };
        // SAFETY: as above.
        let denominator = |row, head, x| unsafe { lse.run(at(row, head), 1)[0] = x };
        compute(cx, &task, put, denominator);
    });
}

/// Computes a task. Hands over every output in parts, as `put(row, head within the group, first column, elements)`, and the
/// log of every softmax's denominator, as `denominator(row, head within the group, log)`.
pub(super) fn compute<R: Real + GemmScalar<Sum = R>>(
    cx: Context<R>,
    task: &Task<R>,
    put: impl Fn(usize, usize, usize, &[R]),
    denominator: impl Fn(usize, usize, R),
) {
    let Context { memory, micro, .. } = cx;
    let (mr, nr, dim) = (micro.rows(), micro.cols(), task.keys.dim);
    let (all, block) = (task.past + task.rows.end, block(mr));
    let scale = R::of(task.scale);
    let mut key_panels = Scratch::new(memory, all.next_multiple_of(mr) * dim);
    let mut value_panels = Scratch::new(memory, dim.next_multiple_of(mr) * all);
    let (keys, values) = (key_panels.slice(), value_panels.slice());
    micro.pack_rows(task.keys.by_row(), 0..all, task.keys.columns(), keys);
    micro.pack_rows(task.values.by_column(), task.values.columns(), 0..all, values);

    let (mut queries, mut scores) = (Scratch::new(memory, dim * nr), Scratch::new(memory, block * nr));
    let (mut sums, mut turned) = (Scratch::new(memory, dim * nr), Scratch::new(memory, nr * nr));
    let (queries, scores, sums, turned) = (queries.slice(), scores.slice(), sums.slice(), turned.slice());
    for (h, head) in task.queries.iter().enumerate() {
        for first in task.rows.clone().step_by(nr) {
            let tile = first..(first + nr).min(task.rows.end);
            micro.pack_cols(head.by_row(), tile.clone(), head.columns(), queries);
            queries.iter_mut().for_each(|q| *q *= scale);
            let mut running = Running::new();
            for key in (0..task.past + tile.end).step_by(block) {
                let n = block.min(task.past + tile.end - key);
                let scores = &mut scores[..n * nr];
                micro.multiply([n, nr, dim], &keys[key * dim..], mr * dim, queries, scores, nr, false);
                exponentials(nr, key, task.past + first, scores, &mut running);
                if key > 0 {
                    rescale(nr, sums, &running.factor);
                }
                micro.multiply([dim, nr, n], &values[key * mr..], mr * all, scores, sums, nr, key > 0);
            }
            turn(micro, sums, dim, tile.len(), turned, |l, columns, x| {
                let factor = R::ONE / running.sum[l];
                x.iter_mut().for_each(|x| *x *= factor);
                put(first + l, h, columns.start, x);
            });
            for (l, row) in tile.enumerate() {
                denominator(row, h, running.max[l] + running.sum[l].ln());
            }
        }
    }
}

/// The softmax so far, for every query of a tile.
struct Running<R> {
    max: [R; MOST_LANES],
    /// Sum of the exponentials of the scores less the maximum.
    sum: [R; MOST_LANES],
    /// What the last block's new maximum multiplies older sums by.
    factor: [R; MOST_LANES],
}

impl<R: Real> Running<R> {
    fn new() -> Self {
        Running { max: [R::NEG_INFINITY; MOST_LANES], sum: [R::ZERO; MOST_LANES], factor: [R::ZERO; MOST_LANES] }
    }
}

versions! {
    /// Scores `[keys, lanes]` of the keys from `key` on for the queries from `query` on become exponentials; the keys after
    /// a query become 0.
    fn exponentials<R, S>(lanes: usize, key: usize, query: usize, scores: &mut [R], running: &mut Running<R>) {
        with_lanes!(lanes, exponentials_of::<R, S>(key, query, scores, running))
    }

    fn rescale<R, S>(lanes: usize, sums: &mut [R], factor: &[R; MOST_LANES]) {
        for row in sums.chunks_exact_mut(lanes) {
            row.iter_mut().zip(factor).for_each(|(x, &f)| *x *= f);
        }
    }
}

#[inline(always)]
fn exponentials_of<R: Real, S: Isa, const N: usize>(
    key: usize,
    query: usize,
    scores: &mut [R],
    running: &mut Running<R>,
) {
    let (rows, _) = scores.as_chunks_mut::<N>();
    let hidden_from = (query + 1).saturating_sub(key).min(rows.len());
    for (i, row) in rows[hidden_from..].iter_mut().enumerate() {
        // This key is 1 + i places after the first query, if that is in the block at all.
        let hidden = key + hidden_from + i - query;
        row[..hidden.min(N)].fill(R::NEG_INFINITY);
    }
    let old: [R; N] = *running.max.first_chunk().expect("lanes");
    let mut max = old;
    for row in &*rows {
        for l in 0..N {
            max[l] = larger(max[l], row[l]);
        }
    }
    let mut sum = [R::ZERO; N];
    for row in rows {
        for l in 0..N {
            row[l] = (row[l] - max[l]).exp::<S>();
            sum[l] += row[l];
        }
    }
    for l in 0..N {
        let factor = (old[l] - max[l]).exp::<S>();
        running.factor[l] = factor;
        running.sum[l] = S::fma(running.sum[l], factor, sum[l]);
        running.max[l] = max[l];
    }
}
