//! Muon on one matrix: momentum whose singular values are all set to about one.
//!
//! Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks"): with the Nesterov momentum
//! `U = G + μM`, `M ← μM + G`, the update is the nearest semi-orthogonal matrix to U, approximated by five steps of a quintic
//! Newton–Schulz iteration, which is nothing but matrix products. Liu et al. 2025 ("Muon is scalable for LLM training",
//! eq. 4) scale it by `0.2·√max(rows, columns)`, which gives updates the size of AdamW's, so that one learning rate and
//! one weight decay serve both.

use std::ops::Range;
use wudao_device::{DType, Device, Gemm, Nesterov, Operand, Tensor, View, ViewMut};

/// The iteration's coefficients, tuned by Jordan et al. for speed, not for exactness: singular values end between about
/// 0.7 and 1.2.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Iterations.
const ITERATIONS: usize = 5;

/// Matrices of one shape are orthogonalised together, up to so many elements: enough that a product of small ones is worth a
/// hand-off to the threads, few enough that they stay in a cache from one product to the next.
const TOGETHER: usize = 1 << 20;

/// How many matrices of a shape are orthogonalised together.
pub(super) fn together([rows, cols]: [usize; 2]) -> usize {
    (TOGETHER / (rows * cols)).max(1)
}

/// Most bytes alive in a step on `count` matrices of a shape: two operands of their size and two small Gram matrices each
/// or, before them, one momentum as it is summed and one operand.
pub(super) fn scratch(count: usize, [rows, cols]: [usize; 2], operands: DType, sums: DType) -> usize {
    let n = rows.min(cols);
    let iterating = count * (2 * rows * cols + 2 * n * n) * operands.size();
    iterating.max(rows * cols * (sums.size() + count * operands.size()))
}

/// Muon's step, everything but the state.
pub(super) struct Muon {
    pub lr: f64,
    pub weight_decay: f64,
    pub nesterov: Nesterov,
}

impl Muon {
    /// Takes the gradient `g` into the momentum `m`, and writes what is to be orthogonalised to `x`, its norm being one. False
    /// if it is zero, for an expert that never saw a token.
    pub fn direction<D: Device>(&self, device: &D, g: View<D>, m: ViewMut<D>, x: ViewMut<D>) -> bool {
        let mut u = Tensor::new(device, g.shape(), g.dtype());
        let squares = device.nesterov(&self.nesterov, g, m, u.view_mut());
        normalize(device, u.view(), squares, x)
    }

    /// Moves the weights `w` along the orthogonal matrix `o`.
    pub fn update<D: Device>(&self, device: &D, o: View<D>, w: ViewMut<D>) {
        let longer = w.shape().into_iter().max().expect("two sides") as f64;
        device.axpby(-self.lr * 0.2 * longer.sqrt(), o, 1.0 - self.lr * self.weight_decay, w);
    }
}

/// `x = u/‖u‖`, or zero and false.
fn normalize<D: Device>(device: &D, u: View<D>, squares: f64, x: ViewMut<D>) -> bool {
    let norm = squares.sqrt();
    device.axpby(if norm == 0.0 { 0.0 } else { 1.0 / norm }, u, 0.0, x);
    norm != 0.0
}

