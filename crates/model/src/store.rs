//! The parameters under one table of names.
//!
//! A [`Layout`] is the table; a [`Store`] is memory in that layout. Weights, gradients and each optimizer moment are
//! stores of one layout, so clipping, reducing and saving are one loop each. The dense part is flat. An expert is an
//! addressable block of its own, (layer, expert): it may live in a file until a token wants it, so nothing may assume that
//! all experts are one array, nor, in a forward pass, that all are in memory ([`Weights::in_turns`]).
//!
//! A parameter may be several Hugging Face tensors stacked by rows (`q_proj`, `k_proj`, `v_proj` become one fused
//! projection, one GEMM): [`Part`]s name them. Parts are what files hold and what Muon treats as matrices.

mod layout;

pub(crate) use layout::{AttentionIds, BlockIds, DownIds, FeedForwardIds, GroupedIds, LatentIds, MlpIds};
pub use layout::{ExpertPart, Kind, Layout, Param, ParamId, Part, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{DType, Device, Fault, Gemm, Operand, SQUARE_UNIT, Tensor, View, ViewMut};

/// Where a parameter lives: the dense part, or an expert's block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In the dense part.
    Dense(ParamId),
    /// `(sparse layer, local expert, part)`.
    Expert(usize, usize, ExpertPart),
}

/// What a pass reads of the parameters: those of training, a [`Store`], or those of inference,
/// [`PackedWeights`](crate::PackedWeights).
pub trait Weights<D: Device>: Send + Sync {
    /// A norm's gain or a bias, in the type of statistics; or a matrix that is never packed, in any type.
    fn at(&self, id: ParamId) -> View<'_, D>;
    /// A matrix, in as many bits as it is kept in: embeddings and routers.
    fn exact(&self, id: ParamId) -> Operand<'_, D>;
    /// A matrix, for products.
    fn operand(&self, id: ParamId) -> Operand<'_, D>;
    /// One matrix of every local expert of a sparse layer, for products. Panics if they are not all in memory: a forward
    /// pass asks for them [in turns](Weights::in_turns).
    fn experts(&self, layer: usize, part: ExpertPart) -> Vec<Operand<'_, D>>;
    /// Gives `f` the local experts of a sparse layer, at least those that have rows: all at once, or in order as many at a
    /// time as there is memory for. `bands` are the rows of each.
    fn in_turns(&self, layer: usize, bands: &[Range<usize>], f: &mut dyn FnMut(&Turn<D>)) -> Result<(), Fault>;
}

/// Experts that are in memory at once, in their order.
pub struct Turn<'a, D: Device> {
    /// The rows of each, without gaps.
    pub bands: Vec<Range<usize>>,
    /// [`ExpertPart::GateUp`] of each.
    pub gate_up: Vec<Operand<'a, D>>,
    /// [`ExpertPart::Down`] of each.
    pub down: Vec<Operand<'a, D>>,
}

impl<'a, D: Device> Turn<'a, D> {
    /// All experts of a layer, in memory.
    pub fn all(weights: &'a impl Weights<D>, layer: usize, bands: &[Range<usize>]) -> Self {
        let [gate_up, down] = ExpertPart::BOTH.map(|part| weights.experts(layer, part));
        Turn { bands: bands.to_vec(), gate_up, down }
    }

    /// The rows of all, and within them those of each.
    pub fn rows(&self) -> (Range<usize>, Vec<Range<usize>>) {
        let start = self.bands.first().map_or(0, |band| band.start);
        let end = self.bands.last().map_or(0, |band| band.end);
        (start..end, self.bands.iter().map(|band| band.start - start..band.end - start).collect())
    }
}

impl<D: Device> Weights<D> for Store<D> {
    fn at(&self, id: ParamId) -> View<'_, D> {
        Store::at(self, id)
    }
    fn exact(&self, id: ParamId) -> Operand<'_, D> {
        Store::at(self, id).into()
    }
    fn operand(&self, id: ParamId) -> Operand<'_, D> {
        Store::at(self, id).into()
    }
    fn experts(&self, layer: usize, part: ExpertPart) -> Vec<Operand<'_, D>> {
        Store::experts(self, layer, part).into_iter().map(Operand::from).collect()
    }
    fn in_turns(&self, layer: usize, bands: &[Range<usize>], f: &mut dyn FnMut(&Turn<D>)) -> Result<(), Fault> {
        f(&Turn::all(self, layer, bands));
        Ok(())
    }
}

