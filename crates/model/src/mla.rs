//! Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1), for reading and writing.
//!
//! All that later tokens need of a token is one short vector, its latent c, and a few rotated columns r that every head's
//! key ends in. Head h has the key `[U_h·c | r]` and the value `V_h·c`: the rows of `kv_b_proj` are U₀, V₀, U₁, V₁, …
//!
//! That can be computed in two ways. A whole text makes keys and values of all heads and goes the way of grouped-query
//! attention. Decoding would have to make them again of every token in the cache, or to keep them; but
//! `q·(U_h·c) = (U_hᵀ·q)·c`, so each head's query is taken to the latents instead, and V_h is applied to what comes back.
//! In between lies multi-query attention: H query heads, one key `[r | c]`, one value c, and a cache that holds nothing
//! else, whatever the number of heads. Both ways use the device's kernels as they are. These want a head's rotated columns
//! first, keys and values in one tensor, and all heads of one width: `Mosaic` lays the pieces in that order.
//!
//! The cache holds a row twice, as the device's kernels like keys and as they like values: for DeepSeek-V3 2·576 numbers a
//! token and layer, where keys and values would be 40 960.
//!
//! All of it goes row by row, so a token's bits depend on its own sequence alone.

use crate::cache::LayerCache;
use crate::config::{Config, MlaConfig};
use crate::layer::Cx;
use crate::mlp::ADD_NT;
use crate::rope::RopeScaling;
use crate::store::{DownIds, LatentIds};
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{DType, Device, Gemm, Heads, Operand, Paged, Rotation, Tensor, View, ViewMut};

/// Epsilon of the latents' norms, whatever that of the others is: transformers and DeepSeek's own code fix it.
pub(crate) const LATENT_EPS: f64 = 1e-6;

pub(crate) struct Mla<D: Device> {
    /// H.
    heads: usize,
    /// rank: width of the latent of keys and values.
    rank: usize,
    /// N: columns of a query or key that are not rotated.
    nope: usize,
    /// R: those that are.
    rope: usize,
    /// V: width of a value.
    value: usize,
    /// Which columns of the weights' R come first, second, … for the kernel, which turns column i with column i + R/2.
    turned: Vec<usize>,
    scale: f64,
    /// Cosines and sines `[positions, R]`.
    table: Arc<Tensor<D>>,
    ids: LatentIds,
}

/// What a token's heads are made of.
struct Made<D: Device> {
    /// `[T, H·(N + R)]`, as projected.
    q: Tensor<D>,
    /// Columns to be rotated, in the kernel's order: of queries `[T·H, R]`, of the key `[T, R]`.
    q_rope: Tensor<D>,
    k_rope: Tensor<D>,
    /// `[T, rank]`, normed.
    latent: Tensor<D>,
}

impl<D: Device> Mla<D> {
    pub fn new(config: &Config, sizes: MlaConfig, table: Arc<Tensor<D>>, ids: LatentIds) -> Self {
        let MlaConfig { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, rope_interleave, .. } = sizes;
        let half = qk_rope_head_dim / 2;
        let turned = |i: usize| if rope_interleave { i % half * 2 + i / half } else { i };
        let factor = config.rope_scaling.as_ref().map_or(1.0, RopeScaling::latent_factor);
        Mla {
            heads: config.num_attention_heads,
            rank: kv_lora_rank,
            nope: qk_nope_head_dim,
            rope: qk_rope_head_dim,
            value: v_head_dim,
            turned: (0..qk_rope_head_dim).map(turned).collect(),
            scale: factor / ((qk_nope_head_dim + qk_rope_head_dim) as f64).sqrt(),
            table,
            ids,
        }
    }

