//! A training run, from the checks before the start to the last checkpoint: the file to read first.
//!
//! ```text
//! check -> lock the folder -> weights (fresh, given, or of a checkpoint) -> fix the number of steps
//!   -> [ batches -> step -> tell -> evaluate? -> checkpoint? ]* -> last checkpoint -> report
//! ```
//!
//! What a run computes depends on its settings, its data and the number of its ranks, on nothing else: not on the clock,
//! not on threads, not on who watches, not on how often it was interrupted. The clock is read for display, and once
//! before the first step if the run was given minutes.
//!
//! Every rank calls [`run`] with its own device and communicator. The first rank alone touches files; whenever it may have
//! failed at that, all ranks are told, so that none waits for ever.

mod pace;
mod start;

use crate::checkpoint::{Best, Contents, State, Writer, gather};
use crate::error::TrainError;
use crate::evaluate::{Evaluation, Subset, evaluate};
use crate::event::{End, Event, Observer, Outcome, Started, StepReport};
use crate::health::{Watch, health};
use crate::lock::Lock;
use crate::metrics::{Metrics, REPORT, report};
use crate::optimizer::Rates;
use crate::settings::TrainSettings;
use crate::step::{Learner, StepResult};
use pace::Pace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use wudao_comm::Comm;
use wudao_data::batch::{Batch, Layout, TrainStream};
use wudao_data::manifest::TokenizerStamp;
use wudao_data::shard::{Documents, ShardSet};
use wudao_data::tokenizer::Tokenizer;
use wudao_device::{DType, Device, Fault};
use wudao_model::weights::{Listed, Snapshot};
use wudao_model::{Config, Counts};

/// The type that weights are kept and saved in, whatever products multiply.
const KEPT: DType = DType::F32;

/// Documents to learn from or to be measured on.
pub type AnyDocuments<'a> = &'a (dyn Documents + Sync);

/// What a run learns from.
#[derive(Clone)]
pub struct Data<'a> {
    /// Documents to learn from.
    pub train: AnyDocuments<'a>,
    /// Documents to be measured on.
    pub validation: AnyDocuments<'a>,
    /// The tokenizer of their ids.
    pub stamp: TokenizerStamp,
    /// Names of the sources, by number.
    pub sources: Vec<String>,
    /// What tells this data from other data, such as [`Manifest::fingerprint`](wudao_data::manifest::Manifest::fingerprint);
    /// `None` if nothing does. A run goes on over the data it began with alone.
    pub fingerprint: Option<String>,
}

impl<'a> Data<'a> {
    /// Both splits of a prepared data set.
    pub fn of_shards(train: &'a ShardSet, validation: &'a ShardSet) -> Data<'a> {
        Data {
            train,
            validation,
            stamp: train.tokenizer().clone(),
            sources: train.manifest().sources.iter().map(|s| s.name.clone()).collect(),
            fingerprint: Some(train.manifest().fingerprint()),
        }
    }
}

/// What a run begins with.
#[derive(Clone, Copy, Debug)]
pub enum Init<'a> {
    /// Weights drawn from the seed.
    Fresh,
    /// The weights of a model's folder, and nothing else of it.
    From(&'a Path),
    /// The newest whole checkpoint in the run's own folder; if there is none, as [`Init::Fresh`].
    Resume,
}

/// All that a run needs.
pub struct Job<'a, D: Device> {
    /// The machine.
    pub device: &'a D,
    /// The other ranks.
    pub comm: &'a dyn Comm<D>,
    /// What the model is.
    pub config: &'a Config,
    /// How it is trained.
    pub settings: &'a TrainSettings,
    /// What it learns from.
    pub data: Data<'a>,
    /// The tokenizer of the data, a copy of which goes into every checkpoint.
    pub tokenizer: &'a Tokenizer,
    /// The run's folder; made if it does not exist.
    pub out: &'a Path,
    /// What it begins with.
    pub init: Init<'a>,
    /// Bytes of memory that the run may take; `None`: no check.
    pub available_memory: Option<u64>,
    /// The machine's measured peak in operations a second, for [`StepReport::flops_share`].
    pub peak_flops: Option<f64>,
    /// The machine in words, for the report.
    pub machine: Vec<(String, String)>,
}

