//! Checkpoints: a run that was killed at any moment goes on as if nothing had happened.
//!
//! ```text
//! OUT/checkpoints/step-00000100/
//!   config.json  generation_config.json  model.safetensors   Hugging Face opens these unchanged,
//!   tokenizer.json  tokenizer_config.json                    with these
//!   optimizer.safetensors                                    the moments
//!   state.json                                               everything else that a run needs to go on: [`State`]
//!   checksums.json                                           size and SHA-256 of every other file; written last
//! ```
//!
//! A checkpoint appears whole or not at all. It is written to `.tmp-step-…`, every file and the folder are brought to the
//! disk, then the folder is renamed and the rename brought to the disk too. Only then may an older one go, and it goes by
//! a rename first, so that a folder called `step-…` is never half there. [`find`] still trusts nothing: it takes the newest
//! whose every byte has the recorded checksum, and names the others with what is wrong with them.
//!
//! The file of states holds no clock and no surroundings: two runs with the same settings and data write the same bytes,
//! interrupted or not.

mod find;
mod gather;
mod write;

pub use find::{Broken, Found, find, newest, verify};
pub(crate) use find::{count, open, set_aside, sweep};
pub(crate) use gather::gather;
pub use write::{Contents, Saved, Writer};

use crate::guard::Guard;
use crate::schedule::Plan;
use crate::settings::TrainSettings;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use wudao_data::cursor::Cursor;
use wudao_model::weights::WeightsError;

/// The folder of checkpoints within a run's.
pub const CHECKPOINTS: &str = "checkpoints";
/// The file of moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The file of [`State`].
pub const STATE: &str = "state.json";
/// The file of checksums.
pub const CHECKSUMS: &str = "checksums.json";
/// The version of the layout that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// All that a run needs to go on, beside weights and moments. There is no random state: whatever is random derives from
/// the seed and the step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Layout version, [`FORMAT_VERSION`].
    pub format: u32,
    /// Steps taken, skipped ones included.
    pub step: u64,
    /// Updates made: steps that were not skipped.
    pub updates: u64,
    /// Tokens learned from.
    pub tokens: u64,
    /// Where the data goes on.
    pub cursor: Cursor,
    /// Steps skipped.
    pub guard: Guard,
    /// The best checkpoint so far.
    pub best: Option<Best>,
    /// The course that was fixed at the start.
    pub plan: Plan,
    /// SHA-256 of the tokenizer.
    pub tokenizer: String,
    /// Fingerprint of the data, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The settings the run has had.
    pub settings: TrainSettings,
}

/// A checkpoint that was evaluated.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Its score on the held-out text.
    pub bits_per_byte: f64,
}

/// What went wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused: a full disk, a folder that may not be written to.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of weights could not be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No checkpoint is whole.
    #[error("no usable checkpoint in {}{}", folder.display(), list(broken))]
    NoneUsable {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Those that are there, and what is wrong with them.
        broken: Vec<Broken>,
    },
    /// A checkpoint is not whole.
    #[error("{0}")]
    Broken(Broken),
}

fn list(broken: &[Broken]) -> String {
    if broken.is_empty() {
        return ": there is none".into();
    }
    broken.iter().map(|b| format!("\n  {b}")).collect()
}

impl CheckpointError {
    fn io(path: &Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { path: path.into(), operation, source }
    }
}

/// The folder of a step's checkpoint within the folder of checkpoints.
pub(crate) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a folder's name; `None` if it is not the name of a checkpoint.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// Steps that have a folder, ascending.
fn steps(folder: &Path) -> Result<Vec<u64>, CheckpointError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(CheckpointError::io(folder, "list")(e)),
    };
    let mut steps = vec![];
    for entry in entries {
        let entry = entry.map_err(CheckpointError::io(folder, "list"))?;
        steps.extend(entry.file_name().to_str().and_then(step_of));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Brings a folder's entries (a rename in it) to the disk.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(CheckpointError::io(folder, "sync"))
}

#[cfg(test)]
mod tests;
