//! The command line. Each command's arguments live with the command.

use crate::commands::{
    bench, chat, completions, convert, eval, generate, inspect, prepare, quickstart, serve, tokenizer, train, upcycle,
};
use crate::printer::Color;
use clap::{Parser, Subcommand};

/// From raw text to a trained bilingual (Chinese/English) sparse language model.
#[derive(Parser, Debug)]
#[command(name = "wudao", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Begin with `wudao quickstart`. Each command's --help has an example.\n\
    Exit status: 0 success, 1 failed, 2 wrong arguments or settings.")]
pub struct Cli {
    /// Show errors, warnings and the answer only.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,
    /// Show more.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub verbose: bool,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t, hide_default_value = true, value_name = "WHEN")]
    #[arg(help_heading = "Output")]
    pub color: Color,
    /// Threads to compute with [default: as many as the machine has; environment: WUDAO_THREADS].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(help_heading = "Output")]
    pub threads: Option<u16>,
    /// Keep each thread on a processor of its own.
    #[arg(long, global = true, help_heading = "Output")]
    pub pin_threads: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// From nothing to a model that writes both languages, on the sample that comes with the program.
    Quickstart(quickstart::Args),
    /// Turn text into cleaned, tokenized shards to train on.
    Prepare(prepare::Args),
    /// Train, try and compare tokenizers.
    #[command(subcommand)]
    #[command(after_help = "Example:\n  wudao tokenizer train texts --vocab-size 16000 --out my-tokenizer")]
    Tokenizer(tokenizer::Command),
    /// Train a model on prepared shards.
    Train(train::Args),
    /// Make a sparse model of a dense one, with the same answers to begin with.
    Upcycle(upcycle::Args),
    /// Measure how well a model predicts text.
    Eval(eval::Args),
    /// Continue a text.
    Generate(generate::Args),
    /// Talk to a model in the terminal.
    Chat(chat::Args),
    /// Serve models over HTTP: OpenAI's interface, and a page to talk to them.
    Serve(serve::Args),
    /// Show what a checkpoint, a run, a data set or a tokenizer holds, and verify it.
    Inspect(inspect::Args),
    /// Turn a model into a Hugging Face folder or a GGUF file.
    Convert(convert::Args),
    /// Measure the speed of this machine and of training on it.
    #[command(subcommand)]
    #[command(after_help = "Example:\n  wudao bench train --preset small --steps 5")]
    Bench(bench::Command),
    /// Print a script that completes commands and options in a shell.
    Completions(completions::Args),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command shows how it is used, and every option says what it does.
    #[test]
    fn every_command_has_an_example_and_every_option_a_text() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name()).trim().to_owned();
            assert!(command.get_about().is_some(), "{path}");
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{path}: {}", arg.get_id());
            }
            let inner: Vec<_> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
            let example = command.get_after_help().map(|text| text.to_string()).unwrap_or_default();
            assert!(example.contains("wudao "), "{path} has no example");
            inner.into_iter().for_each(|inner| check(inner, &path));
        }
        check(&Cli::command(), "");
    }
}
