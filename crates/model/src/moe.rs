//! The sparse feed-forward layer: a router, routed experts, and shared experts that see every token.
//!
//! Routing is dropless: every choice is computed. Routers are softmax top-k (Shazeer et al. 2017; Mixtral, Qwen3-MoE) or
//! sigmoid top-k with a correction bias that only the choice sees and that is nudged by load after each step instead of
//! an auxiliary loss (Wang et al. 2024; DeepSeek-V3; GLM-4.5).

use crate::exchange::Plan;
use crate::init::upload;
use crate::layer::{Cx, Layer};
use crate::mlp::{Hidden, Mlp};
use crate::store::{ExpertPart, ParamId, Store};
use wudao_device::{DType, Device, Fault, Gemm, Routing, Tensor, View};

pub(crate) struct Moe {
    pub routing: Routing,
    /// E.
    pub experts: usize,
    /// Which of the sparse layers this is.
    pub layer: usize,
    pub router: ParamId,
    pub correction: Option<ParamId>,
    pub shared: Option<Mlp>,
}

pub(crate) struct MoeSaved<D: Device> {
    x_td: Tensor<D>,
    scores_te: Tensor<D>,
    choice_tk: Tensor<D>,
    weight_tk: Tensor<D>,
    stats_t2: Tensor<D>,
    /// Derivative of the balance loss by each token's score of an expert.
    balance_e: Vec<f64>,
    plan: Plan,
    rows_nd: Tensor<D>,
    gate_up: Tensor<D>,
    act_nf: Tensor<D>,
    /// What the experts answered, by slot.
    slots: Tensor<D>,
    shared: Option<Hidden<D>>,
}

impl Moe {
    /// Adds what this pass did to the step's log.
    fn record<D: Device>(&self, cx: &mut Cx<D>, plan: &Plan, scores: View<D>, stats: View<D>) {
        let Some(log) = cx.log.as_deref_mut().filter(|_| !cx.again) else { return };
        let log = &mut log.layers[self.layer];
        log.load.iter_mut().zip(&plan.load).for_each(|(a, &n)| *a += n as f64);
        log.score.iter_mut().zip(cx.device.column_sums(scores)).for_each(|(a, b)| *a += b);
        log.tokens += scores.shape()[0] as f64;
        let stats = stats.to_f64(cx.device);
        for lse_entropy in stats.chunks(2) {
            log.z += lse_entropy[0] * lse_entropy[0];
            log.entropy += lse_entropy[1];
        }
    }

    /// The balance loss's derivative by each token's score of an expert, `α·E·f_e / T`. f_e is over all ranks, from the
    /// step's choices so far: all of them, once the last micro-batch is in (Qiu et al. 2025, section 3).
    fn balance<D: Device>(&self, cx: &Cx<D>) -> Result<Vec<f64>, Fault> {
        if cx.aux.balance == 0.0 {
            return Ok(vec![]);
        }
        let log = cx.log.as_deref().expect("the balance loss needs a log of the routers");
        let mut load = log.layers[self.layer].load.clone();
        cx.comm.all_reduce_host(&mut load)?;
        let all: f64 = load.iter().sum();
        Ok(load.iter().map(|n| cx.aux.balance * self.experts as f64 * n / all / cx.aux.tokens).collect())
    }
}

impl<D: Device> Layer<D> for Moe {
    type Saved = MoeSaved<D>;

