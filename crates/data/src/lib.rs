//! From text to token batches.
//!
//! This crate is the first half of the road: it reads a corpus, cleans it, cuts it into tokens, writes the tokens into
//! shards, and packs shards into the batches a model learns from. It knows nothing of models or devices; what leaves it
//! is a [`batch::Batch`] of plain `u32`s.
//!
//! ```text
//! text -> Document -> tokens -> shard -> Batch
//! ```

pub mod batch;
pub mod clean;
pub mod cursor;
pub mod dedup;
pub mod document;
mod file;
pub mod lang;
pub mod manifest;
pub mod prepare;
pub mod profile;
pub mod quality;
pub mod read;
pub mod shard;
pub mod tally;
pub mod tokenizer;
