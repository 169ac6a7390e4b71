//! Every kernel once, on fixed inputs, on any device in any type.

use super::Random;
use crate::{AdamW, DType, Device, Gemm, Heads, IGNORE, Routing, Score, Tensor, View};

/// One output of one kernel.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// The kernel's row in the table of tolerances.
    pub kernel: &'static str,
    /// Which output, of which variant.
    pub name: String,
    /// Its elements.
    pub values: Vec<f64>,
}

/// Runs every kernel of `device` in `dtype` (F32 or F64) on inputs of a few hundred rows, several tasks' worth, that
/// depend on `seed` alone and that f32 holds exactly.
pub fn outputs<D: Device>(device: &D, dtype: DType, seed: u64) -> Vec<Output> {
    let mut run = Run { device, dtype, random: Random(seed), out: Vec::new() };
    run.elementwise();
    run.products();
    run.rows();
    run.norms();
    run.attention();
    run.activations();
    run.routers();
    run.training();
    run.out
}

struct Run<'a, D: Device> {
    device: &'a D,
    dtype: DType,
    random: Random,
    out: Vec<Output>,
}

impl<D: Device> Run<'_, D> {
    fn upload(&self, shape: [usize; 2], values: &[f64]) -> Tensor<D> {
        let exact = Tensor::from_host(self.device, shape, values);
        let mut t = Tensor::new(self.device, shape, self.dtype);
        self.device.copy(exact.view(), t.view_mut());
        t
    }
    fn random(&mut self, shape: [usize; 2]) -> Tensor<D> {
        let values = self.random.values(shape[0] * shape[1]);
        self.upload(shape, &values)
    }
    fn fresh(&self, shape: [usize; 2]) -> Tensor<D> {
        Tensor::new(self.device, shape, self.dtype)
    }
    fn keep(&mut self, kernel: &'static str, name: &str, x: View<D>) {
        let values = match x.dtype() {
            DType::U32 => x.to_host::<u32>(self.device).into_iter().map(f64::from).collect(),
            _ => x.to_f64(self.device),
        };
        self.out.push(Output { kernel, name: format!("{kernel} {name}"), values });
    }

    fn elementwise(&mut self) {
        let device = self.device;
        let x = self.random([301, 257]);
        let mut y = self.random([301, 257]);
        device.axpby(0.75, x.view(), -0.5, y.view_mut());
        self.keep("axpby", "y", y.view());
        let mut y = self.fresh([301, 257]);
        device.axpby(0.75, x.view(), 0.0, y.view_mut());
        self.keep("axpby", "assigned", y.view());
        device.fill(0.25, y.view_mut());
        self.keep("copy", "filled", y.view());
        device.copy(x.view(), y.view_mut());
        self.keep("copy", "y", y.view());
        let squares = device.sum_of_squares(x.view());
        let sums = device.column_sums(x.view());
        self.out.push(Output { kernel: "sum_of_squares", name: "sum_of_squares".into(), values: vec![squares] });
        self.out.push(Output { kernel: "column_sums", name: "column_sums".into(), values: sums });
        let b = self.random([1, 257]);
        device.add_bias(b.view(), y.view_mut());
        self.keep("add_bias", "y", y.view());
        let mut db = self.random([1, 257]);
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
            let mut c = self.random([m, n]);
            device.gemm(Gemm { ta, tb, accumulate }, a.view(), b.view(), c.view_mut());
            self.keep("gemm", &format!("{ta} {tb} {accumulate}"), c.view());
        }
        let bands = [0..40, 40..40, 40..41, 41..m];
        let a = self.random([m, k]);
        let b: Vec<Tensor<D>> = bands.iter().map(|_| self.random([n, k])).collect();
        let b: Vec<View<D>> = b.iter().map(Tensor::view).collect();
        let mut c = self.fresh([m, n]);
        device.gemm_bands(Gemm::NT, &bands, a.view(), &b, c.view_mut());
        self.keep("gemm", "bands", c.view());
        let mut outer: Vec<Tensor<D>> = bands.iter().map(|_| self.random([n, k])).collect();
        device.gemm_bands_outer(&bands, c.view(), a.view(), outer.iter_mut().map(Tensor::view_mut).collect());
        for (e, o) in outer.iter().enumerate() {
            self.keep("gemm", &format!("bands outer {e}"), o.view());
        }
    }

    fn rows(&mut self) {
        let (device, t, k, d) = (self.device, 203, 3, 130);
        let index: Vec<u32> = (0..t * k).map(|_| self.random.below(t) as u32).collect();
        let x = self.random([t, d]);
        let mut slots = self.fresh([t * k, d]);
        device.gather(&index, x.view(), slots.view_mut());
        self.keep("copy", "gather", slots.view());
        let mut dx = self.random([t, d]);
        device.gather_backward(&index, slots.view(), dx.view_mut());
        self.keep("gather", "dx", dx.view());
        let mut y = self.random([t, d]);
        device.gather_sum(k, &index, x.view(), y.view_mut());
        self.keep("gather", "sum", y.view());
    }

    fn norms(&mut self) {
        let (device, t, d) = (self.device, 207, 259);
        let (x, w, dy) = (self.random([t, d]), self.random([1, d]), self.random([t, d]));
        let (mut y, mut rstd, mut dx) = (self.fresh([t, d]), self.fresh([t, 1]), self.random([t, d]));
        let mut dw = self.random([1, d]);
        device.rms_norm(1e-6, x.view(), w.view(), y.view_mut(), rstd.view_mut());
        device.rms_norm_backward(x.view(), w.view(), rstd.view(), dy.view(), dx.view_mut(), dw.view_mut());
        for (name, out) in [("y", &y), ("rstd", &rstd), ("dx", &dx), ("dw", &dw)] {
            self.keep("rms_norm", name, out.view());
        }

        let heads = Heads { q: 6, kv: 2, dim: 24 };
        let width = heads.width();
        let (x, wq, wk) = (self.random([t, width]), self.random([1, heads.dim]), self.random([1, heads.dim]));
        let dy = self.random([t, width]);
        let (mut y, mut rstd, mut dx) = (self.fresh([t, width]), self.fresh([t, 8]), self.fresh([t, width]));
        let (mut dwq, mut dwk) = (self.random([1, heads.dim]), self.random([1, heads.dim]));
        device.qk_norm(heads, 1e-5, x.view(), wq.view(), wk.view(), y.view_mut(), rstd.view_mut());
        let (wq, wk, r) = (wq.view(), wk.view(), rstd.view());
        device.qk_norm_backward(heads, x.view(), wq, wk, r, dy.view(), dx.view_mut(), dwq.view_mut(), dwk.view_mut());
        for (name, out) in [("y", &y), ("rstd", &rstd), ("dx", &dx)] {
            self.keep("qk_norm", name, out.view());
        }
        self.keep("qk_norm dw", "queries", dwq.view());
        self.keep("qk_norm dw", "keys", dwk.view());

        let (known, r) = (50, 16);
        let angles: Vec<f64> = (0..known).flat_map(|p| (0..r / 2).map(move |i| (p * (i + 1)) as f64 * 0.01)).collect();
        let table: Vec<f64> = (angles.chunks(r / 2))
            .flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin())))
            .map(|x| f64::from(x as f32))
            .collect();
        let table = self.upload([known, r], &table);
        let positions: Vec<u32> = (0..t).map(|_| self.random.below(known) as u32).collect();
        for inverse in [false, true] {
            let mut x = Tensor::copy_of(device, x.view());
            device.rope(heads, table.view(), &positions, inverse, x.view_mut());
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
                (self.fresh([t, wide]), self.fresh([t, heads.q]), self.fresh([t, width]));
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
        }
    }

    fn activations(&mut self) {
        let (device, n, f) = (self.device, 301, 131);
        let mut x = self.random([n, 2 * f]);
        let dy = self.random([n, f]);
        let copy = Tensor::copy_of(device, x.view());
        device.axpby(5.0, copy.view(), 0.0, x.view_mut());
        let mut y = self.fresh([n, f]);
        for weighted in [false, true] {
            let (w, mut dw) = (self.random([n, 1]), self.fresh([n, 1]));
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
            let (logits, bias, dweights) = (self.random([t, e]), self.random([1, e]), self.random([t, k]));
            let (mut scores, mut weights, mut stats) = (self.fresh([t, e]), self.fresh([t, k]), self.fresh([t, 2]));
            let mut choice = Tensor::new(device, [t, k], DType::U32);
            let mut dlogits = self.fresh([t, e]);
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
        let logits = self.random([t, v]);
        for scale in [None, Some(0.5)] {
            let (mut x, mut losses) = (Tensor::copy_of(device, logits.view()), self.fresh([t, 1]));
            device.cross_entropy(scale, &targets, x.view_mut(), losses.view_mut(), None);
            self.keep("cross_entropy", "losses", losses.view());
            if scale.is_some() {
                self.keep("cross_entropy", "gradient", x.view());
                let (mut x, mut dx) = (Tensor::copy_of(device, logits.view()), self.fresh([t, v]));
                device.cross_entropy(scale, &targets, x.view_mut(), losses.view_mut(), Some(dx.view_mut()));
                self.keep("cross_entropy", "gradient aside", dx.view());
            }
        }
        let n = 70_001;
        let (mut w, mut m, mut s) =
            (self.random([n, 1]), self.upload([n, 1], &vec![0.0; n]), self.upload([n, 1], &vec![0.0; n]));
        let mut copy = self.fresh([n, 1]);
        for step in 1..=3 {
            let g = self.random([n, 1]);
            let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
            let copy = (step == 2).then(|| copy.view_mut());
            device.adamw(&a, g.view(), w.view_mut(), m.view_mut(), s.view_mut(), copy);
        }
        for (name, x) in [("w", &w), ("m", &m), ("v", &s), ("copy", &copy)] {
            self.keep("adamw", name, x.view());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;
    use crate::Cpu;

    #[test]
    fn f32_agrees_with_f64() {
        let cpu = Cpu::new(2);
        for seed in 1..4 {
            let exact = outputs(&cpu, DType::F64, seed);
            let rounded = outputs(&cpu, DType::F32, seed);
            for (e, r) in exact.iter().zip(&rounded) {
                assert_eq!(e.name, r.name);
                assert_close(&e.name, e.kernel, DType::F32, &e.values, &r.values);
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        for dtype in [DType::F32, DType::F64] {
            let one = outputs(&Cpu::new(1), dtype, 7);
            for threads in [2, 3] {
                for (a, b) in one.iter().zip(&outputs(&Cpu::new(threads), dtype, 7)) {
                    let same = a.values.iter().zip(&b.values).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(a.name == b.name && same, "{} with {threads} threads in {dtype:?}", a.name);
                }
            }
        }
    }
}
