//! How much memory a run will take, said before it starts.
//!
//! Running out of memory after an hour is the most expensive way to learn a model's size. Weights, gradients and moments
//! are exact: they are the tables of parameters that the run would make. Activations are counted from what each layer
//! keeps between forward and backward, and are an upper bound, close to what is used (a test compares them with the
//! device's own count). What other programs need, and the caller's own data, is not in it.

use crate::optimizer::moments;
use crate::settings::{Recompute, TrainSettings};
use wudao_device::DType;
use wudao_model::Config;
use wudao_model::store::{Layout, Shard};

/// Bytes that a run takes on one rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Estimate {
    /// Parameters.
    pub weights: u64,
    /// One gradient each.
    pub gradients: u64,
    /// Moments.
    pub optimizer: u64,
    /// What the layers keep for the backward pass, and what works on it, at the worst moment.
    pub activations: u64,
    /// Rotary embedding's table.
    pub rope: u64,
    /// The copy on the host that a checkpoint is written from.
    pub snapshot: u64,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Estimate { weights, gradients, optimizer, activations, rope, snapshot } = self;
        weights + gradients + optimizer + activations + rope + snapshot
    }

    fn parts(&self) -> [(&'static str, u64); 6] {
        let Estimate { weights, gradients, optimizer, activations, rope, snapshot } = *self;
        [
            ("weights", weights),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations", activations),
            ("rotary table", rope),
            ("copy for checkpoints", snapshot),
        ]
    }
}

