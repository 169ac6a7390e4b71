//! The engine's waist. Above it: the mathematics of a model. Below it: a machine.
//!
//! [`Device`] is memory and one kernel per idea in the model, each a pair `f` / `f_backward`. [`crate::Cpu`] is the
//! specification; every other device must agree with it within the table of tolerances. A wrong shape is our own bug
//! and panics; a fault of the machine surfaces at [`Device::sync`]. Conventions, stated once:
//!
//! - Outputs are assigned (`=`) unless the name of the argument begins with `acc_`, which accumulates (`+=`).
//!   Activation gradients are assigned, parameter gradients accumulate.
//! - A kernel's result does not depend, to the bit, on the number of threads.
//! - A row's result does not depend on which other rows are in the call.
//! - Two types make a computation. **A** is the type of operands and saved activations: `F32`, `F64` or `Bf16`. **S**,
//!   [`Device::statistics`] of A, is what they are computed in: `F64` for `F64`, else `F32`. Whatever lives long or sums up
//!   much is S: weights, gradients and moments, the residual stream and its gradient, gains, biases, the router, losses,
//!   statistics (`rstd`, `lse`, …). Each argument's type is stated where it is not S.
//! - Weights that nobody changes may be packed ([`Device::pack`]): held once, in as few bits as they shall have, in the order
//!   in which a product reads them. Whoever takes an [`Operand`] takes them as well as a view.
//! - `Bf16` is storage alone: a kernel widens what it reads, computes in `F32`, and rounds what it writes once, to the
//!   nearest, ties to even.

use crate::{Coding, DType, Fault, Operand, View, ViewMut};
use std::borrow::Cow;
use std::ops::Range;

/// What [`Device::gemm`] does with its operands: `C = op(A)·op(B)` or `C += op(A)·op(B)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gemm {
    /// Use `Aᵀ` (A is stored K×M).
    pub ta: bool,
    /// Use `Bᵀ` (B is stored N×K).
    pub tb: bool,
    /// Add to C instead of assigning.
    pub accumulate: bool,
    /// Operands of two types are multiplied in the wider: a router's scores decide, so its weights are not rounded. Without
    /// it the wider one is rounded to the narrower on its way, to the same bits as if it had been copied before: weights
    /// need no second copy to be multiplied in fewer bits (mixed precision, Micikevicius et al. 2018).
    pub exact: bool,
    /// Sum up the squares of C on the way, where [`Device::gemm_bands_outer`] can.
    pub squares: bool,
}

impl Gemm {
    /// `C = A·B`
    pub const NN: Gemm = Gemm { ta: false, tb: false, accumulate: false, exact: false, squares: false };
    /// `C = A·Bᵀ`: a linear layer with Hugging Face's `[out, in]` weights.
    pub const NT: Gemm = Gemm { tb: true, ..Gemm::NN };
    /// `C = Aᵀ·B`: a weight gradient.
    pub const TN: Gemm = Gemm { ta: true, ..Gemm::NN };
    /// `C += Aᵀ·B`: a weight gradient, added.
    pub const TN_ACC: Gemm = Gemm::TN.adding(true);

    /// As this one, added to C or not.
    pub const fn adding(self, accumulate: bool) -> Gemm {
        Gemm { accumulate, ..self }
    }

    /// As this one, with the sum of [squares](Gemm::squares) or not.
    pub const fn measured(self, squares: bool) -> Gemm {
        Gemm { squares, ..self }
    }

    /// As this one, [exact](Gemm::exact).
    pub const fn exactly(self) -> Gemm {
        Gemm { exact: true, ..self }
    }
}

/// What squares of numbers may be cut to multiples of ([`Device::gemm_bands_outer`]).
pub const SQUARE_UNIT: f64 = f64::EPSILON / 32.0;

/// Columns of a fused projection `[queries | keys | values]`, each head `dim` wide: width `(q + 2·kv)·dim`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// Key/value heads; divides `q` (grouped-query attention, Ainslie et al. 2023).
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    /// Columns of the fused projection.
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }
}

/// How queries and keys turn by position ([`Device::rope`]).
pub struct Rotation<'a, D: Device> {
    /// The heads.
    pub heads: Heads,
    /// `[positions, R]`: R/2 cosines, then R/2 sines, of each position.
    pub table: View<'a, D>,
    /// Position of each row.
    pub positions: &'a [u32],
}

