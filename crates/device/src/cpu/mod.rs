//! The machine that every computer has, and the specification that other devices must agree with.
//!
//! One file per kernel, forward and backward side by side. Kernels see typed slices and generic arithmetic; checking
//! of shapes and the dispatch on dtype happen here, once.

// A kernel takes what the contract gives it.
#![allow(clippy::too_many_arguments)]

mod attention;
mod bands;
#[macro_use]
mod by_type;
mod elementwise;
mod gemm;
mod lines;
mod loss;
mod memory;
pub mod meter;
mod norm;
mod optimizer;
mod packed;
mod peak;
mod pool;
mod quant;
mod real;
mod rope;
mod route;
mod rows;
mod simd;
mod squares;
mod swiglu;
#[cfg(test)]
mod testing;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::{
    AdamW, Coding, DType, Device, Element, Fault, Gemm, Heads, IGNORE, Nesterov, Operand, PAGE, Paged, Rotation,
    Routing, Score, View, ViewMut, page_len,
};
use attention::Context;
use by_type::multiplied_in;
use gemm::{Data, Mat, MatMut, Thirds, Wide};
use half::bf16;
pub(crate) use memory::block_bytes;
use memory::{Block, Memory};
use meter::{Meter, timed};
use packed::Packed;
pub(crate) use packed::packed_bytes;
pub use pool::Pool;
pub use quant::{BLOCK, QuantError, QuantKind, QuantMatrix};
use real::{Real, Stored};
use rope::Turn;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A host processor: a pool of threads and a pool of memory.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
    memory: Memory,
    /// That of [`Device::alloc_sparse`].
    sparse: Memory,
    meter: Arc<Meter>,
    /// What coded weights are multiplied with.
    quant_kernel: &'static quant::Kernel,
    /// Whether f32 is multiplied in three parts.
    thirds: bool,
    /// Whether bf16 is multiplied as f32.
    wide: bool,
}

impl Cpu {
    /// A device with `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self::of(Pool::new(threads))
    }

    /// As [`Cpu::new`], each thread on a processor of its own: see [`Pool::pinned`].
    pub fn pinned(threads: usize) -> Self {
        Self::of(Pool::pinned(threads))
    }

    fn of(pool: Pool) -> Self {
        let (pool, quant_kernel) = (Arc::new(pool), quant::Kernel::best());
        let (memory, sparse) = (Memory::default(), Memory::in_small_pages());
        Cpu { pool, memory, sparse, meter: Arc::default(), quant_kernel, thirds: false, wide: Wide::pay() }
    }

    /// Multiplies f32 on the matrix unit, if there is one, two to three times as fast: each number in three parts of bf16, with
    /// results as near to the exact ones as those of fused multiply-adds. But those are the same on every machine, and these
    /// are the same on machines with such a unit. Weights packed once ([`Device::pack`]) are not concerned.
    pub fn with_matrix_unit(mut self) -> Self {
        self.thirds = Thirds::pay();
        self
    }

    /// The threads, for work that is not a kernel.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Most bytes of tensors that were ever alive at once.
    pub fn peak_bytes(&self) -> usize {
        self.memory.peak()
    }

    /// Seconds by kernel.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

/// An address in host memory.
#[derive(Clone, Copy)]
pub struct Ptr(*mut u8);
// SAFETY: an address is only followed through a view, whose borrow says who may read and who may write.
unsafe impl Send for Ptr {}
// SAFETY: as above.
unsafe impl Sync for Ptr {}

/// The elements of a view. Panics if `T` is not its type.
fn slice<'a, T: Element>(x: View<'a, Cpu>) -> &'a [T] {
    assert_eq!(x.dtype(), T::DTYPE);
    // SAFETY: the view borrows that many elements for 'a; blocks are aligned and initialised from the start, and any
    // bits are a value of `T`.
    unsafe { std::slice::from_raw_parts(x.ptr().0.cast(), x.len()) }
}

