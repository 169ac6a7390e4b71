//! The parameters under one table of names.
//!
//! A [`Layout`] is the table; a [`Store`] is memory in that layout. Weights, gradients and each optimizer moment are
//! stores of one layout, so clipping, reducing and saving are one loop each. The dense part is flat. An expert is an
//! addressable block of its own, (layer, expert): it may live in a file until a token wants it, so nothing may assume that
//! all experts are one array, nor, in a forward pass, that all are in memory ([`Weights::in_turns`]).
//!
//! A parameter may be several Hugging Face tensors stacked by rows (`q_proj`, `k_proj`, `v_proj` become one fused
//! projection, one GEMM): [`Part`]s name them. Parts are what files hold and what Muon treats as matrices.

use crate::config::{Config, Family, MlaConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{DType, Device, Fault, Gemm, Operand, SQUARE_UNIT, Tensor, View, ViewMut};

/// What a parameter is, hence how it begins, decays and is updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A weight matrix inside the network.
    Matrix,
    /// A matrix that writes to the residual stream: begins smaller by `1/√(2L)` (Radford et al. 2019).
    Output,
    /// A matrix that makes keys and values of latents: it is read by heads and from both sides, so it is never packed.
    Expansion,
    /// Token embedding.
    Embedding,
    /// The output head, where it is not the embedding.
    Head,
    /// The router's matrix, or the gate of a shared expert: a router of one.
    Router,
    /// Gain of a norm: begins as 1.
    Norm,
    /// Begins as 0.
    Bias,
    /// The router's correction bias. No gradient: its slot in the gradient store counts the load of each expert instead,
    /// so that what sums gradients over micro-batches and ranks sums loads as well.
    Correction,
}

/// One Hugging Face tensor inside a parameter.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its shape in a checkpoint: `[rows, columns]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Its rows within the parameter.
    pub rows: Range<usize>,
}

/// One parameter: a matrix of a block.
#[derive(Clone, PartialEq, Debug)]
pub struct Param {
    /// What it is.
    pub kind: Kind,
    /// Elements within its block.
    pub at: Range<usize>,
    /// Rows and columns; vectors are one row.
    pub shape: [usize; 2],
    /// The tensors stacked in it.
    pub parts: Vec<Part>,
}

/// A parameter of the dense part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ParamId(usize);

impl ParamId {
    /// Its place among the dense part's parameters.
    pub(crate) fn number(self) -> usize {
        self.0
    }
}

/// One of an expert's two matrices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ExpertPart {
    /// `[2F, D]`: gate rows, then up rows.
    GateUp = 0,
    /// `[D, F]`.
    Down = 1,
}

/// Which experts this rank holds: an equal, consecutive share of each layer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    /// This rank.
    pub rank: usize,
    /// All ranks; divides the number of experts.
    pub size: usize,
}

impl Shard {
    /// Everything on one rank.
    pub const WHOLE: Shard = Shard { rank: 0, size: 1 };

    /// The experts of this rank, of `experts` in all.
    pub fn experts(&self, experts: usize) -> Range<usize> {
        assert!(experts.is_multiple_of(self.size), "{experts} experts on {} ranks", self.size);
        let n = experts / self.size;
        self.rank * n..(self.rank + 1) * n
    }
}

/// The parameters of one layer's feed-forward half.
#[derive(Clone, Debug)]
pub(crate) enum FeedForwardIds {
    Dense(MlpIds),
    Sparse {
        router: ParamId,
        correction: Option<ParamId>,
        experts: usize,
        shared: Option<MlpIds>,
        shared_gate: Option<ParamId>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpIds {
    pub gate_up: ParamId,
    pub down: ParamId,
}

/// The parameters of grouped-query attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedIds {
    pub qkv: ParamId,
    pub qkv_bias: Option<ParamId>,
    pub qk_norm: Option<(ParamId, ParamId)>,
    pub o: ParamId,
    pub o_bias: Option<ParamId>,
}

/// A projection to a latent, its bias, and the latent's norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DownIds {
    pub weight: ParamId,
    pub bias: Option<ParamId>,
    pub norm: ParamId,
}

