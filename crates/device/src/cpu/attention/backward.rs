//! The backward pass.
//!
//! With probabilities `P`, `dP = dout·vᵀ`, `D = rowsum(dout·out)` and `dS = P·(dP − D)·scale`:
//! `dv = Pᵀ·dout`, `dk = dSᵀ·q`, `dq = dS·k`.
//!
//! A task is a chunk of a segment's keys for all query heads that share them, and all queries that see them. So `dk` and
//! `dv` are finished where they are summed. `dq` is a sum over chunks: the first chunk writes it, later ones (of segments
//! longer than [`CHUNK`]) write aside, and what lies aside is added in order.

use super::{Context, Head, Scratch, block, key_head, pieces, spans, turn, value_head, with_lanes};
use crate::Heads;
use crate::cpu::Real;
use crate::cpu::bands::Scattered;
use crate::cpu::gemm::{GemmScalar, Micro, Operand};
use crate::cpu::simd::{Baseline, Isa, dot, versions};
use std::ops::Range;

/// Keys of a task. More of them: less to write aside; fewer: more tasks for the threads.
const CHUNK: usize = 1024;

/// The operands of the whole call.
struct Call<'a, R: GemmScalar> {
    cx: Context<'a, R>,
    heads: Heads,
    scale: R,
    chunk: usize,
    qkv: &'a [R],
    out: &'a [R],
    lse: &'a [R],
    dout: &'a [R],
}

/// Some keys of a segment, and the queries of the segment from the first of these keys on.
struct Task {
    segment: Range<usize>,
    keys: Range<usize>,
    kv: usize,
    /// Where the first query's gradient is written aside; none for the first chunk.
    aside: Option<usize>,
}

/// Gradient of [`super::attention`] with respect to the fused projection.
pub(crate) fn attention_backward<R: Real + GemmScalar<Sum = R>>(
    cx: Context<R>,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    (qkv, out, lse): (&[R], &[R], &[R]),
    dout: &[R],
    dqkv: &mut [R],
) {
    let call = Call { cx, heads, scale: R::of(scale), chunk: CHUNK, qkv, out, lse, dout };
    run(&call, segments, dqkv);
}

fn run<R: Real + GemmScalar<Sum = R>>(call: &Call<R>, segments: &[u32], dqkv: &mut [R]) {
    let Heads { q, dim, .. } = call.heads;
    let (width, wide) = (call.heads.width(), q * dim);
    let (mut tasks, mut added, mut aside_len) = (Vec::new(), Vec::new(), 0);
    for segment in spans(segments) {
        for first in segment.clone().step_by(call.chunk) {
            let aside = (first > segment.start).then_some(aside_len);
            let keys = first..(first + call.chunk).min(segment.end);
            if aside.is_some() {
                added.push((first..segment.end, aside_len));
                aside_len += (segment.end - first) * wide;
            }
            tasks.extend((0..call.heads.kv).map(|kv| Task { segment: segment.clone(), keys: keys.clone(), kv, aside }));
        }
    }
    // The longest first, so that the threads finish together.
    tasks.sort_by_key(|t| std::cmp::Reverse((t.segment.end - t.keys.start) * t.keys.len()));
    let mut aside = Scratch::new(call.cx.memory, aside_len);
    {
        let (dqkv, aside) = (Scattered::new(dqkv), Scattered::new(aside.slice()));
        call.cx.pool.run(tasks.len(), |i| compute(call, &tasks[i], &dqkv, &aside));
    }
    let (aside, dqkv) = (&*aside.slice(), Scattered::new(dqkv));
    for (rows, at) in added {
        call.cx.pool.ranges(rows.len(), 64, |some| {
            for i in some {
                // SAFETY: each row is in one range, and chunks are added one after another.
                let dq = unsafe { dqkv.run((rows.start + i) * width, wide) };
                dq.iter_mut().zip(&aside[at + i * wide..]).for_each(|(d, &a)| *d += a);
            }
        });
    }
}

