//! A device that computes nothing: it counts.
//!
//! The planner runs the real model code on it, at any size, to learn how many bytes a step needs and how many operations
//! it takes. Blocks have a size but no memory. Bytes are counted as [`crate::Cpu`] counts them, rounded up to cache
//! lines, so the peak of a run here is the peak of the same run there. Operations are those of matrix products and of
//! attention, a multiply-add counting as two; what is left (norms, activations, the optimizer) is bound by memory.
//!
//! Downloads give zeros, and sums are zero. Only the router's choices matter to what follows, since they decide how many
//! rows each expert gets: ids go round robin, `i mod E` with the E of the last call of `route`, so that the load is
//! balanced and the choices of a token differ.

use crate::cpu::{block_bytes, packed_bytes};
use crate::{
    AdamW, Coding, DType, Device, Fault, Gemm, Heads, Nesterov, Operand, Paged, Rotation, Routing, View, ViewMut,
};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A device without memory that counts bytes and operations.
#[derive(Clone, Default)]
pub struct Meta(Arc<Counts>);

#[derive(Default)]
struct Counts {
    live: AtomicUsize,
    peak: AtomicUsize,
    gemm: AtomicU64,
    attention: AtomicU64,
    /// Experts of the last router.
    experts: AtomicUsize,
}

/// What a [`Meta`] has counted so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes of tensors that are alive now.
    pub live_bytes: usize,
    /// Most bytes that were ever alive at once.
    pub peak_bytes: usize,
    /// Floating-point operations of matrix products.
    pub gemm_flops: u64,
    /// Floating-point operations of attention: scores and values, only where a query may attend. The backward pass counts
    /// twice the forward pass (the kernel's recomputation of scores is not counted, as usual in model FLOPs).
    pub attention_flops: u64,
}

/// A block of no memory.
pub struct Counted {
    bytes: usize,
    home: Meta,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.home.0.live.fetch_sub(self.bytes, Relaxed);
    }
}

/// A packed matrix of no memory.
pub struct CountedMatrix {
    shape: [usize; 2],
    bytes: usize,
    _block: Counted,
}

impl Meta {
    /// A device that has counted nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counts so far.
    pub fn usage(&self) -> Usage {
        let counts = &*self.0;
        Usage {
            live_bytes: counts.live.load(Relaxed),
            peak_bytes: counts.peak.load(Relaxed),
            gemm_flops: counts.gemm.load(Relaxed),
            attention_flops: counts.attention.load(Relaxed),
        }
    }

    fn count_gemm(&self, m: usize, n: usize, k: usize) {
        self.0.gemm.fetch_add(2 * m as u64 * n as u64 * k as u64, Relaxed);
    }

    /// Attention over `pairs` pairs of a query and a key, of which each head takes a product with the key and one with
    /// the value.
    fn count_attention(&self, heads: Heads, pairs: u64) {
        self.0.attention.fetch_add(4 * heads.q as u64 * heads.dim as u64 * pairs, Relaxed);
    }
}

/// Pairs of a query and a key that it may attend, in all segments.
fn causal_pairs(segments: &[u32]) -> u64 {
    segments.windows(2).map(|w| u64::from(w[1] - w[0])).map(|n| n * (n + 1) / 2).sum()
}

impl Device for Meta {
    type Buf = Counted;
    type Ptr = ();
    type Packed = CountedMatrix;

    fn alloc(&self, bytes: usize) -> Counted {
        let bytes = block_bytes(bytes);
        let live = self.0.live.fetch_add(bytes, Relaxed) + bytes;
        self.0.peak.fetch_max(live, Relaxed);
        Counted { bytes, home: self.clone() }
    }
    fn ptr(_: &Counted) {}
    fn offset(_: (), _: usize) {}

