//! Attention of many sequences at once over pages of keys and values.
//!
//! A server never knows how a text will be cut: a prompt is read in chunks whose sizes depend on who else is there, a
//! token is written alone or beside others, a prefix may come from a cache, and what was thrown out is read again. So
//! here, unlike in [`super::cached`], a row's bits depend on its own position, query, keys and values alone. Every row
//! meets its keys in one order, whoever computes it: a page's keys are lanes, and products are summed over the columns of
//! a head one after another; [`KEYS`] keys at a time go through a running softmax; every [`SPLIT`] keys begin a new one,
//! and these are joined in order. The splits are what several threads can share of one row.
//!
//! For that a page of keys is stored transposed, `[kv, dim, PAGE]`, and needs no packing; a page of values is
//! `[kv, PAGE, dim]`. A head's part of a page is one run of memory, read once for all query heads that share it. Where
//! numbers are codes of 8 bits, the scales of a head's rows follow its codes: a key's is multiplied with its score, a
//! value's with its probability, so that the products know nothing of them. What is not here: the matrix instructions that
//! the forward pass of training uses; a prompt's attention runs on plain vectors.

mod tile;

use super::number::Number;
use super::{Context, Scratch, pieces};
use crate::cpu::bands::Scattered;
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::{Isa, larger, max, sum, versions};
use crate::{Heads, PAGE, Paged};
use std::f64::consts::LOG2_E;
use std::ops::Range;
use tile::{Cached, Tile};

/// Keys whose scores are in registers and the first cache at a time.
const KEYS: usize = 4 * PAGE;
/// Keys of one running softmax.
const SPLIT: usize = 512;
/// Rows of a task.
const ROWS: usize = 64;
/// Up to so many rows, splits are tasks of their own.
const FEW: usize = 8;
/// Elements that are worth waking threads for.
const MANY: usize = 1 << 15;

/// Some rows of a sequence, for all query heads that share a key head: a pair is a row and one of its heads.
struct Task {
    sequence: usize,
    kv: usize,
    /// Rows of the sequence.
    rows: Range<usize>,
    /// Splits of its keys.
    splits: Range<usize>,
    /// Where the states of its pairs are kept, if other tasks have the other splits.
    parts: Option<usize>,
}

/// What a kernel must know of the cache.
#[derive(Clone, Copy)]
struct Cache<'a, T> {
    k: &'a [T],
    v: &'a [T],
    pages: &'a [u32],
    dim: usize,
    /// Elements of a page, and where this head's begin.
    pitch: usize,
    column: usize,
}

impl<'a, T: Cached> Cache<'a, T> {
    #[inline(always)]
    fn page(&self, of: &'a [T], page: usize) -> &'a [T] {
        &of[self.pages[page] as usize * self.pitch + self.column..][..PAGE * self.dim]
    }
    /// The scales of so many pages of rows.
    #[inline(always)]
    fn scales(&self, of: &'a [T], first: usize, count: usize) -> [T::Real; KEYS] {
        let mut all = [T::Real::ONE; KEYS];
        for (i, scales) in all.chunks_exact_mut(PAGE).enumerate().take(count) {
            let at = self.pages[first + i] as usize * self.pitch + self.column + PAGE * self.dim;
            for (scale, bytes) in scales.iter_mut().zip(of[at..at + PAGE * T::SCALE].chunks_exact(T::SCALE.max(1))) {
                *scale = T::scale(bytes);
            }
        }
        all
    }
    #[inline(always)]
    fn value(&self, key: usize) -> &'a [T] {
        &self.page(self.v, key / PAGE)[key % PAGE * self.dim..][..self.dim]
    }
}

