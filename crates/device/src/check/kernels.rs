//! Every kernel once, on fixed inputs, on any device in any type.

use super::{Random, assert_close};
use crate::{
    AdamW, DType, Device, Gemm, Heads, IGNORE, Nesterov, Operand, PAGE, Paged, Rotation, Routing, Score, Tensor, View,
};

/// One output of one kernel.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// The kernel's row in the table of tolerances.
    pub kernel: &'static str,
    /// Which output, of which variant.
    pub name: String,
    /// The type that it was rounded to.
    pub dtype: DType,
    /// Its elements.
    pub values: Vec<f64>,
}

/// Runs every kernel of `device` with operands of type `dtype` (the contract's A) on inputs of a few hundred rows, several
/// tasks' worth, that depend on `seed` alone. The operands are numbers that `exact` holds exactly, all else is exact in
/// `F32`: two types are comparable on inputs that both hold.
pub fn outputs<D: Device>(device: &D, dtype: DType, exact: DType, seed: u64) -> Vec<Output> {
    let mut run = Run::new(device, dtype, exact, seed);
    run.elementwise();
    run.rows();
    run.norms();
    // These two know no bf16 yet.
    if exact != DType::Bf16 && dtype != DType::Bf16 {
        run.products();
        run.attention();
    }
    run.activations();
    run.routers();
    run.training();
    run.out
}

struct Run<'a, D: Device> {
    device: &'a D,
    /// The contract's A …
    dtype: DType,
    /// … and S.
    sums: DType,
    exact: DType,
    random: Random,
    out: Vec<Output>,
}