    fn copy_from_host(&self, src: &[u8], dst: ViewMut<Self>) {
        assert_eq!(src.len(), dst.len() * dst.dtype().size(), "length of an upload");
    }
    fn copy_to_host(&self, src: View<Self>, dst: &mut [u8]) {
        assert_eq!(dst.len(), src.len() * src.dtype().size(), "length of a download");
        dst.fill(0);
        if src.dtype() == DType::U32 {
            let experts = self.0.experts.load(Relaxed).max(1);
            for (i, id) in dst.chunks_exact_mut(4).enumerate() {
                id.copy_from_slice(&((i % experts) as u32).to_ne_bytes());
            }
        }
    }
    fn pack<'a>(
        &self,
        coding: Coding,
        shape: [usize; 2],
        _: &(dyn Fn(usize) -> Cow<'a, [u8]> + Sync),
    ) -> CountedMatrix {
        let bytes = packed_bytes(coding, shape);
        CountedMatrix { shape, bytes, _block: self.alloc(bytes) }
    }
    fn packed_shape(w: &CountedMatrix) -> [usize; 2] {
        w.shape
    }
    fn packed_bytes(w: &CountedMatrix) -> usize {
        w.bytes
    }
    fn bytes_to_pack(coding: Coding, shape: [usize; 2]) -> usize {
        packed_bytes(coding, shape)
    }
    fn sync(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn fill(&self, _: f64, _: ViewMut<Self>) {}
    fn copy(&self, x: View<Self>, y: ViewMut<Self>) {
        assert_eq!(x.len(), y.len(), "length of a copy");
    }
    fn axpby(&self, _: f64, x: View<Self>, _: f64, y: ViewMut<Self>) {
        assert_eq!(x.len(), y.len(), "length of a sum");
    }
    fn sum_of_squares(&self, _: View<Self>) -> f64 {
        0.0
    }
    fn column_sums(&self, x: View<Self>) -> Vec<f64> {
        vec![0.0; x.shape()[1]]
    }

    fn gemm<'b>(&self, g: Gemm, a: View<Self>, b: impl Into<Operand<'b, Self>>, c: ViewMut<Self>) {
        let b = b.into();
        let flip = |[rows, cols]: [usize; 2], transposed| if transposed { [cols, rows] } else { [rows, cols] };
        let ([m, k], [k_b, n]) = (flip(a.shape(), g.ta), flip(b.shape(), g.tb));
        assert_eq!(k, k_b, "inner size of a product");
        assert_eq!(c.shape(), [m, n], "shape of a product");
        self.count_gemm(m, n, k);
    }
    fn gemm_bands(&self, g: Gemm, bands: &[Range<usize>], a: View<Self>, b: &[Operand<Self>], mut c: ViewMut<Self>) {
        assert_eq!(bands.len(), b.len(), "one B for every band");
        for (band, b) in bands.iter().zip(b) {
            self.gemm(g, a.rows(band.clone()), *b, c.reborrow().rows(band.clone()));
        }
    }
    fn gemm_bands_outer(
        &self,
        g: Gemm,
        bands: &[Range<usize>],
        a: View<Self>,
        b: View<Self>,
        c: Vec<ViewMut<Self>>,
    ) -> Vec<Option<f64>> {
        assert_eq!(bands.len(), c.len(), "one C for every band");
        for (band, c) in bands.iter().zip(c) {
            self.gemm(g, a.rows(band.clone()), b.rows(band.clone()), c);
        }
        vec![None; bands.len()]
    }