/// Memory in a layout: weights, gradients, or a moment.
pub struct Store<D: Device> {
    layout: Arc<Layout>,
    dense: Tensor<D>,
    /// Of every sparse layer. Of a store of gradients, none for a layer that nothing was added to since the sum began.
    experts: Vec<Vec<Tensor<D>>>,
    /// Of a store of gradients, the parameters whose next product is assigned, not added: what is there is of another step.
    spent: BTreeSet<Sum>,
    /// Of a store of gradients, the sums of squares that products made on their way, while nothing else was written there.
    squares: BTreeMap<Sum, Vec<Option<f64>>>,
}

/// How far from the sum of all squares it may be that each was cut.
const CUT: f64 = 1.0 / (1 << 17) as f64;

/// What a call adds to: a matrix, or one of all experts of a sparse layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sum {
    Dense(ParamId),
    Experts(usize, ExpertPart),
}

impl<D: Device> Store<D> {
    /// All zero.
    pub fn zeros(device: &D, layout: &Arc<Layout>, dtype: DType) -> Self {
        let mut store = Self::gradients(device, layout, dtype);
        store.end_sum(device);
        store
    }

    /// A sum of gradients that nothing was added to yet. Of experts there is no memory before something is: when a step's
    /// activations take the most, no gradients are there yet, and when all gradients are there, the activations are gone.
    pub fn gradients(device: &D, layout: &Arc<Layout>, dtype: DType) -> Self {
        let dense = Tensor::new(device, [1, layout.dense_len()], dtype);
        let experts = layout.experts.iter().map(|_| vec![]).collect();
        let (spent, squares) = (BTreeSet::new(), BTreeMap::new());
        let mut store = Store { layout: layout.clone(), dense, experts, spent, squares };
        store.begin_sum(device);
        store
    }

    /// Zeros for the weights of a model that multiplies in `operands`: kept in the type of that computation's statistics.
    /// Products round them on their way.
    pub fn weights(device: &D, layout: &Arc<Layout>, operands: DType) -> Self {
        Self::zeros(device, layout, D::statistics(operands))
    }

    /// Bytes of this store.
    pub fn bytes(&self) -> usize {
        self.layout.len() * self.dtype().size()
    }

