//! Speed of every kernel but the matrix product, at the shapes of a training step.

use crate::check::Random;
use crate::{AdamW, Cpu, DType, Device, Heads, Routing, Score, Tensor};
use std::time::Instant;

/// Sizes of a step.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens of a packed document; divides `tokens`.
    pub segment: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Columns of the logits.
    pub vocabulary: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Experts, and how many of them a token takes.
    pub experts: usize,
    /// Experts a token takes.
    pub top_k: usize,
    /// Width of an expert.
    pub expert_width: usize,
    /// Elements of the AdamW step.
    pub parameters: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            tokens: 4096,
            segment: 512,
            width: 512,
            vocabulary: 8192,
            heads: Heads { q: 8, kv: 8, dim: 64 },
            experts: 8,
            top_k: 2,
            expert_width: 768,
            parameters: 1 << 23,
        }
    }
}

/// Time of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelTime {
    /// Its name.
    pub kernel: &'static str,
    /// Median of several calls.
    pub seconds: f64,
    /// Least bytes that it must move to and from memory.
    pub bytes: f64,
    /// Elements that it produces.
    pub elements: f64,
    /// Multiplications and additions of the formula, 0 where they are not what counts.
    pub flops: f64,
}

impl KernelTime {
    /// Memory traffic in GB/s.
    pub fn gbytes_per_s(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }
    /// Elements in units of 10⁹ a second.
    pub fn gelements_per_s(&self) -> f64 {
        self.elements / self.seconds / 1e9
    }
    /// Arithmetic in GFLOP/s.
    pub fn gflops(&self) -> f64 {
        self.flops / self.seconds / 1e9
    }
}

/// Times every kernel in f32; a few seconds.
pub fn kernels(cpu: &Cpu, shape: Shape) -> Vec<KernelTime> {
    let mut b = Bench { cpu, random: Random(1), times: Vec::new() };
    b.elementwise(&shape);
    b.rows(&shape);
    b.norms(&shape);
    b.attention(&shape);
    b.experts(&shape);
    b.training(&shape);
    b.times
}

struct Bench<'a> {
    cpu: &'a Cpu,
    random: Random,
    times: Vec<KernelTime>,
}

