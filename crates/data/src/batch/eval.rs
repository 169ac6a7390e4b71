//! One pass over all documents, for measuring.

use super::{Batch, BatchError, Layout};
use crate::shard::Documents;

/// Batches that hold every prediction of every document exactly once, in order.
///
/// A document is cut into windows of `seq_len` of its predictions (the last may be shorter), and each window is a
/// segment that sees nothing before itself. Windows are laid into rows in order; one that does not fit the rest of a
/// row begins the next, and the rest is padding. So what is measured on a window does not depend on `rows`, on the
/// number of ranks, or on the other documents.
#[derive(Clone, Debug)]
pub struct EvalStream<D> {
    documents: D,
    layout: Layout,
    /// The next window: document and first prediction.
    next: (u64, u64),
}

impl<D: Documents> EvalStream<D> {
    /// A stream over all documents; with none it ends at once.
    pub fn new(documents: D, layout: Layout) -> Result<EvalStream<D>, BatchError> {
        layout.check()?;
        Ok(EvalStream { documents, layout, next: (0, 0) })
    }

    /// This rank's rows of the next global batch, or `None` after the last, which may have fewer rows than the others.
    /// All ranks get the same number of batches and rows; the last rows of some may be padding alone.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, BatchError> {
        let Layout { seq_len, rows, rank, size, .. } = self.layout;
        let mut batch = Batch::with_capacity(rows, seq_len);
        let mut used = 0;
        for row in 0..rows * size {
            let mut room = seq_len as u64;
            while self.next.0 < self.documents.documents() {
                let (index, start) = self.next;
                let document = self.documents.doc(index);
                let predictions = document.tokens.len() as u64 + 1;
                let end = predictions.min(start + seq_len as u64);
                if end - start > room {
                    break;
                }
                room -= end - start;
                if row % size == rank {
                    batch.push(index, &document, start..end, &self.layout)?;
                }
                self.next = if end == predictions { (index + 1, 0) } else { (index, end) };
            }
            if room == seq_len as u64 {
                break;
            }
            used = row + 1;
            if row % size == rank {
                batch.pad_to((row / size + 1) * seq_len, &self.layout);
            }
        }
        if used == 0 {
            return Ok(None);
        }
        batch.rows = used.div_ceil(size);
        for row in 0..batch.rows {
            batch.pad_to((row + 1) * seq_len, &self.layout);
        }
        Ok(Some(batch))
    }
}

impl<D: Documents> Iterator for EvalStream<D> {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}