    /// A projection to a latent, the first `rank` of its columns normed; and the projection itself, in the type of statistics.
    fn down(&self, cx: &Cx<D>, ids: DownIds, rank: usize, x_td: View<D>) -> (Tensor<D>, Tensor<D>) {
        let (dev, t, statistics) = (cx.device, x_td.shape()[0], D::statistics(x_td.dtype()));
        let weight = cx.weights.operand(ids.weight);
        let mut all = Tensor::new(dev, [t, weight.shape()[0]], statistics);
        dev.gemm(Gemm::NT, x_td, weight, all.view_mut());
        if let Some(b) = ids.bias {
            dev.add_bias(cx.weights.at(b), all.view_mut());
        }
        let width = all.shape()[1];
        let first = Mosaic::of(dev, [all.view()], gcd(&[rank, width]), statistics)
            .lay([t, rank], |m| (0..t).for_each(|i| m.put(0, i * width, rank)));
        let (mut normed, mut rstd) = (Tensor::new(dev, [t, rank], x_td.dtype()), Tensor::new(dev, [t, 1], statistics));
        dev.rms_norm(LATENT_EPS, first.view(), cx.weights.at(ids.norm), normed.view_mut(), rstd.view_mut());
        (normed, all)
    }

    fn make(&self, cx: &Cx<D>, x_td: View<D>) -> Made<D> {
        let (dev, t, dtype) = (cx.device, x_td.shape()[0], x_td.dtype());
        let Mla { heads, rank, nope, rope, ids, .. } = *self;
        let weight = cx.weights.operand(ids.q);
        let mut q = Tensor::new(dev, [t, heads * (nope + rope)], dtype);
        match ids.q_down {
            None => dev.gemm(Gemm::NT, x_td, weight, q.view_mut()),
            Some(down) => {
                let (latent, _) = self.down(cx, down, weight.shape()[1], x_td);
                dev.gemm(Gemm::NT, latent.view(), weight, q.view_mut());
            }
        }
        let (latent, all) = self.down(cx, ids.kv_down, rank, x_td);
        let q_rope = self.turned_columns(dev, q.view(), nope, dtype);
        let k_rope = self.turned_columns(dev, all.view(), rank, dtype);
        Made { q, q_rope, k_rope, latent }
    }

    /// Of rows `before + R` wide, the last R columns in the kernel's order.
    fn turned_columns(&self, dev: &D, x: View<D>, before: usize, dtype: DType) -> Tensor<D> {
        let width = before + self.rope;
        let rows = x.len() / width;
        let single = Mosaic::of(dev, [x], 1, dtype);
        single.lay([rows, self.rope], |m| {
            for row in 0..rows {
                self.turned.iter().for_each(|column| m.put(0, row * width + before + column, 1));
            }
        })
    }

    /// A whole text: keys and values of all heads, each head as wide as the wider of the two.
    pub fn forward(&self, cx: &Cx<D>, x_td: View<D>, acc_y: ViewMut<D>) {
        let (dev, t, dtype) = (cx.device, x_td.shape()[0], x_td.dtype());
        let Mla { heads: h, nope, rope, value, .. } = *self;
        let made = self.make(cx, x_td);
        let mut kv = Tensor::new(dev, [t, h * (nope + value)], dtype);
        dev.gemm(Gemm::NT, made.latent.view(), cx.weights.operand(self.ids.kv), kv.view_mut());
        let heads = Heads { q: h, kv: h, dim: (nope + rope).max(value) };
        let zeros = Tensor::zeros(dev, [1, heads.dim], dtype);
        let [q_rope, q, k_rope, keys_values, none] = [0, 1, 2, 3, 4];
        let sources = [made.q_rope.view(), made.q.view(), made.k_rope.view(), kv.view(), zeros.view()];
        let pieces = Mosaic::of(dev, sources, gcd(&[nope, rope, value, heads.dim]), dtype);
        let mut qkv = pieces.lay([t, heads.width()], |m| {
            for i in 0..t {
                for head in i * h..(i + 1) * h {
                    m.put(q_rope, head * rope, rope);
                    m.put(q, head * (nope + rope), nope);
                    m.put(none, 0, heads.dim - nope - rope);
                }
                for head in i * h..(i + 1) * h {
                    m.put(k_rope, i * rope, rope);
                    m.put(keys_values, head * (nope + value), nope);
                    m.put(none, 0, heads.dim - nope - rope);
                }
                for head in i * h..(i + 1) * h {
                    m.put(keys_values, head * (nope + value) + nope, value);
                    m.put(none, 0, heads.dim - value);
                }
            }
        });
        drop((made, kv));
        let by = Rotation { heads, table: self.table.view(), positions: &cx.packing.positions };
        dev.rope(&by, false, qkv.view_mut());
        let mut out = Tensor::new(dev, [t, h * heads.dim], dtype);
        let mut lse = Tensor::new(dev, [t, h], D::statistics(dtype));
        dev.attention(heads, self.scale, &cx.packing.segments, qkv.view(), out.view_mut(), lse.view_mut());
        drop(qkv);
        let out = Mosaic::of(dev, [out.view()], gcd(&[value, heads.dim]), dtype)
            .lay([t, h * value], |m| (0..t * h).for_each(|head| m.put(0, head * heads.dim, value)));
        self.project_out(cx, out.view(), acc_y);
    }