impl Bench<'_> {
    fn tensor(&mut self, rows: usize, cols: usize) -> Tensor<Cpu> {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.random.uniform() as f32).collect();
        Tensor::from_host(self.cpu, [rows, cols], &values)
    }
    fn zeros(&self, rows: usize, cols: usize) -> Tensor<Cpu> {
        Tensor::zeros(self.cpu, [rows, cols], DType::F32)
    }

    /// `moved` and `made`: f32 elements that cross memory, and that come out.
    fn time(&mut self, kernel: &'static str, moved: usize, made: usize, flops: usize, mut run: impl FnMut(&Cpu)) {
        run(self.cpu);
        let mut seconds: Vec<f64> = (0..7)
            .map(|_| {
                let start = Instant::now();
                run(self.cpu);
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let (bytes, elements) = ((4 * moved) as f64, made as f64);
        self.times.push(KernelTime { kernel, seconds: seconds[3], bytes, elements, flops: flops as f64 });
    }

    fn elementwise(&mut self, s: &Shape) {
        let n = s.tokens * s.width;
        let x = self.tensor(s.tokens, s.width);
        let mut y = self.zeros(s.tokens, s.width);
        self.time("fill", n, n, 0, |cpu| cpu.fill(1.0, y.view_mut()));
        self.time("copy", 2 * n, n, 0, |cpu| cpu.copy(x.view(), y.view_mut()));
        self.time("axpby", 3 * n, n, 0, |cpu| cpu.axpby(0.5, x.view(), 0.5, y.view_mut()));
        self.time("sum_of_squares", n, n, 0, |cpu| assert!(cpu.sum_of_squares(x.view()) > 0.0));
        self.time("column_sums", n, n, 0, |cpu| assert!(!cpu.column_sums(x.view()).is_empty()));
        let bias = self.tensor(1, s.width);
        self.time("add_bias", 2 * n, n, 0, |cpu| cpu.add_bias(bias.view(), y.view_mut()));
    }

    fn rows(&mut self, s: &Shape) {
        let (t, d, k) = (s.tokens, s.width, s.top_k);
        let index: Vec<u32> = (0..t * k).map(|_| self.random.below(t) as u32).collect();
        let x = self.tensor(t, d);
        let (mut slots, mut dx) = (self.zeros(t * k, d), self.zeros(t, d));
        let n = t * k * d;
        self.time("gather", 2 * n, n, 0, |cpu| cpu.gather(&index, x.view(), slots.view_mut()));
        self.time("gather_backward", 3 * n, n, 0, |cpu| cpu.gather_backward(&index, slots.view(), dx.view_mut()));
        let mut places: Vec<u32> = (0..(t * k) as u32).collect();
        (1..t * k).for_each(|i| places.swap(i, self.random.below(i + 1)));
        self.time("gather_sum", n + 2 * t * d, n, 0, |cpu| cpu.gather_sum(k, &places, slots.view(), dx.view_mut()));
    }

    fn norms(&mut self, s: &Shape) {
        let (t, d) = (s.tokens, s.width);
        let (x, w, dy) = (self.tensor(t, d), self.tensor(1, d), self.tensor(t, d));
        let (mut y, mut rstd, mut dw) = (self.zeros(t, d), self.zeros(t, 1), self.zeros(1, d));
        let n = t * d;
        self.time("rms_norm", 2 * n, n, 0, |cpu| {
            cpu.rms_norm(1e-6, x.view(), w.view(), y.view_mut(), rstd.view_mut());
        });
        self.time("rms_norm_backward", 4 * n, n, 0, |cpu| {
            cpu.rms_norm_backward(x.view(), w.view(), rstd.view(), dy.view(), y.view_mut(), dw.view_mut());
        });

        let (h, width) = (s.heads, s.heads.width());
        let n = t * width;
        let (x, dy) = (self.tensor(t, width), self.tensor(t, width));
        let (wq, wk) = (self.tensor(1, h.dim), self.tensor(1, h.dim));
        let (mut y, mut rstd) = (self.zeros(t, width), self.zeros(t, h.q + h.kv));
        let (mut dwq, mut dwk) = (self.zeros(1, h.dim), self.zeros(1, h.dim));
        self.time("qk_norm", 2 * n, n, 0, |cpu| {
            cpu.qk_norm(h, 1e-6, x.view(), wq.view(), wk.view(), y.view_mut(), rstd.view_mut());
        });
        self.time("qk_norm_backward", 3 * n, n, 0, |cpu| {
            let (q, k, r) = (wq.view(), wk.view(), rstd.view());
            let (dq, dk) = (dwq.view_mut(), dwk.view_mut());
            cpu.qk_norm_backward(h, x.view(), q, k, r, dy.view(), y.view_mut(), dq, dk);
        });
        let table = self.tensor(s.segment, h.dim);
        let positions: Vec<u32> = (0..t).map(|i| (i % s.segment) as u32).collect();
        self.time("rope", 2 * t * (h.q + h.kv) * h.dim, n, 0, |cpu| {
            cpu.rope(h, table.view(), &positions, false, y.view_mut());
        });
    }

    fn attention(&mut self, s: &Shape) {
        let (t, h) = (s.tokens, s.heads);
        let (width, wide, scale) = (h.width(), h.q * h.dim, 1.0 / (h.dim as f64).sqrt());
        let segments: Vec<u32> = (0..=t / s.segment).map(|i| (i * s.segment) as u32).collect();
        let (qkv, dout) = (self.tensor(t, width), self.tensor(t, wide));
        let (mut out, mut lse, mut dqkv) = (self.zeros(t, wide), self.zeros(t, h.q), self.zeros(t, width));
        // Two products of `dim` per visible pair forward; four backward, and the scores once more.
        let pair = t * s.segment.div_ceil(2) * h.q * 2 * h.dim;
        self.time("attention", t * (width + wide), t * wide, 2 * pair, |cpu| {
            cpu.attention(h, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut());
        });
        self.time("attention_backward", 2 * t * (width + wide), t * width, 5 * pair, |cpu| {
            let (o, l) = (out.view(), lse.view());
            cpu.attention_backward(h, scale, &segments, qkv.view(), o, l, dout.view(), dqkv.view_mut());
        });
        let past = s.segment - 1;
        let (mut k, mut v) = (self.tensor(s.segment, h.kv * h.dim), self.tensor(s.segment, h.kv * h.dim));
        let one = qkv.view().rows(0..1);
        let pair = s.segment * h.q * 2 * h.dim;
        self.time("attention_cached", 2 * s.segment * h.kv * h.dim, wide, 2 * pair, |cpu| {
            let out = out.view_mut().rows(0..1);
            cpu.attention_cached(h, scale, past, one, k.view_mut(), v.view_mut(), out);
        });
    }

    fn experts(&mut self, s: &Shape) {
        let (n, f) = (s.tokens * s.top_k, s.expert_width);
        let (mut x, w) = (self.tensor(n, 2 * f), self.tensor(n, 1));
        let (mut y, mut dw) = (self.tensor(n, f), self.zeros(n, 1));
        self.time("swiglu", 3 * n * f, n * f, 0, |cpu| cpu.swiglu(x.view(), Some(w.view()), y.view_mut()));
        self.time("swiglu_backward", 6 * n * f, n * f, 0, |cpu| {
            cpu.swiglu_backward(Some(w.view()), x.view_mut(), y.view_mut(), Some(dw.view_mut()));
        });

        let (t, e, k) = (s.tokens, s.experts, s.top_k);
        let softmax =
            Routing { top_k: k, score: Score::Softmax, renormalize: true, scale: 1.0, groups: 1, top_groups: 1 };
        let (logits, dw) = (self.tensor(t, e), self.tensor(t, k));
        let (mut scores, mut weights, mut stats) = (self.zeros(t, e), self.zeros(t, k), self.zeros(t, 2));
        let (mut choice, mut dlogits) = (Tensor::new(self.cpu, [t, k], DType::U32), self.zeros(t, e));
        for (name, score) in [("route softmax", Score::Softmax), ("route sigmoid", Score::Sigmoid)] {
            let routing = Routing { score, ..softmax };
            self.time(name, 2 * t * e, t * e, 0, |cpu| {
                let (s, c, w) = (scores.view_mut(), choice.view_mut(), weights.view_mut());
                cpu.route(&routing, logits.view(), None, s, c, w, stats.view_mut());
            });
        }
        self.time("route_backward", 2 * t * e, t * e, 0, |cpu| {
            let (s, c, w, st) = (scores.view(), choice.view(), weights.view(), stats.view());
            cpu.route_backward(&softmax, &[], 0.0, s, c, w, st, dw.view(), dlogits.view_mut());
        });
    }

    fn training(&mut self, s: &Shape) {
        let (t, v) = (s.tokens, s.vocabulary);
        let targets: Vec<u32> = (0..t).map(|_| self.random.below(v) as u32).collect();
        let (mut logits, mut losses) = (self.tensor(t, v), self.zeros(t, 1));
        self.time("cross_entropy", t * v, t * v, 0, |cpu| {
            cpu.cross_entropy(None, &targets, logits.view_mut(), losses.view_mut(), None);
        });
        self.time("cross_entropy + gradient", 2 * t * v, t * v, 0, |cpu| {
            cpu.cross_entropy(Some(1.0), &targets, logits.view_mut(), losses.view_mut(), None);
        });
        let n = s.parameters;
        let (g, mut w, mut m, mut v) = (self.tensor(n, 1), self.tensor(n, 1), self.zeros(n, 1), self.zeros(n, 1));
        let a = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 9, grad_scale: 1.0 };
        self.time("adamw", 7 * n, n, 0, |cpu| cpu.adamw(&a, g.view(), w.view_mut(), m.view_mut(), v.view_mut(), None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_timed() {
        let heads = Heads { q: 4, kv: 2, dim: 8 };
        let shape = Shape {
            tokens: 64,
            segment: 16,
            width: 32,
            vocabulary: 50,
            heads,
            experts: 4,
            top_k: 2,
            expert_width: 16,
            parameters: 999,
        };
        let times = kernels(&Cpu::new(2), shape);
        assert!(times.len() > 20 && times.iter().all(|t| t.seconds > 0.0 && t.bytes > 0.0));
        assert!(times.iter().filter(|t| t.flops > 0.0).count() == 3);
    }
}
