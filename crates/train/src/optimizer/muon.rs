//! Muon on one matrix: momentum whose singular values are all set to about one.
//!
//! Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"): with the Nesterov momentum
//! `U = G + μM`, `M ← μM + G`, the update is the nearest semi-orthogonal matrix to U, approximated by five steps of a quintic
//! Newton–Schulz iteration, which is nothing but matrix products. Liu et al. 2025 ("Muon is scalable for LLM training",
//! eq. 4) scale it by `0.2·√max(rows, columns)`, which gives updates the size of AdamW's, so that one learning rate and
//! one weight decay serve both.

use wudao_device::{DType, Device, Gemm, Tensor, View, ViewMut};

/// The iteration's coefficients, tuned by Jordan et al. for speed, not for exactness: singular values end between about
/// 0.7 and 1.2.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Iterations.
const ITERATIONS: usize = 5;

/// Most bytes alive in a step on a matrix: two operands of its size and two small Gram matrices or, before them, the
/// momentum as it is kept and one operand.
pub(super) fn scratch([rows, cols]: [usize; 2], operands: DType, kept: DType) -> usize {
    let n = rows.min(cols);
    let iterating = (2 * rows * cols + 2 * n * n) * operands.size();
    iterating.max(rows * cols * (kept.size() + operands.size()))
}

/// Muon's step, everything but the state.
pub(super) struct Muon {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub grad_scale: f64,
    /// The type that the iteration multiplies in.
    pub operands: DType,
}

impl Muon {
    /// One step on a matrix: weights `w` and momentum `m` in place.
    pub fn step<D: Device>(&self, device: &D, g: View<D>, w: ViewMut<D>, mut m: ViewMut<D>) {
        let [rows, cols] = w.shape();
        device.axpby(self.grad_scale, g, self.momentum, m.reborrow());
        let mut u = Tensor::new(device, [rows, cols], m.dtype());
        device.axpby(self.momentum, m.as_view(), 0.0, u.view_mut());
        device.axpby(self.grad_scale, g, 1.0, u.view_mut());
        let keep = 1.0 - self.lr * self.weight_decay;
        match orthogonalize(device, u, self.operands) {
            Some(o) => device.axpby(-self.lr * 0.2 * (rows.max(cols) as f64).sqrt(), o.view(), keep, w),
            None => {
                // An expert that never saw a token: nothing to do but to decay.
                let zero = Tensor::zeros(device, [rows, cols], w.dtype());
                device.axpby(0.0, zero.view(), keep, w);
            }
        }
    }
}