/// The parameters of latent attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatentIds {
    /// To the latent of queries, if they have one.
    pub q_down: Option<DownIds>,
    /// To queries: `[H·(N + R), rank or D]`.
    pub q: ParamId,
    /// To the latent of keys and values, and the rotated columns of the key: `[rank + R, D]`.
    pub kv_down: DownIds,
    /// Each head's keys and values of the latent: `[H·(N + V), rank]`.
    pub kv: ParamId,
    pub o: ParamId,
    pub o_bias: Option<ParamId>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AttentionIds {
    Grouped(GroupedIds),
    Latent(LatentIds),
}

/// The parameters of one layer.
#[derive(Clone, Debug)]
pub(crate) struct BlockIds {
    pub norm1: ParamId,
    pub attention: AttentionIds,
    pub norm2: ParamId,
    pub feed_forward: FeedForwardIds,
}

/// The table of a model's parameters on one rank.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The dense part's parameters, trainable ones first.
    dense: Vec<Param>,
    /// Elements of the dense part that an optimizer updates; the correction biases come after.
    trainable: usize,
    /// Parameters of each local expert: `experts[sparse layer][local expert]` is gate-up, down.
    experts: Vec<Vec<[Param; 2]>>,
    /// Which experts are here.
    pub shard: Shard,
    pub(crate) embed: ParamId,
    pub(crate) head: Option<ParamId>,
    pub(crate) norm: ParamId,
    pub(crate) blocks: Vec<BlockIds>,
}

struct Builder {
    dense: Vec<Param>,
    len: usize,
    corrections: Vec<(ParamId, usize)>,
}

fn stack(kind: Kind, from: usize, cols: usize, parts: Vec<(String, Vec<usize>, usize)>) -> Param {
    let mut row = 0;
    let parts: Vec<Part> = parts
        .into_iter()
        .map(|(name, shape, rows)| {
            row += rows;
            Part { name, shape, rows: row - rows..row }
        })
        .collect();
    Param { kind, at: from..from + row * cols, shape: [row, cols], parts }
}

impl Builder {
    fn push(&mut self, kind: Kind, cols: usize, parts: Vec<(String, Vec<usize>, usize)>) -> ParamId {
        let p = stack(kind, self.len, cols, parts);
        self.len = p.at.end;
        self.dense.push(p);
        ParamId(self.dense.len() - 1)
    }
    fn matrix(&mut self, kind: Kind, cols: usize, parts: &[(String, usize)]) -> ParamId {
        self.push(kind, cols, parts.iter().map(|(n, r)| (n.clone(), vec![*r, cols], *r)).collect())
    }
    fn vector(&mut self, kind: Kind, name: String, n: usize) -> ParamId {
        self.push(kind, n, vec![(name, vec![n], 1)])
    }
    /// A stacked vector: one row in memory, its parts side by side. Stored as a column of rows so that parts are rows.
    fn stacked_vector(&mut self, kind: Kind, parts: &[(String, usize)]) -> ParamId {
        self.push(kind, 1, parts.iter().map(|(n, r)| (n.clone(), vec![*r], *r)).collect())
    }
    fn grouped_attention(&mut self, config: &Config, at: &str) -> GroupedIds {
        let (d, c) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * c, config.num_key_value_heads * c);
        let qkv = |what: &str| ["q", "k", "v"].map(|x| format!("{at}.{x}_proj.{what}"));
        let sized = |names: [String; 3]| names.into_iter().zip([q, kv, kv]).collect::<Vec<_>>();
        let qkv_weight = self.matrix(Kind::Matrix, d, &sized(qkv("weight")));
        let qkv_bias = config.attention_bias.then(|| self.stacked_vector(Kind::Bias, &sized(qkv("bias"))));
        let qk_norm = config.qk_norm.then(|| {
            let mut norm =
                |x: &str| self.vector(Kind::Norm, format!("{at}.{x}_norm.weight"), config.normed_heads().dim);
            (norm("q"), norm("k"))
        });
        let o = self.matrix(Kind::Output, q, &[(format!("{at}.o_proj.weight"), d)]);
        let o_bias = config.attention_output_bias.then(|| self.vector(Kind::Bias, format!("{at}.o_proj.bias"), d));
        GroupedIds { qkv: qkv_weight, qkv_bias, qk_norm, o, o_bias }
    }
    fn latent_attention(&mut self, config: &Config, m: &MlaConfig, at: &str) -> LatentIds {
        let (d, h) = (config.hidden_size, config.num_attention_heads);
        let down = |b: &mut Builder, name: &str, norm: &str, rank: usize, rows: usize| DownIds {
            weight: b.matrix(Kind::Matrix, d, &[(format!("{at}.{name}.weight"), rows)]),
            bias: config.attention_bias.then(|| b.vector(Kind::Bias, format!("{at}.{name}.bias"), rows)),
            norm: b.vector(Kind::Norm, format!("{at}.{norm}.weight"), rank),
        };
        let q_down = m.q_lora_rank.map(|rank| down(self, "q_a_proj", "q_a_layernorm", rank, rank));
        let q_name = if q_down.is_some() { "q_b_proj" } else { "q_proj" };
        let queries = h * (m.qk_nope_head_dim + m.qk_rope_head_dim);
        let q = [(format!("{at}.{q_name}.weight"), queries)];
        let q = self.matrix(Kind::Matrix, m.q_lora_rank.unwrap_or(d), &q);
        let rank = m.kv_lora_rank;
        let kv_down = down(self, "kv_a_proj_with_mqa", "kv_a_layernorm", rank, rank + m.qk_rope_head_dim);
        let kv = [(format!("{at}.kv_b_proj.weight"), h * (m.qk_nope_head_dim + m.v_head_dim))];
        let kv = self.matrix(Kind::Expansion, rank, &kv);
        let o = self.matrix(Kind::Output, h * m.v_head_dim, &[(format!("{at}.o_proj.weight"), d)]);
        let o_bias = config.attention_output_bias.then(|| self.vector(Kind::Bias, format!("{at}.o_proj.bias"), d));
        LatentIds { q_down, q, kv_down, kv, o, o_bias }
    }
    fn mlp(&mut self, prefix: &str, d: usize, f: usize) -> MlpIds {
        let gate_up = [(format!("{prefix}.gate_proj.weight"), f), (format!("{prefix}.up_proj.weight"), f)];
        MlpIds {
            gate_up: self.matrix(Kind::Matrix, d, &gate_up),
            down: self.matrix(Kind::Output, f, &[(format!("{prefix}.down_proj.weight"), d)]),
        }
    }
}

