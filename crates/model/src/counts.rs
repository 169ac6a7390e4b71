//! What a model costs, from its configuration alone: parameters by part, operations per token, bytes.
//!
//! Operations are those of the mathematics, multiplications and additions of the matrix products and of attention:
//! what recomputation repeats, and what norms, rotations and the softmax need (about one in a hundred), is not counted.
//! So a share of the machine's peak that is computed from them is a model's share, not a kernel's.

use crate::config::Config;
use wudao_device::DType;

/// Parameters by part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parts {
    /// Token embedding.
    pub embedding: u64,
    /// Projections of attention, and their biases.
    pub attention: u64,
    /// Routers, their correction biases, and the gates of shared experts.
    pub router: u64,
    /// Routed experts.
    pub experts: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Dense feed-forward layers.
    pub dense: u64,
    /// Gains of all norms.
    pub norms: u64,
    /// The output head, 0 where it is the embedding.
    pub head: u64,
}

impl Parts {
    /// The parts by name, in the order of the road through the model.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("router", self.router),
            ("experts", self.experts),
            ("shared experts", self.shared_experts),
            ("dense", self.dense),
            ("norms", self.norms),
            ("head", self.head),
        ]
    }

    /// Their sum.
    pub fn total(&self) -> u64 {
        self.named().iter().map(|(_, n)| n).sum()
    }
}

/// What a model costs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Counts {
    /// All parameters.
    pub params: Parts,
    /// Those that one token meets: as `params`, but of the routed experts only the K that are chosen. The whole embedding
    /// counts, as in the names that models go by ("30B-A3B").
    pub active: Parts,
    /// Elements of the matrices that one token is multiplied with, the head among them (tied or not).
    pub matrices: u64,
    /// L·H·C: what attention costs per pair of tokens, in multiplications, twice.
    attention: u64,
}

impl Counts {
    /// The costs of a configuration that passed [`Config::check`].
    pub fn of(c: &Config) -> Counts {
        let n = |x: usize| x as u64;
        let (d, layers) = (n(c.hidden_size), n(c.num_hidden_layers));
        let (q, kv) = (n(c.num_attention_heads) * n(c.head_dim), n(c.num_key_value_heads) * n(c.head_dim));
        let projections = layers * c.mla.map_or(2 * d * (q + kv), |m| m.parameters(c) as u64);
        // Of latents, the ranks.
        let latents = c.mla.map(|m| n(m.q_lora_rank.unwrap_or(0) + m.kv_lora_rank));
        let qkv_bias = match (c.attention_bias, c.mla) {
            (false, _) => 0,
            (true, None) => q + 2 * kv,
            (true, Some(m)) => latents.unwrap_or(0) + n(m.qk_rope_head_dim),
        };
        let o_bias = if c.attention_output_bias { d } else { 0 };
        let qk_norm = if c.qk_norm { 2 * n(c.normed_heads().dim) } else { latents.unwrap_or(0) };
        let sparse = n(c.moe_layers().len());
        let mlp = |width: u64| 3 * d * width;
        let mut params = Parts {
            embedding: n(c.vocab_size) * d,
            attention: projections + layers * (qkv_bias + o_bias),
            dense: (layers - sparse) * mlp(n(c.intermediate_size)),
            norms: layers * (2 * d + qk_norm) + d,
            head: if c.tie_word_embeddings { 0 } else { n(c.vocab_size) * d },
            ..Parts::default()
        };
        let mut active = params;
        let mut routers = 0;
        if let Some(m) = &c.moe {
            let (e, f) = (n(m.num_experts), n(m.moe_intermediate_size));
            routers = sparse * d * (e + u64::from(c.shared_expert_gate()));
            params.router = routers + if m.sigmoid { sparse * e } else { 0 };
            params.experts = sparse * e * mlp(f);
            params.shared_experts = sparse * mlp(f * n(m.n_shared_experts));
            active = Parts { experts: sparse * n(m.num_experts_per_tok) * mlp(f), ..params };
        }
        let matrices = projections + routers + active.experts + active.shared_experts + active.dense + params.embedding;
        // A value may be narrower than a key: what both cost, halved.
        let pair = c.mla.map_or(q, |m| n(c.num_attention_heads) * n(c.head_dim + m.v_head_dim) / 2);
        Counts { params, active, matrices, attention: layers * pair }
    }

