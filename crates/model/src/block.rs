//! One layer of the network, the only place where layers are composed:
//! `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
//!
//! [`Recompute`] wraps any layer: forward keeps the input alone, backward runs forward again (Chen et al. 2016).

use crate::attention::{Attention, AttentionSaved};
use crate::cache::LayerCache;
use crate::config::Config;
use crate::layer::{Cx, Layer};
use crate::mlp::{Mlp, MlpSaved};
use crate::moe::{Moe, MoeSaved};
use crate::norm::{Norm, NormSaved};
use crate::store::{BlockIds, FeedForwardIds, Store};
use std::sync::Arc;
use wudao_device::{Device, Fault, Tensor, View};

pub(crate) enum FeedForward {
    Dense(Mlp),
    Sparse(Moe),
}

pub(crate) enum FeedForwardSaved<D: Device> {
    Dense(MlpSaved<D>),
    Sparse(Box<MoeSaved<D>>),
}

impl<D: Device> Layer<D> for FeedForward {
    type Saved = FeedForwardSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x: Tensor<D>) -> Result<(Tensor<D>, Self::Saved), Fault> {
        Ok(match self {
            FeedForward::Dense(l) => l.forward(cx, x).map(|(y, s)| (y, FeedForwardSaved::Dense(s)))?,
            FeedForward::Sparse(l) => l.forward(cx, x).map(|(y, s)| (y, FeedForwardSaved::Sparse(Box::new(s))))?,
        })
    }

    fn backward(&self, cx: &mut Cx<D>, g: &mut Store<D>, saved: Self::Saved, dy: View<D>) -> Result<Tensor<D>, Fault> {
        match (self, saved) {
            (FeedForward::Dense(l), FeedForwardSaved::Dense(s)) => l.backward(cx, g, s, dy),
            (FeedForward::Sparse(l), FeedForwardSaved::Sparse(s)) => l.backward(cx, g, *s, dy),
            _ => unreachable!("a layer gets back what it saved"),
        }
    }
}

pub(crate) struct Block<D: Device> {
    pub norm1: Norm,
    pub attention: Attention<D>,
    pub norm2: Norm,
    pub feed_forward: FeedForward,
}

pub(crate) struct BlockSaved<D: Device> {
    norm1: NormSaved<D>,
    attention: AttentionSaved<D>,
    norm2: NormSaved<D>,
    feed_forward: FeedForwardSaved<D>,
}

impl<D: Device> Block<D> {
    pub fn new(config: &Config, layer: usize, ids: &BlockIds, rope: Arc<Tensor<D>>) -> Self {
        let eps = config.rms_norm_eps;
        let feed_forward = match (&ids.feed_forward, config.moe_at(layer)) {
            (&FeedForwardIds::Sparse { router, correction, experts, shared }, Some(m)) => FeedForward::Sparse(Moe {
                routing: m.routing(),
                experts: m.num_experts,
                layer: experts,
                router,
                correction,
                shared: shared.map(|ids| Mlp { ids }),
            }),
            (&FeedForwardIds::Dense(ids), None) => FeedForward::Dense(Mlp { ids }),
            _ => unreachable!("the layout was made from this configuration"),
        };
        Block {
            norm1: Norm { gain: ids.norm1, eps },
            attention: Attention::new(config.heads(), eps, rope, ids),
            norm2: Norm { gain: ids.norm2, eps },
            feed_forward,
        }
    }

    /// Decoding: as forward, over a cache, saving nothing.
    pub fn forward_cached(
        &self,
        cx: &mut Cx<D>,
        cache: &mut LayerCache<D>,
        past: usize,
        x: Tensor<D>,
    ) -> Result<Tensor<D>, Fault> {
        let (n, saved) = self.norm1.forward(cx, x)?;
        let mut y = self.attention.forward_cached(cx, cache, past, n.view());
        cx.device.axpby(1.0, saved.x_td.view(), 1.0, y.view_mut());
        let (n, saved) = self.norm2.forward(cx, y)?;
        let (mut y, _) = self.feed_forward.forward(cx, n)?;
        cx.device.axpby(1.0, saved.x_td.view(), 1.0, y.view_mut());
        Ok(y)
    }
}

impl<D: Device> Layer<D> for Block<D> {
    type Saved = BlockSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x: Tensor<D>) -> Result<(Tensor<D>, BlockSaved<D>), Fault> {
        let (n, norm1) = self.norm1.forward(cx, x)?;
        let (mut y, attention) = self.attention.forward(cx, n)?;
        cx.device.axpby(1.0, norm1.x_td.view(), 1.0, y.view_mut());
        let (n, norm2) = self.norm2.forward(cx, y)?;
        let (mut y, feed_forward) = self.feed_forward.forward(cx, n)?;
        cx.device.axpby(1.0, norm2.x_td.view(), 1.0, y.view_mut());
        Ok((y, BlockSaved { norm1, attention, norm2, feed_forward }))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        g: &mut Store<D>,
        saved: BlockSaved<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let BlockSaved { norm1, attention, norm2, feed_forward } = saved;
        let d = self.feed_forward.backward(cx, g, feed_forward, dy)?;
        let mut d = self.norm2.backward(cx, g, norm2, d.view())?;
        cx.device.axpby(1.0, dy, 1.0, d.view_mut());
        let dy = d;
        let d = self.attention.backward(cx, g, attention, dy.view())?;
        let mut d = self.norm1.backward(cx, g, norm1, d.view())?;
        cx.device.axpby(1.0, dy.view(), 1.0, d.view_mut());
        Ok(d)
    }
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

    fn backward(&self, cx: &mut Cx<D>, g: &mut Store<D>, saved: Self::Saved, dy: View<D>) -> Result<Tensor<D>, Fault> {
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