/// Writes the new keys and values to their pages, then attends. Shapes have been checked, and that no page is written by
/// two sequences.
pub(crate) fn attention_paged<A: Number, T: Cached<Real = <A as Stored>::Real>>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    sequences: &[Paged],
    qkv: &[A],
    (k, v): (&mut [T], &mut [T]),
    out: &mut [A],
) {
    let Heads { q, kv, dim } = heads;
    let (group, part, run) = (q / kv, dim + 2, PAGE * (dim + T::SCALE));
    store(cx, heads, sequences, qkv, (Scattered::new(&mut *k), Scattered::new(&mut *v)));

    let (k, v) = (&*k, &*v);
    let (mut tasks, mut kept) = (Vec::new(), 0);
    for (sequence, s) in sequences.iter().enumerate() {
        let n = s.rows.len();
        // The last rows see the most keys: they go first.
        for first in (0..n).step_by(ROWS).rev() {
            let rows = first..(first + ROWS).min(n);
            let splits = (s.past + rows.end).div_ceil(SPLIT);
            let whole = rows.len() > FEW || splits == 1;
            for kv in 0..kv {
                for splits in pieces(0..splits, if whole { splits } else { 1 }) {
                    let parts = (!whole).then_some(kept);
                    kept += if whole { 0 } else { rows.len() * group * part };
                    tasks.push(Task { sequence, kv, rows: rows.clone(), splits, parts });
                }
            }
        }
    }
    let mut parts = Scratch::<A::Real>::new(cx.memory, kept);
    let out = Scattered::new(out);
    // SAFETY: each (row, head) is written once: by its task, or where the parts of several tasks are joined.
    let put =
        |row: usize, head: usize, state: &[A::Real]| finish(state, unsafe { out.run((row * q + head) * dim, dim) });
    let shared = Scattered::new(parts.slice());
    let work = |i: usize| {
        let task = &tasks[i];
        let s = &sequences[task.sequence];
        let pairs = task.rows.len() * group;
        let mut queries = Scratch::new(cx.memory, pairs * dim);
        for (pair, query) in queries.slice().chunks_exact_mut(dim).enumerate() {
            let row = s.rows.start + task.rows.start + pair / group;
            let at = row * heads.width() + (task.kv * group + pair % group) * dim;
            query.iter_mut().zip(&qkv[at..]).for_each(|(y, &x)| *y = Stored::widen(x) * A::Real::of(scale * LOG2_E));
        }
        let cache = Cache { k, v, pages: s.pages, dim, pitch: kv * run, column: task.kv * run };
        let position = s.past + task.rows.start;
        let keys = |split: usize| split * SPLIT..((split + 1) * SPLIT).min(s.past + task.rows.end);
        let of_split = |split, states: &mut [A::Real]| {
            begin(states, part);
            attend::<A, T>(cache, group, position, keys(split), queries.get(), states);
        };
        if let Some(at) = task.parts {
            // SAFETY: each task has a place of its own.
            return of_split(task.splits.start, unsafe { shared.run(at, pairs * part) });
        }
        let (mut states, mut more) = (Scratch::new(cx.memory, pairs * part), Scratch::new(cx.memory, pairs * part));
        of_split(0, states.slice());
        for split in 1..task.splits.end {
            of_split(split, more.slice());
            let first = (split * SPLIT).saturating_sub(position).min(task.rows.len()) * group * part;
            join::<A>(part, &more.get()[first..], &mut states.slice()[first..]);
        }
        for (pair, state) in states.get().chunks_exact(part).enumerate() {
            put(s.rows.start + task.rows.start + pair / group, task.kv * group + pair % group, state);
        }
    };
    let elements: usize = sequences.iter().map(|s| s.rows.len() * (s.past + s.rows.len()) * q * dim).sum();
    if elements < MANY {
        (0..tasks.len()).for_each(work)
    } else {
        cx.pool.run(tasks.len(), work)
    }

    // What splits of their own gave, in order.
    for group_of_tasks in tasks.chunk_by(|a, b| (a.sequence, a.kv, a.rows.start) == (b.sequence, b.kv, b.rows.start)) {
        let (task, Some(at)) = (&group_of_tasks[0], group_of_tasks[0].parts) else { continue };
        let s = &sequences[task.sequence];
        let size = task.rows.len() * group * part;
        let (states, rest) = parts.slice()[at..at + group_of_tasks.len() * size].split_at_mut(size);
        for (split, more) in (1..).zip(rest.chunks_exact(size)) {
            let first = (split * SPLIT).saturating_sub(s.past + task.rows.start).min(task.rows.len()) * group * part;
            join::<A>(part, &more[first..], &mut states[first..]);
        }
        for (pair, state) in states.chunks_exact(part).enumerate() {
            put(s.rows.start + task.rows.start + pair / group, task.kv * group + pair % group, state);
        }
    }
}

