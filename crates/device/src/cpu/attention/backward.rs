//! The backward pass.
//!
//! With probabilities `P`, `dP = dout·vᵀ`, `D = rowsum(dout·out)` and `dS = P·(dP − D)`: `dv = Pᵀ·dout`,
//! `dk = scale·dSᵀ·q`, `dq = scale·dS·k`.
//!
//! A task is a chunk of a segment's keys for all query heads that share them, and all queries that see them. So `dk` and
//! `dv` are finished where they are summed. `dq` is a sum over chunks: where a segment is longer than [`CHUNK`], each
//! writes its part aside, and the parts are added in order.

use super::number::Number;
use super::softmax::{At, Gradients, Space};
use super::{BLOCK, Context, Head, Scratch, block, fetch_rows, key_head, pieces, scale, scaled, spans, value_head};
use crate::Heads;
use crate::cpu::bands::Scattered;
use crate::cpu::gemm::{Left, Micro, Operand};
use crate::cpu::lines::{fence, stream};
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::{fold2, join, versions};
use std::f64::consts::LOG2_E;
use std::ops::Range;

/// Keys of a task. More of them: less to write aside; fewer: more tasks for the threads.
const CHUNK: usize = 1024;
/// Rows that are fetched at a time.
const FETCH: usize = 32;

/// The operands of the whole call.
struct Call<'a, A: Number> {
    cx: Context<'a, A>,
    heads: Heads,
    scale: f64,
    chunk: usize,
    qkv: &'a [A],
    out: &'a [A],
    lse: &'a [A::Real],
    dout: &'a [A],
}

/// Some keys of a segment, and the queries of the segment from the first of these keys on.
struct Task {
    segment: Range<usize>,
    keys: Range<usize>,
    kv: usize,
    /// Where the first query's gradient is written aside; none if the segment has no other chunk.
    aside: Option<usize>,
}

/// Where gradients go.
struct To<'a, A: Number> {
    dqkv: &'a Scattered<'a, A>,
    /// Whether they go past the caches.
    away: bool,
    /// Parts of gradients of queries.
    aside: &'a Scattered<'a, A::Real>,
}

/// Gradient of [`super::attention`] with respect to the fused projection.
pub(crate) fn attention_backward<A: Number>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    (qkv, out, lse): (&[A], &[A], &[A::Real]),
    dout: &[A],
    dqkv: &mut [A],
) {
    run(&Call { cx, heads, scale, chunk: CHUNK, qkv, out, lse, dout }, segments, dqkv);
}

fn run<A: Number>(call: &Call<A>, segments: &[u32], dqkv: &mut [A]) {
    let Heads { q, kv, dim } = call.heads;
    let (width, wide) = (call.heads.width(), q * dim);
    let (mut tasks, mut long, mut aside_len) = (Vec::new(), Vec::new(), 0);
    for segment in spans(segments) {
        // First row of every chunk, and where it is written aside.
        let mut parts = Vec::new();
        for first in segment.clone().step_by(call.chunk) {
            let keys = first..(first + call.chunk).min(segment.end);
            let aside = (segment.len() > call.chunk).then_some(aside_len);
            if aside.is_some() {
                parts.push((first, aside_len));
                aside_len += (segment.end - first) * wide;
            }
            tasks.extend((0..kv).map(|kv| Task { segment: segment.clone(), keys: keys.clone(), kv, aside }));
        }
        if !parts.is_empty() {
            long.push((segment, parts));
        }
    }
    // The longest first, so that the threads finish together.
    tasks.sort_by_key(|t| std::cmp::Reverse((t.segment.end - t.keys.start) * t.keys.len()));
    let mut aside = Scratch::new(call.cx.memory, aside_len);
    let away = call.cx.away(dqkv);
    let (dqkv, aside) = (Scattered::new(dqkv), Scattered::new(aside.slice()));
    call.cx.pool.run(tasks.len(), |i| compute(call, &tasks[i], &To { dqkv: &dqkv, away, aside: &aside }));
    for (segment, parts) in long {
        call.cx.pool.ranges(segment.len(), 64, |rows| {
            for row in rows.start + segment.start..rows.end + segment.start {
                // SAFETY: the tasks are done, and each row is in one range.
                let part = |&(first, at): &(usize, usize)| unsafe { aside.run(at + (row - first) * wide, wide) };
                let sum = part(&parts[0]);
                for other in parts[1..].iter().take_while(|(first, _)| *first <= row) {
                    sum.iter_mut().zip(part(other)).for_each(|(s, x)| *s += *x);
                }
                // SAFETY: as above.
                scaled(A::Real::of(call.scale), sum, unsafe { dqkv.run(row * width, wide) });
            }
        });
    }
}

