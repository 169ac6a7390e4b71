//! `wudao bench`: what this machine can do, and how fast it trains.
//!
//! Medians, and ratios within one run: a shared machine makes single absolute times worthless. What is measured is named
//! by a configuration, as a training run is: a letter stands for one of the fixed shapes in `presets/bench-*.toml`, which
//! `reference/bench_train.py` gives to other programs too.

mod decode;
mod infer;
mod kernels;
mod train;
mod twins;

use super::{Context, Weights, weight_options};
use crate::error::Usage;
use crate::settings::presets;
use crate::settings::{self, Origin, OwnFlag, SettingsArgs};
use anyhow::Context as _;
use std::path::PathBuf;
use toml::Value;
use wudao_device::{Coding, DType};
use wudao_model::{Config, WeightOptions};
use wudao_train::TrainSettings;
use wudao_train::estimate::estimate;

/// What to measure.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Peak arithmetic, memory speed, and every kernel at the shapes of a configuration.
    Kernels(kernels::Args),
    /// Tokens a second of training on random tokens, memory, and where the time goes.
    Train(train::Args),
    /// Tokens a second of writing, one sequence at a time.
    Decode(decode::Args),
    /// The serving engine: a prompt, a stream, several clients at once.
    Infer(infer::Args),
    /// Held-out bits per byte against time: a sparse model and its dense twin of equal active parameters.
    SparseVsDense(twins::Args),
}

/// Measures.
pub fn run(command: Command, cx: &Context) -> anyhow::Result<()> {
    match command {
        Command::Kernels(args) => kernels::run(&args, cx),
        Command::Train(args) => train::run(&args, cx),
        Command::Decode(args) => decode::run(&args, cx),
        Command::Infer(args) => infer::run(&args, cx),
        Command::SparseVsDense(args) => twins::run(args, cx),
    }
}

/// The configuration that is measured.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
struct Shape {
    /// A letter, such as a for the preset bench-a, or a TOML file of settings.
    #[arg(long, value_name = "LETTER|FILE")]
    config: Option<String>,
    /// Begin with a whole configuration.
    #[arg(long, value_name = "NAME", value_parser = presets::parser())]
    preset: Option<String>,
    /// Rows of a step, all at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Tokens of a row.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seq: Option<u32>,
    /// Bits that products multiply in.
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,
    /// Set any key, for instance model.moe.num_experts=16.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What a [`Shape`] and the other levels of settings come to.
struct Measured {
    /// The preset or the file.
    name: Option<String>,
    config: Config,
    settings: TrainSettings,
}

impl Measured {
    /// What products multiply.
    fn operands(&self) -> DType {
        self.settings.dtype.operands()
    }

    /// Bytes of tensors that training takes. There is no checkpoint, so no copy for one.
    fn needed(&self) -> anyhow::Result<u64> {
        let estimate = estimate(&self.config, &self.settings, 1, self.operands())?;
        Ok(estimate.total() - estimate.snapshot)
    }
}

impl Shape {
    /// The preset that a letter stands for.
    fn letter(&self) -> Option<String> {
        let name = format!("bench-{}", self.config.as_ref().filter(|config| config.len() == 1)?);
        presets::ALL.iter().any(|(known, _)| *known == name).then_some(name)
    }

