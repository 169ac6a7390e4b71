//! `wudao bench train`: how fast a model trains here, what memory it takes, and where the time goes.
//!
//! A step is what it is in a run: batches, forward, backward, gradient norm, update, on random tokens in rows that each
//! hold one document. There is no evaluation, no record and no checkpoint, so that the memory of the process is that of
//! training alone. Each step is timed by itself and the median counts: a program that gets in the way for a moment
//! spoils a step, not the figure.

use super::{Context, Measured, Shape, dtype_name, median, process_bytes};
use crate::error::Advice;
use crate::printer::{Unit, bytes, columns, short};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;
use wudao_comm::Solo;
use wudao_data::batch::{Layout, TrainStream};
use wudao_data::document::Lang;
use wudao_data::shard::{MemoryDocument, MemoryDocuments};
use wudao_device::cpu::meter::Reading;
use wudao_model::Config;
use wudao_model::counts::Counts;
use wudao_train::TrainSettings;
use wudao_train::optimizer::Rates;
use wudao_train::settings::{Moments, OptimizerKind, Recompute};
use wudao_train::step::Learner;

/// Arguments of `wudao bench train`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao bench train --config b --steps 10 --json\n  \
    wudao bench train --config a --seq 4096 --batch 1 --threads 2")]
pub struct Args {
    /// Measured steps.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before them that are not measured.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u64,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shape: Shape,
}

/// What `--json` prints. Megabytes are 10⁶ bytes.
#[derive(Serialize)]
struct Answer {
    config: Option<String>,
    dtype: &'static str,
    threads: usize,
    instructions: &'static str,
    batch: usize,
    seq: usize,
    optimizer: OptimizerKind,
    moments: Moments,
    recompute: Recompute,
    parameters: u64,
    active_parameters: u64,
    steps: usize,
    /// Of the median step, the slowest and the fastest.
    tokens_per_s: f64,
    tokens_per_s_min: f64,
    tokens_per_s_max: f64,
    /// Median.
    step_ms: f64,
    /// The model's work (see `wudao_model::counts`) by the median step.
    gflops: f64,
    /// Measured before and after: multiply-adds of `dtype` on registers.
    peak_gflops: f64,
    share_of_peak: f64,
    /// Most memory of the process, where the system tells.
    peak_rss_mb: Option<f64>,
    /// Most bytes of tensors that were alive at once.
    tensor_mb: f64,
    /// What was expected of `tensor_mb`.
    estimate_mb: f64,
    /// Loss of the first step and of the last: near the logarithm of the vocabulary.
    first_loss: f64,
    last_loss: f64,
    /// Seconds of a step by part, means over the measured steps; `other` is what no kernel took.
    seconds: BTreeMap<&'static str, f64>,
    /// The same by kernel.
    kernels: BTreeMap<&'static str, f64>,
}

/// What was seen of the steps.
struct Steps {
    /// Seconds of each measured one.
    seconds: Vec<f64>,
    losses: Vec<f64>,
    /// Time in kernels over the measured ones.
    kernels: Reading,
}

/// Measures and tells.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    let answer = answer(args, cx)?;
    if args.json { cx.printer.json_line(&answer) } else { answer.print(cx) }
}

