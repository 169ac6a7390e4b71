//! A tiny model of every kind that there is, for proofs.

use wudao_model::{Config, Family, MlaConfig, MoeConfig, RopeScaling};

fn dense(family: Family) -> Config {
    Config {
        family,
        vocab_size: 13,
        hidden_size: 8,
        intermediate_size: 10,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 32,
        rope_theta: 100.0,
        rope_scaling: None,
        partial_rotary_factor: 1.0,
        rms_norm_eps: 1e-3,
        tie_word_embeddings: false,
        attention_bias: false,
        attention_output_bias: false,
        qk_norm: false,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_id: vec![0],
        pad_token_id: None,
        moe: None,
        mla: None,
    }
}

fn moe(num_experts: usize, num_experts_per_tok: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        num_experts_per_tok,
        moe_intermediate_size: 6,
        n_shared_experts: 0,
        sigmoid: false,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
        n_group: 1,
        topk_group: 1,
        dense_layers: vec![],
        router_aux_loss_coef: 0.001,
    }
}

/// Every family that can be read, those that cannot be trained last.
pub fn all_families() -> Vec<(&'static str, Config)> {
    every_family().into_iter().chain(latent_families()).collect()
}

/// Latent attention: queries with a latent or without, neighbours turned or halves, values wider and narrower than keys;
/// and the routers that only these families have.
pub fn latent_families() -> Vec<(&'static str, Config)> {
    let sizes = MlaConfig {
        q_lora_rank: None,
        kv_lora_rank: 6,
        qk_nope_head_dim: 4,
        qk_rope_head_dim: 4,
        v_head_dim: 6,
        rope_interleave: true,
    };
    let of = |family, mla: MlaConfig, moe| Config {
        num_key_value_heads: 4,
        head_dim: mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        mla: Some(mla),
        moe: Some(MoeConfig { n_shared_experts: 1, router_aux_loss_coef: 0.0, dense_layers: vec![0], ..moe }),
        ..dense(family)
    };
    let softmax = MoeConfig { norm_topk_prob: false, routed_scaling_factor: 1.5, ..moe(8, 3) };
    let sigmoid = MoeConfig { sigmoid: true, routed_scaling_factor: 2.5, ..moe(8, 3) };
    let yarn = |mscale, mscale_all_dim| {
        Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 8,
            attention_factor: None,
            beta_fast: 4.0,
            beta_slow: 0.5,
            mscale: Some(mscale),
            mscale_all_dim: Some(mscale_all_dim),
            truncate: true,
        })
    };
    let v2 = Config { rope_scaling: yarn(1.5, 0.7), ..of(Family::DeepseekV2, sizes, softmax.clone()) };
    let v2_groups = Config {
        attention_bias: true,
        attention_output_bias: true,
        ..of(
            Family::DeepseekV2,
            MlaConfig { q_lora_rank: Some(5), v_head_dim: 10, ..sizes },
            MoeConfig { n_group: 4, topk_group: 2, n_shared_experts: 2, ..softmax },
        )
    };
    let v3 = Config {
        rope_scaling: yarn(1.0, 1.0),
        ..of(
            Family::DeepseekV3,
            MlaConfig { q_lora_rank: Some(6), kv_lora_rank: 8, ..sizes },
            MoeConfig { n_group: 4, topk_group: 2, ..sigmoid.clone() },
        )
    };
    let v3_plain = Config {
        attention_bias: true,
        attention_output_bias: true,
        tie_word_embeddings: true,
        ..of(
            Family::DeepseekV3,
            MlaConfig { rope_interleave: false, qk_nope_head_dim: 2, v_head_dim: 3, ..sizes },
            MoeConfig { norm_topk_prob: false, ..sigmoid },
        )
    };
    vec![("deepseek_v2", v2), ("deepseek_v2_groups", v2_groups), ("deepseek_v3", v3), ("deepseek_v3_plain", v3_plain)]
}

/// Every family that can be trained, and every habit that a family may have.
pub fn every_family() -> Vec<(&'static str, Config)> {
    let llama = Config {
        attention_bias: true,
        attention_output_bias: true,
        bos_token_id: Some(1),
        eos_token_id: vec![0, 2],
        pad_token_id: Some(3),
        ..dense(Family::Llama)
    };
    let llama_tied = Config { tie_word_embeddings: true, num_key_value_heads: 4, head_dim: 2, ..dense(Family::Llama) };
    let qwen3 = Config { tie_word_embeddings: true, qk_norm: true, eos_token_id: vec![], ..dense(Family::Qwen3) };
    let mixtral = Config { intermediate_size: 6, moe: Some(moe(4, 2)), ..dense(Family::Mixtral) };
    let qwen3_moe = Config {
        qk_norm: true,
        moe: Some(MoeConfig { norm_topk_prob: false, dense_layers: vec![1], ..moe(4, 2) }),
        ..dense(Family::Qwen3Moe)
    };
    let qwen3_moe_norm = Config {
        qk_norm: true,
        attention_bias: true,
        attention_output_bias: true,
        moe: Some(moe(8, 3)),
        ..dense(Family::Qwen3Moe)
    };
    let sigmoid = MoeConfig { sigmoid: true, router_aux_loss_coef: 0.0, dense_layers: vec![0], ..moe(8, 2) };
    let glm4_moe = Config {
        partial_rotary_factor: 0.5,
        attention_bias: true,
        qk_norm: true,
        moe: Some(MoeConfig {
            n_shared_experts: 1,
            routed_scaling_factor: 1.75,
            n_group: 4,
            topk_group: 2,
            ..sigmoid.clone()
        }),
        ..dense(Family::Glm4Moe)
    };
    let glm4_moe_plain = Config {
        partial_rotary_factor: 0.5,
        tie_word_embeddings: true,
        moe: Some(MoeConfig {
            n_shared_experts: 2,
            routed_scaling_factor: 2.5,
            norm_topk_prob: false,
            dense_layers: vec![],
            ..sigmoid
        }),
        ..dense(Family::Glm4Moe)
    };
    let mistral = Config {
        head_dim: 6,
        rope_scaling: Some(RopeScaling::Llama3 {
            factor: 4.0,
            low_freq_factor: 0.5,
            high_freq_factor: 2.0,
            original_max_position_embeddings: 4,
        }),
        ..dense(Family::Mistral)
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 4,
        attention_factor: None,
        beta_fast: 4.0,
        beta_slow: 0.5,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    let qwen2 = Config { attention_bias: true, rope_scaling: Some(yarn), ..dense(Family::Qwen2) };
    let qwen2_moe = Config {
        attention_bias: true,
        moe: Some(MoeConfig { n_shared_experts: 2, norm_topk_prob: false, dense_layers: vec![0], ..moe(4, 2) }),
        ..dense(Family::Qwen2Moe)
    };
    let olmoe = Config {
        intermediate_size: 6,
        num_key_value_heads: 4,
        head_dim: 2,
        qk_norm: true,
        rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        moe: Some(MoeConfig { norm_topk_prob: false, ..moe(4, 2) }),
        ..dense(Family::Olmoe)
    };
    vec![
        ("llama", llama),
        ("llama_tied", llama_tied),
        ("qwen3", qwen3),
        ("mixtral", mixtral),
        ("qwen3_moe", qwen3_moe),
        ("qwen3_moe_norm", qwen3_moe_norm),
        ("glm4_moe", glm4_moe),
        ("glm4_moe_plain", glm4_moe_plain),
        ("mistral", mistral),
        ("qwen2", qwen2),
        ("qwen2_moe", qwen2_moe),
        ("olmoe", olmoe),
    ]
}
