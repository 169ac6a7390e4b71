//! The bytes of one shard, and a checked view of them.

use super::ShardError;
use crate::document::Lang;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(super) const MAGIC: &[u8; 8] = b"WUDAOSHD";
pub(super) const END_MAGIC: &[u8; 8] = b"WUDAOEND";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_LEN: usize = 64;
pub(super) const RECORD_LEN: usize = 24;
pub(super) const FOOTER_LEN: usize = 40;

/// Bytes per id for a vocabulary of this size.
pub(super) fn token_width(vocab_size: u32) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

pub(super) fn header(vocab_size: u32, tokenizer: &[u8; 32]) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(token_width(vocab_size) as u32).to_le_bytes());
    bytes[16..20].copy_from_slice(&vocab_size.to_le_bytes());
    bytes[32..].copy_from_slice(tokenizer);
    bytes
}

pub(super) fn record(end: u64, bytes: u64, source: u16, lang: Lang) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[..8].copy_from_slice(&end.to_le_bytes());
    record[8..16].copy_from_slice(&bytes.to_le_bytes());
    record[16..18].copy_from_slice(&source.to_le_bytes());
    record[18] = lang as u8;
    record
}

pub(super) fn footer(documents: u64, tokens: u64, bytes: u64, index: u64) -> [u8; FOOTER_LEN] {
    let mut footer = [0; FOOTER_LEN];
    for (slot, number) in footer.chunks_exact_mut(8).zip([documents, tokens, bytes, index]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    footer[32..].copy_from_slice(END_MAGIC);
    footer
}

/// Token ids in whatever width they are kept; decoded as they are read.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// Little-endian 16-bit ids.
    Narrow(&'a [u8]),
    /// Little-endian 32-bit ids.
    Wide(&'a [u8]),
    /// Ids in memory.
    Ids(&'a [u32]),
}

impl<'a> Tokens<'a> {
    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Tokens::Narrow(bytes) => bytes.len() / 2,
            Tokens::Wide(bytes) => bytes.len() / 4,
            Tokens::Ids(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<u32> {
        (index < self.len()).then(|| self.slice(index..index + 1).iter().next()).flatten()
    }

    /// The ids of a range; the range is cut to what there is.
    pub fn slice(&self, range: Range<usize>) -> Tokens<'a> {
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        match self {
            Tokens::Narrow(bytes) => Tokens::Narrow(&bytes[2 * start..2 * end]),
            Tokens::Wide(bytes) => Tokens::Wide(&bytes[4 * start..4 * end]),
            Tokens::Ids(ids) => Tokens::Ids(&ids[start..end]),
        }
    }

    /// Appends all ids to `out`.
    pub fn append_to(&self, out: &mut Vec<u32>) {
        match self {
            Tokens::Narrow(bytes) => {
                out.extend(bytes.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))))
            }
            Tokens::Wide(bytes) => {
                out.extend(bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])))
            }
            Tokens::Ids(ids) => out.extend_from_slice(ids),
        }
    }

    /// All ids, one by one.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (narrow, wide, ids): (&[u8], &[u8], &[u32]) = match *self {
            Tokens::Narrow(bytes) => (bytes, &[], &[]),
            Tokens::Wide(bytes) => (&[], bytes, &[]),
            Tokens::Ids(ids) => (&[], &[], ids),
        };
        narrow
            .chunks_exact(2)
            .map(|id| u32::from(u16::from_le_bytes([id[0], id[1]])))
            .chain(wide.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])))
            .chain(ids.iter().copied())
    }

    /// All ids as a vector.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.len());
        self.append_to(&mut ids);
        ids
    }
}

/// One document of a shard: its ids, without special tokens, and what is known of its text.
#[derive(Clone, Copy, Debug)]
pub struct DocRef<'a> {
    /// The ids t1..tn.
    pub tokens: Tokens<'a>,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Language of the text.
    pub lang: Lang,
    /// Index into the manifest's sources.
    pub source: u16,
}

/// The contents of a shard file, checked; `B` is where the bytes lie (a memory map, a vector, a slice).
#[derive(Debug)]
pub struct Shard<B> {
    data: B,
    path: PathBuf,
    width: usize,
    vocab_size: u32,
    tokenizer: [u8; 32],
    documents: usize,
    tokens: usize,
    bytes: u64,
    max_source: u16,
    index: usize,
}

