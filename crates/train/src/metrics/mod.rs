//! What happened in a run, written down where other programs and people look for it.
//!
//! Three views of the same events lie in the run's folder:
//!
//! - `metrics.jsonl`, the record: one JSON object a line, appended and never changed, but for what a resumed run has yet
//!   to do again. Everything below can be made from it.
//! - `tensorboard/`, the scalars of the record, in the format that TensorBoard reads.
//! - `report.html`, a page that a person can open anywhere: curves, expert load, samples. It is made from the record and
//!   `run.json` by [`report`], at the end of a run or at any time.
//!
//! # The lines of `metrics.jsonl`
//!
//! Every line has `kind` and `step`. A number that is not finite is `null`.
//!
//! | kind | keys |
//! |---|---|
//! | `step` | `step` from 1, `tokens` predicted so far, `seconds` of the run so far (earlier starts included), `loss` in nats a token, `balance_loss`, `z_loss`, `lr`, `grad_norm` before clipping, `clipped`, `skipped`, `tokens_per_second`, `flops_share` of the machine's peak or `null`, and `router`: for each sparse layer `layer`, `max_over_mean`, `balance`, `entropy`, `dead`, `load` (each expert's share) |
//! | `evaluation` | `step`, `tokens` trained on so far, `best`, and `total`, `languages` (with `language`), `sources` (with `source` and `language`): `tokens`, `bytes`, `nll`, `perplexity`, `bits_per_byte` |
//! | `sample` | `step` of the checkpoint, `prompt`, `completion` |
//!
//! When a run is resumed after step n, lines of later steps, and whatever a crash left half written, are cut away: the
//! steps are about to be done again. In a TensorBoard file nothing is cut; a new file says from which step on the older
//! ones no longer count.
//!
//! Nothing here decides anything: no number written is read by the run again, except the seconds.

mod lines;
mod report;
mod tensorboard;

pub use report::report;

use crate::health::RouterHealth;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tensorboard::EventFile;
use wudao_data::document::Lang;
use wudao_data::tally::{Figures, Sums, Tally};

/// Name of the record in the run's folder.
pub const RECORD: &str = "metrics.jsonl";
/// Name of the folder of event files in the run's folder.
pub const TENSORBOARD: &str = "tensorboard";
/// Name of the page in the run's folder.
pub const REPORT: &str = "report.html";

/// A file of the metrics could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct MetricsError {
    /// What was attempted: `read`, `write`, …
    pub doing: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

impl MetricsError {
    fn new<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + use<'a> {
        move |source| MetricsError { doing, path: path.to_owned(), source }
    }
}

/// One optimizer step.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Predicted tokens so far, this step's included.
    pub tokens: u64,
    /// Mean cross entropy, nats a token.
    pub loss: f64,
    /// The load-balance loss, coefficient included.
    pub balance_loss: f64,
    /// The z-loss, coefficient included.
    pub z_loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the gradient was scaled down.
    pub clipped: bool,
    /// Whether the weights were left alone, the loss or the gradient not being finite.
    pub skipped: bool,
    /// Speed.
    pub tokens_per_second: f64,
    /// Share of the machine's measured peak, if that is known.
    pub flops_share: Option<f64>,
    /// The routers, one entry per sparse layer.
    pub router: Vec<RouterHealth>,
}

/// What was measured on held-out text.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EvaluationRecord {
    /// Steps taken.
    pub step: u64,
    /// Predicted tokens the model was trained on so far.
    pub tokens: u64,
    /// Whether no earlier evaluation of the run was better.
    pub best: bool,
    /// All held-out text.
    pub total: Figures,
    /// By language.
    pub languages: Vec<LanguageFigures>,
    /// By source and language.
    pub sources: Vec<SourceFigures>,
}

