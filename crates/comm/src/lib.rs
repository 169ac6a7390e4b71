//! Ranks and collectives.
//!
//! The engine is written against [`Comm`] from the first day, so that one rank and many run the same code. [`Solo`] is
//! a world of one, where every collective is the identity and costs nothing. [`Threads`] is many ranks in one process:
//! it proves that N ranks compute what one rank computes, and lets a person debug a distributed run in one debugger.
//! Engines that cross processes (MPI, NCCL) implement the same trait.
//!
//! Sums are taken in the order of the ranks, so every rank gets the same bits, every time.

mod threads;

pub use threads::Threads;
use wudao_device::{Device, Fault, Tensor, ViewMut};

/// Collectives over one group of ranks. Every rank must make the same calls in the same order.
pub trait Comm<D: Device>: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn size(&self) -> usize;
    /// Element-wise sum over ranks, in place.
    fn all_reduce(&self, device: &D, t: ViewMut<D>) -> Result<(), Fault>;
    /// Element-wise sum over ranks of a few host numbers: counts, losses, norms.
    fn all_reduce_host(&self, x: &mut [f64]) -> Result<(), Fault>;
    /// Sends `send[r]` rows of `t` (consecutive, in rank order) to rank r; the answer holds the rows of rank 0, 1, ….
    fn all_to_all(&self, device: &D, t: Tensor<D>, send: &[usize], recv: &[usize]) -> Pending<D>;
    /// Sends element block r of `x` (equal blocks) to rank r; the answer holds the blocks of rank 0, 1, ….
    fn all_to_all_host(&self, x: &[u64]) -> Result<Vec<u64>, Fault>;
}

/// A tensor in flight, unreachable until [`Pending::wait`]: overlap that cannot race.
pub struct Pending<D: Device>(Box<dyn FnOnce() -> Result<Tensor<D>, Fault> + Send>);

impl<D: Device> Pending<D> {
    /// A tensor that arrives when `finish` returns.
    pub fn new(finish: impl FnOnce() -> Result<Tensor<D>, Fault> + Send + 'static) -> Self {
        Pending(Box::new(finish))
    }
    /// Waits for the tensor.
    pub fn wait(self) -> Result<Tensor<D>, Fault> {
        (self.0)()
    }
}

/// A world of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<D: Device> Comm<D> for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn all_reduce(&self, _: &D, _: ViewMut<D>) -> Result<(), Fault> {
        Ok(())
    }
    fn all_reduce_host(&self, _: &mut [f64]) -> Result<(), Fault> {
        Ok(())
    }
    fn all_to_all(&self, _: &D, t: Tensor<D>, send: &[usize], recv: &[usize]) -> Pending<D> {
        assert_eq!(send, recv);
        Pending::new(move || Ok(t))
    }
    fn all_to_all_host(&self, x: &[u64]) -> Result<Vec<u64>, Fault> {
        Ok(x.to_vec())
    }
}