fn answer(args: &Args, cx: &Context) -> anyhow::Result<Answer> {
    let own = [("train.steps", "--steps", Some((args.warmup + args.steps).to_string()))];
    let measured = args.shape.resolve(&own, cx)?;
    let Measured { config, settings, .. } = &measured;
    settings.check()?;
    settings.check_model(config, 1)?;
    let needed = measured.needed()?;
    if let Some(free) = super::super::train::available_memory().filter(|free| *free < needed) {
        let what = format!("it needs about {} of memory, and {} are free", bytes(needed), bytes(free));
        return Err(anyhow::anyhow!(what)).help("lower --batch or --seq, or set train.recompute=block");
    }

    let cpu = cx.cpu_to_train(settings);
    let before = cpu.peak_gflops(measured.operands());
    let steps = measure(args, &measured, &cpu, cx)?;
    let peak_rss_mb = process_bytes().map(|bytes| bytes as f64 / 1e6);
    let peak_gflops = before.max(cpu.peak_gflops(measured.operands()));

    let Steps { mut seconds, losses, kernels } = steps;
    let (step, n) = (median(&mut seconds), seconds.len() as f64);
    let tokens = settings.tokens_per_step() as f64;
    let counts = Counts::of(config);
    let gflops = tokens / step * counts.flops_training(settings.seq_len) / 1e9;
    let mut parts: BTreeMap<_, _> = kernels.parts().map(|(part, s)| (part.name(), s / n)).into();
    parts.insert("other", (seconds.iter().sum::<f64>() - kernels.total()) / n);
    Ok(Answer {
        dtype: dtype_name(measured.operands()),
        threads: cx.threads,
        instructions: cpu.instructions(),
        batch: settings.global_batch_size,
        seq: settings.seq_len,
        optimizer: settings.optimizer,
        moments: settings.moments,
        recompute: settings.recompute,
        parameters: counts.params.total(),
        active_parameters: counts.active.total(),
        steps: seconds.len(),
        tokens_per_s: tokens / step,
        tokens_per_s_min: tokens / seconds[seconds.len() - 1],
        tokens_per_s_max: tokens / seconds[0],
        step_ms: 1e3 * step,
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        peak_rss_mb,
        tensor_mb: cpu.peak_bytes() as f64 / 1e6,
        estimate_mb: needed as f64 / 1e6,
        first_loss: losses[0],
        last_loss: losses[losses.len() - 1],
        seconds: parts,
        kernels: kernels.kernels().map(|(name, _, s)| (name, s / n)).collect(),
        config: measured.name,
    })
}

/// Trains, and looks at the clock.
fn measure(args: &Args, measured: &Measured, cpu: &wudao_device::Cpu, cx: &Context) -> anyhow::Result<Steps> {
    let Measured { config, settings, .. } = measured;
    let layout = Layout {
        seq_len: settings.seq_len,
        rows: settings.micro_batch_size,
        end_of_text: config.end_of_text().unwrap_or(0),
        vocab_size: config.vocab_size as u32,
        rank: 0,
        size: 1,
    };
    let mut stream = TrainStream::new(random_documents(config, settings), layout, settings.seed)?;
    let accumulation = settings.accumulation(1)?;
    let mut learner = Learner::new(cpu, &Solo, config, settings, measured.operands())?;
    learner.model.fill(cpu, settings.seed, &mut learner.weights);
    let rates = Rates { lr: settings.lr, muon_lr: settings.muon_lr.unwrap_or(settings.lr) };

    let progress = cx.printer.progress("Training", Some(args.warmup + args.steps), Unit::Items);
    let (mut seconds, mut losses, mut start) = (vec![], vec![], cpu.meter().read());
    for number in 0..args.warmup + args.steps {
        if number == args.warmup {
            start = cpu.meter().read();
        }
        let begin = Instant::now();
        let batches = (0..accumulation).map(|_| stream.next_batch()).collect::<Result<Vec<_>, _>>()?;
        losses.push(learner.step(&batches, rates)?.loss);
        if number >= args.warmup {
            seconds.push(begin.elapsed().as_secs_f64());
        }
        progress.set(number + 1);
    }
    Ok(Steps { seconds, losses, kernels: cpu.meter().read().since(&start) })
}

