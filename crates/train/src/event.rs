//! What a run tells while it goes on.
//!
//! Events are values, not text: the binary draws a line or a whole terminal from them, a test counts them, and
//! `metrics.jsonl` keeps the ones that matter. Nothing a run computes depends on who listens.

use crate::estimate::Estimate;
use crate::evaluate::Evaluation;
use crate::health::RouterHealth;
use crate::schedule::Plan;
use serde::Serialize;
use std::path::PathBuf;

/// Hears what a run tells.
pub trait Observer {
    /// Called on the training thread between steps: be quick.
    fn on(&mut self, event: &Event);
}

/// Hears nothing.
impl Observer for () {
    fn on(&mut self, _: &Event) {}
}

/// Keeps everything.
impl Observer for Vec<Event> {
    fn on(&mut self, event: &Event) {
        self.push(event.clone());
    }
}

/// Something happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// All checks passed, everything is loaded; the first step is next.
    Started(Started),
    /// A step was taken (or skipped: see [`StepReport::applied`]).
    Step(StepReport),
    /// Held-out text was measured.
    Evaluated(Evaluation),
    /// A checkpoint is on the disk.
    CheckpointWritten {
        /// Its step.
        step: u64,
        /// Its folder.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// How long it took to write, in the background.
        seconds: f64,
    },
    /// A step had a loss or a gradient that is not finite: nothing was updated. Follows its [`Event::Step`].
    Skipped {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Skipped since the last update.
        in_a_row: u64,
    },
    /// A sentence for a person.
    Warning(String),
    /// The run is over.
    Finished(Outcome),
}

/// What is known when a run starts.
#[derive(Clone, PartialEq, Debug)]
pub struct Started {
    /// Steps taken before (0 unless resumed).
    pub step: u64,
    /// The fixed course.
    pub plan: Plan,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Parameters.
    pub parameters: u64,
    /// Parameters that one token meets.
    pub active_parameters: u64,
    /// Training documents.
    pub documents: u64,
    /// The checkpoint the run goes on from.
    pub resumed_from: Option<PathBuf>,
    /// What memory it should take.
    pub estimate: Estimate,
}

/// What a step did. Numbers are of the global batch.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Steps of the whole run.
    #[serde(skip)]
    pub steps: u64,
    /// Tokens gone through so far.
    pub tokens: u64,
    /// Passes over the training documents so far, in documents.
    pub epoch: f64,
    /// Mean cross entropy before the update, nats a token.
    pub loss: f64,
    /// The routers' load-balance loss, coefficient included; not part of `loss`.
    pub balance_loss: f64,
    /// The routers' z-loss, coefficient included; not part of `loss`.
    pub z_loss: f64,
    /// Learning rate (AdamW's).
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// What clipping multiplied it by.
    pub grad_scale: f64,
    /// False if it was not finite and nothing was updated.
    pub applied: bool,
    /// Seconds it took.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Share of the machine's measured peak that the model's arithmetic makes up, if the peak is known.
    pub flops_share: Option<f64>,
    /// Seconds left at the recent speed, evaluations not counted.
    #[serde(skip)]
    pub seconds_left: f64,
    /// The routers, one entry per sparse layer.
    pub routers: Vec<RouterHealth>,
}

/// Why a run ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All steps were taken.
    Complete,
    /// It was asked to stop, and saved.
    Stopped,
}

/// How a run ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// Steps taken in all.
    pub step: u64,
    /// Steps of the plan.
    pub steps: u64,
    /// Tokens gone through in all.
    pub tokens: u64,
    /// The newest checkpoint (empty on ranks other than the first).
    pub last: PathBuf,
    /// The checkpoint with the best evaluation, if any was evaluated.
    pub best: Option<PathBuf>,
    /// The evaluation of the newest checkpoint, if this run made it.
    pub evaluation: Option<Evaluation>,
    /// The report.
    pub report: PathBuf,
}