/// New keys, transposed, and values to their pages.
fn store<A: Number, T: Cached<Real = <A as Stored>::Real>>(
    cx: Context<A>,
    heads: Heads,
    sequences: &[Paged],
    qkv: &[A],
    (k, v): (Scattered<T>, Scattered<T>),
) {
    let Heads { q, kv, dim } = heads;
    let one = |i: usize| {
        let (s, h) = (&sequences[i / kv], i % kv);
        for (i, row) in qkv.chunks_exact(heads.width()).skip(s.rows.start).take(s.rows.len()).enumerate() {
            let (page, slot) = (s.pages[(s.past + i) / PAGE] as usize, (s.past + i) % PAGE);
            let run = PAGE * (dim + T::SCALE);
            let at = (page * kv + h) * run;
            let (key, value) = (&row[(q + h) * dim..][..dim], &row[(q + kv + h) * dim..][..dim]);
            // SAFETY: a sequence's pages are its own where it writes, and each of its heads is one task's.
            let (k, v) = unsafe { (k.run(at, run), v.run(at, run)) };
            let ((k, k_scales), (v, v_scales)) = (k.split_at_mut(PAGE * dim), v.split_at_mut(PAGE * dim));
            let factor = T::put_scale(key.iter().map(|x| x.widen()), &mut k_scales[slot * T::SCALE..]);
            k[slot..].iter_mut().step_by(PAGE).zip(key).for_each(|(y, &x)| *y = T::narrow(x.widen() * factor));
            let factor = T::put_scale(value.iter().map(|x| x.widen()), &mut v_scales[slot * T::SCALE..]);
            v[slot * dim..].iter_mut().zip(value).for_each(|(y, &x)| *y = T::narrow(x.widen() * factor));
        }
    };
    let (tasks, elements) = (sequences.len() * kv, sequences.iter().map(|s| s.rows.len()).sum::<usize>() * kv * dim);
    if elements < MANY { (0..tasks).for_each(one) } else { cx.pool.run(tasks, one) }
}

/// A pair's state is `[maximum, sum, outputs]`: the largest of its scores so far (with all scales), and the sums of
/// exponentials of the scores less that, alone and times the values.
fn begin<R: Real>(states: &mut [R], part: usize) {
    states.fill(R::ZERO);
    states.iter_mut().step_by(part).for_each(|top| *top = R::NEG_INFINITY);
}

fn finish<A: Number>(state: &[A::Real], out: &mut [A]) {
    let factor = A::Real::ONE / state[1];
    out.iter_mut().zip(&state[2..]).for_each(|(y, &x)| *y = A::narrow(x * factor));
}

