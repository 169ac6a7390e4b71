//! `wudao generate`: continue a text.
//!
//! The completion alone goes to standard output, as it is written. With several prompts, or for a program, `--json` gives
//! one object a line.

use super::engine::{self, GuessArgs};
use super::{Context, WeightArgs, told};
use crate::error::{Advice, Usage};
use crate::printer::{bytes, duration};
use crate::settings::{self, GenerateSettings, Resolved, SettingsArgs, SettingsError};
use crate::signals;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wudao_device::{Cpu, DType};
use wudao_infer::constraint::{Constraint, ConstraintError, Form};
use wudao_infer::engine::{Counters, EngineOptions, Request};
use wudao_infer::{Checkpoint, Completion, Engine, Generation, Stop};
use wudao_model::weights::{Budget, ExpertReads, read_config};
use wudao_model::{Config, KvCache, WeightOptions};

/// Arguments of `wudao generate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    wudao generate --model runs/quickstart --prompt '话说天下大势' --max-tokens 100\n  \
    wudao generate --model runs/quickstart --prompts-file prompts.txt --temperature 0 --json\n  \
    wudao generate --model runs/quickstart --prompt '{\"place\":' --regex '\"[^\"]{1,20}\"'\n  \
    wudao generate --model large.gguf --draft small.gguf --prompt 'Once upon a time'")]
#[command(group(clap::ArgGroup::new("source").required(true).args(["prompt", "prompts_file"])))]
pub struct Args {
    /// A checkpoint, a run folder (its newest checkpoint), or a GGUF file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    weights: WeightArgs,
    /// The text to continue; `-` reads it from standard input.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Several texts to continue: one a line, or in a .jsonl file one {"prompt": …} a line.
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    guess: GuessArgs,
    /// Write JSON that fits the JSON Schema in this file.
    #[arg(long, value_name = "FILE", group = "form")]
    schema: Option<PathBuf>,
    /// Write what this regular expression matches as a whole.
    #[arg(long, value_name = "EXPRESSION", group = "form", allow_hyphen_values = true)]
    regex: Option<String>,
    /// Write what the grammar in this file accepts, in llguidance's kind of Lark.
    #[arg(long, value_name = "FILE", group = "form")]
    grammar: Option<PathBuf>,
    /// One JSON object a line: prompt, completion, tokens, why it ended.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// How tokens are drawn: a flag for each setting of `[generate]`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct SamplingArgs {
    /// Most tokens to write [default: 128; `chat`: what the context holds].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Divide the logits by this; 0 always takes the likeliest token [default: 0.8].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K likeliest tokens; 0 is all [default: 0].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens whose probabilities sum to P; 1 is all [default: 0.95].
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens at least P times as likely as the likeliest; 0 is all [default: 0].
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Discount tokens already in the text by this factor; 1 is off [default: 1].
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Seed of the draws: the same seed gives the same text [default: 0].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End where this string begins; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// All settings, with these flags over the other levels.
    pub fn resolve(&self, settings: &SettingsArgs, cx: &Context) -> Result<Resolved, SettingsError> {
        let text = |value: &Option<f32>| value.map(|x| x.to_string());
        let own = [
            ("generate.max_tokens", "--max-tokens", self.max_tokens.map(|n| n.to_string())),
            ("generate.temperature", "--temperature", text(&self.temperature)),
            ("generate.top_k", "--top-k", self.top_k.map(|n| n.to_string())),
            ("generate.top_p", "--top-p", text(&self.top_p)),
            ("generate.min_p", "--min-p", text(&self.min_p)),
            ("generate.repetition_penalty", "--repetition-penalty", text(&self.repetition_penalty)),
            ("generate.seed", "--seed", self.seed.map(|n| n.to_string())),
        ];
        settings::resolve(settings, &own, &cx.environment)
    }

    /// What they come to, checked.
    pub fn generation(&self, resolved: &Resolved) -> anyhow::Result<Generation> {
        let mut how: GenerateSettings = resolved.section("generate")?;
        if !self.stop.is_empty() {
            // Not through the words of a list: a stop string may hold a comma.
            how.stop.clone_from(&self.stop);
        }
        let how = Generation::from(how);
        how.sampling.check().map_err(|error| Usage(error.to_string()))?;
        Ok(how)
    }
}

