//! What a person may choose about a training run.
//!
//! Names are the standard ones of the field. Every key has a default, so a file need only say what differs; an unknown
//! key is an error. [`TrainSettings::check`] refuses what cannot work before anything is read or allocated, naming the
//! key. What a run decided on its own (its number of steps, when it was given minutes) is not here but in its
//! [`Plan`](crate::schedule::Plan), which is saved with it.

use serde::{Deserialize, Serialize};
use wudao_device::DType;
use wudao_model::Config;
use wudao_model::model::{NO_TRAINING, Recomputation};

/// Settings of a training run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Everything random derives from it: initial weights, order of the documents.
    pub seed: u64,
    /// Tokens in a row; attention and positions go no further.
    pub seq_len: usize,
    /// Rows of one optimizer step, over all ranks and micro-batches.
    pub global_batch_size: usize,
    /// Rows that one rank takes through the model at once. `micro_batch_size · ranks` divides `global_batch_size`; the
    /// quotient is the number of gradient accumulation steps.
    pub micro_batch_size: usize,

    /// Stop after this many optimizer steps. Of the three limits at least one is given, and the nearest counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Stop when this many tokens were learned from (rounded up to a whole step).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Train for about this many minutes: speed is measured before the first step and the number of steps fixed then, so
    /// that neither the schedule nor any bit of the weights depends on the clock afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_minutes: Option<f64>,

    /// What updates the matrices.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Peak learning rate of the matrices under Muon; `lr` if not given, since updates are scaled to the size of AdamW's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon_lr: Option<f64>,
    /// Momentum of Muon.
    pub muon_momentum: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// What moments are kept in: with bf16, four bytes a parameter less under AdamW and two under Muon.
    pub moments: Moments,
    /// Decoupled weight decay of matrices; norms and biases never decay.
    pub weight_decay: f64,
    /// Embeddings decay too. (Off, as in OLMo 2, 2025: a rare token's row would only shrink.) Where the head is the embedding,
    /// this decides for both.
    pub decay_embeddings: bool,
    /// Largest norm of the whole gradient; longer ones are scaled down to it. 0: never.
    pub grad_clip: f64,

    /// Course of the learning rate.
    pub lr_schedule: ScheduleKind,
    /// Share of all steps in which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// Number of warm-up steps, instead of the share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Share of all steps, at the end, in which `wsd` comes down.
    pub decay_ratio: f64,
    /// The learning rate at the end, as a share of the peak.
    pub min_lr_ratio: f64,

    /// What products multiply.
    pub dtype: Precision,
    /// Multiply f32 on a matrix unit (AMX), where there is one: each number in three parts of bf16, results as near to the
    /// exact ones as without. But without, the bits of a run in f32 are the same on every machine.
    pub matrix_unit: bool,
    /// What the backward pass computes again instead of keeping.
    pub recompute: Recompute,

    /// Coefficient of the routers' load-balance loss over the global batch (0 for sigmoid routers, which a bias balances).
    pub router_aux_loss_coef: f64,
    /// Coefficient of the softmax routers' z-loss.
    pub router_z_loss_coef: f64,
    /// How far the correction bias of a sigmoid router moves in each step towards balance (DeepSeek-V3, section 2.1.2).
    pub bias_update_rate: f64,

    /// Evaluate on the held-out text every so many steps (0: only at the end).
    pub eval_every: u64,
    /// Measure on about this many held-out tokens (whole documents, the same each time); all of them if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_tokens: Option<u64>,
    /// Save a checkpoint every so many steps (0: only at the end).
    pub checkpoint_every: u64,
    /// Checkpoints to keep, the newest first; the one with the best evaluation is kept besides.
    pub keep_last: usize,
    /// Write a line of `metrics.jsonl` every so many steps.
    pub log_every: u64,
    /// Stop when so many steps in a row had a loss or gradient that is not finite.
    pub max_skipped: u64,
}

/// What updates the matrices inside the network. Embeddings, head, routers, norms and biases always take AdamW.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    AdamW,
    /// Momentum, orthogonalised (Jordan et al. 2024; scaled as in Liu et al. 2025).
    Muon,
}

