//! `wudao prepare`: from raw text to shards of token ids.

use super::Context;
use crate::error::{Advice, Usage};
use crate::printer::{Printer, Progress as Bar, Unit, grouped, short};
use crate::settings::{self, PrepareSettings, Resolved, SettingsArgs, TokenizerSettings};
use crate::signals;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wudao_data::manifest::Split;
use wudao_data::prepare::{
    self, PrepareError, PrepareOptions, Progress, Report, SourceOptions, Stage, Status, TokenizerChoice,
};
use wudao_data::read::Format;

/// Arguments of `wudao prepare`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao prepare texts --out data --vocab-size 16000\n  \
    wudao prepare --source books=books,more/books --source news=news.jsonl.zst --weight books=2 --out data\n  \
    zcat dump.jsonl.gz | wudao prepare - --format jsonl --out data --tokenizer data-old")]
pub struct Args {
    /// Files or folders of text: .txt .md .json .jsonl .csv .parquet, each also .gz .zst .xz; `-` is standard input.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// A named source: paths that are weighted and reported together. A PATH above is a source of its own.
    #[arg(long, value_name = "NAME=PATH[,PATH]")]
    source: Vec<String>,
    /// How often the training documents of a source appear, on average (1 if not given).
    #[arg(long, value_name = "NAME=W")]
    weight: Vec<String>,
    /// Folder of the data set.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use this tokenizer (a tokenizer.json or a folder with one) instead of learning one.
    #[arg(long, value_name = "PATH", conflicts_with = "vocab_size")]
    tokenizer: Option<PathBuf>,
    /// Learn a tokenizer of this many ids [default: 32000].
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Fields of JSON, CSV or Parquet records that hold the text [default: text].
    #[arg(long, value_name = "NAME,…")]
    fields: Option<String>,
    /// What the files hold, if their names do not say it: txt, json, jsonl, csv or parquet.
    #[arg(long)]
    format: Option<Format>,
    /// Share of documents to hold out for validation [default: 0.005].
    #[arg(long, value_name = "SHARE")]
    validation: Option<f64>,
    /// Write Traditional characters as Simplified ones.
    #[arg(long)]
    simplify: bool,
    /// Stop at the first record that cannot be read instead of skipping it.
    #[arg(long)]
    strict: bool,
    /// Replace a finished data set of other inputs or options in the folder.
    #[arg(long)]
    overwrite: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Prepares and reports.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let flag = |on: bool| on.then(|| "true".to_owned());
    let own = [
        ("tokenizer.vocab_size", "--vocab-size", args.vocab_size.map(|n| n.to_string())),
        ("prepare.read.fields", "--fields", args.fields.clone()),
        ("prepare.validation.share", "--validation", args.validation.map(|x| x.to_string())),
        ("prepare.clean.simplify", "--simplify", flag(args.simplify)),
        ("prepare.read.strict", "--strict", flag(args.strict)),
    ];
    let resolved = settings::resolve(&args.settings, &own, &cx.environment)?;
    let mut sources = sources(&args)?;
    if sources.is_empty() {
        sources = resolved.sources.clone();
    }
    if sources.is_empty() {
        return Err(anyhow::Error::new(Usage("there is nothing to read".into())))
            .help("name files or folders, or give [[sources]] in a --config file");
    }
    let tokenizer = args.tokenizer.clone();
    let mut options = options(&resolved, sources, args.out.clone(), tokenizer, cx)?;
    options.overwrite = args.overwrite;
    let stop = signals::stop_flag()?;
    let report = work(&options, cx.printer, stop)?;
    if args.json {
        return cx.printer.json(&report);
    }
    Ok(cx.printer.answer(&report.to_string())?)
}