/// A line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    completion: &'a str,
    tokens: &'a [u32],
    prompt_tokens: usize,
    stop: Stop,
    tokens_per_second: f64,
    /// Of all guesses so far, those that came true.
    #[serde(skip_serializing_if = "Option::is_none")]
    guessed_share: Option<f64>,
}

/// What writes: a model alone, or an engine, which can guess.
enum Writer {
    Alone(Box<Checkpoint<Cpu>>),
    Engine(Engine),
}

impl Writer {
    /// For texts of `longest` tokens at most.
    fn open(args: &Args, longest: usize, cx: &Context) -> anyhow::Result<Writer> {
        let weights = args.weights.options()?;
        if !args.guess.any() {
            let beside = |config: &Config| {
                let tokens = longest.min(config.max_position_embeddings);
                Ok(KvCache::<Cpu>::bytes(config, tokens, weights.operands))
            };
            let device = cx.cpu_for(weights.operands);
            let checkpoint = open(cx, &device, &args.model, &weights, args.weights.memory, beside)?;
            return Ok(Writer::Alone(Box::new(checkpoint)));
        }
        let options = EngineOptions { batch: 1, ..EngineOptions::default() };
        engine::start(cx, &args.model, &args.guess, &weights, args.weights.memory, options).map(Writer::Engine)
    }

    fn constrain(&self, form: &Form) -> Result<Constraint, ConstraintError> {
        match self {
            Writer::Alone(checkpoint) => checkpoint.constrain(form),
            Writer::Engine(engine) => engine.constrain(form),
        }
    }

    fn write(&self, prompt: &str, how: &Generation, emit: &mut dyn FnMut(&str) -> bool) -> anyhow::Result<Completion> {
        match self {
            Writer::Alone(checkpoint) => Ok(checkpoint.generate(prompt, how, emit)?),
            Writer::Engine(engine) => {
                let Generation { max_tokens, sampling, stop, constraint } = how.clone();
                let prompt = engine.prompt_ids(prompt)?;
                let request = Request { prompt, max_tokens, sampling, stop, constraint, ..Request::default() };
                Ok(engine.complete(request, emit)?.completion)
            }
        }
    }

    /// What was asked of experts that stay in their file.
    fn reads(&self) -> Option<ExpertReads> {
        match self {
            Writer::Alone(checkpoint) => checkpoint.weights.expert_reads(),
            Writer::Engine(engine) => Some(engine.status().experts).filter(|reads| reads.wanted > 0),
        }
    }

    fn counters(&self) -> Counters {
        match self {
            Writer::Alone(_) => Counters::default(),
            Writer::Engine(engine) => engine.status().counters,
        }
    }
}

/// Continues the prompts.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let mut how = args.sampling.generation(&args.sampling.resolve(&args.settings, cx)?)?;
    let form = form(&args)?;
    let prompts = match (&args.prompt, &args.prompts_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            vec![text]
        }
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(path)) => prompts(path)?,
        (None, None) => unreachable!("the parser asks for one of the two"),
    };
    // A token is at least a byte, but for the few that may be put before a text.
    let longest = prompts.iter().map(String::len).max().unwrap_or(0) + 8 + how.max_tokens;
    let writer = Writer::open(&args, longest, cx)?;
    if let Some(form) = form {
        let constraint = writer.constrain(&form);
        how.constraint = Some(constraint.map_err(|error| Usage(format!("the text cannot have this form: {error}")))?);
    }
    let stop = signals::stop_flag()?;
    for (number, prompt) in prompts.iter().enumerate() {
        if prompts.len() > 1 && !args.json {
            cx.printer.status("Prompt", format!("{} of {}: {prompt}", number + 1, prompts.len()));
        }
        let start = Instant::now();
        let mut broken = None;
        let mut emit = |piece: &str| {
            if !args.json && broken.is_none() {
                broken = cx.printer.answer(piece).err();
            }
            broken.is_none() && !stop.load(Ordering::Relaxed)
        };
        let completion = writer
            .write(prompt, &how, &mut emit)
            .with_context(|| format!("cannot continue prompt {} (\"{}\")", number + 1, beginning(prompt)))?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        report(cx, prompt, &completion, start.elapsed().as_secs_f64(), &writer.counters(), args.json)?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    writer.reads().iter().for_each(|reads| cx.printer.status("Memory", told(reads)));
    Ok(())
}

