//! `wudao eval`: how well a model predicts text, in nats a token and bits a byte, by source and language.
//!
//! With `--tasks` it answers questions instead: see [`super::tasks`].
//!
//! Text files are scored as they are read: decoded to UTF-8, not cleaned. So another program that reads the same files
//! sees the same text (`reference/hf_eval.py` does, with transformers).

use super::generate::open;
use super::texts::{self, TextArgs};
use super::tokenizer::language;
use super::train::verify;
use super::{Context, WeightArgs, told};
use crate::error::Advice;
use crate::printer::{Unit, columns, duration, grouped};
use crate::settings::{self, EvalSettings, SettingsArgs};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use wudao_data::batch::{self, Layout};
use wudao_data::document::Lang;
use wudao_data::manifest::{MANIFEST_FILE, Split};
use wudao_data::shard::{DocRef, Documents, MemoryDocument, MemoryDocuments, ShardSet};
use wudao_data::tally::{Figures, Tally};
use wudao_device::Cpu;
use wudao_infer::Checkpoint;
use wudao_train::evaluate::Scores;

/// Positions that are computed at once if nobody says how many windows.
const POSITIONS: usize = 4096;

/// Arguments of `wudao eval`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao eval --model runs/quickstart --data runs/quickstart/data\n  \
    wudao eval --model runs/quickstart --data book.txt news.jsonl --json\n  \
    wudao eval --model runs/quickstart --tasks requests/arc_easy own.jsonl --out answers.jsonl")]
#[command(group(clap::ArgGroup::new("what").required(true).args(["data", "tasks"])))]
pub struct Args {
    /// A checkpoint, a run folder (its newest checkpoint), or a GGUF file.
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) weights: WeightArgs,
    /// Text files or folders of them, or a prepared data set (its held-out part).
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Questions with choices: files of JSON Lines, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(super) tasks: Vec<PathBuf>,
    /// Only the first N questions of each task.
    #[arg(long, value_name = "N", requires = "tasks")]
    pub(super) limit: Option<std::num::NonZeroUsize>,
    /// Examples before each question of MMLU [default: 5]. Request files carry theirs.
    #[arg(long, value_name = "N", requires = "tasks")]
    pub(super) shots: Option<usize>,
    /// Let contexts begin as they are, without the begin-of-document token, as lm-evaluation-harness asks a server.
    #[arg(long, requires = "tasks")]
    pub(super) no_bos: bool,
    /// Keep every answer in this file; the same command then goes on where it was stopped.
    #[arg(long, value_name = "FILE", requires = "tasks")]
    pub(super) out: Option<PathBuf>,
    /// Which part of a prepared data set.
    #[arg(long, value_enum, default_value = "validation")]
    split: Part,
    /// Tokens of a window [default: as long as the model takes].
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    #[command(flatten)]
    text: TextArgs,
    /// Print the figures as JSON.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// A part of a prepared data set.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Part {
    /// Learned from.
    Train,
    /// Held out.
    Validation,
}

/// Documents of several sets and files, one after the other, with their sources' names.
struct Sources {
    names: Vec<String>,
    sets: Vec<(ShardSet, u16)>,
    texts: MemoryDocuments,
}

impl Documents for Sources {
    fn documents(&self) -> u64 {
        self.texts.documents() + self.sets.iter().map(|(set, _)| set.documents()).sum::<u64>()
    }

    fn doc(&self, mut index: u64) -> DocRef<'_> {
        for (set, first) in &self.sets {
            if index < set.documents() {
                let document = set.doc(index);
                return DocRef { source: document.source + first, ..document };
            }
            index -= set.documents();
        }
        self.texts.doc(index)
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    seq_len: usize,
    sources: Vec<Row>,
    languages: Vec<Row>,
    total: Row,
    seconds: f64,
}

#[derive(Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'static str>,
    #[serde(flatten)]
    scores: Scores,
}

/// Measures and prints.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    if !args.tasks.is_empty() {
        return super::tasks::run(&args, cx);
    }
    let own = [("eval.seq_len", "--seq-len", args.seq_len.map(|n| n.to_string()))];
    let settings: EvalSettings = settings::resolve(&args.settings, &own, &cx.environment)?.section("eval")?;
    let how = args.weights.options()?;
    let checkpoint = open(cx, &cx.cpu_for(how.operands), &args.model, &how, args.weights.memory, |_| Ok(0))?;
    let sources = read(&args, &checkpoint, cx)?;
    let start = Instant::now();
    let (seq_len, tally) = score(&checkpoint, &sources, &settings, cx)?;
    let report = report(&args.model, seq_len, &sources.names, &tally, start.elapsed().as_secs_f64());
    if args.json {
        return cx.printer.json(&report);
    }
    cx.printer.answer(&table(&report))?;
    cx.printer.detail(format!("windows of {seq_len} tokens, {}", duration(report.seconds)));
    checkpoint.weights.expert_reads().iter().for_each(|reads| cx.printer.status("Memory", told(reads)));
    Ok(())
}

