//! A tiny random model, for the tests of whatever is built on an engine.

use crate::engine::EngineOptions;
use crate::{Checkpoint, Engine};
use wudao_data::tokenizer::{Tokenizer, TrainOptions};
use wudao_device::{Cpu, DType};
use wudao_model::model::Options;
use wudao_model::{Config, Family, Model, MoeConfig, WeightOptions};

/// Of 320 tokens; 0 ends a text, and `<|im_start|>` and its like are there.
pub fn tokenizer() -> Tokenizer {
    let texts = ["the quick brown fox jumps over the lazy dog", "床前明月光,疑是地上霜。"];
    Tokenizer::train(texts, &TrainOptions::new(320)).expect("what is tiny is sound")
}

/// Three narrow layers, with experts or without.
pub fn config(sparse: bool, vocab_size: usize) -> Config {
    let moe = MoeConfig {
        num_experts: 8,
        num_experts_per_tok: 3,
        moe_intermediate_size: 24,
        n_shared_experts: 0,
        sigmoid: false,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
        n_group: 1,
        topk_group: 1,
        dense_layers: vec![1],
        router_aux_loss_coef: 0.0,
    };
    Config {
        family: if sparse { Family::Qwen3Moe } else { Family::Llama },
        vocab_size,
        hidden_size: 32,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 12,
        max_position_embeddings: 256,
        rope_theta: 10_000.0,
        rope_scaling: None,
        partial_rotary_factor: 1.0,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: false,
        attention_bias: false,
        attention_output_bias: false,
        qk_norm: sparse,
        // Wide, so that the logits are far from alike.
        initializer_range: 0.3,
        bos_token_id: None,
        eos_token_id: vec![0],
        pad_token_id: None,
        moe: sparse.then_some(moe),
        mla: None,
    }
}

/// A model that writes nonsense, always the same.
pub fn checkpoint(sparse: bool, dtype: DType) -> Checkpoint<Cpu> {
    let (device, tokenizer) = (Cpu::new(2), tokenizer());
    let config = config(sparse, tokenizer.vocab_size());
    let model = Model::new(&device, &config, config.max_position_embeddings, Options { dtype, ..Options::default() });
    let model = model.expect("what is tiny is sound");
    let weights = model.init_packed(&device, 3, &WeightOptions::plain(dtype));
    Checkpoint { device, config, model, weights, tokenizer }
}

/// An engine of it in f32.
pub fn engine(options: EngineOptions) -> Engine {
    Engine::start(checkpoint(true, DType::F32), options).expect("the options fit a tiny model")
}
