//! Preparation: from raw text to shards of token ids, the whole road in one call.
//!
//! ```text
//! files ─ read ─ clean ─ language ─ quality ─▶ spool ─ duplicates ─ split ─▶ selection ─ tokenize ─▶ shards, manifest
//!         └──────────── gather ────────────┘          └──── select ────┘               └ tokenize ┘
//! ```
//!
//! Three promises shape it.
//!
//! *The same input gives the same bytes*, however many threads work: documents keep the order of the input from reader to
//! shard, every decision about a document depends on its text and its place in that order, and where files of the result
//! end depends on documents alone.
//!
//! *Memory is bounded* whatever the size: texts pass through in blocks, and what must be known of all documents at once
//! is two bits of each, and hash tables of a given size (see [`crate::dedup::Seen`]).
//!
//! *An interruption costs little*: each stage leaves its finished parts in `OUT/.work`, written so that they are whole
//! or not there, and a later run with the same inputs and options takes them up and ends with the same bytes. The folder
//! shows a data set only when it is complete; its manifest comes last.

mod gather;
mod options;
mod parallel;
mod report;
mod select;
mod spool;
#[cfg(test)]
mod tests;
mod tokenize;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

pub use options::{PrepareOptions, SourceOptions, TokenizerChoice, Tuning, ValidationOptions};
pub use report::{Amount, InputReport, ProblemReport, Report, SourceReport, Timing, Written};
pub use work::REPORT_FILE;

use crate::document::Lang;
use crate::manifest::{Counts, FORMAT_VERSION, Manifest, Split};
use crate::quality::Rule;
use crate::read::{Input, Origin, Problem, ReadError, discover};
use crate::shard::ShardError;
use crate::tokenizer::{Tokenizer, TokenizerError};
use gather::Gathered;
use select::Selection;
use tokenize::Shards;
use work::{Opened, Plan, Work};

/// Why a preparation failed. Whatever was finished is kept for the next run with the same inputs and options.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Options that make no sense.
    #[error("the options cannot be used: {reason}")]
    Options {
        /// What is wrong with them.
        reason: String,
    },
    /// An input cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The operating system refused.
    #[error("cannot {action} {path}{}", hint(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The tokenizer cannot be used or learned.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A shard or the manifest cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Another run works in the folder.
    #[error("another run is preparing into {path}: wait for it to end, or choose another folder")]
    Locked {
        /// The folder.
        path: String,
    },
    /// The folder holds another data set.
    #[error(
        "{path} holds a data set of other inputs or options: choose another folder, or ask for it to be overwritten"
    )]
    Exists {
        /// The folder.
        path: String,
    },
    /// Nothing was read.
    #[error("no document could be read from {files} files{}", first.as_ref().map(|p| format!("; the first problem: {p}")).unwrap_or_default())]
    NothingRead {
        /// Files that were looked at.
        files: u64,
        /// The first problem, if there was one.
        first: Option<Box<Problem>>,
    },
    /// Every document was removed.
    #[error("all {documents} documents were removed, by these rules: {rules}; loosen them")]
    NothingLeft {
        /// Documents that were read.
        documents: u64,
        /// Rules with counts, the commonest first.
        rules: String,
    },
    /// A file of the work folder was changed or damaged.
    #[error("{path} is damaged: remove the folder .work and run again")]
    Damaged {
        /// The file or folder.
        path: String,
    },
    /// [`Progress::stop`] asked for it.
    #[error("the preparation was stopped; run it again to go on")]
    Stopped,
}

/// What to do about a full disk.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (free some space and run again: finished work is kept)"
        }
        _ => "",
    }
}

impl PrepareError {
    fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> PrepareError {
        PrepareError::Io { action, path: path.as_ref().display().to_string(), source }
    }
}

/// The stages of a preparation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Reading, cleaning and judging.
    Read,
    /// Searching for duplicates.
    Duplicates,
    /// Learning a tokenizer.
    Tokenizer,
    /// Tokenizing and writing shards.
    Tokenize,
}

impl Stage {
    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Duplicates => "duplicates",
            Stage::Tokenizer => "tokenizer",
            Stage::Tokenize => "tokenize",
        }
    }
}

/// Where a preparation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The stage.
    pub stage: Stage,
    /// Bytes done in this stage.
    pub done: u64,
    /// Bytes to do in this stage; 0 if unknown (standard input).
    pub total: u64,
    /// Documents done in this stage.
    pub documents: u64,
}

/// Watches a preparation. All calls come from the thread that called [`prepare`], at least every 100 ms or so in the long
/// stages, up to thousands of times a second: a drawer should limit its own rate.
pub trait Progress {
    /// How far it is.
    fn update(&mut self, status: &Status);
    /// Something a person should know, such as that an interrupted run is taken up.
    fn note(&mut self, message: &str) {
        let _ = message;
    }
    /// Whether to stop soon, with [`PrepareError::Stopped`]; finished work is kept.
    fn stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn update(&mut self, _: &Status) {}
}

