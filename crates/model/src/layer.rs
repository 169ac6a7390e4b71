//! The contract of a layer, and all that a step may touch.
//!
//! A layer is two functions and the value that travels between them. [`Layer::Saved`] is moved from forward to
//! backward, so backward can run only after forward, at most once, and frees each activation as it is spent: Rust's
//! ownership is the tape. Parameter gradients accumulate (+=) into the gradient store.
//!
//! A block is a stream with two branches. The residual stream, and its gradient on the way back, is one tensor in the
//! type of statistics that branches add to; what a branch reads and keeps is in the type of operands, which may be
//! narrower (mixed precision).

use crate::Store;
use crate::store::Weights;
use wudao_comm::Comm;
use wudao_device::{DType, Device, Fault, Tensor, View, ViewMut};

/// Two functions and the value between them.
pub trait Layer<D: Device> {
    /// What forward leaves for backward.
    type Saved;
    /// `x` `[T, D]` to `y` `[T, D]`, both in the type of statistics.
    fn forward(&self, cx: &mut Cx<D>, x: Tensor<D>) -> Result<(Tensor<D>, Self::Saved), Fault>;
    /// The gradient by `y` to the gradient by `x`; parameter gradients are added to `grads`.
    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        saved: Self::Saved,
        dy: Tensor<D>,
    ) -> Result<Tensor<D>, Fault>;
}

/// A side road of the residual stream: `y += branch(x)`.
pub(crate) trait Branch<D: Device> {
    /// What forward leaves for backward, beside `x`, which the caller has or makes again.
    type Saved;
    /// Reads `x` `[T, D]` (operands) and adds to the stream `y` `[T, D]` (statistics).
    fn forward(&self, cx: &mut Cx<D>, x: View<D>, acc_y: ViewMut<D>) -> Result<Self::Saved, Fault>;
    /// The gradient by `y` (operands) to the gradient by `x` (either type).
    fn backward(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        x: View<D>,
        saved: Self::Saved,
        dy: View<D>,
    ) -> Result<Tensor<D>, Fault>;
}

/// A tensor in the type of operands: itself, or rounded.
pub(crate) enum Narrow<'a, D: Device> {
    Same(View<'a, D>),
    Rounded(Tensor<D>),
}

impl<'a, D: Device> Narrow<'a, D> {
    pub fn of(device: &D, x: View<'a, D>, dtype: DType) -> Self {
        if x.dtype() == dtype {
            return Narrow::Same(x);
        }
        let mut rounded = Tensor::new(device, x.shape(), dtype);
        device.copy(x, rounded.view_mut());
        Narrow::Rounded(rounded)
    }

    pub fn view(&self) -> View<'_, D> {
        match self {
            Narrow::Same(x) => *x,
            Narrow::Rounded(x) => x.view(),
        }
    }
}

/// How documents lie in a packed batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packing {
    /// Position of each token within its segment, for the rotary embedding.
    pub positions: Vec<u32>,
    /// Cumulative starts of the segments, first 0, last T. Attention never crosses a segment's edge.
    pub segments: Vec<u32>,
}

impl Packing {
    /// Segments of these lengths, one after another.
    pub fn of_lengths(lengths: &[usize]) -> Self {
        let mut segments = vec![0];
        let mut positions = vec![];
        for &n in lengths {
            positions.extend(0..n as u32);
            segments.push(positions.len() as u32);
        }
        Packing { positions, segments }
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// The auxiliary losses of the routers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Auxiliary {
    /// Coefficient α of the load-balance loss `α·E·Σ_e f_e·P_e`, where f_e is the share of all choices that fell on expert e
    /// and P_e its mean score, both over the global batch (Fedus et al. 2021, eq. 4; Qiu et al. 2025 on the global batch).
    pub balance: f64,
    /// Coefficient β of the z-loss `β·mean(lse²)` (Zoph et al. 2022, eq. 5). Softmax routers alone have one:
    /// for others it must be 0.
    pub z: f64,
    /// Tokens of the whole step: all micro-batches, all ranks. Means are taken over these.
    pub tokens: f64,
}

/// What one router did during a step.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RouterStats {
    /// Choices that fell on each expert.
    pub load: Vec<f64>,
    /// Sum over tokens of each expert's score.
    pub score: Vec<f64>,
    /// Sum over tokens of the entropy of the scores, in nats.
    pub entropy: f64,
    /// Sum over tokens of the squared log-sum-exp.
    pub z: f64,
    /// Tokens seen.
    pub tokens: f64,
}

impl RouterStats {
    /// The load-balance loss without its coefficient, `E·Σ_e f_e·P_e`: 1 for softmax scores in perfect balance.
    pub fn balance_loss(&self) -> f64 {
        let all: f64 = self.load.iter().sum();
        let dot: f64 = self.load.iter().zip(&self.score).map(|(n, s)| n * s).sum();
        if all > 0.0 { self.load.len() as f64 * dot / all / self.tokens } else { 0.0 }
    }

    /// The z-loss without its coefficient: the mean squared log-sum-exp.
    pub fn z_loss(&self) -> f64 {
        if self.tokens > 0.0 { self.z / self.tokens } else { 0.0 }
    }
}

/// What the routers did since the log was made, one entry per sparse layer: this rank's tokens, unless summed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RouterLog {
    /// By sparse layer.
    pub layers: Vec<RouterStats>,
}

impl RouterLog {
    /// An empty log for `layers` sparse layers of `experts` experts.
    pub fn new(layers: usize, experts: usize) -> Self {
        let one = RouterStats { load: vec![0.0; experts], score: vec![0.0; experts], ..Default::default() };
        RouterLog { layers: vec![one; layers] }
    }

    /// Sums the logs of all ranks.
    pub fn all_reduce<D: Device>(&mut self, comm: &dyn Comm<D>) -> Result<(), Fault> {
        fn numbers(l: &mut RouterStats) -> impl Iterator<Item = &mut f64> {
            l.load.iter_mut().chain(&mut l.score).chain([&mut l.entropy, &mut l.z, &mut l.tokens])
        }
        let mut all: Vec<f64> = self.layers.iter_mut().flat_map(numbers).map(|x| *x).collect();
        comm.all_reduce_host(&mut all)?;
        self.layers.iter_mut().flat_map(numbers).zip(all).for_each(|(x, sum)| *x = sum);
        Ok(())
    }
}

/// All that a pass may touch. Nothing is global.
pub struct Cx<'a, D: Device> {
    /// The machine.
    pub device: &'a D,
    /// The other ranks.
    pub comm: &'a dyn Comm<D>,
    /// The parameters.
    pub weights: &'a dyn Weights<D>,
    /// How documents lie in the batch.
    pub packing: &'a Packing,
    /// The routers' auxiliary losses.
    pub aux: Auxiliary,
    /// What the routers do; `None` keeps no log (evaluation, decoding). The balance loss needs it.
    pub log: Option<&'a mut RouterLog>,
    /// This forward pass repeats an earlier one (recomputation): the log has it already.
    pub again: bool,
}

#[cfg(test)]
mod tests;
