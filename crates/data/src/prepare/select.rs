//! The second stage: which documents stay, and which of those are held out.
//!
//! Duplicates are marked in one pass over the keys of the spool. A second pass counts what is left and finds, for each
//! language, the hash below which a document is held out: that of the share asked for, or higher where that would hold out
//! too few to measure on.

use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};

use super::gather::Gathered;
use super::report::Amount;
use super::spool::{self, Entry};
use super::{PrepareError, Reporter, Run, Stage};
use crate::dedup::{Marks, Seen, SeenError, Signer};
use crate::document::Lang;
use crate::manifest::Split;
use crate::profile::mix;
use crate::quality::Rule;

const SELECTION_FILE: &str = "selection.json";
const MARKS_FILE: &str = "marks.bin";

/// What the search for duplicates came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    pub removed: BTreeMap<Rule, Amount>,
    pub removed_by_source: BTreeMap<u16, Amount>,
    /// What is left.
    pub kept: Amount,
    /// What is left to train on, each document once.
    pub train: Amount,
    /// A document of the language whose hash is below is held out.
    pub thresholds: BTreeMap<Lang, u64>,
}

/// Tells the fate of every document.
pub(super) struct Selection {
    pub sums: Sums,
    marks: Marks,
    exact: bool,
    weights: Vec<f64>,
}

impl Selection {
    /// The rule by which a document of the spool is removed, if it is.
    pub fn removed(&self, document: u64) -> Option<Rule> {
        if self.exact && self.marks.exact(document) {
            Some(Rule::ExactDuplicate)
        } else if self.marks.near(document) {
            Some(Rule::NearDuplicate)
        } else {
            None
        }
    }

    /// The split of a document that stays.
    pub fn split(&self, entry: &Entry) -> Split {
        let threshold = self.sums.thresholds.get(&entry.lang).copied().unwrap_or(0);
        if held_out_hash(entry) < threshold { Split::Validation } else { Split::Train }
    }

    /// How often a training document appears.
    pub fn repeats(&self, entry: &Entry) -> u32 {
        let weight = self.weights.get(usize::from(entry.source)).copied().unwrap_or(1.0);
        // Independent of the split: other bits of the hash.
        let chance = mix(entry.exact as u64) as f64 / 2f64.powi(64);
        weight as u32 + u32::from(chance < weight.fract())
    }

    /// The largest number of repeats.
    pub fn passes(&self) -> u32 {
        self.weights.iter().map(|weight| weight.ceil() as u32).max().unwrap_or(1).max(1)
    }
}

fn held_out_hash(entry: &Entry) -> u64 {
    (entry.exact >> 64) as u64
}

impl From<SeenError> for PrepareError {
    fn from(error: SeenError) -> PrepareError {
        let (action, path, source) = error.into_parts();
        PrepareError::Io { action, path, source }
    }
}

/// Runs the stage, or takes up what an interrupted run found.
pub(super) fn select(
    run: &Run<'_>,
    gathered: &Gathered,
    reporter: &mut Reporter<'_>,
) -> Result<Selection, PrepareError> {
    let options = run.options;
    let weights = options.sources.iter().map(|source| source.weight).collect();
    let mut selection =
        Selection { sums: Sums::default(), marks: Marks::default(), exact: options.dedup.exact, weights };
    let marks = run.work.load_bytes(MARKS_FILE).and_then(|bytes| Marks::from_bytes(&bytes, gathered.documents));
    if let (Some(sums), Some(marks)) = (run.work.load(SELECTION_FILE), marks) {
        return Ok(Selection { sums, marks, ..selection });
    }
    let spool = run.work.spool();
    let keys_each = Signer::new(&options.dedup).keys();
    let memory = options.tuning.dedup_memory;
    let mut seen = Seen::new(gathered.documents, keys_each + 1, memory, &run.work.folder().join("keys"))?;
    let (total, mut bytes) = (gathered.bytes, 0);
    spool::for_each_key(&spool, gathered.segments, keys_each, |number, entry, keys| {
        seen.add(number, options.dedup.exact.then_some(entry.exact), keys)?;
        bytes += u64::from(entry.bytes);
        reporter.show_sometimes(number, Stage::Duplicates, bytes, total, number)
    })?;
    selection.marks = seen.finish()?;
    selection.sums = sums(run, gathered, keys_each, &selection)?;
    run.work.save_bytes(MARKS_FILE, &selection.marks.to_bytes())?;
    run.work.save(SELECTION_FILE, &selection.sums)?;
    Ok(selection)
}

fn sums(run: &Run<'_>, gathered: &Gathered, keys_each: usize, selection: &Selection) -> Result<Sums, PrepareError> {
    let options = &run.options.validation;
    let share = (options.share * 2f64.powi(64)) as u64;
    let mut sums = Sums::default();
    // The smallest hashes of each language, and how many documents it has: in all, and below the share.
    let mut lowest: BTreeMap<Lang, (BinaryHeap<u64>, usize, usize)> = BTreeMap::new();
    let each = |call: &mut dyn FnMut(Entry, Option<Rule>)| {
        spool::for_each_key(&run.work.spool(), gathered.segments, keys_each, |number, entry, _| {
            call(entry, selection.removed(number));
            Ok(())
        })
    };
    each(&mut |entry, removed| {
        let bytes = u64::from(entry.bytes);
        if let Some(rule) = removed {
            sums.removed.entry(rule).or_default().add(bytes);
            sums.removed_by_source.entry(entry.source).or_default().add(bytes);
            return;
        }
        sums.kept.add(bytes);
        let (heap, documents, below) = lowest.entry(entry.lang).or_default();
        *documents += 1;
        *below += usize::from(held_out_hash(&entry) < share);
        heap.push(held_out_hash(&entry));
        if heap.len() > options.min_documents {
            heap.pop();
        }
    })?;
    for (lang, (heap, documents, below)) in lowest {
        let least = options.min_documents.min(documents / 10);
        let mut threshold = share;
        if below < least && options.share > 0.0 {
            let hashes = heap.into_sorted_vec();
            threshold = hashes.get(least - 1).map_or(share, |hash| hash.saturating_add(1));
        }
        sums.thresholds.insert(lang, threshold);
    }
    let mut train = Amount::default();
    let decided =
        Selection { sums: sums.clone(), marks: Marks::default(), exact: false, weights: selection.weights.clone() };
    each(&mut |entry, removed| {
        if removed.is_none() && decided.split(&entry) == Split::Train && decided.repeats(&entry) > 0 {
            train.add(u64::from(entry.bytes));
        }
    })?;
    sums.train = train;
    Ok(sums)
}
