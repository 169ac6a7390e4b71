//! `wudao bench decode`: how fast a model writes, one sequence at a time.
//!
//! Every token is multiplied by the weights that it meets, once each: what counts is how fast they are read from memory.
//! So the figure beside tokens a second is bytes a second: of these weights, and of the keys and values so far. Weights are
//! random, and the likeliest token is taken, as any program would that is asked for the temperature 0.

use super::{Context, Measured, Shape, WeightArg, dtype_name, median, weights_name};
use crate::printer::columns;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;
use wudao_comm::Solo;
use wudao_device::{Cpu, Fault};
use wudao_model::model::Options;
use wudao_model::{Cx, KvCache, Model, Packing, WeightOptions};

/// Arguments of `wudao bench decode`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao bench decode --config b --dtype bf16 --json\n  \
    wudao bench decode --config b --prompt 2000 --tokens 100")]
pub struct Args {
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens to write.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Sequences, one after the other; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    weights: WeightArg,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    config: Option<String>,
    dtype: &'static str,
    /// How weights are kept.
    weights: &'static str,
    threads: usize,
    prompt: u32,
    tokens: u32,
    /// Reading the prompt.
    prompt_tokens_per_s: f64,
    /// Writing: of the median sequence, the slowest and the fastest.
    tokens_per_s: f64,
    tokens_per_s_min: f64,
    tokens_per_s_max: f64,
    /// Weights that a token meets, and keys and values half-way.
    mbytes_a_token: f64,
    gbytes_per_s: f64,
    /// Measured after every sequence: the median.
    read_gbytes_per_s: f64,
    share_of_read: f64,
    /// Microseconds of a token by kernel; `other` is what no kernel took.
    kernels: BTreeMap<&'static str, f64>,
}

/// What was seen of the tries.
#[derive(Default)]
struct Tries {
    /// Of the weights that a token meets.
    weight_bytes: usize,
    /// Seconds of reading the prompt, of each try.
    reading: Vec<f64>,
    /// Seconds of writing.
    writing: Vec<f64>,
    /// What memory gave in between, in GB/s.
    memory: Vec<f64>,
    /// Seconds of writing by kernel, in all.
    kernels: BTreeMap<&'static str, f64>,
}

/// Measures and tells.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    let answer = answer(args, cx)?;
    if args.json { cx.printer.json_line(&answer) } else { answer.print(cx) }
}

fn answer(args: &Args, cx: &Context) -> anyhow::Result<Answer> {
    let measured = args.shape.resolve(&[], cx)?;
    let how = args.weights.options(&args.shape, Some(measured.operands()))?;
    let (config, operands) = (&measured.config, how.operands);
    let cpu = cx.cpu_for(operands);
    let Tries { weight_bytes, mut reading, mut writing, mut memory, mut kernels } =
        measure(args, &measured, &how, &cpu, cx)?;
    let read_gbytes_per_s = median(&mut memory);

    kernels.insert("other", writing.iter().sum::<f64>() - kernels.values().sum::<f64>());
    let written = (writing.len() * args.tokens as usize) as f64;
    let (reading, writing) = (median(&mut reading), (median(&mut writing), writing));
    let keys_and_values = 2 * config.num_hidden_layers * config.cache_width();
    let past = args.prompt as usize + args.tokens as usize / 2;
    let bytes = (weight_bytes + keys_and_values * past * operands.size()) as f64;
    let rate = |seconds: f64| f64::from(args.tokens) / seconds;
    let gbytes_per_s = bytes * rate(writing.0) / 1e9;
    Ok(Answer {
        dtype: dtype_name(operands),
        weights: weights_name(&how),
        threads: cx.threads,
        prompt: args.prompt,
        tokens: args.tokens,
        prompt_tokens_per_s: f64::from(args.prompt) / reading,
        tokens_per_s: rate(writing.0),
        tokens_per_s_min: rate(writing.1[writing.1.len() - 1]),
        tokens_per_s_max: rate(writing.1[0]),
        mbytes_a_token: bytes / 1e6,
        gbytes_per_s,
        read_gbytes_per_s,
        share_of_read: gbytes_per_s / read_gbytes_per_s,
        kernels: kernels.into_iter().map(|(name, seconds)| (name, 1e6 * seconds / written)).collect(),
        config: measured.name,
    })
}