impl Answer {
    fn print(&self, cx: &Context) -> anyhow::Result<()> {
        let tokens = (self.batch * self.seq) as f64;
        let speeds = format!("{:.0} ({:.0} to {:.0})", self.tokens_per_s, self.tokens_per_s_min, self.tokens_per_s_max);
        let share = 100.0 * self.share_of_peak;
        let rows = [
            (
                "parameters",
                format!("{} ({} active)", short(self.parameters as f64), short(self.active_parameters as f64)),
            ),
            ("tokens a step", format!("{tokens} ({} rows of {})", self.batch, self.seq)),
            ("time of a step", format!("{:.3} s (median of {})", self.step_ms / 1e3, self.steps)),
            ("tokens a second", speeds),
            ("arithmetic", format!("{:.1} GFLOP/s, {share:.0} % of the measured {:.0}", self.gflops, self.peak_gflops)),
            ("process at most", self.peak_rss_mb.map_or("unknown".into(), |mb| bytes((1e6 * mb) as u64))),
            ("tensors at most", bytes((1e6 * self.tensor_mb) as u64)),
        ];
        let rows = rows.map(|(name, value)| format!("{name:<16}  {value}\n"));
        cx.printer.answer(&(rows.concat() + "\n"))?;
        let whole: f64 = self.seconds.values().sum();
        let table = |times: &BTreeMap<&'static str, f64>| {
            let mut times: Vec<(&str, f64)> = times.iter().map(|(name, seconds)| (*name, *seconds)).collect();
            times.sort_by(|a, b| b.1.total_cmp(&a.1));
            let row = |(name, s): (&str, f64)| {
                vec![name.to_owned(), format!("{:.1}", 1e3 * s), format!("{:.1} %", 100.0 * s / whole)]
            };
            times.into_iter().map(row).collect::<Vec<_>>()
        };
        cx.printer.answer(&columns(&["part of a step", "ms", "share"], &table(&self.seconds)))?;
        cx.printer.answer("\n")?;
        Ok(cx.printer.answer(&columns(&["kernel", "ms", "share"], &table(&self.kernels)))?)
    }
}

/// Documents as long as a row, of ids drawn evenly.
fn random_documents(config: &Config, settings: &TrainSettings) -> MemoryDocuments {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // SplitMix64 (Steele et al. 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % config.vocab_size as u64) as u32
    };
    let document = |_| {
        let tokens: Vec<u32> = (1..settings.seq_len).map(|_| next()).collect();
        MemoryDocument { bytes: 4 * tokens.len() as u64, tokens, lang: Lang::En, source: 0 }
    };
    MemoryDocuments((0..4 * settings.global_batch_size).map(document).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{Color, Printer};

    /// The smallest preset, measured: the figures fit each other.
    #[test]
    fn the_parts_of_a_step_add_up_to_it() {
        let printer = Printer::new(true, false, Color::Never, true);
        let cx = Context { printer: &printer, threads: 2, pinned: false, environment: vec![] };
        let preset = Some("tiny".to_owned());
        let dtype = Some("bf16".to_owned());
        let shape = Shape { preset, dtype, batch: Some(2), seq: Some(32), ..Shape::default() };
        let found = answer(&Args { steps: 3, warmup: 1, json: true, shape }, &cx).unwrap();
        assert_eq!((found.steps, found.batch, found.seq, found.dtype), (3, 2, 32, "bf16"));
        assert!(found.tokens_per_s_min <= found.tokens_per_s && found.tokens_per_s <= found.tokens_per_s_max);
        let (whole, tokens) = (found.seconds.values().sum::<f64>(), 64.0);
        assert!(tokens / found.tokens_per_s_max <= whole && whole <= tokens / found.tokens_per_s_min, "{whole}");
        assert!(found.seconds["gemm"] > 0.0 && found.seconds["experts"] > 0.0 && found.seconds["other"] > 0.0);
        let kernels: f64 = found.kernels.values().sum();
        assert!(0.0 < kernels && kernels < whole, "{kernels} of {whole}");
        assert!(found.estimate_mb > 0.0 && found.tensor_mb > 0.0 && found.share_of_peak > 0.0);
        assert!(found.first_loss.is_finite() && found.last_loss.is_finite());
        assert!(!serde_json::to_string(&found).unwrap().contains('\n'));
    }
}