/// Options for the library from settings.
pub fn options(
    resolved: &Resolved,
    sources: Vec<SourceOptions>,
    out: PathBuf,
    tokenizer: Option<PathBuf>,
    cx: &Context,
) -> anyhow::Result<PrepareOptions> {
    let learned: TokenizerSettings = resolved.section("tokenizer")?;
    let PrepareSettings { read, clean, languages, rules, dedup, validation, shard_tokens, dedup_memory } =
        resolved.section("prepare")?;
    let tokenizer = match tokenizer {
        Some(path) => TokenizerChoice::File(path),
        None => TokenizerChoice::Train { vocab_size: learned.vocab_size },
    };
    let mut options = PrepareOptions::new(sources, out, tokenizer);
    options.tokenizer_bytes = learned.max_bytes;
    options.tuning.threads = cx.threads;
    options.tuning.dedup_memory = dedup_memory;
    Ok(PrepareOptions { read, clean, languages, rules, dedup, validation, shard_tokens, ..options })
}

/// Prepares with bars.
pub fn work(options: &PrepareOptions, printer: &Printer, stop: Arc<AtomicBool>) -> anyhow::Result<Report> {
    let mut watch = Watch { printer, stop, bar: None, drawn: Instant::now() };
    let report = match prepare::prepare(options, &mut watch) {
        Ok(report) => report,
        Err(error @ PrepareError::Exists { .. }) => return Err(error).help("--overwrite replaces it"),
        Err(error) => return Err(error.into()),
    };
    drop(watch);
    let sum = |split| report.output.get(&split).copied().unwrap_or_default();
    let (train, held) = (sum(Split::Train), sum(Split::Validation));
    printer.status(
        "Prepared",
        format!(
            "{} tokens of {} documents to train on, {} tokens of {} held out, in {}",
            short(train.tokens as f64),
            grouped(train.documents),
            short(held.tokens as f64),
            grouped(held.documents),
            options.out.display()
        ),
    );
    Ok(report)
}

/// Time between two drawings of a bar.
const REDRAW: Duration = Duration::from_millis(100);

struct Watch<'a> {
    printer: &'a Printer,
    stop: Arc<AtomicBool>,
    bar: Option<(Stage, Bar<'a>)>,
    drawn: Instant,
}

impl Progress for Watch<'_> {
    fn update(&mut self, status: &Status) {
        let Status { stage, done, total, .. } = *status;
        let same = self.bar.as_ref().is_some_and(|(shown, _)| *shown == stage);
        if same && self.drawn.elapsed() < REDRAW {
            return;
        }
        if !same {
            let verb = match stage {
                Stage::Read => "Reading",
                Stage::Duplicates => "Comparing",
                Stage::Tokenizer => "Learning ids",
                Stage::Tokenize => "Encoding",
            };
            // The old bar goes before the new one comes.
            self.bar = None;
            self.bar = Some((stage, self.printer.progress(verb, (total > 0).then_some(total), Unit::Bytes)));
        }
        self.drawn = Instant::now();
        if let Some((_, bar)) = &self.bar {
            bar.set(done);
        }
    }

    fn note(&mut self, message: &str) {
        self.printer.say(message);
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The sources that arguments name.
fn sources(args: &Args) -> anyhow::Result<Vec<SourceOptions>> {
    let mut sources: Vec<SourceOptions> =
        args.paths.iter().map(|path| SourceOptions::new(path.display().to_string(), [path])).collect();
    let pair = |flag: &str, text: &str| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("{flag} {text}: expected NAME=… with something on both sides"))),
    };
    for text in &args.source {
        let (name, paths) = pair("--source", text)?;
        sources.push(SourceOptions::new(name, paths.split(',')));
    }
    for text in &args.weight {
        let (name, weight) = pair("--weight", text)?;
        let weight: f64 = weight.parse().map_err(|_| Usage(format!("--weight {text}: \"{weight}\" is no number")))?;
        let Some(source) = sources.iter_mut().find(|source| source.name == name) else {
            let what = anyhow::Error::new(Usage(format!("--weight {text}: there is no source \"{name}\"")));
            return Err(what).help("name it with --source, or use the path as it was given");
        };
        source.weight = weight;
    }
    sources.iter_mut().for_each(|source| source.format = args.format);
    Ok(sources)
}
