//! `wudao bench infer`: how fast the serving engine reads and writes.
//!
//! What llama.cpp's `llama-bench` and server benchmarks call pp, tg and parallel: a prompt alone, a stream alone, several
//! clients at once with a prompt and an answer each; and what they do not ask: how long a stream stands still while another
//! client's long prompt is read. Everything goes through the engine that `wudao serve` runs, sampling included, at
//! temperature 0. Nothing is kept between requests.

use super::super::engine::{self, GuessArgs};
use super::super::{CacheDtype, memory, told};
use super::{Context, Shape, WeightArg, dtype_name, median, process_bytes, weights_name};
use crate::printer::{Unit, columns};
use anyhow::Context as _;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;
use wudao_data::tokenizer::{MIN_VOCAB_SIZE, Tokenizer, TrainOptions};
use wudao_device::{Cpu, DType};
use wudao_infer::engine::{EngineOptions, Event, Request};
use wudao_infer::{Checkpoint, Engine, Sampling};
use wudao_model::model::Options;
use wudao_model::weights::ExpertReads;
use wudao_model::{Config, Model, WeightOptions};

/// Arguments of `wudao bench infer`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao bench infer runs/mine --json\n  \
    wudao bench infer --config b --dtype bf16 --clients 1,4,16,64")]
pub struct Args {
    /// A checkpoint, or a run; without it, random weights of the settings' model.
    model: Option<PathBuf>,
    /// Tokens of the prompt that is read.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that one stream writes.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Clients at once, several cases; each has a prompt and an answer of 64 tokens.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 4, 16],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: Vec<u32>,
    /// Tokens of the prompt that keeps a stream waiting.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    long_prompt: u32,
    /// Memory for weights, keys and values, as of `wudao serve`; needs a checkpoint.
    #[arg(long, value_name = "SIZE", value_parser = memory, requires = "model")]
    memory: Option<usize>,
    /// Bits of keys and values in memory [default: those of --dtype].
    #[arg(long, value_enum)]
    cache_dtype: Option<CacheDtype>,
    #[command(flatten)]
    guess: GuessArgs,
    /// Measurements of each; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    weights: WeightArg,
}

/// Tokens of a prompt and of an answer where there are several clients.
const SHORT: u32 = 64;

/// What `--json` prints.
#[derive(Serialize, Debug)]
struct Answer {
    model: Option<String>,
    dtype: &'static str,
    /// How weights are kept, and what they take.
    weights: &'static str,
    weight_mb: f64,
    /// What was asked of experts that stay in their file, the first try not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<ExpertReads>,
    /// Most resident memory of the process, and the keys and values in it.
    peak_rss_mb: Option<f64>,
    cache_mb: f64,
    /// Of a token.
    cache_token_bytes: usize,
    threads: usize,
    prompt: u32,
    tokens: u32,
    /// A prompt alone, with its first token.
    prompt_tokens_per_s: f64,
    /// A stream alone, from its first token on.
    tokens_per_s: f64,
    /// Several clients.
    parallel: Vec<Parallel>,
    long_prompt: u32,
    /// Of all guesses, those that came true.
    #[serde(skip_serializing_if = "Option::is_none")]
    guessed_share: Option<f64>,
    /// Longest time between two tokens of a stream while a long prompt is read.
    longest_gap_ms: f64,
    /// Tokens a second of that prompt meanwhile.
    long_prompt_tokens_per_s: f64,
}

/// Clients at once.
#[derive(Serialize, Debug)]
struct Parallel {
    clients: u32,
    /// Answers of all, from the first request to the last token.
    tokens_per_s: f64,
    /// The same while all of them write.
    writing_tokens_per_s: f64,
    /// Until a client's first token: the median and the worst.
    first_token_ms: f64,
    first_token_ms_max: f64,
}

/// Measures and tells.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    let answer = answer(args, cx)?;
    if args.json { cx.printer.json_line(&answer) } else { answer.print(cx) }
}

