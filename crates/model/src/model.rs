//! From token ids to a loss, to gradients, and to the next token.

use crate::block::{Block, Recompute};
use crate::cache::{KvCache, PagedCache, Step};
use crate::config::{Config, ConfigError};
use crate::init;
use crate::layer::{Cx, Layer};
use crate::norm::Norm;
use crate::packed::{PackedWeights, WeightOptions};
use crate::rope::rope_table;
use crate::store::{Layout, Param, ParamId, Part, Shard, Store};
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{DType, Device, Fault, Gemm, Paged, Tensor, View};

/// Bytes of logits that are in memory at once: the head works on as many rows as fit. A constant, so that the order of sums,
/// hence every bit of a gradient, depends on nothing but shapes and types. Fewer would save memory but walk over the head
/// and its gradient more often.
const LOGITS: usize = 128 << 20;

/// Why a model with latent attention has no gradients.
pub const NO_TRAINING: &str = "multi-head latent attention is for inference and scoring here, it cannot be trained: \
    choose a family with grouped-query attention";

/// The network. It holds no weights: those come with every call in [`Cx::weights`].
pub struct Model<D: Device> {
    config: Config,
    layout: Arc<Layout>,
    operands: DType,
    embed: ParamId,
    blocks: Vec<Recompute<Block<D>>>,
    norm: Norm,
    head: ParamId,
}

/// What backward computes again rather than to keep (Chen et al. 2016). Norms and activation functions always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recomputation {
    /// Nothing more.
    #[default]
    None,
    /// Attention with its projection (the scores of attention are never kept).
    Attention,
    /// Whole blocks, of which the input alone is kept.
    Block,
}

/// Settings of a model that its checkpoint does not know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// What products multiply: activations, and weights if need be rounded. All else (weights as they are kept, gradients,
    /// the residual stream, statistics, losses) has the type of this one's statistics.
    pub dtype: DType,
    /// What backward computes again.
    pub recompute: Recomputation,
    /// The experts of this rank.
    pub shard: Shard,
}

impl Default for Options {
    fn default() -> Self {
        Options { dtype: DType::F32, recompute: Recomputation::None, shard: Shard::WHOLE }
    }
}

