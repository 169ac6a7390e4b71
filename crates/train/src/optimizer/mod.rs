//! From a gradient to an update.
//!
//! An [`Optimizer`] cuts the trainable parameters into pieces, each updated by one rule: flat runs that AdamW walks
//! over in one pass, or single matrices that Muon orthogonalises. A matrix is a Hugging Face tensor: the parts of a fused
//! projection (q, k, v; gate, up) and each expert are matrices of their own. Only AdamW's pieces have a second moment, so
//! Muon's cost no memory for it. Matrices of one shape are orthogonalised together, some at a time: one expert's is too small
//! to be worth the threads' while.
//!
//! What is not here: the correction biases of sigmoid routers, which have no gradient and never decay
//! (see [`crate::step`]), and the decision whether to update at all ([`crate::guard`]).

mod muon;
mod state;

pub use state::StateError;

use crate::settings::{OptimizerKind, TrainSettings};
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{DType, Device, Nesterov, Tensor};
use wudao_model::Store;
use wudao_model::store::{Kind, Layout};

/// How a piece is updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// AdamW with the second moment of this number.
    AdamW { second: usize, decay: bool },
    /// Muon, the piece being one matrix.
    Muon,
}

/// Parameters that are updated together.
#[derive(Clone, PartialEq, Debug)]
struct Piece {
    /// Which of [`Store::trainable`]'s stretches it lies in.
    stretch: usize,
    /// Its elements there.
    at: Range<usize>,
    /// Rows and columns under Muon; one row under AdamW.
    shape: [usize; 2],
    rule: Rule,
}

/// One Hugging Face tensor's place among the trainable stretches.
#[derive(Clone, PartialEq, Debug)]
struct Place {
    name: String,
    shape: Vec<usize>,
    stretch: usize,
    at: Range<usize>,
    /// The piece it belongs to.
    piece: usize,
}

/// The learning rates of one step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// AdamW's.
    pub lr: f64,
    /// Muon's.
    pub muon_lr: f64,
}

/// Moments, and the rules that use them.
pub struct Optimizer<D: Device> {
    adamw: wudao_device::AdamW,
    momentum: f64,
    weight_decay: f64,
    pieces: Vec<Piece>,
    /// Muon's pieces that are orthogonalised together.
    batches: Vec<Vec<usize>>,
    places: Vec<Place>,
    /// Momentum of every piece.
    first: Store<D>,
    /// Second moment of each AdamW piece.
    second: Vec<Tensor<D>>,
    /// Updates made so far; skipped steps do not count.
    updates: u64,
    /// The type of products' operands, also of Muon's.
    operands: DType,
}

/// Whether weight decay applies: to matrices, and to embeddings where `decay_embeddings` says so.
fn decays(kind: Kind, settings: &TrainSettings) -> bool {
    match kind {
        Kind::Matrix | Kind::Expansion | Kind::Output | Kind::Head | Kind::Router => true,
        Kind::Embedding => settings.decay_embeddings,
        Kind::Norm | Kind::Bias | Kind::Correction => false,
    }
}

/// Cuts a layout's trainable parameters into pieces, and says where each Hugging Face tensor lies.
fn cut(layout: &Layout, settings: &TrainSettings) -> (Vec<Piece>, Vec<Place>) {
    let (mut pieces, mut places): (Vec<Piece>, Vec<Place>) = (vec![], vec![]);
    let mut seconds = 0;
    let dense = layout.dense().filter(|(_, p)| p.kind != Kind::Correction).map(|(_, p)| (0, p));
    let experts = layout.experts().enumerate().flat_map(|(i, (_, _, pair))| pair.iter().map(move |p| (i + 1, p)));
    for (stretch, param) in dense.chain(experts) {
        let muon = settings.optimizer == OptimizerKind::Muon && matches!(param.kind, Kind::Matrix | Kind::Output);
        let decay = decays(param.kind, settings);
        if !muon {
            // Neighbours under the same rule are one run, one pass.
            match pieces.last_mut() {
                Some(Piece { stretch: s, at, shape, rule: Rule::AdamW { decay: d, .. } })
                    if (*s, *d, at.end) == (stretch, decay, param.at.start) =>
                {
                    at.end = param.at.end;
                    *shape = [1, at.len()];
                }
                _ => {
                    let rule = Rule::AdamW { second: seconds, decay };
                    pieces.push(Piece { stretch, at: param.at.clone(), shape: [1, param.at.len()], rule });
                    seconds += 1;
                }
            }
        }
        for part in &param.parts {
            let cols = param.shape[1];
            let at = param.at.start + part.rows.start * cols..param.at.start + part.rows.end * cols;
            if muon {
                pieces.push(Piece { stretch, at: at.clone(), shape: [part.rows.len(), cols], rule: Rule::Muon });
            }
            let (name, shape) = (part.name.clone(), part.shape.clone());
            places.push(Place { name, shape, stretch, at, piece: pieces.len() - 1 });
        }
    }
    (pieces, places)
}