/// A run on its way.
struct Run<'a, D: Device> {
    job: &'a Job<'a, D>,
    learner: Learner<'a, D>,
    stream: TrainStream<AnyDocuments<'a>>,
    accumulation: usize,
    held_out: Subset<AnyDocuments<'a>>,
    state: State,
    /// The newest checkpoint, and its step.
    last: Option<(u64, PathBuf)>,
    /// The best checkpoint before the one that is being written.
    best_before: Option<Best>,
    evaluation: Option<Evaluation>,
    counts: Counts,
    watch: Watch,
    pace: Pace,
    /// Whether checkpoints are written from a copy; if not, this rank is the only one.
    copies: bool,
    /// What only the first rank has.
    files: Option<Files>,
}

/// The run's folder in the hands of the first rank.
struct Files {
    _lock: Lock,
    metrics: Metrics,
    writer: Writer,
    /// The tokenizer's files.
    tokenizer: Arc<Vec<(String, Vec<u8>)>>,
}

/// Trains until the plan is fulfilled or `stop` is set; then the step is finished and saved.
///
/// # Errors
/// Whatever is wrong before the start, naming the setting, file or folder and what to do; afterwards, if the machine
/// fails, if too many steps in a row are not finite, or if the last checkpoint cannot be written. Earlier checkpoints
/// are whole in any case.
pub fn run<D: Device>(job: &Job<D>, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome, TrainError> {
    let mut run = Run::start(job, observer)?;
    let mut end = End::Complete;
    while run.state.step < run.state.plan.steps {
        let result = run.step(observer)?;
        run.tell_saved(false, observer);
        let hopeless = run.state.guard.note(result.applied, job.settings.max_skipped);
        if !result.applied {
            let (step, in_a_row) = (run.state.step, run.state.guard.in_a_row);
            observer.on(&Event::Skipped { step, loss: result.loss, grad_norm: result.grad_norm, in_a_row });
        }
        if hopeless {
            return Err(run.give_up(observer));
        }
        let stopped = run.any(stop.load(Ordering::Relaxed))?;
        let complete = run.state.step == run.state.plan.steps;
        if complete || due(run.state.step, job.settings.eval_every) {
            run.evaluate(observer)?;
        }
        if complete || stopped || due(run.state.step, job.settings.checkpoint_every) {
            run.save(complete || due(run.state.step, job.settings.checkpoint_every), observer)?;
        }
        if stopped && !complete {
            end = End::Stopped;
            break;
        }
    }
    run.finish(end, observer)
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<'a, D: Device> Run<'a, D> {
    /// True if any rank says so.
    fn any(&self, here: bool) -> Result<bool, Fault> {
        any(self.job.comm, here)
    }

    /// One step: batches, update, bookkeeping, and telling.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<StepResult, TrainError> {
        let begin = Instant::now();
        let batches = agree(self.job.comm, next_batches(&mut self.stream, self.accumulation))?;
        let rates = self.rates(self.state.step + 1);
        let result = self.learner.step(&batches, rates)?;
        self.state.step += 1;
        self.state.tokens += result.tokens;
        self.state.updates = self.learner.optimizer.updates();
        self.state.cursor = self.stream.cursor();
        let report = self.report(&batches, &result, rates, begin.elapsed().as_secs_f64());
        for warning in self.watch.note(&report.routers) {
            observer.on(&Event::Warning(format!("step {}: {warning}", report.step)));
        }
        observer.on(&Event::Step(report.clone()));
        if !result.applied || due(report.step, self.job.settings.log_every) || report.step == self.state.plan.steps {
            self.record(observer, |m| m.step(&report));
        }
        Ok(result)
    }

    /// Learning rates of a step, the first being 1.
    fn rates(&self, step: u64) -> Rates {
        let (s, factor) = (self.job.settings, self.state.plan.factor(step));
        Rates { lr: s.lr * factor, muon_lr: s.muon_lr.unwrap_or(s.lr) * factor }
    }

    fn report(&mut self, batches: &[Batch], result: &StepResult, rates: Rates, seconds: f64) -> StepReport {
        let tokens_per_second = result.tokens as f64 / seconds.max(1e-9);
        // Attention's cost grows with a token's place in its segment: the mean over tokens of the segment's length.
        let lengths = || batches.iter().flat_map(|b| &b.segments).map(|s| s.range.len() as f64);
        let segment = lengths().map(|n| n * n).sum::<f64>() / lengths().sum::<f64>().max(1.0);
        let flops = self.counts.flops_training(segment.round() as usize) * tokens_per_second;
        let (cursor, steps) = (self.state.cursor, self.state.plan.steps);
        StepReport {
            step: self.state.step,
            steps,
            tokens: self.state.tokens,
            epoch: cursor.epoch as f64 + cursor.position as f64 / cursor.documents as f64,
            loss: result.loss,
            balance_loss: result.balance_loss,
            z_loss: result.z_loss,
            lr: rates.lr,
            grad_norm: result.grad_norm,
            grad_scale: result.grad_scale,
            applied: result.applied,
            seconds,
            tokens_per_second,
            flops_share: self.job.peak_flops.map(|peak| flops / peak / self.job.comm.size() as f64),
            seconds_left: self.pace.note(seconds) * (steps - self.state.step) as f64,
            routers: health(self.job.config, &result.routers),
        }
    }

    /// Writes something into the record, on the rank that has one, and tells if that failed.
    fn record(&mut self, observer: &mut dyn Observer, write: impl FnOnce(&mut Metrics) -> Option<String>) {
        if let Some(warning) = self.files.as_mut().and_then(|f| write(&mut f.metrics)) {
            observer.on(&Event::Warning(warning));
        }
    }

    /// Measures the held-out text.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.held_out.documents() == 0 {
            return Ok(());
        }
        let begin = Instant::now();
        let layout = Layout { rows: self.job.settings.micro_batch_size, ..*self.stream.layout() };
        let tally = evaluate(&self.learner, &self.held_out, layout, self.job.data.sources.len())?;
        let score = tally.total().bits_per_byte();
        let best = self.state.best.is_none_or(|b| score < b.bits_per_byte);
        let seconds = begin.elapsed().as_secs_f64();
        let evaluation = Evaluation::new(self.state.step, &tally, &self.job.data.sources, best, seconds);
        observer.on(&Event::Evaluated(evaluation.clone()));
        self.record(observer, |m| m.evaluation(&evaluation));
        self.evaluation = Some(evaluation);
        Ok(())
    }

    /// Takes a snapshot and has it written in the background, or writes at once if there is no room for one. Only a checkpoint
    /// that the settings ask for may become the best one: so an interruption, which saves too, leaves no trace in the states
    /// after it.
    fn save(&mut self, scheduled: bool, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let step = self.state.step;
        self.tell_saved(true, observer);
        self.record(observer, Metrics::sync);
        self.best_before = self.state.best;
        if let Some(e) = self.evaluation.as_ref().filter(|e| scheduled && e.step == step && e.best) {
            let bits_per_byte = e.total.bits_per_byte;
            if bits_per_byte.is_finite() {
                self.state.best = Some(Best { step, bits_per_byte });
            }
        }
        let (device, comm) = (self.job.device, self.job.comm);
        let (config, dtype, state) = (self.job.config.clone(), KEPT, self.state.clone());
        let (weights, optimizer) = (&self.learner.weights, &self.learner.optimizer);
        if let Some(files) = self.files.as_mut().filter(|_| !self.copies) {
            let (weights, optimizer) = (Listed::of(device, weights, ""), optimizer.listed(device));
            files.writer.write(&Contents { config, dtype, weights, optimizer, state, extra: files.tokenizer.clone() });
            return Ok(());
        }
        let weights = gather(device, comm, Snapshot::of(device, weights, ""))?;
        let optimizer = gather(device, comm, optimizer.snapshot(device))?;
        let started = self.files.as_mut().map_or(Ok(()), |files| {
            let extra = files.tokenizer.clone();
            files.writer.start(Contents { config, dtype, weights, optimizer, state, extra })
        });
        agree(comm, started.map_err(TrainError::from))
    }

    /// Tells what became of the checkpoint that is being written: if it is done, or after waiting for it. A failed save
    /// is a warning, not the end: the older checkpoints are whole, and the next save may succeed.
    fn tell_saved(&mut self, wait: bool, observer: &mut dyn Observer) {
        let Some(Err((step, error))) = self.reap(wait, observer) else { return };
        let older = match &self.last {
            Some((_, path)) => format!("{} is whole", path.display()),
            None => "there is no older one".into(),
        };
        let reason = crate::error::chain(&error);
        observer.on(&Event::Warning(format!(
            "the checkpoint of step {step} could not be saved: {reason}; {older}, training goes on"
        )));
    }

    /// Takes note of a checkpoint that was written, or hands out why it was not.
    fn reap(&mut self, wait: bool, observer: &mut dyn Observer) -> Option<Result<(), (u64, TrainError)>> {
        let writer = &mut self.files.as_mut()?.writer;
        let (step, result) = if wait { writer.wait()? } else { writer.poll()? };
        match result {
            Ok(saved) => {
                self.last = Some((step, saved.path.clone()));
                let (path, bytes, seconds) = (saved.path, saved.bytes, saved.seconds);
                observer.on(&Event::CheckpointWritten { step, path, bytes, seconds });
                if let Some(reason) = saved.not_removed {
                    observer.on(&Event::Warning(format!("an old checkpoint could not be removed: {reason}")));
                }
                Some(Ok(()))
            }
            Err(error) => {
                if self.state.best.is_some_and(|b| b.step == step) {
                    self.state.best = self.best_before;
                }
                Some(Err((step, error.into())))
            }
        }
    }

    /// Too many steps in a row were skipped.
    fn give_up(&mut self, observer: &mut dyn Observer) -> TrainError {
        self.tell_saved(true, observer);
        TrainError::NotFinite {
            in_a_row: self.state.guard.in_a_row,
            step: self.state.step,
            last_good: self.last.as_ref().map(|(_, path)| path.clone()),
        }
    }

    /// Waits for the last checkpoint, draws the report, and says how it ended.
    fn finish(mut self, end: End, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        let saved = match self.reap(true, observer) {
            Some(Err((_, error))) => Err(error),
            _ => Ok(()),
        };
        agree(self.job.comm, saved)?;
        self.record(observer, Metrics::sync);
        let out = self.job.out;
        let folder =
            |step: u64| self.last.as_ref().map(|(_, p)| p.with_file_name(crate::checkpoint::folder_name(step)));
        let outcome = Outcome {
            end,
            step: self.state.step,
            steps: self.state.plan.steps,
            tokens: self.state.tokens,
            best: self.state.best.and_then(|b| folder(b.step)).filter(|path| path.exists()),
            last: self.last.as_ref().map(|(_, path)| path.clone()).unwrap_or_default(),
            evaluation: self.evaluation.filter(|e| e.step == self.state.step),
            report: out.join(REPORT),
        };
        if self.files.is_some()
            && let Err(error) = report(out)
        {
            observer.on(&Event::Warning(crate::error::chain(&error)));
        }
        observer.on(&Event::Finished(outcome.clone()));
        Ok(outcome)
    }

    /// What is known now, for the observer.
    fn started(&self, estimate: crate::estimate::Estimate, resumed_from: Option<PathBuf>) -> Started {
        Started {
            step: self.state.step,
            plan: self.state.plan,
            tokens_per_step: self.job.settings.tokens_per_step(),
            accumulation: self.accumulation,
            parameters: self.counts.params.total(),
            active_parameters: self.counts.active.total(),
            documents: self.job.data.train.documents(),
            resumed_from,
            estimate,
        }
    }
}

/// This rank's micro-batches of the next global batch.
fn next_batches<'a>(stream: &mut TrainStream<AnyDocuments<'a>>, n: usize) -> Result<Vec<Batch>, TrainError> {
    (0..n).map(|_| stream.next_batch().map_err(TrainError::from)).collect()
}

/// True if any rank says so.
fn any<D: Device>(comm: &dyn Comm<D>, here: bool) -> Result<bool, Fault> {
    let mut sum = [f64::from(u8::from(here))];
    comm.all_reduce_host(&mut sum)?;
    Ok(sum[0] > 0.0)
}

/// Fails on every rank if it failed on one.
fn agree<D: Device, T>(comm: &dyn Comm<D>, here: Result<T, TrainError>) -> Result<T, TrainError> {
    let elsewhere = any(comm, here.is_err())?;
    match here {
        Ok(_) if elsewhere => Err(Fault("another rank failed; this rank stops too".into()).into()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
