//! `wudao quickstart`: from nothing to a model that writes both languages, in a few minutes.
//!
//! The sample corpus is inside the binary, so that the binary alone is enough. Each step is what the command of the same
//! name does, and is skipped if an earlier quickstart in the same folder has done it.

use super::Context;
use super::prepare;
use super::train::Run;
use crate::error::Advice;
use crate::printer::{bytes, duration};
use crate::settings::{self, SettingsArgs};
use crate::signals;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use wudao_data::prepare::SourceOptions;
use wudao_device::DType;
use wudao_infer::{Checkpoint, Generation};
use wudao_model::WeightOptions;
use wudao_train::{End, Init, checkpoint};

macro_rules! corpus {
    ($($language:literal: $($name:literal),+;)+) => {
        /// Language, name and bytes of each file of the sample.
        const CORPUS: &[(&str, &str, &[u8])] = &[$($(
            ($language, $name, include_bytes!(concat!("../../../../corpus/", $language, "/", $name, ".jsonl.zst"))),
        )+)+];
    };
}

corpus! {
    "zh": "sanguo", "classics", "laws", "tang", "songci";
    "en": "web-bible", "moby-dick", "state-of-the-union";
}

/// What the model is asked to continue in the end.
const PROMPTS: [&str; 2] = ["话说曹操", "And it came to pass"];
/// Where the run goes if nobody says.
const DEFAULT_OUT: &str = "runs/quickstart";

/// Arguments of `wudao quickstart`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao quickstart\n  wudao quickstart --minutes 20 --out runs/longer")]
pub struct Args {
    /// Minutes to train; the other steps take about one more.
    #[arg(long, value_name = "M", default_value_t = 3.0)]
    minutes: f64,
    /// Folder for everything it makes.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    out: PathBuf,
    /// Show the training on the whole terminal.
    #[arg(long)]
    tui: bool,
    /// Set any key of the settings, for instance train.lr=3e-3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The whole road.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let start = Instant::now();
    let stop = signals::stop_flag()?;
    let (out, shown) = (&args.out, args.out.display());
    let settings = SettingsArgs { preset: Some("quickstart".into()), set: args.set.clone(), config: None };
    let own = [("train.max_minutes", "--minutes", Some(args.minutes.to_string()))];
    let resolved = settings::resolve(&settings, &own, &cx.environment)?;

    let corpus = out.join("corpus");
    unpack(&corpus, cx)?;
    let data = out.join("data");
    let mut sources: Vec<SourceOptions> = Vec::new();
    for (language, name, _) in CORPUS {
        sources.push(SourceOptions::new(*name, [corpus.join(language).join(format!("{name}.jsonl.zst"))]));
    }
    let mut options = prepare::options(&resolved, sources, data.clone(), None, cx)?;
    // Sixteen documents a language are enough to measure on, and the text is little.
    options.validation.share = 0.04;
    let report = prepare::work(&options, cx.printer, stop.clone())?;
    cx.printer.detail(report);

    let already = checkpoint::newest(out).ok();
    let init = if already.is_some() { Init::Resume } else { Init::Fresh };
    let run = Run { resolved, data: &data, out, init, full_screen: args.tui, verify: true };
    let outcome = run
        .train(cx, stop.clone())
        .help(format!("another --out begins anew, and so does this after `rm -r {shown}`"))?;
    if outcome.end == End::Stopped {
        cx.printer.say(format!("\nGo on with:  wudao quickstart --minutes {} --out {shown}", args.minutes));
        return Ok(());
    }

    let model = &outcome.last;
    write_samples(cx, model, &stop)?;
    let held_out = outcome.evaluation.as_ref().map(|evaluation| evaluation.total.bits_per_byte);
    cx.printer.say("");
    cx.printer.status("Done", format!("in {}", duration(start.elapsed().as_secs_f64())));
    cx.printer.status("Text", corpus.display());
    cx.printer.status("Shards", data.display());
    cx.printer.status("Model", format!("{} (a Hugging Face checkpoint)", model.display()));
    cx.printer.status("Report", outcome.report.display());
    if let Some(bits) = held_out {
        cx.printer.status("Held out", format!("{bits:.3} bits a byte on text the model has not seen"));
    }
    let wudao = invocation();
    cx.printer.say(format!(
        "\nNext:\n  {wudao} generate --model {shown} --prompt '{}' --max-tokens 200\n  \
         {wudao} serve {shown}                 # a page to talk to it at http://127.0.0.1:8000\n  \
         {wudao} eval --model {shown} --data {shown}/data\n  \
         {wudao} inspect {shown}",
        PROMPTS[0]
    ));
    Ok(())
}

/// Writes the sample's files; those that are there are left alone.
fn unpack(corpus: &Path, cx: &Context) -> anyhow::Result<()> {
    let mut size = 0;
    for (language, name, packed) in CORPUS {
        let folder = corpus.join(language);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))
            .help("choose a folder that can be written to with --out")?;
        let path = folder.join(format!("{name}.jsonl.zst"));
        size += packed.len() as u64;
        if std::fs::metadata(&path).is_ok_and(|found| found.len() == packed.len() as u64) {
            continue;
        }
        std::fs::write(&path, packed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = format!("{} files, {} packed, in {}", CORPUS.len(), bytes(size), corpus.display());
    cx.printer.status("Unpacked", text);
    Ok(())
}

/// Continues the prompts before the reader's eyes.
fn write_samples(cx: &Context, model: &Path, stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&cx.cpu(), model, &WeightOptions::plain(DType::F32))?;
    let how = Generation::from(settings::GenerateSettings { max_tokens: 100, ..Default::default() });
    for prompt in PROMPTS {
        cx.printer.say("");
        cx.printer.status("Prompt", prompt);
        let mut failed = None;
        let mut emit = |piece: &str| {
            failed = failed.take().or(cx.printer.answer(piece).err());
            failed.is_none() && !stop.load(Ordering::Relaxed)
        };
        cx.printer.answer(prompt)?;
        checkpoint.generate(prompt, &how, &mut emit)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        cx.printer.answer("\n")?;
    }
    Ok(())
}

/// How this program was called, so that the commands it suggests work where they are pasted.
fn invocation() -> String {
    let called = std::env::args().next().unwrap_or_else(|| "wudao".into());
    // `cargo run` calls target/…/wudao by a path that works from here too.
    if called.contains(' ') { format!("'{called}'") } else { called }
}
