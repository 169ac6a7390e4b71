//! The table of a model's parameters: names, shapes, and where each lies in memory.

use crate::config::{Config, Family, MlaConfig};
use std::ops::Range;
use std::sync::Arc;

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

impl ExpertPart {
    /// Both, in the order in which they lie in an expert's block.
    pub const BOTH: [ExpertPart; 2] = [ExpertPart::GateUp, ExpertPart::Down];
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
    pub(super) experts: Vec<Vec<[Param; 2]>>,
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
