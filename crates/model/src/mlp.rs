//! The dense feed-forward layer: `down · (silu(gate·x) ⊙ up·x)` (Shazeer 2020).

use crate::layer::{Cx, Layer};
use crate::store::{MlpIds, Store};
use wudao_device::{Device, Fault, Gemm, Tensor, View};

pub(crate) struct Mlp {
    pub ids: MlpIds,
}

/// The two hidden states; the input is the caller's to keep.
pub(crate) struct Hidden<D: Device> {
    gate_up: Tensor<D>,
    act: Tensor<D>,
}

pub(crate) struct MlpSaved<D: Device> {
    x_td: Tensor<D>,
    hidden: Hidden<D>,
}

impl Mlp {
    /// The forward pass over an input that stays with the caller (the router of a sparse layer reads it too).
    pub fn forward_from<D: Device>(&self, cx: &Cx<D>, x_td: View<D>) -> (Tensor<D>, Hidden<D>) {
        let (dev, [t, d]) = (cx.device, x_td.shape());
        let (w_gate_up, w_down) = (cx.weights.at(self.ids.gate_up), cx.weights.at(self.ids.down));
        let f = w_down.shape()[1];
        let mut gate_up = Tensor::new(dev, [t, 2 * f], x_td.dtype());
        dev.gemm(Gemm::NT, x_td, w_gate_up, gate_up.view_mut());
        let mut act = Tensor::new(dev, [t, f], x_td.dtype());
        dev.swiglu(gate_up.view(), act.view_mut());
        let mut y_td = Tensor::new(dev, [t, d], x_td.dtype());
        dev.gemm(Gemm::NT, act.view(), w_down, y_td.view_mut());
        (y_td, Hidden { gate_up, act })
    }

    /// The backward pass for [`Mlp::forward_from`].
    pub fn backward_to<D: Device>(
        &self,
        cx: &Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        hidden: Hidden<D>,
        dy: View<D>,
    ) -> Tensor<D> {
        let dev = cx.device;
        let (w_gate_up, w_down) = (cx.weights.at(self.ids.gate_up), cx.weights.at(self.ids.down));
        let Hidden { gate_up, act } = hidden;
        dev.gemm(Gemm::TN_ACC, dy, act.view(), grads.at_mut(self.ids.down));
        // The activation is spent: its memory takes its own gradient.
        let mut dact = act;
        dev.gemm(Gemm::NN, dy, w_down, dact.view_mut());
        let mut dgate_up = Tensor::new(dev, gate_up.shape(), gate_up.dtype());
        dev.swiglu_backward(gate_up.view(), dact.view(), dgate_up.view_mut());
        drop((gate_up, dact));
        dev.gemm(Gemm::TN_ACC, dgate_up.view(), x_td, grads.at_mut(self.ids.gate_up));
        let mut dx = Tensor::new(dev, x_td.shape(), x_td.dtype());
        dev.gemm(Gemm::NN, dgate_up.view(), w_gate_up, dx.view_mut());
        dx
    }
}

impl<D: Device> Layer<D> for Mlp {
    type Saved = MlpSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x_td: Tensor<D>) -> Result<(Tensor<D>, MlpSaved<D>), Fault> {
        let (y_td, hidden) = self.forward_from(cx, x_td.view());
        Ok((y_td, MlpSaved { x_td, hidden }))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        saved: MlpSaved<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        Ok(self.backward_to(cx, grads, saved.x_td.view(), saved.hidden, dy))
    }
}
