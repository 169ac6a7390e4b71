//! `wudao eval --tasks`: multiple choice and likelihood, from local files.
//!
//! With `--out` every answer goes to a file of JSON Lines as soon as it is there, and a run that was stopped, or killed, goes
//! on where it was. The first line says which model answered, so that no other model's answers are taken for its own; an answer
//! belongs to what was asked, not to the file where it stood, so a task may grow or move.

use super::eval::Args;
use super::generate::open;
use super::{Context, told};
use crate::error::Advice;
use crate::printer::{Unit, columns, duration, grouped};
use crate::signals;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wudao_device::Cpu;
use wudao_infer::Checkpoint;
use wudao_infer::tasks::{Answer, JudgeError, JudgeOptions, Mean, Metric, Question, Task, TaskScores};
use wudao_model::WeightOptions;

/// Tokens that are computed at once.
const POSITIONS: usize = 2048;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: PathBuf,
    /// What answers depend on besides the questions, as the first line of `--out` has it.
    fingerprint: Option<String>,
    /// Whether every context began with the begin-of-document token.
    bos: bool,
    tasks: Vec<TaskScores>,
    /// Benchmarks of several tasks: figures of all their questions.
    groups: Vec<TaskScores>,
    seconds: f64,
}

/// Puts the questions, prints the figures.
pub fn run(args: &Args, cx: &Context) -> anyhow::Result<()> {
    let tasks = read(args)?;
    let how = args.weights.options()?;
    let checkpoint = open(cx, &cx.cpu_for(how.operands), &args.model, &how, args.weights.memory, |_| Ok(0))?;
    // It reads all weights: only where it is needed.
    let wanted = args.out.is_some() || args.json;
    let fingerprint = wanted.then(|| fingerprint(&checkpoint, &how, args.no_bos)).transpose()?;
    let mut answers = Answers::open(args.out.as_deref(), fingerprint.as_deref().unwrap_or_default())?;
    let start = Instant::now();
    let given = ask(&tasks, &checkpoint, &mut answers, args, cx)?;
    let report = Report {
        model: args.model.clone(),
        fingerprint,
        bos: !args.no_bos,
        tasks: tasks.iter().zip(&given).map(|(task, given)| TaskScores::of(task, given)).collect(),
        groups: groups(&tasks, &given),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return cx.printer.json(&report);
    }
    cx.printer.answer(&table(&report))?;
    let choices = tasks.iter().map(|task| choices(&task.questions)).sum();
    cx.printer.detail(format!("{} choices in {}", grouped(choices), duration(report.seconds)));
    checkpoint.weights.expert_reads().iter().for_each(|reads| cx.printer.status("Memory", told(reads)));
    Ok(())
}

fn read(args: &Args) -> anyhow::Result<Vec<Task>> {
    let mut tasks = vec![];
    for path in &args.tasks {
        tasks.extend(Task::read_all(path, args.shots)?);
    }
    if args.shots.is_some() && tasks.iter().all(|task| task.group.is_none()) {
        return Err(anyhow::anyhow!("--shots: none of these tasks has examples of its own, as MMLU has"))
            .help("requests carry their examples within their contexts: choose the file with as many as you want");
    }
    if let Some(limit) = args.limit {
        tasks.iter_mut().for_each(|task| task.questions.truncate(limit.get()));
    }
    Ok(tasks)
}

fn choices(questions: &[Question]) -> u64 {
    questions.iter().map(|q| q.choices.len() as u64).sum()
}

/// Every task's answers, in order of its questions.
fn ask(
    tasks: &[Task],
    checkpoint: &Checkpoint<Cpu>,
    answers: &mut Answers,
    args: &Args,
    cx: &Context,
) -> anyhow::Result<Vec<Vec<Answer>>> {
    let stop = signals::stop_flag()?;
    let options = JudgeOptions { begin: !args.no_bos, positions: POSITIONS };
    let all = tasks.iter().map(|task| choices(&task.questions)).sum();
    let progress = cx.printer.progress("Evaluating", Some(all), Unit::Items);
    let (mut done, mut given) = (0, vec![]);
    for task in tasks {
        let ids: Vec<String> = task.questions.iter().map(|q| q.id(task.kind)).collect();
        // What stands twice is asked once.
        let mut seen = HashSet::new();
        let missing = |&n: &usize| answers.of(&ids[n], &task.questions[n]).is_none() && seen.insert(&ids[n]);
        let missing: Vec<usize> = (0..ids.len()).filter(missing).collect();
        done += choices(&task.questions);
        let mut open: u64 = missing.iter().map(|&n| task.questions[n].choices.len() as u64).sum();
        progress.set(done - open);
        let questions: Vec<&Question> = missing.iter().map(|&n| &task.questions[n]).collect();
        let mut kept = Ok(());
        let asked = checkpoint.answers(&questions, task.kind, options, &mut |n, answer| {
            open -= questions[n].choices.len() as u64;
            progress.set(done - open);
            kept = answers.add(&task.name, missing[n], &ids[missing[n]], answer);
            kept.is_ok() && !stop.load(Ordering::Relaxed)
        });
        kept?;
        asked.map_err(|error| in_the_file(error, &missing)).with_context(|| format!("task {}", task.name))?;
        if open > 0 {
            let kept = if args.out.is_some() { "the same command goes on" } else { "with --out FILE it could go on" };
            anyhow::bail!("stopped after {} of {} choices; {kept}", grouped(done - open), grouped(all));
        }
        let own: Option<Vec<Answer>> =
            ids.iter().zip(&task.questions).map(|(id, q)| answers.of(id, q).cloned()).collect();
        given.push(own.context("an answer is missing")?);
    }
    Ok(given)
}

