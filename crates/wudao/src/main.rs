//! `wudao`: from raw text to a trained bilingual sparse language model, in one binary.
//!
//! Arguments are parsed ([`cli`]), resolved with files and environment into settings ([`mod@settings`]), acted on
//! ([`commands`]), and everything that is shown goes through the [`printer`].

mod cli;
mod commands;
mod error;
mod live;
mod printer;
mod signals;
mod tui;

use clap::Parser;
use std::process::ExitCode;
use wudao::settings;

fn main() -> ExitCode {
    let environment = settings::environment();
    let cli = cli::Cli::parse();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let printer = printer::Printer::new(cli.quiet, cli.verbose, cli.color, no_color);
    match commands::run(cli, &printer, environment) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of standard output has gone (`wudao … | head`): it has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(printer::exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
