//! The record and TensorBoard's files of an invented run.

use super::testing::{Size, evaluation, record, step};
use super::*;
use serde_json::Value;
use std::fs;

const SIZE: Size = Size { steps: 20, layers: 2, experts: 4 };

fn read(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join(METRICS)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Other programs read these: a key that is renamed breaks them.
#[test]
fn lines_have_the_documented_keys() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), SIZE);
    append_sample(dir.path(), &Sample { step: 20, prompt: "天".into(), completion: "地".into() }).unwrap();
    let lines = read(dir.path());
    assert_eq!(lines.len(), 20 + 10 + 1);
    let sorted = |mut keys: Vec<&'static str>| {
        keys.sort_unstable();
        keys
    };
    let first = &lines[0];
    assert_eq!(first["kind"], "step");
    assert_eq!(
        keys(first),
        sorted(vec![
            "kind",
            "step",
            "tokens",
            "epoch",
            "loss",
            "balance_loss",
            "z_loss",
            "lr",
            "grad_norm",
            "clipped",
            "skipped",
            "seconds",
            "elapsed",
            "tokens_per_second",
            "flops_share",
            "router",
        ])
    );
    let router = &first["router"][1];
    assert_eq!(keys(router), sorted(vec!["layer", "max_over_mean", "balance", "entropy", "dead", "load"]));
    let sum: f64 = router["load"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);
    assert_eq!((first["clipped"].clone(), first["skipped"].clone()), (true.into(), false.into()));

    let scores = ["tokens", "bytes", "nll", "perplexity", "bits_per_byte"];
    let measured = lines.iter().find(|line| line["kind"] == "evaluation").unwrap();
    let own = ["kind", "step", "languages", "sources", "best", "seconds"];
    assert_eq!(keys(measured), sorted([&scores[..], &own].concat()));
    assert_eq!(keys(&measured["languages"]), ["en", "zh"]);
    assert_eq!(keys(&measured["languages"]["zh"]), sorted(scores.to_vec()));
    assert_eq!(keys(&measured["sources"][0]), sorted([&scores[..], &["source", "language"]].concat()));
    assert_eq!(measured["sources"][2]["nll"], Value::Null);
    assert_eq!(keys(lines.last().unwrap()), ["completion", "kind", "prompt", "step"]);
}

#[test]
fn what_is_not_finite_is_null() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), 0).unwrap();
    let (loss, grad_norm) = (f64::NAN, f64::INFINITY);
    metrics.step(&StepReport { loss, grad_norm, applied: false, ..step(SIZE, 1) });
    let line = &read(dir.path())[0];
    assert_eq!((&line["loss"], &line["grad_norm"]), (&Value::Null, &Value::Null));
    assert_eq!(line["skipped"], true);
}

#[test]
fn a_resumed_run_goes_on_where_its_checkpoint_was() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), SIZE);
    // A crash in the middle of a line.
    let mut bytes = fs::read(dir.path().join(METRICS)).unwrap();
    bytes.truncate(bytes.len() - 5);
    fs::write(dir.path().join(METRICS), bytes).unwrap();
    let taken = read_until(dir.path(), 12);

    let mut metrics = Metrics::open(dir.path(), 12).unwrap();
    assert_eq!(metrics.before, taken.last().unwrap()["elapsed"].as_f64().unwrap_or(metrics.before));
    for n in 13..=14 {
        assert_eq!(metrics.step(&step(SIZE, n)), None);
    }
    assert_eq!(metrics.evaluation(&evaluation(SIZE, 14)), None);
    let lines = read(dir.path());
    let steps: Vec<u64> = lines.iter().filter(|l| l["kind"] == "step").map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=14).collect::<Vec<_>>());
    assert_eq!(lines[..taken.len()], taken);
    let elapsed: Vec<f64> = lines.iter().filter_map(|l| l["elapsed"].as_f64()).collect();
    assert!(elapsed.is_sorted());
    assert_eq!(fs::read_dir(dir.path().join(TENSORBOARD)).unwrap().count(), 2);

    Metrics::open(dir.path(), 0).unwrap();
    assert!(read(dir.path()).is_empty(), "a new run begins with an empty record");
    assert_eq!(fs::read_dir(dir.path().join(TENSORBOARD)).unwrap().count(), 1);
}

fn read_until(out: &Path, step: u64) -> Vec<Value> {
    let text = fs::read_to_string(out.join(METRICS)).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["step"].as_u64().unwrap() <= step).collect()
}

/// A full disk stops no run, and is told once.
#[test]
#[cfg(target_os = "linux")]
fn what_cannot_be_written_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), 0).unwrap();
    metrics.jsonl = Jsonl::full();
    let warning = metrics.step(&step(SIZE, 1)).unwrap();
    assert!(warning.contains("No space left"), "{warning}");
    assert_eq!(metrics.step(&step(SIZE, 2)), None);
}
