//! An invented run for the tests of this folder.

use super::*;
use crate::evaluate::SourceScores;
use crate::health::RouterHealth;
use crate::schedule::Plan;
use crate::settings::TrainSettings;
use std::collections::BTreeMap;
use wudao_data::document::Lang;
use wudao_device::check::Random;

/// The size of a run.
#[derive(Clone, Copy)]
pub struct Size {
    pub steps: u64,
    pub layers: usize,
    pub experts: usize,
}

/// What a step of such a run might report: a falling, noisy loss, and routers that find their balance.
pub fn step(size: Size, step: u64) -> StepReport {
    let mut random = Random(step);
    let mut noise = |scale: f64| 0.5 * scale * random.uniform();
    let progress = step as f64 / size.steps as f64;
    let plan = plan(size);
    let router = |layer: usize, noise: &mut dyn FnMut(f64) -> f64| {
        let drift = 1.6 * (-6.0 * progress).exp();
        let weight = |e: usize| (drift * ((e * 7 + layer * 3) as f64).sin() + noise(0.4)).exp();
        let weights: Vec<f64> = (0..size.experts).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let load: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        RouterHealth {
            layer,
            max_over_mean: load.iter().fold(0.0, |a: f64, b| a.max(*b)) * size.experts as f64,
            balance: 1.0 - 0.5 * (-5.0 * progress).exp(),
            entropy: 0.95 - 0.3 * progress - 0.02 * layer as f64 + noise(0.02),
            dead: 0,
            load,
        }
    };
    let grad_norm = 0.35 + 3.0 * (-30.0 * progress).exp() + noise(0.2) + if step % 97 == 50 { 4.0 } else { 0.0 };
    StepReport {
        step,
        steps: size.steps,
        tokens: step * 8192,
        epoch: progress * 2.0,
        loss: 3.6 + 5.9 * (-9.0 * progress.powf(0.6)).exp() + noise(0.25),
        balance_loss: 0.0,
        z_loss: 0.0,
        lr: 1e-3 * plan.factor(step),
        grad_norm,
        grad_scale: (1.0 / grad_norm).min(1.0),
        applied: true,
        seconds: 0.36,
        tokens_per_second: 22_600.0 + noise(1500.0),
        flops_share: Some(0.43 + noise(0.03)),
        seconds_left: 0.36 * (size.steps - step) as f64,
        routers: (1..=size.layers).map(|layer| router(layer, &mut noise)).collect(),
    }
}

fn plan(size: Size) -> Plan {
    Plan::new(&TrainSettings { steps: Some(size.steps), ..Default::default() }, 0)
}

pub fn scores(nll: f64, bytes_per_token: f64) -> Scores {
    let tokens = 100_000;
    let bytes = (100_000.0 * bytes_per_token) as u64;
    let bits_per_byte = nll / std::f64::consts::LN_2 / bytes_per_token;
    Scores { tokens, bytes, nll, perplexity: nll.exp(), bits_per_byte }
}

/// An evaluation after a step of such a run.
pub fn evaluation(size: Size, step: u64) -> Evaluation {
    let fall = 5.5 * (-9.0 * (step as f64 / size.steps as f64).powf(0.6)).exp();
    let (zh, en) = (scores(4.1 + fall, 4.6), scores(3.5 + fall, 3.9));
    let source = |source: &str, language, scores| SourceScores { source: source.into(), language, scores };
    Evaluation {
        step,
        total: scores(3.8 + fall, 4.2),
        languages: BTreeMap::from([(Lang::Zh, zh), (Lang::En, en)]),
        sources: vec![
            source("四大名著 <b>", Lang::Zh, zh),
            source("gutenberg-en", Lang::En, en),
            source("gutenberg-en", Lang::Zh, scores(f64::NAN, 3.0)),
        ],
        best: true,
        seconds: 1.5,
    }
}

/// `run.json` of such a run.
pub fn run_file(size: Size) -> RunFile {
    RunFile {
        created_by: "wudao 0.1.0".into(),
        settings: TrainSettings { steps: Some(size.steps), ..Default::default() },
        model: crate::testing::tiny_moe(),
        parameters: (12_345_678, 4_321_000),
        plan: plan(size),
        tokenizer: "0123456789abcdef".repeat(4),
        sources: vec!["四大名著 <b>".into(), "gutenberg-en".into()],
        machine: vec![("processor".into(), "A \"fast\" one & more".into()), ("threads".into(), "2".into())],
    }
}

/// Records the whole of such a run, with an evaluation every tenth of it.
pub fn record(out: &Path, size: Size) {
    write_run(out, &run_file(size)).unwrap();
    let mut metrics = Metrics::open(out, 0).unwrap();
    for n in 1..=size.steps {
        assert_eq!(metrics.step(&step(size, n)), None);
        if n % size.steps.div_ceil(10) == 0 || n == size.steps {
            assert_eq!(metrics.evaluation(&evaluation(size, n)), None);
        }
    }
    assert_eq!(metrics.sync(), None);
}
