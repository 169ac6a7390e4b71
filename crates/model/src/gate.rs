//! The gate of a shared expert: how much of its answer a token takes, `sigmoid(w·x)` (Qwen2-MoE: Yang et al. 2024,
//! "Qwen2 technical report").
//!
//! That is a sigmoid router with one expert to choose from, so the device's routing kernels compute it and its gradient,
//! and the weight goes where routed experts have theirs: into the activation.

use crate::layer::Cx;
use crate::mlp::ADD_NN;
use crate::store::{ParamId, Store};
use wudao_device::{DType, Device, Gemm, Routing, Score, Tensor, View, ViewMut};

const ROUTING: Routing =
    Routing { top_k: 1, score: Score::Sigmoid, renormalize: false, scale: 1.0, groups: 1, top_groups: 1 };

pub(crate) struct Gate {
    /// `[1, D]`.
    pub weight: ParamId,
}

pub(crate) struct Gated<D: Device> {
    scores_t: Tensor<D>,
    choice_t: Tensor<D>,
    stats_t2: Tensor<D>,
    weight_t: Tensor<D>,
}

impl<D: Device> Gated<D> {
    /// What each token takes `[T, 1]`.
    pub fn weight(&self) -> View<'_, D> {
        self.weight_t.view()
    }
}

impl Gate {
    pub fn forward<D: Device>(&self, cx: &Cx<D>, x_td: View<D>) -> Gated<D> {
        let (dev, t, statistics) = (cx.device, x_td.shape()[0], D::statistics(x_td.dtype()));
        let exact = |cols| Tensor::new(dev, [t, cols], statistics);
        let (mut logit_t, mut scores_t, mut weight_t, mut stats_t2) = (exact(1), exact(1), exact(1), exact(2));
        let mut choice_t = Tensor::new(dev, [t, 1], DType::U32);
        dev.gemm(Gemm::NT.exactly(), x_td, cx.weights.exact(self.weight), logit_t.view_mut());
        let (s, c, w) = (scores_t.view_mut(), choice_t.view_mut(), weight_t.view_mut());
        dev.route(&ROUTING, logit_t.view(), None, s, c, w, stats_t2.view_mut());
        Gated { scores_t, choice_t, stats_t2, weight_t }
    }

    /// From the gradient by the weights `[T, 1]`; adds the gradient by `x` to `acc_dx`.
    pub fn backward<D: Device>(
        &self,
        cx: &Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        gated: Gated<D>,
        dweight_t: View<D>,
        acc_dx: ViewMut<D>,
    ) {
        let (dev, Gated { scores_t, choice_t, stats_t2, weight_t }) = (cx.device, gated);
        let mut dlogit_t = Tensor::new(dev, scores_t.shape(), scores_t.dtype());
        let (s, c, w, st) = (scores_t.view(), choice_t.view(), weight_t.view(), stats_t2.view());
        dev.route_backward(&ROUTING, &[], 0.0, s, c, w, st, dweight_t, dlogit_t.view_mut());
        grads.add(dev, Gemm::TN.exactly(), self.weight, dlogit_t.view(), x_td);
        dev.gemm(ADD_NN, dlogit_t.view(), cx.weights.exact(self.weight), acc_dx);
    }
}