versions! {
    /// Adds the states of later keys.
    fn join<A: Number; S>(part: usize, later: &[A::Real], states: &mut [A::Real]) {
        for (state, later) in states.chunks_exact_mut(part).zip(later.chunks_exact(part)) {
            let top = larger(state[0], later[0]);
            let (a, b) = (A::exp2::<S>(state[0] - top), A::exp2::<S>(later[0] - top));
            state[0] = top;
            state[1..].iter_mut().zip(&later[1..]).for_each(|(x, &y)| *x = S::fma(*x, a, y * b));
        }
    }

    /// Takes some keys into the states of consecutive rows, the first of which stands at `position`.
    fn attend<A: Number, T: CachedAs<A>; S>(
        cache: Cache<'_, T>,
        group: usize,
        position: usize,
        keys: Range<usize>,
        queries: &[A::Real],
        states: &mut [A::Real],
    ) {
        let pairs = queries.len() / cache.dim;
        let mut at = keys.start;
        while at < keys.end {
            let keys = at..(at + KEYS).min(keys.end);
            // Rows before `at` see none of these keys.
            let mut pair = at.saturating_sub(position) * group;
            while pair < pairs {
                let positions = |i: usize| position + (pair + i) / group;
                let left = pairs - pair;
                let (q, s) = (&queries[pair * cache.dim..], &mut states[pair * (cache.dim + 2)..]);
                pair += if left >= 4 {
                    tile::<A, T, S, 4>(cache, keys.clone(), std::array::from_fn(positions), q, s)
                } else if left >= 2 {
                    tile::<A, T, S, 2>(cache, keys.clone(), std::array::from_fn(positions), q, s)
                } else {
                    tile::<A, T, S, 1>(cache, keys.clone(), std::array::from_fn(positions), q, s)
                };
            }
            at = keys.end;
        }
    }
}

/// `Cached<Real = A::Real>`, as one word.
trait CachedAs<A: Number>: Cached<Real = <A as Stored>::Real> {}
impl<A: Number, T: Cached<Real = <A as Stored>::Real>> CachedAs<A> for T {}

/// At most [`KEYS`] keys for `N` pairs, all of which see the first; the answer is `N`.
#[inline(always)]
fn tile<A: Number, T: CachedAs<A>, S: Isa, const N: usize>(
    cache: Cache<T>,
    keys: Range<usize>,
    positions: [usize; N],
    queries: &[A::Real],
    states: &mut [A::Real],
) -> usize {
    let (dim, part) = (cache.dim, cache.dim + 2);
    let seen = positions.map(|p| (p + 1).min(keys.end) - keys.start);
    let mut scores = [[A::Real::NEG_INFINITY; KEYS]; N];
    let (first, count) = (keys.start / PAGE, seen[N - 1].div_ceil(PAGE));
    if count == KEYS / PAGE {
        products::<A, T, S, N, { KEYS / PAGE }>(cache, first, queries, &mut scores, 0);
    } else {
        // A loop, since a closure would be compiled by itself, for the baseline.
        for i in 0..count {
            products::<A, T, S, N, 1>(cache, first + i, queries, &mut scores, i * PAGE);
        }
    }
    if T::SCALE > 0 {
        let scales = cache.scales(cache.k, first, count);
        for row in scores.iter_mut() {
            row.iter_mut().zip(&scales).for_each(|(x, &scale)| *x *= scale);
        }
    }
    for ((scores, &seen), state) in scores.iter_mut().zip(&seen).zip(states.chunks_exact_mut(part)) {
        scores[seen..].fill(A::Real::NEG_INFINITY);
        let old = state[0];
        let top = larger(old, max(&scores[..]));
        scores.iter_mut().for_each(|x| *x = A::exp2::<S>(*x - top));
        let factor = A::exp2::<S>(old - top);
        state[0] = top;
        state[1] = S::fma(state[1], factor, sum(&scores[..]));
        if factor != A::Real::ONE {
            state[2..].iter_mut().for_each(|x| *x *= factor);
        }
    }
    if T::SCALE > 0 {
        let scales = cache.scales(cache.v, first, count);
        for (row, &seen) in scores.iter_mut().zip(&seen) {
            row[..seen].iter_mut().zip(&scales).for_each(|(x, &scale)| *x *= scale);
        }
    }
    let mut column = 0;
    while column + 4 * PAGE <= dim {
        values::<A, T, S, N, 4>(cache, keys.start, column, &seen, &scores, states);
        column += 4 * PAGE;
    }
    while column + PAGE <= dim {
        values::<A, T, S, N, 1>(cache, keys.start, column, &seen, &scores, states);
        column += PAGE;
    }
    last_values::<A, T, S, N>(cache, keys.start, column, &seen, &scores, states);
    N
}

