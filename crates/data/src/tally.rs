//! What evaluation adds up: how well tokens were predicted, by source and language.
//!
//! Nats a token say how well a model predicts its own tokens; models with different tokenizers can only be compared in
//! bits per byte of the text: `nll_total / (ln 2 · bytes)`. The token that ends a document counts as a prediction (it is
//! part of what must be said to transmit the document), its text has no bytes.

use crate::batch::Batch;
use crate::document::Lang;
use std::collections::BTreeMap;

/// Sums over predictions, and what follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Predicted tokens, ends of documents included.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Sum of the negative log-likelihoods in nats.
    pub nll_total: f64,
}

impl Figures {
    /// Mean negative log-likelihood, nats a token.
    pub fn nll(&self) -> f64 {
        self.nll_total / self.tokens as f64
    }

    /// `exp(nll)`.
    pub fn perplexity(&self) -> f64 {
        self.nll().exp()
    }

    /// Bits per UTF-8 byte of the text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll_total / std::f64::consts::LN_2 / self.bytes as f64
    }
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.nll_total += other.nll_total;
    }
}

/// Figures by source and language.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    rows: BTreeMap<(u16, Lang), Figures>,
}

impl Tally {
    /// Adds a batch, given each position's loss in nats.
    ///
    /// # Panics
    /// If there is not one loss for each position.
    pub fn add(&mut self, batch: &Batch, losses: &[f64]) {
        assert_eq!(losses.len(), batch.inputs.len(), "one loss a position");
        for segment in &batch.segments {
            let nll_total = losses[segment.range.clone()].iter().sum();
            let figures = Figures { tokens: segment.range.len() as u64, bytes: segment.bytes, nll_total };
            self.add_row(segment.source, segment.lang, figures);
        }
    }

    /// Adds what was measured elsewhere.
    pub fn add_row(&mut self, source: u16, lang: Lang, figures: Figures) {
        *self.rows.entry((source, lang)).or_default() += figures;
    }

    /// By source and language.
    pub fn rows(&self) -> impl Iterator<Item = (u16, Lang, Figures)> {
        self.rows.iter().map(|(&(source, lang), &figures)| (source, lang, figures))
    }

    /// By language.
    pub fn languages(&self) -> BTreeMap<Lang, Figures> {
        self.grouped(|(_, lang)| lang)
    }

    /// By number of the source.
    pub fn sources(&self) -> BTreeMap<u16, Figures> {
        self.grouped(|(source, _)| source)
    }

    /// Everything.
    pub fn total(&self) -> Figures {
        self.grouped(|_| ()).remove(&()).unwrap_or_default()
    }

    fn grouped<K: Ord>(&self, key: impl Fn((u16, Lang)) -> K) -> BTreeMap<K, Figures> {
        let mut groups: BTreeMap<K, Figures> = BTreeMap::new();
        for (&row, &figures) in &self.rows {
            *groups.entry(key(row)).or_default() += figures;
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
        let document =
            |n: u32, lang, source| MemoryDocument { tokens: (1..=n).collect(), bytes: 3 * u64::from(n), lang, source };
        let documents =
            MemoryDocuments(vec![document(5, Lang::Zh, 0), document(2, Lang::En, 0), document(9, Lang::En, 1)]);
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
        assert_eq!((total.tokens, total.bytes, total.nll_total), (16 + 3, 48, 15.0 + 3.0 + 45.0));
        assert_eq!(one.languages()[&Lang::En].nll_total, 48.0);
        assert_eq!(one.sources()[&0].tokens, 6 + 3);
        assert_eq!(one.rows().count(), 3);
        assert_eq!(tally(7, 1), one);
        assert_eq!(total.nll(), 63.0 / 19.0);
        assert_eq!(total.perplexity(), (63.0f64 / 19.0).exp());
        assert_eq!(total.bits_per_byte(), 63.0 / std::f64::consts::LN_2 / 48.0);
    }
}
