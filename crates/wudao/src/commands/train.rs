//! `wudao train`: prepared shards in, checkpoints out.

use super::{Context, bench};
use crate::error::{Advice, Usage};
use crate::live::Live;
use crate::printer::{Unit, bytes};
use crate::settings::{self, DataSettings, Layers, Origin, Resolved, SettingsArgs, SettingsError};
use crate::signals;
use crate::tui::Tui;
use anyhow::Context as _;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use toml::{Table, Value};
use wudao_comm::Solo;
use wudao_data::manifest::Split;
use wudao_data::shard::ShardSet;
use wudao_data::tokenizer::{SPECIAL_TOKENS, Tokenizer};
use wudao_device::{Cpu, DType};
use wudao_infer::{Checkpoint, Generation};
use wudao_model::{Config, WeightOptions, weights};
use wudao_train::evaluate::Scores;
use wudao_train::metrics::{self, Sample};
use wudao_train::{Data, End, Event, Init, Job, Observer, Outcome, TrainError, TrainSettings, checkpoint};

/// File of the resolved settings in a run's folder.
pub const RUN_FILE: &str = "run.toml";
/// What the report shows the model's continuation of.
const SAMPLE_PROMPTS: [&str; 2] = ["天下", "In the"];

/// Arguments of `wudao train`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao train --preset small --data data --out runs/first --minutes 60\n  \
    wudao train --resume --out runs/first\n  \
    wudao train --from models/qwen3 --data data --out runs/more --steps 1000 --lr 2e-5\n  \
    wudao train --config runs/first/run.toml --set train.lr=1e-3 --out runs/second")]
pub struct Args {
    /// Folder of the prepared data set.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the run.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on where the run in the folder stopped, bit for bit.
    #[arg(long, conflicts_with = "from")]
    resume: bool,
    /// Begin with the model and the weights of this checkpoint (ours, or any of a supported family) instead of random ones.
    /// The data must have been prepared with its tokenizer.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Show the run on the whole terminal.
    #[arg(long)]
    tui: bool,
    /// Do not read the whole data set to compare checksums before the start.
    #[arg(long)]
    no_verify: bool,
    /// Stop after this many steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Stop after this many tokens.
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    tokens: Option<String>,
    /// Train for about this many minutes: speed is measured and the number of steps fixed before the first.
    #[arg(long, value_name = "M", conflicts_with_all = ["steps", "tokens"])]
    minutes: Option<f64>,
    /// Peak learning rate.
    #[arg(long, value_name = "LR")]
    lr: Option<f64>,
    /// Rows of a step.
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Tokens of a row.
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Bits that products multiply in: f32, or bf16 (mixed precision).
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,
    /// Seed of everything random.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print how the run ended as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    end: &'static str,
    step: u64,
    tokens: u64,
    checkpoint: &'a Path,
    best: Option<&'a Path>,
    report: &'a Path,
    validation: Option<Scores>,
}

/// Trains.
pub fn run(mut args: Args, cx: &Context) -> anyhow::Result<()> {
    let saved = args.out.join(RUN_FILE);
    if args.resume && args.settings.config.is_none() && saved.exists() {
        args.settings.config = Some(saved);
    }
    let own = [
        ("data.path", "--data", args.data.as_ref().map(|path| path.display().to_string())),
        ("train.steps", "--steps", args.steps.map(|n| n.to_string())),
        ("train.max_tokens", "--tokens", args.tokens.clone()),
        ("train.max_minutes", "--minutes", args.minutes.map(|x| x.to_string())),
        ("train.lr", "--lr", args.lr.map(|x| x.to_string())),
        ("train.global_batch_size", "--batch-size", args.batch_size.map(|n| n.to_string())),
        ("train.seq_len", "--seq-len", args.seq_len.map(|n| n.to_string())),
        ("train.dtype", "--dtype", args.dtype.clone()),
        ("train.seed", "--seed", args.seed.map(|n| n.to_string())),
    ];
    let resolved = settings::resolve(&args.settings, &own, &cx.environment)?;
    let data: DataSettings = resolved.section("data")?;
    let Some(data) = data.path else {
        return Err(anyhow::Error::new(Usage("there is nothing to train on".into())))
            .help("give the folder of a prepared data set with --data; `wudao prepare` makes one");
    };
    let from = args.from.as_deref().map(checkpoint_of).transpose()?;
    let init = match &from {
        _ if args.resume => Init::Resume,
        Some(dir) => Init::From(dir),
        None => Init::Fresh,
    };
    let stop = signals::stop_flag()?;
    let run = Run { resolved, data: &data, out: &args.out, init, full_screen: args.tui, verify: !args.no_verify };
    let outcome = run.train(cx, stop)?;
    if args.json {
        let Outcome { step, tokens, last, best, report, evaluation, .. } = &outcome;
        return cx.printer.json(&Answer {
            end: if outcome.end == End::Complete { "complete" } else { "stopped" },
            step: *step,
            tokens: *tokens,
            checkpoint: last,
            best: best.as_deref(),
            report,
            validation: evaluation.as_ref().map(|evaluation| evaluation.total),
        });
    }
    let out = args.out.display();
    match outcome.end {
        End::Complete => {
            cx.printer.status("Checkpoint", outcome.last.display());
            cx.printer.status("Report", outcome.report.display());
            cx.printer.say(format!("\nTry it:  wudao generate --model {out} --prompt '{}'", SAMPLE_PROMPTS[0]));
        }
        End::Stopped => cx.printer.say(format!("\nGo on with:  wudao train --resume --out {out}")),
    }
    Ok(())
}

