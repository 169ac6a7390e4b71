//! `wudao completions`: scripts for shells.

use super::Context;
use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;

/// Arguments of `wudao completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao completions bash > ~/.local/share/bash-completion/completions/wudao")]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script to standard output.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wudao", &mut script);
    Ok(cx.printer.answer_bytes(&script)?)
}