fn compute<'a, A: Number>(call: &Call<'a, A>, task: &Task, to: &To<A>) {
    let (cx, heads) = (call.cx, call.heads);
    let Context { memory, micro, .. } = cx;
    let (mr, nr, dim, block) = (micro.rows(), micro.cols(), heads.dim, block(micro.rows()));
    let (width, wide, group) = (heads.width(), heads.q * dim, heads.q / heads.kv);
    // From here on, rows are counted from the chunk's first key.
    let rows = task.keys.start..task.segment.end;
    let (first, n, n_keys) = (rows.start, rows.len(), task.keys.len());
    let part = |x: &'a [A], width, h| Head::new(&x[rows.start * width..rows.end * width], width, h, dim);
    let [keys, values] =
        [key_head(&heads, task.kv), value_head(&heads, task.kv)].map(|head| part(call.qkv, width, head));
    let keys = Keys::new(cx, keys, values, n_keys);

    let sums = || Scratch::<A::Real>::zeros(memory, n_keys.next_multiple_of(nr) * dim);
    let (mut dk, mut dv) = (sums(), sums());
    let (dk, dv) = (dk.slice(), dv.slice());
    let mut packed = Packed::new(cx, n, dim);
    let mut dq = Scratch::new(memory, n * dim);
    let dq = dq.slice();
    let (mut p, mut ds) = (Scratch::new(memory, block * nr), Scratch::new(memory, block * nr));
    let (p, ds) = (p.slice(), ds.slice());
    // The same as operands: as right ones, and (the gradient alone) as rows of a tile of keys, and those as a left one.
    let [mut right_p, mut right_ds, mut left] = std::array::from_fn(|_| Scratch::new(memory, block * nr));
    let mut rounded = Scratch::new(memory, block * keys.tile);
    let (right_p, right_ds, rounded, left) = (right_p.slice(), right_ds.slice(), rounded.slice(), left.slice());
    let (factor, exponent) = (A::Real::of(call.scale), A::Real::of(call.scale * LOG2_E));

    for h in task.kv * group..(task.kv + 1) * group {
        let (query, out, dout) = (part(call.qkv, width, h), part(call.out, wide, h), part(call.dout, wide, h));
        packed.pack(query, out, dout, &call.lse[first * heads.q + h..], heads.q);
        dq.fill(A::Real::ZERO);
        for tile in pieces(0..n_keys, keys.tile) {
            for queries in pieces(tile.start / block * block..n, block) {
                // Queries before a key see nothing of it, but panels are packed from fixed rows on.
                let from = |key: usize| queries.start.max(key / mr * mr);
                for lanes in pieces(tile.clone(), nr).take_while(|lanes| from(lanes.start) < queries.end) {
                    let query = from(lanes.start);
                    let m = queries.end - query;
                    let (p, ds) = (&mut p[..m * nr], &mut ds[..m * nr]);
                    micro.multiply([m, nr, dim], packed.queries(query), keys.keys(&lanes), p, nr, false);
                    micro.multiply([m, nr, dim], packed.douts(query), keys.values(&lanes), ds, nr, false);
                    let (lse, d) = (&packed.lse.get()[query..query + m], &packed.d.get()[query..query + m]);
                    let at = At { key: lanes.start, query, scale: exponent };
                    let rows = &mut rounded[(query - queries.start) * keys.tile + lanes.start - tile.start..];
                    let space = Space { p: right_p, ds: right_ds, rows, pitch: keys.tile };
                    let Gradients { p, ds, rows } = A::gradients(nr, at, (lse, d), (p, ds), space);

                    let sums = lanes.start * dim..(lanes.start + nr) * dim;
                    let (dk, dv) = (&mut dk[sums.clone()], &mut dv[sums]);
                    micro.multiply([dim, nr, m], packed.dout_columns(&queries, query), p, dv, nr, true);
                    micro.multiply([dim, nr, m], packed.query_columns(&queries, query), ds, dk, nr, true);
                    if !micro.rows_in_place() {
                        let by_query = Operand { data: &rows[..m * nr], pitch: nr, lanes_adjacent: false };
                        micro.pack_rows(by_query, 0..m, 0..lanes.len(), left);
                    }
                }
                // Where not all queries see all keys, so many at a time as a product has rows.
                let query = from(tile.start);
                let (across, in_place) = (query < tile.end, micro.rows_in_place());
                for rows in pieces(query..queries.end, if across { mr } else { block }) {
                    let k = if across { tile.len().min(rows.start + mr - tile.start) } else { tile.len() };
                    let left = if in_place {
                        &rounded[(rows.start - queries.start) * keys.tile..]
                    } else {
                        &left[(rows.start - query) * Micro::<A>::panel(1, tile.len())..]
                    };
                    let steps = if in_place { keys.tile } else { tile.len() };
                    for (columns, panel) in pieces(0..dim, nr).zip(keys.columns(&tile)) {
                        let dq = &mut dq[rows.start * dim + columns.start..];
                        let left = Left { panels: left, steps, first: 0 };
                        micro.multiply([rows.len(), columns.len(), k], left, panel, dq, dim, true);
                    }
                }
            }
        }
        put_queries(call, task, h, dq, to);
    }
    scale(factor, dk);
    put_keys(call, task, key_head(&heads, task.kv), dk, to);
    put_keys(call, task, value_head(&heads, task.kv), dv, to);
    if to.away {
        fence();
    }
}

