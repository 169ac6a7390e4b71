//! `wudao bench kernels`: each kernel at the shapes of a configuration, beside what the machine can do at most.

use super::{Context, Measured, Shape, dtype_name};
use crate::printer::columns;
use serde::Serialize;
use wudao_device::bench;

/// Arguments of `wudao bench kernels`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao bench kernels --preset bench-b --threads 2 --json")]
pub struct Args {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    shape: Shape,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    config: Option<String>,
    threads: usize,
    instructions: &'static str,
    dtype: &'static str,
    /// Measured: multiply-adds of `dtype` on registers.
    peak_gflops: f64,
    /// Measured: reading a block that no cache holds.
    read_gbytes_per_s: f64,
    kernels: Vec<Kernel>,
}

#[derive(Serialize)]
struct Kernel {
    name: String,
    milliseconds: f64,
    /// `null` where arithmetic is not what counts.
    gflops: Option<f64>,
    /// Of the bytes that must be moved at least. What a cache keeps can be faster than memory.
    gbytes_per_s: f64,
    /// Of the arithmetic peak, or of the memory's reading speed where arithmetic is not what counts.
    share_of_peak: f64,
}

/// Elements of the optimizer's step at most: more than any cache holds.
const PARAMETERS: u64 = 1 << 25;

/// Measures.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    // The length of the run is not of interest, but a run must have one.
    let own = [("train.steps", "--steps", Some("1".to_owned()))];
    let measured = args.shape.resolve(&own, cx)?;
    measured.settings.check()?;
    let (operands, cpu) = (measured.operands(), cx.cpu_to_train(&measured.settings));
    let (peak_gflops, read_gbytes_per_s) = (cpu.peak_gflops(operands), cpu.read_gbytes_per_s());
    let shape = sizes(&measured);
    cx.printer.say(format!("Measuring {} tokens of width {}, for a minute or two", shape.tokens, shape.width));
    let kernel = |time: bench::KernelTime| {
        let (gflops, gbytes_per_s) = ((time.flops > 0.0).then(|| time.gflops()), time.gbytes_per_s());
        let share_of_peak = gflops.map_or(gbytes_per_s / read_gbytes_per_s, |gflops| gflops / peak_gflops);
        Kernel { milliseconds: 1e3 * time.seconds, gflops, gbytes_per_s, share_of_peak, name: time.kernel }
    };
    let answer = Answer {
        kernels: bench::kernels(&cpu, shape).into_iter().map(kernel).collect(),
        config: measured.name,
        dtype: dtype_name(operands),
        threads: cx.threads,
        instructions: cpu.instructions(),
        peak_gflops,
        read_gbytes_per_s,
    };
    if args.json {
        return cx.printer.json(&answer);
    }
    cx.printer.heading(format!("{} threads, {}", answer.threads, answer.instructions))?;
    cx.printer.line(format!(
        "{peak_gflops:.0} GFLOP/s in {} at best, {read_gbytes_per_s:.1} GB/s from memory\n",
        answer.dtype
    ))?;
    let row = |k: &Kernel| {
        let gflops = k.gflops.map_or(String::new(), |x| format!("{x:.1}"));
        let (time, memory) = (format!("{:.3}", k.milliseconds), format!("{:.1}", k.gbytes_per_s));
        vec![k.name.clone(), time, memory, gflops, format!("{:.0} %", 100.0 * k.share_of_peak)]
    };
    let rows: Vec<Vec<String>> = answer.kernels.iter().map(row).collect();
    Ok(cx.printer.answer(&columns(&["kernel", "ms", "GB/s", "GFLOP/s", "of peak"], &rows))?)
}

/// The sizes of a micro-batch.
fn sizes(measured: &Measured) -> bench::Shape {
    let Measured { config, settings, .. } = measured;
    let moe = config.moe.as_ref().filter(|_| !config.moe_layers().is_empty());
    let dense = config.moe_layers().len() < config.num_hidden_layers;
    let shared = moe.map_or(0, |m| m.n_shared_experts * m.moe_intermediate_size);
    let parameters = wudao_model::Counts::of(config).params.total();
    bench::Shape {
        dtype: measured.operands(),
        tokens: settings.micro_batch_size * settings.seq_len,
        segment: settings.seq_len,
        width: config.hidden_size,
        vocabulary: config.vocab_size,
        heads: config.heads(),
        dense_width: if dense { config.intermediate_size } else { shared },
        experts: moe.map_or(0, |m| m.num_experts),
        top_k: moe.map_or(0, |m| m.num_experts_per_tok),
        expert_width: moe.map_or(0, |m| m.moe_intermediate_size),
        parameters: parameters.min(PARAMETERS) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{Color, Printer};

    #[test]
    fn sizes_are_those_of_the_preset() {
        let printer = Printer::new(true, false, Color::Never, true);
        let cx = Context { printer: &printer, threads: 1, pinned: false, environment: vec![] };
        let of = |preset: &str| {
            let shape = Shape { preset: Some(preset.to_owned()), ..Shape::default() };
            sizes(&shape.resolve(&[], &cx).unwrap())
        };
        let dense = of("bench-a");
        assert_eq!((dense.tokens, dense.segment, dense.width, dense.vocabulary), (4096, 512, 512, 32_000));
        assert_eq!((dense.dense_width, dense.experts, dense.parameters), (1536, 0, PARAMETERS as usize));
        let sparse = of("bench-c");
        assert_eq!((sparse.dense_width, sparse.experts, sparse.top_k, sparse.expert_width), (0, 64, 4, 256));
        let both = of("base");
        assert_eq!((both.dense_width, both.experts, both.heads.kv), (4096, 32, 4));
    }
}