/// When a request was made and when its tokens came.
struct Stream {
    start: Instant,
    times: mpsc::Receiver<anyhow::Result<Instant>>,
}

impl Stream {
    fn new(engine: &Engine, prompt: u32, seed: u32, max_tokens: u32) -> anyhow::Result<Stream> {
        let vocab = engine.config().vocab_size as u32;
        let prompt = (0..prompt).map(|i| (i.wrapping_mul(7919).wrapping_add(seed * 104_729)) % vocab).collect();
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let request =
            Request { prompt, max_tokens: max_tokens as usize, sampling, ignore_eos: true, ..Request::default() };
        let (tell, times) = mpsc::channel();
        let start = Instant::now();
        let sink = move |event| match event {
            Event::Token { .. } => tell.send(Ok(Instant::now())).is_ok(),
            Event::Failed(why) => tell.send(Err(anyhow::anyhow!(why))).is_ok(),
            Event::Prompt(_) | Event::Done { .. } => true,
        };
        engine.submit(request, Box::new(sink))?.detach();
        Ok(Stream { start, times })
    }

    fn next(&self) -> anyhow::Result<Instant> {
        self.times.recv().context("the engine has stopped")?
    }

    /// Seconds from the request to every token.
    fn rest(self) -> anyhow::Result<Vec<f64>> {
        self.times.into_iter().map(|time| Ok((time? - self.start).as_secs_f64())).collect()
    }
}

/// What is measured: its name, how its weights are kept, the model, and perhaps one that guesses.
type Subject = (Option<String>, WeightOptions, Checkpoint<Cpu>, Option<Checkpoint<Cpu>>);

fn subject(args: &Args, options: &EngineOptions, cx: &Context) -> anyhow::Result<Subject> {
    if let Some(path) = &args.model {
        let how = args.weights.options(&args.shape, None)?;
        let device = cx.cpu_for(how.operands);
        let draft = args.guess.open(cx, &device, &how)?;
        let beside = |config: &Config| engine::beside(config, draft.as_ref(), &how, options);
        let checkpoint = super::super::generate::open(cx, &device, path, &how, args.memory, beside)?;
        return Ok((Some(path.display().to_string()), how, checkpoint, draft));
    }
    let mut measured = args.shape.resolve(&[], cx)?;
    let longest = [args.prompt + 1, args.tokens + 1, 2 * SHORT, args.long_prompt + 1, 4 * args.tokens];
    let longest = longest.into_iter().fold(0, u32::max) as usize;
    measured.config.max_position_embeddings = measured.config.max_position_embeddings.max(longest);
    let how = args.weights.options(&args.shape, Some(measured.operands()))?;
    let (config, dtype) = (measured.config.clone(), how.operands);
    let device = cx.cpu_for(dtype);
    let model = Model::new(&device, &config, config.max_position_embeddings, Options { dtype, ..Options::default() })?;
    let weights = model.init_packed(&device, measured.settings.seed, &how);
    // Its texts are of no interest.
    let tokenizer = Tokenizer::train(["text"], &TrainOptions::new(MIN_VOCAB_SIZE))?;
    let draft = args.guess.open(cx, &device, &how)?;
    Ok((measured.name, how, Checkpoint { device, config, model, weights, tokenizer }, draft))
}

