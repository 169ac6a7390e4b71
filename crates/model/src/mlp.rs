//! The dense feed-forward layer: `down · (silu(gate·x) ⊙ up·x)` (Shazeer 2020).

use crate::layer::{Branch, Cx};
use crate::store::{MlpIds, Store};
use wudao_device::{Device, Fault, Gemm, Tensor, View, ViewMut};

pub(crate) struct Mlp {
    pub ids: MlpIds,
}

/// Gate and up, `[T, 2F]`. The activation is made again from them in backward.
pub(crate) struct Hidden<D: Device>(Tensor<D>);

/// `C += A·B`.
pub(crate) const ADD_NN: Gemm = Gemm { accumulate: true, ..Gemm::NN };
/// `C += A·Bᵀ`.
pub(crate) const ADD_NT: Gemm = Gemm { accumulate: true, ..Gemm::NT };

impl Mlp {
    /// `weight` `[T, 1]`, or 1 for all, multiplies each token's answer.
    pub fn answer<D: Device>(
        &self,
        cx: &Cx<D>,
        x_td: View<D>,
        weight: Option<View<D>>,
        acc_y: ViewMut<D>,
    ) -> Hidden<D> {
        let (dev, t) = (cx.device, x_td.shape()[0]);
        let (w_gate_up, w_down) = (cx.weights.operand(self.ids.gate_up), cx.weights.operand(self.ids.down));
        let f = w_down.shape()[1];
        let mut gate_up = Tensor::new(dev, [t, 2 * f], x_td.dtype());
        dev.gemm(Gemm::NT, x_td, w_gate_up, gate_up.view_mut());
        let mut act = Tensor::new(dev, [t, f], x_td.dtype());
        dev.swiglu(gate_up.view(), weight, act.view_mut());
        dev.gemm(ADD_NT, act.view(), w_down, acc_y);
        Hidden(gate_up)
    }

    /// The gradient by gate and up, of which the gradient by `x` is one product more: with [`Gemm::NN`] or [`ADD_NN`]
    /// and the matrix `gate_up`. `weight` is forward's, with the place of its own gradient.
    pub fn gradient<D: Device>(
        &self,
        cx: &Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        Hidden(mut gate_up): Hidden<D>,
        weight: Option<(View<D>, ViewMut<D>)>,
        dy: View<D>,
    ) -> Tensor<D> {
        let dev = cx.device;
        let w_down = cx.weights.operand(self.ids.down);
        let mut act = Tensor::new(dev, [dy.shape()[0], w_down.shape()[1]], gate_up.dtype());
        dev.gemm(Gemm::NN, dy, w_down, act.view_mut());
        // In place: the activation's gradient becomes the activation, and gate and up their gradients.
        let (weight, dweight) = weight.unzip();
        dev.swiglu_backward(weight, gate_up.view_mut(), act.view_mut(), dweight);
        grads.add(dev, Gemm::TN, self.ids.down, dy, act.view());
        drop(act);
        grads.add(dev, Gemm::TN, self.ids.gate_up, gate_up.view(), x_td);
        gate_up
    }
}

impl<D: Device> Branch<D> for Mlp {
    type Saved = Hidden<D>;

    fn forward(&self, cx: &mut Cx<D>, x_td: View<D>, acc_y: ViewMut<D>) -> Result<Hidden<D>, Fault> {
        Ok(self.answer(cx, x_td, None, acc_y))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        saved: Hidden<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let mut dx = Tensor::new(cx.device, x_td.shape(), x_td.dtype());
        let dgate_up = self.gradient(cx, grads, x_td, saved, None, dy);
        cx.device.gemm(Gemm::NN, dgate_up.view(), cx.weights.operand(self.ids.gate_up), dx.view_mut());
        Ok(dx)
    }
}