impl Layout {
    /// The table for `config` on one rank of `shard.size`.
    pub fn new(config: &Config, shard: Shard) -> Arc<Layout> {
        let d = config.hidden_size;
        let mut b = Builder { dense: vec![], len: 0, corrections: vec![] };
        let mut experts = vec![];
        let embed = b.matrix(Kind::Embedding, d, &[("model.embed_tokens.weight".into(), config.vocab_size)]);
        let blocks = (0..config.num_hidden_layers)
            .map(|l| {
                let at = format!("model.layers.{l}");
                let norm1 = b.vector(Kind::Norm, format!("{at}.input_layernorm.weight"), d);
                let sa = format!("{at}.self_attn");
                let attention = match &config.mla {
                    None => AttentionIds::Grouped(b.grouped_attention(config, &sa)),
                    Some(m) => AttentionIds::Latent(b.latent_attention(config, m, &sa)),
                };
                let norm2 = b.vector(Kind::Norm, format!("{at}.post_attention_layernorm.weight"), d);
                let feed_forward = match config.moe_at(l) {
                    None => FeedForwardIds::Dense(b.mlp(&format!("{at}.mlp"), d, config.intermediate_size)),
                    Some(m) => {
                        let mixtral = config.family == Family::Mixtral;
                        let at = if mixtral { format!("{at}.block_sparse_moe") } else { format!("{at}.mlp") };
                        let [gate, up, down] =
                            if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
                        let router = b.matrix(Kind::Router, d, &[(format!("{at}.gate.weight"), m.num_experts)]);
                        let f = m.moe_intermediate_size;
                        let block = |e: usize| {
                            let part = |x: &str, shape: [usize; 2]| {
                                (format!("{at}.experts.{e}.{x}.weight"), shape.to_vec(), shape[0])
                            };
                            let gate_up = stack(Kind::Matrix, 0, d, vec![part(gate, [f, d]), part(up, [f, d])]);
                            let down = stack(Kind::Output, gate_up.at.end, f, vec![part(down, [d, f])]);
                            [gate_up, down]
                        };
                        experts.push(shard.experts(m.num_experts).map(block).collect());
                        let one = if config.shared_expert_gate() { "shared_expert" } else { "shared_experts" };
                        let shared =
                            (m.n_shared_experts > 0).then(|| b.mlp(&format!("{at}.{one}"), d, f * m.n_shared_experts));
                        let shared_gate = (config.shared_expert_gate())
                            .then(|| b.matrix(Kind::Router, d, &[(format!("{at}.shared_expert_gate.weight"), 1)]));
                        // The correction bias gets its place after everything trainable; see below.
                        let correction = m.sigmoid.then(|| {
                            let id = ParamId(usize::MAX - b.corrections.len());
                            b.corrections.push((id, l));
                            id
                        });
                        FeedForwardIds::Sparse { router, correction, experts: experts.len() - 1, shared, shared_gate }
                    }
                };
                BlockIds { norm1, attention, norm2, feed_forward }
            })
            .collect();
        let norm = b.vector(Kind::Norm, "model.norm.weight".into(), d);
        let head = (!config.tie_word_embeddings)
            .then(|| b.matrix(Kind::Head, d, &[("lm_head.weight".into(), config.vocab_size)]));
        let trainable = b.len;
        let mut layout = Layout { dense: vec![], trainable, experts, shard, embed, head, norm, blocks };
        let n_experts = config.moe.as_ref().map_or(0, |m| m.num_experts);
        for (placeholder, l) in std::mem::take(&mut b.corrections) {
            let name = format!("model.layers.{l}.mlp.gate.e_score_correction_bias");
            let id = b.vector(Kind::Correction, name, n_experts);
            if let FeedForwardIds::Sparse { correction: Some(c), .. } = &mut layout.blocks[l].feed_forward {
                debug_assert_eq!(*c, placeholder);
                *c = id;
            }
        }
        layout.dense = b.dense;
        Arc::new(layout)
    }

