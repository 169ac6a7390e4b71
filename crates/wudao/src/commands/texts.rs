//! Text for the commands that look at text as it is: `eval`, `tokenizer train`, `tokenizer compare`.
//!
//! The readers are those of `prepare`; nothing is cleaned, judged or removed, only decoded to UTF-8.

use super::Context;
use crate::printer::{Progress, Unit};
use std::path::PathBuf;
use wudao_data::read::{self, Format, Problem, ReadError, ReadOptions, Sink};

/// Where text comes from.
#[derive(clap::Args, Clone, Debug)]
pub struct TextArgs {
    /// Fields of JSON, CSV or Parquet records that hold the text.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "text")]
    pub fields: Vec<String>,
    /// What the files hold, if their names do not say it: txt, json, jsonl, csv or parquet.
    #[arg(long)]
    pub format: Option<Format>,
    /// Stop at the first record that cannot be read instead of skipping it.
    #[arg(long)]
    pub strict: bool,
}

impl TextArgs {
    fn options(&self) -> ReadOptions {
        ReadOptions { fields: self.fields.clone(), strict: self.strict, ..ReadOptions::default() }
    }
}

/// Gives every text under the paths to `sink`, with the number of the path it came from, until it answers `false`.
pub fn each(
    paths: &[PathBuf],
    args: &TextArgs,
    cx: &Context,
    mut sink: impl FnMut(usize, String) -> bool,
) -> anyhow::Result<()> {
    let mut inputs = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        inputs.extend(read::discover(path, args.format)?.into_iter().map(|input| (number, input)));
    }
    let total: u64 = inputs.iter().map(|(_, input)| input.bytes).sum();
    let progress = cx.printer.progress("Reading", (total > 0).then_some(total), Unit::Bytes);
    let mut done = 0;
    let mut problems = 0;
    for (number, input) in &inputs {
        let mut one = Reader { number: *number, sink: &mut sink, problems, done, cx, progress: &progress };
        let end = read::read_input(input, &args.options(), &std::env::temp_dir(), &mut one);
        (problems, done) = (one.problems, one.done);
        match end {
            Ok(_) => {}
            Err(ReadError::Stopped) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if problems > SHOWN {
        cx.printer.warn(format!("{} more problems like these", problems - SHOWN));
    }
    Ok(())
}

/// Problems that are shown one by one.
const SHOWN: u64 = 5;

struct Reader<'a, F> {
    number: usize,
    sink: &'a mut F,
    problems: u64,
    done: u64,
    cx: &'a Context<'a>,
    progress: &'a Progress<'a>,
}

impl<F: FnMut(usize, String) -> bool> Sink for Reader<'_, F> {
    fn document(&mut self, text: String) -> Result<(), ReadError> {
        if (self.sink)(self.number, text) { Ok(()) } else { Err(ReadError::Stopped) }
    }

    fn problem(&mut self, problem: Problem) -> Result<(), ReadError> {
        self.problems += 1;
        if self.problems <= SHOWN {
            self.cx.printer.warn(problem);
        }
        Ok(())
    }

    fn progress(&mut self, bytes: u64) {
        self.done += bytes;
        self.progress.set(self.done);
    }
}