/// The question's number in its task, not among those that were missing.
fn in_the_file(error: JudgeError, missing: &[usize]) -> JudgeError {
    match error {
        JudgeError::Tokenizer { number, source } => JudgeError::Tokenizer { number: missing[number], source },
        error => error,
    }
}

/// What answers depend on besides the question.
fn fingerprint(checkpoint: &Checkpoint<Cpu>, how: &WeightOptions, no_bos: bool) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    hash.update(checkpoint.config.to_json(how.operands));
    hash.update(checkpoint.tokenizer.hash());
    hash.update([u8::from(no_bos)]);
    for sum in checkpoint.weights.sums_of_squares(&checkpoint.device)? {
        hash.update(sum.to_le_bytes());
    }
    Ok(hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect())
}

/// A line of the file of answers.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Model { model: String },
    // Task and question are for people: the answer belongs to the id.
    Answer { task: String, question: usize, id: String, answer: Answer },
}

/// Answers of this run and of those before, by the ids of questions.
struct Answers {
    known: HashMap<String, Answer>,
    file: Option<File>,
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
        // Bytes: a cut may go through a character.
        let mut line = vec![];
        while reader.read_until(b'\n', &mut line).with_context(|| cannot("read"))? > 0 && line.ends_with(b"\n") {
            lines += 1;
            match serde_json::from_slice(&line)
                .with_context(|| format!("{}:{lines}: not a line of answers", path.display()))?
            {
                Line::Model { model: other } if other != model => {
                    return Err(anyhow::anyhow!(
                        "{} holds the answers of another model, --dtype, --weights or --no-bos",
                        path.display()
                    ))
                    .help("name another file with --out, or remove this one");
                }
                Line::Model { .. } => {}
                Line::Answer { id, answer, .. } => drop(known.insert(id, answer)),
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

    /// The answer to a question, if it has as many choices: the file may be anybody's.
    fn of(&self, id: &str, question: &Question) -> Option<&Answer> {
        let n = question.choices.len();
        self.known.get(id).filter(|a| [a.log_likelihood.len(), a.greedy.len(), a.tokens.len()] == [n; 3])
    }

    fn add(&mut self, task: &str, question: usize, id: &str, answer: Answer) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            let line = Line::Answer { task: task.into(), question, id: id.into(), answer: answer.clone() };
            let line = serde_json::to_string(&line)? + "\n";
            file.write_all(line.as_bytes()).context("cannot write the answers")?;
        }
        self.known.insert(id.into(), answer);
        Ok(())
    }
}

/// The figures of benchmarks of several tasks, in order of their first.
fn groups(tasks: &[Task], given: &[Vec<Answer>]) -> Vec<TaskScores> {
    let mut wholes: Vec<(Task, Vec<Answer>)> = vec![];
    for (task, given) in tasks.iter().zip(given) {
        let Some(group) = &task.group else { continue };
        match wholes.iter_mut().find(|(whole, _)| whole.name == *group) {
            Some((whole, answers)) => {
                whole.questions.extend_from_slice(&task.questions);
                answers.extend_from_slice(given);
            }
            None => wholes.push((Task { name: group.clone(), ..task.clone() }, given.clone())),
        }
    }
    wholes.iter().map(|(whole, answers)| TaskScores::of(whole, answers)).collect()
}

fn table(report: &Report) -> String {
    let percent = |m: Mean| format!("{:.2} ± {:.2}", 100.0 * m.value, 100.0 * m.stderr);
    // Of a model that knows nothing, a perplexity can have a hundred digits.
    let plain = |m: Mean| match m.value {
        ..1e6 => format!("{:.3} ± {:.3}", m.value, m.stderr),
        _ => format!("{:.2e} ± {:.1e}", m.value, m.stderr),
    };
    let row = |s: &TaskScores| {
        let mark = |metric, text: String| if s.primary == metric { format!("{text} *") } else { text };
        vec![
            s.task.clone(),
            grouped(s.questions as u64),
            s.acc.map_or(String::new(), |m| mark(Metric::Acc, percent(m))),
            s.acc_norm.map_or(String::new(), |m| mark(Metric::AccNorm, percent(m))),
            mark(Metric::BitsPerByte, plain(s.bits_per_byte)),
            s.perplexity.map_or(String::new(), plain),
            if s.cut > 0 { grouped(s.cut as u64) } else { String::new() },
        ]
    };
    let rows: Vec<_> = report.tasks.iter().chain(&report.groups).map(row).collect();
    columns(&["task", "questions", "acc %", "acc_norm %", "bits/byte", "perplexity", "cut"], &rows)
}