/// A training run, ready to go.
pub struct Run<'a> {
    /// The settings.
    pub resolved: Resolved,
    /// Folder of the data set.
    pub data: &'a Path,
    /// Folder of the run.
    pub out: &'a Path,
    /// What it begins with.
    pub init: Init<'a>,
    /// Whether to show it on the whole terminal.
    pub full_screen: bool,
    /// Whether to compare the checksums of the data first.
    pub verify: bool,
}

impl Run<'_> {
    /// Trains until the end, or until `stop`.
    pub fn train(mut self, cx: &Context, stop: Arc<AtomicBool>) -> anyhow::Result<Outcome> {
        let train = ShardSet::open(self.data, Split::Train)?;
        let validation = ShardSet::open(self.data, Split::Validation)?;
        if self.verify {
            verify(&[&train, &validation], cx)?;
        }
        let tokenizer = Tokenizer::load(self.data)?;
        let layers = &mut self.resolved.layers;
        if let Init::From(dir) = self.init {
            let config = continued(dir, train.tokenizer().end_of_text)?;
            layers.replace("model", &config, &Origin::Checkpoint(dir.to_owned()))?;
        } else {
            layers.fill(&facts(&train, &tokenizer), &Origin::Data)?;
        }
        let folder = std::path::absolute(self.data).unwrap_or_else(|_| self.data.to_owned());
        layers.set("data.path", Value::String(folder.display().to_string()));
        let config: Config = layers.section("model")?;
        config.check().map_err(|error| wrong(layers, &format!("model.{}", error.key), &error.problem))?;
        let settings: TrainSettings = layers.section("train")?;
        settings.check().map_err(|error| wrong(layers, &format!("train.{}", error.key), &error.problem))?;
        if self.full_screen && !cx.printer.full_screen() {
            return Err(Usage("--tui needs a terminal".into()).into());
        }
        let device = cx.cpu_to_train(&settings);
        let peak = device.peak_gflops(settings.dtype.operands()) * 1e9;
        let job = Job {
            device: &device,
            comm: &Solo,
            config: &config,
            settings: &settings,
            data: Data::of_shards(&train, &validation),
            tokenizer: &tokenizer,
            out: self.out,
            init: self.init,
            available_memory: available_memory(),
            peak_flops: Some(peak),
            machine: machine(cx.threads, settings.dtype.operands(), peak),
        };
        let title = self.out.display().to_string();
        let view: Box<dyn Observer + '_> = match self.full_screen {
            true => Box::new(Tui::new(cx.printer, title, stop.clone()).context("cannot take the terminal")?),
            false => Box::new(Live::new(cx.printer)),
        };
        let file = self.out.join(RUN_FILE);
        let mut observer = Recorder { view, file: &file, layers: &self.resolved.layers, failed: None };
        let outcome = wudao_train::run(&job, &mut observer, &stop);
        let failed = observer.failed.take();
        drop(observer);
        if let Some(error) = failed {
            cx.printer.warn(format!("the settings were not saved in {}: {error}", file.display()));
        }
        let outcome = outcome.map_err(|error| advise(error, self.out))?;
        if outcome.end == End::Complete {
            add_samples(cx, &device, self.out, &outcome)?;
        }
        Ok(outcome)
    }
}

/// Reads every byte of prepared data and compares it with the manifest: a damaged shard is told before it is learned from.
pub fn verify(sets: &[&ShardSet], cx: &Context) -> anyhow::Result<()> {
    let total = sets.iter().map(|set| set.file_bytes()).sum();
    let progress = cx.printer.progress("Verifying", Some(total), Unit::Bytes);
    let mut done = 0;
    for set in sets {
        set.verify(&mut |bytes| {
            done += bytes;
            progress.set(done);
        })?;
    }
    Ok(())
}

/// The model of a checkpoint. Chat models name several tokens that end a text; the one that ends the data's documents,
/// if it is among them, is the first for what is learned.
fn continued(dir: &Path, end_of_text: u32) -> Result<Config, weights::WeightsError> {
    let mut config = weights::read_config(dir)?;
    if let Some(at) = config.eos_token_id.iter().position(|&id| id == end_of_text) {
        config.eos_token_id[..=at].rotate_right(1);
    }
    Ok(config)
}

