//! The manifest: what a prepared data set is, in one JSON file that a person can read.
//!
//! It names every shard with its size and SHA-256, the tokenizer the ids belong to, where the text came from, and what
//! the cleaning rules were and removed. It holds no dates and no absolute surroundings, so that the same input gives the
//! same bytes. It is written last: a folder without a manifest is a preparation that has not finished.
//!
//! A manifest is foreign input like any other file: [`Manifest::parse`] takes any bytes and either returns a manifest
//! whose names, sums and numbers are usable, or says what is wrong with it.

use crate::document::Lang;
use crate::file;
use crate::shard::ShardError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// File name of the manifest inside a data set's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// File name of the tokenizer inside a data set's folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The version of the data set's layout that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Which part of a data set a shard belongs to. A document is wholly in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learned from.
    Train,
    /// Held out, only measured on.
    Validation,
}

impl Split {
    /// Both splits.
    pub const ALL: [Split; 2] = [Split::Train, Split::Validation];

    /// The name used in file names and messages: `train` or `validation`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Sums over documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Number of documents.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub bytes: u64,
    /// Tokens, special tokens not counted.
    pub tokens: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.tokens += other.tokens;
    }
}

/// The tokenizer whose ids the shards hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerStamp {
    /// SHA-256 of `tokenizer.json`, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Number of ids; every id in a shard is below it.
    pub vocab_size: u32,
    /// The id that begins and ends every document in a batch (it is not stored in the shards).
    pub end_of_text: u32,
}

/// One source of text, in the order that documents' `source` numbers refer to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name, unique within the manifest.
    pub name: String,
    /// The files or folders it was read from, as they were given.
    pub files: Vec<String>,
    /// How many times each document is seen in one epoch of the set, on average; already applied to the shards.
    pub weight: f64,
    /// What is in the shards from this source, by language.
    pub languages: BTreeMap<Lang, Counts>,
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardInfo {
    /// File name inside the data set's folder.
    pub file: String,
    /// The split it belongs to.
    pub split: Split,
    /// Documents in it.
    pub documents: u64,
    /// Tokens in it.
    pub tokens: u64,
    /// UTF-8 bytes of the text it was made from.
    pub bytes: u64,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Description of a prepared data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout version, [`FORMAT_VERSION`].
    pub format: u32,
    /// Name and version of the program that wrote it.
    pub created_by: String,
    /// The tokenizer of the shards.
    pub tokenizer: TokenizerStamp,
    /// Where the text came from.
    pub sources: Vec<Source>,
    /// The cleaning rules and their settings.
    pub rules: serde_json::Value,
    /// What the preparation counted: removals by rule, and so on.
    pub report: serde_json::Value,
    /// All shards: training first, each split in order.
    pub shards: Vec<ShardInfo>,
}

impl Manifest {
    /// Reads and checks the manifest of the data set in `dir`.
    pub fn read(dir: &Path) -> Result<Manifest, ShardError> {
        let path = dir.join(MANIFEST_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Manifest::parse(&bytes, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ShardError::ManifestMissing { path }),
            Err(source) => Err(ShardError::Io { operation: "read", path, source }),
        }
    }

    /// Parses and checks the bytes of a manifest; `path` is only for the messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, ShardError> {
        // Only the version first, so that a newer layout is told apart from a damaged file.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let garbled = |reason: String| ShardError::ManifestGarbled { path: path.to_owned(), reason };
        let Version { format } = serde_json::from_slice(bytes).map_err(|error| garbled(error.to_string()))?;
        if format != FORMAT_VERSION {
            return Err(ShardError::Version { path: path.to_owned(), found: format, known: FORMAT_VERSION });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| garbled(error.to_string()))?;
        manifest.check().map_err(garbled)?;
        Ok(manifest)
    }

    /// Writes the manifest into `dir` in one atomic step.
    pub fn write(&self, dir: &Path) -> Result<(), ShardError> {
        let path = dir.join(MANIFEST_FILE);
        self.check().map_err(|reason| ShardError::ManifestGarbled { path: path.clone(), reason })?;
        file::write_atomic(&path, &self.to_bytes()).map_err(|source| ShardError::Io {
            operation: "write",
            path,
            source,
        })
    }

    /// The bytes that [`Manifest::write`] writes: indented JSON, the same for equal manifests.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has only string keys");
        bytes.push(b'\n');
        bytes
    }

    /// The shards of one split, in order.
    pub fn shards(&self, split: Split) -> impl Iterator<Item = &ShardInfo> {
        self.shards.iter().filter(move |shard| shard.split == split)
    }

    /// SHA-256 over the shards' own, in order, split by split: what there is to learn from and to be measured on, whatever
    /// the folder is called and whoever prepared it.
    pub fn fingerprint(&self) -> String {
        let lines = self.shards.iter().map(|shard| format!("{} {}\n", shard.split, shard.sha256));
        file::sha256_hex(lines.collect::<String>().as_bytes())
    }

    /// Documents, bytes and tokens of one split.
    pub fn counts(&self, split: Split) -> Counts {
        self.shards(split).fold(Counts::default(), |mut sum, shard| {
            sum += Counts { documents: shard.documents, bytes: shard.bytes, tokens: shard.tokens };
            sum
        })
    }

    fn check(&self) -> Result<(), String> {
        if file::unhex32(&self.tokenizer.sha256).is_none() {
            return Err(format!("the tokenizer's sha256 {:?} is not 64 hexadecimal digits", self.tokenizer.sha256));
        }
        if self.tokenizer.end_of_text >= self.tokenizer.vocab_size {
            return Err(format!(
                "the end-of-text id {} is not below the vocabulary size {}",
                self.tokenizer.end_of_text, self.tokenizer.vocab_size
            ));
        }
        if self.sources.len() > usize::from(u16::MAX) {
            return Err(format!("{} sources; at most {} can be told apart", self.sources.len(), u16::MAX));
        }
        for source in &self.sources {
            if !(source.weight.is_finite() && source.weight >= 0.0) {
                return Err(format!("source {:?} has the weight {}", source.name, source.weight));
            }
        }
        let mut names = BTreeSet::new();
        let mut sum = [0u64; 3];
        for shard in &self.shards {
            // A name with a separator could point anywhere on the reader's machine.
            if shard.file.is_empty()
                || shard.file.starts_with('.')
                || shard.file.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
            {
                return Err(format!("{:?} is not a plain file name", shard.file));
            }
            if !names.insert(&shard.file) {
                return Err(format!("the shard {:?} is listed twice", shard.file));
            }
            if file::unhex32(&shard.sha256).is_none() {
                return Err(format!("the sha256 of {:?} is not 64 hexadecimal digits", shard.file));
            }
            for (total, part) in sum.iter_mut().zip([shard.documents, shard.tokens, shard.bytes]) {
                *total = total.checked_add(part).ok_or("the counts of the shards overflow")?;
            }
        }
        Ok(())
    }
}