    fn forward(&self, cx: &mut Cx<D>, x_td: Tensor<D>) -> Result<(Tensor<D>, MoeSaved<D>), Fault> {
        let (dev, [t, d], dtype) = (cx.device, x_td.shape(), x_td.dtype());
        let (e, k, statistics) = (self.experts, self.routing.top_k, D::statistics(x_td.dtype()));
        let new = |shape| Tensor::new(dev, shape, dtype);

        let mut logits_te = Tensor::new(dev, [t, e], statistics);
        dev.gemm(Gemm::NT, x_td.view(), cx.weights.at(self.router), logits_te.view_mut());
        let (mut scores_te, mut weight_tk) = (Tensor::new(dev, [t, e], statistics), new([t, k]));
        let mut choice_tk = Tensor::new(dev, [t, k], DType::U32);
        let mut stats_t2 = Tensor::new(dev, [t, 2], statistics);
        let bias = self.correction.map(|id| cx.weights.at(id));
        let (s, c, w) = (scores_te.view_mut(), choice_tk.view_mut(), weight_tk.view_mut());
        dev.route(&self.routing, logits_te.view(), bias, s, c, w, stats_t2.view_mut());
        drop(logits_te);

        let plan = Plan::new(cx, &choice_tk.view().to_host::<u32>(dev), e, k)?;
        self.record(cx, &plan, scores_te.view(), stats_t2.view());
        let balance_e = self.balance(cx)?;

        let rows_nd = plan.dispatch_tokens(cx, x_td.view())?;
        let (w_gate_up, w_down) =
            (cx.weights.experts(self.layer, ExpertPart::GateUp), cx.weights.experts(self.layer, ExpertPart::Down));
        let (n, f) = (plan.rows(), w_down[0].shape()[1]);
        let mut gate_up = new([n, 2 * f]);
        dev.gemm_bands(Gemm::NT, &plan.bands, rows_nd.view(), &w_gate_up, gate_up.view_mut());
        let mut act_nf = new([n, f]);
        dev.swiglu(gate_up.view(), act_nf.view_mut());
        let mut out_nd = new([n, d]);
        dev.gemm_bands(Gemm::NT, &plan.bands, act_nf.view(), &w_down, out_nd.view_mut());
        let slots = plan.combine(cx, out_nd)?;
        let mut y_td = new([t, d]);
        dev.weighted_sum(k, slots.view(), Some(weight_tk.view()), y_td.view_mut());

        let shared = self.shared.as_ref().map(|mlp| {
            let (z_td, hidden) = mlp.forward_from(cx, x_td.view());
            dev.axpby(1.0, z_td.view(), 1.0, y_td.view_mut());
            hidden
        });
        let saved = MoeSaved {
            x_td,
            scores_te,
            choice_tk,
            weight_tk,
            stats_t2,
            balance_e,
            plan,
            rows_nd,
            gate_up,
            act_nf,
            slots,
            shared,
        };
        Ok((y_td, saved))
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        saved: MoeSaved<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let (dev, [t, d], dtype, k) = (cx.device, dy.shape(), dy.dtype(), self.routing.top_k);
        let new = |shape| Tensor::new(dev, shape, dtype);
        let MoeSaved {
            x_td,
            scores_te,
            choice_tk,
            weight_tk,
            stats_t2,
            balance_e,
            plan,
            rows_nd,
            gate_up,
            act_nf,
            slots,
            shared,
        } = saved;

        let mut dw_tk = new([t, k]);
        let mut dslots = new(slots.shape());
        dev.weighted_sum_backward(slots.view(), weight_tk.view(), dy, dslots.view_mut(), dw_tk.view_mut());
        drop(slots);
        let dout_nd = plan.dispatch(cx, dslots.view())?;
        drop(dslots);

        let (w_gate_up, w_down) =
            (cx.weights.experts(self.layer, ExpertPart::GateUp), cx.weights.experts(self.layer, ExpertPart::Down));
        let bands = &plan.bands;
        let ddown = grads.experts_mut(self.layer, ExpertPart::Down);
        dev.gemm_bands_outer(bands, dout_nd.view(), act_nf.view(), ddown);
        // The activation is spent: its memory takes its own gradient.
        let mut dact_nf = act_nf;
        dev.gemm_bands(Gemm::NN, bands, dout_nd.view(), &w_down, dact_nf.view_mut());
        let mut dgate_up = new(gate_up.shape());
        dev.swiglu_backward(gate_up.view(), dact_nf.view(), dgate_up.view_mut());
        drop((gate_up, dact_nf));
        let dgate_up_w = grads.experts_mut(self.layer, ExpertPart::GateUp);
        dev.gemm_bands_outer(bands, dgate_up.view(), rows_nd.view(), dgate_up_w);
        let mut drows_nd = dout_nd;
        dev.gemm_bands(Gemm::NN, bands, dgate_up.view(), &w_gate_up, drows_nd.view_mut());
        drop((dgate_up, rows_nd));
        let dslots = plan.combine(cx, drows_nd)?;
        let mut dx_td = new([t, d]);
        dev.weighted_sum(k, dslots.view(), None, dx_td.view_mut());
        drop(dslots);

        let mut dlogits_te = Tensor::new(dev, scores_te.shape(), scores_te.dtype());
        let (s, c, w, st) = (scores_te.view(), choice_tk.view(), weight_tk.view(), stats_t2.view());
        let z = if cx.aux.z == 0.0 { 0.0 } else { cx.aux.z / cx.aux.tokens };
        dev.route_backward(&self.routing, &balance_e, z, s, c, w, st, dw_tk.view(), dlogits_te.view_mut());
        dev.gemm(Gemm::TN_ACC, dlogits_te.view(), x_td.view(), grads.at_mut(self.router));
        let accumulate = Gemm { accumulate: true, ..Gemm::NN };
        dev.gemm(accumulate, dlogits_te.view(), cx.weights.at(self.router), dx_td.view_mut());

        if let Some(id) = self.correction {
            let load: Vec<f64> = plan.load.iter().map(|&n| n as f64).collect();
            let mut row = Tensor::new(dev, [1, load.len()], grads.dtype());
            upload(dev, &load, row.view_mut());
            dev.axpby(1.0, row.view(), 1.0, grads.at_mut(id));
        }
        if let (Some(mlp), Some(hidden)) = (&self.shared, shared) {
            let dshared = mlp.backward_to(cx, grads, x_td.view(), hidden, dy);
            dev.axpby(1.0, dshared.view(), 1.0, dx_td.view_mut());
        }
        Ok(dx_td)
    }
}

#[cfg(test)]
mod tests;
