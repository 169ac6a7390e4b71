//! Causal attention within packed segments, with grouped keys and values.

use super::bands::bands;
use super::real::dot;
use super::{Pool, Real};
use crate::Heads;

/// First row of the segment of every row.
fn starts(segments: &[u32]) -> Vec<usize> {
    segments.windows(2).flat_map(|s| std::iter::repeat_n(s[0] as usize, (s[1] - s[0]) as usize)).collect()
}

/// One past the last row of the segment of every row.
fn ends(segments: &[u32]) -> Vec<usize> {
    segments.windows(2).flat_map(|s| std::iter::repeat_n(s[1] as usize, (s[1] - s[0]) as usize)).collect()
}

/// `out = softmax(scale·q·kᵀ)·v` and the log of the softmax's denominator.
pub(crate) fn attention<R: Real>(
    pool: &Pool,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    qkv: &[R],
    out: &mut [R],
    lse: &mut [R],
) {
    let start = starts(segments);
    let (width, dim, group) = (heads.width(), heads.dim, heads.q / heads.kv);
    bands(pool, start.len(), 4, (out, lse), |at, (out, lse)| {
        let mut p = Vec::new();
        for (i, t) in at.enumerate() {
            for h in 0..heads.q {
                let q = &qkv[t * width + h * dim..][..dim];
                let k = |j: usize| &qkv[j * width + (heads.q + h / group) * dim..][..dim];
                let v = |j: usize| &qkv[j * width + (heads.q + heads.kv + h / group) * dim..][..dim];
                let out = &mut out[(i * heads.q + h) * dim..][..dim];
                lse[i * heads.q + h] = one_query(R::of(scale), q, start[t]..t + 1, k, v, &mut p, out);
            }
        }
    });
}

/// One query against some rows of keys and values; returns the log of the denominator.
fn one_query<'a, R: Real>(
    scale: R,
    q: &[R],
    rows: std::ops::Range<usize>,
    k: impl Fn(usize) -> &'a [R],
    v: impl Fn(usize) -> &'a [R],
    p: &mut Vec<R>,
    out: &mut [R],
) -> R {
    p.clear();
    p.extend(rows.clone().map(|j| scale * dot(q, k(j))));
    let max = p.iter().fold(R::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    p.iter_mut().for_each(|p| *p = (*p - max).exp());
    let total = super::real::sum(p.len(), |i| p[i]);
    out.fill(R::ZERO);
    for (j, &p) in rows.zip(&*p) {
        let p = p / total;
        out.iter_mut().zip(v(j)).for_each(|(o, &v)| *o += p * v);
    }
    max + total.ln()
}

/// Gradient of [`attention`].
pub(crate) fn attention_backward<R: Real>(
    pool: &Pool,
    heads: Heads,
    scale: f64,
    segments: &[u32],
    (qkv, out, lse): (&[R], &[R], &[R]),
    dout: &[R],
    dqkv: &mut [R],
) {
    let (start, end) = (starts(segments), ends(segments));
    let (width, dim, group) = (heads.width(), heads.dim, heads.q / heads.kv);
    let scale = R::of(scale);
    let q = |t: usize, h: usize| &qkv[t * width + h * dim..][..dim];
    let k = |t: usize, h: usize| &qkv[t * width + (heads.q + h / group) * dim..][..dim];
    let v = |t: usize, h: usize| &qkv[t * width + (heads.q + heads.kv + h / group) * dim..][..dim];
    let o = |t: usize, h: usize| &out[(t * heads.q + h) * dim..][..dim];
    let d_o = |t: usize, h: usize| &dout[(t * heads.q + h) * dim..][..dim];
    // Probability of query i for key j, and the gradient of its score.
    let pair = |i: usize, j: usize, h: usize| {
        let p = (scale * dot(q(i, h), k(j, h)) - lse[i * heads.q + h]).exp();
        (p, p * (dot(d_o(i, h), v(j, h)) - dot(d_o(i, h), o(i, h))) * scale)
    };
    bands(pool, start.len(), 4, (dqkv,), |at, (dqkv,)| {
        for (t, d) in at.zip(dqkv.chunks_exact_mut(width)) {
            d.fill(R::ZERO);
            for h in 0..heads.q {
                for j in start[t]..t + 1 {
                    let (_, ds) = pair(t, j, h);
                    d[h * dim..][..dim].iter_mut().zip(k(j, h)).for_each(|(d, &k)| *d += ds * k);
                }
                for i in t..end[t] {
                    let (p, ds) = pair(i, t, h);
                    let dk = &mut d[(heads.q + h / group) * dim..][..dim];
                    dk.iter_mut().zip(q(i, h)).for_each(|(d, &q)| *d += ds * q);
                    let dv = &mut d[(heads.q + heads.kv + h / group) * dim..][..dim];
                    dv.iter_mut().zip(d_o(i, h)).for_each(|(d, &o)| *d += p * o);
                }
            }
        }
    });
}

/// Attention of one sequence against caches that hold its past.
pub(crate) fn attention_cached<R: Real>(
    pool: &Pool,
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
    let (k_cache, v_cache) = (&*k_cache, &*v_cache);
    let n = qkv.len() / width;
    bands(pool, n * heads.q, 1, (out,), |at, (out,)| {
        let mut p = Vec::new();
        for (r, out) in at.zip(out.chunks_exact_mut(dim)) {
            let (i, h) = (r / heads.q, r % heads.q);
            let q = &qkv[i * width + h * dim..][..dim];
            let k = |j: usize| &k_cache[j * kv + h / group * dim..][..dim];
            let v = |j: usize| &v_cache[j * kv + h / group * dim..][..dim];
            one_query(R::of(scale), q, 0..past + i + 1, k, v, &mut p, out);
        }
    });
}