impl<D: Device> Model<D> {
    /// The network of `config`. `positions` is the longest segment it will see.
    pub fn new(device: &D, config: &Config, positions: usize, options: Options) -> Result<Self, ConfigError> {
        config.check()?;
        let ranks = options.shard.size;
        if let Some(m) = config.moe.as_ref().filter(|m| ranks == 0 || !m.num_experts.is_multiple_of(ranks)) {
            let problem =
                format!("{} do not divide among {ranks} ranks: each holds as many as the others", m.num_experts);
            return Err(ConfigError { key: "num_experts", problem });
        }
        let layout = Layout::new(config, options.shard);
        let rope = Arc::new(rope_table(device, config, positions, D::statistics(options.dtype)));
        let on = options.recompute == Recomputation::Block;
        let block = |(l, ids)| Recompute { layer: Block::new(config, l, ids, rope.clone(), &options), on };
        Ok(Model {
            embed: layout.embed,
            blocks: layout.blocks.iter().enumerate().map(block).collect(),
            norm: Norm { gain: layout.norm, eps: config.rms_norm_eps, operands: options.dtype },
            head: layout.head.unwrap_or(layout.embed),
            config: config.clone(),
            operands: options.dtype,
            layout,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The table of its parameters on this rank.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// What products multiply: [`Options::dtype`].
    pub fn dtype(&self) -> DType {
        self.operands
    }

    fn statistics(&self) -> DType {
        D::statistics(self.operands)
    }

    /// Fresh weights.
    pub fn init(&self, device: &D, seed: u64) -> Store<D> {
        let mut weights = self.no_weights(device);
        self.fill(device, seed, &mut weights);
        weights
    }

    /// As [`Model::init`], packed for inference.
    pub fn init_packed(&self, device: &D, seed: u64, options: &WeightOptions) -> PackedWeights<D> {
        let open = |param: &Param, part: &Part| Ok(init::incoming(&self.config, seed, param, part));
        let packed: Result<_, std::convert::Infallible> = PackedWeights::new(device, &self.layout, options, open);
        packed.unwrap_or_else(|never| match never {})
    }

    /// Makes weights fresh ones, in place: no second store is in memory.
    pub fn fill(&self, device: &D, seed: u64, weights: &mut Store<D>) {
        init::init(device, &self.config, seed, weights);
    }

    /// Weights of zero, to be loaded.
    pub fn no_weights(&self, device: &D) -> Store<D> {
        Store::weights(device, &self.layout, self.operands)
    }

    /// Gradients of zero.
    pub fn zeros(&self, device: &D) -> Store<D> {
        Store::zeros(device, &self.layout, self.statistics())
    }

    /// A sum of gradients that nothing was added to yet: [`Store::gradients`].
    pub fn gradients(&self, device: &D) -> Store<D> {
        Store::gradients(device, &self.layout, self.statistics())
    }

    fn embed(&self, cx: &Cx<D>, ids: &[u32]) -> Tensor<D> {
        let mut x_td = Tensor::new(cx.device, [ids.len(), self.config.hidden_size], self.statistics());
        cx.device.gather(ids, cx.weights.exact(self.embed), x_td.view_mut());
        x_td
    }

    /// The final hidden states `[T, D]`, normed; nothing is kept for backward.
    pub fn hidden(&self, cx: &mut Cx<D>, ids: &[u32]) -> Result<Tensor<D>, Fault> {
        let mut x_td = self.embed(cx, ids);
        for block in &self.blocks {
            x_td = block.layer.forward(cx, x_td)?.0;
        }
        Ok(self.norm.forward(cx, x_td.view()).0)
    }

    /// Logits `[T, V]` of every token: for tests and small inputs, since it holds all of them.
    pub fn logits(&self, cx: &mut Cx<D>, ids: &[u32]) -> Result<Tensor<D>, Fault> {
        let h_td = self.hidden(cx, ids)?;
        Ok(self.project(cx, h_td.view(), self.statistics()))
    }

    fn project(&self, cx: &Cx<D>, h_td: View<D>, dtype: DType) -> Tensor<D> {
        let mut logits = Tensor::new(cx.device, [h_td.shape()[0], self.config.vocab_size], dtype);
        cx.device.gemm(Gemm::NT, h_td, cx.weights.operand(self.head), logits.view_mut());
        logits
    }

    /// Cross entropy in nats of every token against its target (0 where the target is [`wudao_device::IGNORE`]).
    pub fn losses(&self, cx: &mut Cx<D>, ids: &[u32], targets: &[u32]) -> Result<Vec<f64>, Fault> {
        let h_td = self.hidden(cx, ids)?;
        let losses = self.head(cx, h_td.view(), targets, None);
        cx.device.sync()?;
        Ok(losses)
    }

    /// Of `rows` of final hidden states, which may repeat: cross entropy in nats against `targets`, one each, and whether the
    /// target is the likeliest token (of equals, the lowest id).
    pub fn judge(&self, cx: &Cx<D>, h_td: View<D>, rows: &[u32], targets: &[u32]) -> Result<Vec<(f64, bool)>, Fault> {
        assert_eq!(rows.len(), targets.len());
        let at_once = self.rows_at_once(self.statistics());
        let mut judged = Vec::with_capacity(rows.len());
        for (rows, targets) in rows.chunks(at_once).zip(targets.chunks(at_once)) {
            let mut some = Tensor::new(cx.device, [rows.len(), self.config.hidden_size], h_td.dtype());
            cx.device.gather(rows, h_td, some.view_mut());
            let mut logits = self.project(cx, some.view(), self.statistics());
            let values = logits.view().to_f64(cx.device);
            let mut losses = Tensor::new(cx.device, [rows.len(), 1], self.statistics());
            cx.device.cross_entropy(None, targets, logits.view_mut(), losses.view_mut());
            let losses = losses.view().to_f64(cx.device);
            for ((row, &target), loss) in values.chunks(self.config.vocab_size).zip(targets).zip(losses) {
                let (t, own) = (target as usize, row[target as usize]);
                judged.push((loss, row[..t].iter().all(|&x| x < own) && row[t..].iter().all(|&x| x <= own)));
            }
        }
        cx.device.sync()?;
        Ok(judged)
    }

    /// As [`Model::losses`], and adds `scale` times the gradient of their sum to `grads`, with the gradients of the
    /// auxiliary losses as [`Cx::aux`] weighs them. Refuses a model with latent attention: [`NO_TRAINING`].
    pub fn losses_and_gradients(
        &self,
        cx: &mut Cx<D>,
        grads: &mut Store<D>,
        ids: &[u32],
        targets: &[u32],
        scale: f64,
    ) -> Result<Vec<f64>, Fault> {
        if self.config.mla.is_some() {
            return Err(Fault(NO_TRAINING.into()));
        }
        let mut x_td = self.embed(cx, ids);
        let mut saved = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y_td, s) = block.forward(cx, x_td)?;
            saved.push(s);
            x_td = y_td;
        }
        let (h_td, rstd_t) = self.norm.forward(cx, x_td.view());
        let mut dh_td = Tensor::new(cx.device, h_td.shape(), h_td.dtype());
        let losses = self.head(cx, h_td.view(), targets, Some((scale, &mut dh_td, grads)));
        drop(h_td);
        let mut dx_td = Tensor::zeros(cx.device, x_td.shape(), x_td.dtype());
        self.norm.backward(cx, grads, x_td.view(), rstd_t.view(), dh_td.view(), dx_td.view_mut());
        drop((x_td, dh_td));
        for (block, s) in self.blocks.iter().zip(saved).rev() {
            dx_td = block.backward(cx, grads, s, dx_td)?;
        }
        grads.add_rows(cx.device, self.embed, ids, dx_td.view());
        cx.device.sync()?;
        Ok(losses)
    }

    /// Rows that the head works on: a round number, because the head's gradient is summed over them in blocks, and one more
    /// block of a few rows would read and write it once more.
    fn rows_at_once(&self, logits: DType) -> usize {
        let rows = (LOGITS / (self.config.vocab_size * logits.size())).clamp(64, 2048);
        rows - rows % 64
    }

    /// Head and cross entropy in chunks of rows: the logits of a whole batch are never in memory.
    fn head(
        &self,
        cx: &Cx<D>,
        h_td: View<D>,
        targets: &[u32],
        mut gradient: Option<(f64, &mut Tensor<D>, &mut Store<D>)>,
    ) -> Vec<f64> {
        let (dev, t) = (cx.device, h_td.shape()[0]);
        assert_eq!(targets.len(), t);
        let w = cx.weights.operand(self.head);
        let scale = gradient.as_ref().map(|(scale, ..)| *scale);
        // The gradient, which is an operand, takes the logits' place, so that where operands have few bits logits do.
        let dtype = if scale.is_some() { self.operands } else { self.statistics() };
        let rows = self.rows_at_once(dtype);
        let mut losses = Tensor::new(dev, [t, 1], self.statistics());
        for from in (0..t).step_by(rows) {
            let band = from..(from + rows).min(t);
            let mut logits = self.project(cx, h_td.rows(band.clone()), dtype);
            let out = losses.view_mut().rows(band.clone());
            dev.cross_entropy(scale, &targets[band.clone()], logits.view_mut(), out);
            if let Some((_, dh_td, grads)) = &mut gradient {
                let dlogits = logits;
                dev.gemm(Gemm::NN, dlogits.view(), w, dh_td.view_mut().rows(band.clone()));
                let add = if band.end == t { Store::add } else { Store::add_part };
                add(grads, dev, Gemm::TN, self.head, dlogits.view(), h_td.rows(band));
            }
        }
        losses.view().to_f64(dev)
    }

    /// Appends one sequence's next tokens to its cache and returns the logits `[1, V]` after the last of them.
    /// [`Cx::packing`] must hold their positions, from [`KvCache::len`] on. Panics if the cache is too small.
    pub fn decode(&self, cx: &mut Cx<D>, cache: &mut KvCache<D>, ids: &[u32]) -> Result<Tensor<D>, Fault> {
        self.decode_rows(cx, cache, ids, ids.len().saturating_sub(1)..ids.len())
    }

    /// As [`Model::decode`], but returns the logits after each of the tokens `rows` of `ids`: `[rows, V]`.
    pub fn decode_rows(
        &self,
        cx: &mut Cx<D>,
        cache: &mut KvCache<D>,
        ids: &[u32],
        rows: Range<usize>,
    ) -> Result<Tensor<D>, Fault> {
        let (past, n) = (cache.len, ids.len());
        assert!(n > 0 && past + n <= cache.capacity(), "{past} + {n} tokens in a cache of {}", cache.capacity());
        let mut x_td = self.embed(cx, ids);
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x_td = block.layer.forward_cached(cx, layer, past, x_td)?;
        }
        cache.len += n;
        let wanted = Tensor::copy_of(cx.device, x_td.view().rows(rows));
        let (h_td, _) = self.norm.forward(cx, wanted.view());
        let logits = self.project(cx, h_td.view(), self.statistics());
        cx.device.sync()?;
        Ok(logits)
    }

