//! The engine as commands start it: a model, perhaps with a small one beside it that guesses.

use super::{Context, generate, train};
use crate::error::Advice;
use crate::printer::bytes;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use wudao_device::Cpu;
use wudao_infer::engine::{Counters, EngineOptions};
use wudao_infer::{Checkpoint, Engine};
use wudao_model::{Config, WeightOptions};

/// What is guessed, so that a step may write several tokens. The text stays the same.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct GuessArgs {
    /// Let this small model with the same tokenizer guess what the model will say: the same text in fewer steps.
    #[arg(long, value_name = "MODEL", help_heading = "Engine")]
    pub draft: Option<PathBuf>,
    /// Tokens to guess in a step: by the draft model, or from what the text has said before; 0 guesses none [default: 0, with
    /// --draft 4].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = "Engine")]
    pub guesses: usize,
}

impl GuessArgs {
    /// Whether anything is guessed.
    pub fn any(&self) -> bool {
        self.draft.is_some() || self.guesses > 0
    }

    /// Starts an engine, with `how` the weights of both models are kept.
    pub fn start(
        &self,
        cx: &Context,
        checkpoint: Checkpoint<Cpu>,
        how: &WeightOptions,
        options: EngineOptions,
    ) -> anyhow::Result<Engine> {
        let advice = advice(&options);
        let options = EngineOptions { guesses: self.guesses, ..options };
        let Some(path) = &self.draft else { return Engine::start(checkpoint, options).help(advice) };
        let dir = train::checkpoint_of(path)?;
        cx.printer.detail(format!("draft model {}", dir.display()));
        // On the same threads: one of the two waits for the other always.
        let draft = Checkpoint::open(&checkpoint.device, &dir, how)
            .help(format!("`wudao inspect {}` says what is there", path.display()))?;
        Engine::start_with_draft(checkpoint, draft, options)
            .with_context(|| format!("cannot guess with {}", path.display()))
            .help(advice)
    }
}

/// What to do if keys and values find no room.
fn advice(options: &EngineOptions) -> String {
    format!("--cache is {}; --context and --batch ask for less", bytes(options.cache_bytes as u64))
}

/// Opens a model, in so much memory, and starts an engine.
pub fn start(
    cx: &Context,
    path: &Path,
    guess: &GuessArgs,
    how: &WeightOptions,
    memory: Option<usize>,
    options: EngineOptions,
) -> anyhow::Result<Engine> {
    let beside = |config: &Config| options.bytes_for(config, how.operands).help(advice(&options));
    let checkpoint = generate::open(cx, path, how, memory, beside)?;
    guess.start(cx, checkpoint, how, options)
}

/// How guesses did, for people.
pub fn guessed(counters: &Counters) -> Option<String> {
    let share = 100.0 * counters.guessed_share()?;
    Some(format!("{} of {} guesses came true ({share:.0} %)", counters.guessed_right, counters.guessed))
}
