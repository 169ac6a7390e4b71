//! `metrics.jsonl` and `run.json`.
//!
//! A line of the record is whole or it is dropped: a killed run may leave half a line, and a resumed run forgets what was
//! written after the step it goes on from. Readers skip what they cannot read.

use crate::error::TrainError;
use crate::evaluate::Evaluation;
use crate::event::StepReport;
use crate::health::RouterHealth;
use crate::metrics::{METRICS, RUN};
use crate::schedule::Plan;
use crate::settings::TrainSettings;
use serde::{Deserialize, Serialize, Serializer};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use wudao_model::Config;

/// A line of the record.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    Step(StepLine<'a>),
    Evaluation(&'a Evaluation),
    Sample(&'a Sample),
}

/// The keys of a step's line, which others read: they stay as they are, however [`StepReport`] changes.
#[derive(Serialize)]
pub(super) struct StepLine<'a> {
    step: u64,
    tokens: u64,
    epoch: f64,
    loss: f64,
    balance_loss: f64,
    z_loss: f64,
    lr: f64,
    grad_norm: f64,
    clipped: bool,
    skipped: bool,
    seconds: f64,
    elapsed: f64,
    tokens_per_second: f64,
    flops_share: Option<f64>,
    #[serde(serialize_with = "rounded")]
    router: &'a [RouterHealth],
}

impl<'a> Line<'a> {
    /// The line of a step, at the end of which the run had taken `elapsed` seconds.
    pub fn step(report: &'a StepReport, elapsed: f64) -> Line<'a> {
        Line::Step(StepLine {
            step: report.step,
            tokens: report.tokens,
            epoch: report.epoch,
            loss: report.loss,
            balance_loss: report.balance_loss,
            z_loss: report.z_loss,
            lr: report.lr,
            grad_norm: report.grad_norm,
            clipped: report.grad_scale < 1.0,
            skipped: !report.applied,
            seconds: report.seconds,
            elapsed: round(elapsed, 1e3),
            tokens_per_second: report.tokens_per_second,
            flops_share: report.flops_share,
            router: &report.routers,
        })
    }
}

/// There are many numbers of routers; digits finer than a single token's share are left out.
fn rounded<S: Serializer>(routers: &&[RouterHealth], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(routers.iter().map(|router| RouterHealth {
        max_over_mean: round(router.max_over_mean, 1e4),
        balance: round(router.balance, 1e4),
        entropy: round(router.entropy, 1e4),
        load: router.load.iter().map(|share| round(*share, 1e6)).collect(),
        ..*router
    }))
}

fn round(x: f64, parts: f64) -> f64 {
    (x * parts).round() / parts
}

/// What the model wrote at some step, for the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Steps taken before it.
    pub step: u64,
    /// The beginning it was given.
    pub prompt: String,
    /// How it went on.
    pub completion: String,
}

/// `run.json`: all that makes a run, resolved, for people and for the report. A resumed run writes it anew.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunFile {
    /// The program and its version.
    pub created_by: String,
    /// The settings.
    pub settings: TrainSettings,
    /// The model.
    pub model: Config,
    /// Parameters, and those that one token meets.
    pub parameters: (u64, u64),
    /// The fixed course.
    pub plan: Plan,
    /// SHA-256 of the tokenizer.
    pub tokenizer: String,
    /// Names of the sources.
    pub sources: Vec<String>,
    /// The machine, in words.
    pub machine: Vec<(String, String)>,
}

/// Writes `run.json` in one atomic step.
pub(crate) fn write_run(out: &Path, run: &RunFile) -> Result<(), TrainError> {
    let mut bytes = serde_json::to_vec_pretty(run).expect("plain structures with string keys");
    bytes.push(b'\n');
    replace(&out.join(RUN), &bytes).map_err(TrainError::io(&out.join(RUN), "write"))
}

/// Reads `run.json`.
pub fn read_run(out: &Path) -> io::Result<RunFile> {
    serde_json::from_slice(&fs::read(out.join(RUN))?).map_err(io::Error::other)
}

