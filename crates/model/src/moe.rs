//! The sparse feed-forward layer: a router, routed experts, and shared experts that see every token, in
//! some families through a gate.
//!
//! Routing is dropless: every choice is computed. Routers are softmax top-k (Shazeer et al. 2017; Mixtral, Qwen3-MoE) or
//! sigmoid top-k with a correction bias that only the choice sees and that is nudged by load after each step instead of
//! an auxiliary loss (Wang et al. 2024; DeepSeek-V3; GLM-4.5).

use crate::exchange::Plan;
use crate::gate::{Gate, Gated};
use crate::init::upload;
use crate::layer::{Branch, Cx};
use crate::mlp::{ADD_NN, Hidden, Mlp};
use crate::store::{ExpertPart, ParamId, Store};
use wudao_device::{DType, Device, Fault, Gemm, Routing, Tensor, View, ViewMut};

pub(crate) struct Moe {
    pub routing: Routing,
    /// E.
    pub experts: usize,
    /// F.
    pub width: usize,
    /// Which of the sparse layers this is.
    pub layer: usize,
    pub router: ParamId,
    pub correction: Option<ParamId>,
    pub shared: Option<Mlp>,
    /// What a token takes of the shared expert, if not all.
    pub shared_gate: Option<Gate>,
}

pub(crate) struct MoeSaved<D: Device> {
    scores_te: Tensor<D>,
    choice_tk: Tensor<D>,
    weight_tk: Tensor<D>,
    stats_t2: Tensor<D>,
    /// Derivative of the balance loss by each token's score of an expert.
    balance_e: Vec<f64>,
    plan: Plan,
    /// The router's weight of every expert row.
    weight_n: Tensor<D>,
    gate_up: Tensor<D>,
    shared: Option<Hidden<D>>,
    gated: Option<Gated<D>>,
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

impl<D: Device> Branch<D> for Moe {
    type Saved = MoeSaved<D>;