    /// Decoding of one sequence: see [`crate::attention::Attention::forward_cached`].
    pub fn forward_cached(&self, cx: &Cx<D>, cache: &mut LayerCache<D>, past: usize, x_td: View<D>, acc_y: ViewMut<D>) {
        self.over_latents(cx, x_td, acc_y, |heads, qkv, out| {
            let (k, v) = (cache.k.view_mut(), cache.v.view_mut());
            cx.device.attention_cached(heads, self.scale, past, qkv, k, v, out);
        });
    }

    /// Decoding of many: see [`crate::attention::Attention::forward_paged`].
    pub fn forward_paged(
        &self,
        cx: &Cx<D>,
        cache: &mut LayerCache<D>,
        sequences: &[Paged],
        x_td: View<D>,
        acc_y: ViewMut<D>,
    ) {
        self.over_latents(cx, x_td, acc_y, |heads, qkv, out| {
            let (k, v) = (cache.k.view_mut(), cache.v.view_mut());
            cx.device.attention_paged(heads, self.scale, sequences, qkv, k, v, out);
        });
    }

    /// Queries taken to the latents, attention over those, and values of what comes back.
    fn over_latents(
        &self,
        cx: &Cx<D>,
        x_td: View<D>,
        acc_y: ViewMut<D>,
        attend: impl FnOnce(Heads, View<D>, ViewMut<D>),
    ) {
        let (dev, t, dtype) = (cx.device, x_td.shape()[0], x_td.dtype());
        let Mla { heads: h, rank, nope, rope, value, .. } = *self;
        let made = self.make(cx, x_td);
        // One head after another, each of all tokens: a product a head.
        let bands: Vec<Range<usize>> = (0..h).map(|head| head * t..(head + 1) * t).collect();
        let by_head = Mosaic::of(dev, [made.q.view()], gcd(&[nope, rope]), dtype).lay([h * t, nope], |m| {
            for head in 0..h {
                (0..t).for_each(|i| m.put(0, (i * h + head) * (nope + rope), nope));
            }
        });
        let mut q_latent = Tensor::new(dev, [h * t, rank], dtype);
        let (keys, values) = self.keys_and_values(cx);
        dev.gemm_bands(Gemm::NN, &bands, by_head.view(), &keys, q_latent.view_mut());

        let heads = Heads { q: h, kv: 1, dim: rope + rank };
        let [q_rope, q, k_rope, latent] = [0, 1, 2, 3];
        let sources = [made.q_rope.view(), q_latent.view(), made.k_rope.view(), made.latent.view()];
        let pieces = Mosaic::of(dev, sources, gcd(&[rope, rank]), dtype);
        let mut qkv = pieces.lay([t, heads.width()], |m| {
            for i in 0..t {
                for head in 0..h {
                    m.put(q_rope, (i * h + head) * rope, rope);
                    m.put(q, (head * t + i) * rank, rank);
                }
                // The key; and the value, whose first columns nobody will read.
                for _ in 0..2 {
                    m.put(k_rope, i * rope, rope);
                    m.put(latent, i * rank, rank);
                }
            }
        });
        drop((made, q_latent));
        let by = Rotation { heads, table: self.table.view(), positions: &cx.packing.positions };
        dev.rope(&by, false, qkv.view_mut());
        let mut out = Tensor::new(dev, [t, h * heads.dim], dtype);
        attend(heads, qkv.view(), out.view_mut());
        drop(qkv);

        let by_head = Mosaic::of(dev, [out.view()], gcd(&[rope, rank]), dtype).lay([h * t, rank], |m| {
            for head in 0..h {
                (0..t).for_each(|i| m.put(0, (i * h + head) * heads.dim + rope, rank));
            }
        });
        let mut out = Tensor::new(dev, [h * t, value], dtype);
        dev.gemm_bands(Gemm::NT, &bands, by_head.view(), &values, out.view_mut());
        let out = Mosaic::of(dev, [out.view()], value, dtype).lay([t, h * value], |m| {
            for i in 0..t {
                (0..h).for_each(|head| m.put(0, (head * t + i) * value, value));
            }
        });
        self.project_out(cx, out.view(), acc_y);
    }

