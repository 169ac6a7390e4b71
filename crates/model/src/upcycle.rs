//! A dense model becomes a sparse one (Komatsuzaki et al. 2022, "Sparse upcycling"): every feed-forward layer is copied
//! into experts, a router is drawn, and all else stays. The sparse model begins with the dense one's answers, and its
//! experts drift apart as they are trained.
//!
//! It begins with *exactly* those answers, up to rounding, because the chosen weights are divided by their sum: a token's
//! experts are all the same function f, so `Σ w_k·f(x) = f(x)` whatever the router says. Two things could break that:
//!
//! - *Shared experts.* Families that have them add their answer to the routed one. Each half then gives half: the experts'
//!   down projections are multiplied by ½, and the shared expert's too, or its gate's row is 0, and `sigmoid(0) = ½`.
//! - *Finer experts.* With `split = M` each copy is cut into M experts of an M-th of its width (Dai et al. 2024, "DeepSeekMoE"),
//!   whose answers add up to f. Then a token must get all M parts of a copy, or none: the M rows of the router begin equal,
//!   so the parts have equal scores and are chosen together (He et al. 2024, "Upcycling large language models into
//!   mixture of experts", call that a virtual group). Each part's weight is an M-th of the copy's, so the down projections
//!   are multiplied by M.
//!
//! M is a power of two, so all of these factors change exponents alone, in any type of weights.

use crate::config::{Config, ConfigError, Family, MoeConfig, fail};
use crate::store::{Kind, Layout, Part, Shard};
use std::ops::Range;

/// How a dense model shall become sparse.
#[derive(Clone, PartialEq, Debug)]
pub struct Upcycling {
    /// Copies of each feed-forward layer.
    pub copies: usize,
    /// Copies that a token goes to.
    pub chosen: usize,
    /// Experts that each copy is cut into, a power of two.
    pub split: usize,
    /// The sparse family; by default the one closest to the dense family.
    pub family: Option<Family>,
    /// Layers that stay dense, ascending.
    pub dense_layers: Vec<usize>,
    /// Standard deviation of the routers' weights.
    pub router_std: f64,
    /// Seed of the routers' weights.
    pub seed: u64,
}

/// What a tensor of the sparse model is made of.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Source {
    /// A tensor of the dense model.
    Tensor(String),
    /// Some rows of one.
    Rows(String, Range<usize>),
    /// Some columns of one, times a power of two.
    Columns(String, Range<usize>, f64),
    /// Drawn.
    Router,
    /// Zeros.
    Zeros,
}

/// A tensor of the sparse model.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Piece {
    pub name: String,
    pub kind: Kind,
    pub shape: Vec<usize>,
    pub source: Source,
}

impl Upcycling {
    /// What the sparse model of a dense one is.
    pub fn config(&self, dense: &Config) -> Result<Config, ConfigError> {
        let (copies, chosen, split, f) = (self.copies, self.chosen, self.split, dense.intermediate_size);
        if dense.moe.is_some() || dense.mla.is_some() {
            return fail("model_type", format!("{} is sparse already", dense.family.model_type()));
        }
        if copies == 0 || copies > 1 << 12 {
            return fail("experts", format!("{copies} copies of each layer; it must be between 1 and 4096"));
        }
        if chosen == 0 || chosen > copies {
            return fail("top-k", format!("{chosen} of {copies} copies; it must be between 1 and {copies}"));
        }
        if !split.is_power_of_two() || !f.is_multiple_of(split) {
            return fail("split", format!("{split} must be a power of two that divides intermediate_size = {f}"));
        }
        crate::config::positive("router-std", self.router_std)?;
        let family = self.family.unwrap_or(match dense.family {
            Family::Qwen2 => Family::Qwen2Moe,
            Family::Qwen3 => Family::Qwen3Moe,
            _ => Family::Mixtral,
        });
        let known = [Family::Mixtral, Family::Qwen2Moe, Family::Qwen3Moe, Family::Glm4Moe];
        if !known.contains(&family) {
            let names = known.map(Family::model_type).join(", ");
            return fail("family", format!("{} cannot be made; {names} can", family.model_type()));
        }
        let glm = family == Family::Glm4Moe;
        let moe = MoeConfig {
            num_experts: copies * split,
            num_experts_per_tok: chosen * split,
            moe_intermediate_size: f / split,
            n_shared_experts: if shares(family) { split } else { 0 },
            sigmoid: glm,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            n_group: 1,
            topk_group: 1,
            dense_layers: self.dense_layers.clone(),
            router_aux_loss_coef: if glm { 0.0 } else { 0.001 },
        };
        let intermediate_size = if family == Family::Mixtral { f / split } else { f };
        let sparse = Config { family, intermediate_size, moe: Some(moe), ..dense.clone() };
        sparse.check()?;
        Ok(sparse)
    }

