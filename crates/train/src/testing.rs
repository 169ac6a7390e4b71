//! Small models and data for this crate's tests.

use crate::run::{Data, Init, Job};
use crate::settings::{OptimizerKind, TrainSettings};
use std::path::Path;
use wudao_comm::Comm;
use wudao_data::batch::{Batch, Layout, TrainStream};
use wudao_data::document::Lang;
use wudao_data::shard::{MemoryDocument, MemoryDocuments};
use wudao_data::tokenizer::{Tokenizer, TrainOptions};
use wudao_device::Device;
use wudao_device::check::Random;
use wudao_model::{Config, Family, MoeConfig};

/// Ids of the tiny models; 0 ends a text.
pub const VOCAB: usize = 61;

/// A dense model of two layers.
pub fn tiny_dense() -> Config {
    Config {
        family: Family::Qwen3,
        vocab_size: VOCAB,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        rope_scaling: None,
        partial_rotary_factor: 1.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        attention_output_bias: false,
        qk_norm: true,
        initializer_range: 0.05,
        bos_token_id: None,
        eos_token_id: vec![0],
        pad_token_id: None,
        moe: None,
        mla: None,
    }
}

/// One dense layer, one sparse with a sigmoid router, a correction bias and a shared expert; untied, with biases.
pub fn tiny_moe() -> Config {
    Config {
        family: Family::Glm4Moe,
        tie_word_embeddings: false,
        attention_bias: true,
        partial_rotary_factor: 0.5,
        moe: Some(MoeConfig {
            num_experts: 4,
            num_experts_per_tok: 2,
            moe_intermediate_size: 12,
            n_shared_experts: 1,
            sigmoid: true,
            norm_topk_prob: true,
            routed_scaling_factor: 1.5,
            n_group: 1,
            topk_group: 1,
            dense_layers: vec![0],
            router_aux_loss_coef: 0.0,
        }),
        ..tiny_dense()
    }
}

/// Two sparse layers with softmax routers.
pub fn tiny_softmax() -> Config {
    let moe = tiny_moe().moe.map(|m| MoeConfig {
        sigmoid: false,
        n_shared_experts: 0,
        routed_scaling_factor: 1.0,
        dense_layers: vec![],
        ..m
    });
    Config { family: Family::Qwen3Moe, tie_word_embeddings: false, moe, ..tiny_dense() }
}

/// A few steps of four rows of 16 tokens.
pub fn tiny_settings() -> TrainSettings {
    TrainSettings {
        seed: 7,
        seq_len: 16,
        global_batch_size: 4,
        micro_batch_size: 2,
        steps: Some(4),
        lr: 1e-2,
        eval_every: 0,
        checkpoint_every: 0,
        ..Default::default()
    }
}

/// Documents of a made-up language: each id is mostly followed by one of two others, so there is something to learn
/// beyond how frequent an id is.
pub fn documents(seed: u64, count: usize) -> MemoryDocuments {
    let mut r = Random(seed);
    let document = |i| {
        let length = 20 + r.below(40);
        let mut id = 1 + r.below(VOCAB - 1);
        let tokens: Vec<u32> = (0..length)
            .map(|_| {
                id = 1 + (id * 7 + if r.below(8) == 0 { r.below(VOCAB) } else { r.below(2) * 3 }) % (VOCAB - 1);
                id as u32
            })
            .collect();
        let lang = if i % 2 == 0 { Lang::Zh } else { Lang::En };
        MemoryDocument { bytes: 3 * tokens.len() as u64, tokens, lang, source: (i % 3) as u16 }
    };
    MemoryDocuments((0..count).map(document).collect())
}

/// The first `micro_batches` of the documents, for one of several ranks.
pub fn batches(
    documents: &MemoryDocuments,
    seq_len: usize,
    rows: usize,
    n: usize,
    rank: usize,
    size: usize,
) -> Vec<Batch> {
    let layout = Layout { seq_len, rows, end_of_text: 0, vocab_size: VOCAB as u32, rank, size };
    let mut stream = TrainStream::new(documents, layout, 5).unwrap();
    (0..n).map(|_| stream.next_batch().unwrap()).collect()
}

