//! RMS norm (Zhang & Sennrich 2019).

use crate::layer::{Cx, Layer};
use crate::store::{ParamId, Store};
use wudao_device::{Device, Fault, Tensor, View};

pub(crate) struct Norm {
    pub gain: ParamId,
    pub eps: f64,
}

/// The input, which is also the residual stream that the block adds to.
pub(crate) struct NormSaved<D: Device> {
    pub x_td: Tensor<D>,
    rstd_t: Tensor<D>,
}

impl<D: Device> Layer<D> for Norm {
    type Saved = NormSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x_td: Tensor<D>) -> Result<(Tensor<D>, NormSaved<D>), Fault> {
        let mut y_td = Tensor::new(cx.device, x_td.shape(), x_td.dtype());
        let mut rstd_t = Tensor::new(cx.device, [x_td.shape()[0], 1], D::statistics(x_td.dtype()));
        cx.device.rms_norm(self.eps, x_td.view(), cx.weights.at(self.gain), y_td.view_mut(), rstd_t.view_mut());
        Ok((y_td, NormSaved { x_td, rstd_t }))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        saved: NormSaved<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let mut dx = Tensor::new(cx.device, dy.shape(), dy.dtype());
        let NormSaved { x_td, rstd_t } = saved;
        let (gain, dgain) = (cx.weights.at(self.gain), grads.at_mut(self.gain));
        cx.device.rms_norm_backward(x_td.view(), gain, rstd_t.view(), dy, dx.view_mut(), dgain);
        Ok(dx)
    }
}