/// Scores documents with a bar.
pub fn score(
    checkpoint: &Checkpoint<Cpu>,
    documents: &impl Documents,
    settings: &EvalSettings,
    cx: &Context,
) -> anyhow::Result<(usize, Tally)> {
    let config = &checkpoint.config;
    let seq_len = settings.seq_len.unwrap_or(config.max_position_embeddings);
    let rows = settings.batch_size.unwrap_or((POSITIONS / seq_len.max(1)).max(1));
    let Some(end_of_text) = config.end_of_text() else {
        anyhow::bail!("the model has no end-of-text token: config.json must give eos_token_id");
    };
    let layout = Layout { seq_len, rows, end_of_text, vocab_size: config.vocab_size as u32, rank: 0, size: 1 };
    let progress = cx.printer.progress("Evaluating", Some(batch::predictions(documents)), Unit::Tokens);
    let tally = checkpoint.score(documents, layout, &mut |done| progress.set(done))?;
    Ok((seq_len, tally))
}

fn read(args: &Args, checkpoint: &Checkpoint<Cpu>, cx: &Context) -> anyhow::Result<Sources> {
    let mut sources = Sources { names: vec![], sets: vec![], texts: MemoryDocuments(vec![]) };
    let (prepared, plain): (Vec<&PathBuf>, Vec<&PathBuf>) = args.data.iter().partition(|path| is_prepared(path));
    for path in prepared {
        let split = match args.split {
            Part::Train => Split::Train,
            Part::Validation => Split::Validation,
        };
        let set = ShardSet::open(path, split)?;
        set.check_tokenizer(&checkpoint.tokenizer, &args.model.display().to_string())?;
        verify(&[&set], cx)?;
        let first = u16::try_from(sources.names.len())?;
        sources.names.extend(set.manifest().sources.iter().map(|source| source.name.clone()));
        sources.sets.push((set, first));
    }
    let first = sources.names.len();
    sources.names.extend(plain.iter().map(|path| path.display().to_string()));
    u16::try_from(sources.names.len())?;
    let plain: Vec<PathBuf> = plain.into_iter().cloned().collect();
    let mut encoder = checkpoint.tokenizer.encoder();
    let mut failed = None;
    texts::each(&plain, &args.text, cx, |number, text| {
        let mut tokens = Vec::new();
        if let Err(error) = encoder.encode(&text, &mut tokens) {
            failed = Some(error);
            return false;
        }
        let (bytes, lang, source) = (text.len() as u64, language(&text), (first + number) as u16);
        sources.texts.0.push(MemoryDocument { tokens, bytes, lang, source });
        true
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if sources.documents() == 0 {
        return Err(anyhow::anyhow!("there is no text in the data")).help("look at the files, or at --fields");
    }
    Ok(sources)
}

/// Whether a path is a prepared data set.
pub fn is_prepared(path: &Path) -> bool {
    path.join(MANIFEST_FILE).exists()
}

fn report(model: &Path, seq_len: usize, names: &[String], tally: &Tally, seconds: f64) -> Report {
    let name = |source: u16| names.get(usize::from(source)).cloned().unwrap_or_else(|| source.to_string());
    let row = |source, lang: Option<Lang>, figures: Figures| Row {
        source,
        language: lang.map(Lang::name),
        scores: figures.into(),
    };
    Report {
        model: model.to_owned(),
        seq_len,
        sources: tally.rows().map(|(source, lang, figures)| row(Some(name(source)), Some(lang), figures)).collect(),
        languages: tally.languages().into_iter().map(|(lang, figures)| row(None, Some(lang), figures)).collect(),
        total: row(None, None, tally.total()),
        seconds,
    }
}

fn table(report: &Report) -> String {
    let row = |row: &Row, name: &str| {
        let Scores { tokens, bytes, nll, perplexity, bits_per_byte } = row.scores;
        vec![
            row.source.clone().unwrap_or_else(|| name.to_owned()),
            row.language.unwrap_or_default().to_owned(),
            grouped(tokens),
            grouped(bytes),
            format!("{nll:.4}"),
            format!("{perplexity:.2}"),
            format!("{bits_per_byte:.4}"),
        ]
    };
    let mut rows: Vec<_> = report.sources.iter().map(|r| row(r, "")).collect();
    rows.extend(report.languages.iter().map(|r| row(r, "all")));
    rows.push(row(&report.total, "total"));
    columns(&["source", "language", "tokens", "bytes", "nll", "perplexity", "bits/byte"], &rows)
}