    /// Operations of one token's forward pass, on average over a segment of `segment` tokens: `2·M + 4·L·H·C·(s + 1)/2`.
    ///
    /// M are the elements of the matrices the token meets (two operations each; Kaplan et al. 2020, section 2.1). A query
    /// is multiplied with the keys, and the weights with the values, of `(s + 1)/2` tokens on average, since attention
    /// is causal. (Chowdhery et al. 2022, appendix B, count the whole square, which is twice as much.)
    pub fn flops_forward(&self, segment: usize) -> f64 {
        2.0 * self.matrices as f64 + 4.0 * self.attention as f64 * (segment as f64 + 1.0) / 2.0
    }

    /// Operations per token of a training step, thrice the forward pass (the gradient of a product is two products):
    /// `6·M + 6·L·H·C·(s + 1)`.
    pub fn flops_training(&self, segment: usize) -> f64 {
        3.0 * self.flops_forward(segment)
    }

    /// Bytes of all weights (or of all gradients, or of one moment) as `dtype`.
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.params.total() * dtype.size() as u64
    }

    /// Bytes of training state: weights, gradients, and AdamW's two moments, all as `dtype`. Activations come on top.
    pub fn training_bytes(&self, dtype: DType) -> u64 {
        4 * self.bytes(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::families::all_families;
    use crate::store::{Kind, Layout, Shard};

    #[test]
    fn counts_are_what_the_table_of_parameters_holds() {
        for (name, config) in all_families() {
            let counts = Counts::of(&config);
            let layout = Layout::new(&config, Shard::WHOLE);
            assert_eq!(counts.params.total(), layout.len() as u64, "{name}");
            let of = |kinds: &[Kind]| -> u64 {
                layout.dense().filter(|(_, p)| kinds.contains(&p.kind)).map(|(_, p)| p.at.len() as u64).sum()
            };
            assert_eq!(counts.params.norms, of(&[Kind::Norm]));
            assert_eq!(counts.params.router, of(&[Kind::Router, Kind::Correction]));
            assert_eq!(counts.params.embedding + counts.params.head, of(&[Kind::Embedding, Kind::Head]));
            let experts: u64 = layout.experts().map(|(.., p)| p[1].at.end as u64).sum();
            assert_eq!(counts.params.experts, experts);
        }
    }

    /// Qwen3-30B-A3B, GLM-4.5-Air and DeepSeek-V3 are known by their numbers.
    #[test]
    fn published_sizes() {
        let qwen = Config::from_json(
            br#"{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "max_position_embeddings": 40960, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
            "norm_topk_prob": true, "rope_theta": 1000000.0}"#,
        );
        let counts = Counts::of(&qwen.unwrap());
        assert_eq!(counts.params.total() / 100_000_000, 305);
        assert_eq!(counts.active.total() / 100_000_000, 33);
        let dense: f64 = 2.0 * (counts.active.total() - counts.params.embedding - counts.params.norms) as f64;
        assert_eq!(counts.flops_forward(1), dense + 4.0 * 48.0 * 4096.0);
        assert_eq!(counts.flops_training(1), 3.0 * counts.flops_forward(1));
        assert_eq!(counts.training_bytes(DType::F32), 16 * counts.params.total());

        let glm = Config::from_json(
            br#"{"model_type": "glm4_moe", "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944,
            "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "n_routed_experts": 128,
            "num_experts_per_tok": 8, "attention_bias": true, "first_k_dense_replace": 1}"#,
        );
        let counts = Counts::of(&glm.unwrap());
        assert_eq!(counts.params.total() / 1_000_000_000, 106);
        // GLM's "A12B" leaves the embedding out.
        assert_eq!((counts.active.total() - counts.active.embedding) / 1_000_000_000, 12);

        let v3 = Config::from_json(
            br#"{"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
            "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
            "max_position_embeddings": 163840}"#,
        );
        let v3 = v3.unwrap();
        let counts = Counts::of(&v3);
        assert_eq!((counts.params.total() / 1_000_000_000, counts.active.total() / 1_000_000_000), (671, 37));
        assert_eq!(v3.cache_width(), 576);
    }
}
