//! Writing shards: documents in, files of a given size out.

use super::ShardError;
use super::format::{self, HEADER_LEN};
use crate::document::Lang;
use crate::file;
use crate::manifest::{ShardInfo, Split, TokenizerStamp};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A shard is closed once it holds this many tokens, unless told otherwise: 128 MiB of 16-bit ids.
pub const DEFAULT_SHARD_TOKENS: u64 = 1 << 26;

/// Writes the documents of one split into shards `SPLIT-00000.bin`, `SPLIT-00001.bin`, ….
///
/// A shard is closed after the document that brings it to the token limit, so where shards end depends on the documents
/// alone. A shard appears under its name only when it is complete. Dropping the writer before
/// [`ShardWriter::finish`] leaves the complete shards and removes the open one.
#[derive(Debug)]
pub struct ShardWriter {
    dir: PathBuf,
    split: Split,
    stamp: TokenizerStamp,
    tokenizer: [u8; 32],
    max_tokens: u64,
    open: Option<OpenShard>,
    done: Vec<ShardInfo>,
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    written: u64,
    tokens: u64,
    bytes: u64,
    index: Vec<u8>,
    ids: Vec<u8>,
}

impl ShardWriter {
    /// A writer into the existing folder `dir`. Shards that are already `done` (of an earlier, interrupted run) keep
    /// their numbers; pass an empty vector to begin. Existing files of the same names are replaced.
    pub fn new(
        dir: &Path,
        split: Split,
        stamp: &TokenizerStamp,
        max_tokens: u64,
        done: Vec<ShardInfo>,
    ) -> Result<ShardWriter, ShardError> {
        let tokenizer = file::unhex32(&stamp.sha256).ok_or_else(|| ShardError::Unstorable {
            path: dir.to_owned(),
            reason: format!("the tokenizer's sha256 {:?} is not 64 hexadecimal digits", stamp.sha256),
        })?;
        Ok(ShardWriter {
            dir: dir.to_owned(),
            split,
            stamp: stamp.clone(),
            tokenizer,
            max_tokens: max_tokens.max(1),
            open: None,
            done,
        })
    }

    /// Appends one document: its ids without special tokens, the UTF-8 bytes of its text, language and source.
    pub fn push(&mut self, tokens: &[u32], bytes: u64, lang: Lang, source: u16) -> Result<(), ShardError> {
        if let Some(id) = tokens.iter().find(|&&id| id >= self.stamp.vocab_size) {
            return Err(ShardError::Unstorable {
                path: self.dir.clone(),
                reason: format!("the id {id} is not below the vocabulary size {}", self.stamp.vocab_size),
            });
        }
        let width = format::token_width(self.stamp.vocab_size);
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => OpenShard::create(&self.dir, self.split, self.done.len(), &self.stamp, &self.tokenizer)?,
        };
        shard.push(tokens, width, bytes, lang, source)?;
        if shard.tokens < self.max_tokens {
            self.open = Some(shard);
        } else {
            self.done.push(shard.finish(self.split)?);
        }
        Ok(())
    }

    /// The shards completed so far. Documents after the last of them are still in the open shard.
    pub fn done(&self) -> &[ShardInfo] {
        &self.done
    }

    /// Closes the last shard and returns all of them, for the manifest.
    pub fn finish(mut self) -> Result<Vec<ShardInfo>, ShardError> {
        if let Some(shard) = self.open.take() {
            self.done.push(shard.finish(self.split)?);
        }
        Ok(std::mem::take(&mut self.done))
    }
}

impl OpenShard {
    fn create(
        dir: &Path,
        split: Split,
        number: usize,
        stamp: &TokenizerStamp,
        tokenizer: &[u8; 32],
    ) -> Result<OpenShard, ShardError> {
        let path = dir.join(format!("{split}-{number:05}.bin"));
        let temporary = file::temporary_path(&path);
        let file = File::create(&temporary).map_err(|source| ShardError::Io {
            operation: "create",
            path: temporary.clone(),
            source,
        })?;
        let mut shard = OpenShard {
            path,
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            written: 0,
            tokens: 0,
            bytes: 0,
            index: Vec::new(),
            ids: Vec::new(),
        };
        shard.write(&format::header(stamp.vocab_size, tokenizer))?;
        Ok(shard)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| self.io("write", source))
    }

    fn io(&self, operation: &'static str, source: std::io::Error) -> ShardError {
        ShardError::Io { operation, path: self.temporary.clone(), source }
    }

    fn push(&mut self, tokens: &[u32], width: usize, bytes: u64, lang: Lang, source: u16) -> Result<(), ShardError> {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        if width == 2 {
            ids.extend(tokens.iter().flat_map(|&id| (id as u16).to_le_bytes()));
        } else {
            ids.extend(tokens.iter().flat_map(|&id| id.to_le_bytes()));
        }
        self.write(&ids)?;
        self.ids = ids;
        self.tokens += tokens.len() as u64;
        self.bytes = self.bytes.checked_add(bytes).ok_or_else(|| ShardError::Unstorable {
            path: self.path.clone(),
            reason: format!("{bytes} bytes of text are too many"),
        })?;
        self.index.extend(format::record(self.tokens, bytes, source, lang));
        Ok(())
    }

    fn finish(mut self, split: Split) -> Result<ShardInfo, ShardError> {
        let padding = (self.written.next_multiple_of(8) - self.written) as usize;
        self.write(&[0; 8][..padding])?;
        let index_at = self.written;
        let index = std::mem::take(&mut self.index);
        self.write(&index)?;
        let documents = (index.len() / format::RECORD_LEN) as u64;
        self.write(&format::footer(documents, self.tokens, self.bytes, index_at))?;
        debug_assert!(self.written as usize >= HEADER_LEN + format::FOOTER_LEN);
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|source| self.io("write", source))?;
        file::publish(&self.temporary, &self.path).map_err(|source| self.io("rename", source))?;
        Ok(ShardInfo {
            file: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            split,
            documents,
            tokens: self.tokens,
            bytes: self.bytes,
            size: self.written,
            sha256: file::hex(&std::mem::take(&mut self.hash).finalize()),
        })
    }
}

impl Drop for OpenShard {
    fn drop(&mut self) {
        // After a successful finish the temporary name is gone already and there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}
