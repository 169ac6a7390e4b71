//! A training run as it goes: what is known of it, and the one line that shows it.
//!
//! [`Progress`] is the memory of a run for those who look on: the live line here and the full view in [`crate::tui`].

use crate::printer::{LiveLine, Printer, bytes, duration, grouped, short};
use std::collections::BTreeMap;
use wudao_train::evaluate::Evaluation;
use wudao_train::{End, Event, Observer, Started, StepReport};

/// Steps over which the shown loss is smoothed (the half-life of an exponential mean).
const HALF_LIFE: f64 = 10.0;
/// Most points of a curve that are kept; older ones are thinned out.
const MOST_POINTS: usize = 2048;

/// What is known of a run.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Last finished step.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Tokens learned from.
    pub tokens: u64,
    /// Loss of the last step, smoothed, in nats a token.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Speed.
    pub tokens_per_second: f64,
    /// Share of the machine's measured peak.
    pub peak_share: Option<f64>,
    /// Time left.
    pub seconds_left: Option<f64>,
    /// Training loss by step.
    pub curve: Vec<(f64, f64)>,
    /// Held-out loss by language and step, in nats a token.
    pub held_out: BTreeMap<String, Vec<(f64, f64)>>,
    /// Load of each sparse layer's experts over the mean load.
    pub loads: Vec<(usize, Vec<f64>)>,
    /// What was said, oldest first.
    pub messages: Vec<String>,
}

impl Progress {
    /// Takes note of an event.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Started(started) => {
                self.step = started.step;
                self.steps = started.plan.steps;
                self.messages.push(describe_start(started));
            }
            Event::Step(report) => self.step(report),
            Event::Evaluated(evaluation) => {
                for (language, figures) in &evaluation.languages {
                    let curve = self.held_out.entry(language.name().to_owned()).or_default();
                    curve.push((evaluation.step as f64, figures.nll));
                }
                self.messages.push(describe_evaluation(evaluation));
            }
            Event::CheckpointWritten { step, bytes: size, seconds, .. } => self.messages.push(format!(
                "step {}: checkpoint saved ({} in {})",
                grouped(*step),
                bytes(*size),
                duration(*seconds)
            )),
            Event::Skipped { step, loss, grad_norm, in_a_row } => self.messages.push(format!(
                "step {} skipped: loss {loss}, gradient norm {grad_norm} ({in_a_row} in a row)",
                grouped(*step)
            )),
            Event::Warning(text) => self.messages.push(format!("warning: {text}")),
            Event::Finished(_) => {}
        }
    }

    fn step(&mut self, report: &StepReport) {
        if !report.applied {
            return;
        }
        let keep = 0.5f64.powf(1.0 / HALF_LIFE);
        self.loss = Some(self.loss.map_or(report.loss, |loss| keep * loss + (1.0 - keep) * report.loss));
        self.step = report.step;
        self.steps = report.steps;
        self.tokens = report.tokens;
        self.lr = report.lr;
        self.tokens_per_second = report.tokens_per_second;
        self.peak_share = report.flops_share;
        self.seconds_left = Some(report.seconds_left);
        self.loads = report
            .routers
            .iter()
            .map(|router| (router.layer, router.load.iter().map(|share| share * router.load.len() as f64).collect()))
            .collect();
        self.curve.push((report.step as f64, report.loss));
        if self.curve.len() > MOST_POINTS {
            self.curve = self.curve.chunks(2).map(|pair| pair[0]).collect();
        }
    }

    /// Step, loss, learning rate, speed, share of peak, time left.
    pub fn line(&self) -> String {
        let mut parts = vec![format!("step {} of {}", grouped(self.step), grouped(self.steps))];
        parts.extend(self.loss.map(|loss| format!("loss {loss:.3}")));
        parts.push(format!("lr {:.2e}", self.lr));
        parts.push(format!("{} tokens/s", short(self.tokens_per_second.round())));
        parts.extend(self.peak_share.map(|share| format!("{:.0} % of peak", 100.0 * share)));
        let busiest = self.loads.iter().flat_map(|(_, load)| load).fold(0.0, |a: f64, &b| a.max(b));
        if busiest > 0.0 {
            parts.push(format!("busiest expert {busiest:.1}×"));
        }
        parts.extend(self.seconds_left.map(|seconds| format!("{} left", duration(seconds))));
        parts.join("  ")
    }
}

fn describe_start(started: &Started) -> String {
    let Started { step, plan, tokens_per_step, parameters, active_parameters, resumed_from, estimate, .. } = started;
    let again = resumed_from.as_ref().map_or(String::new(), |_| format!(", going on after step {}", grouped(*step)));
    format!(
        "{} parameters ({} active), {} steps of {} tokens, about {} of memory{again}",
        short(*parameters as f64),
        short(*active_parameters as f64),
        grouped(plan.steps),
        grouped(*tokens_per_step),
        bytes(estimate.total())
    )
}

fn describe_evaluation(evaluation: &Evaluation) -> String {
    let languages = evaluation.languages.iter();
    let parts: Vec<String> = languages.map(|(lang, f)| format!("{lang} {:.3}", f.bits_per_byte)).collect();
    format!(
        "step {}: held-out loss {:.3}, bits a byte {:.3} ({}){}",
        grouped(evaluation.step),
        evaluation.total.nll,
        evaluation.total.bits_per_byte,
        parts.join(", "),
        if evaluation.best { ", the best so far" } else { "" }
    )
}

/// Shows a run in one line, and what happens besides as lines above it.
pub struct Live<'a> {
    printer: &'a Printer,
    line: Option<LiveLine<'a>>,
    progress: Progress,
}

impl<'a> Live<'a> {
    /// Shows nothing yet.
    pub fn new(printer: &'a Printer) -> Live<'a> {
        Live { printer, line: Some(printer.live_line()), progress: Progress::default() }
    }
}

impl Observer for Live<'_> {
    fn on(&mut self, event: &Event) {
        self.progress.note(event);
        let message = self.progress.messages.pop();
        match (event, message) {
            (Event::Step(report), _) => {
                let last = report.step == report.steps;
                let line = self.progress.line();
                self.line.iter_mut().for_each(|live| live.show(&line, last));
            }
            (Event::Warning(text), _) => self.printer.warn(text),
            (Event::Skipped { .. }, Some(text)) => self.printer.warn(text),
            (Event::Started(_), Some(text)) => self.printer.status("Training", text),
            (Event::Evaluated(_), Some(text)) => self.printer.status("Evaluated", text),
            (Event::CheckpointWritten { .. }, Some(text)) => self.printer.detail(text),
            (Event::Finished(outcome), _) => {
                self.line = None;
                let verb = if outcome.end == End::Complete { "Finished" } else { "Stopped" };
                let text = format!("after step {}, {} tokens", grouped(outcome.step), short(outcome.tokens as f64));
                self.printer.status(verb, text);
            }
            _ => {}
        }
    }
}
