//! What a preparation is asked to do.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PrepareError;
use crate::clean::CleanOptions;
use crate::dedup::DedupOptions;
use crate::document::Lang;
use crate::quality::Rules;
use crate::read::{Format, ReadOptions};
use crate::shard::DEFAULT_SHARD_TOKENS;

/// One source of text: files and folders that are weighted and reported together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    /// Name in the report and the manifest.
    pub name: String,
    /// Files, folders (read recursively), or `-` for standard input.
    pub paths: Vec<PathBuf>,
    /// How often each training document appears, on average: 2 is twice, 0.5 is every other document, 1.3 is once and for
    /// three in ten twice.
    #[serde(default = "one")]
    pub weight: f64,
    /// The fields that make the text, if others than [`ReadOptions::fields`].
    #[serde(default)]
    pub fields: Option<Vec<String>>,
    /// The format, where the names of the files do not tell it.
    #[serde(default)]
    pub format: Option<Format>,
}

fn one() -> f64 {
    1.0
}

impl SourceOptions {
    /// A source of weight 1.
    pub fn new(name: impl Into<String>, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> SourceOptions {
        let paths = paths.into_iter().map(Into::into).collect();
        SourceOptions { name: name.into(), paths, weight: 1.0, fields: None, format: None }
    }
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenizerChoice {
    /// A `tokenizer.json`, or a folder with one.
    File(PathBuf),
    /// Learned from the training documents.
    Train {
        /// Number of ids.
        vocab_size: usize,
    },
}

/// How much is held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationOptions {
    /// The share of documents held out, chosen by their hash: the same document goes the same way in every corpus.
    /// 0 holds out nothing.
    pub share: f64,
    /// Of each language, at least this many documents, but never more than one in ten, are held out: where the share gives
    /// fewer, those with the next hashes are added.
    pub min_documents: usize,
}

impl Default for ValidationOptions {
    fn default() -> ValidationOptions {
        ValidationOptions { share: 0.005, min_documents: 8 }
    }
}

/// Sizes that change how the work is cut up, and nothing about the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// Working threads; 0 for as many as there are cores.
    pub threads: usize,
    /// Memory for the search for duplicates (bytes).
    pub dedup_memory: u64,
    /// Text handed to a thread at a time (bytes).
    pub block_bytes: usize,
    /// After this much input (bytes as stored), or [`Tuning::segment_seconds`], finished files are sealed: an interrupted run
    /// goes on after them.
    pub segment_bytes: u64,
    /// See [`Tuning::segment_bytes`].
    pub segment_seconds: f64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            threads: 0,
            dedup_memory: 256 << 20,
            block_bytes: 512 << 10,
            segment_bytes: 256 << 20,
            segment_seconds: 10.0,
        }
    }
}

impl Tuning {
    /// Working threads, resolved.
    pub(super) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// Everything about a preparation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareOptions {
    /// Where the text comes from.
    pub sources: Vec<SourceOptions>,
    /// The folder of the data set.
    pub out: PathBuf,
    /// The tokenizer.
    pub tokenizer: TokenizerChoice,
    /// How files are read.
    #[serde(default)]
    pub read: ReadOptions,
    /// What is cleaned.
    #[serde(default)]
    pub clean: CleanOptions,
    /// The languages that are kept.
    #[serde(default = "zh_and_en")]
    pub languages: BTreeSet<Lang>,
    /// Which documents are kept.
    #[serde(default)]
    pub rules: Rules,
    /// How duplicates are found.
    #[serde(default)]
    pub dedup: DedupOptions,
    /// How much is held out.
    #[serde(default)]
    pub validation: ValidationOptions,
    /// Most text a tokenizer is learned from (bytes); of more, an even sample is taken.
    #[serde(default = "tokenizer_bytes")]
    pub tokenizer_bytes: u64,
    /// Tokens in a shard.
    #[serde(default = "shard_tokens")]
    pub shard_tokens: u64,
    /// Whether a finished data set of other inputs or options in the folder is replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// How the work is cut up.
    #[serde(default)]
    pub tuning: Tuning,
}

fn zh_and_en() -> BTreeSet<Lang> {
    BTreeSet::from([Lang::Zh, Lang::En])
}

fn tokenizer_bytes() -> u64 {
    256 << 20
}

fn shard_tokens() -> u64 {
    DEFAULT_SHARD_TOKENS
}

impl PrepareOptions {
    /// The defaults, with these sources, folder and tokenizer.
    pub fn new(sources: Vec<SourceOptions>, out: impl Into<PathBuf>, tokenizer: TokenizerChoice) -> PrepareOptions {
        PrepareOptions {
            sources,
            out: out.into(),
            tokenizer,
            read: ReadOptions::default(),
            clean: CleanOptions::default(),
            languages: zh_and_en(),
            rules: Rules::default(),
            dedup: DedupOptions::default(),
            validation: ValidationOptions::default(),
            tokenizer_bytes: tokenizer_bytes(),
            shard_tokens: shard_tokens(),
            overwrite: false,
            tuning: Tuning::default(),
        }
    }

    /// Says what is wrong with the options, if anything is.
    pub(super) fn check(&self) -> Result<(), PrepareError> {
        let wrong = |reason: String| Err(PrepareError::Options { reason });
        if self.sources.is_empty() {
            return wrong("there are no sources: name files or folders to read".to_string());
        }
        if self.sources.len() > usize::from(u16::MAX) {
            return wrong(format!("{} sources are too many; use at most 65535", self.sources.len()));
        }
        let mut names = BTreeSet::new();
        for source in &self.sources {
            let SourceOptions { name, paths, weight, fields, .. } = source;
            if !names.insert(name) {
                return wrong(format!("two sources are called '{name}': give each a name of its own"));
            }
            if paths.is_empty() {
                return wrong(format!("source '{name}' has no paths"));
            }
            if !(0.0..=1000.0).contains(weight) {
                return wrong(format!("the weight of source '{name}' is {weight}; use 0 to 1000"));
            }
            if fields.as_ref().is_some_and(Vec::is_empty) {
                return wrong(format!("source '{name}' has an empty list of fields"));
            }
        }
        if self.read.fields.is_empty() {
            return wrong("the list of fields is empty".to_string());
        }
        if !(16..=1 << 30).contains(&self.read.max_document_bytes) {
            return wrong(format!("read.max_document_bytes is {}; use 16 to 1 GiB", self.read.max_document_bytes));
        }
        if !(16..=1 << 30).contains(&self.read.max_record_bytes) {
            return wrong(format!("read.max_record_bytes is {}; use 16 to 1 GiB", self.read.max_record_bytes));
        }
        if self.languages.is_empty() {
            return wrong("no language is kept: name zh, en or other".to_string());
        }
        if !(0.0..=0.5).contains(&self.validation.share) {
            return wrong(format!("validation.share is {}; use 0 to 0.5", self.validation.share));
        }
        self.dedup.check().or_else(wrong)
    }

    /// The fields and other reading options of one source.
    pub(super) fn read_options(&self, source: u16) -> ReadOptions {
        let mut options = self.read.clone();
        if let Some(fields) = self.sources.get(usize::from(source)).and_then(|s| s.fields.clone()) {
            options.fields = fields;
        }
        options
    }
}
