//! The third stage: a tokenizer, if one is to be learned, and the shards.
//!
//! Blocks of the spool are decompressed and tokenized by several threads and written in order. Documents that a weight
//! repeats come again in a later pass over the spool, not right after themselves.
//!
//! Whenever a shard is complete, the place in the spool from which its split goes on is saved with it. After an
//! interruption both splits go on from their own places, and shards come out with the same bytes, because where a shard
//! ends depends on the documents alone.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gather::Gathered;
use super::options::TokenizerChoice;
use super::parallel::{Closed, Event, Feed, ordered};
use super::report::Written;
use super::select::Selection;
use super::spool::{Block, Blocks, Entry, unpack};
use super::{PrepareError, Reporter, Run, Stage};
use crate::document::Lang;
use crate::manifest::{ShardInfo, Split, TOKENIZER_FILE};
use crate::profile::mix;
use crate::shard::ShardWriter;
use crate::tokenizer::{Encoder, Tokenizer, TrainOptions};

const STATE_FILE: &str = "shards.json";

/// What was written of one split: by source and language.
pub(super) type ByLanguage = BTreeMap<u16, BTreeMap<Lang, Written>>;

/// How far one split has come: complete shards, what is in them, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub done: Vec<ShardInfo>,
    pub written: ByLanguage,
    /// Pass over the spool and document to go on with.
    from: (u32, u64),
}

/// Both splits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shards {
    pub train: Progress,
    pub validation: Progress,
    complete: bool,
}

impl Shards {
    fn of(&mut self, split: Split) -> &mut Progress {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        }
    }
}

/// The tokenizer of the data set: the one given, or one learned from the training documents.
pub(super) fn tokenizer(
    run: &Run<'_>,
    given: Option<Tokenizer>,
    gathered: &Gathered,
    selection: &Selection,
    reporter: &mut Reporter<'_>,
) -> Result<Tokenizer, PrepareError> {
    let set = run.work.set();
    if let Some(tokenizer) = given {
        tokenizer.save(&set)?;
        return Ok(tokenizer);
    }
    let TokenizerChoice::Train { vocab_size } = run.options.tokenizer else {
        return Err(PrepareError::Options { reason: "no tokenizer was given".to_string() });
    };
    if set.join(TOKENIZER_FILE).exists() {
        return Ok(Tokenizer::load(&set)?);
    }
    let (budget, bytes) = (run.options.tokenizer_bytes, selection.sums.train.bytes);
    let share = budget as f64 / bytes.max(1) as f64;
    let total = budget.min(bytes);
    let failure = RefCell::new(None);
    let mut blocks = Blocks::new(&run.work.spool(), gathered.segments);
    let (mut read, mut documents) = (0, 0);
    let mut next = || -> Result<Option<Vec<String>>, PrepareError> {
        let Some((first, block)) = blocks.next(0)? else { return Ok(None) };
        let mut raw = Vec::new();
        let inside = unpack(&block, &mut raw).ok_or_else(|| damaged(run))?;
        let mut texts = Vec::new();
        for (number, (entry, text)) in (first..).zip(inside) {
            let sampled = (mix(entry.exact as u64 ^ 0x746f_6b65_6e69_7a65) as f64) < share * 2f64.powi(64);
            let wanted = sampled && selection.removed(number).is_none() && selection.split(&entry) == Split::Train;
            if wanted && selection.repeats(&entry) > 0 {
                read += text.len() as u64;
                documents += 1;
                texts.push(text.to_string());
            }
        }
        reporter.show(Stage::Tokenizer, read.min(total), total, documents)?;
        Ok(Some(texts))
    };
    let texts = std::iter::from_fn(|| {
        next().unwrap_or_else(|error| {
            *failure.borrow_mut() = Some(error);
            None
        })
    });
    let trained = Tokenizer::train(texts.flatten(), &TrainOptions { vocab_size, max_bytes: budget.max(1) });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    let tokenizer = trained?;
    tokenizer.save(&set)?;
    // What was learned is what is used from now on, also after an interruption.
    Ok(Tokenizer::load(&set)?)
}

fn damaged(run: &Run<'_>) -> PrepareError {
    PrepareError::Damaged { path: run.work.spool().display().to_string() }
}

struct Job {
    pass: u32,
    /// Number of the block's first document.
    first: u64,
    block: Block,
}

struct Encoded {
    pass: u32,
    bytes: u64,
    tokens: Vec<u32>,
    documents: Vec<EncodedDocument>,
}

struct EncodedDocument {
    number: u64,
    entry: Entry,
    split: Split,
    tokens: usize,
}