/// The elements of an exclusive view. Panics if `T` is not its type.
fn slice_mut<'a, T: Element>(x: ViewMut<'a, Cpu>) -> &'a mut [T] {
    assert_eq!(x.dtype(), T::DTYPE);
    // SAFETY: as in `slice`, and the view is the only borrow of its elements.
    unsafe { std::slice::from_raw_parts_mut(x.ptr().0.cast(), x.len()) }
}

/// A view as a matrix to multiply, of bf16 or of the type that products are summed in.
fn mat<'a, R: Real>(x: View<'a, Cpu>) -> Mat<'a, R> {
    let [rows, cols] = x.shape();
    let data = if x.dtype() == DType::Bf16 { Data::Bf16(slice(x)) } else { Data::Real(slice(x)) };
    Mat::new(data, rows, cols)
}

/// An exclusive view as a matrix to write a product to.
fn mat_mut<'a, T: Element>(x: ViewMut<'a, Cpu>) -> MatMut<'a, T> {
    let [rows, cols] = x.shape();
    MatMut::new(slice_mut(x), rows, cols)
}

/// Asserts the shapes of views, naming the one that is wrong.
macro_rules! shapes {
    ($($x:ident: [$rows:expr, $cols:expr]),+ $(,)?) => {
        $(assert_eq!($x.shape(), [$rows, $cols], concat!("shape of ", stringify!($x)));)+
    };
}

/// Asserts that the sequences take all `rows` in order, have a page for every token, and write no page twice.
fn check_pages(sequences: &[Paged], rows: usize, pages: usize) {
    let (mut next, mut written) = (0, Vec::new());
    for s in sequences {
        assert!(s.rows.start == next && s.rows.end >= next, "rows {:?} after row {next}", s.rows);
        next = s.rows.end;
        let needed = (s.past + s.rows.len()).div_ceil(PAGE);
        assert!(needed <= s.pages.len(), "{} pages for {} tokens", s.pages.len(), s.past + s.rows.len());
        assert!(s.pages[..needed].iter().all(|&p| (p as usize) < pages), "a page of {pages}: {:?}", s.pages);
        if !s.rows.is_empty() {
            written.extend_from_slice(&s.pages[s.past / PAGE..needed]);
        }
    }
    assert_eq!(next, rows, "rows of all sequences");
    let count = written.len();
    written.sort_unstable();
    written.dedup();
    assert_eq!(written.len(), count, "a page is written twice");
}

/// Asserts what holds of any routing.
fn check_routing(r: &Routing, e: usize) {
    assert!(r.groups >= 1 && e.is_multiple_of(r.groups), "{e} experts in {} groups", r.groups);
    assert!((1..=r.groups).contains(&r.top_groups), "{} of {} groups", r.top_groups, r.groups);
    let open = if r.groups == 1 { e } else { e / r.groups * r.top_groups };
    assert!(r.top_k >= 1 && r.top_k <= open, "top {} of {open} experts", r.top_k);
}

fn check_heads(h: &Heads) {
    assert!(h.dim > 0 && h.kv > 0 && h.q.is_multiple_of(h.kv), "query heads must be a multiple of kv heads: {h:?}");
}

fn check_rotation(by: &Rotation<Cpu>, rows: [usize; 2]) {
    let (Rotation { heads, positions, .. }, [known, r]) = (by, by.table.shape());
    check_heads(heads);
    assert_eq!(rows, [positions.len(), heads.width()], "rows that turn");
    assert!(r.is_multiple_of(2) && r <= heads.dim, "{r} rotated columns in heads of {}", heads.dim);
    assert!(positions.iter().all(|&p| (p as usize) < known), "a position is beyond the table's {known}");
}

fn check_segments(segments: &[u32], rows: usize) {
    assert_eq!(segments.first(), Some(&0), "segments start at 0");
    assert_eq!(segments.last().map(|&n| n as usize), Some(rows), "segments end at the last row");
    assert!(segments.is_sorted(), "segments ascend");
}

impl Device for Cpu {
    type Buf = Block;
    type Ptr = Ptr;
    type Packed = Packed;

