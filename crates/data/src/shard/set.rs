//! A split of a prepared data set, opened for reading.

use super::ShardError;
use super::format::{DocRef, Shard, Tokens};
use crate::document::Lang;
use crate::file;
use crate::manifest::{Counts, MANIFEST_FILE, Manifest, Source, Split, TOKENIZER_FILE, TokenizerStamp};
use crate::tokenizer::Tokenizer;
use memmap2::Mmap;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Documents that can be read in any order: a split of shards, or texts in memory.
pub trait Documents {
    /// How many there are.
    fn documents(&self) -> u64;

    /// The document with this number, below [`Documents::documents`].
    fn doc(&self, index: u64) -> DocRef<'_>;
}

impl<T: Documents + ?Sized> Documents for &T {
    fn documents(&self) -> u64 {
        (**self).documents()
    }

    fn doc(&self, index: u64) -> DocRef<'_> {
        (**self).doc(index)
    }
}

impl<T: Documents + ?Sized> Documents for Arc<T> {
    fn documents(&self) -> u64 {
        (**self).documents()
    }

    fn doc(&self, index: u64) -> DocRef<'_> {
        (**self).doc(index)
    }
}

/// A tokenized text in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryDocument {
    /// The ids, without special tokens.
    pub tokens: Vec<u32>,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Language of the text.
    pub lang: Lang,
    /// Number of the source; its meaning is the caller's.
    pub source: u16,
}

/// Tokenized texts in memory, for what is not worth preparing into shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDocuments(pub Vec<MemoryDocument>);

impl Documents for MemoryDocuments {
    fn documents(&self) -> u64 {
        self.0.len() as u64
    }

    fn doc(&self, index: u64) -> DocRef<'_> {
        let document = &self.0[index as usize];
        DocRef {
            tokens: Tokens::Ids(&document.tokens),
            bytes: document.bytes,
            lang: document.lang,
            source: document.source,
        }
    }
}

/// All shards of one split of a prepared data set, mapped into memory.
#[derive(Debug)]
pub struct ShardSet {
    dir: PathBuf,
    split: Split,
    manifest: Manifest,
    shards: Vec<Shard<Mmap>>,
    /// Number of documents before each shard, and after the last.
    starts: Vec<u64>,
}

impl ShardSet {
    /// Opens one split of the data set in `dir`: reads the manifest, checks that `tokenizer.json` beside it is the one
    /// recorded, and checks each shard's size, header and index. The ids themselves are not read, see
    /// [`ShardSet::verify`].
    pub fn open(dir: &Path, split: Split) -> Result<ShardSet, ShardError> {
        let manifest = Manifest::read(dir)?;
        let tokenizer_path = dir.join(TOKENIZER_FILE);
        match std::fs::read(&tokenizer_path) {
            Ok(bytes) => {
                let found = file::sha256_hex(&bytes);
                check_stamp(&manifest, dir, &tokenizer_path.display().to_string(), &found)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ShardError::TokenizerMissing { path: tokenizer_path });
            }
            Err(source) => return Err(ShardError::Io { operation: "read", path: tokenizer_path, source }),
        }

        let mut shards = Vec::new();
        let mut starts = vec![0];
        let mut documents = 0u64;
        for info in manifest.shards(split) {
            let path = dir.join(&info.file);
            let data = map(&path)?;
            if data.len() as u64 != info.size {
                return Err(ShardError::Size { path, recorded: info.size, found: data.len() as u64 });
            }
            let shard = Shard::parse(data, &path)?;
            let recorded = &manifest.tokenizer;
            if file::hex(shard.tokenizer()) != recorded.sha256 || shard.vocab_size() != recorded.vocab_size {
                return Err(ShardError::TokenizerMismatch {
                    path,
                    tokenizer: dir.join(TOKENIZER_FILE).display().to_string(),
                    recorded: file::hex(shard.tokenizer()),
                    found: recorded.sha256.clone(),
                });
            }
            let found = (shard.documents() as u64, shard.tokens() as u64, shard.bytes());
            if found != (info.documents, info.tokens, info.bytes) {
                return Err(ShardError::Corrupt {
                    path,
                    reason: format!(
                        "it holds (documents, tokens, bytes) {found:?}, the manifest says {:?}",
                        (info.documents, info.tokens, info.bytes)
                    ),
                });
            }
            if shard.documents() > 0 && usize::from(shard.max_source()) >= manifest.sources.len() {
                let reason = format!(
                    "a document names source {}, the manifest lists {}",
                    shard.max_source(),
                    manifest.sources.len()
                );
                return Err(ShardError::Corrupt { path, reason });
            }
            documents += info.documents;
            starts.push(documents);
            shards.push(shard);
        }
        Ok(ShardSet { dir: dir.to_owned(), split, manifest, shards, starts })
    }

    /// Reads every byte: compares each shard's SHA-256 with the manifest and checks that every id is in the vocabulary.
    /// The first shard that differs is named with the recorded and the found sum. `progress` is told the size of each
    /// shard that was read.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ShardError> {
        for (shard, info) in self.shards.iter().zip(self.manifest.shards(self.split)) {
            let found = file::hex(&Sha256::digest(shard.data()));
            if found != info.sha256 {
                return Err(ShardError::Checksum {
                    path: shard.path().to_owned(),
                    recorded: info.sha256.clone(),
                    found,
                });
            }
            shard.check_ids()?;
            progress(info.size);
        }
        Ok(())
    }

    /// Checks that `tokenizer` is the one the shards were made with; `name` is how to call it in the message.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer, name: &str) -> Result<(), ShardError> {
        check_stamp(&self.manifest, &self.dir, name, tokenizer.hash())
    }

    /// The folder of the data set.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The split that was opened.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The manifest of the data set.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hash, vocabulary size and end-of-text id of the tokenizer.
    pub fn tokenizer(&self) -> &TokenizerStamp {
        &self.manifest.tokenizer
    }

    /// Documents, bytes and tokens of this split.
    pub fn counts(&self) -> Counts {
        self.manifest.counts(self.split)
    }

    /// Bytes of the shard files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.data().len() as u64).sum()
    }

    /// Number of documents in this split.
    pub fn documents(&self) -> u64 {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The document with this number, counted over all shards of the split.
    ///
    /// # Panics
    /// If `index` is not below [`ShardSet::documents`].
    pub fn doc(&self, index: u64) -> DocRef<'_> {
        assert!(index < self.documents(), "document {index} of {}", self.documents());
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        self.shards[shard].doc((index - self.starts[shard]) as usize)
    }
}

