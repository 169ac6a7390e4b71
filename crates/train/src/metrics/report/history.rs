//! The record of a run, read back for the report.
//!
//! Read once from beginning to end, in bounded memory. A line that is not understood (of a newer version, damaged) is
//! counted and passed over: a report with a gap is better than none.

use super::curve::{Columns, Curve};
use crate::metrics::Sample;
use crate::metrics::jsonl::{self, Head};
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

/// Points of a curve: about as many as a wide chart has pixels.
const POINTS: usize = 1024;
/// Points of a router's curve; there are as many of them as sparse layers.
const ROUTER_POINTS: usize = 320;
/// Cells of all heat maps together.
const CELLS: usize = 600_000;
/// Evaluations that the curves show.
const EVALUATIONS: usize = 1000;
/// Samples and skipped steps that are shown, the newest.
const SHOWN: usize = 24;

/// What the report tells of a run.
pub struct History {
    /// Lines about steps.
    pub steps: u64,
    /// Number of the first step.
    pub first_step: Option<u64>,
    /// Number of the last step.
    pub last_step: u64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Seconds.
    pub seconds: f64,
    /// Training loss.
    pub loss: Curve,
    /// Learning rate.
    pub lr: Curve,
    /// Norm of the gradient.
    pub grad_norm: Curve,
    /// Tokens a second.
    pub speed: Curve,
    /// Share of the machine's peak.
    pub share: Curve,
    /// Steps whose gradient was scaled down.
    pub clipped: u64,
    /// Steps that were skipped: how many, and the newest of them.
    pub skipped: (u64, VecDeque<u64>),
    /// By number of the layer.
    pub layers: BTreeMap<usize, Layer>,
    /// By step, with the tokens trained on.
    pub evaluations: BTreeMap<u64, EvaluationLine>,
    /// The newest.
    pub samples: VecDeque<Sample>,
    /// Lines that could not be read.
    pub unread: u64,
}

/// One router's course.
pub struct Layer {
    /// Load of the busiest expert over the mean.
    pub max_over_mean: Curve,
    /// Balance of the load.
    pub balance: Curve,
    /// Entropy of a token's scores.
    pub entropy: Curve,
    /// Shares of the experts.
    pub load: Columns,
    /// Experts.
    pub experts: usize,
    /// What the last line said.
    pub last: RouterLine,
}

/// A line about a step, as far as the report shows it.
#[derive(Deserialize)]
struct StepLine {
    #[serde(default)]
    tokens: u64,
    elapsed: Option<f64>,
    loss: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    tokens_per_second: Option<f64>,
    flops_share: Option<f64>,
    #[serde(default)]
    clipped: bool,
    #[serde(default)]
    skipped: bool,
    #[serde(default)]
    router: Vec<RouterLine>,
}

/// What a line says of one router.
#[derive(Clone, Deserialize)]
pub struct RouterLine {
    layer: usize,
    /// Load of the busiest expert over the mean.
    pub max_over_mean: Option<f64>,
    /// Balance of the load.
    pub balance: Option<f64>,
    /// Entropy of a token's scores.
    pub entropy: Option<f64>,
    /// Experts without a token.
    #[serde(default)]
    pub dead: u64,
    #[serde(default)]
    load: Vec<Option<f64>>,
}

/// A line about an evaluation.
#[derive(Clone, Deserialize)]
pub struct EvaluationLine {
    /// The best so far.
    #[serde(default)]
    pub best: bool,
    /// All text.
    #[serde(flatten)]
    pub total: Row,
    /// By language.
    #[serde(default)]
    pub languages: BTreeMap<String, Row>,
    /// By source and language.
    #[serde(default)]
    pub sources: Vec<Row>,
}

/// Figures of some held-out text.
#[derive(Clone, Deserialize)]
pub struct Row {
    /// Name of the source, if it is of one.
    #[serde(default)]
    pub source: String,
    /// Short name of the language, if the row does not stand under it.
    #[serde(default)]
    pub language: String,
    /// Predicted tokens.
    #[serde(default)]
    pub tokens: u64,
    /// UTF-8 bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Nats a token.
    pub nll: Option<f64>,
    /// Its exponential.
    pub perplexity: Option<f64>,
    /// Bits a byte.
    pub bits_per_byte: Option<f64>,
}

