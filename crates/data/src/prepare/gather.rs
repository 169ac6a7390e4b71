//! The first stage: read, clean, tell the language, judge, and spool what is left.
//!
//! One thread reads, several clean and judge, the calling one writes. Input files are covered by segments of the spool;
//! a segment is sealed at the end of a file, when enough has been read or enough time has passed. An interrupted run goes
//! on with the first file that no sealed segment covers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::parallel::{Closed, Event, Feed, Size, ordered};
use super::report::{Amount, InputReport, ProblemReport};
use super::spool::{self, Block, Entry, Packer, SegmentWriter};
use super::{PrepareError, Reporter, Run, Stage};
use crate::clean::{CleanCounts, Cleaner};
use crate::dedup::{Signer, exact_hash};
use crate::lang;
use crate::profile::Profile;
use crate::quality::{Judge, Rule};
use crate::read::{Problem, ReadError, Sink, read_input};

/// What reading and cleaning came to: of a segment, or of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Gathered {
    /// The first input that is not covered.
    pub next_input: usize,
    /// Documents in the spool.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    pub input: InputReport,
    pub problems: ProblemReport,
    pub cleaned: CleanCounts,
    pub removed: BTreeMap<Rule, Amount>,
    pub read_by_source: BTreeMap<u16, Amount>,
    pub removed_by_source: BTreeMap<u16, Amount>,
    /// Segments.
    pub segments: usize,
}

impl Gathered {
    fn append(&mut self, other: Gathered) {
        self.next_input = other.next_input.max(self.next_input);
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.input.files += other.input.files;
        self.input.stored_bytes += other.input.stored_bytes;
        self.input.documents += other.input.documents;
        self.input.text_bytes += other.input.text_bytes;
        self.input.pieces += other.input.pieces;
        self.problems.append(other.problems);
        self.cleaned += other.cleaned;
        other.removed.into_iter().for_each(|(rule, amount)| *self.removed.entry(rule).or_default() += amount);
        let by_source = |to: &mut BTreeMap<u16, Amount>, from: BTreeMap<u16, Amount>| {
            from.into_iter().for_each(|(source, amount)| *to.entry(source).or_default() += amount);
        };
        by_source(&mut self.read_by_source, other.read_by_source);
        by_source(&mut self.removed_by_source, other.removed_by_source);
        self.segments += other.segments;
    }

    fn remove(&mut self, rule: Rule, source: u16, bytes: usize) {
        self.removed.entry(rule).or_default().add(bytes as u64);
        self.removed_by_source.entry(source).or_default().add(bytes as u64);
    }
}

enum Job {
    /// Texts and their sources.
    Batch(Vec<(u16, String)>),
    /// The end of a segment, with what reading it came to.
    Seal(Box<Gathered>),
}

enum Outcome {
    Block(Box<Block>, Box<Gathered>),
    Seal(Box<Gathered>),
}

type Line<'l> = Feed<'l, Job, Outcome, PrepareError>;

/// The reading side: a sink that makes batches.
struct Batches<'b, 'l> {
    feed: &'b Line<'l>,
    batch: Vec<(u16, String)>,
    batch_bytes: usize,
    full: usize,
    read: Gathered,
    source: u16,
    done: &'b AtomicU64,
}

impl Batches<'_, '_> {
    fn flush(&mut self) -> Result<(), Closed> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let weight = std::mem::take(&mut self.batch_bytes);
        self.feed.send(Job::Batch(std::mem::take(&mut self.batch)), weight)
    }

    fn seal(&mut self, next_input: usize) -> Result<(), Closed> {
        self.flush()?;
        self.read.next_input = next_input;
        self.read.segments = 1;
        self.feed.send(Job::Seal(Box::new(std::mem::take(&mut self.read))), 0)
    }
}

impl Sink for Batches<'_, '_> {
    fn document(&mut self, text: String) -> Result<(), ReadError> {
        // A batch of very many very short texts is heavier than its letters.
        self.batch_bytes += text.len() + 64;
        self.read.read_by_source.entry(self.source).or_default().add(text.len() as u64);
        self.batch.push((self.source, text));
        if self.batch_bytes >= self.full {
            self.flush().map_err(|Closed| ReadError::Stopped)?;
        }
        Ok(())
    }

    fn problem(&mut self, problem: Problem) -> Result<(), ReadError> {
        self.read.problems.add(problem);
        Ok(())
    }

