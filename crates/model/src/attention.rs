//! Grouped-query attention (Ainslie et al. 2023) with rotary positions, optional QK norm and biases.
//!
//! Query, key and value projections are one GEMM into one fused tensor `[T, (H + 2G)·C]`; every kernel after it knows
//! the fused layout. The rotation is orthogonal (times a number, with
//! yarn), so its backward pass is its transpose, the rotation back (times that number), and saves nothing.

use crate::cache::LayerCache;
use crate::config::Config;
use crate::layer::{Branch, Cx};
use crate::mlp::ADD_NT;
use crate::store::{GroupedIds, ParamId, Store};
use std::sync::Arc;
use wudao_device::{Device, Fault, Gemm, Heads, Paged, Rotation, Tensor, View, ViewMut};

pub(crate) struct Attention<D: Device> {
    heads: Heads,
    /// Heads as the QK norm sees them.
    normed: Heads,
    eps: f64,
    /// Cosines and sines `[max_position_embeddings, rotary_dim]`.
    rope: Arc<Tensor<D>>,
    qkv: ParamId,
    qkv_bias: Option<ParamId>,
    qk_norm: Option<(ParamId, ParamId)>,
    o: ParamId,
    o_bias: Option<ParamId>,
    /// Keep nothing for backward but the normed input, and run all but the last projection again there.
    recompute: bool,
}

/// The projection before QK norm, with the norm's statistics.
type BeforeNorm<D> = (Tensor<D>, Tensor<D>);

/// What attention met.
struct Attended<D: Device> {
    /// What it saw: normed and rotated.
    qkv: Tensor<D>,
    before: Option<BeforeNorm<D>>,
    out: Tensor<D>,
    lse: Tensor<D>,
}

pub(crate) struct AttentionSaved<D: Device> {
    /// The projection: before QK norm where there is one, which with the rotation costs less to make again than to keep (a
    /// pass over memory in each direction), else rotated.
    qkv: Tensor<D>,
    out: Tensor<D>,
    lse: Tensor<D>,
}

impl<D: Device> Attended<D> {
    fn keep(self) -> AttentionSaved<D> {
        let Attended { qkv, before, out, lse } = self;
        AttentionSaved { qkv: before.map_or(qkv, |(before, _)| before), out, lse }
    }
}

impl<D: Device> Attention<D> {
    pub fn new(config: &Config, rope: Arc<Tensor<D>>, ids: GroupedIds, recompute: bool) -> Self {
        let GroupedIds { qkv, qkv_bias, qk_norm, o, o_bias } = ids;
        let (heads, normed, eps) = (config.heads(), config.normed_heads(), config.rms_norm_eps);
        Attention { heads, normed, eps, rope, qkv, qkv_bias, qk_norm, o, o_bias, recompute }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.heads.dim as f64).sqrt()
    }

    fn rotation<'a>(&'a self, cx: &Cx<'a, D>) -> Rotation<'a, D> {
        Rotation { heads: self.heads, table: self.rope.view(), positions: &cx.packing.positions }
    }

    /// Projection, QK norm, rotation: the fused tensor as attention wants it, and what the norm's backward needs.
    fn project(&self, cx: &Cx<D>, x_td: View<D>) -> (Tensor<D>, Option<BeforeNorm<D>>) {
        let (dev, t, dtype) = (cx.device, x_td.shape()[0], x_td.dtype());
        let mut qkv = Tensor::new(dev, [t, self.heads.width()], dtype);
        dev.gemm(Gemm::NT, x_td, cx.weights.operand(self.qkv), qkv.view_mut());
        if let Some(b) = self.qkv_bias {
            dev.add_bias(row(cx.weights.at(b)), qkv.view_mut());
        }
        self.turn(cx, qkv)
    }

    /// QK norm and rotation of the projection.
    fn turn(&self, cx: &Cx<D>, mut qkv: Tensor<D>) -> (Tensor<D>, Option<BeforeNorm<D>>) {
        let (dev, t, dtype) = (cx.device, qkv.shape()[0], qkv.dtype());
        let by = self.rotation(cx);
        if let Some((wq, wk)) = self.qk_norm {
            let mut y = Tensor::new(dev, qkv.shape(), dtype);
            let mut rstd = Tensor::new(dev, [t, self.normed.q + self.normed.kv], D::statistics(dtype));
            let (wq, wk) = (cx.weights.at(wq), cx.weights.at(wk));
            dev.qk_norm(self.normed, self.eps, qkv.view(), wq, wk, &by, y.view_mut(), rstd.view_mut());
            (y, Some((qkv, rstd)))
        } else {
            dev.rope(&by, false, qkv.view_mut());
            (qkv, None)
        }
    }

    fn attend(&self, cx: &Cx<D>, x_td: View<D>) -> Attended<D> {
        let (dev, h, t) = (cx.device, self.heads, x_td.shape()[0]);
        let (qkv, before) = self.project(cx, x_td);
        let mut out = Tensor::new(dev, [t, h.q * h.dim], x_td.dtype());
        let mut lse = Tensor::new(dev, [t, h.q], D::statistics(x_td.dtype()));
        dev.attention(h, self.scale(), &cx.packing.segments, qkv.view(), out.view_mut(), lse.view_mut());
        Attended { qkv, before, out, lse }
    }

    /// What attention met, from what was kept of it.
    fn again(&self, cx: &Cx<D>, AttentionSaved { qkv, out, lse }: AttentionSaved<D>) -> Attended<D> {
        let (qkv, before) = if self.qk_norm.is_some() { self.turn(cx, qkv) } else { (qkv, None) };
        Attended { qkv, before, out, lse }
    }

    fn project_out(&self, cx: &Cx<D>, out: View<D>, mut acc_y: ViewMut<D>) {
        cx.device.gemm(ADD_NT, out, cx.weights.operand(self.o), acc_y.reborrow());
        if let Some(b) = self.o_bias {
            cx.device.add_bias(cx.weights.at(b), acc_y);
        }
    }

    /// Decoding: the batch is one sequence's next tokens; keys and values go to its cache.
    pub fn forward_cached(&self, cx: &Cx<D>, cache: &mut LayerCache<D>, past: usize, x_td: View<D>, acc_y: ViewMut<D>) {
        let (qkv, _) = self.project(cx, x_td);
        let mut out = Tensor::new(cx.device, [x_td.shape()[0], self.heads.q * self.heads.dim], x_td.dtype());
        let (k, v) = (cache.k.view_mut(), cache.v.view_mut());
        cx.device.attention_cached(self.heads, self.scale(), past, qkv.view(), k, v, out.view_mut());
        self.project_out(cx, out.view(), acc_y);
    }

    /// Decoding: the batch is many sequences' next tokens; keys and values go to their pages.
    pub fn forward_paged(
        &self,
        cx: &Cx<D>,
        cache: &mut LayerCache<D>,
        sequences: &[Paged],
        x_td: View<D>,
        acc_y: ViewMut<D>,
    ) {
        let (qkv, _) = self.project(cx, x_td);
        let mut out = Tensor::new(cx.device, [x_td.shape()[0], self.heads.q * self.heads.dim], x_td.dtype());
        let (k, v) = (cache.k.view_mut(), cache.v.view_mut());
        cx.device.attention_paged(self.heads, self.scale(), sequences, qkv.view(), k, v, out.view_mut());
        self.project_out(cx, out.view(), acc_y);
    }
}

