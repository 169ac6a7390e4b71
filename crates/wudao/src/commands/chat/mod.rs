//! `wudao chat`: a conversation in the terminal.
//!
//! The model runs in this process, behind the same engine and chat templates as `wudao serve`. At a terminal there are a
//! line editor, commands and Ctrl-C; in a pipe each entry is a turn, and standard output has the answers alone. [`entry`] is
//! what somebody may type, [`reader`] where it comes from, [`conversation`] what has been said, [`talk`] how an answer is made.

mod conversation;
mod entry;
mod reader;
mod talk;

use super::engine::GuessArgs;
use super::generate::SamplingArgs;
use super::{Context, Dtype, WeightArgs};
use crate::error::Usage;
use crate::settings::SettingsArgs;
use crate::signals;
use conversation::Conversation;
use entry::{Entry, HELP};
use reader::{Reader, Typed, history_file};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use talk::Talk;
use wudao_device::DType;
use wudao_infer::engine::EngineOptions;

/// Arguments of `wudao chat`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao chat runs/quickstart\n  \
    wudao chat model.gguf --weights q8_0 --system '用中文回答。' --temperature 0.5\n  \
    printf 'Hello!\\nAnd in Chinese?\\n' | wudao chat runs/quickstart > answers.txt\n\n\
    In the conversation, /help lists the commands.")]
pub struct Args {
    /// A checkpoint, a run folder (its newest checkpoint), or a GGUF file.
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    weights: WeightArgs,
    /// A message that says how to answer.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Go on with a conversation that /save has kept.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Do not keep what is typed for the next time.
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of the conversation [default: as many as the model and the cache take].
    #[arg(long, value_name = "N", help_heading = "Engine")]
    context: Option<NonZeroUsize>,
    /// MiB for keys and values.
    #[arg(long, value_name = "MIB", default_value = "1024", help_heading = "Engine")]
    cache: NonZeroUsize,
    /// Bits of keys and values in memory [default: those of --dtype].
    #[arg(long, value_enum, help_heading = "Engine")]
    cache_dtype: Option<Dtype>,
    #[command(flatten)]
    guess: GuessArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Args {
    fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            context: self.context.map_or(0, NonZeroUsize::get),
            batch: 1,
            queue: 1,
            cache_bytes: self.cache.get().saturating_mul(1 << 20),
            cache_dtype: self.cache_dtype.map(DType::from),
            ..EngineOptions::default()
        }
    }
}

/// Talks until somebody leaves.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    if args.model.starts_with("http://") || args.model.starts_with("https://") {
        let what = format!("{} is a server: open it in a browser, it has a page to talk to its models", args.model);
        return Err(Usage(what).into());
    }
    let resolved = args.sampling.resolve(&args.settings, cx)?;
    // What is wrong is said before a model is read.
    args.sampling.generation(&resolved)?;
    let mut conversation = match &args.load {
        Some(path) => Conversation::load(path)?,
        None => Conversation::default(),
    };
    if args.system.is_some() {
        conversation.set_system(args.system.clone());
    }
    let model = super::serve::open(
        cx,
        &args.model,
        &args.guess,
        &args.weights.options()?,
        args.weights.memory,
        &args.engine_options(),
    )?;
    let keyboard = cx.printer.conversation();
    // In a pipe an interrupt is meant for the program, at a keyboard for the answer.
    let stop = if keyboard { signals::interrupt_flag()? } else { signals::stop_flag()? };
    let mut reader = match keyboard {
        true => Reader::keyboard(history_file().filter(|_| !args.no_history), cx)?,
        false => Reader::pipe(),
    };
    let mut talk = Talk::new(cx, model, args.sampling, resolved, conversation, stop.clone(), keyboard);
    talk.greet();
    loop {
        let text = match reader.next(cx)? {
            Typed::Text(text) => text,
            Typed::Interrupted => {
                cx.printer.note("Ctrl-D or /exit leaves");
                continue;
            }
            Typed::End => return Ok(()),
        };
        match step(&mut talk, &text) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(()),
            // At a keyboard somebody can do something else; in a pipe nobody would notice.
            Err(error) if keyboard && !error.is::<std::io::Error>() => cx.printer.error(&error),
            Err(error) => return Err(error),
        }
        if !keyboard && stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// One entry.
fn step(talk: &mut Talk, text: &str) -> anyhow::Result<ControlFlow<()>> {
    match entry::parse(text).map_err(Usage)? {
        Entry::Nothing => {}
        Entry::Say(text) => talk.ask(text)?,
        Entry::Do(entry::Command::Exit) => return Ok(ControlFlow::Break(())),
        Entry::Do(entry::Command::Help) => talk.tell(HELP),
        Entry::Do(command) => talk.command(command)?,
    }
    Ok(ControlFlow::Continue(()))
}