/// Writes a head's gradient of queries, or what this chunk adds to it.
fn put_queries<A: Number>(call: &Call<A>, task: &Task, h: usize, dq: &[A::Real], to: &To<A>) {
    let (width, dim, wide) = (call.heads.width(), call.heads.dim, call.heads.q * call.heads.dim);
    let (factor, mut made) = (A::Real::of(call.scale), vec![A::zeroed(); if to.away { dim } else { 0 }]);
    for (i, dq) in dq.chunks_exact(dim).enumerate() {
        let row = task.keys.start + i;
        if let Some(at) = task.aside {
            // SAFETY: each (row, head) of a chunk belongs to one task.
            unsafe { to.aside.run(at + i * wide + h * dim, dim) }.copy_from_slice(dq);
            continue;
        }
        let at = row * width + h * dim;
        if i % FETCH == 0 && !to.away {
            let rows = [FETCH.min(task.segment.end - row), dim];
            fetch_rows(to.dqkv.rows(at, rows, width), rows, width);
        }
        // SAFETY: as above.
        let place = unsafe { to.dqkv.run(at, dim) };
        if to.away {
            scaled(factor, dq, &mut made);
            stream(&made, place);
        } else {
            scaled(factor, dq, place);
        }
    }
}

/// Writes a gradient of keys or values from its sums.
fn put_keys<A: Number>(call: &Call<A>, task: &Task, head: usize, sums: &[A::Real], to: &To<A>) {
    let (micro, width, dim) = (call.cx.micro, call.heads.width(), call.heads.dim);
    let address = |keys: &Range<usize>| to.dqkv.rows(keys.start * width + head * dim, [keys.len(), dim], width);
    for (keys, sums) in pieces(task.keys.clone(), micro.cols()).zip(sums.chunks_exact(dim * micro.cols())) {
        // SAFETY: each (key, head) belongs to one task.
        unsafe { A::put_turned(micro, sums, [dim, keys.len()], address(&keys), width, to.away) };
        let next = keys.end..(keys.end + micro.cols()).min(task.keys.end);
        if !to.away {
            fetch_rows(address(&next), [next.len(), dim], width);
        }
    }
}

/// A chunk's keys and values as right operands.
struct Keys<A: Number> {
    micro: Micro<A>,
    dim: usize,
    /// Keys whose part of a gradient of queries is added up at a time.
    tile: usize,
    keys: Scratch<A>,
    values: Scratch<A>,
    columns: Scratch<A>,
}