impl<'a, D: Device> Run<'a, D> {
    fn new(device: &'a D, dtype: DType, exact: DType, seed: u64) -> Self {
        Run { device, dtype, sums: D::statistics(dtype), exact, random: Random(seed), out: Vec::new() }
    }
    fn upload(&self, dtype: DType, shape: [usize; 2], values: &[f64]) -> Tensor<D> {
        let exact = Tensor::from_host(self.device, shape, values);
        let mut t = Tensor::new(self.device, shape, dtype);
        self.device.copy(exact.view(), t.view_mut());
        t
    }
    /// An operand or an activation.
    fn random(&mut self, shape: [usize; 2]) -> Tensor<D> {
        let mut values = self.random.values(shape[0] * shape[1]);
        if self.exact == DType::Bf16 {
            values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x as f32).to_f64());
        }
        self.upload(self.dtype, shape, &values)
    }
    fn fresh(&self, shape: [usize; 2]) -> Tensor<D> {
        Tensor::new(self.device, shape, self.dtype)
    }
    /// A weight, a gradient, a part of the residual stream.
    fn random_sums(&mut self, shape: [usize; 2]) -> Tensor<D> {
        let values = self.random.values(shape[0] * shape[1]);
        self.upload(self.sums, shape, &values)
    }
    fn fresh_sums(&self, shape: [usize; 2]) -> Tensor<D> {
        Tensor::new(self.device, shape, self.sums)
    }
    fn keep(&mut self, kernel: &'static str, name: &str, x: View<D>) {
        let (values, dtype) = match x.dtype() {
            // Choices are exact in every type.
            DType::U32 => (x.to_host::<u32>(self.device).into_iter().map(f64::from).collect(), self.sums),
            dtype => (x.to_f64(self.device), dtype),
        };
        self.out.push(Output { kernel, name: format!("{kernel} {name}"), dtype, values });
    }
    fn keep_values(&mut self, kernel: &'static str, values: Vec<f64>) {
        self.out.push(Output { kernel, name: kernel.into(), dtype: self.sums, values });
    }

    fn elementwise(&mut self) {
        let (device, shape) = (self.device, [301, 257]);
        let x = self.random(shape);
        for (a, b) in [(0.75, -0.5), (0.75, 0.0)] {
            let mut y = self.random(shape);
            device.axpby(a, x.view(), b, y.view_mut());
            self.keep("axpby", &format!("{a} {b}"), y.view());
            let mut sum = self.random_sums(shape);
            device.axpby(a, x.view(), b, sum.view_mut());
            self.keep("axpby", &format!("{a} {b} to a sum"), sum.view());
            let (sum, mut y) = (self.random_sums(shape), self.random(shape));
            device.axpby(a, sum.view(), b, y.view_mut());
            self.keep("axpby", &format!("{a} {b} of a sum"), y.view());
        }
        let (mut y, mut sum) = (self.fresh(shape), self.random_sums(shape));
        device.copy(sum.view(), y.view_mut());
        self.keep("copy", "rounded", y.view());
        device.fill(0.25, y.view_mut());
        self.keep("copy", "filled", y.view());
        device.copy(x.view(), y.view_mut());
        self.keep("copy", "y", y.view());
        device.copy(x.view(), sum.view_mut());
        self.keep("copy", "widened", sum.view());
        self.keep_values("sum_of_squares", vec![device.sum_of_squares(x.view())]);
        self.keep_values("column_sums", device.column_sums(x.view()));
        let b = self.random_sums([1, 257]);
        device.add_bias(b.view(), y.view_mut());
        device.add_bias(b.view(), sum.view_mut());
        self.keep("add_bias", "y", y.view());
        self.keep("add_bias", "y wide", sum.view());
        let mut db = self.random_sums([1, 257]);
        device.add_bias_backward(x.view(), db.view_mut());
        self.keep("add_bias", "db", db.view());
    }

    fn products(&mut self) {
        let (device, m, n, k) = (self.device, 131, 67, 97);
        for (ta, tb, accumulate) in
            [(false, false, false), (false, true, true), (true, false, true), (true, true, false)]
        {
            let a = self.random(if ta { [k, m] } else { [m, k] });
            let b = self.random(if tb { [n, k] } else { [k, n] });
            let wide = self.random_sums(if tb { [n, k] } else { [k, n] });
            let (mut c, mut sum) = (self.random([m, n]), self.random_sums([m, n]));
            let (mut mixed, mut exact) = (self.random_sums([m, n]), self.random_sums([m, n]));
            let g = Gemm { ta, tb, accumulate, ..Gemm::NN };
            device.gemm(g, a.view(), b.view(), c.view_mut());
            device.gemm(g, a.view(), b.view(), sum.view_mut());
            device.gemm(g, a.view(), wide.view(), mixed.view_mut());
            device.gemm(g.exactly(), a.view(), wide.view(), exact.view_mut());
            self.keep("gemm", &format!("{g:?}"), c.view());
            self.keep("gemm", &format!("{g:?} to a sum"), sum.view());
            self.keep("gemm", &format!("{g:?} of two types"), mixed.view());
            self.keep("gemm", &format!("{g:?} of two types, exactly"), exact.view());
        }
        let bands = [0..40, 40..40, 40..41, 41..m];
        let (a, dc) = (self.random([m, k]), self.random([m, n]));
        let b: Vec<Tensor<D>> = bands.iter().map(|_| self.random([n, k])).collect();
        let b: Vec<Operand<D>> = b.iter().map(|b| b.view().into()).collect();
        let (mut c, mut sum) = (self.fresh([m, n]), self.fresh_sums([m, n]));
        device.gemm_bands(Gemm::NT, &bands, a.view(), &b, c.view_mut());
        device.gemm_bands(Gemm::NT, &bands, a.view(), &b, sum.view_mut());
        self.keep("gemm", "bands", c.view());
        self.keep("gemm", "bands to a sum", sum.view());
        for g in [Gemm::TN, Gemm::TN_ACC] {
            let mut outer: Vec<Tensor<D>> = bands.iter().map(|_| self.random_sums([n, k])).collect();
            let to = outer.iter_mut().map(Tensor::view_mut).collect();
            device.gemm_bands_outer(g, &bands, dc.view(), a.view(), to);
            for (e, o) in outer.iter().enumerate() {
                self.keep("gemm", &format!("bands outer {e}, {g:?}"), o.view());
            }
        }
        // Of small numbers a device may know the squares.
        let mut small = self.fresh([m, n]);
        device.axpby(1e-4, dc.view(), 0.0, small.view_mut());
        let mut outer: Vec<Tensor<D>> = bands.iter().map(|_| self.fresh_sums([n, k])).collect();
        let to = outer.iter_mut().map(Tensor::view_mut).collect();
        let said = device.gemm_bands_outer(Gemm::TN.measured(true), &bands, small.view(), a.view(), to);
        assert_eq!(said.len(), bands.len(), "an answer for every band");
        for (said, o) in said.into_iter().zip(&outer) {
            let squares = device.sum_of_squares(o.view());
            assert_close("squares", "squares", o.dtype(), &[squares], &[said.unwrap_or(squares)]);
        }
    }

    fn rows(&mut self) {
        let (device, t, k, d) = (self.device, 203, 3, 130);
        let index: Vec<u32> = (0..t * k).map(|_| self.random.below(t) as u32).collect();
        let (x, stream) = (self.random([t, d]), self.random_sums([t, d]));
        let (mut slots, mut rounded, mut widened) =
            (self.fresh([t * k, d]), self.fresh([t * k, d]), self.fresh_sums([t * k, d]));
        device.gather(&index, x.view(), slots.view_mut());
        device.gather(&index, stream.view(), rounded.view_mut());
        device.gather(&index, x.view(), widened.view_mut());
        for (name, out) in [("gather", &slots), ("gather rounded", &rounded), ("gather widened", &widened)] {
            self.keep("copy", name, out.view());
        }
        let (mut dx, mut y) = (self.random_sums([t, d]), self.random_sums([t, d]));
        device.gather_backward(&index, slots.view(), dx.view_mut());
        self.keep("gather", "dx", dx.view());
        device.gather_backward(&index, widened.view(), dx.view_mut());
        self.keep("gather", "dx again", dx.view());
        device.gather_sum(k, &index, x.view(), y.view_mut());
        self.keep("gather", "sum", y.view());
        device.gather_sum(k, &index, stream.view(), y.view_mut());
        self.keep("gather", "sum again", y.view());
    }

    fn norms(&mut self) {
        let (device, t, d) = (self.device, 207, 259);
        let (x, w, dy) = (self.random_sums([t, d]), self.random_sums([1, d]), self.random([t, d]));
        let (mut y, mut rstd, mut dx) = (self.fresh([t, d]), self.fresh_sums([t, 1]), self.random_sums([t, d]));
        let mut dw = self.random_sums([1, d]);
        device.rms_norm(1e-6, x.view(), w.view(), y.view_mut(), rstd.view_mut());
        device.rms_norm_backward(x.view(), w.view(), rstd.view(), dy.view(), dx.view_mut(), dw.view_mut());
        for (name, out) in [("y", &y), ("rstd", &rstd), ("dx", &dx), ("dw", &dw)] {
            self.keep("rms_norm", name, out.view());
        }

        let heads = Heads { q: 6, kv: 2, dim: 24 };
        let width = heads.width();
        let (known, r) = (50, 16);
        let angles: Vec<f64> = (0..known).flat_map(|p| (0..r / 2).map(move |i| (p * (i + 1)) as f64 * 0.01)).collect();
        let table: Vec<f64> = (angles.chunks(r / 2))
            .flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin())))
            .map(|x| f64::from(x as f32))
            .collect();
        let table = self.upload(self.sums, [known, r], &table);
        let positions: Vec<u32> = (0..t).map(|_| self.random.below(known) as u32).collect();
        let by = Rotation { heads, table: table.view(), positions: &positions };

        let (x, dy) = (self.random([t, width]), self.random([t, width]));
        let (wq, wk) = (self.random_sums([1, heads.dim]), self.random_sums([1, heads.dim]));
        let (mut y, mut rstd, mut dx) = (self.fresh([t, width]), self.fresh_sums([t, 8]), self.fresh([t, width]));
        let (mut dwq, mut dwk) = (self.random_sums([1, heads.dim]), self.random_sums([1, heads.dim]));
        device.qk_norm(heads, 1e-5, x.view(), wq.view(), wk.view(), &by, y.view_mut(), rstd.view_mut());
        let (wq, wk, r) = (wq.view(), wk.view(), rstd.view());
        let (dq, dk) = (dwq.view_mut(), dwk.view_mut());
        device.qk_norm_backward(heads, x.view(), wq, wk, r, &by, dy.view(), dx.view_mut(), dq, dk);
        for (name, out) in [("y", &y), ("rstd", &rstd), ("dx", &dx)] {
            self.keep("qk_norm", name, out.view());
        }
        self.keep("qk_norm dw", "queries", dwq.view());
        self.keep("qk_norm dw", "keys", dwk.view());

        for inverse in [false, true] {
            let mut x = Tensor::copy_of(device, x.view());
            device.rope(&by, inverse, x.view_mut());
            self.keep("rope", if inverse { "inverse" } else { "forward" }, x.view());
        }
    }

    fn attention(&mut self) {
        let device = self.device;
        for heads in [Heads { q: 4, kv: 2, dim: 24 }, Heads { q: 2, kv: 2, dim: 64 }, Heads { q: 3, kv: 1, dim: 7 }] {
            let segments = [0, 1, 1, 150, 163, 300];
            let (t, width, wide, scale) = (300, heads.width(), heads.q * heads.dim, 1.0 / (heads.dim as f64).sqrt());
            let (qkv, dout) = (self.random([t, width]), self.random([t, wide]));
            let (mut out, mut lse, mut dqkv) =
                (self.fresh([t, wide]), self.fresh_sums([t, heads.q]), self.fresh([t, width]));
            device.attention(heads, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut());
            let (o, l) = (out.view(), lse.view());
            device.attention_backward(heads, scale, &segments, qkv.view(), o, l, dout.view(), dqkv.view_mut());
            for (name, out) in [("out", &out), ("lse", &lse), ("dqkv", &dqkv)] {
                self.keep("attention", name, out.view());
            }
            // The last segment again, through a cache, in uneven steps.
            let (rows, kv) = (137, heads.kv * heads.dim);
            let (mut k, mut v, mut out) = (self.fresh([140, kv]), self.fresh([140, kv]), self.fresh([rows, wide]));
            let mut past = 0;
            for n in [70, 1, 1, 64, 1] {
                let band = past..past + n;
                let (k, v) = (k.view_mut(), v.view_mut());
                let qkv = qkv.view().rows(163..300).rows(band.clone());
                device.attention_cached(heads, scale, past, qkv, k, v, out.view_mut().rows(band));
                past += n;
            }
            self.keep("attention", "cached", out.view());
            // And once more over pages, two sequences at a time.
            let (pages, page) = ([3, 0, 7, 1, 9, 4, 8, 2, 6], PAGE * kv);
            let mut out = self.fresh([rows, wide]);
            let (mut k, mut v) = (self.fresh([20, page]), self.fresh([20, page]));
            let other: Vec<u32> = (10..20).collect();
            for (from, to) in [(0, 70), (70, 71), (71, 135), (135, 137)] {
                let mut both = self.fresh([to - from + 5, width]);
                let (first, second) = both.view_mut().split(to - from);
                device.copy(qkv.view().rows(163 + from..163 + to), first);
                device.copy(qkv.view().rows(0..5), second);
                let mine = Paged { rows: 0..to - from, past: from, pages: &pages };
                let theirs = Paged { rows: to - from..to - from + 5, past: from, pages: &other };
                let mut y = self.fresh([to - from + 5, wide]);
                let (k, v) = (k.view_mut(), v.view_mut());
                device.attention_paged(heads, scale, &[mine, theirs], both.view(), k, v, y.view_mut());
                device.copy(y.view().rows(0..to - from), out.view_mut().rows(from..to));
            }
            self.keep("attention", "paged", out.view());
        }
    }

    fn activations(&mut self) {
        let (device, n, f) = (self.device, 301, 131);
        let (small, dy) = (self.random([n, 2 * f]), self.random([n, f]));
        // Times four, which every type does exactly.
        let mut x = self.fresh([n, 2 * f]);
        device.axpby(4.0, small.view(), 0.0, x.view_mut());
        let mut y = self.fresh([n, f]);
        for weighted in [false, true] {
            let (w, mut dw) = (self.random_sums([n, 1]), self.fresh_sums([n, 1]));
            let w = weighted.then(|| w.view());
            device.swiglu(x.view(), w, y.view_mut());
            self.keep("swiglu", "y", y.view());
            let (mut dx, mut dy) = (Tensor::copy_of(device, x.view()), Tensor::copy_of(device, dy.view()));
            device.swiglu_backward(w, dx.view_mut(), dy.view_mut(), weighted.then(|| dw.view_mut()));
            self.keep("swiglu", "y again", dy.view());
            self.keep("swiglu", "dx", dx.view());
            if weighted {
                self.keep("swiglu dw", "dw", dw.view());
            }
        }
    }

    fn routers(&mut self) {
        let (device, t, e, k) = (self.device, 999, 24, 3);
        let plain =
            Routing { top_k: k, score: Score::Softmax, renormalize: true, scale: 1.0, groups: 1, top_groups: 1 };
        let sigmoid = Routing { score: Score::Sigmoid, scale: 2.5, groups: 4, top_groups: 2, ..plain };
        for routing in [plain, Routing { renormalize: false, ..plain }, sigmoid] {
            let (logits, bias) = (self.random_sums([t, e]), self.random_sums([1, e]));
            let (dweights, mut dlogits) = (self.random_sums([t, k]), self.fresh_sums([t, e]));
            let (mut scores, mut weights) = (self.fresh_sums([t, e]), self.fresh_sums([t, k]));
            let mut stats = self.fresh_sums([t, 2]);
            let mut choice = Tensor::new(device, [t, k], DType::U32);
            let bias = (routing.score == Score::Sigmoid).then(|| bias.view());
            let outs = (scores.view_mut(), choice.view_mut(), weights.view_mut(), stats.view_mut());
            device.route(&routing, logits.view(), bias, outs.0, outs.1, outs.2, outs.3);
            let balance = self.random.values(e);
            let z = if routing.score == Score::Softmax { 0.125 } else { 0.0 };
            let (s, c, w, st) = (scores.view(), choice.view(), weights.view(), stats.view());
            device.route_backward(&routing, &balance, z, s, c, w, st, dweights.view(), dlogits.view_mut());
            self.keep("copy", "route choice", choice.view());
            for (name, out) in [("scores", &scores), ("weights", &weights), ("stats", &stats), ("dlogits", &dlogits)] {
                self.keep("route", name, out.view());
            }
        }
    }

    fn training(&mut self) {
        let (device, t, v) = (self.device, 70, 1003);
        let targets: Vec<u32> = (0..t).map(|i| if i % 7 == 3 { IGNORE } else { self.random.below(v) as u32 }).collect();
        for logits in [self.random_sums([t, v]), self.random([t, v])] {
            for scale in [None, Some(0.5)] {
                let (mut x, mut losses) = (Tensor::copy_of(device, logits.view()), self.fresh_sums([t, 1]));
                device.cross_entropy(scale, &targets, x.view_mut(), losses.view_mut());
                self.keep("cross_entropy", "losses", losses.view());
                if scale.is_some() {
                    self.keep("cross_entropy", "gradient", x.view());
                }
            }
        }
        let n = 70_001;
        let (mut w, mut m, mut s) = (self.random_sums([n, 1]), self.fresh_sums([n, 1]), self.fresh_sums([n, 1]));
        device.fill(0.0, m.view_mut());
        device.fill(0.0, s.view_mut());
        for step in 1..=3 {
            let g = self.random_sums([n, 1]);
            let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
            device.adamw(&a, g.view(), w.view_mut(), m.view_mut(), s.view_mut());
        }
        let (g, mut momentum, mut u) = (self.random_sums([n, 1]), self.random_sums([n, 1]), self.fresh_sums([n, 1]));
        let a = Nesterov { momentum: 0.95, step: 4, grad_scale: 0.5 };
        let size = device.nesterov(&a, g.view(), momentum.view_mut(), u.view_mut());
        assert_eq!(size, device.sum_of_squares(u.view()), "the size of a momentum is the sum of its squares");
        self.keep("axpby", "momentum", momentum.view());
        self.keep("axpby", "Nesterov's", u.view());
        for (name, x) in [("w", &w), ("m", &m), ("v", &s)] {
            self.keep("adamw", name, x.view());
        }
        let kept = if self.sums == DType::F32 { DType::Bf16 } else { self.sums };
        let [mut m, mut v] = [0; 2].map(|_| Tensor::zeros(device, [n, 1], kept));
        let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };
        device.adamw(&a, g.view(), w.view_mut(), m.view_mut(), v.view_mut());
        self.keep("adamw", "w by narrow moments", w.view());
        self.keep("moments", "m", m.view());
        self.keep("moments", "v", v.view());
        let a = Nesterov { momentum: 0.0, step: 1, grad_scale: 0.5 };
        device.nesterov(&a, g.view(), m.view_mut(), u.view_mut());
        self.keep("moments", "momentum", m.view());
        self.keep("axpby", "narrow Nesterov's", u.view());
    }
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;
    use crate::Cpu;
    use std::ops::Range;

    /// Sums of bf16 operands are held to f32's rows of the table: only what is stored in bf16 is rounded to it.
    #[test]
    fn narrow_types_agree_with_f64() {
        let (cpu, unit) = (Cpu::new(2), Cpu::new(2).with_matrix_unit());
        for (cpu, dtype) in [(&cpu, DType::F32), (&unit, DType::F32), (&cpu, DType::Bf16)] {
            for seed in 1..4 {
                let exact = outputs(cpu, DType::F64, dtype, seed);
                let rounded = outputs(cpu, dtype, dtype, seed);
                for (e, r) in exact.iter().zip(&rounded) {
                    assert_eq!(e.name, r.name);
                    assert_close(&e.name, e.kernel, r.dtype, &e.values, &r.values);
                }
            }
        }
    }

    /// What is stored in bf16 is what f32 computes from the same operands, rounded once; what is not is the same. Products
    /// are summed in another order where the machine multiplies bf16.
    #[test]
    fn bf16_is_f32_rounded_once() {
        let cpu = Cpu::new(2);
        let single = outputs(&cpu, DType::F32, DType::Bf16, 5);
        let half = outputs(&cpu, DType::Bf16, DType::Bf16, 5);
        let mut rounded = 0;
        for (s, h) in single.iter().zip(&half).filter(|(s, _)| !matches!(s.kernel, "gemm" | "attention")) {
            let round = |x: &f64| if h.dtype == DType::Bf16 { half::bf16::from_f32(*x as f32).to_f64() } else { *x };
            let same = s.values.iter().zip(&h.values).all(|(s, h)| round(s).to_bits() == h.to_bits());
            assert!(s.name == h.name && same, "{}", s.name);
            rounded += usize::from(h.dtype == DType::Bf16);
        }
        assert!(rounded > 20, "{rounded} outputs in bf16");
    }

    /// Rows in the middle of others give what they give alone.
    #[test]
    fn a_row_does_not_depend_on_its_company() {
        let (cpu, t, d, band) = (Cpu::new(2), 100, 130, 37..41);
        for dtype in [DType::F32, DType::F64, DType::Bf16] {
            let mut run = Run::new(&cpu, dtype, dtype, 3);
            let (x, w, gate_up) = (run.random_sums([t, d]), run.random_sums([1, d]), run.random([t, 2 * d]));
            let (weights, start) = (run.random_sums([t, 1]), run.random([t, d]));
            let index: Vec<u32> = (0..2 * t).map(|_| run.random.below(t) as u32).collect();
            let all = |rows: Range<usize>| {
                let n = rows.len();
                let (x, gate_up) = (x.view().rows(rows.clone()), gate_up.view().rows(rows.clone()));
                let (weights, index) = (weights.view().rows(rows.clone()), &index[2 * rows.start..2 * rows.end]);
                let (mut y, mut rstd) = (run.fresh([n, d]), run.fresh_sums([n, 1]));
                cpu.rms_norm(1e-6, x, w.view(), y.view_mut(), rstd.view_mut());
                let (mut dx, mut dw) = (Tensor::copy_of(&cpu, gate_up), run.fresh_sums([n, 1]));
                let mut dy = Tensor::copy_of(&cpu, start.view().rows(rows.clone()));
                cpu.swiglu_backward(Some(weights), dx.view_mut(), dy.view_mut(), Some(dw.view_mut()));
                let mut sum = Tensor::copy_of(&cpu, x);
                cpu.gather_sum(2, index, start.view(), sum.view_mut());
                let mut logits = Tensor::copy_of(&cpu, start.view().rows(rows.clone()));
                let targets: Vec<u32> = rows.map(|i| i as u32).collect();
                let losses = rstd.view_mut();
                cpu.cross_entropy(Some(1.0), &targets, logits.view_mut(), losses);
                [y, rstd, dx, dw, dy, sum, logits]
            };
            for (whole, part) in all(0..t).iter().zip(&all(band.clone())) {
                assert_eq!(whole.view().rows(band.clone()).to_f64(&cpu), part.view().to_f64(&cpu), "{dtype:?}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        type Make = fn(usize) -> Cpu;
        let unit: Make = |threads| Cpu::new(threads).with_matrix_unit();
        let devices: [(Make, DType); 4] =
            [(Cpu::new, DType::F32), (unit, DType::F32), (Cpu::new, DType::F64), (Cpu::new, DType::Bf16)];
        for (device, dtype) in devices {
            let one = outputs(&device(1), dtype, DType::F32, 7);
            for threads in [2, 3] {
                for (a, b) in one.iter().zip(&outputs(&device(threads), dtype, DType::F32, 7)) {
                    let same = a.values.iter().zip(&b.values).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(a.name == b.name && same, "{} with {threads} threads in {dtype:?}", a.name);
                }
            }
        }
    }
}
