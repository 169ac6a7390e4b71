//! Speed of every kernel at the shapes of a training step, matrix products included.

use crate::check::Random;
use crate::{AdamW, Cpu, DType, Device, Gemm, Heads, Nesterov, Operand, Rotation, Routing, Score, Tensor};
use std::time::Instant;

/// Sizes of a step, and the type of its operands.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Type of operands and activations (the contract's A).
    pub dtype: DType,
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
    /// Width of a feed-forward that every token takes (0: there is none).
    pub dense_width: usize,
    /// Experts (0: there are none).
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
            dtype: DType::F32,
            tokens: 4096,
            segment: 512,
            width: 512,
            vocabulary: 8192,
            heads: Heads { q: 8, kv: 8, dim: 64 },
            dense_width: 1536,
            experts: 8,
            top_k: 2,
            expert_width: 768,
            parameters: 1 << 23,
        }
    }
}

/// Time of one kernel.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// Its name, and for a matrix product what it is for and its shape, rows × columns × depth.
    pub kernel: String,
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

/// Calls of a kernel, of which the median counts …
const TRIES: usize = 7;
/// … but no more than this many if they take longer than `LONG` together.
const FEWEST: usize = 3;
/// Seconds.
const LONG: f64 = 1.0;

/// Times every kernel: a few seconds for a small shape, a minute or two for a large one.
pub fn kernels(cpu: &Cpu, shape: Shape) -> Vec<KernelTime> {
    let sums = Cpu::statistics(shape.dtype);
    let mut b = Bench { cpu, dtype: shape.dtype, sums, random: Random(1), times: Vec::new() };
    b.products(&shape);
    b.elementwise(&shape);
    b.rows(&shape);
    b.norms(&shape);
    b.attention(&shape);
    b.feed_forward(&shape);
    b.router(&shape);
    b.training(&shape);
    b.times
}

struct Bench<'a> {
    cpu: &'a Cpu,
    /// The contract's A …
    dtype: DType,
    /// … and S.
    sums: DType,
    random: Random,
    times: Vec<KernelTime>,
}

