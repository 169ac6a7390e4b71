//! What evaluation adds up: how well tokens were predicted, by source and language.
//!
//! Nats a token say how well a model predicts its own tokens; models with different tokenizers can only be compared in
//! bits per byte of the text: `nll_total / (ln 2 · bytes)`. The token that ends a document counts as a prediction (it is
//! part of what must be said to transmit the document), its text has no bytes.

use crate::batch::Batch;
use crate::document::Lang;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sums over predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Predicted tokens, ends of documents included.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Sum of the negative log-likelihoods in nats.
    pub nll: f64,
}

impl Sums {
    /// Adds another sum.
    pub fn add(&mut self, other: &Sums) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.nll += other.nll;
    }

    /// The figures that follow from the sums.
    pub fn figures(&self) -> Figures {
        let nll = self.nll / self.tokens as f64;
        let bits_per_byte = self.nll / std::f64::consts::LN_2 / self.bytes as f64;
        Figures { tokens: self.tokens, bytes: self.bytes, nll, perplexity: nll.exp(), bits_per_byte }
    }
}

/// How well a stretch of text was predicted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Predicted tokens, ends of documents included.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Mean negative log-likelihood, nats a token.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Bits per UTF-8 byte of the text.
    pub bits_per_byte: f64,
}

/// Sums by source and language.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    cells: BTreeMap<(u16, Lang), Sums>,
}

impl Tally {
    /// Adds a batch, given each position's loss in nats.
    pub fn add(&mut self, batch: &Batch, losses: &[f64]) {
        assert_eq!(losses.len(), batch.inputs.len(), "one loss a position");
        for segment in &batch.segments {
            let nll = losses[segment.range.clone()].iter().sum();
            let sums = Sums { tokens: segment.range.len() as u64, bytes: segment.bytes, nll };
            self.cells.entry((segment.source, segment.lang)).or_default().add(&sums);
        }
    }

    /// By source and language.
    pub fn cells(&self) -> impl Iterator<Item = (u16, Lang, &Sums)> {
        self.cells.iter().map(|(&(source, lang), sums)| (source, lang, sums))
    }

    /// By language.
    pub fn languages(&self) -> BTreeMap<Lang, Sums> {
        self.grouped(|(_, lang)| lang)
    }

    /// By number of the source.
    pub fn sources(&self) -> BTreeMap<u16, Sums> {
        self.grouped(|(source, _)| source)
    }

    /// Everything.
    pub fn total(&self) -> Sums {
        self.grouped(|_| ()).remove(&()).unwrap_or_default()
    }

    fn grouped<K: Ord>(&self, key: impl Fn((u16, Lang)) -> K) -> BTreeMap<K, Sums> {
        let mut groups: BTreeMap<K, Sums> = BTreeMap::new();
        for (&cell, sums) in &self.cells {
            groups.entry(key(cell)).or_default().add(sums);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{EvalStream, Layout};
    use crate::shard::{MemoryDocument, MemoryDocuments};

    #[test]
    fn figures_do_not_depend_on_the_packing_and_padding_counts_for_nothing() {
        let document = |n: u32, lang, source| MemoryDocument {
            tokens: (1..=n).collect(),
            bytes: 3 * u64::from(n),
            lang,
            source,
        };
        let documents = MemoryDocuments(vec![document(5, Lang::Zh, 0), document(2, Lang::En, 0), document(9, Lang::En, 1)]);
        let tally = |seq_len, rows| {
            let layout = Layout { seq_len, rows, end_of_text: 0, vocab_size: 10, rank: 0, size: 1 };
            let mut tally = Tally::default();
            for batch in EvalStream::new(&documents, layout).unwrap() {
                let batch = batch.unwrap();
                // A token costs as many nats as its id, so a document's cost is known: 1 + … + n.
                let losses: Vec<f64> = batch.targets.iter().map(|&t| f64::from(t)).collect();
                tally.add(&batch, &losses);
            }
            tally
        };
        let one = tally(4, 3);
        let total = one.total();
        assert_eq!((total.tokens, total.bytes, total.nll), (16 + 3, 48, 15.0 + 3.0 + 45.0));
        assert_eq!(one.languages()[&Lang::En].nll, 48.0);
        assert_eq!(one.sources()[&0].tokens, 6 + 3);
        assert_eq!(one.cells().count(), 3);
        assert_eq!(tally(7, 1), one);
        let figures = total.figures();
        assert_eq!(figures.nll, 63.0 / 19.0);
        assert_eq!(figures.perplexity, (63.0f64 / 19.0).exp());
        assert_eq!(figures.bits_per_byte, 63.0 / std::f64::consts::LN_2 / 48.0);
    }
}