    fn gather<'x>(&self, index: &[u32], _: impl Into<Operand<'x, Self>>, y: ViewMut<Self>) {
        assert_eq!(index.len(), y.shape()[0], "rows of a gather");
    }
    fn gather_backward(&self, index: &[u32], dy: View<Self>, _: ViewMut<Self>) -> Option<f64> {
        assert_eq!(index.len(), dy.shape()[0], "rows of a gather");
        None
    }
    fn gather_sum(&self, k: usize, index: &[u32], _: View<Self>, acc_y: ViewMut<Self>) {
        assert_eq!(index.len(), k * acc_y.shape()[0], "rows of a sum");
    }

    fn add_bias(&self, _: View<Self>, _: ViewMut<Self>) {}
    fn add_bias_backward(&self, _: View<Self>, _: ViewMut<Self>) {}

    fn rms_norm(&self, _: f64, _: View<Self>, _: View<Self>, _: ViewMut<Self>, _: ViewMut<Self>) {}
    fn rms_norm_backward(
        &self,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
    }
    fn qk_norm(
        &self,
        _: Heads,
        _: f64,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: &Rotation<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
    }
    fn qk_norm_backward(
        &self,
        _: Heads,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: &Rotation<Self>,
        _: View<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
    }

    fn rope(&self, _: &Rotation<Self>, _: bool, _: ViewMut<Self>) {}

    fn attention(&self, heads: Heads, _: f64, segments: &[u32], _: View<Self>, _: ViewMut<Self>, _: ViewMut<Self>) {
        self.count_attention(heads, causal_pairs(segments));
    }
    fn attention_backward(
        &self,
        heads: Heads,
        _: f64,
        segments: &[u32],
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: ViewMut<Self>,
    ) {
        self.count_attention(heads, 2 * causal_pairs(segments));
    }
    fn attention_cached(
        &self,
        heads: Heads,
        _: f64,
        past: usize,
        qkv: View<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
        let (past, n) = (past as u64, qkv.shape()[0] as u64);
        self.count_attention(heads, past * n + n * (n + 1) / 2);
    }

    fn attention_paged(
        &self,
        heads: Heads,
        _: f64,
        sequences: &[Paged],
        _: View<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
        for s in sequences {
            let (past, n) = (s.past as u64, s.rows.len() as u64);
            self.count_attention(heads, past * n + n * (n + 1) / 2);
        }
    }

    fn swiglu(&self, _: View<Self>, _: Option<View<Self>>, _: ViewMut<Self>) {}
    fn swiglu_backward(&self, _: Option<View<Self>>, _: ViewMut<Self>, _: ViewMut<Self>, _: Option<ViewMut<Self>>) {}

    fn route(
        &self,
        _: &Routing,
        logits: View<Self>,
        _: Option<View<Self>>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
        _: ViewMut<Self>,
    ) {
        self.0.experts.store(logits.shape()[1], Relaxed);
    }
    fn route_backward(
        &self,
        _: &Routing,
        _: &[f64],
        _: f64,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: View<Self>,
        _: ViewMut<Self>,
    ) {
    }

    fn cross_entropy(&self, _: Option<f64>, _: &[u32], _: ViewMut<Self>, _: ViewMut<Self>) {}

    fn nesterov(&self, _: &Nesterov, g: View<Self>, m: ViewMut<Self>, u: ViewMut<Self>) -> f64 {
        assert_eq!((g.len(), g.len()), (m.len(), u.len()), "lengths of momentum");
        0.0
    }
    fn adamw(&self, _: &AdamW, _: View<Self>, _: ViewMut<Self>, _: ViewMut<Self>, _: ViewMut<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Score, Tensor};

    /// A few tensors that live and die, with products between them.
    fn program<D: Device>(device: &D) {
        let tensor = |rows, cols| Tensor::zeros(device, [rows, cols], DType::F32);
        let (x, w) = (tensor(100, 64), tensor(48, 64));
        let mut y = tensor(100, 48);
        device.gemm(Gemm::NT, x.view(), w.view(), y.view_mut());
        {
            let mut dw = tensor(48, 64);
            device.gemm(Gemm::TN_ACC, y.view(), x.view(), dw.view_mut());
            drop(x);
            let _more = tensor(777, 3);
        }
        let _last = tensor(50, 10);
    }

    #[test]
    fn the_peak_is_that_of_the_cpu() {
        let (meta, cpu) = (Meta::new(), Cpu::new(1));
        program(&meta);
        program(&cpu);
        let usage = meta.usage();
        assert_eq!(usage.peak_bytes, cpu.peak_bytes());
        assert_eq!(usage.live_bytes, 0);
        assert_eq!(usage.gemm_flops, 2 * 2 * 100 * 48 * 64);
    }

    #[test]
    fn bands_count_their_rows_only() {
        let meta = Meta::new();
        let tensor = |rows, cols| Tensor::zeros(&meta, [rows, cols], DType::F32);
        let (a, mut c, b) = (tensor(10, 8), tensor(10, 6), [tensor(6, 8), tensor(6, 8), tensor(6, 8)]);
        let b: Vec<_> = b.iter().map(|b| b.view().into()).collect();
        meta.gemm_bands(Gemm::NT, &[0..4, 4..4, 4..10], a.view(), &b, c.view_mut());
        assert_eq!(meta.usage().gemm_flops, 2 * 10 * 6 * 8);
    }

    #[test]
    fn attention_counts_causal_pairs_within_segments() {
        let meta = Meta::new();
        let heads = Heads { q: 4, kv: 2, dim: 8 };
        let tensor = |rows, cols| Tensor::zeros(&meta, [rows, cols], DType::F32);
        let (qkv, mut out, mut lse) = (tensor(5, heads.width()), tensor(5, 32), tensor(5, 4));
        meta.attention(heads, 1.0, &[0, 2, 5], qkv.view(), out.view_mut(), lse.view_mut());
        // 1 + 2 pairs, and 1 + 2 + 3.
        assert_eq!(meta.usage().attention_flops, 4 * 4 * 8 * 9);
        let (mut k, mut v) = (tensor(20, 16), tensor(20, 16));
        let last = qkv.view().rows(3..5);
        meta.attention_cached(heads, 1.0, 10, last, k.view_mut(), v.view_mut(), out.view_mut().rows(0..2));
        assert_eq!(meta.usage().attention_flops, 4 * 4 * 8 * (9 + 11 + 12));
    }

    #[test]
    fn choices_are_distinct_and_balanced() {
        let meta = Meta::new();
        let (tokens, experts, k) = (32, 8, 3);
        let floats = |cols| Tensor::zeros(&meta, [tokens, cols], DType::F32);
        let (logits, mut scores, mut weights, mut stats) = (floats(experts), floats(experts), floats(k), floats(2));
        let mut choice = Tensor::zeros(&meta, [tokens, k], DType::U32);
        let routing =
            Routing { top_k: k, score: Score::Softmax, renormalize: true, scale: 1.0, groups: 1, top_groups: 1 };
        meta.route(
            &routing,
            logits.view(),
            None,
            scores.view_mut(),
            choice.view_mut(),
            weights.view_mut(),
            stats.view_mut(),
        );
        let ids: Vec<u32> = choice.view().to_host(&meta);
        let mut load = vec![0; experts];
        for row in ids.chunks(k) {
            assert!(row[0] != row[1] && row[1] != row[2] && row[0] != row[2]);
            row.iter().for_each(|&e| load[e as usize] += 1);
        }
        assert_eq!(load, vec![tokens * k / experts; experts]);
        assert!(scores.view().to_host::<f32>(&meta).iter().all(|&x| x == 0.0));
    }
}
