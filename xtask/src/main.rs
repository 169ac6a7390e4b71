//! Project chores: `cargo xtask ci`, `cargo xtask clients`, `cargo xtask floors`, `cargo xtask kill`.

mod clients;
mod floors;

use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};
use std::time::Instant;

const USAGE: &str = "\
Usage: cargo xtask <chore>

  ci                  what must pass before a change lands: fmt, floors, clippy, doc, tests, clients
  clients [--wudao PATH]
                      real clients against a server, as far as they can be had
  floors              check that crates import from lower floors only
  kill [--rounds N]   kill a training run N times (200) at random moments and compare its end, bit for bit";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["ci"] => ci(),
        ["clients"] => clients::run(None),
        ["clients", "--wudao", path] => clients::run(Some(path)),
        ["floors"] => floors::check(),
        ["kill"] => kill("200"),
        ["kill", "--rounds", rounds] => kill(rounds),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every check, cheapest first.
fn ci() -> Result<()> {
    step("formatting", || cargo(&["fmt", "--all", "--check"], &[]))?;
    step("floors", floors::check)?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[]))?;
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    step("documentation", || cargo(&["doc", "--workspace", "--no-deps", "--locked"], &deny))?;
    step("tests", || cargo(&["test", "--workspace", "--locked"], &[]))?;
    step("clients", || clients::run(None))
}

/// The long version of the kill test.
fn kill(rounds: &str) -> Result<()> {
    rounds.parse::<u32>().context("--rounds takes a whole number")?;
    let test = ["test", "--release", "--package", "wudao", "--test", "kill", "--", "--nocapture"];
    cargo(&test, &[("KILL_ROUNDS", rounds)])
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    println!("== {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the cargo that runs us.
fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(arguments).envs(variables.iter().copied()).status();
    if !status.context("cannot start cargo")?.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