/// Where a pass over the spool has to begin.
fn start(shards: &Shards, pass: u32) -> u64 {
    let of = |(at, document): (u32, u64)| match at.cmp(&pass) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => document,
        std::cmp::Ordering::Greater => u64::MAX,
    };
    // Held-out documents are never repeated.
    let validation = if pass == 0 { of(shards.validation.from) } else { u64::MAX };
    of(shards.train.from).min(validation)
}

fn encode(
    run: &Run<'_>,
    selection: &Selection,
    from: &Shards,
    encoder: &mut Encoder<'_>,
    job: Job,
) -> Result<Encoded, PrepareError> {
    let Job { pass, first, block } = job;
    let mut raw = Vec::new();
    let inside = unpack(&block, &mut raw).ok_or_else(|| damaged(run))?;
    let mut out = Encoded { pass, bytes: 0, tokens: Vec::new(), documents: Vec::new() };
    for (number, (entry, text)) in (first..).zip(inside) {
        out.bytes += u64::from(entry.bytes);
        if selection.removed(number).is_some() {
            continue;
        }
        let split = selection.split(&entry);
        let (from, times) = match split {
            Split::Train => (from.train.from, selection.repeats(&entry)),
            Split::Validation => (from.validation.from, 1),
        };
        if pass >= times || (pass, number) < from {
            continue;
        }
        let before = out.tokens.len();
        encoder.encode(text, &mut out.tokens)?;
        out.documents.push(EncodedDocument { number, entry, split, tokens: out.tokens.len() - before });
    }
    Ok(out)
}

/// Writes the shards, from wherever that was interrupted.
pub(super) fn write(
    run: &Run<'_>,
    tokenizer: &Tokenizer,
    gathered: &Gathered,
    selection: &Selection,
    reporter: &mut Reporter<'_>,
) -> Result<Shards, PrepareError> {
    let mut shards: Shards = run.work.load(STATE_FILE).unwrap_or_default();
    if shards.complete {
        return Ok(shards);
    }
    let from = shards.clone();
    let (set, stamp) = (run.work.set(), tokenizer.stamp()?);
    let open = |split, done| ShardWriter::new(&set, split, &stamp, run.options.shard_tokens, done);
    let mut train = open(Split::Train, from.train.done.clone())?;
    let mut validation = open(Split::Validation, from.validation.done.clone())?;
    // What was written, the open shards included.
    let mut now = shards.clone();
    let passes = selection.passes();
    let total = gathered.bytes * u64::from(passes);
    let (mut bytes, mut documents) = (0, 0);
    let produce = |feed: &Feed<'_, Job, Encoded, PrepareError>| {
        for pass in 0..passes {
            let mut blocks = Blocks::new(&run.work.spool(), gathered.segments);
            while let Some((first, block)) = blocks.next(start(&from, pass))? {
                let weight = block.raw_bytes as usize;
                feed.send(Job { pass, first, block }, weight).map_err(|Closed| PrepareError::Stopped)?;
            }
        }
        Ok(())
    };
    ordered(
        run.pipeline(),
        || tokenizer.encoder(),
        produce,
        |encoder, job| encode(run, selection, &from, encoder, job),
        |event| {
            let Event::Item(block) = event else { return reporter.show(Stage::Tokenize, bytes, total, documents) };
            let mut rest = block.tokens.as_slice();
            for EncodedDocument { number, entry, split, tokens } in block.documents {
                let (ids, after) = rest.split_at(tokens);
                rest = after;
                let writer = match split {
                    Split::Train => &mut train,
                    Split::Validation => &mut validation,
                };
                writer.push(ids, u64::from(entry.bytes), entry.lang, entry.source)?;
                let progress = now.of(split);
                *progress.written.entry(entry.source).or_default().entry(entry.lang).or_default() += Written {
                    documents: 1,
                    bytes: u64::from(entry.bytes),
                    tokens: tokens as u64,
                    han: u64::from(entry.han),
                };
                documents += 1;
                if writer.done().len() > progress.done.len() {
                    progress.done = writer.done().to_vec();
                    progress.from = (block.pass, number + 1);
                    *shards.of(split) = progress.clone();
                    run.work.save(STATE_FILE, &shards)?;
                }
            }
            bytes += block.bytes;
            reporter.show(Stage::Tokenize, bytes, total, documents)
        },
    )?;
    now.train.done = train.finish()?;
    now.validation.done = validation.finish()?;
    now.complete = true;
    run.work.save(STATE_FILE, &now)?;
    Ok(now)
}
