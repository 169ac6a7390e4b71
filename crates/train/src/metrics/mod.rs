//! What a run writes down beside its checkpoints.
//!
//! - `metrics.jsonl` is the record, for programs: one JSON object a line, appended and never changed, but for what a
//!   resumed run has yet to do again. The other two say nothing that it does not.
//! - `tensorboard/` has its numbers as TensorBoard's event files, for those who watch many runs.
//! - `report.html` is a page for people, made by [`report`] from the record and `run.json`, at the end of a run or at any
//!   time: curves, expert load, samples.
//!
//! None of them can stop a run: what cannot be written is told once, as a warning. And but for the time spent, nothing
//! written here is ever read by the run again.
//!
//! # The lines of `metrics.jsonl`
//!
//! Every line has a `kind` and the `step` after which it was written. A number that is not finite is `null`.
//!
//! | kind | keys |
//! |---|---|
//! | `step` | `tokens` gone through so far, `epoch`, `loss` in nats a token, `balance_loss`, `z_loss`, `lr`, `grad_norm` before clipping, `clipped`, `skipped` (not finite: nothing was updated), `seconds` of the step, `elapsed` seconds of the run with earlier starts, evaluations and saving, `tokens_per_second`, `flops_share` of the machine's peak or `null`, and for each sparse layer in `router`: `layer`, `max_over_mean`, `balance`, `entropy`, `dead`, `load` (each expert's share); see [`RouterHealth`](crate::health::RouterHealth) |
//! | `evaluation` | `tokens`, `bytes`, `nll`, `perplexity`, `bits_per_byte` of all held-out text, the same by language in `languages` and by `source` and `language` in `sources`, `best`, `seconds` it took |
//! | `sample` | `prompt`, `completion` |

mod jsonl;
mod report;
mod tensorboard;

pub use jsonl::{RunFile, Sample, append_sample, read_run};
pub(crate) use jsonl::{plan_of_run, write_run};
pub use report::{ReportError, report};

use crate::error::{TrainError, chain};
use crate::evaluate::{Evaluation, Scores};
use crate::event::StepReport;
use jsonl::{Jsonl, Line};
use std::io;
use std::path::Path;
use std::time::Instant;
use tensorboard::EventFile;

/// The record of a run.
pub const METRICS: &str = "metrics.jsonl";
/// Settings, model, course and machine of a run.
pub const RUN: &str = "run.json";
/// The folder of TensorBoard's files.
pub const TENSORBOARD: &str = "tensorboard";
/// The report.
pub const REPORT: &str = "report.html";

/// Writes the record and TensorBoard's file of a run. Every call is on the disk's way at once, so that whoever follows the
/// files sees it.
pub(crate) struct Metrics {
    jsonl: Jsonl,
    events: EventFile,
    opened: Instant,
    /// Seconds that the run had taken before.
    before: f64,
    /// A failure was told.
    told: bool,
}

impl Metrics {
    /// Opens both in the run's folder. What they say about steps after `step`, from where the run goes on, is dropped.
    pub fn open(out: &Path, step: u64) -> Result<Metrics, TrainError> {
        let (jsonl, before) = Jsonl::open(&out.join(METRICS), step)?;
        let folder = out.join(TENSORBOARD);
        let events =
            EventFile::create(&folder, step).map_err(TrainError::io(&folder, "write TensorBoard's files to"))?;
        Ok(Metrics { jsonl, events, opened: Instant::now(), before, told: false })
    }

    /// Writes down a step. Returns a warning if that has failed for the first time.
    pub fn step(&mut self, report: &StepReport) -> Option<String> {
        let mut scalars = vec![
            ("train/loss".to_owned(), report.loss),
            ("train/learning_rate".into(), report.lr),
            ("train/gradient_norm".into(), report.grad_norm),
            ("train/tokens_per_second".into(), report.tokens_per_second),
        ];
        scalars.extend(report.flops_share.map(|share| ("train/share_of_peak".into(), share)));
        for (name, loss) in [("balance_loss", report.balance_loss), ("z_loss", report.z_loss)] {
            if loss != 0.0 {
                scalars.push((format!("train/{name}"), loss));
            }
        }
        for r in &report.routers {
            let tag = |what: &str| format!("router_{what}/layer_{:02}", r.layer);
            scalars.push((tag("max_over_mean"), r.max_over_mean));
            scalars.push((tag("balance"), r.balance));
            scalars.push((tag("entropy"), r.entropy));
            scalars.push((tag("dead"), r.dead as f64));
        }
        let elapsed = self.before + self.opened.elapsed().as_secs_f64();
        let line = Line::step(report, elapsed);
        let written = self.jsonl.append(&line).and_then(|()| self.events.scalars(report.step, &scalars));
        self.tell(written)
    }

    /// Writes down an evaluation. Returns a warning if that has failed for the first time.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Option<String> {
        let mut scalars = vec![];
        let mut add = |name: &str, scores: &Scores| {
            scalars.push((format!("validation_nll/{name}"), scores.nll));
            scalars.push((format!("validation_perplexity/{name}"), scores.perplexity));
            scalars.push((format!("validation_bits_per_byte/{name}"), scores.bits_per_byte));
        };
        add("total", &evaluation.total);
        for (language, scores) in &evaluation.languages {
            add(language.name(), scores);
        }
        for row in &evaluation.sources {
            add(&format!("{} ({})", row.source, row.language.name()), &row.scores);
        }
        let line = Line::Evaluation(evaluation);
        let written = self.jsonl.append(&line).and_then(|()| self.events.scalars(evaluation.step, &scalars));
        self.tell(written)
    }

    /// Brings what was written to the disk, so that the record reaches at least as far as the checkpoint that follows.
    pub fn sync(&mut self) -> Option<String> {
        let synced = self.jsonl.sync().and_then(|()| self.events.sync());
        self.tell(synced)
    }

    fn tell(&mut self, result: io::Result<()>) -> Option<String> {
        let error = result.err().filter(|_| !self.told)?;
        self.told = true;
        Some(format!("cannot write the run's metrics: {}; training goes on without", chain(&error)))
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