/// `count` matrices of norm one, one below the other, with their singular values set to about one, multiplied in their own type.
/// Zero stays zero.
pub(super) fn orthogonalize<D: Device>(device: &D, count: usize, mut x: Tensor<D>) -> Tensor<D> {
    let ([all, cols], dtype) = (x.shape(), x.dtype());
    let rows = all / count;
    // The small Gram matrix is XXᵀ or XᵀX; the polynomial acts from that side.
    let (n, tall) = (rows.min(cols), rows > cols);
    let bands = |height: usize| (0..count).map(|i| i * height..(i + 1) * height).collect::<Vec<_>>();
    let (of_x, of_gram) = (bands(rows), bands(n));
    fn each<'t, D: Device>(t: &'t Tensor<D>, bands: &[Range<usize>]) -> Vec<Operand<'t, D>> {
        bands.iter().map(|band| Operand::Plain(t.view().rows(band.clone()))).collect()
    }
    let mut next = Tensor::new(device, [all, cols], dtype);
    let [mut gram, mut square] = [0; 2].map(|_| Tensor::new(device, [count * n, n], dtype));
    let [a, b, c] = QUINTIC;
    for _ in 0..ITERATIONS {
        if tall {
            device.gemm_bands_outer(Gemm::TN, &of_x, x.view(), x.view(), split(gram.view_mut(), n));
        } else {
            device.gemm_bands(Gemm::NT, &of_x, x.view(), &each(&x, &of_x), gram.view_mut());
        }
        device.gemm_bands(Gemm::NN, &of_gram, gram.view(), &each(&gram, &of_gram), square.view_mut());
        device.axpby(b, gram.view(), c, square.view_mut());
        let (left, of_left, right, of_right) =
            if tall { (&x, &of_x, &square, &of_gram) } else { (&square, &of_gram, &x, &of_x) };
        device.gemm_bands(Gemm::NN, of_left, left.view(), &each(right, of_right), next.view_mut());
        device.axpby(a, x.view(), 1.0, next.view_mut());
        std::mem::swap(&mut x, &mut next);
    }
    x
}

/// Cuts a matrix into bands of `height` rows.
fn split<D: Device>(mut t: ViewMut<'_, D>, height: usize) -> Vec<ViewMut<'_, D>> {
    let mut bands = vec![];
    while t.shape()[0] > height {
        let (band, rest) = t.split(height);
        bands.push(band);
        t = rest;
    }
    bands.push(t);
    bands
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

    /// Matrices of any norm, one after another, orthogonalised together.
    fn orthogonal(cpu: &Cpu, count: usize, [rows, cols]: [usize; 2], x: &[f64]) -> Vec<f64> {
        let mut stack = Tensor::new(cpu, [count * rows, cols], DType::F64);
        for (i, x) in x.chunks_exact(rows * cols).enumerate() {
            let u = Tensor::from_host(cpu, [rows, cols], x);
            normalize(cpu, u.view(), cpu.sum_of_squares(u.view()), stack.view_mut().rows(i * rows..(i + 1) * rows));
        }
        orthogonalize(cpu, count, stack).view().to_f64(cpu)
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
        let got = orthogonal(&cpu, 1, [3, 2], &build([3.0, 1.0]));
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
        assert_eq!(orthogonal(&cpu, 1, [2, 2], &[0.0; 4]), [0.0; 4]);
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
            let (y, yt) = (orthogonal(&cpu, 1, [rows, cols], &x), orthogonal(&cpu, 1, [cols, rows], &xt));
            let bound = wudao_device::tolerance::of("ranks", wudao_device::DType::F64);
            for (i, got) in yt.iter().enumerate() {
                let expected = y[i % rows * cols + i / rows];
                prop_assert!((got - expected).abs() <= bound.allowed(expected), "{got} {expected}");
            }
            let n = rows.min(cols) as f64;
            let size: f64 = y.iter().map(|v| v * v).sum();
            prop_assert!(size < 1.3 * 1.3 * n);
        }

        /// Who else is orthogonalised beside a matrix does not change its bits.
        #[test]
        fn together_is_each_by_itself(count in 1usize..5, rows in 1usize..9, cols in 1usize..9, seed in 1u64..1000) {
            let (cpu, shape) = (Cpu::new(1), [rows, cols]);
            let x = Random(seed).values(count * rows * cols);
            let each = x.chunks_exact(rows * cols).flat_map(|x| orthogonal(&cpu, 1, shape, x)).collect::<Vec<_>>();
            prop_assert_eq!(orthogonal(&cpu, count, shape, &x), each);
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
        let nesterov = Nesterov { momentum: 0.95, step: 1, grad_scale: 1.0 };
        let muon = Muon { lr: 0.01, weight_decay: 0.1, nesterov };
        let mut x = Tensor::new(&cpu, [rows, cols], DType::F64);
        assert!(muon.direction(&cpu, g.view(), m.view_mut(), x.view_mut()));
        muon.update(&cpu, orthogonalize(&cpu, 1, x).view(), w.view_mut());
        let rms = (cpu.sum_of_squares(w.view()) / (rows * cols) as f64).sqrt();
        assert!((0.1..0.3).contains(&(rms / 0.01)), "{}", rms / 0.01);
    }
}
