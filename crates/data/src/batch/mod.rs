//! Batches: rows of token ids, packed from documents, ready for a model.
//!
//! A document of ids t1..tn is n + 1 predictions. With E the end-of-text id,
//!
//! ```text
//! inputs    E  t1 t2 … tn
//! targets   t1 t2 t3 … E
//! ```
//!
//! so a model learns how texts begin and end, and every token is predicted exactly once. A batch is `rows` rows of
//! `seq_len` positions; documents lie in them one after the other as segments. A segment never crosses the edge of a
//! row or of a document, attention never crosses the edge of a segment, and positions count from 0 in each segment.
//!
//! Two streams make batches. [`TrainStream`] is endless, seeded and resumable, and fills every position: a document
//! that does not fit a row goes on in the next row as a segment of its own. [`EvalStream`] goes once through all
//! documents in order, each cut into windows at multiples of `seq_len` of its own predictions, so that the figures do
//! not depend on what else is in the batch.
//!
//! Both can be one of several ranks: rank r of s takes the rows r, r + s, r + 2s, … of the global batch of s × `rows`
//! rows. What is in a global batch depends on the number of its rows, not on how many ranks share them.

mod eval;
mod train;

pub use eval::EvalStream;
pub use train::TrainStream;

use crate::document::Lang;
use crate::shard::{DocRef, Documents, ShardSet};
use std::ops::Range;

/// Target of a position where nothing is to be predicted.
pub const IGNORE: u32 = u32::MAX;

/// A piece of one document in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Number of the document in the set.
    pub doc: u64,
    /// Language of the document.
    pub lang: Lang,
    /// Number of the document's source.
    pub source: u16,
    /// The document's predictions that come before this piece.
    pub offset: u64,
    /// This piece's share of the document's UTF-8 bytes: in proportion to its predictions, rounded so that the pieces
    /// of a document add up to its bytes exactly. Sums over whole documents, as evaluation takes them, are exact.
    pub bytes: u64,
    /// The positions it takes, counted over all rows: row r begins at r × `seq_len`.
    pub range: Range<usize>,
}

/// Rows of token ids with what is to be predicted at each position. All vectors but the last two have
/// `rows × seq_len` numbers, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Positions a row.
    pub seq_len: usize,
    /// The ids that are read.
    pub inputs: Vec<u32>,
    /// The ids that are to be predicted, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Position within the segment, from 0.
    pub positions: Vec<u32>,
    /// Where segments start, padding included: the first is 0, the last is `rows × seq_len`, and attention stays
    /// between two neighbours.
    pub cu_seqlens: Vec<u32>,
    /// The pieces of documents in order. Padding (evaluation only) belongs to none.
    pub segments: Vec<Segment>,
}

impl Batch {
    fn with_capacity(rows: usize, seq_len: usize) -> Batch {
        let positions = rows * seq_len;
        Batch {
            rows,
            seq_len,
            inputs: Vec::with_capacity(positions),
            targets: Vec::with_capacity(positions),
            positions: Vec::with_capacity(positions),
            cu_seqlens: vec![0],
            segments: Vec::new(),
        }
    }

    /// Number of positions with a target.
    pub fn predictions(&self) -> usize {
        self.segments.iter().map(|segment| segment.range.len()).sum()
    }

    /// Appends the predictions `range` of a document as one segment.
    fn push(&mut self, doc: u64, document: &DocRef<'_>, range: Range<u64>, layout: &Layout) -> Result<(), BatchError> {
        let last = document.tokens.len() as u64;
        let start = self.inputs.len();
        if range.start == 0 {
            self.inputs.push(layout.end_of_text);
        }
        let read = range.start.saturating_sub(1)..range.end.saturating_sub(1);
        document.tokens.slice(read.start as usize..read.end as usize).append_to(&mut self.inputs);
        document.tokens.slice(range.start as usize..range.end as usize).append_to(&mut self.targets);
        if range.end == last + 1 {
            self.targets.push(layout.end_of_text);
        }
        self.positions.extend(0..(range.end - range.start) as u32);

        // Targets hold every id of the piece; the one input before them was a target of the piece before.
        let outside = |id: &&u32| **id >= layout.vocab_size;
        if let Some(&id) = self.targets[start..].iter().find(outside).or(self.inputs[start..].iter().find(outside)) {
            return Err(BatchError::Token { doc, id, vocab_size: layout.vocab_size });
        }
        let share = |predictions: u64| u128::from(document.bytes) * u128::from(predictions) / u128::from(last + 1);
        self.segments.push(Segment {
            doc,
            lang: document.lang,
            source: document.source,
            offset: range.start,
            bytes: (share(range.end) - share(range.start)) as u64,
            range: start..self.inputs.len(),
        });
        self.cu_seqlens.push(self.inputs.len() as u32);
        Ok(())
    }

