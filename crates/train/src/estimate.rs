//! How much memory a run will take, said before it starts.
//!
//! Running out of memory after an hour is the most expensive way to learn a model's size. So the first step is rehearsed
//! on [`Meta`], a device that computes nothing and counts: the real model, gradients and optimizer, at the real size,
//! with nothing in memory. What other programs need, the caller's own data, and what a device keeps of freed blocks for
//! the next step are not in it.

use crate::error::TrainError;
use crate::optimizer::{Rates, largest_muon, moments};
use crate::settings::{Moments, Recompute, TrainSettings};
use crate::step::Learner;
use wudao_comm::{Comm, Pending};
use wudao_data::batch::{Batch, Segment};
use wudao_data::document::Lang;
use wudao_device::{DType, Device, Fault, Meta, Tensor, ViewMut};
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
    /// What the worst moment takes beyond all these: what the layers keep for the backward pass, and what works on it, less
    /// the gradients of experts that are not there yet.
    pub activations: u64,
    /// Rotary embedding's table.
    pub rope: u64,
    /// What is on the host of a checkpoint while it is written: a copy, or one tensor after another.
    pub snapshot: u64,
    /// The largest tensor.
    pub largest_tensor: u64,
}

impl Estimate {
    /// The same run with its checkpoints written tensor by tensor, while training waits, and not from a copy.
    pub fn without_copy(self) -> Estimate {
        Estimate { snapshot: self.largest_tensor, ..self }
    }

    /// Whether checkpoints are written from a copy.
    pub fn copies(&self) -> bool {
        self.snapshot > self.largest_tensor
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let Estimate { weights, gradients, optimizer, activations, rope, snapshot, .. } = self;
        weights + gradients + optimizer + activations + rope + snapshot
    }

