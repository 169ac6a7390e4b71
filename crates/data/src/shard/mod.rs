//! Shards: token ids on disk, with an index of the documents they form.
//!
//! A prepared data set is one folder:
//!
//! ```text
//! manifest.json            what the data set is; written last
//! tokenizer.json           the tokenizer of the ids (and tokenizer_config.json for transformers)
//! train-00000.bin          shards of the training split
//! train-00001.bin
//! validation-00000.bin     shards of the held-out split
//! ```
//!
//! Each shard is one self-contained file, so that ids and index cannot be separated. All numbers are little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `WUDAOSHD` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bytes per id: 2 when the vocabulary has at most 65536 ids, else 4 |
//! | 16 | 4 | vocabulary size |
//! | 20 | 12 | zero |
//! | 32 | 32 | SHA-256 of `tokenizer.json` |
//! | 64 | ids × width | token ids of all documents, one after the other |
//! | | 0 to 7 | zeros up to a multiple of 8 |
//! | I | 24 × documents | index: end of the document in tokens (u64), its UTF-8 bytes (u64), source (u16), language (u8), 5 zeros |
//! | −40 | 32 | documents, tokens, UTF-8 bytes, I (u64 each) |
//! | −8 | 8 | magic `WUDAOEND` |
//!
//! Counts stand at the end because the writer learns them last; that lets it stream, and hash what it writes in one
//! pass. The ids begin at a fixed offset, so `numpy.memmap(file, "<u2", offset=64)` is all that another program needs.
//! Documents hold no special tokens: the end-of-text id is put between them when batches are made.
//!
//! Files are foreign input. [`Shard::parse`] checks every length and offset against the size of the file before it is
//! used and never panics; [`ShardSet::verify`] compares checksums and looks at every id. What is not defended against is
//! someone truncating a file while it is mapped into memory: the operating system ends the process then.

mod error;
mod format;
mod set;
mod writer;

pub use error::ShardError;
pub use format::{DocRef, Shard, Tokens};
pub use set::{Documents, MemoryDocument, MemoryDocuments, ShardSet, SplitSummary, Summary};
pub use writer::{DEFAULT_SHARD_TOKENS, ShardWriter};

#[cfg(test)]
mod tests;