/// The form that the texts must have; the parser lets one be named.
fn form(args: &Args) -> anyhow::Result<Option<Form>> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(match (&args.schema, &args.regex, &args.grammar) {
        (Some(path), ..) => {
            let schema = serde_json::from_str(&read(path)?);
            Some(Form::Json(schema.with_context(|| format!("{} is no JSON", path.display()))?))
        }
        (None, Some(regex), _) => Some(Form::Regex(regex.clone())),
        (None, None, Some(path)) => Some(Form::Lark(read(path)?)),
        (None, None, None) => None,
    })
}

fn report(
    cx: &Context,
    prompt: &str,
    completion: &Completion,
    seconds: f64,
    counters: &Counters,
    json: bool,
) -> anyhow::Result<()> {
    let Completion { text, tokens, prompt_tokens, stop } = completion;
    let tokens_per_second = tokens.len() as f64 / seconds.max(1e-9);
    if json {
        let (prompt_tokens, stop) = (*prompt_tokens, *stop);
        return cx.printer.json_line(&Answer {
            prompt,
            completion: text,
            tokens,
            prompt_tokens,
            stop,
            tokens_per_second,
            guessed_share: counters.guessed_share(),
        });
    }
    if !text.ends_with('\n') {
        cx.printer.answer("\n")?;
    }
    cx.printer.detail(format!(
        "{} tokens in {} ({tokens_per_second:.1} tokens/s) after {prompt_tokens}; ended by {stop:?}",
        tokens.len(),
        duration(seconds),
    ));
    engine::guessed(counters).into_iter().for_each(|text| cx.printer.detail(text));
    Ok(())
}

/// Opens a checkpoint folder, the newest checkpoint of a run, or a GGUF file, in so much memory, of which `beside` is for
/// keys and values, and for whatever else lies beside the weights.
pub fn open(
    cx: &Context,
    device: &Cpu,
    path: &Path,
    how: &WeightOptions,
    memory: Option<usize>,
    beside: impl FnOnce(&Config) -> anyhow::Result<usize>,
) -> anyhow::Result<Checkpoint<Cpu>> {
    let dir = super::train::checkpoint_of(path)?;
    if dir != path {
        cx.printer.detail(format!("checkpoint {}", dir.display()));
    }
    let budget = memory.map(|all| {
        let config = read_config(&dir)?;
        let positions = config.max_position_embeddings * config.rotary_dim() * DType::F32.size();
        anyhow::Ok(Budget { bytes: all, beside: positions.saturating_add(beside(&config)?) })
    });
    let checkpoint = Checkpoint::open_within(device, &dir, how, budget.transpose()?)
        .help(format!("`wudao inspect {}` says what is there", path.display()))?;
    if let Some(reads) = checkpoint.weights.expert_reads() {
        let room = bytes(reads.room as u64);
        cx.printer.status("Memory", format!("room for {room} of experts; the others stay in their file"));
    }
    Ok(checkpoint)
}

/// The prompts of a file.
fn prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        prompt: String,
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read prompts from {}", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let jsonl = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        prompts.push(match jsonl {
            true => {
                serde_json::from_str::<Line>(line)
                    .with_context(|| format!("{}:{}: not an object with \"prompt\"", path.display(), number + 1))?
                    .prompt
            }
            false => line.to_owned(),
        });
    }
    if prompts.is_empty() {
        anyhow::bail!("{} holds no prompts: write one a line", path.display());
    }
    Ok(prompts)
}

/// The first characters of a text, for a message.
pub fn beginning(text: &str) -> String {
    let mut short: String = text.chars().take(20).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_one_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            prompts(&path)
        };
        assert_eq!(
            file("a.txt", "\u{feff}话说天下\r\n\nIn the beginning\n").unwrap(),
            ["话说天下", "In the beginning"]
        );
        assert_eq!(file("b.jsonl", "{\"prompt\": \"a\\nb\"}\n").unwrap(), ["a\nb"]);
        let error = file("c.jsonl", "{\"prompt\": \"a\"}\n{\"text\": 1}\n").unwrap_err();
        assert!(error.to_string().contains("c.jsonl:2"), "{error}");
        assert!(file("d.txt", "\n \n").is_err());
    }
}