impl History {
    /// Reads the record; a missing file is an empty one.
    pub fn read(path: &Path) -> io::Result<History> {
        let curve = || Curve::new(POINTS);
        let mut history = History {
            steps: 0,
            first_step: None,
            last_step: 0,
            tokens: 0,
            seconds: 0.0,
            loss: curve(),
            lr: curve(),
            grad_norm: curve(),
            speed: curve(),
            share: curve(),
            clipped: 0,
            skipped: (0, VecDeque::new()),
            layers: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            samples: VecDeque::new(),
            unread: 0,
        };
        jsonl::lines(path, |line| {
            if history.take(line).is_err() {
                history.unread += 1;
            }
            Ok(())
        })?;
        Ok(history)
    }

    fn take(&mut self, line: &[u8]) -> serde_json::Result<()> {
        let Head { kind, step, .. } = serde_json::from_slice(line)?;
        match kind.as_str() {
            "step" => self.step(step, serde_json::from_slice(line)?),
            "evaluation" => {
                // Of one step that was evaluated twice, the later counts.
                self.evaluations.insert(step, serde_json::from_slice(line)?);
                self.thin();
            }
            "sample" => newest(&mut self.samples, serde_json::from_slice(line)?),
            _ => self.unread += 1,
        }
        Ok(())
    }

    fn step(&mut self, step: u64, line: StepLine) {
        self.steps += 1;
        self.first_step.get_or_insert(step);
        self.last_step = self.last_step.max(step);
        self.tokens = line.tokens;
        self.seconds = line.elapsed.unwrap_or(self.seconds);
        self.clipped += u64::from(line.clipped);
        if line.skipped {
            self.skipped.0 += 1;
            newest(&mut self.skipped.1, step);
        }
        for (curve, value) in [
            (&mut self.loss, line.loss),
            (&mut self.lr, line.lr),
            (&mut self.grad_norm, line.grad_norm),
            (&mut self.speed, line.tokens_per_second),
            (&mut self.share, line.flops_share),
        ] {
            curve.push(step, value.unwrap_or(f64::NAN));
        }
        let experts: usize = line.router.iter().map(|router| router.load.len()).sum();
        for router in line.router {
            let layer = self.layers.entry(router.layer).or_insert_with(|| Layer {
                max_over_mean: Curve::new(ROUTER_POINTS),
                balance: Curve::new(ROUTER_POINTS),
                entropy: Curve::new(ROUTER_POINTS),
                load: Columns::new((CELLS / experts.max(1)).clamp(24, 400)),
                experts: router.load.len(),
                last: router.clone(),
            });
            layer.max_over_mean.push(step, router.max_over_mean.unwrap_or(f64::NAN));
            layer.balance.push(step, router.balance.unwrap_or(f64::NAN));
            layer.entropy.push(step, router.entropy.unwrap_or(f64::NAN));
            let load: Vec<f64> = router.load.iter().map(|share| share.unwrap_or(0.0)).collect();
            layer.load.push(step, &load);
            layer.last = router;
        }
    }

    /// Drops every other evaluation when there are too many, but never the newest or the best.
    fn thin(&mut self) {
        if self.evaluations.len() > 2 * EVALUATIONS {
            let mut nth = 0;
            let best = self.best().map(|(step, _)| step);
            let last = self.evaluations.keys().next_back().copied();
            self.evaluations.retain(|step, _| {
                nth += 1;
                nth % 2 == 0 || Some(*step) == best || Some(*step) == last
            });
        }
    }

    /// The first and the last step that anything is known of.
    pub fn span(&self) -> [u64; 2] {
        let evaluated = || self.evaluations.keys().copied();
        let first = self.first_step.into_iter().chain(evaluated().next()).min().unwrap_or(0);
        [first, self.last_step.max(evaluated().next_back().unwrap_or(0))]
    }

    /// The best evaluation, with its step.
    pub fn best(&self) -> Option<(u64, &EvaluationLine)> {
        self.evaluations.iter().rev().find(|(_, line)| line.best).map(|(step, line)| (*step, line))
    }

    /// The newest evaluation, with its step.
    pub fn newest_evaluation(&self) -> Option<(u64, &EvaluationLine)> {
        self.evaluations.iter().next_back().map(|(step, line)| (*step, line))
    }
}

fn newest<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == SHOWN {
        queue.pop_front();
    }
    queue.push_back(item);
}