/// All that a run needs, over a small text of our own in both languages.
pub struct Fixture {
    /// A tokenizer trained on the text.
    pub tokenizer: Tokenizer,
    /// Documents to learn from.
    pub train: MemoryDocuments,
    /// Documents to be measured on.
    pub validation: MemoryDocuments,
    /// A small sparse model.
    pub config: Config,
    /// A short run.
    pub settings: TrainSettings,
}

impl Fixture {
    /// The text is made from a few patterns, so that a model which sees more than one token at a time has an advantage.
    pub fn new() -> Fixture {
        let mut r = Random(11);
        let mut pick = |list: &[&'static str]| list[r.below(list.len())];
        let zh = |pick: &mut dyn FnMut(&[&'static str]) -> &'static str| {
            let (who, what) = (pick(&["先生", "学生", "山人", "天子"]), pick(&["读书", "观水", "问道", "行路"]));
            format!(
                "{who}在{}{what}，{}。",
                pick(&["山中", "江上", "城南"]),
                pick(&["不知日暮", "其乐无穷", "忘言而归"])
            )
        };
        let en = |pick: &mut dyn FnMut(&[&'static str]) -> &'static str| {
            let (who, what) = (pick(&["the old man", "a traveller", "my sister"]), pick(&["walked", "rested", "sang"]));
            format!("In the {} {who} {what} by the {}. ", pick(&["morning", "evening"]), pick(&["river", "old mill"]))
        };
        let texts: Vec<(Lang, String)> = (0..60)
            .map(|i| {
                if i % 2 == 0 {
                    (Lang::Zh, (0..5).map(|_| zh(&mut pick)).collect())
                } else {
                    (Lang::En, (0..5).map(|_| en(&mut pick)).collect())
                }
            })
            .collect();
        let tokenizer = Tokenizer::train(texts.iter().map(|(_, t)| t.clone()), &TrainOptions::new(320)).unwrap();
        let document = |(lang, text): &(Lang, String)| MemoryDocument {
            tokens: tokenizer.encode(text).unwrap(),
            bytes: text.len() as u64,
            lang: *lang,
            source: u16::from(*lang == Lang::En),
        };
        let (validation, train) = texts.split_at(8);
        let stamp = tokenizer.stamp().unwrap();
        let config =
            Config { vocab_size: stamp.vocab_size as usize, eos_token_id: vec![stamp.end_of_text], ..tiny_moe() };
        let settings = TrainSettings {
            steps: Some(20),
            optimizer: OptimizerKind::Muon,
            eval_every: 5,
            eval_tokens: Some(200),
            checkpoint_every: 7,
            ..tiny_settings()
        };
        Fixture {
            train: MemoryDocuments(train.iter().map(document).collect()),
            validation: MemoryDocuments(validation.iter().map(document).collect()),
            tokenizer,
            config,
            settings,
        }
    }

    /// A job over it.
    pub fn job<'a, D: Device>(
        &'a self,
        device: &'a D,
        comm: &'a dyn Comm<D>,
        out: &'a Path,
        init: Init<'a>,
    ) -> Job<'a, D> {
        Job {
            device,
            comm,
            config: &self.config,
            settings: &self.settings,
            data: Data {
                train: &self.train,
                validation: &self.validation,
                stamp: self.tokenizer.stamp().unwrap(),
                sources: vec!["古文".into(), "english".into()],
                fingerprint: Some("one".into()),
            },
            tokenizer: &self.tokenizer,
            out,
            init,
            available_memory: Some(1 << 30),
            peak_flops: Some(1e9),
            machine: vec![("processor".into(), "any".into())],
        }
    }
}
