//! One layer of the network, the only place where layers are composed:
//! `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
//!
//! [`Recompute`] wraps any layer: forward keeps the input alone, backward runs forward again (Chen et al. 2016).

use crate::attention::{Attention, AttentionSaved};
use crate::cache::LayerCache;
use crate::config::Config;
use crate::gate::Gate;
use crate::layer::{Branch, Cx, Layer, Narrow};
use crate::mla::Mla;
use crate::mlp::{Hidden, Mlp};
use crate::model::{Options, Recomputation};
use crate::moe::{Moe, MoeSaved};
use crate::norm::Norm;
use crate::store::{AttentionIds, BlockIds, FeedForwardIds, Store};
use std::sync::Arc;
use wudao_device::{Device, Fault, Paged, Tensor, View, ViewMut};

/// The two kinds of attention. The latent one has no backward pass: [`crate::Model`] refuses to train it.
pub(crate) enum AnyAttention<D: Device> {
    Grouped(Attention<D>),
    Latent(Mla<D>),
}

impl<D: Device> Branch<D> for AnyAttention<D> {
    type Saved = Option<AttentionSaved<D>>;

    fn forward(&self, cx: &mut Cx<D>, x: View<D>, acc_y: ViewMut<D>) -> Result<Self::Saved, Fault> {
        match self {
            AnyAttention::Grouped(l) => l.forward(cx, x, acc_y),
            AnyAttention::Latent(l) => {
                l.forward(cx, x, acc_y);
                Ok(None)
            }
        }
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        g: &mut Store<D>,
        x: View<D>,
        saved: Self::Saved,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        match self {
            AnyAttention::Grouped(l) => l.backward(cx, g, x, saved, dy),
            AnyAttention::Latent(_) => Err(Fault("latent attention has no backward pass".into())),
        }
    }
}

impl<D: Device> AnyAttention<D> {
    fn forward_cached(&self, cx: &Cx<D>, cache: &mut LayerCache<D>, past: usize, x: View<D>, acc_y: ViewMut<D>) {
        match self {
            AnyAttention::Grouped(l) => l.forward_cached(cx, cache, past, x, acc_y),
            AnyAttention::Latent(l) => l.forward_cached(cx, cache, past, x, acc_y),
        }
    }

    fn forward_paged(&self, cx: &Cx<D>, cache: &mut LayerCache<D>, of: &[Paged], x: View<D>, acc_y: ViewMut<D>) {
        match self {
            AnyAttention::Grouped(l) => l.forward_paged(cx, cache, of, x, acc_y),
            AnyAttention::Latent(l) => l.forward_paged(cx, cache, of, x, acc_y),
        }
    }
}

pub(crate) enum FeedForward {
    Dense(Mlp),
    Sparse(Moe),
}

pub(crate) enum FeedForwardSaved<D: Device> {
    Dense(Hidden<D>),
    Sparse(Box<MoeSaved<D>>),
}

impl<D: Device> Branch<D> for FeedForward {
    type Saved = FeedForwardSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x: View<D>, acc_y: ViewMut<D>) -> Result<Self::Saved, Fault> {
        Ok(match self {
            FeedForward::Dense(l) => FeedForwardSaved::Dense(l.forward(cx, x, acc_y)?),
            FeedForward::Sparse(l) => FeedForwardSaved::Sparse(Box::new(l.forward(cx, x, acc_y)?)),
        })
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        g: &mut Store<D>,
        x: View<D>,
        saved: Self::Saved,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        match (self, saved) {
            (FeedForward::Dense(l), FeedForwardSaved::Dense(s)) => l.backward(cx, g, x, s, dy),
            (FeedForward::Sparse(l), FeedForwardSaved::Sparse(s)) => l.backward(cx, g, x, *s, dy),
            _ => unreachable!("a layer gets back what it saved"),
        }
    }
}

pub(crate) struct Block<D: Device> {
    pub norm1: Norm,
    pub attention: AnyAttention<D>,
    pub norm2: Norm,
    pub feed_forward: FeedForward,
}

pub(crate) struct BlockSaved<D: Device> {
    /// The stream as each norm saw it, and the norm's statistics.
    x1: Tensor<D>,
    rstd1: Tensor<D>,
    attention: Option<AttentionSaved<D>>,
    x2: Tensor<D>,
    rstd2: Tensor<D>,
    feed_forward: FeedForwardSaved<D>,
}

impl<D: Device> Block<D> {
    pub fn new(config: &Config, layer: usize, ids: &BlockIds, rope: Arc<Tensor<D>>, options: &Options) -> Self {
        let norm = |gain| Norm { gain, eps: config.rms_norm_eps, operands: options.dtype };
        let feed_forward = match (&ids.feed_forward, config.moe_at(layer)) {
            (&FeedForwardIds::Sparse { router, correction, experts, shared, shared_gate }, Some(m)) => {
                FeedForward::Sparse(Moe {
                    routing: m.routing(),
                    experts: m.num_experts,
                    width: m.moe_intermediate_size,
                    layer: experts,
                    router,
                    correction,
                    shared: shared.map(|ids| Mlp { ids }),
                    shared_gate: shared_gate.map(|weight| Gate { weight }),
                })
            }
            (&FeedForwardIds::Dense(ids), None) => FeedForward::Dense(Mlp { ids }),
            _ => unreachable!("the layout was made from this configuration"),
        };
        let attention = match (ids.attention, config.mla) {
            (AttentionIds::Grouped(ids), None) => {
                let again = options.recompute == Recomputation::Attention;
                AnyAttention::Grouped(Attention::new(config, rope, ids, again))
            }
            (AttentionIds::Latent(ids), Some(sizes)) => AnyAttention::Latent(Mla::new(config, sizes, rope, ids)),
            _ => unreachable!("the layout was made from this configuration"),
        };
        Block { norm1: norm(ids.norm1), attention, norm2: norm(ids.norm2), feed_forward }
    }