    fn progress(&mut self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn produce(run: &Run<'_>, from: usize, done: &AtomicU64, feed: &Line<'_>) -> Result<(), PrepareError> {
    let tuning = &run.options.tuning;
    let mut batches = Batches {
        feed,
        batch: Vec::new(),
        batch_bytes: 0,
        full: tuning.block_bytes,
        read: Gathered::default(),
        source: 0,
        done,
    };
    let mut since = Instant::now();
    let scratch = run.work.folder();
    for (number, source) in run.inputs.iter().enumerate().skip(from) {
        batches.source = source.number;
        let options = run.options.read_options(source.number);
        let totals = read_input(&source.input, &options, scratch, &mut batches)?;
        let input = &mut batches.read.input;
        input.files += 1;
        input.stored_bytes += totals.bytes;
        input.documents += totals.documents;
        input.text_bytes += totals.text_bytes;
        input.pieces += totals.pieces;
        let enough = input.stored_bytes >= tuning.segment_bytes
            || input.text_bytes >= 4 * tuning.segment_bytes
            || since.elapsed().as_secs_f64() >= tuning.segment_seconds;
        if enough || number + 1 == run.inputs.len() {
            batches.seal(number + 1).map_err(|Closed| PrepareError::Stopped)?;
            since = Instant::now();
        }
    }
    Ok(())
}

/// What a working thread keeps to itself.
struct Tools {
    judge: Judge,
    signer: Signer,
    packer: Option<Packer>,
    profile: Profile,
    signature: Vec<u64>,
}

fn work(
    run: &Run<'_>,
    cleaner: &Cleaner,
    tools: &mut Tools,
    batch: Vec<(u16, String)>,
) -> Result<Outcome, PrepareError> {
    let Tools { judge, signer, packer, profile, signature } = tools;
    let packer = match packer {
        Some(packer) => packer,
        None => packer.insert(Packer::new()?),
    };
    let mut sums = Gathered::default();
    let mut keys = Vec::with_capacity(batch.len() * (spool::ENTRY + 8 * signer.keys()));
    for (source, text) in batch {
        let (text, counts) = cleaner.clean(text);
        sums.cleaned += counts;
        profile.recount(&text);
        let before = profile.characters as u64 + counts.control_characters;
        let control = counts.control_characters as f64 / before.max(1) as f64;
        let lang = lang::detect(&text, profile);
        let rule = if text.is_empty() {
            Some(if control > 0.0 { Rule::ControlCharacters } else { Rule::Empty })
        } else if !run.options.languages.contains(&lang) {
            Some(Rule::Language)
        } else {
            judge.judge(&text, lang, profile, control)
        };
        if let Some(rule) = rule {
            sums.remove(rule, source, text.len());
            continue;
        }
        let (han, bytes) = (profile.han as u32, text.len() as u32);
        let entry = Entry { exact: exact_hash(&text), source, lang, han, bytes };
        entry.write(&mut keys);
        signature.clear();
        signer.sign(&profile.units, entry.exact, signature);
        signature.iter().for_each(|key| keys.extend(key.to_le_bytes()));
        packer.add(&entry, &text);
        sums.documents += 1;
        sums.bytes += text.len() as u64;
    }
    let block = packer.pack(sums.documents as u32, keys)?;
    Ok(Outcome::Block(Box::new(block), Box::new(sums)))
}

/// The name of the file that says a segment is whole.
fn sealed(number: usize) -> String {
    format!("spool/segment-{number:06}.json")
}

/// Runs the stage, from wherever it was interrupted.
pub(super) fn gather(run: &Run<'_>, reporter: &mut Reporter<'_>) -> Result<Gathered, PrepareError> {
    let mut all = Gathered::default();
    while let Some(segment) = run.work.load::<Gathered>(&sealed(all.segments)) {
        all.append(segment);
    }
    let from = all.next_input;
    let done = AtomicU64::new(run.inputs[..from].iter().map(|s| s.input.bytes).sum());
    let total = run.inputs.iter().map(|s| s.input.bytes).sum();
    let cleaner = Cleaner::new(&run.options.clean);
    let tools = || Tools {
        judge: Judge::new(&run.options.rules),
        signer: Signer::new(&run.options.dedup),
        packer: None,
        profile: Profile::default(),
        signature: Vec::new(),
    };
    let folder = run.work.spool();
    let mut writer: Option<SegmentWriter> = None;
    let mut segment = Gathered::default();
    let mut show = |documents: u64| reporter.show(Stage::Read, done.load(Ordering::Relaxed), total, documents);
    show(all.input.documents)?;
    let mut seen = all.input.documents;
    ordered(
        run.pipeline(),
        tools,
        |feed| produce(run, from, &done, feed),
        |tools, job| match job {
            Job::Batch(batch) => work(run, &cleaner, tools, batch),
            Job::Seal(read) => Ok(Outcome::Seal(read)),
        },
        |event| {
            match event {
                Event::Tick => {}
                Event::Item(Outcome::Block(block, sums)) => {
                    if writer.is_none() {
                        writer = Some(SegmentWriter::create(&folder, all.segments)?);
                    }
                    if let Some(writer) = &mut writer
                        && block.documents > 0
                    {
                        writer.write(&block)?;
                    }
                    seen += sums.documents + sums.removed.values().map(|a| a.documents).sum::<u64>();
                    segment.append(*sums);
                }
                Event::Item(Outcome::Seal(read)) => {
                    let open = match writer.take() {
                        Some(writer) => writer,
                        None => SegmentWriter::create(&folder, all.segments)?,
                    };
                    open.finish()?;
                    segment.append(*read);
                    let segment = std::mem::take(&mut segment);
                    run.work.save(&sealed(all.segments), &segment)?;
                    all.append(segment);
                }
            }
            show(seen)
        },
    )?;
    Ok(all)
}

impl Run<'_> {
    /// How the pipelines are sized.
    pub(super) fn pipeline(&self) -> Size {
        let threads = self.options.tuning.threads();
        let budget = (4 * threads * self.options.tuning.block_bytes).clamp(1 << 20, 64 << 20);
        Size { threads, budget }
    }
}