/// Gives the model what it must share with the data set.
pub fn fill_facts(layers: &mut Layers, data: &Path) -> anyhow::Result<()> {
    let (train, tokenizer) = (ShardSet::open(data, Split::Train)?, Tokenizer::load(data)?);
    Ok(layers.fill(&facts(&train, &tokenizer), &Origin::Data)?)
}

/// Facts of the data set that the model must share.
fn facts(set: &ShardSet, tokenizer: &Tokenizer) -> Table {
    let stamp = set.tokenizer();
    let end = Value::Integer(stamp.end_of_text.into());
    let mut model = Table::from_iter([
        ("vocab_size".to_owned(), Value::Integer(stamp.vocab_size.into())),
        ("bos_token_id".to_owned(), end.clone()),
        ("eos_token_id".to_owned(), Value::Array(vec![end])),
    ]);
    if let Some(pad) = tokenizer.id(SPECIAL_TOKENS[1]) {
        model.insert("pad_token_id".to_owned(), Value::Integer(pad.into()));
    }
    Table::from_iter([("model".to_owned(), Value::Table(model))])
}

/// A setting that its owner refuses, with the place it came from.
fn wrong(layers: &Layers, path: &str, problem: &str) -> SettingsError {
    SettingsError { what: format!("setting `{path}` ({}): {problem}", layers.origin(path)), help: None }
}

fn advise(error: TrainError, out: &Path) -> anyhow::Error {
    let out = out.display();
    let help = match &error {
        TrainError::Occupied { .. } => {
            format!("`wudao train --resume --out {out}` goes on; --out names another folder")
        }
        TrainError::Checkpoint(checkpoint::CheckpointError::NoneUsable { .. }) => {
            "the folder is as it was: restore one of them, move them away to begin anew, or give another --out"
                .to_owned()
        }
        TrainError::OtherData { .. } => format!("{out}/{RUN_FILE} names the data set it began with"),
        _ => return error.into(),
    };
    let result: anyhow::Result<()> = Err(error).help(help);
    result.expect_err("it was an error before")
}

/// Saves the settings once the folder is ours, and passes everything on.
struct Recorder<'a> {
    view: Box<dyn Observer + 'a>,
    file: &'a Path,
    layers: &'a Layers,
    failed: Option<std::io::Error>,
}

impl Observer for Recorder<'_> {
    fn on(&mut self, event: &Event) {
        if matches!(event, Event::Started(_)) {
            let text = format!(
                "# The settings of this run as they were resolved, each with where it came from.\n\
                 # `wudao train --config run.toml --out NEW` repeats the run.\n{}",
                self.layers.to_toml(&["data", "model", "train"])
            );
            let fresh = self.file.with_extension("toml.tmp");
            let saved = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, self.file));
            self.failed = saved.err();
        }
        self.view.on(event);
    }
}

/// Lets the finished model write, for the report.
fn add_samples(cx: &Context, device: &Cpu, out: &Path, outcome: &Outcome) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(device, &outcome.last, &WeightOptions::plain(DType::F32))?;
    let how = Generation::from(settings::GenerateSettings { max_tokens: 80, ..Default::default() });
    for prompt in SAMPLE_PROMPTS {
        let completion = checkpoint.generate(prompt, &how, &mut |_| true)?.text;
        cx.printer.detail(format!("{prompt}{completion}"));
        let sample = Sample { step: outcome.step, prompt: prompt.to_owned(), completion };
        metrics::append_sample(out, &sample)?;
    }
    metrics::report(out)?;
    Ok(())
}

/// The checkpoint that a path means: itself, or a run's newest that is whole.
pub fn checkpoint_of(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join(weights::CONFIG).exists() || !path.join(checkpoint::CHECKPOINTS).exists() {
        return Ok(path.to_owned());
    }
    Ok(checkpoint::newest(path)?.path)
}

/// Bytes of memory that a run may take, where the system tells: what is free, and what the control group allows.
pub fn available_memory() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = 1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?;
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|most| most.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(group.map_or(free, |group| group.min(free)))
}

/// What the report says of the machine.
fn machine(threads: usize, operands: DType, peak: f64) -> Vec<(String, String)> {
    let mut facts = vec![];
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    facts.extend(model.map(|(_, name)| ("processor".to_owned(), name.trim().to_owned())));
    facts.push(("threads".to_owned(), threads.to_string()));
    facts.push(("measured peak".to_owned(), format!("{:.0} GFLOP/s in {}", peak / 1e9, bench::dtype_name(operands))));
    facts.extend(available_memory().map(|free| ("free memory".to_owned(), bytes(free))));
    facts.push(("system".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)));
    facts
}
