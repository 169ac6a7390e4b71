//! The endless, shuffled, resumable stream of training batches.

use super::{Batch, BatchError, Layout};
use crate::cursor::{Cursor, Permutation};
use crate::shard::Documents;

/// Endless batches over all documents, epoch after epoch, each epoch in an order of its own. See the module's text.
#[derive(Clone, Debug)]
pub struct TrainStream<D> {
    documents: D,
    layout: Layout,
    cursor: Cursor,
    order: Permutation,
}

impl<D: Documents> TrainStream<D> {
    /// A stream from the beginning of the first epoch. `documents` may be a reference or an `Arc`.
    pub fn new(documents: D, layout: Layout, seed: u64) -> Result<TrainStream<D>, BatchError> {
        layout.check()?;
        let count = documents.documents();
        if count == 0 {
            return Err(BatchError::Empty);
        }
        let cursor = Cursor { seed, documents: count, epoch: 0, position: 0, offset: 0 };
        Ok(TrainStream { documents, layout, cursor, order: Permutation::new(count, seed, 0) })
    }

    /// The shape of the batches.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The documents it goes through.
    pub fn documents(&self) -> &D {
        &self.documents
    }

    /// Where the next batch begins; the same on all ranks.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to a place that [`TrainStream::cursor`] told, of this stream or another over the same documents and seed.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), BatchError> {
        let refuse = |reason: String| Err(BatchError::Cursor { reason });
        let Cursor { seed, documents, epoch, position, offset } = cursor;
        if documents != self.cursor.documents {
            return refuse(format!("the run had {documents} documents, these are {}", self.cursor.documents));
        }
        if seed != self.cursor.seed {
            return refuse(format!("the run had the data seed {seed}, this is {}", self.cursor.seed));
        }
        if position >= documents {
            return refuse(format!("the cursor is at document {position} of {documents}"));
        }
        let order = Permutation::new(documents, seed, epoch);
        let predictions = self.documents.doc(order.at(position)).tokens.len() as u64 + 1;
        if offset >= predictions {
            return refuse(format!("the cursor is at prediction {offset} of a document that has {predictions}"));
        }
        self.cursor = cursor;
        self.order = order;
        Ok(())
    }

    /// This rank's rows of the next global batch: `rows × seq_len` positions, all with a target. After an error the
    /// stream is where it was.
    pub fn next_batch(&mut self) -> Result<Batch, BatchError> {
        let before = (self.cursor, self.order);
        let batch = self.fill();
        if batch.is_err() {
            (self.cursor, self.order) = before;
        }
        batch
    }

    fn fill(&mut self) -> Result<Batch, BatchError> {
        let Layout { seq_len, rows, rank, size, .. } = self.layout;
        let mut batch = Batch::with_capacity(rows, seq_len);
        for row in 0..rows * size {
            let mut room = seq_len as u64;
            while room > 0 {
                let index = self.order.at(self.cursor.position);
                let document = self.documents.doc(index);
                let predictions = document.tokens.len() as u64 + 1;
                let start = self.cursor.offset;
                let end = predictions.min(start + room);
                if row % size == rank {
                    batch.push(index, &document, start..end, &self.layout)?;
                }
                room -= end - start;
                self.cursor.offset = end;
                if end == predictions {
                    self.next_document();
                }
            }
        }
        Ok(batch)
    }

    fn next_document(&mut self) {
        self.cursor.offset = 0;
        self.cursor.position += 1;
        if self.cursor.position == self.cursor.documents {
            self.cursor.position = 0;
            self.cursor.epoch += 1;
            self.order = Permutation::new(self.cursor.documents, self.cursor.seed, self.cursor.epoch);
        }
    }
}