impl Bench<'_> {
    fn random(&mut self, dtype: DType, rows: usize, cols: usize) -> Tensor<Cpu> {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.random.uniform() as f32).collect();
        let exact = Tensor::from_host(self.cpu, [rows, cols], &values);
        let mut x = Tensor::new(self.cpu, [rows, cols], dtype);
        self.cpu.copy(exact.view(), x.view_mut());
        x
    }
    /// An operand or an activation.
    fn tensor(&mut self, rows: usize, cols: usize) -> Tensor<Cpu> {
        self.random(self.dtype, rows, cols)
    }
    fn zeros(&self, rows: usize, cols: usize) -> Tensor<Cpu> {
        Tensor::zeros(self.cpu, [rows, cols], self.dtype)
    }
    /// A weight, a gradient, a part of the residual stream.
    fn tensor_sums(&mut self, rows: usize, cols: usize) -> Tensor<Cpu> {
        self.random(self.sums, rows, cols)
    }
    fn zeros_sums(&self, rows: usize, cols: usize) -> Tensor<Cpu> {
        Tensor::zeros(self.cpu, [rows, cols], self.sums)
    }

    /// Bytes of an element of the two types.
    fn sizes(&self) -> [usize; 2] {
        [self.dtype.size(), self.sums.size()]
    }

    /// `bytes` cross memory, `made` elements come out.
    fn time(&mut self, kernel: &str, bytes: usize, made: usize, flops: usize, mut run: impl FnMut(&Cpu)) {
        self.time_anew(kernel, bytes, made, flops, &mut (), |_, ()| (), |cpu, ()| run(cpu));
    }

    /// [`Bench::time`] of a kernel that works in place, on a state that `prepare` makes anew before every call.
    #[allow(clippy::too_many_arguments)]
    fn time_anew<T>(
        &mut self,
        kernel: &str,
        bytes: usize,
        made: usize,
        flops: usize,
        state: &mut T,
        mut prepare: impl FnMut(&Cpu, &mut T),
        mut run: impl FnMut(&Cpu, &mut T),
    ) {
        let mut call = || {
            prepare(self.cpu, state);
            let start = Instant::now();
            run(self.cpu, state);
            start.elapsed().as_secs_f64()
        };
        call();
        let mut seconds: Vec<f64> = vec![];
        while seconds.len() < FEWEST || seconds.len() < TRIES && seconds.iter().sum::<f64>() < LONG {
            seconds.push(call());
        }
        seconds.sort_by(f64::total_cmp);
        let (kernel, seconds) = (kernel.to_owned(), seconds[seconds.len() / 2]);
        let (bytes, elements) = (bytes as f64, made as f64);
        self.times.push(KernelTime { kernel, seconds, bytes, elements, flops: flops as f64 });
    }

    /// The matrix products: of each linear layer `[n, k]` its output, and the gradients of its input and its weights.
    fn products(&mut self, s: &Shape) {
        let [a, sum] = self.sizes();
        let (d, heads) = (s.width, s.heads);
        let layers = [
            ("query, key, value", heads.width(), d),
            ("attention output", d, heads.q * heads.dim),
            ("router", s.experts, d),
            ("gate and up", 2 * s.dense_width, d),
            ("down", d, s.dense_width),
            ("head", s.vocabulary, d),
        ];
        let gradient = Gemm::TN.measured(true);
        for (layer, n, k) in layers.into_iter().filter(|(_, n, k)| n * k > 0) {
            let (m, flops) = (s.tokens, 2 * s.tokens * n * k);
            let moved = a * (s.tokens * (n + k) + n * k);
            let (mut x, mut y, w) = (self.tensor(m, k), self.zeros(m, n), self.tensor(n, k));
            let mut dw = self.zeros_sums(n, k);
            let name = |what, [m, n, k]: [usize; 3]| format!("gemm {layer}{what} {m}×{n}×{k}");
            self.time(&name("", [m, n, k]), moved, m * n, flops, |cpu| {
                cpu.gemm(Gemm::NT, x.view(), w.view(), y.view_mut());
            });
            self.time(&name(", input gradient", [m, k, n]), moved, m * k, flops, |cpu| {
                cpu.gemm(Gemm::NN, y.view(), w.view(), x.view_mut());
            });
            let moved = a * s.tokens * (n + k) + sum * n * k;
            self.time(&name(", weight gradient", [n, k, m]), moved, n * k, flops, |cpu| {
                cpu.gemm_bands_outer(gradient, std::slice::from_ref(&(0..m)), y.view(), x.view(), vec![dw.view_mut()]);
            });
        }
        let (e, f, m) = (s.experts, s.expert_width, s.tokens * s.top_k);
        let bands: Vec<_> = (0..e).map(|i| m * i / e..m * (i + 1) / e).collect();
        for (layer, n, k) in [("gate and up", 2 * f, d), ("down", d, f)].into_iter().filter(|_| e > 0) {
            let (moved, flops) = (a * (m * (n + k) + e * n * k), 2 * m * n * k);
            let (mut x, mut y) = (self.tensor(m, k), self.zeros(m, n));
            let w: Vec<_> = (0..e).map(|_| self.tensor(n, k)).collect();
            let mut dw: Vec<_> = (0..e).map(|_| self.zeros_sums(n, k)).collect();
            let name = |what, [m, n, k]: [usize; 3]| format!("experts {layer}{what} {e}×{m}×{n}×{k}");
            let w: Vec<Operand<Cpu>> = w.iter().map(|w| w.view().into()).collect();
            self.time(&name("", [m / e, n, k]), moved, m * n, flops, |cpu| {
                cpu.gemm_bands(Gemm::NT, &bands, x.view(), &w, y.view_mut());
            });
            self.time(&name(", input gradient", [m / e, k, n]), moved, m * k, flops, |cpu| {
                cpu.gemm_bands(Gemm::NN, &bands, y.view(), &w, x.view_mut());
            });
            let moved = a * m * (n + k) + sum * e * n * k;
            self.time(&name(", weight gradient", [n, k, m / e]), moved, e * n * k, flops, |cpu| {
                let dw = dw.iter_mut().map(Tensor::view_mut).collect();
                cpu.gemm_bands_outer(gradient, &bands, y.view(), x.view(), dw);
            });
        }
    }

    fn elementwise(&mut self, shape: &Shape) {
        let [a, s] = self.sizes();
        let n = shape.tokens * shape.width;
        let (x, mut stream) = (self.tensor(shape.tokens, shape.width), self.tensor_sums(shape.tokens, shape.width));
        let mut y = self.zeros(shape.tokens, shape.width);
        self.time("fill", a * n, n, 0, |cpu| cpu.fill(1.0, y.view_mut()));
        self.time("copy", a * 2 * n, n, 0, |cpu| cpu.copy(x.view(), y.view_mut()));
        self.time("copy to A", a * n + s * n, n, 0, |cpu| cpu.copy(stream.view(), y.view_mut()));
        self.time("copy to S", a * n + s * n, n, 0, |cpu| cpu.copy(x.view(), stream.view_mut()));
        self.time("axpby", a * 3 * n, n, 0, |cpu| cpu.axpby(0.5, x.view(), 0.5, y.view_mut()));
        self.time("axpby to S", a * n + s * 2 * n, n, 0, |cpu| cpu.axpby(1.0, x.view(), 0.5, stream.view_mut()));
        self.time("sum_of_squares", a * n, n, 0, |cpu| assert!(cpu.sum_of_squares(x.view()) > 0.0));
        self.time("column_sums", a * n, n, 0, |cpu| assert!(!cpu.column_sums(x.view()).is_empty()));
        let bias = self.tensor_sums(1, shape.width);
        self.time("add_bias", a * 2 * n, n, 0, |cpu| cpu.add_bias(bias.view(), y.view_mut()));
    }

    fn rows(&mut self, shape: &Shape) {
        let [a, s] = self.sizes();
        let (t, d, k) = (shape.tokens, shape.width, shape.top_k);
        if shape.experts == 0 {
            return;
        }
        let index: Vec<u32> = (0..t * k).map(|_| self.random.below(t) as u32).collect();
        let x = self.tensor(t, d);
        let (mut slots, mut sum) = (self.zeros(t * k, d), self.zeros_sums(t, d));
        let n = t * k * d;
        self.time("gather", a * 2 * n, n, 0, |cpu| cpu.gather(&index, x.view(), slots.view_mut()));
        self.time("gather to A", a * n + s * n, n, 0, |cpu| cpu.gather(&index, sum.view(), slots.view_mut()));
        self.time("gather_backward", a * n + s * 2 * n, n, 0, |cpu| {
            cpu.gather_backward(&index, slots.view(), sum.view_mut());
        });
        let mut places: Vec<u32> = (0..(t * k) as u32).collect();
        (1..t * k).for_each(|i| places.swap(i, self.random.below(i + 1)));
        self.time("gather_sum", a * n + s * 2 * t * d, n, 0, |cpu| {
            cpu.gather_sum(k, &places, slots.view(), sum.view_mut());
        });
    }

    fn norms(&mut self, shape: &Shape) {
        let [a, s] = self.sizes();
        let (t, d) = (shape.tokens, shape.width);
        let (x, w, dy) = (self.tensor_sums(t, d), self.tensor_sums(1, d), self.tensor(t, d));
        let (mut y, mut rstd) = (self.zeros(t, d), self.zeros_sums(t, 1));
        let (mut dx, mut dw) = (self.zeros_sums(t, d), self.zeros_sums(1, d));
        let n = t * d;
        self.time("rms_norm", a * n + s * n, n, 0, |cpu| {
            cpu.rms_norm(1e-6, x.view(), w.view(), y.view_mut(), rstd.view_mut());
        });
        self.time("rms_norm_backward", a * n + s * 3 * n, n, 0, |cpu| {
            cpu.rms_norm_backward(x.view(), w.view(), rstd.view(), dy.view(), dx.view_mut(), dw.view_mut());
        });

        let (h, width) = (shape.heads, shape.heads.width());
        let n = t * width;
        let (x, dy) = (self.tensor(t, width), self.tensor(t, width));
        let (wq, wk) = (self.tensor_sums(1, h.dim), self.tensor_sums(1, h.dim));
        let (mut y, mut rstd) = (self.zeros(t, width), self.zeros_sums(t, h.q + h.kv));
        let (mut dwq, mut dwk) = (self.zeros_sums(1, h.dim), self.zeros_sums(1, h.dim));
        let table = self.tensor_sums(shape.segment, h.dim);
        let positions: Vec<u32> = (0..t).map(|i| (i % shape.segment) as u32).collect();
        let by = Rotation { heads: h, table: table.view(), positions: &positions };
        self.time("qk_norm", a * 2 * n, n, 0, |cpu| {
            cpu.qk_norm(h, 1e-6, x.view(), wq.view(), wk.view(), &by, y.view_mut(), rstd.view_mut());
        });
        self.time("qk_norm_backward", a * 3 * n, n, 0, |cpu| {
            let (q, k, r) = (wq.view(), wk.view(), rstd.view());
            let (dq, dk) = (dwq.view_mut(), dwk.view_mut());
            cpu.qk_norm_backward(h, x.view(), q, k, r, &by, dy.view(), y.view_mut(), dq, dk);
        });
        self.time("rope", a * (2 * t * (h.q + h.kv) * h.dim), n, 0, |cpu| {
            cpu.rope(&by, false, y.view_mut());
        });
    }

    fn attention(&mut self, shape: &Shape) {
        let a = self.dtype.size();
        let (t, h) = (shape.tokens, shape.heads);
        let (width, wide, scale) = (h.width(), h.q * h.dim, 1.0 / (h.dim as f64).sqrt());
        let segments: Vec<u32> = (0..=t / shape.segment).map(|i| (i * shape.segment) as u32).collect();
        let (qkv, dout) = (self.tensor(t, width), self.tensor(t, wide));
        let (mut out, mut lse, mut dqkv) = (self.zeros(t, wide), self.zeros_sums(t, h.q), self.zeros(t, width));
        // Two products of `dim` per visible pair forward; four backward, and the scores once more.
        let pair = t * shape.segment.div_ceil(2) * h.q * 2 * h.dim;
        self.time("attention", a * (t * (width + wide)), t * wide, 2 * pair, |cpu| {
            cpu.attention(h, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut());
        });
        self.time("attention_backward", a * (2 * t * (width + wide)), t * width, 5 * pair, |cpu| {
            let (o, l) = (out.view(), lse.view());
            cpu.attention_backward(h, scale, &segments, qkv.view(), o, l, dout.view(), dqkv.view_mut());
        });
        let past = shape.segment - 1;
        let (mut k, mut v) = (self.tensor(shape.segment, h.kv * h.dim), self.tensor(shape.segment, h.kv * h.dim));
        let one = qkv.view().rows(0..1);
        let pair = shape.segment * h.q * 2 * h.dim;
        self.time("attention_cached", a * 2 * shape.segment * h.kv * h.dim, wide, 2 * pair, |cpu| {
            let out = out.view_mut().rows(0..1);
            cpu.attention_cached(h, scale, past, one, k.view_mut(), v.view_mut(), out);
        });
    }

    fn feed_forward(&mut self, shape: &Shape) {
        let a = self.dtype.size();
        let experts = if shape.experts > 0 { shape.tokens * shape.top_k } else { 0 };
        for (name, n, f) in [("experts", experts, shape.expert_width), ("dense", shape.tokens, shape.dense_width)] {
            if n * f == 0 {
                continue;
            }
            let (x, dy, w) = (self.tensor(n, 2 * f), self.tensor(n, f), self.tensor_sums(n, 1));
            let (mut y, mut dw) = (self.zeros(n, f), self.zeros_sums(n, 1));
            // Experts are weighed by their router; what every token takes is not.
            let weighed = name == "experts";
            self.time(&format!("swiglu {name}"), a * 3 * n * f, n * f, 0, |cpu| {
                cpu.swiglu(x.view(), weighed.then(|| w.view()), y.view_mut());
            });
            self.time_anew(
                &format!("swiglu_backward {name}"),
                a * 6 * n * f,
                n * f,
                0,
                &mut (self.zeros(n, 2 * f), y),
                |cpu, (g, d)| {
                    cpu.copy(x.view(), g.view_mut());
                    cpu.copy(dy.view(), d.view_mut());
                },
                |cpu, (g, d)| {
                    let dw = weighed.then(|| dw.view_mut());
                    cpu.swiglu_backward(weighed.then(|| w.view()), g.view_mut(), d.view_mut(), dw);
                },
            );
        }
    }

    fn router(&mut self, shape: &Shape) {
        if shape.experts == 0 {
            return;
        }
        let s = self.sums.size();
        let (t, e, k) = (shape.tokens, shape.experts, shape.top_k);
        let softmax =
            Routing { top_k: k, score: Score::Softmax, renormalize: true, scale: 1.0, groups: 1, top_groups: 1 };
        let (logits, dw) = (self.tensor_sums(t, e), self.tensor_sums(t, k));
        let (mut scores, mut weights, mut stats) =
            (self.zeros_sums(t, e), self.zeros_sums(t, k), self.zeros_sums(t, 2));
        let (mut choice, mut dlogits) = (Tensor::new(self.cpu, [t, k], DType::U32), self.zeros_sums(t, e));
        for (name, score) in [("route softmax", Score::Softmax), ("route sigmoid", Score::Sigmoid)] {
            let routing = Routing { score, ..softmax };
            self.time(name, s * 2 * t * e, t * e, 0, |cpu| {
                let (s, c, w) = (scores.view_mut(), choice.view_mut(), weights.view_mut());
                cpu.route(&routing, logits.view(), None, s, c, w, stats.view_mut());
            });
        }
        self.time("route_backward", s * 2 * t * e, t * e, 0, |cpu| {
            let (s, c, w, st) = (scores.view(), choice.view(), weights.view(), stats.view());
            cpu.route_backward(&softmax, &[], 0.0, s, c, w, st, dw.view(), dlogits.view_mut());
        });
    }

    fn training(&mut self, shape: &Shape) {
        let [a, s] = self.sizes();
        let (t, v) = (shape.tokens, shape.vocabulary);
        let targets: Vec<u32> = (0..t).map(|_| self.random.below(v) as u32).collect();
        let (x, mut losses, mut logits) = (self.tensor(t, v), self.zeros_sums(t, 1), self.zeros(t, v));
        let anew = |cpu: &Cpu, logits: &mut Tensor<Cpu>| cpu.copy(x.view(), logits.view_mut());
        self.time_anew("cross_entropy", a * t * v, t * v, 0, &mut logits, anew, |cpu, logits| {
            cpu.cross_entropy(None, &targets, logits.view_mut(), losses.view_mut());
        });
        self.time_anew("cross_entropy + gradient", a * 2 * t * v, t * v, 0, &mut logits, anew, |cpu, logits| {
            cpu.cross_entropy(Some(1.0), &targets, logits.view_mut(), losses.view_mut());
        });
        let n = shape.parameters;
        let (g, mut w) = (self.tensor_sums(n, 1), self.tensor_sums(n, 1));
        let (mut m, mut v) = (self.zeros_sums(n, 1), self.zeros_sums(n, 1));
        let step = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 9, grad_scale: 1.0 };
        self.time("adamw", s * 7 * n, n, 0, |cpu| {
            cpu.adamw(&step, g.view(), w.view_mut(), m.view_mut(), v.view_mut());
        });
        let momentum = Nesterov { momentum: 0.95, step: 9, grad_scale: 1.0 };
        self.time("nesterov", s * 4 * n, n, 0, |cpu| {
            assert!(cpu.nesterov(&momentum, g.view(), m.view_mut(), v.view_mut()) >= 0.0);
        });
        let [mut m, mut v] = [0; 2].map(|_| Tensor::zeros(self.cpu, [n, 1], DType::Bf16));
        self.time("adamw, moments in bf16", s * 5 * n, n, 0, |cpu| {
            cpu.adamw(&step, g.view(), w.view_mut(), m.view_mut(), v.view_mut());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_timed() {
        for dtype in [DType::F32, DType::Bf16] {
            let shape = Shape {
                dtype,
                tokens: 64,
                segment: 16,
                width: 32,
                vocabulary: 50,
                heads: Heads { q: 4, kv: 2, dim: 8 },
                dense_width: 24,
                experts: 4,
                top_k: 2,
                expert_width: 16,
                parameters: 999,
            };
            let times = |shape| kernels(&Cpu::new(2), shape);
            let both = times(shape);
            assert!(both.iter().all(|t| t.seconds > 0.0 && t.bytes > 0.0));
            let of = |times: &[KernelTime], name: &str| times.iter().filter(|t| t.kernel.starts_with(name)).count();
            assert_eq!((of(&both, "gemm"), of(&both, "experts"), of(&both, "attention")), (18, 6, 3));
            let qkv = &both[0];
            assert_eq!(
                (qkv.kernel.as_str(), qkv.flops),
                ("gemm query, key, value 64×64×32", f64::from(2 * 64 * 64 * 32))
            );
            assert!(both.iter().any(|t| t.kernel == "experts down, weight gradient 4×32×16×32"), "{both:?}");

            let dense = times(Shape { experts: 0, ..shape });
            assert_eq!((of(&dense, "gemm"), of(&dense, "experts"), of(&dense, "route")), (15, 0, 0));
            let sparse = times(Shape { dense_width: 0, ..shape });
            assert_eq!((of(&sparse, "gemm"), of(&sparse, "experts"), of(&sparse, "swiglu")), (12, 6, 2));
        }
    }
}