/// What an optimizer's moments are kept in. A step computes in f32 either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// As they are computed.
    #[default]
    F32,
    /// bf16 (as in DeepSeek-V3, section 3.3.3), rounded up or down by chance so that their mean is right.
    Bf16,
}

impl Moments {
    /// The device's type, where statistics are `statistics`.
    pub(crate) fn kept(self, statistics: DType) -> DType {
        match (self, statistics) {
            (Moments::Bf16, DType::F32) => DType::Bf16,
            _ => statistics,
        }
    }
}

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine down to the end (Loshchilov & Hutter 2017).
    Cosine,
    /// Warm-up, stable, decay: constant, then a straight line down (Hu et al. 2024).
    Wsd,
}

/// What the backward pass computes again (Chen et al. 2016).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing but norms and activation functions, which always are.
    None,
    /// Attention, with its projection of queries, keys and values.
    Attention,
    /// Each block: its input alone is kept.
    Block,
}

impl Recompute {
    /// Its name among settings.
    pub fn name(self) -> &'static str {
        match self {
            Recompute::None => "none",
            Recompute::Attention => "attention",
            Recompute::Block => "block",
        }
    }

    pub(crate) fn in_model(self) -> Recomputation {
        match self {
            Recompute::None => Recomputation::None,
            Recompute::Attention => Recomputation::Attention,
            Recompute::Block => Recomputation::Block,
        }
    }
}

/// Bits that products multiply in. Weights, gradients, the residual stream, softmax, statistics and the loss are f32
/// either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Mixed precision (Micikevicius et al. 2018): operands and kept activations in bf16, sums in f32.
    Bf16,
}

impl Precision {
    /// The device's type of operands.
    pub fn operands(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        TrainSettings {
            seed: 0,
            seq_len: 512,
            global_batch_size: 16,
            micro_batch_size: 8,
            steps: None,
            max_tokens: None,
            max_minutes: None,
            optimizer: OptimizerKind::AdamW,
            lr: 1e-3,
            muon_lr: None,
            muon_momentum: 0.95,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            moments: Moments::F32,
            weight_decay: 0.1,
            decay_embeddings: false,
            grad_clip: 1.0,
            lr_schedule: ScheduleKind::Cosine,
            warmup_ratio: 0.02,
            warmup_steps: None,
            decay_ratio: 0.2,
            min_lr_ratio: 0.1,
            dtype: Precision::F32,
            matrix_unit: true,
            recompute: Recompute::None,
            router_aux_loss_coef: 0.0,
            router_z_loss_coef: 0.0,
            bias_update_rate: 1e-3,
            eval_every: 250,
            eval_tokens: Some(1 << 20),
            checkpoint_every: 250,
            keep_last: 2,
            log_every: 1,
            max_skipped: 10,
        }
    }
}