fn compute<'a, R: Real + GemmScalar<Sum = R>>(
    call: &Call<'a, R>,
    task: &Task,
    dqkv: &Scattered<R>,
    aside: &Scattered<R>,
) {
    let (Context { memory, micro, .. }, heads) = (call.cx, call.heads);
    let (mr, nr, dim, block) = (micro.rows(), micro.cols(), heads.dim, block(micro.rows()));
    let (width, wide, group) = (heads.width(), heads.q * dim, heads.q / heads.kv);
    // From here on, rows are counted from the chunk's first key.
    let rows = task.keys.start..task.segment.end;
    let (first, n, n_keys) = (rows.start, rows.len(), task.keys.len());
    let part = |x: &'a [R], width, h| Head::new(&x[rows.start * width..rows.end * width], width, h, dim);
    let keys = part(call.qkv, width, key_head(&heads, task.kv));
    let values = part(call.qkv, width, value_head(&heads, task.kv));

    let tiles = n_keys.div_ceil(nr);
    let (mut dk, mut dv) = (Scratch::zeros(memory, tiles * dim * nr), Scratch::zeros(memory, tiles * dim * nr));
    let (dk, dv) = (dk.slice(), dv.slice());
    let mut packed = Packed::new(call.cx, n, dim);
    let mut dq = Scratch::new(memory, n * dim);
    let dq = dq.slice();
    let (mut key_panel, mut value_panel) = (Scratch::new(memory, dim * nr), Scratch::new(memory, dim * nr));
    let (key_panel, value_panel) = (key_panel.slice(), value_panel.slice());
    let mut key_columns = Scratch::new(memory, dim.next_multiple_of(nr) * nr);
    let key_columns = key_columns.slice();
    let (mut p, mut ds) = (Scratch::new(memory, block * nr), Scratch::new(memory, block * nr));
    let mut ds_rows = Scratch::new(memory, block * nr);
    let (p, ds, ds_rows) = (p.slice(), ds.slice(), ds_rows.slice());

    for h in task.kv * group..(task.kv + 1) * group {
        let (query, out, dout) = (part(call.qkv, width, h), part(call.out, wide, h), part(call.dout, wide, h));
        packed.pack(query, out, dout, &call.lse[first * heads.q + h..], heads.q);
        dq.fill(R::ZERO);
        for (tile, key) in (0..n_keys).step_by(nr).enumerate() {
            let lanes = key..(key + nr).min(n_keys);
            micro.pack_cols(keys.by_row(), lanes.clone(), keys.columns(), key_panel);
            key_panel.iter_mut().for_each(|k| *k *= call.scale);
            micro.pack_cols(values.by_row(), lanes.clone(), values.columns(), value_panel);
            for (columns, panel) in pieces(keys.columns(), nr).zip(key_columns.chunks_mut(nr * lanes.len())) {
                micro.pack_cols(keys.by_column(), columns, lanes.clone(), panel);
            }
            let sums = tile * dim * nr..(tile + 1) * dim * nr;
            let (dk, dv) = (&mut dk[sums.clone()], &mut dv[sums]);
            // Queries before the key see nothing of it, but panels are packed from fixed rows on.
            for query in (key / mr * mr..n).step_by(block) {
                let m = block.min(n - query);
                let (p, ds) = (&mut p[..m * nr], &mut ds[..m * nr]);
                micro.multiply([m, nr, dim], &packed.queries.get()[query * dim..], mr * dim, key_panel, p, nr, false);
                micro.multiply([m, nr, dim], &packed.douts.get()[query * dim..], mr * dim, value_panel, ds, nr, false);
                let (lse, d) = (&packed.lse.get()[query..query + m], &packed.d.get()[query..query + m]);
                score_gradients(nr, key, query, call.scale, lse, d, p, ds);
                micro.multiply([dim, nr, m], &packed.dout_columns.get()[query * mr..], mr * n, p, dv, nr, true);
                micro.multiply([dim, nr, m], &packed.query_columns.get()[query * mr..], mr * n, ds, dk, nr, true);
                let by_query = Operand { data: ds, pitch: nr, lanes_adjacent: false };
                let k = lanes.len();
                micro.pack_rows(by_query, 0..m, 0..k, ds_rows);
                for (columns, panel) in pieces(0..dim, nr).zip(key_columns.chunks(nr * k)) {
                    let dq = &mut dq[query * dim + columns.start..];
                    micro.multiply([m, columns.len(), k], ds_rows, mr * k, panel, dq, dim, true);
                }
            }
        }
        for (i, dq) in dq.chunks_exact(dim).enumerate() {
            // SAFETY: each (row, head) of a chunk belongs to one task.
            let to = unsafe {
                match task.aside {
                    None => dqkv.run((first + i) * width + h * dim, dim),
                    Some(at) => aside.run(at + i * wide + h * dim, dim),
                }
            };
            to.copy_from_slice(dq);
        }
    }
    // ds is no longer needed: its transpose's space takes the tiles of dk and dv as rows.
    for (sums, head) in [(&*dk, key_head(&heads, task.kv)), (&*dv, value_head(&heads, task.kv))] {
        for (keys, sums) in pieces(0..n_keys, nr).zip(sums.chunks_exact(dim * nr)) {
            turn(micro, sums, dim, keys.len(), ds_rows, |i, columns, x| {
                let at = (first + keys.start + i) * width + head * dim + columns.start;
                // SAFETY: each (key, head) belongs to one task.
                unsafe { dqkv.run(at, columns.len()) }.copy_from_slice(x);
            });
        }
    }
}