/// Elements of all moments for a layout: one for each parameter (the correction biases' are never used), and a second
/// one for what AdamW updates.
pub(crate) fn moments(layout: &Layout, settings: &TrainSettings) -> u64 {
    let adamw = cut(layout, settings).0.into_iter().filter(|p| p.rule != Rule::Muon);
    (layout.len() + adamw.map(|p| p.at.len()).sum::<usize>()) as u64
}

/// Muon's pieces of one shape, some at a time: the numbers of those that are orthogonalised together.
fn batches(pieces: &[Piece]) -> Vec<Vec<usize>> {
    let mut by_shape: Vec<([usize; 2], Vec<usize>)> = vec![];
    for (i, piece) in pieces.iter().enumerate().filter(|(_, p)| p.rule == Rule::Muon) {
        match by_shape.iter_mut().find(|(shape, _)| *shape == piece.shape) {
            Some((_, same)) => same.push(i),
            None => by_shape.push((piece.shape, vec![i])),
        }
    }
    by_shape.iter().flat_map(|(shape, same)| same.chunks(muon::together(*shape)).map(<[_]>::to_vec)).collect()
}

/// Bytes that Muon works with at most, beside weights, gradients and moments, multiplying `operands` whose sums are `sums`.
pub(crate) fn largest_muon(layout: &Layout, settings: &TrainSettings, operands: DType, sums: DType) -> usize {
    let (pieces, _) = cut(layout, settings);
    let bytes = |batch: &Vec<usize>| muon::scratch(batch.len(), pieces[batch[0]].shape, operands, sums);
    batches(&pieces).iter().map(bytes).max().unwrap_or(0)
}