/// The matrix with its singular values set to about one, multiplied in `dtype`; `None` if it is zero.
pub(super) fn orthogonalize<D: Device>(device: &D, x: Tensor<D>, dtype: DType) -> Option<Tensor<D>> {
    let norm = device.sum_of_squares(x.view()).sqrt();
    if norm == 0.0 {
        return None;
    }
    let [rows, cols] = x.shape();
    // The small Gram matrix is XXᵀ or XᵀX; the polynomial acts from that side.
    let tall = rows > cols;
    let n = rows.min(cols);
    let mut scaled = Tensor::new(device, [rows, cols], dtype);
    device.axpby(1.0 / norm, x.view(), 0.0, scaled.view_mut());
    drop(x);
    let (mut x, mut next) = (scaled, Tensor::new(device, [rows, cols], dtype));
    let (mut gram, mut square) = (Tensor::new(device, [n, n], dtype), Tensor::new(device, [n, n], dtype));
    let [a, b, c] = QUINTIC;
    for _ in 0..ITERATIONS {
        let product = if tall { Gemm { ta: true, ..Gemm::NN } } else { Gemm::NT };
        device.gemm(product, x.view(), x.view(), gram.view_mut());
        device.gemm(Gemm::NN, gram.view(), gram.view(), square.view_mut());
        device.axpby(b, gram.view(), c, square.view_mut());
        let (left, right) = if tall { (&x, &square) } else { (&square, &x) };
        device.gemm(Gemm::NN, left.view(), right.view(), next.view_mut());
        device.axpby(a, x.view(), 1.0, next.view_mut());
        std::mem::swap(&mut x, &mut next);
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wudao_device::{Cpu, check::Random};

    /// What five iterations make of one singular value.
    fn polynomial(s: f64) -> f64 {
        (0..ITERATIONS).fold(s, |s, _| QUINTIC[0] * s + QUINTIC[1] * s.powi(3) + QUINTIC[2] * s.powi(5))
    }

    /// A matrix with known singular vectors: two orthogonal directions, of sizes 3 and 1.
    #[test]
    fn singular_vectors_stay_and_singular_values_go_through_the_polynomial() {
        let cpu = Cpu::new(1);
        let h = 0.5f64.sqrt();
        let (u, v) = ([[h, h, 0.0], [h, -h, 0.0]], [[0.6, 0.8], [-0.8, 0.6]]);
        let build = |s: [f64; 2]| -> Vec<f64> {
            (0..6).map(|i| (0..2).map(|k| s[k] * u[k][i / 2] * v[k][i % 2]).sum()).collect()
        };
        let x = Tensor::from_host(&cpu, [3, 2], &build([3.0, 1.0]));
        let got = orthogonalize(&cpu, x, DType::F64).unwrap().view().to_f64(&cpu);
        let norm = 10f64.sqrt();
        let expected = build([polynomial(3.0 / norm), polynomial(1.0 / norm)]);
        let bound = wudao_device::tolerance::of("gemm", wudao_device::DType::F64);
        for (g, e) in got.iter().zip(&expected) {
            assert!((g - e).abs() <= bound.allowed(*e), "{g} {e}");
        }
    }

    #[test]
    fn zero_has_no_direction() {
        let cpu = Cpu::new(1);
        let zero = Tensor::from_host(&cpu, [2, 2], &[0.0f32; 4]);
        assert!(orthogonalize(&cpu, zero, DType::F32).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The transposed matrix gives the transposed answer, whichever side is longer; and the answer's size is that of a
        /// semi-orthogonal matrix.
        #[test]
        fn transposition_commutes(rows in 1usize..9, cols in 1usize..9, seed in 1u64..1000) {
            let cpu = Cpu::new(1);
            let x = Random(seed).values(rows * cols);
            let xt: Vec<f64> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
            let of = |shape, x: &[f64]| {
                orthogonalize(&cpu, Tensor::from_host(&cpu, shape, x), DType::F64).unwrap().view().to_f64(&cpu)
            };
            let (y, yt) = (of([rows, cols], &x), of([cols, rows], &xt));
            let bound = wudao_device::tolerance::of("ranks", wudao_device::DType::F64);
            for (i, got) in yt.iter().enumerate() {
                let expected = y[i % rows * cols + i / rows];
                prop_assert!((got - expected).abs() <= bound.allowed(expected), "{got} {expected}");
            }
            let n = rows.min(cols) as f64;
            let size: f64 = y.iter().map(|v| v * v).sum();
            prop_assert!(size < 1.3 * 1.3 * n);
        }

        /// Singular values that are not tiny end near one.
        #[test]
        fn the_polynomial_flattens(s in 0.05f64..1.0) {
            prop_assert!((0.6..1.3).contains(&polynomial(s)), "{}", polynomial(s));
        }
    }

    /// Muon's first step moves each weight by about 0.2·lr, like AdamW's usual step.
    #[test]
    fn updates_have_the_size_of_adamws() {
        let cpu = Cpu::new(1);
        let (rows, cols) = (24, 16);
        let g = Tensor::from_host(&cpu, [rows, cols], &Random(3).values(rows * cols));
        let mut w = Tensor::zeros(&cpu, [rows, cols], wudao_device::DType::F64);
        let mut m = Tensor::zeros(&cpu, [rows, cols], wudao_device::DType::F64);
        let muon = Muon { lr: 0.01, momentum: 0.95, weight_decay: 0.1, grad_scale: 1.0, operands: DType::F64 };
        muon.step(&cpu, g.view(), w.view_mut(), m.view_mut());
        let rms = (cpu.sum_of_squares(w.view()) / (rows * cols) as f64).sqrt();
        assert!((0.1..0.3).contains(&(rms / 0.01)), "{}", rms / 0.01);
    }
}
