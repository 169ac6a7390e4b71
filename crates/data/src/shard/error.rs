//! What can be wrong with a data set on disk, each with the file and what to do about it.

use std::path::PathBuf;

/// An error of reading or writing a prepared data set.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was being done, a verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There is no manifest.
    #[error(
        "{path} does not exist: this folder is not a prepared data set, or its preparation has not finished; \
         run `wudao prepare` into this folder (again)"
    )]
    ManifestMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The manifest cannot be understood.
    #[error("{path} is not a usable manifest: {reason}; restore it from a copy or prepare the data set again")]
    ManifestGarbled {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of another version.
    #[error("{path} has format version {found}, this program knows version {known}: {}",
        if .found > .known { "use a newer wudao" } else { "prepare the data set again" })]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version that can be read.
        known: u32,
    },
    /// A shard that the manifest lists is not there.
    #[error("{path} is missing although the manifest lists it: restore the file or prepare the data set again")]
    ShardMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file does not begin as a shard does.
    #[error("{path} is not a shard of token ids (wrong magic number): restore it or prepare the data set again")]
    NotAShard {
        /// The file.
        path: PathBuf,
    },
    /// The file has another length than recorded.
    #[error(
        "{path} is {found} bytes long, {recorded} were recorded: it was cut short or changed; \
         copy it again or prepare the data set again"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Length that the manifest or the file's own header asks for.
        recorded: u64,
        /// Length of the file.
        found: u64,
    },
    /// The checksum differs.
    #[error(
        "{path} is damaged: sha256 {recorded} was recorded, {found} was found; \
         copy it again or prepare the data set again"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Sum in the manifest.
        recorded: String,
        /// Sum of the file as it is.
        found: String,
    },
    /// The contents contradict themselves.
    #[error("{path} is damaged: {reason}; copy it again or prepare the data set again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// `tokenizer.json` is not beside the shards.
    #[error("{path} is missing: the shards' ids mean nothing without it; restore it or prepare the data set again")]
    TokenizerMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The tokenizer is another one than the shards were made with.
    #[error(
        "{tokenizer} is not the tokenizer that {path} was made with (sha256 {found}, recorded {recorded}): \
         use the tokenizer.json of the data set, or prepare the text again with this tokenizer"
    )]
    TokenizerMismatch {
        /// The manifest or shard.
        path: PathBuf,
        /// The tokenizer's file, or a name for it.
        tokenizer: String,
        /// Hash recorded with the shards.
        recorded: String,
        /// Hash of the tokenizer at hand.
        found: String,
    },
    /// Nothing to read.
    #[error("{path} has no documents in its {split} split: prepare more text, or another validation share")]
    Empty {
        /// The data set.
        path: PathBuf,
        /// The split asked for.
        split: crate::manifest::Split,
    },
    /// A document that cannot be stored.
    #[error("cannot store a document in {path}: {reason}")]
    Unstorable {
        /// The shard being written.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}