    /// U_h `[N, rank]` and V_h `[V, rank]` of every head.
    fn keys_and_values<'a>(&self, cx: &Cx<'a, D>) -> (Vec<Operand<'a, D>>, Vec<Operand<'a, D>>) {
        let all = cx.weights.at(self.ids.kv);
        let heads = (0..self.heads).map(|h| h * (self.nope + self.value));
        let rows = |from: usize, n: usize| Operand::Plain(all.rows(from..from + n));
        heads.map(|at| (rows(at, self.nope), rows(at + self.nope, self.value))).unzip()
    }

    fn project_out(&self, cx: &Cx<D>, out: View<D>, mut acc_y: ViewMut<D>) {
        cx.device.gemm(ADD_NT, out, cx.weights.operand(self.ids.o), acc_y.reborrow());
        if let Some(b) = self.ids.o_bias {
            cx.device.add_bias(cx.weights.at(b), acc_y);
        }
    }
}

/// Tensors in pieces of one width, to be laid in another order: a gather.
struct Mosaic<'a, D: Device> {
    device: &'a D,
    /// Columns of a piece.
    width: usize,
    /// All pieces `[pieces, width]`.
    all: Source<'a, D>,
    dtype: DType,
    /// The first piece of every source.
    first: Vec<usize>,
    index: Vec<u32>,
}

enum Source<'a, D: Device> {
    One(View<'a, D>),
    Many(Tensor<D>),
}

impl<'a, D: Device> Mosaic<'a, D> {
    /// Pieces of `width` elements of the sources, each as it lies in memory; what is laid is of `dtype`, and so are the
    /// sources, if there are several.
    fn of<const N: usize>(device: &'a D, sources: [View<'a, D>; N], width: usize, dtype: DType) -> Self {
        let mut total = 0;
        let first = sources.iter().map(|x| {
            total += x.len() / width;
            total - x.len() / width
        });
        let first: Vec<usize> = first.collect();
        let all = match sources[..] {
            [one] => Source::One(one.reshape([total, width])),
            _ => {
                let mut all = Tensor::new(device, [total, width], dtype);
                for (x, &at) in sources.iter().zip(&first) {
                    let rows = x.len() / width;
                    device.copy(x.reshape([rows, width]), all.view_mut().rows(at..at + rows));
                }
                Source::Many(all)
            }
        };
        Mosaic { device, width, all, dtype, first, index: vec![] }
    }

    /// The next `n` elements: those of a source from element `at` on. Both are multiples of the width.
    fn put(&mut self, source: usize, at: usize, n: usize) {
        debug_assert!(at.is_multiple_of(self.width) && n.is_multiple_of(self.width), "{n} elements from {at} on");
        let at = self.first[source] + at / self.width;
        let number = |piece| u32::try_from(piece).expect("a pass of fewer than 2^32 pieces");
        self.index.extend((at..at + n / self.width).map(number));
    }

    /// What `order` puts, one piece after another.
    fn lay(mut self, shape: [usize; 2], order: impl FnOnce(&mut Self)) -> Tensor<D> {
        self.index.reserve(shape[0] * shape[1] / self.width);
        order(&mut self);
        let mut y = Tensor::new(self.device, shape, self.dtype);
        let all = match &self.all {
            Source::One(x) => *x,
            Source::Many(x) => x.view(),
        };
        self.device.gather(&self.index, all, y.view_mut().reshape([self.index.len(), self.width]));
        y
    }
}

/// The widest piece that all of these are multiples of; one of them is not 0.
fn gcd(numbers: &[usize]) -> usize {
    numbers.iter().fold(0, |mut a, &b| {
        let mut b = b;
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    })
}

#[cfg(test)]
mod tests;