    /// Resolves and checks. `own` are the command's own flags.
    fn resolve(&self, own: &[OwnFlag], cx: &Context) -> anyhow::Result<Measured> {
        let letter = self.letter();
        if let (Some(letter), Some(preset)) = (&letter, &self.preset) {
            let what = format!("--config {} is the preset {letter}: --preset {preset} is another", &letter[6..]);
            return Err(Usage(what).into());
        }
        let file = self.config.clone().filter(|_| letter.is_none());
        let args = SettingsArgs {
            config: file.as_ref().map(PathBuf::from),
            preset: letter.or_else(|| self.preset.clone()),
            set: self.set.clone(),
        };
        let (batch, seq) = (self.batch.map(|n| n.to_string()), self.seq.map(|n| n.to_string()));
        let mut own = own.to_vec();
        own.extend([
            ("train.global_batch_size", "--batch", batch.clone()),
            ("train.micro_batch_size", "--batch", batch),
            ("train.seq_len", "--seq", seq),
            ("train.dtype", "--dtype", self.dtype.clone()),
        ]);
        let mut layers = settings::resolve(&args, &own, &cx.environment)?.layers;
        // A preset for real text learns its vocabulary, and a longer row than the model was made for takes as long.
        let vocabulary = layers.get("tokenizer.vocab_size").and_then(Value::as_integer).unwrap_or(32_000);
        let facts = format!("[model]\nvocab_size = {vocabulary}\neos_token_id = [0]\n");
        layers.fill(&facts.parse().context("facts of the data")?, &Origin::Data)?;
        let longest = layers.get("model.max_position_embeddings").and_then(Value::as_integer);
        if let Some(seq) = self.seq.map(i64::from).filter(|seq| longest.is_some_and(|longest| longest < *seq)) {
            layers.set("model.max_position_embeddings", Value::Integer(seq));
        }
        let config: Config = layers.section("model")?;
        config.check()?;
        let settings: TrainSettings = layers.section("train")?;
        Ok(Measured { name: file.or(args.preset), config, settings })
    }
}

/// How the weights of a model that answers are kept.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
struct WeightArg {
    /// Bits of weights: fewer take less memory, and are read sooner [default: as --dtype].
    #[arg(long, value_enum, value_name = "CODING")]
    weights: Option<Weights>,
}

impl WeightArg {
    /// With the type of operands that the settings say, or the arguments alone if no settings are read.
    fn options(self, shape: &Shape, settings: Option<DType>) -> Result<WeightOptions, Usage> {
        let asked = match shape.dtype.as_deref() {
            Some("bf16") => Some(DType::Bf16),
            Some(_) => Some(DType::F32),
            None if self.weights.is_none() => settings,
            None => None,
        };
        weight_options(asked, self.weights)
    }
}

/// The name of the coding that weights are asked for in.
fn weights_name(options: &WeightOptions) -> &'static str {
    options.coding.unwrap_or(Coding::plain(options.operands)).name()
}

/// Most resident memory of this process so far.
fn process_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?)
}

/// The median of values, of which there is at least one; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// The name of a type in settings.
pub(super) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::Bf16 => "bf16",
        DType::U32 => "u32",
        DType::I8 => "int8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::{Color, Printer};

    fn resolve(shape: Shape) -> anyhow::Result<Measured> {
        let printer = Printer::new(true, false, Color::Never, true);
        let cx = Context { printer: &printer, threads: 1, pinned: false, environment: vec![] };
        shape.resolve(&[("train.steps", "--steps", Some("3".into()))], &cx)
    }

    #[test]
    fn a_letter_is_a_preset_and_anything_else_a_file() {
        let by_letter = resolve(Shape { config: Some("d".into()), ..Shape::default() }).unwrap();
        let by_name = resolve(Shape { preset: Some("bench-d".into()), ..Shape::default() }).unwrap();
        assert_eq!((&by_letter.config, &by_letter.settings), (&by_name.config, &by_name.settings));
        assert_eq!((by_letter.config.vocab_size, by_letter.settings.steps), (8192, Some(3)));
        assert_eq!(by_letter.name.as_deref(), Some("bench-d"));

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.toml");
        std::fs::write(&file, "preset = \"bench-d\"\n[model]\nnum_hidden_layers = 2\n").unwrap();
        let of_file = resolve(Shape { config: Some(file.display().to_string()), ..Shape::default() }).unwrap();
        assert_eq!((of_file.config.num_hidden_layers, of_file.config.vocab_size), (2, 8192));

        let missing = resolve(Shape { config: Some("z".into()), ..Shape::default() });
        assert!(missing.is_err_and(|error| error.to_string().contains("cannot read the settings in z")));
        let both = Shape { config: Some("a".into()), preset: Some("bench-b".into()), ..Shape::default() };
        assert!(resolve(both).is_err_and(|error| error.is::<Usage>()));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [7.0]), 7.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_shape_of_a_step_can_be_given() {
        let shape = Shape { config: Some("a".into()), batch: Some(2), seq: Some(2048), ..Shape::default() };
        let Measured { config, settings, .. } = resolve(shape).unwrap();
        assert_eq!((settings.global_batch_size, settings.micro_batch_size, settings.seq_len), (2, 2, 2048));
        assert_eq!(config.max_position_embeddings, 2048);
        settings.check_model(&config, 1).unwrap();
    }

    #[test]
    fn every_benchmark_preset_is_whole() {
        for letter in ["a", "b", "c", "d", "e", "f"] {
            let shape = Shape { config: Some(letter.into()), ..Shape::default() };
            assert_eq!(shape.letter(), Some(format!("bench-{letter}")));
            let measured = resolve(shape).unwrap();
            let Measured { config, settings, .. } = &measured;
            settings.check().unwrap();
            settings.check_model(config, 1).unwrap();
            assert_eq!((settings.tokens_per_step(), settings.accumulation(1).unwrap()), (4096, 1), "{letter}");
            // A machine of 24 GB, of which the system and the program itself take something.
            let needed = measured.needed().unwrap();
            assert!(needed < 22_000_000_000, "{letter} needs {needed} bytes");
        }
    }
}
