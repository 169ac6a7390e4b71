//! The forward pass.

use super::number::Number;
use super::softmax::{At, MOST_LANES, Running};
use super::{Context, Head, Scratch, block, fetch_rows, key_head, pieces, spans, value_head};
use crate::Heads;
use crate::cpu::bands::Scattered;
use crate::cpu::gemm::{Left, Micro};
use crate::cpu::lines::fence;
use crate::cpu::real::Real;
use crate::cpu::simd::versions;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Queries of a task: enough that packing all keys before them costs little beside.
const QUERIES: usize = 512;

/// What a task computes: some queries of all heads that share a key head.
pub(super) struct Task<'a, A> {
    pub scale: f64,
    /// Key heads and value heads, and one query head after another.
    pub keys: Head<'a, A>,
    pub values: Head<'a, A>,
    pub queries: Vec<Head<'a, A>>,
    /// Rows of the query heads to compute.
    pub rows: Range<usize>,
    /// Query row i sees the keys `0..=past + i`.
    pub past: usize,
}

/// `out = softmax(scale·q·kᵀ)·v` and the log of the softmax's denominator.
pub(crate) fn attention<A: Number>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    qkv: &[A],
    out: &mut [A],
    lse: &mut [A::Real],
) {
    let (width, dim, group) = (heads.width(), heads.dim, heads.q / heads.kv);
    // The longest first, so that the threads finish together.
    let mut tasks = Vec::new();
    for segment in spans(segments) {
        for first in (0..segment.len()).step_by(QUERIES) {
            tasks.extend((0..heads.kv).map(|kv| (segment.clone(), first, kv)));
        }
    }
    let pairs = |first: usize, end: usize| (end - first) * (first + end);
    tasks.sort_by_key(|(s, first, _)| std::cmp::Reverse(pairs(*first, s.len().min(first + QUERIES))));
    let away = cx.away(out);
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
        let first = segment.start * heads.q + kv * group;
        compute(cx, &task, &Output { out: &out, lse: Some(&lse), first, pitch: heads.q, away });
    });
}

/// Where a task's results go.
pub(super) struct Output<'a, A: Number> {
    pub out: &'a Scattered<'a, A>,
    pub lse: Option<&'a Scattered<'a, A::Real>>,
    /// Counted in heads: where the first head of row 0 stands, and how far rows are apart.
    pub first: usize,
    pub pitch: usize,
    /// Whether they go past the caches.
    pub away: bool,
}

/// Computes a task. Nobody else touches its results meanwhile.
pub(super) fn compute<A: Number>(cx: Context<A>, task: &Task<A>, to: &Output<A>) {
    let Context { memory, micro, .. } = cx;
    let (mr, nr, dim) = (micro.rows(), micro.cols(), task.keys.dim);
    let (all, block, tall) = (task.past + task.rows.end, block(mr), dim.next_multiple_of(mr));
    // Elements of a lane of a panel over all columns.
    let deep = Micro::<A>::panel(1, dim);
    let scale = A::Real::of(task.scale * LOG2_E);
    let mut key_panels = Scratch::new(memory, all.next_multiple_of(mr) * deep);
    let mut value_panels = Scratch::new(memory, tall * Micro::<A>::panel(1, all));
    let (keys, values) = (key_panels.slice(), value_panels.slice());
    for at in pieces(0..all, block) {
        for head in [task.keys, task.values] {
            head.fetch(if at.start == 0 { 0..2 * block } else { at.end..at.end + block });
        }
        micro.pack_rows(task.keys.by_row(), at.clone(), task.keys.columns(), &mut keys[at.start * deep..]);
        micro.pack_rows(task.values.by_column(), task.values.columns(), at.clone(), &mut values[at.start * tall..]);
    }

    let (mut queries, mut scores) = (Scratch::new(memory, deep * nr), Scratch::new(memory, block * nr));
    let (mut sums, mut weights) = (Scratch::new(memory, dim * nr), Scratch::new(memory, block * nr));
    let mut fresh = Scratch::new(memory, dim * nr);
    let (queries, scores, weights) = (queries.slice(), scores.slice(), weights.slice());
    let (sums, fresh) = (sums.slice(), fresh.slice());
    for (h, head) in task.queries.iter().enumerate() {
        for first in task.rows.clone().step_by(nr) {
            let tile = first..(first + nr).min(task.rows.end);
            micro.pack_cols(head.by_row(), tile.clone(), head.columns(), queries);
            head.fetch(tile.end..tile.end + nr);
            let out = to.out.rows((to.first + h + first * to.pitch) * dim, [tile.len(), dim], to.pitch * dim);
            if !to.away {
                fetch_rows(out, [tile.len(), dim], to.pitch * dim);
            }
            let mut running = Running::new();
            // Whole groups of keys while there are any.
            let seen = Micro::<A>::panel(1, task.past + tile.end).min(all);
            for key in (0..seen).step_by(block) {
                let n = block.min(seen - key);
                let scores = &mut scores[..n * nr];
                let left = Left { panels: &keys[key * deep..], steps: dim, first: 0 };
                micro.multiply([n, nr, dim], left, queries, scores, nr, false);
                let at = At { key, query: task.past + first, scale };
                let weights = A::weights(nr, at, scores, &mut running, weights);
                let left = Left { panels: &values[key * tall..], steps: block.min(all - key), first: 0 };
                micro.multiply([dim, nr, n], left, weights, if key == 0 { &mut *sums } else { &mut *fresh }, nr, false);
                if key > 0 {
                    rescale(nr, sums, &running.factor, fresh);
                }
            }
            finish(nr, sums, &running.sum);
            // SAFETY: each head of a row belongs to one task.
            unsafe { A::put_turned(micro, sums, [dim, tile.len()], out, to.pitch * dim, to.away) };
            for (l, row) in tile.enumerate() {
                let log = running.max[l] * A::Real::of(LN_2) + running.sum[l].ln();
                if let Some(lse) = to.lse {
                    // SAFETY: as above.
                    unsafe { lse.run(to.first + h + row * to.pitch, 1)[0] = log };
                }
            }
        }
    }
    if to.away {
        fence();
    }
}

versions! {
    /// `sums = factor·sums + fresh`, lane by lane.
    fn rescale<R, S>(lanes: usize, sums: &mut [R], factor: &[R; MOST_LANES], fresh: &[R]) {
        for (row, fresh) in sums.chunks_exact_mut(lanes).zip(fresh.chunks_exact(lanes)) {
            row.iter_mut().zip(factor).zip(fresh).for_each(|((x, &f), &y)| *x = S::fma(*x, f, y));
        }
    }

    /// Divides each lane of the sums.
    fn finish<R, S>(lanes: usize, sums: &mut [R], by: &[R; MOST_LANES]) {
        let factor = by.map(|by| R::ONE / by);
        for row in sums.chunks_exact_mut(lanes) {
            row.iter_mut().zip(&factor).for_each(|(x, &f)| *x *= f);
        }
    }
}