/// A head's queries and output gradients as left operands, both ways round, and what the softmax needs of each row.
struct Packed<R: GemmScalar> {
    micro: Micro<R>,
    queries: Scratch<R>,
    douts: Scratch<R>,
    query_columns: Scratch<R>,
    dout_columns: Scratch<R>,
    lse: Scratch<R>,
    d: Scratch<R>,
}

impl<R: Real + GemmScalar<Sum = R>> Packed<R> {
    fn new(Context { memory, micro, .. }: Context<R>, n: usize, dim: usize) -> Self {
        let by_row = || Scratch::new(memory, n.next_multiple_of(micro.rows()) * dim);
        let by_column = || Scratch::new(memory, dim.next_multiple_of(micro.rows()) * n);
        let row = || Scratch::new(memory, n);
        Packed {
            micro,
            queries: by_row(),
            douts: by_row(),
            query_columns: by_column(),
            dout_columns: by_column(),
            lse: row(),
            d: row(),
        }
    }

    /// `lse` begins with the first row's, and rows are `pitch` apart.
    fn pack(&mut self, query: Head<R>, out: Head<R>, dout: Head<R>, lse: &[R], pitch: usize) {
        let n = self.d.get().len();
        self.micro.pack_rows(query.by_row(), 0..n, query.columns(), self.queries.slice());
        self.micro.pack_rows(dout.by_row(), 0..n, dout.columns(), self.douts.slice());
        self.micro.pack_rows(query.by_column(), query.columns(), 0..n, self.query_columns.slice());
        self.micro.pack_rows(dout.by_column(), dout.columns(), 0..n, self.dout_columns.slice());
        for (i, d) in self.d.slice().iter_mut().enumerate() {
            *d = dot::<R, Baseline>(dout.row(i), out.row(i));
        }
        self.lse.slice().iter_mut().zip(lse.iter().step_by(pitch)).for_each(|(to, &lse)| *to = lse);
    }
}

versions! {
    /// Scores become probabilities, and `ds`, the gradient of the probabilities, becomes that of the scores. Rows are the
    /// queries from `query` on, lanes the keys from `key` on.
    fn score_gradients<R, S>(
        lanes: usize, key: usize, query: usize, scale: R, lse: &[R], d: &[R], p: &mut [R], ds: &mut [R],
    ) {
        with_lanes!(lanes, score_gradients_of::<R, S>(key, query, scale, lse, d, p, ds))
    }
}

#[inline(always)]
fn score_gradients_of<R: Real, S: Isa, const N: usize>(
    key: usize,
    query: usize,
    scale: R,
    lse: &[R],
    d: &[R],
    p: &mut [R],
    ds: &mut [R],
) {
    let (p, ds) = (p.as_chunks_mut::<N>().0, ds.as_chunks_mut::<N>().0);
    for (i, (((p, ds), &lse), &d)) in p.iter_mut().zip(ds).zip(lse).zip(d).enumerate() {
        p.iter_mut().for_each(|p| *p = (*p - lse).exp::<S>());
        let seen = (query + i + 1).saturating_sub(key);
        if seen < N {
            p[seen..].fill(R::ZERO);
        }
        for l in 0..N {
            ds[l] = p[l] * ((ds[l] - d) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::check::{Random, assert_close};
    use crate::cpu::Pool;
    use crate::cpu::attention::attention;
    use crate::cpu::memory::Memory;

    /// Every micro-kernel, with chunks that cut segments: another order of the same sums.
    #[test]
    fn chunks_and_micro_kernels_change_only_the_order_of_sums() {
        let (pool, memory, mut r) = (Pool::new(2), Memory::default(), Random(6));
        let heads = Heads { q: 4, kv: 2, dim: 20 };
        let (segments, t, scale) = ([0, 200, 207, 340], 340, 0.3);
        let (width, wide) = (heads.width(), heads.q * heads.dim);
        let (qkv, dout) = (r.values(t * width), r.values(t * wide));
        let both = |cx: Context<f64>, chunk: usize| {
            let (mut out, mut lse, mut dqkv) = (vec![0.0; t * wide], vec![0.0; t * heads.q], vec![f64::NAN; t * width]);
            attention(cx, heads, scale, &segments, &qkv, &mut out, &mut lse);
            run(&Call { cx, heads, scale, chunk, qkv: &qkv, out: &out, lse: &lse, dout: &dout }, &segments, &mut dqkv);
            [out, lse, dqkv].concat()
        };
        let best = Context::new(&pool, &memory);
        let whole = both(best, CHUNK);
        for micro in Micro::all() {
            for chunk in [CHUNK, 64, 50, 1] {
                let cut = both(Context { micro, ..best }, chunk);
                assert_close(&format!("chunks of {chunk}"), "attention", DType::F64, &whole, &cut);
            }
        }
    }
}
