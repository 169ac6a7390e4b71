//! `wudao eval --tasks`: multiple choice and likelihood, from local files.
//!
//! With `--out` every answer goes to a file of JSON Lines as soon as it is there, and a run that was stopped goes on where
//! it was. The first line says which model answered, so that no other model's answers are taken for its own.

use super::eval::Args;
use super::generate::open;
use super::{Context, told};
use crate::error::Advice;
use crate::printer::{Unit, columns, duration, grouped};
use crate::signals;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wudao_device::Cpu;
use wudao_infer::Checkpoint;
use wudao_infer::tasks::{Answer, Metric, Question, Task, TaskScores};
use wudao_model::WeightOptions;

/// Tokens that are computed at once, and questions between two writes of answers.
const POSITIONS: usize = 4096;
const QUESTIONS: usize = 128;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    tasks: Vec<TaskScores>,
    seconds: f64,
}

/// A line of the file of answers.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Model { model: String },
    Answer { task: String, question: usize, answer: Answer },
}

/// Answers of this run and of those before.
struct Answers {
    known: HashMap<(String, usize), Answer>,
    file: Option<File>,
}

/// Puts the questions, prints the figures.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    let mut tasks = vec![];
    for path in &args.tasks {
        tasks.extend(Task::read_all(path)?);
    }
    if let Some(limit) = args.limit {
        tasks.iter_mut().for_each(|task| task.questions.truncate(limit.get()));
    }
    let how = args.weights.options()?;
    let checkpoint = open(cx, &args.model, &how, args.weights.memory, |_| Ok(0))?;
    // What reads all weights is asked for only where it is needed.
    let model = args.out.as_ref().map(|_| fingerprint(&checkpoint, &how)).transpose()?;
    let mut answers = Answers::open(args.out.as_deref(), &model.unwrap_or_default())?;
    let start = Instant::now();
    let stop = signals::stop_flag()?;
    let choices = |questions: &[Question]| questions.iter().map(|q| q.choices.len() as u64).sum::<u64>();
    let all: u64 = tasks.iter().map(|task| choices(&task.questions)).sum();
    let progress = cx.printer.progress("Evaluating", Some(all), Unit::Items);
    let (mut done, mut scores) = (0, vec![]);
    for task in &tasks {
        let mut given = vec![];
        for (number, questions) in task.questions.chunks(QUESTIONS).enumerate() {
            let from = number * QUESTIONS;
            match answers.of(task, from..from + questions.len()) {
                Some(known) => given.extend(known),
                None => {
                    let new = checkpoint.answers(questions, POSITIONS, &mut |n| progress.set(done + n))?;
                    answers.add(task, from, &new)?;
                    given.extend(new);
                }
            }
            done += choices(questions);
            progress.set(done);
            if stop.load(Ordering::Relaxed) {
                let kept =
                    if args.out.is_some() { "the same command goes on" } else { "with --out FILE it could go on" };
                anyhow::bail!("stopped after {} of {} choices; {kept}", grouped(done), grouped(all));
            }
        }
        scores.push(TaskScores::of(task, &given));
    }
    drop(progress);
    let report = Report { model: args.model.clone(), tasks: scores, seconds: start.elapsed().as_secs_f64() };
    if args.json {
        return cx.printer.json(&report);
    }
    cx.printer.answer(&table(&report))?;
    cx.printer.detail(format!("{} choices in {}", grouped(all), duration(report.seconds)));
    checkpoint.weights.expert_reads().iter().for_each(|reads| cx.printer.status("Memory", told(reads)));
    Ok(())
}

/// What answers depend on besides the question.
fn fingerprint(checkpoint: &Checkpoint<Cpu>, how: &WeightOptions) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    hash.update(checkpoint.config.to_json(how.operands));
    hash.update(checkpoint.tokenizer.hash());
    for sum in checkpoint.weights.sums_of_squares(&checkpoint.device)? {
        hash.update(sum.to_le_bytes());
    }
    Ok(hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect())
}

impl Answers {
    /// Reads what is there. A last line that a crash cut short is forgotten.
    fn open(path: Option<&Path>, model: &str) -> anyhow::Result<Answers> {
        let Some(path) = path else { return Ok(Answers { known: HashMap::new(), file: None }) };
        let cannot = |what: &str| format!("cannot {what} the answers in {}", path.display());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).with_context(|| cannot("open"))?;
        let (mut known, mut whole, mut lines) = (HashMap::new(), 0, 0);
        let mut reader = BufReader::new(&file);
        let mut line = String::new();
        while reader.read_line(&mut line).with_context(|| cannot("read"))? > 0 {
            if !line.ends_with('\n') {
                break;
            }
            lines += 1;
            match serde_json::from_str(&line)
                .with_context(|| format!("{}:{lines}: not a line of answers", path.display()))?
            {
                Line::Model { model: other } if other != model => {
                    return Err(anyhow::anyhow!(
                        "{} holds the answers of another model, --dtype or --weights",
                        path.display()
                    ))
                    .help("name another file with --out, or remove this one");
                }
                Line::Model { .. } => {}
                Line::Answer { task, question, answer } => drop(known.insert((task, question), answer)),
            }
            whole += line.len() as u64;
            line.clear();
        }
        drop(reader);
        file.set_len(whole).with_context(|| cannot("mend"))?;
        if lines == 0 {
            writeln!(file, "{}", serde_json::to_string(&Line::Model { model: model.into() })?)
                .with_context(|| cannot("write"))?;
        }
        Ok(Answers { known, file: Some(file) })
    }

    fn key(task: &Task, question: usize) -> (String, usize) {
        (format!("{} {}", task.name, &task.hash[..16]), question)
    }

    fn of(&self, task: &Task, questions: std::ops::Range<usize>) -> Option<Vec<Answer>> {
        let answers = questions.clone().map(|q| self.known.get(&Self::key(task, q)).cloned());
        let answers: Option<Vec<Answer>> = answers.collect();
        // As many choices as the question has, or the file is not ours.
        answers.filter(|a| {
            a.iter().zip(&task.questions[questions]).all(|(a, q)| a.log_likelihood.len() == q.choices.len())
        })
    }

    fn add(&mut self, task: &Task, from: usize, new: &[Answer]) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut lines = String::new();
        for (q, answer) in new.iter().enumerate() {
            let (task, question) = Self::key(task, from + q);
            lines.push_str(&serde_json::to_string(&Line::Answer { task, question, answer: answer.clone() })?);
            lines.push('\n');
        }
        file.write_all(lines.as_bytes()).context("cannot write the answers")
    }
}

fn table(report: &Report) -> String {
    let percent = |m: wudao_infer::tasks::Mean| format!("{:.2} ± {:.2}", 100.0 * m.value, 100.0 * m.stderr);
    let plain = |m: wudao_infer::tasks::Mean| format!("{:.3} ± {:.3}", m.value, m.stderr);
    let row = |s: &TaskScores| {
        let mark = |metric, text: String| if s.primary == metric { format!("{text} *") } else { text };
        vec![
            s.task.clone(),
            grouped(s.questions as u64),
            mark(Metric::Acc, percent(s.acc)),
            s.acc_norm.map_or(String::new(), |m| mark(Metric::AccNorm, percent(m))),
            mark(Metric::BitsPerByte, plain(s.bits_per_byte)),
            s.perplexity.map_or(String::new(), plain),
            if s.cut > 0 { grouped(s.cut as u64) } else { String::new() },
        ]
    };
    let rows: Vec<_> = report.tasks.iter().map(row).collect();
    columns(&["task", "questions", "acc %", "acc_norm %", "bits/byte", "perplexity", "cut"], &rows)
}