/// Passes progress on, and measures the stages.
struct Reporter<'p> {
    progress: &'p mut dyn Progress,
    started: Instant,
    stages: BTreeMap<String, f64>,
}

impl Reporter<'_> {
    fn show(&mut self, stage: Stage, done: u64, total: u64, documents: u64) -> Result<(), PrepareError> {
        self.progress.update(&Status { stage, done, total, documents });
        if self.progress.stop() { Err(PrepareError::Stopped) } else { Ok(()) }
    }

    /// Shows one call in 4096.
    fn show_sometimes(
        &mut self,
        call: u64,
        stage: Stage,
        done: u64,
        total: u64,
        documents: u64,
    ) -> Result<(), PrepareError> {
        if call.is_multiple_of(4096) { self.show(stage, done, total, documents) } else { Ok(()) }
    }

    fn timed<T>(
        &mut self,
        stage: Stage,
        call: impl FnOnce(&mut Self) -> Result<T, PrepareError>,
    ) -> Result<T, PrepareError> {
        let started = Instant::now();
        let result = call(self)?;
        self.stages.insert(stage.name().to_string(), started.elapsed().as_secs_f64());
        Ok(result)
    }
}

/// An input and the number of its source.
struct Source {
    number: u16,
    input: Input,
}

/// What all stages need.
struct Run<'r> {
    options: &'r PrepareOptions,
    inputs: &'r [Source],
    work: &'r Work,
}

/// Prepares a data set in `options.out`: shards, `tokenizer.json`, `report.json` and `manifest.json`. Gives the report,
/// also when an earlier run has done all the work already.
pub fn prepare(options: &PrepareOptions, progress: &mut dyn Progress) -> Result<Report, PrepareError> {
    let mut reporter = Reporter { progress, started: Instant::now(), stages: BTreeMap::new() };
    options.check()?;
    let inputs = find_inputs(options)?;
    let given = match &options.tokenizer {
        TokenizerChoice::File(path) => {
            let tokenizer = Tokenizer::load(path)?;
            tokenizer.stamp()?;
            Some(tokenizer)
        }
        TokenizerChoice::Train { .. } => None,
    };
    let plan = Plan::new(options, &inputs, given.as_ref());
    let (work, note) = match Work::open(options, &plan)? {
        Opened::Done(report) => {
            reporter.progress.note("this data set is complete already");
            return Ok(*report);
        }
        Opened::Ready { work, note } => (work, note),
    };
    if let Some(note) = &note {
        reporter.progress.note(note);
    }
    let run = Run { options, inputs: &inputs, work: &work };
    let gathered = reporter.timed(Stage::Read, |reporter| gather::gather(&run, reporter))?;
    if gathered.input.documents == 0 {
        let first = gathered.problems.first.into_iter().next().map(Box::new);
        return Err(PrepareError::NothingRead { files: gathered.input.files, first });
    }
    let selection = reporter.timed(Stage::Duplicates, |reporter| select::select(&run, &gathered, reporter))?;
    if selection.sums.train.documents == 0 {
        return Err(nothing_left(&gathered, &selection));
    }
    let tokenizer = reporter
        .timed(Stage::Tokenizer, |reporter| tokenize::tokenizer(&run, given, &gathered, &selection, reporter))?;
    let shards = reporter
        .timed(Stage::Tokenize, |reporter| tokenize::write(&run, &tokenizer, &gathered, &selection, reporter))?;
    let mut report = report_of(&run, &gathered, &selection, &shards, &tokenizer, &plan)?;
    let seconds = reporter.started.elapsed().as_secs_f64();
    report.timing = Timing {
        seconds,
        megabytes_per_second: note.is_none().then(|| gathered.input.text_bytes as f64 / 1e6 / seconds.max(1e-9)),
        stages: reporter.stages,
    };
    finish(&run, &report, shards, &plan)?;
    Ok(report)
}

/// All inputs, in the order of the sources; nothing inside the output folder is one.
fn find_inputs(options: &PrepareOptions) -> Result<Vec<Source>, PrepareError> {
    let out = fs::canonicalize(&options.out).ok();
    let own = |input: &Input| match (&input.origin, &out) {
        (Origin::File(path), Some(out)) => fs::canonicalize(path).is_ok_and(|path| path.starts_with(out)),
        _ => false,
    };
    let mut inputs = Vec::new();
    let mut standard_input = 0;
    for (number, source) in options.sources.iter().enumerate() {
        for path in &source.paths {
            let found = discover(path, source.format)?;
            standard_input += found.iter().filter(|input| input.origin == Origin::Stdin).count();
            let number = number as u16;
            inputs.extend(found.into_iter().filter(|input| !own(input)).map(|input| Source { number, input }));
        }
    }
    if standard_input > 1 {
        return Err(PrepareError::Options { reason: "standard input (-) is named more than once".to_string() });
    }
    if inputs.is_empty() {
        let reason = format!("all inputs lie inside the output folder {}", options.out.display());
        return Err(PrepareError::Options { reason });
    }
    Ok(inputs)
}