    /// An expert's answer is weighted where it is cheapest, at its activation: `down·(w·a) = w·(down·a)`. Then a token's
    /// answers need only be added, and backward needs none of them.
    fn forward(&self, cx: &mut Cx<D>, x_td: View<D>, mut acc_y: ViewMut<D>) -> Result<MoeSaved<D>, Fault> {
        let (dev, t, operands) = (cx.device, x_td.shape()[0], x_td.dtype());
        let (e, k, statistics) = (self.experts, self.routing.top_k, D::statistics(operands));

        let mut logits_te = Tensor::new(dev, [t, e], statistics);
        dev.gemm(Gemm::NT.exactly(), x_td, cx.weights.exact(self.router), logits_te.view_mut());
        let exact = |cols| Tensor::new(dev, [t, cols], statistics);
        let (mut scores_te, mut weight_tk, mut stats_t2) = (exact(e), exact(k), exact(2));
        let mut choice_tk = Tensor::new(dev, [t, k], DType::U32);
        let bias = self.correction.map(|id| cx.weights.at(id));
        let (s, c, w) = (scores_te.view_mut(), choice_tk.view_mut(), weight_tk.view_mut());
        dev.route(&self.routing, logits_te.view(), bias, s, c, w, stats_t2.view_mut());
        drop(logits_te);

        let plan = Plan::new(cx, &choice_tk.view().to_host::<u32>(dev), e, k)?;
        self.record(cx, &plan, scores_te.view(), stats_t2.view());
        let balance_e = self.balance(cx)?;

        let mut rows_nd = plan.dispatch(cx, x_td, operands)?;
        let weight_n = plan.dispatch_slots(cx, weight_tk.view())?;
        let mut gate_up = Tensor::new(dev, [plan.rows(), 2 * self.width], operands);
        cx.weights.in_turns(self.layer, &plan.bands, &mut |experts| {
            let (rows, bands) = experts.rows();
            let mut gate_up = gate_up.view_mut().rows(rows.clone());
            let asked = rows_nd.view().rows(rows.clone());
            dev.gemm_bands(Gemm::NT, &bands, asked, &experts.gate_up, gate_up.reborrow());
            let mut act_nf = Tensor::new(dev, [rows.len(), self.width], operands);
            dev.swiglu(gate_up.as_view(), Some(weight_n.view().rows(rows.clone())), act_nf.view_mut());
            // What experts answer takes the place of what they were asked.
            let answer = rows_nd.view_mut().rows(rows);
            dev.gemm_bands(Gemm::NT, &bands, act_nf.view(), &experts.down, answer);
        })?;
        plan.combine(cx, rows_nd, acc_y.reborrow())?;
        let gated = self.shared_gate.as_ref().map(|gate| gate.forward(cx, x_td));
        let shared = self.shared.as_ref().map(|mlp| mlp.answer(cx, x_td, gated.as_ref().map(Gated::weight), acc_y));
        Ok(MoeSaved { scores_te, choice_tk, weight_tk, stats_t2, balance_e, plan, weight_n, gate_up, shared, gated })
    }

    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        x_td: View<D>,
        saved: MoeSaved<D>,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault> {
        let MoeSaved { scores_te, choice_tk, weight_tk, stats_t2, balance_e, plan, weight_n, gate_up, shared, gated } =
            saved;
        let mut gate_up = gate_up;
        let (dev, operands, statistics) = (cx.device, x_td.dtype(), scores_te.dtype());
        let (w_gate_up, w_down) =
            (cx.weights.experts(self.layer, ExpertPart::GateUp), cx.weights.experts(self.layer, ExpertPart::Down));
        let (bands, n, f) = (&plan.bands, plan.rows(), self.width);

        let dout_nd = plan.dispatch(cx, dy, operands)?;
        let mut act_nf = Tensor::new(dev, [n, f], operands);
        dev.gemm_bands(Gemm::NN, bands, dout_nd.view(), &w_down, act_nf.view_mut());
        let mut dweight_n = Tensor::new(dev, [n, 1], statistics);
        // In place: the activation's gradient becomes the activation, and gate and up their gradients.
        let (w, dw) = (Some(weight_n.view()), Some(dweight_n.view_mut()));
        dev.swiglu_backward(w, gate_up.view_mut(), act_nf.view_mut(), dw);
        grads.add_experts(dev, self.layer, ExpertPart::Down, bands, dout_nd.view(), act_nf.view());
        drop((act_nf, dout_nd));
        let dgate_up = gate_up;
        let rows_nd = plan.dispatch(cx, x_td, operands)?;
        grads.add_experts(dev, self.layer, ExpertPart::GateUp, bands, dgate_up.view(), rows_nd.view());
        let mut drows_nd = rows_nd;
        dev.gemm_bands(Gemm::NN, bands, dgate_up.view(), &w_gate_up, drows_nd.view_mut());
        drop(dgate_up);

        let dweight = plan.combine_slots(cx, dweight_n)?;
        let mut dlogits_te = Tensor::new(dev, scores_te.shape(), statistics);
        let (s, c, w, st) = (scores_te.view(), choice_tk.view(), weight_tk.view(), stats_t2.view());
        let z = if cx.aux.z == 0.0 { 0.0 } else { cx.aux.z / cx.aux.tokens };
        let dw = dweight.view().reshape(w.shape());
        dev.route_backward(&self.routing, &balance_e, z, s, c, w, st, dw, dlogits_te.view_mut());
        grads.add(dev, Gemm::TN.exactly(), self.router, dlogits_te.view(), x_td);
        let mut dx_td = Tensor::new(dev, x_td.shape(), statistics);
        dev.gemm(Gemm::NN, dlogits_te.view(), cx.weights.exact(self.router), dx_td.view_mut());
        plan.combine(cx, drows_nd, dx_td.view_mut())?;

        if let Some(id) = self.correction {
            let load: Vec<f64> = plan.load.iter().map(|&n| n as f64).collect();
            let mut row = Tensor::new(dev, [1, load.len()], grads.dtype());
            upload(dev, &load, row.view_mut());
            dev.axpby(1.0, row.view(), 1.0, grads.at_mut(id));
        }
        if let (Some(mlp), Some(hidden)) = (&self.shared, shared) {
            let mut dweight_t = Tensor::new(dev, [x_td.shape()[0], 1], statistics);
            let weight = gated.as_ref().map(|g| (g.weight(), dweight_t.view_mut()));
            let dgate_up = mlp.gradient(cx, grads, x_td, hidden, weight, dy);
            dev.gemm(ADD_NN, dgate_up.view(), cx.weights.operand(mlp.ids.gate_up), dx_td.view_mut());
            if let (Some(gate), Some(gated)) = (&self.shared_gate, gated) {
                gate.backward(cx, grads, x_td, gated, dweight_t.view(), dx_td.view_mut());
            }
        }
        Ok(dx_td)
    }
}

#[cfg(test)]
mod tests;