/// A run that does not fit.
#[derive(Clone, PartialEq, Debug)]
pub struct TooLarge {
    /// What it would take.
    pub estimate: Estimate,
    /// What there is.
    pub available: u64,
    /// Changes of settings that would make it fit, with what it would take then.
    pub advice: Vec<(String, u64)>,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (need, have) = (self.estimate.total(), self.available);
        writeln!(f, "the run needs about {need} bytes ({}) and {have} ({}) are available:", gib(need), gib(have))?;
        for (name, bytes) in self.estimate.parts() {
            writeln!(f, "  {name:<21} {bytes:>15}")?;
        }
        if self.advice.is_empty() {
            return write!(f, "No setting makes this model fit: choose a smaller one, or a larger machine");
        }
        write!(f, "It would fit with")?;
        for (i, (change, bytes)) in self.advice.iter().enumerate() {
            let or = if i > 0 { ", or with" } else { "" };
            write!(f, "{or} {change} ({bytes} bytes)")?;
        }
        Ok(())
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// What a run with these settings takes on each of `ranks`, computing in `dtype`.
pub fn estimate(config: &Config, settings: &TrainSettings, ranks: usize, dtype: DType) -> Estimate {
    let layout = Layout::new(config, Shard { rank: 0, size: ranks });
    let size = dtype.size() as u64;
    let weights = layout.len() as u64 * size;
    let optimizer = moments(&layout, settings) * size;
    Estimate {
        weights,
        gradients: weights,
        optimizer,
        activations: activations(config, settings) * size,
        // Made in f64 first.
        rope: (settings.seq_len * config.rotary_dim()) as u64 * (size + 8),
        snapshot: weights + optimizer,
    }
}

/// Refuses a run that would take more than `available` bytes, with settings that would help.
pub fn check(
    config: &Config,
    settings: &TrainSettings,
    ranks: usize,
    dtype: DType,
    available: u64,
) -> Result<Estimate, TooLarge> {
    let now = estimate(config, settings, ranks, dtype);
    if now.total() <= available {
        return Ok(now);
    }
    let mut smaller = vec![];
    let recompute = TrainSettings { recompute: Recompute::Block, ..settings.clone() };
    if settings.recompute == Recompute::None {
        smaller.push(("recompute = \"block\"".to_owned(), recompute.clone()));
    }
    let fits = |s: &TrainSettings| estimate(config, s, ranks, dtype).total() <= available;
    let divisors = (1..settings.micro_batch_size).rev().filter(|n| settings.micro_batch_size.is_multiple_of(*n));
    let rows: Vec<usize> = divisors.collect();
    let of = |base: &TrainSettings, rows: usize| TrainSettings { micro_batch_size: rows, ..base.clone() };
    if let Some(&n) = rows.iter().find(|&&n| fits(&of(settings, n))) {
        smaller.push((format!("micro_batch_size = {n}"), of(settings, n)));
    } else if let Some(&n) = rows.iter().find(|&&n| fits(&of(&recompute, n))) {
        smaller.push((format!("recompute = \"block\" and micro_batch_size = {n}"), of(&recompute, n)));
    }
    let advice = smaller
        .into_iter()
        .map(|(change, s)| (change, estimate(config, &s, ranks, dtype).total()))
        .filter(|(_, bytes)| *bytes <= available)
        .collect();
    Err(TooLarge { estimate: now, available, advice })
}

/// Elements alive at the worst moment of a micro-batch.
fn activations(config: &Config, settings: &TrainSettings) -> u64 {
    let t = settings.micro_batch_size * settings.seq_len;
    let (d, c) = (config.hidden_size, config.head_dim);
    let (h, g) = (config.num_attention_heads, config.num_key_value_heads);
    let qkv = (h + 2 * g) * c;
    let attention_kept = d + qkv + h * c + h + if config.qk_norm { qkv + h + g } else { 0 };
    let attention_works = h * c + qkv + 3 * d;
    // Per token: what a layer keeps, and what its backward pass adds to that.
    let layer = |l: usize| {
        let (kept, works) = match config.moe_at(l) {
            None => (d + 3 * config.intermediate_size, 2 * config.intermediate_size + 3 * d),
            Some(m) => {
                let (e, k, f) = (m.num_experts, m.num_experts_per_tok, m.moe_intermediate_size);
                let shared = m.n_shared_experts * f;
                let routed = e + 2 * k + 2 + k * (2 * d + 3 * f);
                (d + routed + 3 * shared, k * (2 * d + 2 * f) + 2 * shared + 3 * d + e)
            }
        };
        (2 * (d + 1) + attention_kept + kept, works.max(attention_works))
    };
    let layers: Vec<(usize, usize)> = (0..config.num_hidden_layers).map(layer).collect();
    let works = layers.iter().map(|(_, works)| *works).max().unwrap_or(0);
    let kept = match settings.recompute {
        Recompute::None => layers.iter().map(|(kept, _)| kept).sum(),
        Recompute::Block => layers.len() * d + layers.iter().map(|(kept, _)| *kept).max().unwrap_or(0),
    };
    // The head works on some rows of logits at a time.
    let logits = (16 << 20) / 4 + 64 * config.vocab_size;
    let head = (t * 3 * d + logits.min(t * config.vocab_size)) as u64;
    (t * (kept + 2 * d)) as u64 + head.max((t * works) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Rates;
    use crate::settings::OptimizerKind;
    use crate::step::Learner;
    use crate::testing::{batches, documents, tiny_dense, tiny_moe, tiny_settings, tiny_softmax};
    use wudao_comm::Solo;
    use wudao_device::Cpu;

    /// Never less than what the device counts, and not much more.
    #[test]
    fn estimates_bound_what_the_device_counts() {
        for config in [tiny_dense(), tiny_moe(), tiny_softmax()] {
            for (recompute, optimizer) in
                [(Recompute::None, OptimizerKind::AdamW), (Recompute::Block, OptimizerKind::Muon)]
            {
                let config = Config { num_hidden_layers: 6, ..config.clone() };
                let settings =
                    TrainSettings { seq_len: 64, micro_batch_size: 8, recompute, optimizer, ..tiny_settings() };
                let cpu = Cpu::new(1);
                let mut learner = Learner::new(&cpu, &Solo, &config, &settings, DType::F32).unwrap();
                learner.weights = learner.model.init(&cpu, 1);
                let data = batches(&documents(1, 60), 64, 8, 1, 0, 1);
                learner.step(&data, Rates { lr: 1e-3, muon_lr: 1e-3 }).unwrap();
                let measured = cpu.peak_bytes() as f64;
                let e = estimate(&config, &settings, 1, DType::F32);
                let device = (e.total() - e.snapshot) as f64;
                assert_eq!(e.optimizer, learner.optimizer.bytes());
                let ratio = device / measured;
                assert!((1.0..1.35).contains(&ratio), "{:?} {recompute:?}: {device} {measured}", config.family);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said_in_bytes_with_advice() {
        let settings = TrainSettings { seq_len: 64, micro_batch_size: 8, ..tiny_settings() };
        let config = Config { num_hidden_layers: 6, ..tiny_moe() };
        let need = estimate(&config, &settings, 1, DType::F32).total();
        assert!(check(&config, &settings, 1, DType::F32, need).is_ok());
        let error = check(&config, &settings, 1, DType::F32, need - 1).unwrap_err();
        assert!(error.advice.iter().all(|(_, bytes)| *bytes < need) && error.advice.len() == 2);
        let text = error.to_string();
        assert!(text.contains(&format!("{need} bytes")) && text.contains("recompute = \"block\""), "{text}");
        assert!(text.contains("micro_batch_size = 4"), "{text}");
        let error = check(&config, &settings, 1, DType::F32, 1000).unwrap_err();
        assert!(error.advice.is_empty() && error.to_string().contains("smaller"));
    }

    #[test]
    fn ranks_share_the_experts() {
        let (s, c) = (tiny_settings(), tiny_moe());
        let (one, two) = (estimate(&c, &s, 1, DType::F32), estimate(&c, &s, 2, DType::F32));
        assert!(two.weights < one.weights && two.optimizer < one.optimizer);
    }
}