fn answer(args: &Args, cx: &Context) -> anyhow::Result<Answer> {
    let most = args.clients.iter().copied().fold(2, u32::max) as usize;
    let cache_dtype = args.cache_dtype.map(DType::from);
    let options =
        EngineOptions { batch: most, queue: most, cache_dtype, prefix_cache: false, ..EngineOptions::default() };
    let (model, how, checkpoint, draft) = subject(args, &options, cx)?;
    let (dtype, weight_bytes) = (checkpoint.model.dtype(), checkpoint.weights.bytes());
    let in_file = checkpoint.weights.expert_reads().is_some();
    let engine = args.guess.start(checkpoint, draft, options)?;
    let cache_token_bytes = engine.status().cache_token_bytes;
    let mut warm = ExpertReads::default();
    let progress = cx.printer.progress("Measuring", Some(u64::from(args.tries)), Unit::Items);
    let (mut prompt, mut stream, mut gap, mut long) = (vec![], vec![], vec![], vec![]);
    let mut parallel: Vec<[Vec<f64>; 4]> = args.clients.iter().map(|_| Default::default()).collect();
    // The first try warms up and does not count.
    for attempt in 0..=args.tries {
        let keep = attempt > 0;
        let read = Stream::new(&engine, args.prompt, 0, 1)?.rest()?;
        let written = Stream::new(&engine, 1, 1, args.tokens)?.rest()?;
        if keep {
            prompt.push(f64::from(args.prompt) / read[0]);
            stream.push((written.len() - 1) as f64 / (written[written.len() - 1] - written[0]));
        }
        for (&clients, figures) in args.clients.iter().zip(&mut parallel) {
            let start = Instant::now();
            let streams: Vec<Stream> =
                (0..clients).map(|c| Stream::new(&engine, SHORT, 2 + c, SHORT)).collect::<Result<_, _>>()?;
            let times: Vec<Vec<f64>> = streams.into_iter().map(Stream::rest).collect::<Result<_, _>>()?;
            let seconds = start.elapsed().as_secs_f64();
            let mut first: Vec<f64> = times.iter().map(|t| 1e3 * t[0]).collect();
            if keep {
                figures[0].push(times.iter().map(Vec::len).sum::<usize>() as f64 / seconds);
                figures[1].push(median(&mut first));
                figures[2].push(first[first.len() - 1]);
                figures[3].push(writing(&times));
            }
        }
        let (seconds, worst) = interrupted(&engine, args)?;
        if keep {
            gap.push(1e3 * worst);
            long.push(f64::from(args.long_prompt) / seconds);
        } else {
            warm = engine.status().experts;
        }
        progress.set(u64::from(attempt));
    }
    let parallel = args.clients.iter().zip(&mut parallel).map(|(&clients, [rate, first, worst, writing])| Parallel {
        clients,
        tokens_per_s: median(rate),
        writing_tokens_per_s: median(writing),
        first_token_ms: median(first),
        first_token_ms_max: median(worst),
    });
    let experts = engine.status().experts;
    let since = ExpertReads {
        wanted: experts.wanted - warm.wanted,
        found: experts.found - warm.found,
        bytes: experts.bytes - warm.bytes,
        seconds: experts.seconds - warm.seconds,
        ..experts
    };
    Ok(Answer {
        model,
        experts: in_file.then_some(since),
        dtype: dtype_name(dtype),
        weights: weights_name(&how),
        weight_mb: weight_bytes as f64 / 1e6,
        peak_rss_mb: process_bytes().map(|bytes| bytes as f64 / 1e6),
        cache_token_bytes,
        cache_mb: (engine.status().cache_peak * cache_token_bytes) as f64 / 1e6,
        threads: cx.threads,
        prompt: args.prompt,
        tokens: args.tokens,
        prompt_tokens_per_s: median(&mut prompt),
        tokens_per_s: median(&mut stream),
        parallel: parallel.collect(),
        long_prompt: args.long_prompt,
        guessed_share: engine.status().counters.guessed_share(),
        longest_gap_ms: median(&mut gap),
        long_prompt_tokens_per_s: median(&mut long),
    })
}

/// Tokens a second of all clients from when the last one begins to write until the first one ends; `times` are seconds from
/// each one's request, which were made together.
fn writing(times: &[Vec<f64>]) -> f64 {
    let begin = times.iter().filter_map(|t| t.first().copied()).fold(0.0, f64::max);
    let end = times.iter().filter_map(|t| t.last().copied()).fold(f64::INFINITY, f64::min);
    let tokens = times.iter().flatten().filter(|&&t| t > begin && t <= end).count();
    if end > begin { tokens as f64 / (end - begin) } else { 0.0 }
}