    /// Its parts by name.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        let Estimate { weights, gradients, optimizer, activations, rope, snapshot, .. } = *self;
        [
            ("weights", weights),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations", activations),
            ("rotary table", rope),
            (if self.copies() { "copy for checkpoints" } else { "tensor of a checkpoint" }, snapshot),
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

/// What a run with these settings takes on each of `ranks`, multiplying `operands`, its checkpoints written from a copy. The
/// settings must have passed their checks.
pub fn estimate(
    config: &Config,
    settings: &TrainSettings,
    ranks: usize,
    operands: DType,
) -> Result<Estimate, TrainError> {
    let layout = Layout::new(config, Shard { rank: 0, size: ranks });
    let sums = Meta::statistics(operands);
    let size = sums.size() as u64;
    let weights = layout.len() as u64 * size;
    let gradients = weights;
    let optimizer = moments(&layout, settings) * settings.moments.kept(sums).size() as u64;
    let rope = (settings.seq_len * config.rotary_dim()) as u64 * size;
    let held = weights + gradients + optimizer + rope;
    let activations = rehearse(config, settings, ranks, operands)?.bytes.saturating_sub(held);
    let params = layout.dense().map(|(_, p)| p).chain(layout.experts().flat_map(|(.., pair)| pair));
    let largest_tensor = params.flat_map(|p| &p.parts).map(|part| part.shape.iter().product::<usize>()).max();
    let largest_tensor = largest_tensor.unwrap_or(0) as u64 * size;
    Ok(Estimate { weights, gradients, optimizer, activations, rope, snapshot: gradients + optimizer, largest_tensor })
}

/// What a way of recomputation costs.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Choice {
    /// What backward computes again.
    pub recompute: Recompute,
    /// Bytes of the run, as [`Estimate::total`].
    pub bytes: u64,
    /// Operations of products and attention in a micro-batch, over those without recomputation.
    pub work: f64,
}

/// The cost of every way of recomputation, the cheapest in time first.
pub fn choices(
    config: &Config,
    settings: &TrainSettings,
    ranks: usize,
    operands: DType,
) -> Result<[Choice; 3], TrainError> {
    let mut plain = None;
    let mut cost = |recompute| -> Result<Choice, TrainError> {
        let s = TrainSettings { recompute, ..settings.clone() };
        let flops = rehearse(config, &s, ranks, operands)?.flops as f64;
        let work = flops / *plain.get_or_insert(flops);
        Ok(Choice { recompute, bytes: estimate(config, &s, ranks, operands)?.total(), work })
    };
    Ok([cost(Recompute::None)?, cost(Recompute::Attention)?, cost(Recompute::Block)?])
}

/// Refuses a run that would take more than `available` bytes, with settings that would help. A run on one rank that has no room
/// for copies writes its checkpoints without (several ranks send theirs to the first, which needs the room).
pub fn check(
    config: &Config,
    settings: &TrainSettings,
    ranks: usize,
    operands: DType,
    available: u64,
) -> Result<Estimate, TrainError> {
    let now = estimate(config, settings, ranks, operands)?;
    let least = |e: Estimate| if ranks == 1 { e.without_copy() } else { e };
    for e in [now, least(now)] {
        if e.total() <= available {
            return Ok(e);
        }
    }
    let of = |recompute: Recompute, moments: Moments, micro_batch_size: usize| {
        let s = TrainSettings { recompute, moments, micro_batch_size, ..settings.clone() };
        estimate(config, &s, ranks, operands).map(|e| least(e).total())
    };
    let mut advice = vec![];
    let (kept, moments, rows) = (settings.recompute, settings.moments, settings.micro_batch_size);
    const BLOCK: &str = "recompute = \"block\"";
    const NARROW: &str = "moments = \"bf16\"";
    if kept == Recompute::None {
        advice.push((BLOCK.to_owned(), of(Recompute::Block, moments, rows)?));
    }
    if moments == Moments::F32 {
        advice.push((NARROW.to_owned(), of(kept, Moments::Bf16, rows)?));
    }
    // The largest number of rows that fits, with as much recomputation as it takes, then with narrow moments.
    let fewer: Vec<usize> = (1..rows).rev().filter(|n| rows.is_multiple_of(*n)).collect();
    let changes = [
        (kept, moments, String::new()),
        (Recompute::Block, moments, format!("{BLOCK} and ")),
        (Recompute::Block, Moments::Bf16, format!("{BLOCK}, {NARROW} and ")),
    ];
    'search: for (recompute, moments, prefix) in changes {
        for &n in &fewer {
            let bytes = of(recompute, moments, n)?;
            if bytes <= available {
                advice.push((format!("{prefix}micro_batch_size = {n}"), bytes));
                break 'search;
            }
        }
    }
    advice.retain(|(_, bytes)| *bytes <= available);
    Err(TrainError::Memory(TooLarge { estimate: least(now), available, advice }))
}

/// A step on a device that only counts.
struct Rehearsal {
    /// Bytes alive at the worst moment.
    bytes: u64,
    /// Operations of products and attention in a micro-batch.
    flops: u64,
}

fn rehearse(config: &Config, settings: &TrainSettings, ranks: usize, operands: DType) -> Result<Rehearsal, TrainError> {
    let (meta, comm) = (Meta::new(), Alone { ranks });
    let mut learner = Learner::new(&meta, &comm, config, settings, operands)?;
    let (rows, seq_len) = (settings.micro_batch_size, settings.seq_len);
    let tokens = rows * seq_len;
    let segment = |row: usize| Segment {
        doc: 0,
        lang: Lang::Other,
        source: 0,
        offset: 0,
        bytes: 0,
        range: row * seq_len..(row + 1) * seq_len,
    };
    let batch = Batch {
        rows,
        seq_len,
        inputs: vec![0; tokens],
        targets: vec![0; tokens],
        positions: (0..tokens).map(|i| (i % seq_len) as u32).collect(),
        cu_seqlens: (0..=rows).map(|row| (row * seq_len) as u32).collect(),
        segments: (0..rows).map(segment).collect(),
    };
    // A second micro-batch meets the gradients of the first; others are like it.
    let batches = vec![batch; settings.accumulation(ranks)?.min(2)];
    learner.step(&batches, Rates { lr: 1.0, muon_lr: 1.0 })?;
    // Gradients are zero on a device that computes nothing, and Muon has nothing to do for these.
    let sums = Meta::statistics(operands);
    let muon = (meta.usage().live_bytes + largest_muon(learner.model.layout(), settings, operands, sums)) as u64;
    let usage = meta.usage();
    let flops = (usage.gemm_flops + usage.attention_flops) / batches.len() as u64;
    Ok(Rehearsal { bytes: muon.max(usage.peak_bytes as u64), flops })
}