    /// A dense parameter.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.dense[id.0]
    }

    /// Dense parameters, trainable ones first, correction biases last.
    pub fn dense(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.dense.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// Local experts: `(sparse layer, local expert, [gate-up, down])`.
    pub fn experts(&self) -> impl Iterator<Item = (usize, usize, &[Param; 2])> {
        self.experts.iter().enumerate().flat_map(|(l, es)| es.iter().enumerate().map(move |(e, p)| (l, e, p)))
    }

    /// One of them.
    pub(crate) fn expert(&self, layer: usize, expert: usize) -> &[Param; 2] {
        &self.experts[layer][expert]
    }

    /// The tensors of all parameters on this rank.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let experts = self.experts().flat_map(|(.., pair)| pair);
        self.dense.iter().chain(experts).flat_map(|param| &param.parts)
    }

    /// Elements of the dense part that an optimizer updates.
    pub fn trainable(&self) -> usize {
        self.trainable
    }

    /// Elements of the dense part.
    pub fn dense_len(&self) -> usize {
        self.dense.last().map_or(0, |p| p.at.end)
    }

    /// Elements of all blocks on this rank.
    pub fn len(&self) -> usize {
        self.dense_len() + self.experts().map(|(_, _, p)| p[1].at.end).sum::<usize>()
    }

    /// True if there are no parameters; never so for a real model.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

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
        let [gate_up, down] = [ExpertPart::GateUp, ExpertPart::Down].map(|part| weights.experts(layer, part));
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

