//! Are the routers well?
//!
//! A router can collapse: it sends every token to the same few experts, the others stop learning, and the model is as
//! small as what is left of it. This file turns the sums of a step ([`RouterLog`]) into numbers a person can watch, and
//! says when to worry.
//!
//! The one number behind the warning is the *effective number of experts*, the exponential of the entropy of the load:
//! E if all experts get the same, K if only K do (every token takes K different ones). On a scale from 0 (K) to 1 (E),
//! a layer that stays below [`COLLAPSED`] for [`PATIENCE`] steps in a row has collapsed; it is reported once, and again
//! only if it recovered above [`RECOVERED`] in between.

use serde::{Deserialize, Serialize};
use wudao_model::layer::RouterStats;
use wudao_model::{Config, RouterLog};

/// Balance below which a router counts as collapsed: 0 is one fixed choice for all tokens, 1 equal load.
pub const COLLAPSED: f64 = 0.25;
/// Balance above which it counts as recovered.
pub const RECOVERED: f64 = 0.5;
/// Steps in a row before the warning.
pub const PATIENCE: u32 = 20;

/// What one router did in a step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RouterHealth {
    /// The layer's number in the model.
    pub layer: usize,
    /// Load of the busiest expert over the mean load: 1 is perfect, E/K is the worst.
    pub max_over_mean: f64,
    /// Balance of the load, from 0 (always the same K experts) to 1 (all the same load).
    pub balance: f64,
    /// Mean entropy of a token's scores over `ln E`: 1 is undecided, 0 is certain.
    pub entropy: f64,
    /// Experts that no token chose in this step.
    pub dead: usize,
    /// Each expert's share of all choices; adds up to 1.
    pub load: Vec<f64>,
}

/// The routers' health in a step, one entry per sparse layer. `log` holds sums over all ranks.
pub fn health(config: &Config, log: &RouterLog) -> Vec<RouterHealth> {
    let Some(moe) = &config.moe else { return vec![] };
    let of = |(layer, stats): (usize, &RouterStats)| {
        let all: f64 = stats.load.iter().sum();
        let experts = stats.load.len() as f64;
        let load: Vec<f64> = stats.load.iter().map(|n| if all > 0.0 { n / all } else { 0.0 }).collect();
        let entropy: f64 = load.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        let (few, many) = (moe.num_experts_per_tok as f64, experts);
        RouterHealth {
            layer,
            max_over_mean: load.iter().fold(0.0, |a: f64, &b| a.max(b)) * experts,
            balance: if many > few { ((entropy.exp() - few) / (many - few)).clamp(0.0, 1.0) } else { 1.0 },
            entropy: if experts > 1.0 { stats.entropy / stats.tokens.max(1.0) / experts.ln() } else { 0.0 },
            dead: stats.load.iter().filter(|&&n| n == 0.0).count(),
            load,
        }
    };
    config.moe_layers().into_iter().zip(&log.layers).map(of).collect()
}

/// Remembers how long each router has been collapsed. Not saved with a run: it changes no bit of it.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// By sparse layer: steps in a row below the limit, and whether that was reported.
    routers: Vec<(u32, bool)>,
}

impl Watch {
    /// Takes note of a step and returns a sentence for every router that has just collapsed.
    pub fn note(&mut self, health: &[RouterHealth]) -> Vec<String> {
        self.routers.resize(health.len(), (0, false));
        let mut warnings = vec![];
        for (h, (steps, reported)) in health.iter().zip(&mut self.routers) {
            *steps = if h.balance < COLLAPSED { *steps + 1 } else { 0 };
            if *steps >= PATIENCE && !*reported {
                *reported = true;
                warnings.push(format!(
                    "the router of layer {} has collapsed: for {PATIENCE} steps nearly all tokens went to the same \
                     experts ({} of {} got none, the busiest {:.1} times the mean). Raise `bias_update_rate` (sigmoid \
                     router) or `router_aux_loss_coef` (softmax router), or lower `lr`",
                    h.layer,
                    h.dead,
                    h.load.len(),
                    h.max_over_mean
                ));
            }
            if h.balance > RECOVERED {
                *reported = false;
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_moe;

    fn of(load: [f64; 4]) -> RouterHealth {
        let stats = RouterStats { load: load.to_vec(), entropy: 10.0 * 4f64.ln(), tokens: 10.0, ..Default::default() };
        health(&tiny_moe(), &RouterLog { layers: vec![stats] }).remove(0)
    }

    #[test]
    fn equal_load_is_one_and_a_fixed_choice_is_nought() {
        let (even, fixed) = (of([5.0; 4]), of([10.0, 0.0, 10.0, 0.0]));
        assert!((even.balance - 1.0).abs() < f64::EPSILON * 8.0 && even.max_over_mean == 1.0 && even.dead == 0);
        assert!(fixed.balance < f64::EPSILON * 8.0 && fixed.max_over_mean == 2.0 && fixed.dead == 2);
        assert_eq!((even.layer, even.entropy), (1, 1.0));
        assert_eq!(fixed.load, [0.5, 0.0, 0.5, 0.0]);
    }

    #[test]
    fn nothing_routed_is_not_a_division_by_nought() {
        assert_eq!(of([0.0; 4]).load, [0.0; 4]);
    }

    #[test]
    fn collapse_is_reported_once_until_recovery() {
        let lopsided = of([10.0, 6.0, 3.0, 1.0]).balance;
        assert!(lopsided > COLLAPSED, "a lopsided router is no collapse: {lopsided}");
        let (good, bad) = ([of([5.0; 4])], [of([10.0, 10.0, 0.0, 0.0])]);
        let mut watch = Watch::default();
        for _ in 0..PATIENCE - 1 {
            assert!(watch.note(&bad).is_empty());
        }
        let warning = watch.note(&bad).remove(0);
        assert!(warning.contains("layer 1") && warning.contains("2 of 4"), "{warning}");
        assert!((0..50).all(|_| watch.note(&bad).is_empty()));
        watch.note(&good);
        assert!((0..PATIENCE - 1).all(|_| watch.note(&bad).is_empty()));
        assert_eq!(watch.note(&bad).len(), 1);
    }
}