impl<B: AsRef<[u8]>> Shard<B> {
    /// Checks the bytes of a shard; `path` is only for the messages. The ids themselves are not looked at, see
    /// [`Shard::check_ids`].
    pub fn parse(data: B, path: &Path) -> Result<Shard<B>, ShardError> {
        let file = data.as_ref();
        let len = file.len();
        let corrupt = |reason: String| ShardError::Corrupt { path: path.to_owned(), reason };
        if len < MAGIC.len() || &file[..8] != MAGIC {
            return Err(ShardError::NotAShard { path: path.to_owned() });
        }
        if len < HEADER_LEN + FOOTER_LEN {
            return Err(ShardError::Size {
                path: path.to_owned(),
                recorded: (HEADER_LEN + FOOTER_LEN) as u64,
                found: len as u64,
            });
        }
        let version = u32_at(file, 8);
        if version != VERSION {
            return Err(ShardError::Version { path: path.to_owned(), found: version, known: VERSION });
        }
        let vocab_size = u32_at(file, 16);
        let width = u32_at(file, 12) as usize;
        if width != token_width(vocab_size) {
            return Err(corrupt(format!("ids of {width} bytes for a vocabulary of {vocab_size}")));
        }
        if file[20..32].iter().any(|&byte| byte != 0) {
            return Err(corrupt("reserved bytes of the header are not zero".to_owned()));
        }
        let mut tokenizer = [0; 32];
        tokenizer.copy_from_slice(&file[32..64]);

        let footer = len - FOOTER_LEN;
        if &file[footer + 32..] != END_MAGIC {
            return Err(corrupt("its end is missing (the file was cut short, or the end was overwritten)".to_owned()));
        }
        let [documents, tokens, bytes, index] = [0, 8, 16, 24].map(|at| u64_at(file, footer + at));
        // In u128 nothing can overflow, and the file's true length bounds what follows.
        let padded = (u128::from(tokens) * width as u128).next_multiple_of(8) + HEADER_LEN as u128;
        let end = u128::from(index) + u128::from(documents) * RECORD_LEN as u128;
        if padded != u128::from(index) || end != footer as u128 {
            return Err(corrupt(format!(
                "{documents} documents of {tokens} ids with the index at byte {index} do not fit a file of {len} bytes"
            )));
        }
        let mut shard = Shard {
            width,
            vocab_size,
            tokenizer,
            documents: documents as usize,
            tokens: tokens as usize,
            bytes,
            max_source: 0,
            index: index as usize,
            path: path.to_owned(),
            data,
        };
        shard.check_index()?;
        Ok(shard)
    }

    /// Walks the whole index once: afterwards every document's range is known to lie inside the file.
    fn check_index(&mut self) -> Result<(), ShardError> {
        let file = self.data.as_ref();
        let mut end = 0;
        let mut bytes = 0u64;
        let mut max_source = 0;
        for (document, record) in file[self.index..].chunks_exact(RECORD_LEN).take(self.documents).enumerate() {
            let start = end;
            end = u64_at(record, 0);
            let sum = bytes.checked_add(u64_at(record, 8));
            let known = Lang::from_u8(record[18]).is_some() && record[19..] == [0; 5];
            if end < start || end > self.tokens as u64 || sum.is_none() || !known {
                return Err(self.corrupt(format!("entry {document} of its index is not possible")));
            }
            bytes = sum.unwrap_or_default();
            max_source = max_source.max(u16::from_le_bytes([record[16], record[17]]));
        }
        if end != self.tokens as u64 || bytes != self.bytes {
            return Err(self.corrupt(format!(
                "its index has {end} ids and {bytes} bytes of text, its end says {} and {}",
                self.tokens, self.bytes
            )));
        }
        let padding = HEADER_LEN + self.tokens * self.width..self.index;
        if file[padding].iter().any(|&byte| byte != 0) {
            return Err(self.corrupt("the padding after the ids is not zero".to_owned()));
        }
        self.max_source = max_source;
        Ok(())
    }

    /// Checks that every id is below the vocabulary size.
    pub fn check_ids(&self) -> Result<(), ShardError> {
        let ids = self.tokens_between(0, self.tokens);
        match ids.iter().position(|id| id >= self.vocab_size) {
            None => Ok(()),
            Some(at) => Err(self.corrupt(format!(
                "the id {} at token {at} is not below the vocabulary size {}",
                ids.get(at).unwrap_or_default(),
                self.vocab_size
            ))),
        }
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// UTF-8 bytes of the text that the tokens stand for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The largest number of a source that a document names.
    pub fn max_source(&self) -> u16 {
        self.max_source
    }

    /// Size of the vocabulary the ids belong to.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// SHA-256 of the tokenizer the ids belong to.
    pub fn tokenizer(&self) -> &[u8; 32] {
        &self.tokenizer
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn data(&self) -> &[u8] {
        self.data.as_ref()
    }

    /// The document at `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Shard::documents`].
    pub fn doc(&self, index: usize) -> DocRef<'_> {
        assert!(index < self.documents, "document {index} of {}", self.documents);
        let file = self.data.as_ref();
        let at = self.index + index * RECORD_LEN;
        let start = if index == 0 { 0 } else { u64_at(file, at - RECORD_LEN) };
        let record = &file[at..at + RECORD_LEN];
        DocRef {
            tokens: self.tokens_between(start as usize, u64_at(record, 0) as usize),
            bytes: u64_at(record, 8),
            lang: Lang::from_u8(record[18]).unwrap_or(Lang::Other),
            source: u16::from_le_bytes([record[16], record[17]]),
        }
    }

    fn tokens_between(&self, start: usize, end: usize) -> Tokens<'_> {
        let ids = &self.data.as_ref()[HEADER_LEN..HEADER_LEN + self.tokens * self.width];
        let all = if self.width == 2 { Tokens::Narrow(ids) } else { Tokens::Wide(ids) };
        all.slice(start..end)
    }

    fn corrupt(&self, reason: String) -> ShardError {
        ShardError::Corrupt { path: self.path.clone(), reason }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
