//! How well the model predicts text it does not learn from.
//!
//! The same documents each time, each token once, in windows of `seq_len`; a window sees nothing before itself. So the
//! figures depend neither on the batch nor on the ranks, and `wudao eval` on a checkpoint with the same window gives the
//! same ones.

use crate::step::{Learner, packing};
use serde::Serialize;
use std::collections::BTreeMap;
use wudao_data::batch::{BatchError, EvalStream, Layout};
use wudao_data::cursor::Permutation;
use wudao_data::document::Lang;
use wudao_data::shard::{DocRef, Documents};
use wudao_data::tally::{Figures, Tally};
use wudao_device::{Device, Fault};
use wudao_model::Cx;

/// Which documents are measured is no matter of the run's seed: runs should be comparable.
const CHOICE: u64 = 0x7761_6c69_6461_7465;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The held-out documents make no batches.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The machine failed.
    #[error(transparent)]
    Device(#[from] Fault),
}

/// What was measured, in the numbers people compare.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Scores {
    /// Predicted tokens, ends of documents included.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
    /// Mean negative log-likelihood, nats a token.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Bits per UTF-8 byte, the figure that does not depend on the tokenizer.
    pub bits_per_byte: f64,
}

impl From<Figures> for Scores {
    fn from(f: Figures) -> Scores {
        let (nll, perplexity, bits_per_byte) = (f.nll(), f.perplexity(), f.bits_per_byte());
        Scores { tokens: f.tokens, bytes: f.bytes, nll, perplexity, bits_per_byte }
    }
}

/// The scores of one source in one language.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SourceScores {
    /// Name of the source.
    pub source: String,
    /// Language of its documents.
    pub language: Lang,
    /// Their scores.
    #[serde(flatten)]
    pub scores: Scores,
}

/// One evaluation.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Evaluation {
    /// Steps taken before it.
    pub step: u64,
    /// Everything.
    #[serde(flatten)]
    pub total: Scores,
    /// By language.
    pub languages: BTreeMap<Lang, Scores>,
    /// By source and language.
    pub sources: Vec<SourceScores>,
    /// True if no evaluation of this run was better, in bits per byte.
    pub best: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl Evaluation {
    /// Names the rows of a tally.
    pub fn new(step: u64, tally: &Tally, sources: &[String], best: bool, seconds: f64) -> Evaluation {
        let name = |source: u16| sources.get(usize::from(source)).cloned().unwrap_or_else(|| source.to_string());
        let row = |(source, language, figures): (u16, Lang, Figures)| SourceScores {
            source: name(source),
            language,
            scores: figures.into(),
        };
        Evaluation {
            step,
            total: tally.total().into(),
            languages: tally.languages().into_iter().map(|(lang, figures)| (lang, figures.into())).collect(),
            sources: tally.rows().map(row).collect(),
            best,
            seconds,
        }
    }
}

/// Some of the documents, in their order.
#[derive(Clone, Debug)]
pub struct Subset<D> {
    documents: D,
    chosen: Vec<u64>,
}

impl<D: Documents> Subset<D> {
    /// Documents with about `tokens` predictions in all, chosen evenly; all of them if `tokens` is `None` or there are
    /// not more. A language gets its share of the tokens, so that every language that is there is measured, also where
    /// a few long documents of another would come to the number asked for.
    pub fn new(documents: D, tokens: Option<u64>) -> Subset<D> {
        let count = documents.documents();
        let predictions = |index: u64| {
            let document = documents.doc(index);
            (document.lang, document.tokens.len() as u64 + 1)
        };
        let mut all = BTreeMap::<Lang, u64>::new();
        (0..count).map(predictions).for_each(|(lang, n)| *all.entry(lang).or_default() += n);
        let total: u64 = all.values().sum();
        let share = tokens.unwrap_or(u64::MAX).min(total) as u128;
        let part = |n: u64| (u128::from(n) * share).div_ceil(u128::from(total.max(1))) as u64;
        let mut left: BTreeMap<Lang, u64> = all.into_iter().map(|(lang, n)| (lang, part(n))).collect();
        let order = Permutation::new(count, CHOICE, 0);
        let mut chosen = vec![];
        for index in (0..count).map(|i| order.at(i)) {
            let (lang, n) = predictions(index);
            let left = left.entry(lang).or_default();
            if *left > 0 {
                chosen.push(index);
                *left = left.saturating_sub(n);
            }
        }
        chosen.sort_unstable();
        Subset { documents, chosen }
    }
}

impl<D: Documents> Documents for Subset<D> {
    fn documents(&self) -> u64 {
        self.chosen.len() as u64
    }
    fn doc(&self, index: u64) -> DocRef<'_> {
        self.documents.doc(self.chosen[index as usize])
    }
}