    /// Every tensor of the sparse model, and what it is made of.
    pub(crate) fn pieces(&self, dense: &Config, sparse: &Config) -> Vec<Piece> {
        let layout = Layout::new(sparse, Shard::WHOLE);
        let (layers, width) = (sparse.moe_layers(), dense.intermediate_size / self.split);
        let shared = shares(sparse.family);
        let whole = |layer: &str, which: &str| format!("model.layers.{layer}.mlp.{which}_proj.weight");
        let of_dense = |kind: Kind, part: &Part| {
            let name = part.name.as_str();
            let layer =
                name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).map(|(layer, _)| layer);
            let source = match (kind, layer) {
                (Kind::Correction, _) => Source::Zeros,
                (Kind::Router, _) if name.ends_with("shared_expert_gate.weight") => Source::Zeros,
                (Kind::Router, _) => Source::Router,
                (_, Some(layer)) if name.contains(".shared_expert") => {
                    let half = if sparse.shared_expert_gate() { 1.0 } else { 0.5 };
                    match ["gate", "up"].into_iter().find(|which| name.ends_with(&format!("{which}_proj.weight"))) {
                        Some(which) => Source::Tensor(whole(layer, which)),
                        None => columns(whole(layer, "down"), 0..dense.intermediate_size, half, dense),
                    }
                }
                _ => Source::Tensor(part.name.clone()),
            };
            Piece { name: part.name.clone(), kind, shape: part.shape.clone(), source }
        };
        let dense_part = layout.dense().flat_map(|(_, p)| p.parts.iter().map(|part| of_dense(p.kind, part)));
        let mut all: Vec<Piece> = dense_part.collect();
        for (l, e, [gate_up, down]) in layout.experts() {
            let layer = layers[l].to_string();
            let slice = e % self.split * width..(e % self.split + 1) * width;
            let factor = self.split as f64 * if shared { 0.5 } else { 1.0 };
            let rows = |which| match self.split {
                1 => Source::Tensor(whole(&layer, which)),
                _ => Source::Rows(whole(&layer, which), slice.clone()),
            };
            let sources = [
                (&gate_up.parts[0], gate_up.kind, rows("gate")),
                (&gate_up.parts[1], gate_up.kind, rows("up")),
                (&down.parts[0], down.kind, columns(whole(&layer, "down"), slice.clone(), factor, dense)),
            ];
            let piece = |(part, kind, source): (&Part, Kind, Source)| Piece {
                name: part.name.clone(),
                kind,
                shape: part.shape.clone(),
                source,
            };
            all.extend(sources.into_iter().map(piece));
        }
        all
    }
}

/// A sparse layer of this family has a shared expert, always.
fn shares(family: Family) -> bool {
    matches!(family, Family::Qwen2Moe | Family::Glm4Moe)
}

fn columns(of: String, columns: Range<usize>, factor: f64, dense: &Config) -> Source {
    if columns == (0..dense.intermediate_size) && factor == 1.0 {
        return Source::Tensor(of);
    }
    Source::Columns(of, columns, factor)
}