/// Tokens of a page of a cache of keys and values.
pub const PAGE: usize = 16;

/// Elements of a page of the keys (or of the values) of so many heads: all their numbers. In [`DType::I8`] each row of a head
/// is as many codes and one scale of 4 bytes, so that its largest number has the code 127; zero has the code 0.
pub const fn page_len(heads: usize, dim: usize, dtype: DType) -> usize {
    let scale = if matches!(dtype, DType::I8) { 4 } else { 0 };
    PAGE * heads * (dim + scale)
}

/// One sequence's part in a call of [`Device::attention_paged`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paged<'a> {
    /// Rows of the batch that are its next tokens.
    pub rows: Range<usize>,
    /// Tokens that it has already.
    pub past: usize,
    /// Its pages in the cache, in order, new tokens included.
    pub pages: &'a [u32],
}

/// How a router turns logits into choices and weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Routing {
    /// Experts chosen per token (K).
    pub top_k: usize,
    /// Scores: softmax over experts, or an independent sigmoid each.
    pub score: Score,
    /// Divide the chosen weights by their sum (softmax: plain; sigmoid: plus 1e-20, as in DeepSeek-V3).
    pub renormalize: bool,
    /// Multiply the weights by this in the end (`routed_scaling_factor`).
    pub scale: f64,
    /// Experts are in this many equal groups (1: no group limit) …
    pub groups: usize,
    /// … of which only the best `top_groups` may be chosen from. A group's score is, with softmax scores, its best
    /// (DeepSeek-V2, section 2.2.2); with sigmoid scores the sum of its two best `score + correction bias` (DeepSeek-V3,
    /// section 2.1.2).
    pub top_groups: usize,
}

/// The router's score function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each logit.
    Sigmoid,
}

/// AdamW's step, everything but the state (Loshchilov & Hutter 2019, with bias correction).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: `w -= lr · weight_decay · w`.
    pub weight_decay: f64,
    /// The step's number, from 1, for bias correction and for rounding moments.
    pub step: u64,
    /// The gradient is multiplied by this first (clipping, loss scale).
    pub grad_scale: f64,
}

/// A step of Nesterov's momentum, everything but the state.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Nesterov {
    /// Decay of the momentum.
    pub momentum: f64,
    /// The step's number, for rounding the momentum.
    pub step: u64,
    /// The gradient is multiplied by this first.
    pub grad_scale: f64,
}