/// Measures `documents` in batches of this rank's `layout`; all ranks get the tally of all. `sources` is the number of
/// sources that documents can name.
pub fn evaluate<D: Device>(
    learner: &Learner<D>,
    documents: impl Documents,
    layout: Layout,
    sources: usize,
) -> Result<Tally, EvaluateError> {
    let mut stream = EvalStream::new(documents, layout)?;
    let mut mine = Tally::default();
    while let Some(batch) = stream.next_batch()? {
        let packing = packing(&batch);
        let mut cx = Cx {
            device: learner.device,
            comm: learner.comm,
            weights: &learner.weights,
            packing: &packing,
            aux: Default::default(),
            log: None,
            again: false,
        };
        mine.add(&batch, &learner.model.losses(&mut cx, &batch.inputs, &batch.targets)?);
    }
    if learner.comm.size() == 1 {
        return Ok(mine);
    }
    // Every rank must send the same rows, also those it has not met.
    let rows: Vec<(u16, Lang)> = (0..sources as u16).flat_map(|source| Lang::ALL.map(|lang| (source, lang))).collect();
    let mut sums = vec![0.0; 3 * rows.len()];
    for (source, lang, f) in mine.rows() {
        let at = rows.iter().position(|&row| row == (source, lang)).unwrap_or_default();
        sums[3 * at..3 * at + 3].copy_from_slice(&[f.tokens as f64, f.bytes as f64, f.nll_total]);
    }
    learner.comm.all_reduce_host(&mut sums)?;
    let mut all = Tally::default();
    for (&(source, lang), sum) in rows.iter().zip(sums.chunks(3)).filter(|(_, sum)| sum[0] > 0.0) {
        all.add_row(source, lang, Figures { tokens: sum[0] as u64, bytes: sum[1] as u64, nll_total: sum[2] });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{VOCAB, documents, tiny_moe, tiny_settings};
    use std::thread;
    use wudao_comm::{Comm, Solo, Threads};
    use wudao_data::shard::{MemoryDocument, MemoryDocuments};
    use wudao_device::{Cpu, DType, tolerance};

    fn measure(comm: &dyn Comm<Cpu>, rows: usize) -> Tally {
        let cpu = Cpu::new(1);
        let mut learner = Learner::new(&cpu, comm, &tiny_moe(), &tiny_settings(), DType::F64).unwrap();
        learner.weights = learner.model.init(&cpu, 3);
        let layout = Layout {
            seq_len: 16,
            rows,
            end_of_text: 0,
            vocab_size: VOCAB as u32,
            rank: comm.rank(),
            size: comm.size(),
        };
        evaluate(&learner, documents(4, 9), layout, 3).unwrap()
    }

    #[test]
    fn figures_depend_neither_on_rows_nor_on_ranks() {
        let alone = measure(&Solo, 3);
        assert_eq!(alone.total().tokens, wudao_data::batch::predictions(&documents(4, 9)));
        assert_eq!(alone.rows().count(), 6);
        let ranks: Vec<Tally> = thread::scope(|s| {
            let handles: Vec<_> =
                Threads::world(2).into_iter().map(|comm| s.spawn(move || measure(&comm, 2))).collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        let bound = tolerance::of("ranks", DType::F64);
        for other in [measure(&Solo, 1), ranks[0].clone(), ranks[1].clone()] {
            for ((source, lang, a), b) in alone.rows().zip(other.rows()) {
                assert_eq!((source, lang, a.tokens, a.bytes), (b.0, b.1, b.2.tokens, b.2.bytes));
                assert!((a.nll_total - b.2.nll_total).abs() <= bound.allowed(a.nll_total));
            }
        }
    }

    #[test]
    fn a_subset_is_about_as_large_as_asked_and_keeps_the_order() {
        let all = documents(4, 50);
        let subset = Subset::new(&all, Some(200));
        let got = wudao_data::batch::predictions(&subset);
        assert!((200..270).contains(&got), "{got}");
        assert!(subset.chosen.is_sorted() && subset.chosen.len() < 10);
        assert_eq!(subset.chosen, Subset::new(&all, Some(200)).chosen);
        assert_eq!(Subset::new(&all, None).documents(), 50);
        assert_eq!(Subset::new(&all, Some(u64::MAX)).documents(), 50);
        assert_eq!(Subset::new(&documents(1, 0), Some(5)).documents(), 0);
    }

    /// Chapters of a Chinese novel and English verses: one chapter is more than all that was asked for.
    #[test]
    fn a_subset_holds_every_language() {
        let document = |lang, tokens: usize| MemoryDocument { tokens: vec![1; tokens], bytes: 3, lang, source: 0 };
        let chapters = (0..40).map(|_| document(Lang::Zh, 5000));
        let all = MemoryDocuments(chapters.chain((0..40).map(|_| document(Lang::En, 50))).collect());
        let subset = Subset::new(&all, Some(4000));
        let count = |lang| (0..subset.documents()).filter(|&i| subset.doc(i).lang == lang).count();
        assert_eq!((count(Lang::Zh), count(Lang::En)), (1, 1));
    }
}