impl Documents for ShardSet {
    fn documents(&self) -> u64 {
        self.documents()
    }

    fn doc(&self, index: u64) -> DocRef<'_> {
        self.doc(index)
    }
}

fn check_stamp(manifest: &Manifest, dir: &Path, tokenizer: &str, found: &str) -> Result<(), ShardError> {
    if found == manifest.tokenizer.sha256 {
        return Ok(());
    }
    Err(ShardError::TokenizerMismatch {
        path: dir.join(MANIFEST_FILE),
        tokenizer: tokenizer.to_owned(),
        recorded: manifest.tokenizer.sha256.clone(),
        found: found.to_owned(),
    })
}

fn map(path: &Path) -> Result<Mmap, ShardError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(ShardError::ShardMissing { path: path.to_owned() });
        }
        Err(source) => return Err(ShardError::Io { operation: "open", path: path.to_owned(), source }),
    };
    // SAFETY: the mapping is read-only, and shards are never changed in place once they bear their final name: they are
    // written under another name and renamed. Another program that changes the file nevertheless can change what is
    // read here; every access is a bounds-checked slice of bytes, for which any value is valid.
    unsafe { Mmap::map(&file) }.map_err(|source| ShardError::Io { operation: "map", path: path.to_owned(), source })
}

/// What one split holds, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitSummary {
    /// Shard files.
    pub shards: u64,
    /// Bytes of the shard files together.
    pub file_bytes: u64,
    /// Documents, text bytes and tokens.
    #[serde(flatten)]
    pub counts: Counts,
    /// The same by language.
    pub languages: BTreeMap<Lang, Counts>,
    /// Tokens of the longest document.
    pub longest_document: u64,
    /// Whether every checksum was compared and was right; `None` if that was not asked for.
    pub verified: Option<bool>,
}

/// What a prepared data set holds, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The folder.
    pub path: PathBuf,
    /// Layout version.
    pub format: u32,
    /// The program that wrote it.
    pub created_by: String,
    /// The tokenizer of the ids.
    pub tokenizer: TokenizerStamp,
    /// Where the text came from.
    pub sources: Vec<Source>,
    /// The splits.
    pub splits: BTreeMap<Split, SplitSummary>,
    /// The cleaning rules.
    pub rules: serde_json::Value,
    /// What the preparation counted.
    pub report: serde_json::Value,
}

impl Summary {
    /// Summarises the data set in `dir`, reading all of it if `verify` is set.
    pub fn read(dir: &Path, verify: bool) -> Result<Summary, ShardError> {
        let mut splits = BTreeMap::new();
        for split in Split::ALL {
            let set = ShardSet::open(dir, split)?;
            if verify {
                set.verify(&mut |_| ())?;
            }
            let mut languages = BTreeMap::<Lang, Counts>::new();
            let mut longest_document = 0;
            for index in 0..set.documents() {
                let document = set.doc(index);
                let tokens = document.tokens.len() as u64;
                *languages.entry(document.lang).or_default() += Counts { documents: 1, bytes: document.bytes, tokens };
                longest_document = longest_document.max(tokens);
            }
            splits.insert(
                split,
                SplitSummary {
                    shards: set.shards.len() as u64,
                    file_bytes: set.file_bytes(),
                    counts: set.counts(),
                    languages,
                    longest_document,
                    verified: verify.then_some(true),
                },
            );
        }
        let manifest = Manifest::read(dir)?;
        Ok(Summary {
            path: dir.to_owned(),
            format: manifest.format,
            created_by: manifest.created_by,
            tokenizer: manifest.tokenizer,
            sources: manifest.sources,
            splits,
            rules: manifest.rules,
            report: manifest.report,
        })
    }
}