/// The course of the run that began in `out` with these very settings, if one did.
pub(crate) fn plan_of_run(out: &Path, settings: &TrainSettings) -> Option<Plan> {
    read_run(out).ok().filter(|run| run.settings == *settings).map(|run| run.plan)
}

/// Adds a sample to the record of the run in `out`, after the run.
pub fn append_sample(out: &Path, sample: &Sample) -> io::Result<()> {
    let (mut file, torn) = open(&out.join(METRICS))?;
    append(&mut file, torn, &Line::Sample(sample))
}

/// Opens a record to add to it, and says whether its last line lacks its end, as a crash may have left it.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut last = *b"\n";
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, last != *b"\n"))
}

fn append(file: &mut File, torn: bool, line: &Line) -> io::Result<()> {
    let mut bytes = if torn { vec![b'\n'] } else { vec![] };
    // A number that is not finite is written as null.
    serde_json::to_writer(&mut bytes, line).map_err(io::Error::other)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

/// Writes a file under another name, brings it to the disk, and renames it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// The record, open for appending.
pub(super) struct Jsonl {
    file: File,
    /// The last line may be half written.
    torn: bool,
}

impl Jsonl {
    /// Opens the record and drops every line that is not whole or is about a step after `step`. Returns the seconds that
    /// the run had taken by then, too.
    pub fn open(path: &Path, step: u64) -> Result<(Jsonl, f64), TrainError> {
        let mut elapsed = 0.0;
        if path.exists() {
            elapsed = truncate(path, step).map_err(TrainError::io(path, "write"))?;
        }
        let (file, torn) = open(path).map_err(TrainError::io(path, "open"))?;
        Ok((Jsonl { file, torn }, elapsed))
    }

    pub fn append(&mut self, line: &Line) -> io::Result<()> {
        let torn = std::mem::replace(&mut self.torn, true);
        append(&mut self.file, torn, line)?;
        self.torn = false;
        Ok(())
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A record on a full disk.
    #[cfg(all(test, target_os = "linux"))]
    pub fn full() -> Jsonl {
        Jsonl { file: OpenOptions::new().write(true).open("/dev/full").unwrap(), torn: false }
    }
}

/// What every line has, and the time that a step's line has too.
#[derive(Deserialize)]
pub(super) struct Head {
    #[serde(default)]
    pub kind: String,
    pub step: u64,
    elapsed: Option<f64>,
}

/// Calls `f` with every line of a record, its end left out; a missing file has none.
pub(super) fn lines(path: &Path, mut f: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut reader = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => BufReader::new(file?),
    };
    let mut line = vec![];
    while reader.read_until(b'\n', &mut line)? > 0 {
        f(line.strip_suffix(b"\n").unwrap_or(&line))?;
        line.clear();
    }
    Ok(())
}

fn truncate(path: &Path, step: u64) -> io::Result<f64> {
    let mut elapsed = 0.0;
    let temporary = path.with_extension("tmp");
    let mut to = BufWriter::new(File::create(&temporary)?);
    lines(path, |line| match serde_json::from_slice::<Head>(line) {
        Ok(head) if head.step <= step && step > 0 => {
            elapsed = head.elapsed.unwrap_or(elapsed);
            to.write_all(line)?;
            to.write_all(b"\n")
        }
        _ => Ok(()),
    })?;
    to.into_inner()?.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64) -> Sample {
        Sample { step, prompt: "你好\n".into(), completion: "“世界” \u{1F600}".into() }
    }

    #[test]
    fn a_resumed_record_forgets_what_came_after_and_half_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS);
        for step in [1, 2, 3, 4] {
            append_sample(dir.path(), &sample(step)).unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"{\"kind\":\"step\",\"step\":2,\"lo");
        fs::write(&path, bytes).unwrap();
        append_sample(dir.path(), &sample(2)).unwrap();
        let (mut record, _) = Jsonl::open(&path, 2).unwrap();
        record.append(&Line::Sample(&sample(9))).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> = text.lines().map(|l| serde_json::from_str::<Sample>(l).unwrap().step).collect();
        assert_eq!(steps, [1, 2, 2, 9]);
        assert!(text.contains("你好\\n") && text.ends_with("}\n"));
        Jsonl::open(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"", "a new run begins with an empty record");
    }
}