/// A machine: memory, and one kernel per idea.
///
/// Letters: T tokens, D width, V vocabulary, E experts, K choices a token, F expert width, N rows of any kind.
pub trait Device: Clone + Send + Sync + 'static {
    /// An owned block of memory; dropping it gives it back to the device's pool.
    type Buf: Send + Sync;
    /// An address in device memory.
    type Ptr: Copy + Send + Sync;
    /// A matrix of weights that was made for products.
    type Packed: Send + Sync;

    /// A block of at least `bytes`, 64-byte aligned, contents unspecified.
    fn alloc(&self, bytes: usize) -> Self::Buf;
    /// As [`Device::alloc`], for a block that may be touched here and there only: the rest should take no memory.
    fn alloc_sparse(&self, bytes: usize) -> Self::Buf {
        self.alloc(bytes)
    }
    /// Address of a block's first byte.
    fn ptr(buf: &Self::Buf) -> Self::Ptr;
    /// The address `bytes` further on.
    fn offset(ptr: Self::Ptr, bytes: usize) -> Self::Ptr;
    /// Host to device; lengths must agree.
    fn copy_from_host(&self, src: &[u8], dst: ViewMut<Self>);
    /// Device to host, after all work before it; lengths must agree.
    fn copy_to_host(&self, src: View<Self>, dst: &mut [u8]);
    /// Packs a matrix of weights W `[N, K]`, to be multiplied by as `x·Wᵀ`, and to gather rows of. `row(i)` gives the bytes of
    /// row i of N as a file would hold them in this coding ([`Coding::encode`]); it is called once for each, by any thread.
    fn pack<'a>(
        &self,
        coding: Coding,
        shape: [usize; 2],
        row: &(dyn Fn(usize) -> Cow<'a, [u8]> + Sync),
    ) -> Self::Packed;
    /// N and K.
    fn packed_shape(w: &Self::Packed) -> [usize; 2];
    /// Bytes of memory that a packed matrix takes.
    fn packed_bytes(w: &Self::Packed) -> usize;
    /// The same before it is packed.
    fn bytes_to_pack(coding: Coding, shape: [usize; 2]) -> usize;

    /// Waits for all work; reports what went wrong on the machine since the last call.
    fn sync(&self) -> Result<(), Fault>;

    /// `y = c` everywhere.
    fn fill(&self, c: f64, y: ViewMut<Self>);
    /// `y = x`, of any types, converting between floating-point types where they differ.
    fn copy(&self, x: View<Self>, y: ViewMut<Self>);
    /// `y = a·x + b·y`, x and y each A or S; with `b == 0` the old `y` is not read.
    fn axpby(&self, a: f64, x: View<Self>, b: f64, y: ViewMut<Self>);
    /// Sum of squares of all elements (A or S), accumulated in f64 in a fixed order.
    fn sum_of_squares(&self, x: View<Self>) -> f64;
    /// Sum of each column (A or S), accumulated in f64 in a fixed order.
    fn column_sums(&self, x: View<Self>) -> Vec<f64>;

    /// `C[M,N] (+)= op(A)[M,K] · op(B)[K,N]`, each of the three `Bf16` or S. K may be 0 (C is zeroed or left).
    ///
    /// Two `Bf16` operands are multiplied in pairs and summed in `F32`, as the machine's instruction for it does. Beside a
    /// `Bf16` operand an `F32` one is rounded, or, in an [exact](Gemm::exact) product, the `Bf16` one widened. A `Bf16` C is
    /// rounded once, from the sum over all of K (plus the old C).
    ///
    /// B may be packed, if it is transposed and A is not: it is multiplied in the bits that it was packed in, and the result
    /// of one packed as `F32` (or `Bf16`, beside a `Bf16` A) has the bits of an exact product. By coded weights an A of `F32` or `Bf16` is multiplied as the device does it best: rounded to 8 bits, each
    /// block of a row with a scale of its own.
    fn gemm<'b>(&self, g: Gemm, a: View<Self>, b: impl Into<Operand<'b, Self>>, c: ViewMut<Self>);
    /// For every expert e: `C[band_e] (+)= A[band_e] · op(B_e)`. `g.ta` must be false; bands are ascending, disjoint,
    /// may be empty, and cover all rows of A and C. Of B all are plain, or all packed in one coding.
    fn gemm_bands(&self, g: Gemm, bands: &[Range<usize>], a: View<Self>, b: &[Operand<Self>], c: ViewMut<Self>);
    /// For every expert e: `C_e[M,N] (+)= op(A[band_e]) · B[band_e]`, where `g` is [`Gemm::TN`] or [`Gemm::TN_ACC`]: an empty band
    /// makes `C_e` zero, or leaves it.
    ///
    /// These are gradients of weights, whose norm is wanted before they are used: if `g` asks for [squares](Gemm::squares), the
    /// answer has the sum of squares of each `C_e`, where the device has it without reading `C_e` again. Each square may be
    /// cut to a multiple of [`SQUARE_UNIT`], and the sum depends on the numbers of `C_e` alone, to the bit. Where there is none,
    /// [`Device::sum_of_squares`] must be asked; a device may have none ever.
    fn gemm_bands_outer(
        &self,
        g: Gemm,
        bands: &[Range<usize>],
        a: View<Self>,
        b: View<Self>,
        c: Vec<ViewMut<Self>>,
    ) -> Vec<Option<f64>>;

    /// `y[i] = x[index[i]]` for rows; the one data movement. Both are `U32`, or of any floating-point types; or `x` is packed.
    fn gather<'x>(&self, index: &[u32], x: impl Into<Operand<'x, Self>>, y: ViewMut<Self>);
    /// `acc_dx[index[i]] += dy[i]` (A or S), in the order of i. Returns by how much the sum of squares of all elements of `acc_dx` has
    /// grown, where the device has it without reading more than these rows, with squares cut as in [`Device::gemm_bands_outer`].
    fn gather_backward(&self, index: &[u32], dy: View<Self>, acc_dx: ViewMut<Self>) -> Option<f64>;
    /// `acc_y[t] += Σ_{c < k} x[index[t·k + c]]`, one after another in the order of c. `x` `[N, D]` (A or S), `acc_y`
    /// `[T, D]`, `T·k` indices. Its gradient with respect to `x` is a gather, if the indices are a permutation.
    fn gather_sum(&self, k: usize, index: &[u32], x: View<Self>, acc_y: ViewMut<Self>);

    /// `y += b` for every row; `b` is `[1, N]`, `y` A or S.
    fn add_bias(&self, b: View<Self>, y: ViewMut<Self>);
    /// `acc_db += Σ_rows dy`, `dy` A or S.
    fn add_bias_backward(&self, dy: View<Self>, acc_db: ViewMut<Self>);

    /// `y = x · rstd · w`, `rstd = 1/√(mean(x²) + eps)` per row (Zhang & Sennrich 2019). `w` `[1, D]`, `rstd` `[N, 1]`,
    /// `y` A.
    fn rms_norm(&self, eps: f64, x: View<Self>, w: View<Self>, y: ViewMut<Self>, rstd: ViewMut<Self>);
    /// Gradient of [`Device::rms_norm`], `dy` A or S. `acc_dx` accumulates, being the gradient of the residual stream that
    /// the norm branches off.
    fn rms_norm_backward(
        &self,
        x: View<Self>,
        w: View<Self>,
        rstd: View<Self>,
        dy: View<Self>,
        acc_dx: ViewMut<Self>,
        acc_dw: ViewMut<Self>,
    );
    /// RMS norm of every query head with `wq` and every key head with `wk` (`[1, dim]` each), and [`Device::rope`] in the same
    /// pass over memory; values are copied. `x`, `y` `[T, heads.width()]` (A), `rstd` `[T, q + kv]`. The heads that are normed
    /// may be others than those that turn: one of all queries, for instance.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm(
        &self,
        heads: Heads,
        eps: f64,
        x: View<Self>,
        wq: View<Self>,
        wk: View<Self>,
        by: &Rotation<Self>,
        y: ViewMut<Self>,
        rstd: ViewMut<Self>,
    );
    /// Gradient of [`Device::qk_norm`]; `x`, `dy`, `dx` A.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm_backward(
        &self,
        heads: Heads,
        x: View<Self>,
        wq: View<Self>,
        wk: View<Self>,
        rstd: View<Self>,
        by: &Rotation<Self>,
        dy: View<Self>,
        dx: ViewMut<Self>,
        acc_dwq: ViewMut<Self>,
        acc_dwk: ViewMut<Self>,
    );

    /// Rotates the first R columns of every query and key head in place by the row's position (Su et al. 2021, half-split
    /// pairs `(i, i + R/2)` as in Hugging Face). `inverse` rotates back, which is also the gradient. `qkv` A.
    fn rope(&self, by: &Rotation<Self>, inverse: bool, qkv: ViewMut<Self>);

    /// Causal attention within each segment (`segments` are the cumulative starts, first 0, last T). `out` is
    /// `[T, q·dim]`, `lse` `[T, q]` the log of the softmax's denominator for the backward pass. `qkv`, `out` A.
    fn attention(
        &self,
        heads: Heads,
        scale: f64,
        segments: &[u32],
        qkv: View<Self>,
        out: ViewMut<Self>,
        lse: ViewMut<Self>,
    );
    /// Gradient of [`Device::attention`] with respect to the fused projection. All but `lse` A.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        heads: Heads,
        scale: f64,
        segments: &[u32],
        qkv: View<Self>,
        out: View<Self>,
        lse: View<Self>,
        dout: View<Self>,
        dqkv: ViewMut<Self>,
    );
    /// Cached attention of one sequence: row i of `qkv` `[n, width]` stands at position `past + i`. Its keys and values
    /// are written to rows `past..past + n` of the caches (`[capacity, kv·dim]`), then it attends rows `0..=past + i`. All A.
    /// A row's last bits may depend on n: reading a prompt and writing a token are different work.
    #[allow(clippy::too_many_arguments)]
    fn attention_cached(
        &self,
        heads: Heads,
        scale: f64,
        past: usize,
        qkv: View<Self>,
        k_cache: ViewMut<Self>,
        v_cache: ViewMut<Self>,
        out: ViewMut<Self>,
    );

    /// Cached attention of several sequences at once, over pages of [`PAGE`] tokens that lie anywhere in a pool: token i of
    /// a sequence is in its page `i / PAGE`. As [`Device::attention_cached`] for each, but a row's bits depend on its own
    /// query, keys and values alone: not on the cuts into calls, nor on the pages' places. `k_pages` and `v_pages` are
    /// `[pages, `[`page_len`]`]`, A or narrower, or `I8`; how a page is laid out is the device's own affair. No two sequences
    /// write the same page. All rows of `qkv` belong to a sequence, in order.
    #[allow(clippy::too_many_arguments)]
    fn attention_paged(
        &self,
        heads: Heads,
        scale: f64,
        sequences: &[Paged],
        qkv: View<Self>,
        k_pages: ViewMut<Self>,
        v_pages: ViewMut<Self>,
        out: ViewMut<Self>,
    );

    /// `y = w · silu(gate) · up` (Shazeer 2020). `gate_up` is `[N, 2F]` (A): F gates, then F ups; `y` `[N, F]` (A); `w`
    /// `[N, 1]`, or 1 for all rows: the router's weight of the row's token, which the product that follows carries through.
    fn swiglu(&self, gate_up: View<Self>, w: Option<View<Self>>, y: ViewMut<Self>);
    /// Gradient of [`Device::swiglu`], in place: `gate_up` is replaced by its gradient, and `dy`, the gradient of `y`, by
    /// `y` itself, to the bit, since the weight gradient of the product that follows wants it. `dw` `[N, 1]` (assigned;
    /// given if and only if `w` is) is `Σ_f dy · silu(gate) · up`.
    fn swiglu_backward(
        &self,
        w: Option<View<Self>>,
        gate_up: ViewMut<Self>,
        dy: ViewMut<Self>,
        dw: Option<ViewMut<Self>>,
    );

    /// Router: `scores` `[T, E]`, the choices `[T, K]` (`U32`, best first, ties to the lower expert), their `weights`
    /// `[T, K]`, and `stats` `[T, 2]`: log-sum-exp of the logits, and entropy in nats of the (normalised) scores.
    /// `bias` `[1, E]` is added for the choice only.
    #[allow(clippy::too_many_arguments)]
    fn route(
        &self,
        routing: &Routing,
        logits: View<Self>,
        bias: Option<View<Self>>,
        scores: ViewMut<Self>,
        choice: ViewMut<Self>,
        weights: ViewMut<Self>,
        stats: ViewMut<Self>,
    );
    /// Gradient of the weights and of two auxiliary losses with respect to the logits: `balance[e]` (empty, or one per
    /// expert) is the derivative of the load-balance loss by each token's score of expert e; `z` times the square of
    /// each token's log-sum-exp is the z-loss (softmax only, 0 with sigmoid scores; Zoph et al. 2022).
    #[allow(clippy::too_many_arguments)]
    fn route_backward(
        &self,
        routing: &Routing,
        balance: &[f64],
        z: f64,
        scores: View<Self>,
        choice: View<Self>,
        weights: View<Self>,
        stats: View<Self>,
        dweights: View<Self>,
        dlogits: ViewMut<Self>,
    );

    /// Cross entropy of every row in nats, `losses` `[T, 1]` (0 where the target is [`IGNORE`]). With `scale` the logits (A) are
    /// replaced by their gradient `scale · (softmax − onehot)`, 0 in ignored rows; without, they are left undefined.
    fn cross_entropy(&self, scale: Option<f64>, targets: &[u32], logits: ViewMut<Self>, losses: ViewMut<Self>);

    /// Nesterov's momentum in one pass: `m = grad_scale·g + momentum·m`, and `u = grad_scale·g + momentum·m` of the new m, all
    /// S; m may be bf16, as in [`Device::adamw`]. Returns the sum of squares of u, accumulated as in
    /// [`Device::sum_of_squares`].
    fn nesterov(&self, a: &Nesterov, g: View<Self>, m: ViewMut<Self>, u: ViewMut<Self>) -> f64;

    /// One AdamW step on a flat stretch: weights, first and second moment in place, all S.
    ///
    /// The moments may both be bf16. The step is that of S, and what is kept of the new moments is rounded stochastically: up
    /// with the probability that makes the mean exact, so that what is too small for a unit in the last place adds up over
    /// steps instead of being lost. The choice depends on the number, its weight (its gradient, for a momentum), the step and
    /// which moment it is, and on nothing else, so it is the same wherever a parameter lies.
    fn adamw(&self, a: &AdamW, g: View<Self>, w: ViewMut<Self>, m: ViewMut<Self>, v: ViewMut<Self>);

    /// The dtype in which statistics of a computation in `dtype` are kept.
    fn statistics(dtype: DType) -> DType {
        if dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

/// A target that counts for nothing: padding, and the step over a document's edge.
pub const IGNORE: u32 = u32::MAX;
