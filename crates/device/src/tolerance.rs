//! How far apart two results may be: one table for the whole project.
//!
//! A tolerance written inline in a test rots: it is loosened on a bad day and nobody remembers why. Here each row says
//! what is compared, in which type, and the reason for the bound. Inputs of kernel checks are of order one; `U` below is
//! the unit roundoff, 6e-8 for f32.

use crate::DType;

/// Allowed difference: `abs + rel·|expected|`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Relative to the expected value.
    pub rel: f64,
    /// Absolute.
    pub abs: f64,
}

impl Tolerance {
    /// The largest allowed difference from `expected`.
    pub fn allowed(&self, expected: f64) -> f64 {
        self.abs + self.rel * expected.abs()
    }
}

/// A line of the table.
pub struct Row {
    /// The kernel, or the proof.
    pub what: &'static str,
    /// The type of what is checked: a kernel's output, or a whole computation.
    pub dtype: DType,
    /// The bound.
    pub tolerance: Tolerance,
    /// Why this much, and not more.
    pub reason: &'static str,
}

const fn row(what: &'static str, dtype: DType, rel: f64, abs: f64, reason: &'static str) -> Row {
    Row { what, dtype, tolerance: Tolerance { rel, abs }, reason }
}

/// Kernels in f32 and bf16 against the same in f64, on inputs that both hold exactly; kernels in f64 against brute force;
/// then the proofs of whole models.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row("copy", DType::F32, 0.0, 0.0, "moves values that f32 holds exactly"),
    row("copy", DType::F64, 0.0, 0.0, "moves values"),
    row("copy", DType::Bf16, 4e-3, 0.0, "bf16 keeps 8 bits: half a unit in the last place is 2^-8"),
    row("axpby", DType::F32, 2e-7, 2e-7, "two products and a sum of numbers of order one: about 2 U"),
    row("axpby", DType::F64, 1e-14, 1e-14, "as in f32, with the roundoff of f64"),
    row("axpby", DType::Bf16, 4e-3, 2e-7, "as in f32, then rounded once to 8 bits, as all that is stored in bf16"),
    row("sum_of_squares", DType::F32, 1e-12, 0.0, "f32 widens exactly, then all is f64: only the order differs"),
    row("sum_of_squares", DType::F64, 1e-12, 0.0, "another order of a sum of positive numbers"),
    row("squares", DType::F32, 7.7e-6, 0.0, "each square is cut to a multiple of 2^-57; where that may be more than 2^-17 of the sum, the numbers are read"),
    row("squares", DType::F64, 7.7e-6, 0.0, "as in f32, if a device makes them at all"),
    row("column_sums", DType::F32, 1e-12, 1e-12, "f32 widens exactly, then all is f64: only the order differs"),
    row("column_sums", DType::F64, 1e-12, 1e-12, "another order of the sum"),
    row("gemm", DType::F32, 1e-5, 2e-5, "K up to a few hundred products of order one: √K·U·|sum|, with room for any order"),
    row("gemm", DType::F64, 1e-12, 1e-12, "another order of the sum"),
    row("gemm", DType::Bf16, 4e-3, 2e-5, "as in f32, then rounded once: the sum of bf16 products is kept in f32"),
    row("quant gemm", DType::F32, 1e-5, 1e-5, "a product of 3 U and an addition of U a block, of a few blocks of sums of order one; inner sums are exact"),
    row("quant encode", DType::F32, 7e-4, 1e-7, "half a code apart, and the scale is rounded to f16: 2^-11 of the largest weight, twice with a minimum; then clipping a code by as much"),
    row("gather", DType::F32, 1e-6, 1e-6, "a few additions of numbers of order one"),
    row("gather", DType::F64, 1e-14, 1e-14, "the same additions in the same order"),
    row("add_bias", DType::F32, 5e-7, 5e-7, "one addition; the bias gradient is summed in f64 and rounded once"),
    row("add_bias", DType::F64, 1e-12, 1e-12, "another order of the sum"),
    row("add_bias", DType::Bf16, 4e-3, 5e-7, "as in f32, then rounded once"),
    row("rms_norm", DType::F32, 1e-5, 1e-5, "a mean of D squares, a root; the backward pass subtracts two close terms"),
    row("rms_norm", DType::F64, 1e-12, 1e-12, "another order of the sums"),
    row("rms_norm", DType::Bf16, 4e-3, 1e-5, "as in f32, then rounded once"),
    row("qk_norm", DType::F32, 1e-5, 1e-5, "as rms_norm"),
    row("qk_norm", DType::F64, 1e-12, 1e-12, "as rms_norm"),
    row("qk_norm", DType::Bf16, 4e-3, 1e-5, "as in f32, then rounded once"),
    row("qk_norm dw", DType::F32, 1e-5, 5e-5, "a thousand terms of order one added in f32, one by one: √1000·U·|sum|, |sum| up to 50"),
    row("qk_norm dw", DType::F64, 1e-12, 1e-12, "another order of the sums"),
    row("rope", DType::F32, 2e-7, 2e-7, "two products and a sum"),
    row("rope", DType::F64, 1e-14, 1e-14, "two products and a sum"),
    row("rope", DType::Bf16, 4e-3, 2e-7, "as in f32, then rounded once"),
    row("attention", DType::F32, 3e-6, 3e-6, "dot products of `dim` terms inside an exponential, then sums over the segment"),
    row("attention", DType::F64, 1e-11, 1e-11, "tiles and a running maximum add in another order than brute force"),
    row("attention", DType::Bf16, 1e-2, 1e-2, "probabilities, gradients of scores and results are rounded at 2^-8"),
    row("attention", DType::I8, 0.0, 3e-2, "keys and values of order one are off by up to 1/254: so are sums of the values; and scores, of up to 100 such products times 0.3, by some 2^-8"),
    row("attention order", DType::Bf16, 1e-2, 1e-2, "sums in another order: roundings to bf16 now and then fall to the other side"),
    row("attention exponential", DType::F32, 3e-7, 0.0, "a polynomial within 2e-8, six multiply-adds of which the last weighs most, and a product"),
    row("attention exponential", DType::Bf16, 4e-6, 0.0, "a polynomial within 3e-6: what it is of is then rounded to bf16 at 2^-8, a thousand times as much"),
    row("swiglu", DType::F32, 2e-6, 2e-6, "an exponential of 2 U, a division, four products"),
    row("swiglu", DType::F64, 1e-13, 1e-13, "an exponential within a few units in the last place"),
    row("swiglu", DType::Bf16, 4e-3, 2e-6, "as in f32, then rounded once"),
    row("swiglu dw", DType::F32, 2e-6, 1e-5, "a sum over F of products of order ten, each as good as swiglu's"),
    row("swiglu dw", DType::F64, 1e-13, 1e-12, "another order of the sum"),
    row("route", DType::F32, 1e-6, 1e-6, "a softmax over E, and entropy with a logarithm a term"),
    row("route", DType::F64, 1e-12, 1e-12, "another order of the sums"),
    row("cross_entropy", DType::F32, 1e-6, 2e-7, "an exponential per class of 2 U, a sum over V in lanes, a logarithm"),
    row("cross_entropy", DType::F64, 1e-12, 1e-12, "another order of the sum"),
    row("cross_entropy", DType::Bf16, 4e-3, 2e-7, "as in f32, then rounded once"),
    row("adamw", DType::F32, 5e-7, 5e-7, "a root and a division; weights are of order one, so a step is rounded at U"),
    row("adamw", DType::F64, 1e-12, 1e-13, "the same formula in another order"),
    row("adamw", DType::Bf16, 4e-3, 5e-7, "the copy of the new weights: as in f32, then rounded once"),
    row("moments", DType::F64, 1e-12, 1e-13, "as adamw's"),
    row("moments", DType::Bf16, 7.9e-3, 0.0, "rounded up or down by chance: off by less than one unit, which is at most 2^-7 of it"),

    row("gradient", DType::F64, 1e-6, 0.0, "central differences of fourth order, step 1e-4: roundoff ~1e-11 of the loss"),
    row("mixed losses", DType::Bf16, 2e-2, 2e-2, "operands of 8 bits through a few layers: each activation off by up to 2^-8"),
    row("mixed gradient", DType::Bf16, 1.5e-1, 0.0, "as the losses, twice the depth, through softmaxes of large scores; worst parameter"),
    row("mixed gradients", DType::Bf16, 4e-2, 0.0, "the same, the mean over parameters"),
    row("coded losses", DType::F32, 0.0, 3e-2, "of all tokens, relative: activations of 8 bits, each up to 2^-8 of its block's largest off, through a few layers of wide weights"),
    row("coded cache", DType::I8, 0.0, 3e-2, "of all logits, relative: keys and values off by up to 1/254 of their row's largest, through two layers of wide weights"),
    row("golden logits", DType::F32, 1e-4, 1e-5, "a few layers of f32 in another order than PyTorch's"),
    row("rope frequency", DType::F32, 1e-6, 0.0, "transformers computes powers in f32, a few U, and is written down with seven digits"),
    row("likelihood", DType::F32, 1e-5, 1e-4, "a few layers of f32 and a sum over a few tokens; attention over pages adds in another order"),
    row("real logits", DType::F32, 1e-5, 2e-4, "thirty layers of f32 in another order than llama.cpp's, on logits of up to 30"),
    row("gguf number", DType::F32, 2e-7, 0.0, "a quotient that is kept in f32 and multiplied back"),
    row("golden gradients", DType::F32, 1e-3, 1e-5, "as the logits, twice the depth, and sums with cancellation"),
    row("golden losses", DType::F32, 1e-4, 0.0, "ten AdamW steps: the first divide each gradient by its own size, noise included"),
    row("hf eval", DType::F32, 1e-4, 0.0, "the issue's bound on the loss of one checkpoint in two implementations"),
    row("upcycling", DType::F32, 1e-4, 1e-4, "the same layers, but each feed-forward answer is a weighted sum of parts: f32 in another order, through layers that amplify"),
    row("ranks", DType::F64, 1e-10, 1e-12, "N ranks add the same terms in another order"),
    row("moe", DType::F64, 1e-11, 1e-12, "three products and a weighted sum, each in another order than the plain loop's"),
    row("latent attention", DType::F64, 1e-10, 1e-11, "five products in a row, a softmax between, each in another order than the plain loop's"),
    row("decode", DType::F64, 1e-10, 1e-12, "attention over a cache adds the same terms in another order"),
];

/// The bound for a kernel (or a proof) computed in `dtype`. Panics if the table has no such row: add one, with its reason.
pub fn of(what: &str, dtype: DType) -> Tolerance {
    match TABLE.iter().find(|r| r.what == what && r.dtype == dtype) {
        Some(row) => row.tolerance,
        None => panic!("the table of tolerances has no row for {what:?} in {dtype:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_reasoned() {
        for (i, r) in TABLE.iter().enumerate() {
            assert!(!r.reason.is_empty(), "{}", r.what);
            assert!(!TABLE[..i].iter().any(|s| s.what == r.what && s.dtype == r.dtype), "{} twice", r.what);
        }
    }
}
