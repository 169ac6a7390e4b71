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

    /// Opens the model that guesses, if one is named. `device` must be that of the other model: one of the two waits always.
    pub fn open(&self, cx: &Context, device: &Cpu, how: &WeightOptions) -> anyhow::Result<Option<Checkpoint<Cpu>>> {
        let Some(path) = &self.draft else { return Ok(None) };
        let dir = train::checkpoint_of(path)?;
        cx.printer.detail(format!("draft model {}", dir.display()));
        let help = || format!("`wudao inspect {}` says what is there", path.display());
        Checkpoint::open(device, &dir, how).help(help()).map(Some)
    }

    /// Starts an engine.
    pub fn start(
        &self,
        checkpoint: Checkpoint<Cpu>,
        draft: Option<Checkpoint<Cpu>>,
        options: EngineOptions,
    ) -> anyhow::Result<Engine> {
        let advice = advice(&options);
        let options = EngineOptions { guesses: self.guesses, ..options };
        let Some((path, draft)) = self.draft.as_ref().zip(draft) else {
            return Engine::start(checkpoint, options).help(advice);
        };
        Engine::start_with_draft(checkpoint, draft, options)
            .with_context(|| format!("cannot guess with {}", path.display()))
            .help(advice)
    }
}

/// Bytes beside the weights of a model: keys and values, and all of the model that guesses for it.
pub fn beside(
    config: &Config,
    draft: Option<&Checkpoint<Cpu>>,
    how: &WeightOptions,
    options: &EngineOptions,
) -> anyhow::Result<usize> {
    let mut models = vec![(config, how.operands)];
    models.extend(draft.map(|draft| (&draft.config, how.operands)));
    let cache = options.bytes_for(&models).help(advice(options))?;
    Ok(cache.saturating_add(draft.map_or(0, |draft| draft.weights.bytes())))
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
    let device = cx.cpu_for(how.operands);
    let draft = guess.open(cx, &device, how)?;
    let beside = |config: &Config| beside(config, draft.as_ref(), how, &options);
    let checkpoint = generate::open(cx, &device, path, how, memory, beside)?;
    guess.start(checkpoint, draft, options)
}

/// How guesses did, for people.
pub fn guessed(counters: &Counters) -> Option<String> {
    let share = 100.0 * counters.guessed_share()?;
    Some(format!("{} of {} guesses came true ({share:.0} %)", counters.guessed_right, counters.guessed))
}