    /// Decoding: as forward, over a cache, saving nothing.
    pub fn forward_cached(
        &self,
        cx: &mut Cx<D>,
        cache: &mut LayerCache<D>,
        past: usize,
        mut x: Tensor<D>,
    ) -> Result<Tensor<D>, Fault> {
        let (n, _) = self.norm1.forward(cx, x.view());
        self.attention.forward_cached(cx, cache, past, n.view(), x.view_mut());
        let (n, _) = self.norm2.forward(cx, x.view());
        self.feed_forward.forward(cx, n.view(), x.view_mut())?;
        Ok(x)
    }

    /// As [`Block::forward_cached`], of many sequences over pages.
    pub fn forward_paged(
        &self,
        cx: &mut Cx<D>,
        cache: &mut LayerCache<D>,
        sequences: &[Paged],
        mut x: Tensor<D>,
    ) -> Result<Tensor<D>, Fault> {
        let (n, _) = self.norm1.forward(cx, x.view());
        self.attention.forward_paged(cx, cache, sequences, n.view(), x.view_mut());
        let (n, _) = self.norm2.forward(cx, x.view());
        self.feed_forward.forward(cx, n.view(), x.view_mut())?;
        Ok(x)
    }
}

impl<D: Device> Layer<D> for Block<D> {
    type Saved = BlockSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x: Tensor<D>) -> Result<(Tensor<D>, BlockSaved<D>), Fault> {
        let x1 = x;
        let (n, rstd1) = self.norm1.forward(cx, x1.view());
        let mut x2 = Tensor::copy_of(cx.device, x1.view());
        let attention = self.attention.forward(cx, n.view(), x2.view_mut())?;
        let (n, rstd2) = self.norm2.forward(cx, x2.view());
        let mut y = Tensor::copy_of(cx.device, x2.view());
        let feed_forward = self.feed_forward.forward(cx, n.view(), y.view_mut())?;
        Ok((y, BlockSaved { x1, rstd1, attention, x2, rstd2, feed_forward }))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        g: &mut Store<D>,
        saved: BlockSaved<D>,
        dy: Tensor<D>,
    ) -> Result<Tensor<D>, Fault> {
        let BlockSaved { x1, rstd1, attention, x2, rstd2, feed_forward } = saved;
        let mut dx = dy;
        branch_backward(cx, g, &self.norm2, &self.feed_forward, feed_forward, (x2, rstd2), &mut dx)?;
        branch_backward(cx, g, &self.norm1, &self.attention, attention, (x1, rstd1), &mut dx)?;
        Ok(dx)
    }
}

/// `y = x + branch(norm(x))`: the stream's gradient by y becomes that by x.
fn branch_backward<D: Device, B: Branch<D>>(
    cx: &mut Cx<D>,
    g: &mut Store<D>,
    norm: &Norm,
    branch: &B,
    saved: B::Saved,
    (x, rstd): (Tensor<D>, Tensor<D>),
    stream: &mut Tensor<D>,
) -> Result<(), Fault> {
    let dn = {
        let (n, _) = norm.forward(cx, x.view());
        let dy = Narrow::of(cx.device, stream.view(), norm.operands);
        branch.backward(cx, g, n.view(), saved, dy.view())?
    };
    norm.backward(cx, g, x.view(), rstd.view(), dn.view(), stream.view_mut());
    Ok(())
}

/// A layer that may keep its input alone and run forward again when backward needs it.
pub(crate) struct Recompute<L> {
    pub layer: L,
    pub on: bool,
}

pub(crate) enum Kept<D: Device, S> {
    All(S),
    Input(Tensor<D>),
}

impl<D: Device, L: Layer<D>> Layer<D> for Recompute<L> {
    type Saved = Kept<D, L::Saved>;

    fn forward(&self, cx: &mut Cx<D>, x: Tensor<D>) -> Result<(Tensor<D>, Self::Saved), Fault> {
        if !self.on {
            return self.layer.forward(cx, x).map(|(y, saved)| (y, Kept::All(saved)));
        }
        let input = Tensor::copy_of(cx.device, x.view());
        let (y, _) = self.layer.forward(cx, x)?;
        Ok((y, Kept::Input(input)))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        g: &mut Store<D>,
        saved: Self::Saved,
        dy: Tensor<D>,
    ) -> Result<Tensor<D>, Fault> {
        let saved = match saved {
            Kept::All(saved) => saved,
            Kept::Input(x) => {
                cx.again = true;
                let again = self.layer.forward(cx, x);
                cx.again = false;
                again?.1
            }
        };
        self.layer.backward(cx, g, saved, dy)
    }
}
