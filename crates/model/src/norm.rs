//! RMS norm (Zhang & Sennrich 2019), from the residual stream to operands.

use crate::layer::Cx;
use crate::store::{ParamId, Store};
use wudao_device::{DType, Device, Tensor, View, ViewMut};

pub(crate) struct Norm {
    pub gain: ParamId,
    pub eps: f64,
    /// Type of the answer.
    pub operands: DType,
}

impl Norm {
    /// The normed rows, and one over the root mean square of each. Backward runs it again rather than keep the rows: a
    /// pass over them costs less than memory.
    pub fn forward<D: Device>(&self, cx: &Cx<D>, x_td: View<D>) -> (Tensor<D>, Tensor<D>) {
        let mut y_td = Tensor::new(cx.device, x_td.shape(), self.operands);
        let mut rstd_t = Tensor::new(cx.device, [x_td.shape()[0], 1], x_td.dtype());
        cx.device.rms_norm(self.eps, x_td, cx.weights.at(self.gain), y_td.view_mut(), rstd_t.view_mut());
        (y_td, rstd_t)
    }

    /// Adds the gradient by `x` to `acc_dx`.
    pub fn backward<D: Device>(
        &self,
        cx: &Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        rstd_t: View<D>,
        dy: View<D>,
        acc_dx: ViewMut<D>,
    ) {
        let (gain, dgain) = (cx.weights.at(self.gain), grads.at_mut(self.gain));
        cx.device.rms_norm_backward(x_td, gain, rstd_t, dy, acc_dx, dgain);
    }
}
