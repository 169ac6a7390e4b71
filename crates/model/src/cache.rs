//! The keys and values of the tokens that a sequence already has.

use crate::Config;
use wudao_device::{DType, Device, Tensor};

/// One layer's keys and values, `[capacity, G·C]` each.
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
        let shape = [capacity, config.num_key_value_heads * config.head_dim];
        let layer = || LayerCache { k: Tensor::new(device, shape, dtype), v: Tensor::new(device, shape, dtype) };
        KvCache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect(), len: 0, capacity }
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