/// Figures of the held-out text in one language.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LanguageFigures {
    /// The language.
    pub language: Lang,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of the held-out text of one source in one language.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SourceFigures {
    /// Name of the source.
    pub source: String,
    /// The language.
    pub language: Lang,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

impl EvaluationRecord {
    /// The record of a tally. `names` are those of the sources; a source beyond them is called by its number.
    pub fn of(step: u64, tokens: u64, best: bool, tally: &Tally, names: &[String]) -> EvaluationRecord {
        let name = |source: u16| names.get(usize::from(source)).cloned().unwrap_or_else(|| source.to_string());
        let language = |(&language, sums): (&Lang, &Sums)| LanguageFigures { language, figures: sums.figures() };
        let source =
            |(source, language, sums): (u16, Lang, &Sums)| SourceFigures { source: name(source), language, figures: sums.figures() };
        EvaluationRecord {
            step,
            tokens,
            best,
            total: tally.total().figures(),
            languages: tally.languages().iter().map(language).collect(),
            sources: tally.cells().map(source).collect(),
        }
    }
}

/// A text that a model of the run wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, serde::Deserialize)]
pub struct Sample {
    /// Step of the checkpoint.
    pub step: u64,
    /// What it was given.
    pub prompt: String,
    /// What it made of it, without the prompt.
    pub completion: String,
}

/// A line of the record.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Step {
        #[serde(flatten)]
        record: &'a StepRecord,
        seconds: f64,
    },
    Evaluation(&'a EvaluationRecord),
    Sample(&'a Sample),
}

/// The open record and event file of a run. One rank alone has it.
///
/// Each call writes its line at once, so that whoever follows the file sees it.
pub struct Metrics {
    path: PathBuf,
    lines: File,
    events: EventFile,
    started: Instant,
    seconds_before: f64,
}

impl Metrics {
    /// Opens the record in `out`, making the folder if need be.
    ///
    /// `None` begins a new run: what an older one left is cut away. `Some(n)` goes on after step n: what was recorded up
    /// to and including n stays.
    pub fn open(out: &Path, resume_after_step: Option<u64>) -> Result<Metrics, MetricsError> {
        let folder = out.join(TENSORBOARD);
        fs::create_dir_all(&folder).map_err(MetricsError::new("create", &folder))?;
        let path = out.join(RECORD);
        let seconds_before = match resume_after_step {
            Some(last) => lines::cut(&path, last)?,
            None => {
                File::create(&path).map_err(MetricsError::new("create", &path))?;
                0.0
            }
        };
        Ok(Metrics {
            lines: lines::open(&path)?,
            path,
            events: EventFile::create(&folder, resume_after_step.map_or(0, |last| last + 1), wall_time())?,
            started: Instant::now(),
            seconds_before,
        })
    }

    /// Records a step.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), MetricsError> {
        let mut rounded = record.clone();
        for share in rounded.router.iter_mut().flat_map(|router| &mut router.load) {
            // Six decimals are far finer than the share of one token, and a third of the length.
            *share = (*share * 1e6).round() / 1e6;
        }
        let seconds = self.seconds_before + (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        self.append(&Line::Step { record: &rounded, seconds })?;

        let mut scalars = vec![
            ("train/loss".to_owned(), record.loss),
            ("train/balance_loss".to_owned(), record.balance_loss),
            ("train/z_loss".to_owned(), record.z_loss),
            ("train/learning_rate".to_owned(), record.lr),
            ("train/gradient_norm".to_owned(), record.grad_norm),
            ("train/skipped".to_owned(), f64::from(u8::from(record.skipped))),
            ("speed/tokens_per_second".to_owned(), record.tokens_per_second),
        ];
        scalars.extend(record.flops_share.map(|share| ("speed/share_of_peak".to_owned(), share)));
        for router in &record.router {
            for (name, value) in [
                ("max_over_mean", router.max_over_mean),
                ("balance", router.balance),
                ("entropy", router.entropy),
                ("dead", router.dead as f64),
            ] {
                scalars.push((format!("router_{name}/layer_{:02}", router.layer), value));
            }
        }
        self.events.scalars(record.step, wall_time(), &scalars)
    }

    /// Records an evaluation.
    pub fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), MetricsError> {
        self.append(&Line::Evaluation(record))?;
        let mut scalars = vec![];
        let mut add = |group: &str, name: &str, figures: &Figures| {
            scalars.push((format!("{group}_nll/{name}"), figures.nll));
            scalars.push((format!("{group}_perplexity/{name}"), figures.perplexity));
            scalars.push((format!("{group}_bits_per_byte/{name}"), figures.bits_per_byte));
        };
        add("validation", "total", &record.total);
        for LanguageFigures { language, figures } in &record.languages {
            add("validation", language.name(), figures);
        }
        for SourceFigures { source, language, figures } in &record.sources {
            add("validation_source", &format!("{source} ({})", language.name()), figures);
        }
        self.events.scalars(record.step, wall_time(), &scalars)
    }

    /// Waits until everything recorded has reached the medium.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        self.lines.sync_data().map_err(MetricsError::new("flush", &self.path))?;
        self.events.flush()
    }

    fn append(&mut self, line: &Line) -> Result<(), MetricsError> {
        self.lines.write_all(&lines::bytes(line)).map_err(MetricsError::new("write", &self.path))
    }
}

/// Adds a sample to the record of the run in `out`.
pub fn append_sample(out: &Path, sample: &Sample) -> Result<(), MetricsError> {
    let path = out.join(RECORD);
    let mut file = lines::open(&path)?;
    file.write_all(&lines::bytes(&Line::Sample(sample))).map_err(MetricsError::new("write", &path))
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
