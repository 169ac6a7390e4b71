//! `wudao inspect --preset NAME`: what a run would be and what it would cost, before anything is prepared or started.

use super::Context;
use crate::printer::{bytes, columns, short};
use crate::settings::{self, Origin, SettingsArgs};
use serde::Serialize;
use wudao_model::Config;
use wudao_model::counts::Counts;
use wudao_train::TrainSettings;
use wudao_train::estimate::{self, Choice, Estimate};

/// Vocabulary of a plan that names none: prepared data would know.
const VOCABULARY: i64 = 32_000;

/// What a run would cost.
#[derive(Serialize)]
struct Plan {
    parameters: u64,
    active_parameters: u64,
    tokens_per_step: u64,
    /// Operations of the model per token of training, recomputation aside.
    flops_per_token: f64,
    memory: Estimate,
    memory_bytes: u64,
    recompute: [Choice; 3],
}

/// Shows the plan of a run with these settings.
pub fn run(args: &SettingsArgs, json: bool, cx: &Context) -> anyhow::Result<()> {
    let mut resolved = settings::resolve(args, &[], &cx.environment)?;
    let known = resolved.layers.get("tokenizer.vocab_size").and_then(toml::Value::as_integer);
    let facts = format!("[model]\nvocab_size = {}\neos_token_id = [0]\n", known.unwrap_or(VOCABULARY));
    resolved.layers.fill(&facts.parse()?, &Origin::Data)?;
    let config: Config = resolved.section("model")?;
    config.check()?;
    let train: TrainSettings = resolved.section("train")?;
    train.check()?;

    let counts = Counts::of(&config);
    let operands = train.dtype.operands();
    let memory = estimate::estimate(&config, &train, 1, operands)?;
    let plan = Plan {
        parameters: counts.params.total(),
        active_parameters: counts.active.total(),
        tokens_per_step: train.tokens_per_step(),
        flops_per_token: counts.flops_training(train.seq_len),
        memory_bytes: memory.total(),
        memory,
        recompute: estimate::choices(&config, &train, 1, operands)?,
    };
    if json {
        return cx.printer.json(&plan);
    }
    let least = memory.without_copy().total();
    cx.printer.heading("A run with these settings".to_owned())?;
    let rows = [
        ("parameters", format!("{}, {} active", short(plan.parameters as f64), short(plan.active_parameters as f64))),
        ("a step", format!("{} tokens, {}FLOP a token", plan.tokens_per_step, short(plan.flops_per_token))),
        ("memory", bytes(plan.memory_bytes)),
        ("at least", format!("{} (training waits while checkpoints are written)", bytes(least))),
    ];
    cx.printer.answer(&columns(&["", ""], &rows.map(|(name, value)| vec![name.to_owned(), value])))?;
    cx.printer.answer("\n")?;
    let rows: Vec<Vec<String>> = memory.parts().iter().map(|(part, n)| vec![(*part).to_owned(), bytes(*n)]).collect();
    cx.printer.answer(&columns(&["memory", "bytes"], &rows))?;
    cx.printer.answer("\n")?;
    let rows: Vec<Vec<String>> = plan
        .recompute
        .iter()
        .map(|c| vec![c.recompute.name().to_owned(), bytes(c.bytes), format!("{:+.0} %", 100.0 * (c.work - 1.0))])
        .collect();
    cx.printer.answer(&columns(&["train.recompute", "memory", "work"], &rows))?;
    Ok(())
}
