//! The machine that every computer has, and the specification that other devices must agree with.
//!
//! One file per kernel, forward and backward side by side. Kernels see typed slices; the dispatch on dtype happens
//! here, once.

mod memory;
mod pool;

use memory::{Block, Memory};
pub use pool::Pool;
use std::sync::Arc;

/// A host processor: a pool of threads and a pool of memory.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<Pool>,
    memory: Memory,
}

impl Cpu {
    /// A device with `threads` threads.
    pub fn new(threads: usize) -> Self {
        Cpu { pool: Arc::new(Pool::new(threads)), memory: Memory::default() }
    }

    /// The threads, for work that is not a kernel.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Most bytes of tensors that were ever alive at once.
    pub fn peak_bytes(&self) -> usize {
        self.memory.peak()
    }
}