/// A stacked bias is stored as a column; kernels want a row.
fn row<D: Device>(b: View<D>) -> View<D> {
    let n = b.len();
    b.reshape([1, n])
}

impl<D: Device> Branch<D> for Attention<D> {
    /// Nothing where it is made again.
    type Saved = Option<AttentionSaved<D>>;

    fn forward(&self, cx: &mut Cx<D>, x_td: View<D>, acc_y: ViewMut<D>) -> Result<Self::Saved, Fault> {
        let attended = self.attend(cx, x_td);
        self.project_out(cx, attended.out.view(), acc_y);
        Ok((!self.recompute).then(|| attended.keep()))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        saved: Self::Saved,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let (dev, h) = (cx.device, self.heads);
        let attended = saved.map_or_else(|| self.attend(cx, x_td), |saved| self.again(cx, saved));
        let Attended { qkv, before, out, lse } = attended;
        if let Some(b) = self.o_bias {
            dev.add_bias_backward(dy, grads.at_mut(b));
        }
        grads.add(dev, Gemm::TN, self.o, dy, out.view());
        let mut dout = Tensor::new(dev, out.shape(), out.dtype());
        dev.gemm(Gemm::NN, dy, cx.weights.operand(self.o), dout.view_mut());
        let mut dqkv = Tensor::new(dev, qkv.shape(), qkv.dtype());
        let segments = &cx.packing.segments;
        let (q, o, l, d) = (qkv.view(), out.view(), lse.view(), dout.view());
        dev.attention_backward(h, self.scale(), segments, q, o, l, d, dqkv.view_mut());
        drop((out, lse, dout));
        let by = self.rotation(cx);
        if let (Some((x, rstd)), Some((wq, wk))) = (before, self.qk_norm) {
            // The rotated projection is spent: its memory takes the gradient before the norm.
            let mut dx = qkv;
            let (mut dwq, mut dwk) = (zeros_like(dev, cx.weights.at(wq)), zeros_like(dev, cx.weights.at(wk)));
            let (gq, gk) = (cx.weights.at(wq), cx.weights.at(wk));
            let (dq, dk) = (dwq.view_mut(), dwk.view_mut());
            let (r, dy) = (rstd.view(), dqkv.view());
            dev.qk_norm_backward(self.normed, x.view(), gq, gk, r, &by, dy, dx.view_mut(), dq, dk);
            dev.axpby(1.0, dwq.view(), 1.0, grads.at_mut(wq));
            dev.axpby(1.0, dwk.view(), 1.0, grads.at_mut(wk));
            dqkv = dx;
        } else {
            dev.rope(&by, true, dqkv.view_mut());
        }
        if let Some(b) = self.qkv_bias {
            let db = grads.at_mut(b);
            let n = db.len();
            dev.add_bias_backward(dqkv.view(), db.reshape([1, n]));
        }
        grads.add(dev, Gemm::TN, self.qkv, dqkv.view(), x_td);
        let mut dx = Tensor::new(dev, x_td.shape(), x_td.dtype());
        dev.gemm(Gemm::NN, dqkv.view(), cx.weights.operand(self.qkv), dx.view_mut());
        Ok(dx)
    }
}

fn zeros_like<D: Device>(dev: &D, x: View<D>) -> Tensor<D> {
    Tensor::zeros(dev, x.shape(), x.dtype())
}