/// A stream writes, and after some tokens a long prompt comes: seconds until that is read, and the stream's longest gap
/// meanwhile.
fn interrupted(engine: &Engine, args: &Args) -> anyhow::Result<(f64, f64)> {
    let stream = Stream::new(engine, 1, 98, engine.context() as u32 - 1)?;
    let mut last = stream.next()?;
    for _ in 0..8 {
        last = stream.next()?;
    }
    let prompt = args.long_prompt.min(engine.context() as u32 - 1);
    let other = Stream::new(engine, prompt, 99, 1)?;
    let (start, first) = (other.start, other.next()?);
    let mut worst = 0.0f64;
    while last < first {
        let next = stream.next()?;
        worst = worst.max((next - last).as_secs_f64());
        last = next;
    }
    Ok(((first - start).as_secs_f64(), worst))
}

impl Answer {
    fn print(&self, cx: &Context) -> anyhow::Result<()> {
        let mut rows = vec![
            (format!("read {} tokens", self.prompt), format!("{:.1}", self.prompt_tokens_per_s), String::new()),
            (format!("write {} tokens", self.tokens), format!("{:.1}", self.tokens_per_s), String::new()),
        ];
        for p in &self.parallel {
            let first =
                format!("first token after {:.0} ms, at worst {:.0} ms", p.first_token_ms, p.first_token_ms_max);
            rows.push((format!("{} clients write", p.clients), format!("{:.1}", p.tokens_per_s), first));
        }
        let gap = format!("another stream waits {:.0} ms at most", self.longest_gap_ms);
        let rate = format!("{:.1}", self.long_prompt_tokens_per_s);
        rows.push((format!("read {} tokens beside", self.long_prompt), rate, gap));
        let rows: Vec<Vec<String>> = rows.into_iter().map(|(what, rate, more)| vec![what, rate, more]).collect();
        cx.printer.answer(&columns(&["engine", "tokens/s", ""], &rows))?;
        let rss = self.peak_rss_mb.map_or("unknown".into(), |mb| format!("{mb:.0} MB"));
        let (weights, cache) = (self.weight_mb, self.cache_mb);
        if let Some(share) = self.guessed_share {
            cx.printer.answer(&format!("\n{:.0} % of guesses came true", 100.0 * share))?;
        }
        let memory = format!(
            "\nweights in {} {weights:.0} MB, keys and values {cache:.0} MB ({} bytes a token), process {rss}\n",
            self.weights, self.cache_token_bytes
        );
        cx.printer.answer(&memory)?;
        self.experts.iter().try_for_each(|reads| cx.printer.answer(&format!("{}\n", told(reads))))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{Color, Printer};

    #[test]
    fn the_smallest_preset_is_served_and_timed() {
        let printer = Printer::new(true, false, Color::Never, true);
        let cx = Context { printer: &printer, threads: 2, pinned: false, environment: vec![] };
        let shape = Shape { preset: Some("tiny".to_owned()), ..Shape::default() };
        let (model, clients) = (None, vec![1, 3]);
        let args = Args {
            model,
            prompt: 20,
            tokens: 9,
            clients,
            long_prompt: 300,
            memory: None,
            cache_dtype: Some(CacheDtype::Int8),
            guess: GuessArgs { guesses: 2, ..GuessArgs::default() },
            tries: 1,
            json: true,
            shape,
            weights: WeightArg::default(),
        };
        let found = answer(&args, &cx).unwrap();
        assert!([found.prompt_tokens_per_s, found.tokens_per_s, found.longest_gap_ms].iter().all(|x| *x > 0.0));
        assert_eq!(found.parallel.iter().map(|p| p.clients).collect::<Vec<_>>(), [1, 3]);
        assert!(found.parallel.iter().all(|p| p.tokens_per_s > 0.0 && p.first_token_ms <= p.first_token_ms_max));
    }
}