impl<D: Device> Optimizer<D> {
    /// An optimizer that has not seen a gradient, for a model that multiplies `operands`. Moments have the type of their
    /// statistics, or a narrower one that the settings name.
    pub fn new(device: &D, layout: &Arc<Layout>, operands: DType, settings: &TrainSettings) -> Self {
        let (pieces, places) = cut(layout, settings);
        let dtype = settings.moments.kept(D::statistics(operands));
        let second = pieces
            .iter()
            .filter(|p| p.rule != Rule::Muon)
            .map(|p| Tensor::zeros(device, [1, p.at.len()], dtype))
            .collect();
        Optimizer {
            adamw: wudao_device::AdamW {
                lr: 0.0,
                beta1: settings.beta1,
                beta2: settings.beta2,
                eps: settings.eps,
                weight_decay: 0.0,
                step: 0,
                grad_scale: 1.0,
            },
            momentum: settings.muon_momentum,
            weight_decay: settings.weight_decay,
            batches: batches(&pieces),
            pieces,
            places,
            first: Store::zeros(device, layout, dtype),
            second,
            updates: 0,
            operands,
        }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Bytes of the moments.
    pub fn bytes(&self) -> u64 {
        let size = self.first.dtype().size() as u64;
        let second: usize = self.second.iter().map(|t| t.view().len()).sum();
        (self.first.layout().len() + second) as u64 * size
    }

    /// One update of `weights` from `grads`, which are multiplied by `grad_scale` (clipping) on the way.
    pub fn step(&mut self, device: &D, grads: &Store<D>, weights: &mut Store<D>, rates: Rates, grad_scale: f64) {
        self.updates += 1;
        let grads = grads.trainable();
        let (mut weights, mut first) = (weights.trainable_mut(), self.first.trainable_mut());
        for piece in &self.pieces {
            let Rule::AdamW { second, decay } = piece.rule else { continue };
            let (s, at, shape) = (piece.stretch, &piece.at, piece.shape);
            let weight_decay = if decay { self.weight_decay } else { 0.0 };
            let a = wudao_device::AdamW { lr: rates.lr, weight_decay, step: self.updates, grad_scale, ..self.adamw };
            let g = grads[s].part(at.clone(), shape);
            let w = weights[s].reborrow().part(at.clone(), shape);
            let m = first[s].reborrow().part(at.clone(), shape);
            device.adamw(&a, g, w, m, self.second[second].view_mut());
        }
        let muon = muon::Muon {
            lr: rates.muon_lr,
            weight_decay: self.weight_decay,
            nesterov: Nesterov { momentum: self.momentum, step: self.updates, grad_scale },
        };
        for batch in &self.batches {
            let shape @ [rows, cols] = self.pieces[batch[0]].shape;
            let band = |k: usize| k * rows..(k + 1) * rows;
            let mut x = Tensor::new(device, [batch.len() * rows, cols], self.operands);
            let mut any = false;
            for (k, Piece { stretch: s, at, .. }) in batch.iter().map(|&i| &self.pieces[i]).enumerate() {
                let g = grads[*s].part(at.clone(), shape);
                let m = first[*s].reborrow().part(at.clone(), shape);
                any |= muon.direction(device, g, m, x.view_mut().rows(band(k)));
            }
            let o = if any { muon::orthogonalize(device, batch.len(), x) } else { x };
            for (k, Piece { stretch: s, at, .. }) in batch.iter().map(|&i| &self.pieces[i]).enumerate() {
                muon.update(device, o.view().rows(band(k)), weights[*s].reborrow().part(at.clone(), shape));
            }
        }
    }

    /// Forgets every gradient seen.
    pub fn reset(&mut self, device: &D) {
        self.updates = 0;
        self.first.clear(device);
        self.second.iter_mut().for_each(|t| device.fill(0.0, t.view_mut()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{tiny_moe, tiny_settings};
    use wudao_model::store::Shard;

    fn pieces(optimizer: OptimizerKind) -> (Arc<Layout>, Vec<Piece>, Vec<Place>) {
        let layout = Layout::new(&tiny_moe(), Shard::WHOLE);
        let settings = TrainSettings { optimizer, ..tiny_settings() };
        let (pieces, places) = cut(&layout, &settings);
        (layout, pieces, places)
    }

    /// Every trainable element is in exactly one piece, and every tensor lies in the piece that it names.
    #[test]
    fn pieces_cover_everything_once() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let (layout, pieces, places) = pieces(kind);
            let expert = layout.experts().next().unwrap().2[1].at.end;
            let mut seen = vec![vec![0; layout.trainable()]];
            seen.extend(layout.experts().map(|_| vec![0; expert]));
            let mut named = seen.clone();
            for p in &pieces {
                assert_eq!(p.at.len(), p.shape[0] * p.shape[1]);
                seen[p.stretch][p.at.clone()].iter_mut().for_each(|n| *n += 1);
            }
            for p in &places {
                assert_eq!(p.at.len(), p.shape.iter().product::<usize>(), "{}", p.name);
                let piece = &pieces[p.piece];
                assert!(piece.stretch == p.stretch && piece.at.start <= p.at.start && p.at.end <= piece.at.end);
                named[p.stretch][p.at.clone()].iter_mut().for_each(|n| *n += 1);
            }
            assert!(seen.iter().chain(&named).flatten().all(|&n| n == 1));
        }
    }

    #[test]
    fn muon_takes_each_tensor_inside_the_network_as_a_matrix() {
        let (_, pieces, places) = pieces(OptimizerKind::Muon);
        for place in &places {
            let muon = pieces[place.piece].rule == Rule::Muon;
            let projection = place.name.ends_with("_proj.weight");
            assert_eq!(muon, projection, "{}", place.name);
            if muon {
                assert_eq!(pieces[place.piece].shape.to_vec(), place.shape, "{}", place.name);
            }
        }
    }

    #[test]
    fn norms_and_biases_never_decay() {
        let (_, pieces, places) = pieces(OptimizerKind::AdamW);
        for place in &places {
            let Rule::AdamW { decay, .. } = pieces[place.piece].rule else { panic!("AdamW alone") };
            let plain = place.shape.len() == 1 || place.name.contains("embed_tokens");
            assert_eq!(decay, !plain, "{}", place.name);
        }
    }
}