    /// Fills up to the given position with padding.
    fn pad_to(&mut self, end: usize, layout: &Layout) {
        let start = self.inputs.len();
        if start < end {
            self.inputs.resize(end, layout.end_of_text);
            self.targets.resize(end, IGNORE);
            self.positions.extend(0..(end - start) as u32);
            self.cu_seqlens.push(end as u32);
        }
    }
}

/// The shape of batches and this rank's part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Positions a row.
    pub seq_len: usize,
    /// Rows of this rank in a batch.
    pub rows: usize,
    /// The id before and after every document.
    pub end_of_text: u32,
    /// Every id must be below it.
    pub vocab_size: u32,
    /// Which of the ranks this is.
    pub rank: usize,
    /// How many ranks share a global batch.
    pub size: usize,
}

impl Layout {
    /// Batches of `rows` rows of `seq_len` positions over this data set, on one rank.
    pub fn new(set: &ShardSet, seq_len: usize, rows: usize) -> Layout {
        let stamp = set.tokenizer();
        Layout { seq_len, rows, end_of_text: stamp.end_of_text, vocab_size: stamp.vocab_size, rank: 0, size: 1 }
    }

    /// The same for one of several ranks; `rows` stays the number of rows of each.
    pub fn ranked(self, rank: usize, size: usize) -> Layout {
        Layout { rank, size, ..self }
    }

    fn check(&self) -> Result<(), BatchError> {
        let settings = |reason: String| Err(BatchError::Settings { reason });
        if self.seq_len == 0 || self.rows == 0 {
            return settings(format!("{} rows of {} positions hold nothing", self.rows, self.seq_len));
        }
        if self.rows.checked_mul(self.seq_len).is_none_or(|positions| u32::try_from(positions).is_err()) {
            return settings(format!("{} rows of {} positions are too many for one batch", self.rows, self.seq_len));
        }
        if self.rank >= self.size || self.rows.checked_mul(self.size).is_none() {
            return settings(format!("rank {} of {} does not exist", self.rank, self.size));
        }
        if self.end_of_text >= self.vocab_size || self.vocab_size == IGNORE {
            return settings(format!(
                "the end-of-text id {} does not fit a vocabulary of {}",
                self.end_of_text, self.vocab_size
            ));
        }
        Ok(())
    }
}

/// Why there is no batch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// The stream has no documents.
    #[error("there are no documents to make batches from: give more text, or prepare the data set again")]
    Empty,
    /// A layout that makes no sense.
    #[error("cannot make batches: {reason}")]
    Settings {
        /// What is wrong with it.
        reason: String,
    },
    /// A cursor of other data.
    #[error("cannot continue in the data: {reason}; use the data set and the seed the run was started with")]
    Cursor {
        /// What does not fit.
        reason: String,
    },
    /// An id outside the vocabulary.
    #[error(
        "document {doc} has the token id {id}, the vocabulary ends before {vocab_size}: \
         the data is damaged or of another tokenizer; `wudao inspect` verifies it"
    )]
    Token {
        /// Number of the document.
        doc: u64,
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab_size: u32,
    },
}

/// Predictions in all documents together: each has one more than it has tokens.
pub fn predictions<D: Documents + ?Sized>(documents: &D) -> u64 {
    (0..documents.documents()).map(|index| documents.doc(index).tokens.len() as u64 + 1).sum()
}

#[cfg(test)]
mod tests;
