//! `wudao bench`: what this machine can do, and how fast it trains.
//!
//! Medians, and ratios within one run: a shared machine makes single absolute times worthless.

use super::Context;
use crate::printer::{Unit, bytes, columns, short};
use crate::settings::{self, Origin, SettingsArgs};
use anyhow::Context as _;
use serde::Serialize;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use wudao_comm::Solo;
use wudao_data::document::Lang;
use wudao_data::shard::{MemoryDocument, MemoryDocuments};
use wudao_data::tokenizer::{Tokenizer, TrainOptions};
use wudao_device::bench::{self, Shape};
use wudao_device::{Cpu, DType, Device, Gemm, Tensor};
use wudao_model::Config;
use wudao_model::counts::Counts;
use wudao_train::{Data, Event, Init, Job, Observer, TrainSettings};

/// What to measure.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Peak arithmetic, memory speed, and every kernel.
    Kernels(KernelArgs),
    /// Tokens a second of a training run on random tokens.
    Train(TrainArgs),
}

/// Arguments of `wudao bench kernels`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao bench kernels --threads 2 --json")]
pub struct KernelArgs {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `wudao bench train`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao bench train --preset bench-b --steps 10 --json")]
pub struct TrainArgs {
    /// Measured steps, after two that are not measured.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Measures.
pub fn run(command: Command, cx: &Context) -> anyhow::Result<()> {
    match command {
        Command::Kernels(args) => kernels(&args, cx),
        Command::Train(args) => train(&args, cx),
    }
}

#[derive(Serialize)]
struct Kernels {
    threads: usize,
    peak_gflops: f64,
    read_gbytes_per_second: f64,
    gemm: Vec<Product>,
    kernels: Vec<Kernel>,
}

#[derive(Serialize)]
struct Product {
    shape: [usize; 3],
    gflops: f64,
    share_of_peak: f64,
}

#[derive(Serialize)]
struct Kernel {
    name: &'static str,
    milliseconds: f64,
    gbytes_per_second: f64,
    gflops: Option<f64>,
}

/// Shapes of products in a training step, rows × columns × depth.
const PRODUCTS: [[usize; 3]; 4] = [[4096, 1536, 512], [512, 768, 512], [64, 768, 512], [4096, 8192, 512]];
/// Tries of each product.
const TRIES: usize = 7;

fn kernels(args: &KernelArgs, cx: &Context) -> anyhow::Result<()> {
    let cpu = cx.cpu();
    let peak_gflops = cpu.peak_gflops();
    let read_gbytes_per_second = cpu.read_gbytes_per_s();
    let gemm = PRODUCTS.map(|shape| {
        let gflops = product(&cpu, shape);
        Product { shape, gflops, share_of_peak: gflops / peak_gflops }
    });
    let kernels = bench::kernels(&cpu, Shape::default()).into_iter().map(|time| Kernel {
        name: time.kernel,
        milliseconds: 1e3 * time.seconds,
        gbytes_per_second: time.gbytes_per_s(),
        gflops: (time.flops > 0.0).then(|| time.gflops()),
    });
    let (gemm, kernels) = (gemm.into(), kernels.collect());
    let found = Kernels { threads: cx.threads, peak_gflops, read_gbytes_per_second, gemm, kernels };
    if args.json {
        return cx.printer.json(&found);
    }
    cx.printer.heading(format!("{} threads", found.threads))?;
    cx.printer
        .line(format!("{peak_gflops:.0} GFLOP/s in f32 at best, {read_gbytes_per_second:.1} GB/s from memory\n"))?;
    let rows = found.gemm.iter().map(|p| {
        let [m, n, k] = p.shape;
        vec![format!("{m} × {n} × {k}"), format!("{:.0}", p.gflops), format!("{:.0} %", 100.0 * p.share_of_peak)]
    });
    cx.printer.answer(&columns(&["product", "GFLOP/s", "of peak"], &rows.collect::<Vec<_>>()))?;
    let rows = found.kernels.iter().map(|k| {
        let gflops = k.gflops.map_or(String::new(), |x| format!("{x:.1}"));
        vec![k.name.to_owned(), format!("{:.3}", k.milliseconds), format!("{:.1}", k.gbytes_per_second), gflops]
    });
    cx.printer.answer("\n")?;
    Ok(cx.printer.answer(&columns(&["kernel", "ms", "GB/s", "GFLOP/s"], &rows.collect::<Vec<_>>()))?)
}

/// GFLOP/s of `C = A·Bᵀ`.
fn product(cpu: &Cpu, [m, n, k]: [usize; 3]) -> f64 {
    let new = |shape| Tensor::zeros(cpu, shape, DType::F32);
    let (a, b, mut c) = (new([m, k]), new([n, k]), new([m, n]));
    let repeats = (1 << 31) / (2 * m * n * k) + 1;
    let mut times: Vec<f64> = (0..TRIES)
        .map(|_| {
            let start = Instant::now();
            (0..repeats).for_each(|_| cpu.gemm(Gemm::NT, a.view(), b.view(), c.view_mut()));
            start.elapsed().as_secs_f64() / repeats as f64
        })
        .collect();
    2.0 * (m * n * k) as f64 / median(&mut times) / 1e9
}

#[derive(Serialize)]
struct Training {
    preset: Option<String>,
    threads: usize,
    parameters: u64,
    active_parameters: u64,
    tokens_per_step: u64,
    steps: usize,
    /// Median over the steps.
    tokens_per_second: f64,
    gflops: f64,
    peak_gflops: f64,
    share_of_peak: f64,
    /// Most bytes of tensors alive at once.
    tensor_bytes: u64,
    /// Most memory of the process, where the system tells.
    process_bytes: Option<u64>,
    last_loss: f64,
}

fn train(args: &TrainArgs, cx: &Context) -> anyhow::Result<()> {
    let steps = args.steps + 2;
    let own = [("train.steps", "--steps", Some(steps.to_string()))];
    let mut resolved = settings::resolve(&args.settings, &own, &cx.environment)?;
    let vocabulary = resolved.layers.get("tokenizer.vocab_size").and_then(toml::Value::as_integer).unwrap_or(32_000);
    let facts = format!("[model]\nvocab_size = {vocabulary}\neos_token_id = [0]\n");
    resolved.layers.fill(&facts.parse().expect("it is TOML"), &Origin::Data)?;
    let config: Config = resolved.section("model")?;
    config.check()?;
    let settings: TrainSettings = resolved.section("train")?;
    let settings = TrainSettings { eval_every: 0, checkpoint_every: 0, ..settings };
    settings.check()?;

    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    // A run needs a tokenizer of the model's size; what it has learned does not matter here.
    let tokenizer = Tokenizer::train(["".to_owned()], &TrainOptions::new(config.vocab_size))?;
    let documents = random_documents(&config, &settings);
    let device = cx.cpu();
    let peak_gflops = device.peak_gflops();
    let job = Job {
        device: &device,
        comm: &Solo,
        config: &config,
        settings: &settings,
        data: Data {
            train: &documents,
            validation: &MemoryDocuments(vec![]),
            stamp: tokenizer.stamp()?,
            sources: vec!["random".to_owned()],
            fingerprint: None,
        },
        tokenizer: &tokenizer,
        out: &folder.path().join("run"),
        init: Init::Fresh,
        available_memory: None,
        peak_flops: Some(peak_gflops * 1e9),
        machine: vec![],
    };
    let progress = cx.printer.progress("Training", Some(steps), Unit::Items);
    let mut watch = Watch { seconds: vec![], loss: f64::NAN, set: &|done| progress.set(done) };
    wudao_train::run(&job, &mut watch, &AtomicBool::new(false))?;
    let Watch { seconds, loss, .. } = watch;
    drop(progress);

    let counts = Counts::of(&config);
    let tokens_per_step = settings.tokens_per_step();
    let mut seconds = seconds[2.min(seconds.len())..].to_vec();
    let tokens_per_second = tokens_per_step as f64 / median(&mut seconds);
    let gflops = tokens_per_second * counts.flops_training(settings.seq_len) / 1e9;
    let found = Training {
        preset: args.settings.preset.clone(),
        threads: cx.threads,
        parameters: counts.params.total(),
        active_parameters: counts.active.total(),
        tokens_per_step,
        steps: seconds.len(),
        tokens_per_second,
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        tensor_bytes: device.peak_bytes() as u64,
        process_bytes: process_bytes(),
        last_loss: loss,
    };
    if args.json {
        return cx.printer.json(&found);
    }
    let parameters = format!("{} ({} active)", short(found.parameters as f64), short(found.active_parameters as f64));
    let rows = [
        ("parameters", parameters),
        ("tokens a step", tokens_per_step.to_string()),
        ("time of a step", format!("{:.3} s (median of {})", tokens_per_step as f64 / tokens_per_second, found.steps)),
        ("tokens a second", format!("{tokens_per_second:.0}")),
        (
            "arithmetic",
            format!("{gflops:.1} GFLOP/s, {:.0} % of the measured {peak_gflops:.0}", 100.0 * found.share_of_peak),
        ),
        ("tensors at most", bytes(found.tensor_bytes)),
        ("process at most", found.process_bytes.map_or("unknown".into(), bytes)),
    ];
    let rows = rows.map(|(name, value)| format!("{name:<16}  {value}\n"));
    Ok(cx.printer.answer(&rows.concat())?)
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

struct Watch<'a> {
    seconds: Vec<f64>,
    loss: f64,
    set: &'a dyn Fn(u64),
}

impl Observer for Watch<'_> {
    fn on(&mut self, event: &Event) {
        if let Event::Step(report) = event {
            self.seconds.push(report.seconds);
            self.loss = report.loss;
            (self.set)(report.step);
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Most resident memory of this process so far.
fn process_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }
}