/// One rank of several, of which the others are silent: it receives what it sends.
struct Alone {
    ranks: usize,
}

impl Comm<Meta> for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        self.ranks
    }
    fn all_reduce(&self, _: &Meta, _: ViewMut<Meta>) -> Result<(), Fault> {
        Ok(())
    }
    fn all_reduce_host(&self, _: &mut [f64]) -> Result<(), Fault> {
        Ok(())
    }
    fn all_to_all(&self, device: &Meta, t: Tensor<Meta>, _: &[usize], recv: &[usize]) -> Pending<Meta> {
        let (device, shape, dtype) = (device.clone(), [recv.iter().sum(), t.shape()[1]], t.dtype());
        // What is sent and what arrives are in memory at once.
        Pending::new(move || {
            let arrived = Tensor::new(&device, shape, dtype);
            drop(t);
            Ok(arrived)
        })
    }
    fn all_to_all_host(&self, x: &[u64]) -> Result<Vec<u64>, Fault> {
        // Every rank sends this one as much as it sends itself.
        let mine = &x[..x.len() / self.ranks];
        Ok(mine.repeat(self.ranks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Rates;
    use crate::settings::{Moments, OptimizerKind};
    use crate::step::Learner;
    use crate::testing::{batches, documents, tiny_dense, tiny_moe, tiny_settings, tiny_softmax};
    use wudao_comm::Solo;
    use wudao_device::Cpu;

    /// What was said before is what the device counts.
    #[test]
    fn estimates_are_what_the_device_counts() {
        for config in [tiny_dense(), tiny_moe(), tiny_softmax()] {
            for (recompute, optimizer, moments, micro_batches) in [
                (Recompute::None, OptimizerKind::AdamW, Moments::F32, 1),
                (Recompute::None, OptimizerKind::AdamW, Moments::Bf16, 3),
                (Recompute::Block, OptimizerKind::Muon, Moments::Bf16, 1),
                (Recompute::Block, OptimizerKind::Muon, Moments::F32, 1),
            ] {
                let config = Config { num_hidden_layers: 6, ..config.clone() };
                // So many rows that what a kernel takes for itself, which depends on one row, is little beside what layers keep.
                let rows = 64;
                let settings = TrainSettings {
                    seq_len: 64,
                    global_batch_size: rows * micro_batches,
                    micro_batch_size: rows,
                    recompute,
                    optimizer,
                    moments,
                    ..tiny_settings()
                };
                let cpu = Cpu::new(1);
                let mut learner = Learner::new(&cpu, &Solo, &config, &settings, DType::F32).unwrap();
                learner.weights = learner.model.init(&cpu, 1);
                let data = batches(&documents(1, 480), 64, rows, micro_batches, 0, 1);
                learner.step(&data, Rates { lr: 1e-3, muon_lr: 1e-3 }).unwrap();
                let e = estimate(&config, &settings, 1, DType::F32).unwrap();
                assert_eq!(e.optimizer, learner.optimizer.bytes());
                let (said, counted) = ((e.total() - e.snapshot) as f64, cpu.peak_bytes() as f64);
                assert!(
                    (0.99..1.01).contains(&(said / counted)),
                    "{:?} {recompute:?} {micro_batches}: {said} {counted}",
                    config.family
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said_in_bytes_with_advice() {
        let settings = TrainSettings { seq_len: 64, global_batch_size: 8, micro_batch_size: 8, ..tiny_settings() };
        let config = Config { num_hidden_layers: 6, ..tiny_moe() };
        let whole = estimate(&config, &settings, 1, DType::F32).unwrap();
        let need = whole.without_copy().total();
        assert!(need < whole.total() && whole.copies());
        let refused = |available| match check(&config, &settings, 1, DType::F32, available) {
            Err(TrainError::Memory(error)) => error,
            other => panic!("{other:?}"),
        };
        let fits = |available| check(&config, &settings, 1, DType::F32, available).unwrap();
        assert_eq!(
            (fits(whole.total()), fits(whole.total() - 1), fits(need)),
            (whole, whole.without_copy(), whole.without_copy())
        );
        assert!(check(&config, &settings, 2, DType::F32, need).is_err(), "two ranks need the copy");
        let error = refused(need - 1);
        assert!(error.advice.iter().all(|(_, bytes)| *bytes < need) && error.advice.len() == 3);
        let text = error.to_string();
        assert!(text.contains(&format!("{need} bytes")) && text.contains("recompute = \"block\""), "{text}");
        assert!(text.contains("moments = \"bf16\"") && text.contains("micro_batch_size = 4"), "{text}");
        // Where only all changes together help, they are named together.
        let least = TrainSettings {
            recompute: Recompute::Block,
            moments: Moments::Bf16,
            micro_batch_size: 1,
            ..settings.clone()
        };
        let error = refused(estimate(&config, &least, 1, DType::F32).unwrap().without_copy().total());
        let [(change, _)] = &error.advice[..] else { panic!("{:?}", error.advice) };
        assert_eq!(change, "recompute = \"block\", moments = \"bf16\" and micro_batch_size = 1");
        let error = refused(1000);
        assert!(error.advice.is_empty() && error.to_string().contains("smaller"));
    }

    #[test]
    fn ranks_share_the_experts() {
        let (s, c) = (tiny_settings(), tiny_moe());
        let of = |ranks| estimate(&c, &s, ranks, DType::F32).unwrap();
        assert!(of(2).weights < of(1).weights && of(2).optimizer < of(1).optimizer && of(2).activations > 0);
    }

    #[test]
    fn recomputation_trades_time_for_memory() {
        let s = TrainSettings { seq_len: 64, global_batch_size: 8, micro_batch_size: 8, ..tiny_settings() };
        for config in [tiny_dense(), tiny_moe()] {
            let config = Config { num_hidden_layers: 6, ..config };
            let [none, attention, block] = choices(&config, &s, 1, DType::F32).unwrap();
            assert!(none.work == 1.0 && none.work < attention.work && attention.work < block.work);
            // Backward costs twice as much as forward: once more is a third more at most.
            assert!(block.work < 4.0 / 3.0, "{}", block.work);
            assert!(none.bytes > attention.bytes && attention.bytes > block.bytes, "{none:?} {attention:?} {block:?}");
        }
    }

    /// A model that no test machine could hold is estimated in a moment.
    #[test]
    fn size_costs_nothing() {
        let mut config = Config { hidden_size: 4096, vocab_size: 150_000, num_hidden_layers: 40, ..tiny_softmax() };
        if let Some(moe) = &mut config.moe {
            (moe.num_experts, moe.num_experts_per_tok, moe.moe_intermediate_size) = (128, 8, 1024);
        }
        let settings = TrainSettings { seq_len: 64, optimizer: OptimizerKind::Muon, ..tiny_settings() };
        let e = estimate(&config, &settings, 1, DType::F32).unwrap();
        assert_eq!(e.weights, 4 * wudao_model::Counts::of(&config).params.total());
        assert!(e.weights > 200 << 30);
    }
}
