//! The commands, one file each: arguments first, then what happens.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod engine;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod plan;
pub mod prepare;
pub mod quickstart;
pub mod serve;
pub mod tasks;
pub mod texts;
pub mod tokenizer;
pub mod train;
pub mod upcycle;

use crate::cli::{Cli, Command};
use crate::error::Usage;
use crate::printer::{Printer, bytes, duration, grouped};
use crate::settings;
use wudao_device::{Coding, Cpu, DType, QuantKind};
use wudao_model::WeightOptions;
use wudao_model::weights::ExpertReads;
use wudao_train::TrainSettings;

/// What every command has at hand.
pub struct Context<'a> {
    /// The way out.
    pub printer: &'a Printer,
    /// Threads to compute with.
    pub threads: usize,
    /// Each on a processor of its own.
    pub pinned: bool,
    /// The environment variables that are ours.
    pub environment: Vec<(String, String)>,
}

impl Context<'_> {
    /// The machine.
    pub fn cpu(&self) -> Cpu {
        if self.pinned { Cpu::pinned(self.threads) } else { Cpu::new(self.threads) }
    }

    /// The machine, to multiply in `operands`: says so if that is not what it is made for.
    pub fn cpu_for(&self, operands: DType) -> Cpu {
        let cpu = self.cpu();
        if operands == DType::Bf16 && !cpu.multiplies_bf16() {
            self.printer.warn("this processor multiplies bf16 no faster than f32: results are right, and take as long");
        }
        cpu
    }

    /// The machine, to train on.
    pub fn cpu_to_train(&self, settings: &TrainSettings) -> Cpu {
        let cpu = self.cpu_for(settings.dtype.operands());
        if settings.matrix_unit { cpu.with_matrix_unit() } else { cpu }
    }
}

/// Bits that products multiply in.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum Dtype {
    /// f32 throughout.
    F32,
    /// bf16, with sums in f32: less memory to read, other roundings.
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> DType {
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::Bf16,
        }
    }
}

/// Bits of keys and values in memory.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheDtype {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, and a scale for each head of a token.
    Int8,
}

impl From<CacheDtype> for DType {
    fn from(dtype: CacheDtype) -> DType {
        match dtype {
            CacheDtype::F32 => DType::F32,
            CacheDtype::Bf16 => DType::Bf16,
            CacheDtype::Int8 => DType::I8,
        }
    }
}

/// How weights are kept.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum Weights {
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, and a scale for 32 weights.
    #[value(name = "q8_0")]
    Q8,
    /// 4 bits and a scale; what makes the logits has 8.
    #[value(name = "q4_0")]
    Q4,
    /// 4 bits, a scale and a minimum; what makes the logits has 8.
    #[value(name = "q4_1")]
    Q4Min,
}

impl From<Weights> for Coding {
    fn from(weights: Weights) -> Coding {
        match weights {
            Weights::F32 => Coding::F32,
            Weights::Bf16 => Coding::Bf16,
            Weights::Q8 => Coding::Quant(QuantKind::Int8),
            Weights::Q4 => Coding::Quant(QuantKind::Int4),
            Weights::Q4Min => Coding::Quant(QuantKind::Int4Min),
        }
    }
}

/// How the weights of a model that answers are kept, and what they are multiplied by.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct WeightArgs {
    /// Bits of activations [default: those of weights in f32 and bf16, else f32].
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Bits of weights: fewer take less memory, and are read sooner [default: as --dtype].
    #[arg(long, value_enum, value_name = "CODING")]
    pub weights: Option<Weights>,
    /// Memory for weights, keys and values, such as 900M or 2G; experts that find no room stay in their file until a token
    /// wants them [default: all are in memory].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<usize>,
}

/// `900M`, `1.5G`, `2GiB`: bytes, in powers of 1024.
fn memory(text: &str) -> Result<usize, String> {
    let wrong = || format!("\"{text}\" is not a size: write 900M, 1.5G or 2G");
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b').trim_end_matches(['k', 'm', 'g', 't']);
    let exponent = match lower[number.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = number * 1024f64.powi(exponent);
    // Beyond 2^53 nobody has so much.
    if (1.0..9e15).contains(&bytes) { Ok(bytes as usize) } else { Err(wrong()) }
}

impl WeightArgs {
    /// What they come to.
    pub fn options(self) -> Result<WeightOptions, Usage> {
        weight_options(self.dtype.map(DType::from), self.weights)
    }
}

/// What `--dtype` and `--weights` come to.
fn weight_options(dtype: Option<DType>, weights: Option<Weights>) -> Result<WeightOptions, Usage> {
    let Some(coding) = weights.map(Coding::from) else {
        return Ok(WeightOptions { operands: dtype.unwrap_or(DType::F32), coding: None });
    };
    let options = WeightOptions::coded(coding);
    match (coding, dtype) {
        (_, None) => Ok(options),
        (Coding::F32 | Coding::Bf16, Some(other)) if other != options.operands => {
            let name = coding.name();
            Err(Usage(format!("--weights {name} are multiplied in {name}: leave --dtype out")))
        }
        (_, Some(operands)) => Ok(WeightOptions { operands, ..options }),
    }
}

/// What was asked of experts that stay in their file.
pub fn told(reads: &ExpertReads) -> String {
    let share = 100.0 * reads.found as f64 / reads.wanted.max(1) as f64;
    format!(
        "experts: {share:.1} % of {} were in memory, {} read from the file in {}",
        grouped(reads.wanted),
        bytes(reads.bytes),
        duration(reads.seconds)
    )
}

/// Does what the command line says.
pub fn run(cli: Cli, printer: &Printer, environment: Vec<(String, String)>) -> anyhow::Result<()> {
    let threads = match (cli.threads, settings::special(&environment, "WUDAO_THREADS")) {
        (Some(threads), _) => threads.into(),
        (None, Some(text)) => match text.parse::<u16>() {
            Ok(threads @ 1..=1024) => threads.into(),
            _ => {
                let what = format!("WUDAO_THREADS is \"{text}\"; it must be a whole number from 1 to 1024");
                return Err(Usage(what).into());
            }
        },
        (None, None) => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let cx = Context { printer, threads, pinned: cli.pin_threads, environment };
    match cli.command {
        Command::Quickstart(args) => quickstart::run(args, &cx),
        Command::Prepare(args) => prepare::run(args, &cx),
        Command::Tokenizer(command) => tokenizer::run(command, &cx),
        Command::Train(args) => train::run(args, &cx),
        Command::Upcycle(args) => upcycle::run(args, &cx),
        Command::Eval(args) => eval::run(args, &cx),
        Command::Generate(args) => generate::run(args, &cx),
        Command::Chat(args) => chat::run(args, &cx),
        Command::Serve(args) => serve::run(args, &cx),
        Command::Inspect(args) => inspect::run(args, &cx),
        Command::Convert(args) => convert::run(args, &cx),
        Command::Bench(command) => bench::run(command, &cx),
        Command::Completions(args) => completions::run(args, &cx),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_powers_of_1024() {
        for (text, bytes) in
            [("1", 1), ("12k", 12 << 10), ("900M", 900 << 20), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("1 tb", 1 << 40)]
        {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1G", "0", "2X", "1kk", "nan", "inf", "1e300", "9000T"] {
            assert!(memory(text).is_err_and(|error| error.contains("900M")), "{text}");
        }
    }
}
