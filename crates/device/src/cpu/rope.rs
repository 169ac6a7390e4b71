//! Rotary positions (Su et al. 2021) in Hugging Face's half-split layout: column `i` turns with column `i + R/2`.
//! The rotation is orthogonal, so its inverse is its gradient.

use super::bands::{bands, piece};
use super::{Pool, Real};
use crate::Heads;

/// Rotates the first `r` columns of every query and key head of every row by its position.
pub(crate) fn rope<R: Real>(
    pool: &Pool,
    heads: Heads,
    r: usize,
    table: &[R],
    positions: &[u32],
    inverse: bool,
    qkv: &mut [R],
) {
    let (width, dim, half) = (heads.width(), heads.dim, r / 2);
    if half == 0 {
        return;
    }
    let sign = if inverse { -R::ONE } else { R::ONE };
    bands(pool, positions.len(), piece(width), (qkv,), |at, (qkv,)| {
        for (&p, row) in positions[at].iter().zip(qkv.chunks_exact_mut(width)) {
            let (cos, sin) = table[p as usize * r..][..r].split_at(half);
            for head in row[..(heads.q + heads.kv) * dim].chunks_exact_mut(dim) {
                let (a, b) = head[..r].split_at_mut(half);
                for i in 0..half {
                    let (x, y, c, s) = (a[i], b[i], cos[i], sign * sin[i]);
                    a[i] = x * c - y * s;
                    b[i] = y * c + x * s;
                }
            }
        }
    });
}