    /// The next tokens of many sequences at once: the final hidden states `[wanted, D]`, normed, after the tokens that the
    /// steps want, one step after another. [`Cx::packing`] must be [`Step::packing`] of them. What a sequence gets depends,
    /// to the bit, on its own tokens alone: not on who else is there, nor on how they are cut into steps.
    pub fn decode_batch(&self, cx: &mut Cx<D>, cache: &mut PagedCache<D>, steps: &[Step]) -> Result<Tensor<D>, Fault> {
        let ids: Vec<u32> = steps.iter().flat_map(|s| s.ids).copied().collect();
        assert_eq!(ids.len(), cx.packing.tokens(), "positions of other steps");
        let sequences = Step::paged(steps);
        let mut x_td = self.embed(cx, &ids);
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x_td = block.layer.forward_paged(cx, layer, &sequences, x_td)?;
        }
        let wanted = |(s, at): (&Step, &Paged)| at.rows.start + s.wanted.start..at.rows.start + s.wanted.end;
        let wanted: Vec<u32> = steps.iter().zip(&sequences).flat_map(wanted).map(|row| row as u32).collect();
        let mut some = Tensor::new(cx.device, [wanted.len(), self.config.hidden_size], x_td.dtype());
        cx.device.gather(&wanted, x_td.view(), some.view_mut());
        let (h_td, _) = self.norm.forward(cx, some.view());
        cx.device.sync()?;
        Ok(h_td)
    }

    /// Logits `[T, V]` of final hidden states.
    pub fn logits_of(&self, cx: &Cx<D>, h_td: View<D>) -> Result<Tensor<D>, Fault> {
        let logits = self.project(cx, h_td, self.statistics());
        cx.device.sync()?;
        Ok(logits)
    }
}