    fn alloc(&self, bytes: usize) -> Block {
        self.memory.alloc(bytes)
    }
    fn alloc_sparse(&self, bytes: usize) -> Block {
        self.sparse.alloc(bytes)
    }
    fn ptr(buf: &Block) -> Ptr {
        Ptr(buf.as_ptr())
    }
    fn offset(ptr: Ptr, bytes: usize) -> Ptr {
        Ptr(ptr.0.wrapping_add(bytes))
    }
    fn copy_from_host(&self, src: &[u8], dst: ViewMut<Self>) {
        timed!(self, transfer);
        assert_eq!(src.len(), dst.len() * dst.dtype().size(), "bytes from the host");
        // SAFETY: the view is an exclusive borrow of that many bytes.
        let dst = unsafe { std::slice::from_raw_parts_mut(dst.ptr().0, src.len()) };
        elementwise::copy(&self.pool, src, dst);
    }
    fn copy_to_host(&self, src: View<Self>, dst: &mut [u8]) {
        timed!(self, transfer);
        assert_eq!(dst.len(), src.len() * src.dtype().size(), "bytes to the host");
        // SAFETY: the view borrows that many initialised bytes.
        let src = unsafe { std::slice::from_raw_parts(src.ptr().0, dst.len()) };
        elementwise::copy(&self.pool, src, dst);
    }
    fn pack<'a>(&self, coding: Coding, shape: [usize; 2], row: &(dyn Fn(usize) -> Cow<'a, [u8]> + Sync)) -> Packed {
        Packed::new(self, coding, shape, row)
    }
    fn packed_shape(w: &Packed) -> [usize; 2] {
        w.shape()
    }
    fn packed_bytes(w: &Packed) -> usize {
        packed_bytes(w.coding(), w.shape())
    }
    fn bytes_to_pack(coding: Coding, shape: [usize; 2]) -> usize {
        packed_bytes(coding, shape)
    }
    fn sync(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn fill(&self, c: f64, y: ViewMut<Self>) {
        timed!(self, fill);
        match y.dtype() {
            DType::F32 => elementwise::fill(&self.pool, c as f32, slice_mut(y)),
            DType::F64 => elementwise::fill(&self.pool, c, slice_mut(y)),
            DType::Bf16 => elementwise::fill(&self.pool, real::nearest(c), slice_mut(y)),
            DType::U32 => elementwise::fill(&self.pool, c as u32, slice_mut(y)),
            DType::I8 => elementwise::fill(&self.pool, c as i8, slice_mut(y)),
        }
    }
    fn copy(&self, x: View<Self>, y: ViewMut<Self>) {
        timed!(self, copy);
        assert_eq!(x.shape(), y.shape(), "shapes of a copy");
        by_conversion!(x.dtype(), y.dtype(), X, Y => elementwise::assign::<X, Y>(&self.pool, slice(x), slice_mut(y)))
    }
    fn axpby(&self, a: f64, x: View<Self>, b: f64, y: ViewMut<Self>) {
        timed!(self, axpby);
        assert_eq!(x.shape(), y.shape(), "shapes of axpby");
        let pool = &*self.pool;
        match (x.dtype(), y.dtype()) {
            (DType::Bf16, DType::F32) => elementwise::axpby::<bf16, f32>(pool, a, slice(x), b, slice_mut(y)),
            (DType::F32, DType::Bf16) => elementwise::axpby::<f32, bf16>(pool, a, slice(x), b, slice_mut(y)),
            (same, _) => by_stored!(same, A => elementwise::axpby::<A, A>(pool, a, slice(x), b, slice_mut(y))),
        }
    }
    fn sum_of_squares(&self, x: View<Self>) -> f64 {
        timed!(self, sum_of_squares);
        by_stored!(x.dtype(), A => elementwise::sum_of_squares::<A>(&self.pool, slice(x)))
    }
    fn column_sums(&self, x: View<Self>) -> Vec<f64> {
        timed!(self, column_sums);
        by_stored!(x.dtype(), A => elementwise::column_sums::<A>(&self.pool, x.shape()[1], slice(x)))
    }

    fn gemm<'b>(&self, g: Gemm, a: View<Self>, b: impl Into<Operand<'b, Self>>, c: ViewMut<Self>) {
        match b.into() {
            Operand::Plain(b) => {
                timed!(self, gemm);
                by_product!(self, g.exact, a.dtype(), b.dtype(), c.dtype(), T, C =>
                    gemm::gemm::<T, C>(&self.pool, g, mat(a), mat(b), mat_mut(c)))
            }
            Operand::Packed(w) => {
                timed!(self, gemm_packed);
                packed::gemm(self, g, std::slice::from_ref(&(0..a.shape()[0])), a, &[w], c)
            }
        }
    }
    fn gemm_bands(&self, g: Gemm, bands: &[Range<usize>], a: View<Self>, b: &[Operand<Self>], c: ViewMut<Self>) {
        if let Some(Operand::Packed(_)) = b.first() {
            timed!(self, gemm_packed_bands);
            return packed::gemm(self, g, bands, a, &packed::all(b), c);
        }
        timed!(self, gemm_bands);
        let b: Vec<View<Self>> = b.iter().map(|b| b.plain()).collect();
        let dtype = b.first().map_or(a.dtype(), View::dtype);
        assert!(b.iter().all(|b| b.dtype() == dtype), "dtypes of B");
        by_product!(self, g.exact, a.dtype(), dtype, c.dtype(), T, C => {
            let b: Vec<_> = b.iter().map(|b| mat(*b)).collect();
            gemm::gemm_bands::<T, C>(&self.pool, g, bands, mat(a), &b, mat_mut(c))
        })
    }
    fn gemm_bands_outer(
        &self,
        g: Gemm,
        bands: &[Range<usize>],
        a: View<Self>,
        b: View<Self>,
        c: Vec<ViewMut<Self>>,
    ) -> Vec<Option<f64>> {
        // A single one is taken for the gradient of a dense layer's weights.
        let kernel = const { [meter::kernel("gemm"), meter::kernel("gemm_bands_outer")] };
        let _timer = self.meter.start(kernel[usize::from(c.len() > 1)]);
        let dtype = c.first().map_or(a.dtype(), ViewMut::dtype);
        by_product!(self, g.exact, a.dtype(), b.dtype(), dtype, T, C => {
            let c: Vec<MatMut<C>> = c.into_iter().map(mat_mut).collect();
            gemm::gemm_bands_outer::<T, C>(&self.pool, g, bands, mat(a), mat(b), c)
        })
    }

    fn gather<'x>(&self, index: &[u32], x: impl Into<Operand<'x, Self>>, y: ViewMut<Self>) {
        timed!(self, gather);
        let x = x.into();
        let [rows, width] = x.shape();
        shapes!(y: [index.len(), width]);
        assert!(index.iter().all(|&i| (i as usize) < rows), "a row of a gather is beyond {rows}");
        let x = match x {
            Operand::Plain(x) => x,
            Operand::Packed(w) => return packed::gather(self, index, w, y),
        };
        by_conversion!(x.dtype(), y.dtype(), X, Y => {
            rows::gather::<X, Y>(&self.pool, index, width, slice(x), slice_mut(y))
        })
    }
    fn gather_backward(&self, index: &[u32], dy: View<Self>, acc_dx: ViewMut<Self>) -> Option<f64> {
        timed!(self, gather_backward);
        let [rows, width] = acc_dx.shape();
        shapes!(dy: [index.len(), width]);
        assert!(index.iter().all(|&i| (i as usize) < rows), "a row of a gather is beyond {rows}");
        by_stored!(dy.dtype(), A => rows::gather_backward::<A>(&self.pool, index, width, slice(dy), slice_mut(acc_dx)))
    }
    fn gather_sum(&self, k: usize, index: &[u32], x: View<Self>, acc_y: ViewMut<Self>) {
        timed!(self, gather_sum);
        let ([rows, width], t) = (x.shape(), acc_y.shape()[0]);
        shapes!(acc_y: [t, width]);
        assert_eq!(index.len(), t * k, "rows of a sum");
        assert!(index.iter().all(|&i| (i as usize) < rows), "a row of a gather is beyond {rows}");
        by_stored!(x.dtype(), A => rows::gather_sum::<A>(&self.pool, k, index, width, slice(x), slice_mut(acc_y)))
    }

    fn add_bias(&self, b: View<Self>, y: ViewMut<Self>) {
        timed!(self, add_bias);
        shapes!(b: [1, y.shape()[1]]);
        by_stored!(y.dtype(), A => elementwise::add_bias::<A>(&self.pool, slice(b), slice_mut(y)))
    }
    fn add_bias_backward(&self, dy: View<Self>, acc_db: ViewMut<Self>) {
        shapes!(acc_db: [1, dy.shape()[1]]);
        let db = self.column_sums(dy);
        by_dtype!(acc_db.dtype(), R => elementwise::accumulate::<R>(&db, slice_mut(acc_db)))
    }

    fn rms_norm(&self, eps: f64, x: View<Self>, w: View<Self>, y: ViewMut<Self>, rstd: ViewMut<Self>) {
        timed!(self, rms_norm);
        let [n, d] = x.shape();
        shapes!(w: [1, d], y: [n, d], rstd: [n, 1]);
        by_stored!(y.dtype(), A => norm::rms_norm::<A>(
            &self.pool, eps, slice(x), slice(w), slice_mut(y), slice_mut(rstd),
        ))
    }
    fn rms_norm_backward(
        &self,
        x: View<Self>,
        w: View<Self>,
        rstd: View<Self>,
        dy: View<Self>,
        acc_dx: ViewMut<Self>,
        acc_dw: ViewMut<Self>,
    ) {
        timed!(self, rms_norm_backward);
        let [n, d] = x.shape();
        shapes!(w: [1, d], rstd: [n, 1], dy: [n, d], acc_dx: [n, d], acc_dw: [1, d]);
        by_stored!(dy.dtype(), A => norm::rms_norm_backward::<A>(
            &self.pool, slice(x), slice(w), slice(rstd), slice(dy), slice_mut(acc_dx), slice_mut(acc_dw),
        ))
    }
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
    ) {
        timed!(self, qk_norm);
        let (t, normed) = (x.shape()[0], heads.q + heads.kv);
        check_heads(&heads);
        shapes!(x: [t, heads.width()], wq: [1, heads.dim], wk: [1, heads.dim], y: [t, heads.width()], rstd: [t, normed]);
        check_rotation(by, x.shape());
        by_stored!(x.dtype(), A => norm::qk_norm::<A>(
            &self.pool, heads, eps, slice(x), slice(wq), slice(wk), &Turn::new(by, false), slice_mut(y), slice_mut(rstd),
        ))
    }
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
    ) {
        timed!(self, qk_norm_backward);
        let (t, dim, width) = (x.shape()[0], heads.dim, heads.width());
        check_heads(&heads);
        shapes!(x: [t, width], wq: [1, dim], wk: [1, dim], rstd: [t, heads.q + heads.kv]);
        shapes!(dy: [t, width], dx: [t, width], acc_dwq: [1, dim], acc_dwk: [1, dim]);
        check_rotation(by, x.shape());
        by_stored!(x.dtype(), A => norm::qk_norm_backward::<A>(
            &self.pool, heads, slice(x), slice(wq), slice(wk), slice(rstd), &Turn::new(by, true), slice(dy),
            slice_mut(dx), slice_mut(acc_dwq), slice_mut(acc_dwk),
        ))
    }

    fn rope(&self, by: &Rotation<Self>, inverse: bool, qkv: ViewMut<Self>) {
        timed!(self, rope);
        check_rotation(by, qkv.shape());
        by_stored!(qkv.dtype(), A => rope::rope::<A>(&self.pool, &Turn::new(by, inverse), slice_mut(qkv)))
    }

    fn attention(
        &self,
        heads: Heads,
        scale: f64,
        segments: &[u32],
        qkv: View<Self>,
        out: ViewMut<Self>,
        lse: ViewMut<Self>,
    ) {
        timed!(self, attention);
        let t = qkv.shape()[0];
        check_heads(&heads);
        check_segments(segments, t);
        shapes!(qkv: [t, heads.width()], out: [t, heads.q * heads.dim], lse: [t, heads.q]);
        by_stored!(qkv.dtype(), A => attention::attention::<A>(
            Context::new(&self.pool, &self.memory), heads, scale, segments, slice(qkv), slice_mut(out), slice_mut(lse),
        ))
    }
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
    ) {
        timed!(self, attention_backward);
        let (t, width, wide) = (qkv.shape()[0], heads.width(), heads.q * heads.dim);
        check_heads(&heads);
        check_segments(segments, t);
        shapes!(qkv: [t, width], out: [t, wide], lse: [t, heads.q], dout: [t, wide], dqkv: [t, width]);
        by_stored!(qkv.dtype(), A => attention::attention_backward::<A>(
            Context::new(&self.pool, &self.memory), heads, scale, segments, (slice(qkv), slice(out), slice(lse)), slice(dout), slice_mut(dqkv),
        ))
    }
    fn attention_cached(
        &self,
        heads: Heads,
        scale: f64,
        past: usize,
        qkv: View<Self>,
        k_cache: ViewMut<Self>,
        v_cache: ViewMut<Self>,
        out: ViewMut<Self>,
    ) {
        timed!(self, attention_cached);
        let (n, kv, capacity) = (qkv.shape()[0], heads.kv * heads.dim, k_cache.shape()[0]);
        check_heads(&heads);
        shapes!(qkv: [n, heads.width()], k_cache: [capacity, kv], v_cache: [capacity, kv], out: [n, heads.q * heads.dim]);
        assert!(past + n <= capacity, "{past} + {n} rows in a cache of {capacity}");
        by_stored!(qkv.dtype(), A => attention::attention_cached::<A>(
            Context::new(&self.pool, &self.memory), heads, scale, past, slice(qkv), (slice_mut(k_cache), slice_mut(v_cache)), slice_mut(out),
        ))
    }

    fn attention_paged(
        &self,
        heads: Heads,
        scale: f64,
        sequences: &[Paged],
        qkv: View<Self>,
        k_pages: ViewMut<Self>,
        v_pages: ViewMut<Self>,
        out: ViewMut<Self>,
    ) {
        timed!(self, attention_paged);
        let (n, count) = (qkv.shape()[0], k_pages.shape()[0]);
        let page = page_len(heads.kv, heads.dim, k_pages.dtype());
        check_heads(&heads);
        check_pages(sequences, n, count);
        shapes!(qkv: [n, heads.width()], k_pages: [count, page], v_pages: [count, page], out: [n, heads.q * heads.dim]);
        assert_eq!(k_pages.dtype(), v_pages.dtype(), "keys and values of one type");
        by_cache!(qkv.dtype(), k_pages.dtype(), A, T => attention::attention_paged::<A, T>(
            Context::new(&self.pool, &self.memory), heads, scale, sequences, slice(qkv), (slice_mut(k_pages), slice_mut(v_pages)), slice_mut(out),
        ))
    }

    fn swiglu(&self, gate_up: View<Self>, w: Option<View<Self>>, y: ViewMut<Self>) {
        timed!(self, swiglu);
        let [n, f] = y.shape();
        shapes!(gate_up: [n, 2 * f]);
        if let Some(w) = w {
            shapes!(w: [n, 1]);
        }
        by_stored!(y.dtype(), A => swiglu::swiglu::<A>(&self.pool, f, slice(gate_up), w.map(slice), slice_mut(y)))
    }
    fn swiglu_backward(
        &self,
        w: Option<View<Self>>,
        gate_up: ViewMut<Self>,
        dy: ViewMut<Self>,
        dw: Option<ViewMut<Self>>,
    ) {
        timed!(self, swiglu_backward);
        let [n, f] = dy.shape();
        shapes!(gate_up: [n, 2 * f]);
        assert_eq!(w.is_some(), dw.is_some(), "a gradient for the weights that there are");
        if let (Some(w), Some(dw)) = (&w, &dw) {
            shapes!(w: [n, 1], dw: [n, 1]);
        }
        by_stored!(dy.dtype(), A => {
            let dw = dw.map(slice_mut).unwrap_or_default();
            swiglu::swiglu_backward::<A>(&self.pool, f, w.map(slice), slice_mut(gate_up), slice_mut(dy), dw)
        })
    }

    fn route(
        &self,
        routing: &Routing,
        logits: View<Self>,
        bias: Option<View<Self>>,
        scores: ViewMut<Self>,
        choice: ViewMut<Self>,
        weights: ViewMut<Self>,
        stats: ViewMut<Self>,
    ) {
        timed!(self, route);
        let ([t, e], k) = (logits.shape(), routing.top_k);
        check_routing(routing, e);
        shapes!(scores: [t, e], choice: [t, k], weights: [t, k], stats: [t, 2]);
        if let Some(bias) = bias {
            shapes!(bias: [1, e]);
        }
        by_dtype!(logits.dtype(), R => {
            let out = route::Routed {
                scores: slice_mut(scores),
                choice: slice_mut(choice),
                weights: slice_mut(weights),
                stats: slice_mut(stats),
            };
            route::route::<R>(&self.pool, routing, e, slice(logits), bias.map(slice), out)
        })
    }
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
    ) {
        timed!(self, route_backward);
        let ([t, e], k) = (scores.shape(), routing.top_k);
        check_routing(routing, e);
        shapes!(choice: [t, k], weights: [t, k], stats: [t, 2], dweights: [t, k], dlogits: [t, e]);
        assert!(balance.is_empty() || balance.len() == e, "{} balance terms for {e} experts", balance.len());
        assert!(z == 0.0 || routing.score == Score::Softmax, "the z-loss is defined for softmax scores");
        by_dtype!(scores.dtype(), R => route::route_backward::<R>(
            &self.pool, routing, e, balance, z, (slice(scores), slice(choice), slice(weights), slice(stats)),
            slice(dweights), slice_mut(dlogits),
        ))
    }

    fn cross_entropy(&self, scale: Option<f64>, targets: &[u32], logits: ViewMut<Self>, losses: ViewMut<Self>) {
        timed!(self, cross_entropy);
        let [t, v] = logits.shape();
        assert_eq!(targets.len(), t, "targets");
        shapes!(losses: [t, 1]);
        assert!(targets.iter().all(|&i| i == IGNORE || (i as usize) < v), "a target is beyond the vocabulary of {v}");
        by_stored!(logits.dtype(), A => loss::cross_entropy::<A>(
            &self.pool, &self.memory, v, scale, targets, slice_mut(logits), slice_mut(losses),
        ))
    }

    fn nesterov(&self, a: &Nesterov, g: View<Self>, m: ViewMut<Self>, u: ViewMut<Self>) -> f64 {
        timed!(self, nesterov);
        let [rows, cols] = g.shape();
        shapes!(m: [rows, cols], u: [rows, cols]);
        by_stored!(m.dtype(), M => optimizer::nesterov::<M>(&self.pool, a, slice(g), slice_mut(m), slice_mut(u)))
    }

    fn adamw(&self, a: &AdamW, g: View<Self>, w: ViewMut<Self>, m: ViewMut<Self>, v: ViewMut<Self>) {
        timed!(self, adamw);
        let [rows, cols] = g.shape();
        shapes!(w: [rows, cols], m: [rows, cols], v: [rows, cols]);
        by_stored!(m.dtype(), M =>
            optimizer::adamw::<M>(&self.pool, a, slice(g), slice_mut(w), slice_mut(m), slice_mut(v)))
    }
}