impl<A: Number> Keys<A> {
    fn new(Context { memory, micro, .. }: Context<A>, keys: Head<A>, values: Head<A>, n: usize) -> Self {
        let (nr, dim) = (micro.cols(), keys.dim);
        // A matrix unit multiplies faster than few products can be added to sums in memory.
        let tile = if micro.rows_in_place() { BLOCK.next_multiple_of(nr) } else { nr };
        let panels = || Scratch::new(memory, n.next_multiple_of(nr) * Micro::<A>::panel(1, dim));
        let columns = Scratch::new(memory, dim.next_multiple_of(nr) * Micro::<A>::panel(1, n));
        let mut all = Keys { micro, dim, tile, keys: panels(), values: panels(), columns };
        let size = Micro::<A>::panel(nr, dim);
        for (i, lanes) in pieces(0..n, nr).enumerate() {
            let panel = i * size..(i + 1) * size;
            for head in [keys, values] {
                head.fetch(lanes.end..lanes.end + nr);
            }
            micro.pack_cols(keys.by_row(), lanes.clone(), keys.columns(), &mut all.keys.slice()[panel.clone()]);
            micro.pack_cols(values.by_row(), lanes, values.columns(), &mut all.values.slice()[panel]);
        }
        let mut rest = all.columns.slice();
        for tile in pieces(0..n, tile) {
            for columns in pieces(keys.columns(), nr) {
                let panel;
                (panel, rest) = rest.split_at_mut(Micro::<A>::panel(nr, tile.len()));
                micro.pack_cols(keys.by_column(), columns, tile.clone(), panel);
            }
        }
        all
    }
    /// The panel of these lanes.
    fn keys(&self, lanes: &Range<usize>) -> &[A] {
        &self.keys.get()[lanes.start * Micro::<A>::panel(1, self.dim)..]
    }
    /// As `keys`.
    fn values(&self, lanes: &Range<usize>) -> &[A] {
        &self.values.get()[lanes.start * Micro::<A>::panel(1, self.dim)..]
    }
    /// Panels of a tile of keys, of which the columns are lanes.
    fn columns(&self, tile: &Range<usize>) -> impl Iterator<Item = &[A]> {
        let nr = self.micro.cols();
        self.columns.get()[tile.start * self.dim.next_multiple_of(nr)..].chunks(Micro::<A>::panel(nr, tile.len()))
    }
}

/// A head's queries and output gradients as left operands, both ways round, and what the softmax needs of each row.
struct Packed<A: Number> {
    micro: Micro<A>,
    dim: usize,
    block: usize,
    queries: Scratch<A>,
    douts: Scratch<A>,
    query_columns: Scratch<A>,
    dout_columns: Scratch<A>,
    /// As an exponent of two.
    lse: Scratch<A::Real>,
    d: Scratch<A::Real>,
}

impl<A: Number> Packed<A> {
    fn new(Context { memory, micro, .. }: Context<A>, n: usize, dim: usize) -> Self {
        let panels =
            |lanes: usize, steps| Scratch::new(memory, Micro::<A>::panel(lanes.next_multiple_of(micro.rows()), steps));
        let row = || Scratch::new(memory, n);
        Packed {
            micro,
            dim,
            block: block(micro.rows()),
            queries: panels(n, dim),
            douts: panels(n, dim),
            query_columns: panels(dim, n),
            dout_columns: panels(dim, n),
            lse: row(),
            d: row(),
        }
    }

    /// `lse` begins with the first row's, and rows are `pitch` apart.
    fn pack(&mut self, query: Head<A>, out: Head<A>, dout: Head<A>, lse: &[A::Real], pitch: usize) {
        let (micro, n) = (self.micro, self.d.get().len());
        let fetch = |rows: Range<usize>| [query, dout, out].iter().for_each(|x| x.fetch(rows.clone()));
        fetch(0..FETCH);
        for rows in pieces(0..n, FETCH) {
            fetch(rows.end..rows.end + FETCH);
            products(dout, out, rows.start, &mut self.d.slice()[rows]);
        }
        for (x, panels, columns) in
            [(query, &mut self.queries, &mut self.query_columns), (dout, &mut self.douts, &mut self.dout_columns)]
        {
            micro.pack_rows(x.by_row(), 0..n, x.columns(), panels.slice());
            for rows in pieces(0..n, self.block) {
                let columns = &mut columns.slice()[rows.start * self.dim.next_multiple_of(micro.rows())..];
                micro.pack_rows(x.by_column(), x.columns(), rows, columns);
            }
        }
        let exponent = A::Real::of(LOG2_E);
        self.lse.slice().iter_mut().zip(lse.iter().step_by(pitch)).for_each(|(to, &lse)| *to = lse * exponent);
    }