/// Products of `N` queries with the keys of `P` pages from page `first` on.
#[inline(always)]
fn products<A: Number, T: CachedAs<A>, S: Isa, const N: usize, const P: usize>(
    cache: Cache<T>,
    first: usize,
    queries: &[A::Real],
    scores: &mut [[A::Real; KEYS]; N],
    at: usize,
) {
    for row in scores.iter_mut() {
        row[at..at + P * PAGE].fill(A::Real::ZERO);
    }
    let tile = Tile {
        steps: cache.dim,
        a: std::array::from_fn(|i| queries[i * cache.dim..][..cache.dim].as_ptr()),
        b: std::array::from_fn::<_, P, _>(|p| cache.page(cache.k, first + p).as_ptr()),
        step: PAGE,
        c: scores.each_mut().map(|row| row[at..][..P * PAGE].as_mut_ptr()),
    };
    // SAFETY: queries and pages have `dim` steps, rows of scores `P` pages of lanes, and all are borrowed.
    unsafe { T::multiply::<S, N, P>(tile) }
}

/// Adds `V` vectors of columns of the values from key `first` on, each times its probability.
#[inline(always)]
fn values<A: Number, T: CachedAs<A>, S: Isa, const N: usize, const V: usize>(
    cache: Cache<T>,
    first: usize,
    column: usize,
    seen: &[usize; N],
    scores: &[[A::Real; KEYS]; N],
    states: &mut [A::Real],
) {
    let part = cache.dim + 2;
    // What all see, then what only the later ones do: a value behind a row's position must not touch it, even times 0.
    let mut key = 0;
    while key < seen[0] {
        let steps = (seen[0] - key).min(PAGE);
        let rows = &cache.page(cache.v, (first + key) / PAGE)[column..(steps - 1) * cache.dim + column + V * PAGE];
        let tile = Tile {
            steps,
            a: std::array::from_fn(|i| scores[i][key..key + steps].as_ptr()),
            b: std::array::from_fn::<_, V, _>(|v| rows[v * PAGE..].as_ptr()),
            step: cache.dim,
            c: std::array::from_fn(|i| states[i * part + 2 + column..][..V * PAGE].as_mut_ptr()),
        };
        // SAFETY: so many steps of scores and values are there, and rows of states do not overlap.
        unsafe { T::multiply::<S, N, V>(tile) };
        key += steps;
    }
    for i in 1..N {
        for (key, &p) in scores[i].iter().enumerate().take(seen[i]).skip(seen[0]) {
            let value = &cache.value(first + key)[column..][..V * PAGE];
            let sums = &mut states[i * part + 2 + column..][..V * PAGE];
            for (sum, v) in sums.iter_mut().zip(value) {
                *sum = S::fma(p, v.widen(), *sum);
            }
        }
    }
}

/// The columns from `column` on, fewer than a vector.
#[inline(always)]
fn last_values<A: Number, T: CachedAs<A>, S: Isa, const N: usize>(
    cache: Cache<T>,
    first: usize,
    column: usize,
    seen: &[usize; N],
    scores: &[[A::Real; KEYS]; N],
    states: &mut [A::Real],
) {
    for i in 0..N {
        let sums = &mut states[i * (cache.dim + 2) + 2 + column..][..cache.dim - column];
        for (key, &p) in scores[i].iter().enumerate().take(seen[i]) {
            for (sum, v) in sums.iter_mut().zip(&cache.value(first + key)[column..]) {
                *sum = S::fma(p, v.widen(), *sum);
            }
        }
    }
}
