//! What can stop a run.

use crate::checkpoint::CheckpointError;
use crate::evaluate::EvaluateError;
use crate::optimizer::StateError;
use crate::settings::SettingsError;
use std::path::{Path, PathBuf};
use wudao_data::batch::BatchError;
use wudao_data::tokenizer::TokenizerError;
use wudao_device::Fault;
use wudao_model::config::ConfigError;
use wudao_model::weights::WeightsError;

/// Why a run did not start, or stopped. Whatever it is, the last checkpoint is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Settings that cannot work.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A configuration that no model can have.
    #[error("the model's configuration")]
    Config(#[from] ConfigError),
    /// The tokenizer is not the one the data was made with.
    #[error(
        "the tokenizer (sha256 {given}) is not the one the data was prepared with (sha256 {recorded}): \
         use the tokenizer.json in the data's folder, or prepare the data again with this one"
    )]
    Tokenizer {
        /// Hash of the tokenizer that was given.
        given: String,
        /// Hash in the manifest.
        recorded: String,
    },
    /// A checkpoint to begin with has another tokenizer than the data.
    #[error(
        "{}: this model's tokenizer is not the one the data was prepared with{}: its weights would take every id for \
         another token; prepare the data with `--tokenizer {}`", from.display(), in_both(.example), from.display()
    )]
    OtherTokenizer {
        /// The checkpoint's folder.
        from: PathBuf,
        /// An id that means something else in each: the id, the checkpoint's token, the data's.
        example: Option<(u32, String, String)>,
    },
    /// The tokenizer could not be copied into the run's folder.
    #[error(transparent)]
    TokenizerFile(#[from] TokenizerError),
    /// The model knows fewer tokens than the data has.
    #[error(
        "vocab_size = {model} in the model's configuration is less than the {data} ids of the tokenizer: \
         raise it to {data} or more"
    )]
    VocabSize {
        /// The model's.
        model: usize,
        /// The tokenizer's.
        data: u32,
    },
    /// The model and the data end their texts differently.
    #[error(
        "eos_token_id of the model's configuration begins with {model:?}, the data's documents end with id {data}: \
         set eos_token_id to {data}"
    )]
    EndOfText {
        /// The model's.
        model: Option<u32>,
        /// The data's.
        data: u32,
    },
    /// Nothing to learn from.
    #[error("the training split has no documents: give `wudao prepare` more text, or a smaller share for validation")]
    NoText,
    /// The run would not fit into memory.
    #[error("{0}")]
    Memory(crate::estimate::TooLarge),
    /// The run's folder cannot be used.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Another run is in this folder.
    #[error("{}: another run{} is at work in this folder; wait for it, stop it, or choose another folder",
        out.display(), pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Locked {
        /// The folder.
        out: PathBuf,
        /// The other process, if it said.
        pid: Option<u32>,
    },
    /// A new run was to begin in a folder that has one.
    #[error("{}: a run is here already, with {checkpoints} checkpoint(s): resume it, or choose another folder", out.display())]
    Occupied {
        /// The folder.
        out: PathBuf,
        /// Checkpoints in it.
        checkpoints: usize,
    },
    /// A run cannot go on with other settings.
    #[error(
        "{}: this run cannot go on with other settings; it began with\n{}\nGo on with those, or begin a new run from \
         this checkpoint's weights in another folder",
        path.display(), list(differences)
    )]
    Differs {
        /// The checkpoint.
        path: PathBuf,
        /// `key: value then, value now`.
        differences: Vec<Difference>,
    },
    /// A run cannot go on with another schedule.
    #[error(
        "{}: with these settings ({keys}) the {step} steps already taken would have had other learning rates. A run can \
         be made longer under `lr_schedule = \"wsd\"` with `warmup_steps` set, before its decay begins; otherwise begin \
         a new run from this checkpoint's weights in another folder", path.display()
    )]
    Schedule {
        /// The checkpoint.
        path: PathBuf,
        /// Keys that differ.
        keys: String,
        /// Steps taken.
        step: u64,
    },
    /// A run cannot go on with another model.
    #[error("{}: the checkpoint is of another model than the one configured: {difference}", path.display())]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Where the configurations differ.
        difference: String,
    },
    /// A run cannot go on over other data.
    #[error(
        "{}: the data (fingerprint {now}) is not what this run has learned from (fingerprint {then}): give the data set it \
         began with, or begin a new run from this checkpoint's weights in another folder",
        path.display()
    )]
    OtherData {
        /// The checkpoint.
        path: PathBuf,
        /// The fingerprint in the checkpoint.
        then: String,
        /// The fingerprint of the data at hand.
        now: String,
    },
    /// Too many steps in a row were not finite.
    #[error(
        "{in_a_row} steps in a row, the last of them {step}, had a loss or a gradient that is not finite; the weights were \
         not touched by them. {}Lower `lr`, raise the warm-up, or look at the data",
        match last_good { Some(p) => format!("The last good checkpoint is {}. ", p.display()), None => "There is no checkpoint yet. ".into() }
    )]
    NotFinite {
        /// Steps skipped in a row.
        in_a_row: u64,
        /// The last of them.
        step: u64,
        /// The newest checkpoint.
        last_good: Option<PathBuf>,
    },
    /// No batch could be made.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The held-out text could not be measured.
    #[error("cannot evaluate")]
    Evaluate(#[from] EvaluateError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Weights could not be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The optimizer's state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine failed.
    #[error("the machine failed")]
    Device(#[from] Fault),
}

/// A setting that changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// Its value in the checkpoint.
    pub then: String,
    /// Its value now.
    pub now: String,
}

/// An id in two tokenizers.
fn in_both(of: &Option<(u32, String, String)>) -> String {
    of.as_ref()
        .map(|(id, theirs, ours)| format!(" (id {id} is {theirs:?} there and {ours:?} here)"))
        .unwrap_or_default()
}

fn list(differences: &[Difference]) -> String {
    let line = |d: &Difference| format!("  {} = {} (now {})", d.key, d.then, d.now);
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl TrainError {
    pub(crate) fn io(path: &Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> TrainError {
        move |source| TrainError::Io { path: path.into(), operation, source }
    }
}

/// An error with all its reasons in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(reason) = next {
        text.push_str(": ");
        text.push_str(&reason.to_string());
        next = reason.source();
    }
    text
}