/// How far from the sum of all squares it may be that each was rounded.
const ROUNDED: f64 = 1.0 / (1 << 17) as f64;

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
        let experts = self.layout.experts().flat_map(|(l, e, p)| {
            [ExpertPart::GateUp, ExpertPart::Down].map(|part| (Home::Expert(l, e, part), p[part as usize].clone()))
        });
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
        let n = self.layout.trainable;
        let dense = self.dense.view().part(0..n, [1, n]);
        std::iter::once(dense).chain(self.experts.iter().flatten().map(Tensor::view)).collect()
    }

    /// As [`Store::trainable`], for writing.
    pub fn trainable_mut(&mut self) -> Vec<ViewMut<'_, D>> {
        self.squares.clear();
        let n = self.layout.trainable;
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
                _ => device.fill(0.0, self.at_mut(id)),
            }
        }
        for layer in 0..self.experts.len() {
            self.experts[layer] = vec![];
            self.spent.extend([ExpertPart::GateUp, ExpertPart::Down].map(|part| Sum::Experts(layer, part)));
        }
    }

    /// Adds the gradient `Aᵀ·B` of a matrix.
    pub fn add(&mut self, device: &D, g: Gemm, id: ParamId, a: View<D>, b: View<D>) {
        self.add_part(device, g.measured(true), id, a, b);
    }

    /// As [`Store::add`], where more rows follow at once: of what is not whole yet nobody wants the squares.
    pub fn add_part(&mut self, device: &D, g: Gemm, id: ParamId, a: View<D>, b: View<D>) {
        let there = !self.spent.remove(&Sum::Dense(id));
        let rows = 0..a.shape()[0];
        let to = vec![self.at_mut(id)];
        let squares = device.gemm_bands_outer(g.adding(there), std::slice::from_ref(&rows), a, b, to);
        self.squares.insert(Sum::Dense(id), squares);
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

    /// Sums of squares of what an optimizer updates: of the dense part, and of this rank's experts. What products have said on
    /// their way is not read again, unless it might be off by more than [`ROUNDED`].
    pub fn sums_of_squares(&self, device: &D) -> [f64; 2] {
        let (sums, said) = self.squares(device, true);
        let off = said as f64 * SQUARE_UNIT / 2.0;
        if off <= ROUNDED * (sums[0] + sums[1]) { sums } else { self.squares(device, false).0 }
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
            let parts = [ExpertPart::GateUp, ExpertPart::Down];
            let parts = parts.map(|part| end(&pair[part as usize], Sum::Experts(layer, part), e));
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
mod tests {
    use super::*;
    use crate::common::families::every_family;
    use wudao_device::Cpu;
    use wudao_device::check::{Random, assert_close};

    /// Gradients of all matrices, made by products of numbers of about such a size.
    fn gradients(cpu: &Cpu, config: &Config, size: f64) -> Store<Cpu> {
        let (mut r, rows) = (Random(5), 40);
        let mut random = |width: usize| {
            let values: Vec<f64> = r.values(rows * width).iter().map(|x| x * size.sqrt()).collect();
            let mut x = Tensor::new(cpu, [rows, width], DType::F32);
            cpu.copy(Tensor::from_host(cpu, [rows, width], &values).view(), x.view_mut());
            x
        };
        let layout = Layout::new(config, Shard::WHOLE);
        let mut grads = Store::gradients(cpu, &layout, DType::F32);
        for (id, p) in layout.dense().filter(|(_, p)| p.kind != Kind::Correction && p.shape[0] > 1) {
            for _ in 0..2 {
                grads.add(cpu, Gemm::TN, id, random(p.shape[0]).view(), random(p.shape[1]).view());
            }
        }
        for (layer, experts) in layout.experts.iter().enumerate() {
            // One expert has no rows.
            let bands: Vec<_> =
                (0..experts.len()).map(|e| rows * e / experts.len()..rows * (e + 1) / experts.len()).collect();
            for part in [ExpertPart::GateUp, ExpertPart::Down] {
                let [n, k] = experts[0][part as usize].shape;
                grads.add_experts(cpu, layer, part, &bands, random(n).view(), random(k).view());
            }
        }
        grads.end_sum(cpu);
        grads
    }

    /// What products say on their way is what is read, where it can be; and nothing is said of what was written since.
    #[test]
    fn squares_are_those_that_are_read() {
        let cpu = Cpu::new(2);
        for (_, config) in every_family() {
            for (size, said) in [(1e-4, true), (1e-9, false), (1.0, false)] {
                let mut grads = gradients(&cpu, &config, size);
                let sums = grads.sums_of_squares(&cpu);
                let read = grads.squares(&cpu, false).0;
                assert_close("squares", "squares", DType::F32, &read, &sums);
                assert_eq!(sums != read, said, "numbers of {size:e}");
                let layout = grads.layout().clone();
                for (home, _) in grads.params() {
                    let before = grads.sums_of_squares(&cpu);
                    cpu.fill(1.0, grads.get_mut(home));
                    let after = grads.sums_of_squares(&cpu);
                    let trainable = !matches!(home, Home::Dense(id) if layout.param(id).kind == Kind::Correction);
                    assert_eq!(before != after, trainable, "{home:?}");
                }
                let n = layout.len() - layout.dense_len() + layout.trainable();
                assert_eq!(grads.sums_of_squares(&cpu).iter().sum::<f64>(), n as f64, "ones");
            }
        }
    }
}