/// What each rule of both stages removed.
fn removed(gathered: &Gathered, selection: &Selection) -> BTreeMap<Rule, Amount> {
    let mut removed = gathered.removed.clone();
    for (rule, amount) in &selection.sums.removed {
        *removed.entry(*rule).or_default() += *amount;
    }
    removed
}

fn nothing_left(gathered: &Gathered, selection: &Selection) -> PrepareError {
    let mut rules: Vec<_> = removed(gathered, selection).into_iter().collect();
    rules.sort_by_key(|(rule, amount)| (std::cmp::Reverse(amount.documents), *rule));
    let rules: Vec<_> = rules.iter().map(|(rule, amount)| format!("{} {}", rule.name(), amount.documents)).collect();
    if selection.sums.kept.documents > 0 {
        let reason = "every document that is left is held out or has weight 0: nothing is left to train on".to_string();
        return PrepareError::Options { reason };
    }
    PrepareError::NothingLeft { documents: gathered.input.documents, rules: rules.join(", ") }
}

fn report_of(
    run: &Run<'_>,
    gathered: &Gathered,
    selection: &Selection,
    shards: &Shards,
    tokenizer: &Tokenizer,
    plan: &Plan,
) -> Result<Report, PrepareError> {
    let splits = [(Split::Train, &shards.train.written), (Split::Validation, &shards.validation.written)];
    let (mut output, mut languages) = (BTreeMap::new(), BTreeMap::<Lang, Written>::new());
    for (split, written) in splits {
        let sum: &mut Counts = output.entry(split).or_default();
        for (lang, amount) in written.values().flatten() {
            *sum += amount.counts();
            *languages.entry(*lang).or_default() += *amount;
        }
    }
    let sources = run.options.sources.iter().enumerate().map(|(number, source)| {
        let number = number as u16;
        let mut removed = gathered.removed_by_source.get(&number).copied().unwrap_or_default();
        removed += selection.sums.removed_by_source.get(&number).copied().unwrap_or_default();
        SourceReport {
            name: source.name.clone(),
            weight: source.weight,
            read: gathered.read_by_source.get(&number).copied().unwrap_or_default(),
            removed,
            train: shards.train.written.get(&number).cloned().unwrap_or_default(),
            validation: shards.validation.written.get(&number).cloned().unwrap_or_default(),
        }
    });
    let ratio = |lang: Lang, of: fn(&Written) -> u64| {
        let written = languages.get(&lang)?;
        (of(written) > 0).then(|| written.tokens as f64 / of(written) as f64)
    };
    Ok(Report {
        input: gathered.input.clone(),
        sources: sources.collect(),
        removed: removed(gathered, selection),
        cleaned: gathered.cleaned,
        problems: gathered.problems.clone(),
        tokens_per_han: ratio(Lang::Zh, |written| written.han),
        tokens_per_english_byte: ratio(Lang::En, |written| written.bytes),
        output,
        languages,
        tokenizer: tokenizer.stamp()?,
        plan: plan.hash(),
        timing: Timing::default(),
    })
}

/// Writes report and manifest, and shows the data set.
fn finish(run: &Run<'_>, report: &Report, shards: Shards, plan: &Plan) -> Result<(), PrepareError> {
    let set = run.work.set();
    let sources = run.options.sources.iter().zip(&report.sources).map(|(options, report)| {
        let mut languages = BTreeMap::<Lang, Counts>::new();
        for (lang, written) in report.train.iter().chain(&report.validation) {
            *languages.entry(*lang).or_default() += written.counts();
        }
        crate::manifest::Source {
            name: options.name.clone(),
            files: options.paths.iter().map(|path| path.display().to_string()).collect(),
            weight: options.weight,
            languages,
        }
    });
    let manifest = Manifest {
        format: FORMAT_VERSION,
        created_by: concat!("wudao ", env!("CARGO_PKG_VERSION")).to_string(),
        tokenizer: report.tokenizer.clone(),
        sources: sources.collect(),
        rules: plan.rules(),
        report: report.lasting(),
        shards: shards.train.done.into_iter().chain(shards.validation.done).collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(report).map_err(|e| PrepareError::io("write", REPORT_FILE, e.into()))?;
    bytes.push(b'\n');
    let path = set.join(REPORT_FILE);
    crate::file::write_atomic(&path, &bytes).map_err(|e| PrepareError::io("write", &path, e))?;
    manifest.write(&set)?;
    run.work.publish()
}
