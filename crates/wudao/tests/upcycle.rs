//! A dense run becomes a sparse model, which has its answers, and is trained on.

mod common;

use common::{data, fails, json, ok, text, trained};
use std::path::{Path, PathBuf};

const DENSE: &str = r#"
[model]
family = "qwen3"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 64
qk_norm = true

[train]
steps = 3
seq_len = 64
global_batch_size = 4
micro_batch_size = 2
"#;

fn dense(dir: &Path) -> PathBuf {
    let (file, run) = (dir.join("dense.toml"), dir.join("dense"));
    std::fs::write(&file, DENSE).unwrap();
    ok(&["train", "--config", text(&file), "--data", text(data()), "--out", text(&run)]);
    run
}

fn nll(model: &Path) -> f64 {
    json(&["eval", "--model", text(model), "--data", text(data()), "--json"])["total"]["nll"].as_f64().unwrap()
}

#[test]
fn a_dense_run_becomes_a_sparse_model_that_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let (run, sparse, more) = (dense(dir.path()), dir.path().join("models/sparse"), dir.path().join("more"));
    let upcycle = ["upcycle", text(&run), "--out", text(&sparse), "--experts", "4", "--top-k", "2", "--split", "2"];
    let made = json(&[&upcycle[..], &["--json"]].concat());
    assert_eq!(
        (&made["family"], &made["experts"], &made["experts_per_token"]),
        (&"qwen3_moe".into(), &8.into(), &4.into())
    );
    assert!(made["parameters"].as_u64() > made["active"].as_u64());
    assert!(made["active"].as_u64() > made["parameters_before"].as_u64());
    let before = nll(&run);
    assert!((nll(&sparse) - before).abs() < 1e-5 * before, "the same answers");
    // Nothing is overwritten, and nothing is left over.
    let ended = fails(1, &upcycle);
    assert!(ended.err.contains("exists already"), "{}", ended.err);
    assert_eq!(std::fs::read_dir(sparse.parent().unwrap()).unwrap().count(), 1);

    // The model is the checkpoint's, though the preset has another one.
    let train = ["train", "--preset", "tiny", "--data", text(data()), "--from", text(&sparse), "--out", text(&more)];
    ok(&[&train[..], &["--steps", "1", "--lr", "1e-9"]].concat());
    let config = json(&["inspect", text(&more), "--json"])["model"]["config"].clone();
    assert_eq!((&config["family"], &config["moe"]["num_experts"]), (&"qwen3_moe".into(), &8.into()));
    assert!((nll(&more) - before).abs() < 1e-4 * before, "and so are the weights");
    let settings = std::fs::read_to_string(more.join("run.toml")).unwrap();
    assert!(settings.lines().any(|l| l.starts_with("num_experts = 8") && l.contains("# checkpoint")), "{settings}");
}

#[test]
fn what_cannot_become_sparse_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sparse");
    let of = |dense: &Path, more: &[&str]| {
        let base = ["upcycle", text(dense), "--out", text(&out), "--experts", "4", "--top-k", "2"];
        fails(1, &[&base[..], more].concat()).err
    };
    let err = of(trained(), &[]);
    assert!(err.contains("is sparse already"), "{err}");
    let run = dense(dir.path());
    let err = of(&run, &["--split", "3"]);
    assert!(err.contains("split: 3 must be a power of two"), "{err}");
    let err = of(&run, &["--family", "mixtral"]);
    assert!(err.contains("qk_norm"), "{err}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