    /// Rows from one on that begins a panel.
    fn queries(&self, from: usize) -> Left<'_, A> {
        self.rows(&self.queries, from)
    }
    fn douts(&self, from: usize) -> Left<'_, A> {
        self.rows(&self.douts, from)
    }
    fn rows<'a>(&self, panels: &'a Scratch<A>, from: usize) -> Left<'a, A> {
        Left { panels: &panels.get()[from * Micro::<A>::panel(1, self.dim)..], steps: self.dim, first: 0 }
    }
    /// Columns as lanes, of which the rows of a block are summed over, from one on that begins a panel of rows.
    fn query_columns(&self, block: &Range<usize>, from: usize) -> Left<'_, A> {
        self.columns(&self.query_columns, block, from)
    }
    fn dout_columns(&self, block: &Range<usize>, from: usize) -> Left<'_, A> {
        self.columns(&self.dout_columns, block, from)
    }
    fn columns<'a>(&self, panels: &'a Scratch<A>, block: &Range<usize>, from: usize) -> Left<'a, A> {
        let panels = &panels.get()[block.start * self.dim.next_multiple_of(self.micro.rows())..];
        Left { panels, steps: block.len(), first: from - block.start }
    }
}

versions! {
    /// `x·y` of the rows from `first` on.
    fn products<A: Number; S>(x: Head<A>, y: Head<A>, first: usize, sums: &mut [A::Real]) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let lanes = fold2(x.row(first + i), y.row(first + i), A::Real::ZERO, |sum, x, y| {
                S::fma(Stored::widen(x), Stored::widen(y), sum)
            });
            *sum = join(lanes, |a, b| a + b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Random, assert_close};
    use crate::cpu::Pool;
    use crate::cpu::attention::attention;
    use crate::cpu::memory::Memory;
    use half::bf16;

    /// Every micro-kernel, with chunks that cut segments: another order of the same sums.
    fn chunks_and_micro_kernels_change_only_the_order_of_sums<A: Number>(row: &str) {
        let (pool, memory, mut r) = (Pool::new(2), Memory::default(), Random(6));
        let heads = Heads { q: 4, kv: 2, dim: 21 };
        let (segments, t, scale) = ([0, 200, 207, 340], 340, 0.3);
        let (width, wide) = (heads.width(), heads.q * heads.dim);
        let mut values = |n| -> Vec<A> { r.values(n).iter().map(|&x| A::narrow(A::Real::of(x))).collect() };
        let (qkv, dout) = (values(t * width), values(t * wide));
        let zeros = |n| vec![A::narrow(A::Real::ZERO); n];
        let both = |cx: Context<A>, chunk: usize| {
            let (mut out, mut lse, mut dqkv) = (zeros(t * wide), vec![A::Real::ZERO; t * heads.q], zeros(t * width));
            attention(cx, heads, scale, &segments, &qkv, &mut out, &mut lse);
            run(&Call { cx, heads, scale, chunk, qkv: &qkv, out: &out, lse: &lse, dout: &dout }, &segments, &mut dqkv);
            let wide = |x: &[A]| -> Vec<f64> { x.iter().map(|&x| Stored::widen(x).f64()).collect() };
            [wide(&out), lse.iter().map(|x| x.f64()).collect(), wide(&dqkv)].concat()
        };
        let best = Context::new(&pool, &memory);
        let whole = both(best, CHUNK);
        for micro in Micro::all() {
            for chunk in [CHUNK, 64, 50, 1] {
                let cut = both(Context { micro, ..best }, chunk);
                assert_close(&format!("chunks of {chunk}"), row, A::DTYPE, &whole, &cut);
            }
        }
    }

    #[test]
    fn chunks_and_micro_kernels_change_only_the_order_of_sums_in_f64() {
        chunks_and_micro_kernels_change_only_the_order_of_sums::<f64>("attention");
    }

    #[test]
    fn chunks_and_micro_kernels_change_only_the_order_of_sums_in_bf16() {
        chunks_and_micro_kernels_change_only_the_order_of_sums::<bf16>("attention order");
    }
}