    /// The table.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dense.dtype()
    }

    /// A dense parameter.
    pub fn at(&self, id: ParamId) -> View<'_, D> {
        let p = self.layout.param(id);
        self.dense.view().part(p.at.clone(), p.shape)
    }

    /// A dense parameter, for writing.
    pub fn at_mut(&mut self, id: ParamId) -> ViewMut<'_, D> {
        self.squares.remove(&Sum::Dense(id));
        let p = self.layout.param(id);
        self.dense.view_mut().part(p.at.clone(), p.shape)
    }

    /// One matrix of every local expert of a sparse layer.
    pub fn experts(&self, layer: usize, part: ExpertPart) -> Vec<View<'_, D>> {
        let table = self.layout.experts[layer].iter().map(|p| &p[part as usize]);
        self.experts[layer].iter().zip(table).map(|(t, p)| t.view().part(p.at.clone(), p.shape)).collect()
    }

    /// One matrix of every local expert of a sparse layer, for writing.
    pub fn experts_mut(&mut self, layer: usize, part: ExpertPart) -> Vec<ViewMut<'_, D>> {
        self.squares.remove(&Sum::Experts(layer, part));
        let table = self.layout.experts[layer].iter().map(|p| &p[part as usize]);
        self.experts[layer].iter_mut().zip(table).map(|(t, p)| t.view_mut().part(p.at.clone(), p.shape)).collect()
    }

    /// Every parameter with its home, in a fixed order.
    pub fn params(&self) -> Vec<(Home, Param)> {
        let dense = self.layout.dense().map(|(id, p)| (Home::Dense(id), p.clone()));
        let experts = self
            .layout
            .experts()
            .flat_map(|(l, e, p)| ExpertPart::BOTH.map(|part| (Home::Expert(l, e, part), p[part as usize].clone())));
        dense.chain(experts).collect()
    }

    /// A parameter, wherever it lives.
    pub fn get(&self, home: Home) -> View<'_, D> {
        match home {
            Home::Dense(id) => self.at(id),
            Home::Expert(l, e, part) => {
                let p = &self.layout.experts[l][e][part as usize];
                self.experts[l][e].view().part(p.at.clone(), p.shape)
            }
        }
    }

    /// A parameter, wherever it lives, for writing.
    pub fn get_mut(&mut self, home: Home) -> ViewMut<'_, D> {
        match home {
            Home::Dense(id) => self.at_mut(id),
            Home::Expert(l, e, part) => {
                self.squares.remove(&Sum::Experts(l, part));
                let p = &self.layout.experts[l][e][part as usize];
                self.experts[l][e].view_mut().part(p.at.clone(), p.shape)
            }
        }
    }

    /// What an optimizer updates, as flat stretches: the dense part (which every rank holds), then each expert's block
    /// (which one rank holds).
    pub fn trainable(&self) -> Vec<View<'_, D>> {
        let n = self.layout.trainable();
        let dense = self.dense.view().part(0..n, [1, n]);
        std::iter::once(dense).chain(self.experts.iter().flatten().map(Tensor::view)).collect()
    }

    /// As [`Store::trainable`], for writing.
    pub fn trainable_mut(&mut self) -> Vec<ViewMut<'_, D>> {
        self.squares.clear();
        let n = self.layout.trainable();
        let dense = self.dense.view_mut().part(0..n, [1, n]);
        std::iter::once(dense).chain(self.experts.iter_mut().flatten().map(Tensor::view_mut)).collect()
    }

    /// The whole dense part, flat, correction biases included: what ranks must sum.
    pub fn dense_mut(&mut self) -> ViewMut<'_, D> {
        self.squares.retain(|sum, _| matches!(sum, Sum::Experts(..)));
        self.dense.view_mut()
    }

    /// Sets everything to zero.
    pub fn clear(&mut self, device: &D) {
        device.fill(0.0, self.dense.view_mut());
        self.experts.iter_mut().flatten().for_each(|t| device.fill(0.0, t.view_mut()));
        self.spent.clear();
        self.squares.clear();
    }

    /// Begins another sum of gradients. Matrices are not cleared, which would be a pass over memory to write and one to read it:
    /// the first product is assigned. Those that none came for are cleared by [`Store::end_sum`]; before it, experts may have
    /// no memory.
    pub fn begin_sum(&mut self, device: &D) {
        self.squares.clear();
        let layout = self.layout.clone();
        for (id, p) in layout.dense() {
            match p.kind {
                Kind::Matrix | Kind::Output | Kind::Head | Kind::Router => {
                    self.spent.insert(Sum::Dense(id));
                }
                kind => {
                    device.fill(0.0, self.at_mut(id));
                    if kind == Kind::Embedding && layout.shard.size == 1 {
                        self.squares.insert(Sum::Dense(id), vec![Some(0.0)]);
                    }
                }
            }
        }
        for layer in 0..self.experts.len() {
            self.experts[layer] = vec![];
            self.spent.extend(ExpertPart::BOTH.map(|part| Sum::Experts(layer, part)));
        }
    }

    /// Adds the gradient `Aᵀ·B` of a matrix.
    pub fn add(&mut self, device: &D, g: Gemm, id: ParamId, a: View<D>, b: View<D>) {
        // Other ranks' gradients are added later.
        self.add_part(device, g.measured(self.layout.shard.size == 1), id, a, b);
    }

    /// As [`Store::add`], where more rows follow at once: of what is not whole yet nobody wants the squares.
    pub fn add_part(&mut self, device: &D, g: Gemm, id: ParamId, a: View<D>, b: View<D>) {
        let there = !self.spent.remove(&Sum::Dense(id));
        let rows = 0..a.shape()[0];
        let to = vec![self.at_mut(id)];
        let squares = device.gemm_bands_outer(g.adding(there), std::slice::from_ref(&rows), a, b, to);
        self.squares.insert(Sum::Dense(id), squares);
    }

    /// Adds rows to the gradient of the embedding: `dy[i]` to row `index[i]`.
    pub fn add_rows(&mut self, device: &D, id: ParamId, index: &[u32], dy: View<D>) {
        let before = self.squares.get(&Sum::Dense(id)).and_then(|said| said[0]);
        let grown = device.gather_backward(index, dy, self.at_mut(id));
        let squares = before.zip(grown).map(|(before, grown)| before + grown);
        self.squares.insert(Sum::Dense(id), vec![squares]);
    }

    /// Adds the gradients `A[band_e]ᵀ·B[band_e]` of a matrix of every local expert of a sparse layer.
    pub fn add_experts(
        &mut self,
        device: &D,
        layer: usize,
        part: ExpertPart,
        bands: &[Range<usize>],
        a: View<D>,
        b: View<D>,
    ) {
        let there = !self.spent.remove(&Sum::Experts(layer, part));
        self.hold_experts(device, layer);
        let g = Gemm::TN.adding(there).measured(true);
        let squares = device.gemm_bands_outer(g, bands, a, b, self.experts_mut(layer, part));
        self.squares.insert(Sum::Experts(layer, part), squares);
    }

    /// Sums of squares of what an optimizer updates: of the dense part, and of this rank's experts, after [`Store::end_sum`]. What
    /// products have said on their way is not read again, unless the sum over all ranks might be off by more than 2⁻¹⁷ of
    /// itself.
    pub fn sums_of_squares(&self, device: &D) -> [f64; 2] {
        debug_assert!(self.spent.is_empty(), "the sum is not ended");
        let ([dense, experts], said) = self.squares(device, true);
        let off = said as f64 * SQUARE_UNIT;
        // The dense part is the same on all ranks and counts once.
        let own = dense / self.layout.shard.size as f64 + experts;
        if off <= CUT * own { [dense, experts] } else { self.squares(device, false).0 }
    }

    /// These sums, and how many numbers of theirs products have spoken for, if they are listened to.
    fn squares(&self, device: &D, listen: bool) -> ([f64; 2], usize) {
        let mut numbers = 0;
        let mut end = |p: &Param, sum: Sum, i: usize| {
            let said = self.squares.get(&sum).and_then(|said| said[i]).filter(|_| listen);
            numbers += said.map_or(0, |_| p.at.len());
            (p.at.end, said)
        };
        let dense = self.layout.dense().filter(|(_, p)| p.kind != Kind::Correction);
        let dense: Vec<_> = dense.map(|(id, p)| end(p, Sum::Dense(id), 0)).collect();
        let dense = sum_of_squares(device, self.dense.view(), &dense);
        let experts = self.layout.experts().map(|(layer, e, pair)| {
            let parts = ExpertPart::BOTH.map(|part| end(&pair[part as usize], Sum::Experts(layer, part), e));
            sum_of_squares(device, self.experts[layer][e].view(), &parts)
        });
        let sums = [dense, experts.sum()];
        (sums, numbers)
    }

    /// Ends a sum of gradients: what nothing was added to is zero.
    pub fn end_sum(&mut self, device: &D) {
        for spent in std::mem::take(&mut self.spent) {
            match spent {
                Sum::Dense(id) => device.fill(0.0, self.at_mut(id)),
                Sum::Experts(layer, part) => {
                    self.hold_experts(device, layer);
                    self.experts_mut(layer, part).into_iter().for_each(|t| device.fill(0.0, t));
                }
            }
        }
    }

    /// Memory for a sparse layer's experts, if there is none.
    fn hold_experts(&mut self, device: &D, layer: usize) {
        if self.experts[layer].is_empty() {
            let dtype = self.dtype();
            let block = |p: &[Param; 2]| Tensor::new(device, [1, p[1].at.end], dtype);
            self.experts[layer] = self.layout.experts[layer].iter().map(block).collect();
        }
    }
}

/// Sum of squares of a block's first parameters: where each ends, and what it has, if that is known. Neighbours of which it is not
/// are read in one go.
fn sum_of_squares<D: Device>(device: &D, block: View<D>, params: &[(usize, Option<f64>)]) -> f64 {
    let (mut sum, mut at) = (0.0, 0);
    for run in params.chunk_by(|a, b| a.1.is_some() == b.1.is_some()) {
        let part = at..run.last().expect("a run").0;
        at = part.end;
        let known: Option<f64> = run.iter().map(|(_, known)| *known).sum();
        sum += known.unwrap_or_else(|| device.sum_of_squares(block.part(part.clone(), [1, part.len()])));
    }
    sum
}

#[cfg(test)]
mod tests;
