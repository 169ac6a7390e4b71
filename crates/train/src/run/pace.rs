//! The clock: how fast a run goes, and how many steps fit into its minutes.

use super::{AnyDocuments, Job, next_batches};
use crate::error::TrainError;
use crate::evaluate::Subset;
use crate::step::Learner;
use std::time::Instant;
use wudao_data::batch::{TrainStream, predictions};
use wudao_device::Device;

/// Steps that the recent speed is a mean of.
const RECENT: usize = 20;
/// Rehearsals at most, the first of which only warms up.
const REHEARSALS: usize = 4;
/// Share of the minutes after which there are no more rehearsals …
const ENOUGH: f64 = 0.04;
/// … and after which even the first, which is slower than those that follow, must do.
const MOST: f64 = 0.15;
/// Share of the minutes that is planned for; the rest is for checkpoints, the report, and a machine that slows down.
const USED: f64 = 0.96;

/// Remembers the recent steps' seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    recent: std::collections::VecDeque<f64>,
}

impl Pace {
    /// Takes note of a step and returns the mean seconds of the recent ones.
    pub fn note(&mut self, seconds: f64) -> f64 {
        self.recent.push_back(seconds);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.recent.iter().sum::<f64>() / self.recent.len() as f64
    }
}

/// How many steps fit into `minutes` that began at `begin`, evaluations included: measured by rehearsing the first steps,
/// which changes neither the learner nor the stream. All ranks get the first one's answer.
pub(super) fn affordable<'a, D: Device>(
    job: &Job<D>,
    learner: &mut Learner<D>,
    stream: &TrainStream<AnyDocuments<'a>>,
    accumulation: usize,
    held_out: &Subset<AnyDocuments<'a>>,
    minutes: f64,
    begin: Instant,
) -> Result<u64, TrainError> {
    let budget = minutes * 60.0;
    let mut stream = stream.clone();
    let mut times = vec![];
    for _ in 0..REHEARSALS {
        let start = Instant::now();
        let batches = next_batches(&mut stream, accumulation)?;
        learner.rehearse(&batches)?;
        times.push(start.elapsed().as_secs_f64());
        let spent: f64 = times.iter().sum();
        let long = spent > if times.len() == 1 { MOST } else { ENOUGH } * budget;
        if super::any(job.comm, long && job.comm.rank() == 0)? {
            break;
        }
    }
    // The first warms caches and pools; of the others the middle one, so that one hiccup does not count.
    if times.len() > 1 {
        times.remove(0);
    }
    times.sort_by(f64::total_cmp);
    let step = times[times.len() / 2];
    // A forward pass is a third of a step.
    let s = job.settings;
    let evaluation = predictions(held_out) as f64 / s.tokens_per_step() as f64 * step / 3.0;
    let left = USED * budget - begin.elapsed().as_secs_f64();
    let mut steps = [if job.comm.rank() == 0 { fit(left, step, evaluation, s.eval_every) as f64 } else { 0.0 }];
    job.comm.all_reduce_host(&mut steps)?;
    Ok(steps[0] as u64)
}

/// Steps that fit into some seconds, with an evaluation every so many and one at the end; at least 1.
fn fit(seconds: f64, step: f64, evaluation: f64, eval_every: u64) -> u64 {
    let each = if eval_every > 0 { evaluation / eval_every as f64 } else { 0.0 };
    let steps = (seconds - evaluation) / (step + each).max(1e-9);
    if steps >= 1.0 { steps as u64 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_evaluations_fill_the_time() {
        assert_eq!(fit(100.0, 1.0, 0.0, 0), 100);
        assert_eq!(fit(100.0, 1.0, 10.0, 0), 90);
        assert_eq!(fit(100.0, 1.0, 10.0, 20), 60);
        assert_eq!(fit(-5.0, 1.0, 10.0, 20), 1);
        assert_eq!(fit(f64::NAN, 1.0, 10.0, 20), 1);
    }

    #[test]
    fn the_pace_is_that_of_recent_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.note(3.0), 3.0);
        let last = (0..RECENT).map(|_| pace.note(1.0)).last();
        assert_eq!(last, Some(1.0));
    }
}