fn measure(args: &Args, measured: &Measured, how: &WeightOptions, cpu: &Cpu, cx: &Context) -> anyhow::Result<Tries> {
    let Measured { config, settings, .. } = measured;
    let room = (args.prompt + args.tokens) as usize;
    let options = Options { dtype: how.operands, ..Options::default() };
    let model = Model::new(cpu, config, room, options)?;
    let weights = model.init_packed(cpu, settings.seed, how);
    // Appends tokens, and gives the likeliest next one.
    let next = |cache: &mut KvCache<Cpu>, ids: &[u32]| -> Result<u32, Fault> {
        let (past, n) = (cache.len() as u32, ids.len() as u32);
        let packing = Packing { positions: (past..past + n).collect(), segments: vec![0, n] };
        let mut cx = Cx {
            device: cpu,
            comm: &Solo,
            weights: &weights,
            packing: &packing,
            aux: Default::default(),
            log: None,
            again: false,
        };
        let logits = model.decode(&mut cx, cache, ids)?.view().to_f64(cpu);
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        Ok(best.map_or(0, |(id, _)| id as u32))
    };
    let prompt: Vec<u32> = (0..args.prompt).map(|i| (i * 7919) % config.vocab_size as u32).collect();
    let progress = cx.printer.progress("Writing", Some(u64::from(args.tries)), crate::printer::Unit::Items);
    let top_k = config.moe.as_ref().map_or(0, |moe| moe.num_experts_per_tok);
    let mut tries = Tries { weight_bytes: weights.active_bytes(model.layout(), top_k), ..Tries::default() };
    // The first try warms up and does not count.
    for attempt in 0..=args.tries {
        let mut cache = KvCache::new(cpu, config, room, how.operands);
        let begin = Instant::now();
        let mut id = next(&mut cache, &prompt)?;
        let read = begin.elapsed().as_secs_f64();
        let (begin, start) = (Instant::now(), cpu.meter().read());
        for _ in 0..args.tokens {
            id = next(&mut cache, &[id])?;
        }
        if attempt > 0 {
            tries.reading.push(read);
            tries.writing.push(begin.elapsed().as_secs_f64());
            for (name, _, seconds) in cpu.meter().read().since(&start).kernels() {
                *tries.kernels.entry(name).or_default() += seconds;
            }
            // In turn, since others use the same memory.
            tries.memory.push(cpu.read_gbytes_per_s());
        }
        progress.set(u64::from(attempt));
    }
    Ok(tries)
}

impl Answer {
    fn print(&self, cx: &Context) -> anyhow::Result<()> {
        let speeds = format!("{:.1} ({:.1} to {:.1})", self.tokens_per_s, self.tokens_per_s_min, self.tokens_per_s_max);
        let share = 100.0 * self.share_of_read;
        let rows = [
            ("prompt", format!("{} tokens at {:.0} a second", self.prompt, self.prompt_tokens_per_s)),
            ("tokens a second", speeds),
            ("a token reads", format!("{:.1} MB", self.mbytes_a_token)),
            (
                "memory",
                format!("{:.1} GB/s, {share:.0} % of the measured {:.1}", self.gbytes_per_s, self.read_gbytes_per_s),
            ),
        ];
        let rows = rows.map(|(name, value)| format!("{name:<16}  {value}\n"));
        cx.printer.answer(&(rows.concat() + "\n"))?;
        let whole: f64 = self.kernels.values().sum();
        let mut kernels: Vec<(&str, f64)> = self.kernels.iter().map(|(name, us)| (*name, *us)).collect();
        kernels.sort_by(|a, b| b.1.total_cmp(&a.1));
        let row =
            |(name, us): (&str, f64)| vec![name.to_owned(), format!("{us:.1}"), format!("{:.1} %", 100.0 * us / whole)];
        let rows: Vec<Vec<String>> = kernels.into_iter().map(row).collect();
        Ok(cx.printer.answer(&columns(&["kernel", "µs a token", "share"], &rows))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{Color, Printer};

    #[test]
    fn the_figures_of_the_smallest_preset_fit_each_other() {
        let printer = Printer::new(true, false, Color::Never, true);
        let cx = Context { printer: &printer, threads: 2, pinned: false, environment: vec![] };
        let shape = Shape { preset: Some("tiny".to_owned()), ..Shape::default() };
        let found =
            answer(&Args { prompt: 5, tokens: 7, tries: 3, json: true, shape, weights: WeightArg::default() }, &cx)
                .unwrap();
        assert!(found.tokens_per_s_min <= found.tokens_per_s && found.tokens_per_s <= found.tokens_per_s_max);
        let rate = found.gbytes_per_s * 1e3 / found.mbytes_a_token;
        assert!((rate / found.tokens_per_s - 1.0).abs() < 1e-9 && found.share_of_read > 0.0);
    }
}
