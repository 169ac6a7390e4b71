//! Opens a checkpoint folder: `config.json`, safetensors, `tokenizer.json`.

use std::path::{Path, PathBuf};
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::Device;
use wudao_model::config::ConfigError;
use wudao_model::model::Options;
use wudao_model::weights::{self, WeightsError};
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

/// Why a folder could not be opened as a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `config.json` or the weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `tokenizer.json`.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Two parts of the folder contradict each other.
    #[error(
        "{}: the tokenizer has {tokens} tokens but the model only {vocab_size} rows: they are not of the same checkpoint",
        dir.display()
    )]
    Mismatch {
        /// The folder.
        dir: PathBuf,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}

impl<D: Device> Checkpoint<D> {
    /// Opens `dir`, its weights to be kept as `how` says.
    pub fn open(device: &D, dir: &Path, how: &WeightOptions) -> Result<Self, OpenError> {
        let config = weights::read_config(dir)?;
        let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
        if tokenizer.vocab_size() > config.vocab_size {
            let (tokens, vocab_size) = (tokenizer.vocab_size(), config.vocab_size);
            return Err(OpenError::Mismatch { dir: dir.into(), tokens, vocab_size });
        }
        let options = Options { dtype: how.operands, ..Options::default() };
        let model = Model::new(device, &config, config.max_position_embeddings, options)?;
        let weights = weights::load_packed(device, dir, &config, model.layout(), how)?;
        Ok(Checkpoint { device: device.clone(), config, model, weights, tokenizer })
    }
}
