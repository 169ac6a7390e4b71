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
//! `[kv, PAGE, dim]`. A head's part of a page is one run of memory, read once for all query heads that share it. What is
//! not here: the matrix instructions that the forward pass of training uses; a prompt's attention runs on plain vectors.

use super::number::Number;
use super::{Context, Scratch, pieces};
use crate::cpu::bands::Scattered;
use crate::cpu::real::{Real, Stored};
use crate::cpu::simd::{Isa, larger, max, sum, versions};
use crate::{Heads, PAGE, Paged};
use std::f64::consts::LOG2_E;
use std::ops::Range;

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

impl<'a, T> Cache<'a, T> {
    #[inline(always)]
    fn page(&self, of: &'a [T], page: usize) -> &'a [T] {
        &of[self.pages[page] as usize * self.pitch + self.column..][..PAGE * self.dim]
    }
    #[inline(always)]
    fn value(&self, key: usize) -> &'a [T] {
        &self.page(self.v, key / PAGE)[key % PAGE * self.dim..][..self.dim]
    }
}

/// Writes the new keys and values to their pages, then attends. Shapes have been checked, and that no page is written by
/// two sequences.
pub(crate) fn attention_paged<A: Number, T: Stored<Real = <A as Stored>::Real>>(
    cx: Context<A>,
    heads: Heads,
    scale: f64,
    sequences: &[Paged],
    qkv: &[A],
    (k, v): (&mut [T], &mut [T]),
    out: &mut [A],
) {
    let Heads { q, kv, dim } = heads;
    let (group, part, pitch) = (q / kv, dim + 2, kv * PAGE * dim);
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
    let run = |i: usize| {
        let task = &tasks[i];
        let s = &sequences[task.sequence];
        let pairs = task.rows.len() * group;
        let mut queries = Scratch::new(cx.memory, pairs * dim);
        for (pair, query) in queries.slice().chunks_exact_mut(dim).enumerate() {
            let row = s.rows.start + task.rows.start + pair / group;
            let at = row * heads.width() + (task.kv * group + pair % group) * dim;
            query.iter_mut().zip(&qkv[at..]).for_each(|(y, &x)| *y = Stored::widen(x) * A::Real::of(scale * LOG2_E));
        }
        let cache = Cache { k, v, pages: s.pages, dim, pitch, column: task.kv * PAGE * dim };
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
        (0..tasks.len()).for_each(run)
    } else {
        cx.pool.run(tasks.len(), run)
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
fn store<A: Number, T: Stored<Real = <A as Stored>::Real>>(
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
            let at = (page * kv + h) * PAGE * dim;
            let (key, value) = (&row[(q + h) * dim..][..dim], &row[(q + kv + h) * dim..][..dim]);
            // SAFETY: a sequence's pages are its own where it writes, and each of its heads is one task's.
            let (k, v) = unsafe { (k.run(at, PAGE * dim), v.run(at + slot * dim, dim)) };
            k[slot..].iter_mut().step_by(PAGE).zip(key).for_each(|(y, &x)| *y = T::narrow(x.widen()));
            v.iter_mut().zip(value).for_each(|(y, &x)| *y = T::narrow(x.widen()));
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
    fn attend<A: Number, T: StoredAs<A>; S>(
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

/// `Stored<Real = A::Real>`, as one word.
trait StoredAs<A: Number>: Stored<Real = <A as Stored>::Real> {}
impl<A: Number, T: Stored<Real = <A as Stored>::Real>> StoredAs<A> for T {}

/// At most [`KEYS`] keys for `N` pairs, all of which see the first; the answer is `N`.
#[inline(always)]
fn tile<A: Number, T: StoredAs<A>, S: Isa, const N: usize>(
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
        (0..count).for_each(|i| products::<A, T, S, N, 1>(cache, first + i, queries, &mut scores, i * PAGE));
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
    let mut column = 0;
    while column < dim {
        column += match dim - column {
            64.. => values::<A, T, S, N, 64>(cache, keys.start, column, &seen, &scores, states),
            16.. => values::<A, T, S, N, 16>(cache, keys.start, column, &seen, &scores, states),
            _ => values::<A, T, S, N, 1>(cache, keys.start, column, &seen, &scores, states),
        };
    }
    N
}

/// Products of `N` queries with the keys of `P` pages from page `first` on.
#[inline(always)]
fn products<A: Number, T: StoredAs<A>, S: Isa, const N: usize, const P: usize>(
    cache: Cache<T>,
    first: usize,
    queries: &[A::Real],
    scores: &mut [[A::Real; KEYS]; N],
    at: usize,
) {
    let dim = cache.dim;
    let pages: [&[[T; PAGE]]; P] = std::array::from_fn(|p| cache.page(cache.k, first + p).as_chunks().0);
    let queries: [&[A::Real]; N] = std::array::from_fn(|i| &queries[i * dim..(i + 1) * dim]);
    let mut sums = [[[A::Real::ZERO; PAGE]; P]; N];
    for c in 0..dim {
        for p in 0..P {
            let key: [A::Real; PAGE] = pages[p][c].map(T::widen);
            for i in 0..N {
                let query = queries[i][c];
                for l in 0..PAGE {
                    sums[i][p][l] = S::fma(query, key[l], sums[i][p][l]);
                }
            }
        }
    }
    for i in 0..N {
        for p in 0..P {
            scores[i][at + p * PAGE..][..PAGE].copy_from_slice(&sums[i][p]);
        }
    }
}

/// Adds `W` columns of the values from key `first` on, each times its probability; the answer is `W`.
#[inline(always)]
fn values<A: Number, T: StoredAs<A>, S: Isa, const N: usize, const W: usize>(
    cache: Cache<T>,
    first: usize,
    column: usize,
    seen: &[usize; N],
    scores: &[[A::Real; KEYS]; N],
    states: &mut [A::Real],
) -> usize {
    let part = cache.dim + 2;
    let value = |key: usize| -> [A::Real; W] {
        let row = &cache.value(first + key)[column..column + W];
        std::array::from_fn(|l| row[l].widen())
    };
    let mut sums: [[A::Real; W]; N] =
        std::array::from_fn(|i| std::array::from_fn(|l| states[i * part + 2 + column + l]));
    // What all see, then what only the later ones do: a value behind a row's position must not touch it, even times 0.
    for key in 0..seen[0] {
        let v = value(key);
        for i in 0..N {
            for l in 0..W {
                sums[i][l] = S::fma(scores[i][key], v[l], sums[i][l]);
            }
        }
    }
    for i in 1..N {
        for key in seen[0]..seen[i] {
            let v = value(key);
            for l in 0..W {
                sums[i][l] = S::fma(scores[i][key], v[l], sums[i][l]);
            }
        }
    }
    for i in 0..N {
        states[i * part + 2 + column..][..W].copy_from_slice(&sums[i]);
    }
    W
}