/// Settings that cannot work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("setting `{key}`: {problem}")]
pub struct SettingsError {
    /// The offending key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Keys that a resumed run may change: none of them changes a bit of the weights.
pub const HARMLESS: &[&str] =
    &["recompute", "eval_every", "eval_tokens", "checkpoint_every", "keep_last", "log_every", "max_skipped"];

/// Keys that say when a run ends, and how its learning rate goes there. A resumed run may change them as long as every
/// step it has taken would have had the same learning rate; see [`Plan`](crate::schedule::Plan).
pub const BUDGET: &[&str] = &[
    "steps",
    "max_tokens",
    "max_minutes",
    "lr_schedule",
    "warmup_ratio",
    "warmup_steps",
    "decay_ratio",
    "min_lr_ratio",
];

impl TrainSettings {
    /// Refuses what cannot work, naming the key.
    pub fn check(&self) -> Result<(), SettingsError> {
        let fail = |key, problem: String| Err(SettingsError { key, problem });
        for (key, n) in [
            ("seq_len", self.seq_len),
            ("global_batch_size", self.global_batch_size),
            ("micro_batch_size", self.micro_batch_size),
            ("keep_last", self.keep_last),
            ("log_every", self.log_every as usize),
            ("max_skipped", self.max_skipped as usize),
        ] {
            if n == 0 {
                return fail(key, "0; it must be at least 1".into());
            }
        }
        if self.steps.is_none() && self.max_tokens.is_none() && self.max_minutes.is_none() {
            return fail("steps", "nothing says when to stop: give `steps`, `max_tokens` or `max_minutes`".into());
        }
        for (key, n) in [("steps", self.steps), ("max_tokens", self.max_tokens)] {
            if n == Some(0) {
                return fail(key, "0; it must be at least 1".into());
            }
        }
        if let Some(minutes) = self.max_minutes.filter(|m| !(m.is_finite() && *m > 0.0)) {
            return fail("max_minutes", format!("{minutes}; it must be above 0"));
        }
        for (key, x) in [("lr", self.lr), ("muon_lr", self.muon_lr.unwrap_or(self.lr)), ("eps", self.eps)] {
            if !(x.is_finite() && x > 0.0) {
                return fail(key, format!("{x}; it must be above 0"));
            }
        }
        for (key, x) in [
            ("weight_decay", self.weight_decay),
            ("grad_clip", self.grad_clip),
            ("router_aux_loss_coef", self.router_aux_loss_coef),
            ("router_z_loss_coef", self.router_z_loss_coef),
            ("bias_update_rate", self.bias_update_rate),
        ] {
            if !(x.is_finite() && x >= 0.0) {
                return fail(key, format!("{x}; it must be 0 or above"));
            }
        }
        for (key, x) in [("beta1", self.beta1), ("beta2", self.beta2), ("muon_momentum", self.muon_momentum)] {
            if !(0.0..1.0).contains(&x) {
                return fail(key, format!("{x}; it must be at least 0 and below 1"));
            }
        }
        for (key, x) in [
            ("warmup_ratio", self.warmup_ratio),
            ("decay_ratio", self.decay_ratio),
            ("min_lr_ratio", self.min_lr_ratio),
        ] {
            if !(0.0..=1.0).contains(&x) {
                return fail(key, format!("{x}; it must be between 0 and 1"));
            }
        }
        Ok(())
    }

    /// Refuses what does not fit the model or the number of ranks, naming the key.
    pub fn check_model(&self, config: &Config, ranks: usize) -> Result<(), SettingsError> {
        let fail = |key, problem: String| Err(SettingsError { key, problem });
        if self.seq_len > config.max_position_embeddings {
            return fail(
                "seq_len",
                format!(
                    "{} tokens are more than the model's max_position_embeddings = {}: lower the one or raise the other",
                    self.seq_len, config.max_position_embeddings
                ),
            );
        }
        if config.mla.is_some() {
            return fail("family", format!("{}: {NO_TRAINING}", config.family.model_type()));
        }
        let Some(moe) = &config.moe else { return self.accumulation(ranks).map(|_| ()) };
        for (key, coef, name) in [
            ("router_z_loss_coef", self.router_z_loss_coef, "z-loss"),
            ("router_aux_loss_coef", self.router_aux_loss_coef, "load-balance loss"),
        ] {
            if moe.sigmoid && coef != 0.0 {
                let what = format!(
                    "the {name} is for softmax routers, and this model's is a sigmoid, which `bias_update_rate` balances; \
                     set it to 0"
                );
                return fail(key, what);
            }
        }
        if !moe.num_experts.is_multiple_of(ranks) {
            return fail(
                "num_experts",
                format!("{} experts cannot be shared equally by {ranks} ranks", moe.num_experts),
            );
        }
        self.accumulation(ranks).map(|_| ())
    }

    /// Micro-batches of a step, each of `micro_batch_size` rows on each of `ranks` ranks.
    pub fn accumulation(&self, ranks: usize) -> Result<usize, SettingsError> {
        let at_once = self.micro_batch_size.saturating_mul(ranks);
        if at_once == 0 || !self.global_batch_size.is_multiple_of(at_once) {
            return Err(SettingsError {
                key: "global_batch_size",
                problem: format!(
                    "{} rows cannot be cut into micro-batches of {} rows on each of {ranks} rank(s): \
                     make it a multiple of {at_once}",
                    self.global_batch_size, self.micro_batch_size
                ),
            });
        }
        Ok(self.global_batch_size / at_once)
    }

