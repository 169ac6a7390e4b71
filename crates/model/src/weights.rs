//! Weights in files: safetensors with Hugging Face's names, so that a checkpoint opens everywhere.
//! A [`Source`] gives the same tensors by the same names out of a [GGUF file](crate::gguf).
//!
//! Writing streams one tensor at a time, from the device or from a [`Snapshot`] (a host copy that another thread writes
//! while training goes on): both are [`Listed`]. Every file is on the disk, fsynced and hashed, when a function returns.
//! No file of weights is ever overwritten: a checkpoint is a new folder, and making it appear at once is its owner's
//! business.
//!
//! Reading maps files into memory and trusts nothing in them. Names, shapes, types and offsets are checked against the
//! model before the first weight changes, and the error names the file and the tensor. What cannot be defended against is
//! a file that another process cuts short while it is being read.

mod convert;
mod experts;
mod format;
mod fp8;
mod listed;
mod mapped;
mod read;
mod snapshot;
mod source;
mod upcycle;
mod write;

pub(crate) use experts::FileExperts;
pub use experts::{Budget, ExpertReads, load_within};
pub use listed::Listed;
pub(crate) use mapped::Mapped;
pub use read::{TensorInfo, load, load_from, load_into, load_packed, load_some, read_config, tensors};
/// The types that a folder's weights can be written in, and more.
pub use safetensors::Dtype;
pub use snapshot::{HostTensor, Snapshot};
pub use source::{Elements, Source};
pub use upcycle::{Upcycled, upcycle};
pub(crate) use write::Hashed;
pub use write::{Written, checksum, copy, save, write_file, write_model, write_tensors};

use crate::config::{Config, ConfigError};
use std::io;
use std::path::{Path, PathBuf};

/// The file of a model that is not cut into shards.
pub const MODEL: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// The file that says what the model is.
pub const CONFIG: &str = "config.json";
/// The file that says how to generate.
pub const GENERATION: &str = "generation_config.json";

/// What went wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// `config.json` does not say what the model is.
    #[error("{}: not a model we can run", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key and its problem.
        source: ConfigError,
    },
    /// A dense model cannot become sparse in the way that was asked for.
    #[error("{}: cannot be made sparse in this way", path.display())]
    Upcycling {
        /// The dense model's folder.
        path: PathBuf,
        /// What is in the way.
        source: ConfigError,
    },
    /// The file is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A tensor is not what it should be.
    #[error("{}: tensor {name:?}: {problem}", path.display())]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// The Hugging Face names of all tensors of a model, in order of the alphabet.
pub fn names(config: &Config) -> Vec<String> {
    write::expected(config).into_keys().collect()
}

impl WeightsError {
    pub(crate) fn io(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> WeightsError {
        move |source| WeightsError::Io { path: path.into(), operation, source }
    }
    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> WeightsError {
        WeightsError::File { path: path.into(), problem: problem.into() }
    }
    pub(crate) fn tensor(path: &Path, name: &str, problem: impl Into<String>) -> WeightsError {
        WeightsError::Tensor { path: path.into(), name: name.into(), problem: problem.into() }
    }
}
