//! How long a run is, and the learning rate of each of its steps.
//!
//! A [`Plan`] is made once, before the first step, and saved with the run. It is a function of the step's number alone:
//! no clock, no running average. So a resumed run has the learning rates it would have had, and a run that was given
//! minutes is, from its first step on, a run of a fixed number of steps.

use crate::settings::{ScheduleKind, TrainSettings};
use serde::{Deserialize, Serialize};

/// The fixed course of a run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Steps at the end in which `wsd` comes down.
    pub decay_steps: u64,
    /// The course after the warm-up.
    pub lr_schedule: ScheduleKind,
    /// The learning rate at the end, as a share of the peak.
    pub min_lr_ratio: f64,
}

impl Plan {
    /// The plan of these settings. `affordable` is the number of steps that fit into `max_minutes`, measured by the
    /// caller; it counts only if that limit was given. At least one step.
    pub fn new(settings: &TrainSettings, affordable: u64) -> Plan {
        let limits = [
            settings.steps,
            settings.max_tokens.map(|n| n.div_ceil(settings.tokens_per_step())),
            settings.max_minutes.map(|_| affordable),
        ];
        let steps = limits.into_iter().flatten().min().unwrap_or(1).max(1);
        let share = |ratio: f64| (ratio * steps as f64).round() as u64;
        let warmup_steps = settings.warmup_steps.unwrap_or_else(|| share(settings.warmup_ratio)).min(steps);
        Plan {
            steps,
            warmup_steps,
            decay_steps: share(settings.decay_ratio).min(steps - warmup_steps),
            lr_schedule: settings.lr_schedule,
            min_lr_ratio: settings.min_lr_ratio,
        }
    }

    /// The learning rate of step `step` (the first is 1) as a share of the peak. The first step is not idle, and neither
    /// is the last with `min_lr_ratio` 0: the curve's end is where step `steps + 1` would be.
    pub fn factor(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup_steps {
            return (done + 1) as f64 / self.warmup_steps as f64;
        }
        // Past the end the curve stays where it ended.
        let progress = |from: u64| ((done - from) as f64 / (self.steps - from).max(1) as f64).min(1.0);
        let floor = self.min_lr_ratio;
        match self.lr_schedule {
            ScheduleKind::Cosine => {
                floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress(self.warmup_steps)).cos())
            }
            ScheduleKind::Wsd => {
                let from = self.steps - self.decay_steps;
                if done < from { 1.0 } else { 1.0 - (1.0 - floor) * progress(from) }
            }
        }
    }

    /// True if the first `steps` steps have the same learning rates under both plans: then a run of the one, stopped
    /// there, is also the beginning of a run of the other.
    pub fn agrees(&self, other: &Plan, steps: u64) -> bool {
        (1..=steps).all(|step| self.factor(step) == other.factor(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(kind: ScheduleKind) -> TrainSettings {
        TrainSettings { steps: Some(100), lr_schedule: kind, warmup_ratio: 0.1, ..Default::default() }
    }

    #[test]
    fn the_nearest_limit_counts() {
        let s = TrainSettings { max_tokens: Some(16 * 512 * 7 + 1), ..settings(ScheduleKind::Wsd) };
        assert_eq!(Plan::new(&s, 3).steps, 8);
        assert_eq!(Plan::new(&TrainSettings { max_minutes: Some(1.0), ..s.clone() }, 3).steps, 3);
        assert_eq!(Plan::new(&TrainSettings { max_minutes: Some(1.0), ..s }, 0).steps, 1);
    }

    #[test]
    fn wsd_rises_stays_and_comes_down() {
        let plan = Plan::new(&settings(ScheduleKind::Wsd), 0);
        assert_eq!((plan.warmup_steps, plan.decay_steps), (10, 20));
        assert_eq!(plan.factor(1), 0.1);
        assert!((11..=81).all(|s| plan.factor(s) == 1.0));
        assert!((plan.factor(91) - 0.55).abs() < 1e-12);
        assert!((plan.factor(101) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_longer_run_may_begin_like_a_shorter_one_only_while_the_rate_is_stable() {
        let warm = |steps| TrainSettings { steps: Some(steps), warmup_steps: Some(5), ..settings(ScheduleKind::Wsd) };
        let (short, long) = (Plan::new(&warm(100), 0), Plan::new(&warm(200), 0));
        assert!(short.agrees(&long, 81));
        assert!(!short.agrees(&long, 82));
        let cosine = |steps| Plan::new(&TrainSettings { steps: Some(steps), ..settings(ScheduleKind::Cosine) }, 0);
        assert!(!cosine(100).agrees(&cosine(200), 50));
    }

    proptest! {
        #[test]
        fn factors_stay_between_floor_and_peak_and_fall_after_the_warm_up(
            steps in 1u64..300, warmup in 0.0..1.0f64, decay in 0.0..1.0f64, floor in 0.0..1.0f64, cosine: bool
        ) {
            let lr_schedule = if cosine { ScheduleKind::Cosine } else { ScheduleKind::Wsd };
            let s = TrainSettings { steps: Some(steps), warmup_ratio: warmup, decay_ratio: decay, min_lr_ratio: floor,
                lr_schedule, ..Default::default() };
            let plan = Plan::new(&s, 0);
            let factors: Vec<f64> = (1..=steps + 3).map(|n| plan.factor(n)).collect();
            prop_assert!(factors.iter().all(|&f| f > 0.0 && f <= 1.0 + 1e-12));
            prop_assert!(factors[plan.warmup_steps as usize..].is_sorted_by(|a, b| a >= b));
            prop_assert!(factors[..plan.warmup_steps as usize].is_sorted());
        }
    }
}
