//! Opens a checkpoint: a folder of `config.json`, safetensors and `tokenizer.json`, or a GGUF file, which holds all three.

use std::path::{Path, PathBuf};
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::Device;
use wudao_model::config::ConfigError;
use wudao_model::gguf::{File, is_gguf};
use wudao_model::model::Options;
use wudao_model::weights::{self, Budget, Source, WeightsError};
use wudao_model::{Config, Model, PackedWeights, WeightOptions};

/// A model with its weights and its tokenizer, ready to read and write.
pub struct Checkpoint<D: Device> {
    /// The machine it is on.
    pub device: D,
    /// What the model is.
    pub config: Config,
    /// The network.
    pub model: Model<D>,
    /// Its weights.
    pub weights: PackedWeights<D>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// Why a folder or a file could not be opened as a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What the model is, or its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Two parts of it contradict each other.
    #[error(
        "{}: the tokenizer has {tokens} tokens but the model only {vocab_size} rows: they are not of the same checkpoint",
        dir.display()
    )]
    Mismatch {
        /// The folder or file.
        dir: PathBuf,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}

impl<D: Device> Checkpoint<D> {
    /// Opens `dir`, a folder or a GGUF file, its weights to be kept as `how` says, all in memory.
    pub fn open(device: &D, dir: &Path, how: &WeightOptions) -> Result<Self, OpenError> {
        Self::open_within(device, dir, how, None)
    }

    /// As [`Checkpoint::open`], in so much memory: experts that find no room stay in their file until a token wants them.
    pub fn open_within(device: &D, dir: &Path, how: &WeightOptions, budget: Option<Budget>) -> Result<Self, OpenError> {
        let source = Source::open(dir)?;
        let config = source.config().clone();
        let tokenizer = tokenizer(dir)?;
        if tokenizer.vocab_size() > config.vocab_size {
            let (tokens, vocab_size) = (tokenizer.vocab_size(), config.vocab_size);
            return Err(OpenError::Mismatch { dir: dir.into(), tokens, vocab_size });
        }
        // Nothing is taken of memory for a model that is not there.
        source.complete()?;
        let options = Options { dtype: how.operands, ..Options::default() };
        let model = Model::new(device, &config, config.max_position_embeddings, options)?;
        let weights = match budget {
            None => weights::load_packed(device, &source, model.layout(), how)?,
            Some(budget) => weights::load_within(device, source, model.layout(), how, budget)?,
        };
        Ok(Checkpoint { device: device.clone(), config, model, weights, tokenizer })
    }
}

/// The tokenizer of a folder or a GGUF file, or a `tokenizer.json`.
pub fn tokenizer(path: &Path) -> Result<Tokenizer, OpenError> {
    if is_gguf(path) {
        return Ok(crate::gguf::tokenizer(&File::open(path)?)?);
    }
    Ok(Tokenizer::load(path)?)
}
