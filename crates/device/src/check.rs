//! Ways to prove a kernel or a layer.
//!
//! [`gradient`] compares a hand-written gradient with central differences of the loss, in f64. [`compare`] holds two
//! results against the one [table of tolerances](crate::tolerance). [`kernels`] runs every kernel of a device once on
//! fixed inputs: the same device in another type, with another number of threads, or another device altogether must
//! give the same outputs within the table.

pub mod kernels;

use crate::DType;
use crate::tolerance::{self, Tolerance};

/// Where two results differ most.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Worst {
    /// The error there: relative from [`gradient`], in units of the allowed difference from [`compare`].
    pub error: f64,
    /// Index of the element.
    pub at: usize,
    /// What it should be: the numeric gradient, or the reference.
    pub expected: f64,
    /// What it is.
    pub actual: f64,
}

impl Worst {
    fn none() -> Self {
        Worst { error: 0.0, at: 0, expected: 0.0, actual: 0.0 }
    }
    /// NaN counts as infinitely wrong.
    fn update(&mut self, error: f64, at: usize, expected: f64, actual: f64) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > self.error {
            *self = Worst { error, at, expected, actual };
        }
    }
}

/// Largest relative error of `analytic`, the gradient of `loss` at `x`, against central differences of fourth order.
///
/// An element's error is relative to the larger of the two values, but not to less than a thousandth of the largest
/// gradient: a tiny element among large ones is only known up to the roundoff of the loss.
pub fn gradient(loss: impl FnMut(&[f64]) -> f64, x: &[f64], analytic: &[f64]) -> Worst {
    let all: Vec<usize> = (0..x.len()).collect();
    gradient_at(loss, x, analytic, &all)
}

/// [`gradient`] for the elements `at` alone, for models with many parameters.
pub fn gradient_at(mut loss: impl FnMut(&[f64]) -> f64, x: &[f64], analytic: &[f64], at: &[usize]) -> Worst {
    const STEP: f64 = 1e-4;
    assert_eq!(x.len(), analytic.len(), "a gradient for every input");
    let mut x = x.to_vec();
    let numeric: Vec<f64> = at
        .iter()
        .map(|&i| {
            let centre = x[i];
            let h = STEP * centre.abs().max(1.0);
            let mut f = |steps: f64| {
                x[i] = centre + steps * h;
                loss(&x)
            };
            let slope = (8.0 * (f(1.0) - f(-1.0)) - (f(2.0) - f(-2.0))) / (12.0 * h);
            x[i] = centre;
            slope
        })
        .collect();
    let largest = numeric.iter().chain(at.iter().map(|&i| &analytic[i])).fold(0.0, |m: f64, g| m.max(g.abs()));
    let floor = 1e-3 * largest + 1e-6;
    let mut worst = Worst::none();
    for (&i, &n) in at.iter().zip(&numeric) {
        let a = analytic[i];
        worst.update((a - n).abs() / a.abs().max(n.abs()).max(floor), i, n, a);
    }
    worst
}

/// Panics unless `analytic` is the gradient of `loss` at `x`, within the table's row `"gradient"`.
pub fn assert_gradient(what: &str, loss: impl FnMut(&[f64]) -> f64, x: &[f64], analytic: &[f64]) {
    let worst = gradient(loss, x, analytic);
    let allowed = tolerance::of("gradient", DType::F64).rel;
    assert!(worst.error <= allowed, "gradient of {what}: {worst:?}, allowed {allowed:e}");
}

/// The element that differs most from its reference, in units of what is allowed: up to 1 is within the tolerance.
pub fn compare(expected: &[f64], actual: &[f64], tolerance: Tolerance) -> Worst {
    assert_eq!(expected.len(), actual.len(), "lengths to compare");
    let mut worst = Worst::none();
    for (i, (&e, &a)) in expected.iter().zip(actual).enumerate() {
        if e != a {
            worst.update((e - a).abs() / tolerance.allowed(e), i, e, a);
        }
    }
    worst
}

/// Panics unless `actual` is within the table's row for (`row`, `dtype`) of `expected`.
pub fn assert_close(what: &str, row: &str, dtype: DType, expected: &[f64], actual: &[f64]) {
    let tolerance = tolerance::of(row, dtype);
    let worst = compare(expected, actual, tolerance);
    assert!(worst.error <= 1.0, "{what}: {worst:?}, allowed {tolerance:?} ({row}, {dtype:?})");
}

/// Numbers for tests that are the same everywhere: splitmix64 (Steele, Lea & Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// Uniform in -1..1, a value that f32 holds exactly.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }
    /// `n` uniform values in -1..1.
    pub fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.uniform()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_gradient_passes_and_a_wrong_one_is_found() {
        let x = Random(1).values(7);
        let loss = |x: &[f64]| x.iter().enumerate().map(|(i, x)| (x * (i as f64 + 0.5)).sin()).sum::<f64>();
        let mut g: Vec<f64> =
            x.iter().enumerate().map(|(i, x)| (x * (i as f64 + 0.5)).cos() * (i as f64 + 0.5)).collect();
        assert_gradient("sin", loss, &x, &g);
        g[4] *= 1.0 + 1e-4;
        let worst = gradient(loss, &x, &g);
        assert_eq!(worst.at, 4);
        assert!((worst.error / 1e-4 - 1.0).abs() < 0.01, "{worst:?}");
        g[2] = f64::NAN;
        assert_eq!(gradient(loss, &x, &g).at, 2);
    }

    #[test]
    fn compare_finds_the_worst() {
        let t = Tolerance { rel: 0.1, abs: 0.0 };
        let worst = compare(&[1.0, 2.0, 4.0], &[1.05, 2.1, 3.2], t);
        assert_eq!(worst.at, 2);
        assert!((worst.error - 2.0).abs() < 1e-12);
        assert_eq!(compare(&[0.0], &[f64::NAN], t).error, f64::INFINITY);
        assert_eq!(compare(&[f64::INFINITY], &[f64::INFINITY], t).error, 0.0);
    }
}
