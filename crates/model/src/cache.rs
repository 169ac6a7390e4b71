//! The keys and values of the tokens that a sequence already has: in one piece for one sequence, or for many in pages of
//! one pool, which belongs to nobody in particular (Kwon et al. 2023, "PagedAttention"). Which page is whose is the
//! caller's to know.

use crate::Config;
use crate::layer::Packing;
use std::ops::Range;
use wudao_device::{DType, Device, Paged, Tensor, page_len};

/// One layer's keys and values, `[capacity, G·C]` each; or, with latent attention, `[capacity, R + rank]` each, what both
/// are made from.
pub(crate) struct LayerCache<D: Device> {
    pub k: Tensor<D>,
    pub v: Tensor<D>,
}

/// The cache of one sequence.
pub struct KvCache<D: Device> {
    pub(crate) layers: Vec<LayerCache<D>>,
    pub(crate) len: usize,
    capacity: usize,
}

impl<D: Device> KvCache<D> {
    /// Room for `capacity` tokens.
    pub fn new(device: &D, config: &Config, capacity: usize, dtype: DType) -> Self {
        let shape = [capacity, config.cache_width()];
        let layer = || LayerCache { k: Tensor::new(device, shape, dtype), v: Tensor::new(device, shape, dtype) };
        KvCache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect(), len: 0, capacity }
    }

    /// Bytes of that.
    pub fn bytes(config: &Config, capacity: usize, dtype: DType) -> usize {
        2 * config.num_hidden_layers * capacity * config.cache_width() * dtype.size()
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// A pool of pages for the keys and values of any sequences.
pub struct PagedCache<D: Device> {
    /// Each `[pages, `[`page_len`]`]`, laid out as the device likes.
    pub(crate) layers: Vec<LayerCache<D>>,
    pages: usize,
}

impl<D: Device> PagedCache<D> {
    /// Room for `pages` pages of [`PAGE`](wudao_device::PAGE) tokens, in `dtype`: that of the model's operands, a narrower
    /// one, or [`DType::I8`].
    pub fn new(device: &D, config: &Config, pages: usize, dtype: DType) -> Self {
        let (heads, dim) = config.cache_heads();
        let shape = [pages, page_len(heads, dim, dtype)];
        let sparse = || Tensor::sparse(device, shape, dtype);
        let layer = || LayerCache { k: sparse(), v: sparse() };
        PagedCache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect(), pages }
    }

    /// Bytes of a page of all layers.
    pub fn page_bytes(config: &Config, dtype: DType) -> usize {
        let (heads, dim) = config.cache_heads();
        2 * config.num_hidden_layers * page_len(heads, dim, dtype) * dtype.size()
    }

    /// Pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }
}

/// A sequence's part in a call of [`crate::Model::decode_batch`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    /// Its next tokens.
    pub ids: &'a [u32],
    /// Tokens that it has already.
    pub past: usize,
    /// Its pages in the pool, in order, the new tokens' included.
    pub pages: &'a [u32],
    /// Tokens of `ids` after which the model's answer is wanted.
    pub wanted: Range<usize>,
}

impl Step<'_> {
    /// Where the tokens of these steps stand, one step after another.
    pub fn packing(steps: &[Step]) -> Packing {
        let mut packing = Packing { positions: vec![], segments: vec![0] };
        for s in steps {
            packing.positions.extend((s.past..s.past + s.ids.len()).map(|p| p as u32));
            packing.segments.push(packing.positions.len() as u32);
        }
        packing
    }

    /// As the device wants to know it.
    pub(crate) fn paged<'a>(steps: &'a [Step]) -> Vec<Paged<'a>> {
        let mut next = 0;
        let paged = steps.iter().map(|s| {
            let rows = next..next + s.ids.len();
            next = rows.end;
            Paged { rows, past: s.past, pages: s.pages }
        });
        paged.collect()
    }
}
