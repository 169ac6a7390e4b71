//! `wudao generate`: continue a text.
//!
//! The completion alone goes to standard output, as it is written. With several prompts, or for a program, `--json` gives
//! one object a line.

use super::{Context, WeightArgs, told};
use crate::error::{Advice, Usage};
use crate::printer::{bytes, duration};
use crate::settings::{self, GenerateSettings, SettingsArgs};
use crate::signals;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wudao_device::{Cpu, DType};
use wudao_infer::constraint::Form;
use wudao_infer::{Checkpoint, Completion, Generation, Stop};
use wudao_model::weights::{Budget, read_config};
use wudao_model::{Config, KvCache, WeightOptions};

/// Arguments of `wudao generate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    wudao generate --model runs/quickstart --prompt '话说天下大势' --max-tokens 100\n  \
    wudao generate --model runs/quickstart --prompts-file prompts.txt --temperature 0 --json\n  \
    wudao generate --model runs/quickstart --prompt '{\"place\":' --regex '\"[^\"]{1,20}\"'")]
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
    /// Most tokens to write [default: 128].
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
    stop: Vec<String>,
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

/// A line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    completion: &'a str,
    tokens: &'a [u32],
    prompt_tokens: usize,
    stop: Stop,
    tokens_per_second: f64,
}

/// Continues the prompts.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let text = |value: &Option<f32>| value.map(|x| x.to_string());
    let own = [
        ("generate.max_tokens", "--max-tokens", args.max_tokens.map(|n| n.to_string())),
        ("generate.temperature", "--temperature", text(&args.temperature)),
        ("generate.top_k", "--top-k", args.top_k.map(|n| n.to_string())),
        ("generate.top_p", "--top-p", text(&args.top_p)),
        ("generate.min_p", "--min-p", text(&args.min_p)),
        ("generate.repetition_penalty", "--repetition-penalty", text(&args.repetition_penalty)),
        ("generate.seed", "--seed", args.seed.map(|n| n.to_string())),
    ];
    let mut how: GenerateSettings = settings::resolve(&args.settings, &own, &cx.environment)?.section("generate")?;
    if !args.stop.is_empty() {
        // Not through the words of a list: a stop string may hold a comma.
        how.stop = args.stop;
    }
    let mut how = Generation::from(how);
    let form = form(args.schema.as_deref(), args.regex, args.grammar.as_deref())?;
    how.sampling.check().map_err(|error| Usage(error.to_string()))?;
    let prompts = match (args.prompt, args.prompts_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            vec![text]
        }
        (Some(prompt), _) => vec![prompt],
        (None, Some(path)) => prompts(&path)?,
        (None, None) => unreachable!("the parser asks for one of the two"),
    };
    let weights = args.weights.options()?;
    // A token is at least a byte, but for the few that may be put before a text.
    let longest = prompts.iter().map(String::len).max().unwrap_or(0) + 8 + how.max_tokens;
    let beside = |config: &Config| {
        let tokens = longest.min(config.max_position_embeddings);
        Ok(KvCache::<Cpu>::bytes(config, tokens, weights.operands))
    };
    let checkpoint = open(cx, &args.model, &weights, args.weights.memory, beside)?;
    if let Some(form) = form {
        let constraint = checkpoint.constrain(&form);
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
        let completion = checkpoint
            .generate(prompt, &how, &mut emit)
            .with_context(|| format!("cannot continue prompt {} (\"{}\")", number + 1, beginning(prompt)))?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        report(cx, prompt, &completion, start.elapsed().as_secs_f64(), args.json)?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    checkpoint.weights.expert_reads().iter().for_each(|reads| cx.printer.status("Memory", told(reads)));
    Ok(())
}

/// The form that the texts must have; the parser lets one be named.
fn form(schema: Option<&Path>, regex: Option<String>, grammar: Option<&Path>) -> anyhow::Result<Option<Form>> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(match (schema, regex, grammar) {
        (Some(path), ..) => {
            let schema = serde_json::from_str(&read(path)?);
            Some(Form::Json(schema.with_context(|| format!("{} is no JSON", path.display()))?))
        }
        (None, Some(regex), _) => Some(Form::Regex(regex)),
        (None, None, Some(path)) => Some(Form::Lark(read(path)?)),
        (None, None, None) => None,
    })
}

fn report(cx: &Context, prompt: &str, completion: &Completion, seconds: f64, json: bool) -> anyhow::Result<()> {
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
    Ok(())
}

/// Opens a checkpoint folder, the newest checkpoint of a run, or a GGUF file, in so much memory, of which `beside` is for
/// keys and values.
pub fn open(
    cx: &Context,
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
    let checkpoint = Checkpoint::open_within(&cx.cpu_for(how.operands), &dir, how, budget.transpose()?)
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