    /// Tokens of one optimizer step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.global_batch_size * self.seq_len) as u64
    }

    /// Keys in which two settings differ, in the order of the fields.
    pub fn differences(&self, other: &TrainSettings) -> Vec<String> {
        let table = |s: &TrainSettings| match serde_json::to_value(s) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => unreachable!("settings are a table of plain values"),
        };
        let (a, b) = (table(self), table(other));
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        keys.into_iter().filter(|k| a.get(*k) != b.get(*k)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(n: u64) -> TrainSettings {
        TrainSettings { steps: Some(n), ..Default::default() }
    }

    #[test]
    fn defaults_need_only_an_end() {
        assert_eq!(TrainSettings::default().check().unwrap_err().key, "steps");
        steps(3).check().unwrap();
    }

    #[test]
    fn unknown_keys_are_errors_and_known_ones_round_trip() {
        assert!(serde_json::from_str::<TrainSettings>(r#"{"leaning_rate": 1}"#).is_err());
        let s = TrainSettings { optimizer: OptimizerKind::Muon, muon_lr: Some(0.02), ..steps(7) };
        assert_eq!(serde_json::from_str::<TrainSettings>(&serde_json::to_string(&s).unwrap()).unwrap(), s);
    }

    #[test]
    fn bad_values_name_their_key() {
        type Spoil = fn(&mut TrainSettings);
        let cases: [(&str, Spoil); 7] = [
            ("seq_len", |s| s.seq_len = 0),
            ("lr", |s| s.lr = f64::NAN),
            ("beta2", |s| s.beta2 = 1.0),
            ("grad_clip", |s| s.grad_clip = -1.0),
            ("warmup_ratio", |s| s.warmup_ratio = 1.5),
            ("max_minutes", |s| s.max_minutes = Some(0.0)),
            ("steps", |s| s.steps = Some(0)),
        ];
        for (key, spoil) in cases {
            let mut s = steps(5);
            spoil(&mut s);
            assert_eq!(s.check().unwrap_err().key, key);
        }
    }

    #[test]
    fn accumulation_divides_the_batch_among_ranks() {
        let s = TrainSettings { global_batch_size: 24, micro_batch_size: 4, ..steps(1) };
        assert_eq!(s.accumulation(1).unwrap(), 6);
        assert_eq!(s.accumulation(3).unwrap(), 2);
        assert!(s.accumulation(5).is_err());
    }

    #[test]
    fn settings_that_do_not_fit_the_model_name_their_key() {
        let key = |s: TrainSettings, ranks| s.check_model(&crate::testing::tiny_moe(), ranks).unwrap_err().key;
        assert_eq!(key(TrainSettings { seq_len: 65, ..steps(1) }, 1), "seq_len");
        assert_eq!(key(TrainSettings { seq_len: 64, router_z_loss_coef: 0.1, ..steps(1) }, 1), "router_z_loss_coef");
        assert_eq!(
            key(TrainSettings { seq_len: 64, router_aux_loss_coef: 0.1, ..steps(1) }, 1),
            "router_aux_loss_coef"
        );
        assert_eq!(key(TrainSettings { seq_len: 64, ..steps(1) }, 3), "num_experts");
    }

    #[test]
    fn lists_of_keys_are_keys() {
        let s = TrainSettings {
            max_tokens: Some(1),
            max_minutes: Some(1.0),
            muon_lr: Some(1.0),
            warmup_steps: Some(1),
            ..steps(1)
        };
        let value = serde_json::to_value(s).unwrap();
        for key in HARMLESS.iter().chain(BUDGET) {
            assert!(value.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn differences_name_keys() {
        let other = TrainSettings { lr: 5e-4, ..steps(8) };
        assert_eq!(steps(7).differences(&other), ["lr", "steps"]);
    }
}
