//! Training, evaluating and writing through the binary.

mod common;

use common::{assert_same_checkpoint, data, fails, json, newest_checkpoint, ok, run, text, train, trained, wudao};
use std::path::Path;
use std::time::{Duration, Instant};

/// The value of a key in the saved settings, with the comment that says where it came from.
fn saved<'a>(settings: &'a str, key: &str) -> &'a str {
    settings.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap_or_else(|| panic!("{key}\n{settings}"))
}

#[test]
fn settings_are_saved_with_their_origins_and_repeat_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "preset = \"tiny\"\n[train]\nlr = 0.002\nseed = 5\nbeta2 = 0.9\n").unwrap();
    let ended = run(wudao()
        .args(["train", "--config", text(&file), "--data", text(data()), "--out", text(&first), "--steps", "3"])
        .args(["--seed", "7"])
        .env("WUDAO_TRAIN_SEED", "6")
        .env("WUDAO_TRAIN_LR", "0.003"));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let settings = std::fs::read_to_string(first.join("run.toml")).unwrap();
    for (key, value) in [
        ("seed", "7  # --seed"),
        ("lr", "0.003  # environment WUDAO_TRAIN_LR"),
        ("beta2", "0.9  # "),
        ("seq_len", "64  # preset tiny"),
        ("beta1", "0.9  # default"),
        ("vocab_size", "768  # data set"),
    ] {
        let line = saved(&settings, key).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(line.contains(&value.split_whitespace().collect::<Vec<_>>().join(" ")), "{key}: {line}");
    }
    ok(&["train", "--config", text(&first.join("run.toml")), "--out", text(&second)]);
    assert_same_checkpoint(&first, &second);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("three");
    train(&out, &["--steps", "12", "--threads", "3"]);
    assert_same_checkpoint(&out, trained());
}

/// A twin that was trained before is taken as it is, if its settings are the same.
#[test]
fn twins_that_were_trained_before_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("twins");
    let more = ["--set", "train.eval_every=2", "--steps", "4"];
    train(&out.join("sparse"), &more);
    let twins = |more: &[&'static str]| {
        let all =
            ["bench", "sparse-vs-dense", "--preset", "tiny", "--data", text(data()), "--out", text(&out), "--json"];
        [&all[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let call = |more: &[&'static str]| run(wudao().args(twins(more)));
    // The dense layer of `tiny` is as wide as three experts, one of them shared.
    let before = newest_checkpoint(&out.join("sparse"));
    let first = call(&more);
    assert_eq!(first.code, Some(0), "{}", first.err);
    assert!(first.err.contains("sparse, finished before"), "{}", first.err);
    assert!(before == newest_checkpoint(&out.join("sparse")));
    let second = call(&more);
    assert!(second.err.contains("dense, finished before"), "{}", second.err);
    assert_eq!(first.out, second.out);
    let other = call(&["--set", "train.eval_every=2", "--steps", "4", "--set", "train.lr=0.001"]);
    assert_eq!(other.code, Some(2), "{}", other.err);
    assert!(other.err.contains("other settings"), "{}", other.err);
    let longer = call(&["--set", "train.eval_every=2", "--steps", "5"]);
    assert!(longer.code == Some(2) && longer.err.contains("other settings"), "{}", longer.err);
}

#[test]
fn a_folder_with_a_run_is_not_overwritten() {
    let before = newest_checkpoint(trained());
    let ended = fails(1, &["train", "--preset", "tiny", "--data", text(data()), "--out", text(trained())]);
    assert!(ended.err.contains("--resume"), "{}", ended.err);
    assert!(before == newest_checkpoint(trained()));
}

/// Waits until the run has written a checkpoint of at least this step.
fn wait_for_checkpoint(out: &Path, step: u64) {
    let start = Instant::now();
    while !(step..step + 400).any(|s| out.join(format!("checkpoints/step-{s:08}")).exists()) {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint of step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn a_terminated_run_saves_and_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let more = ["--steps", "300", "--set", "train.checkpoint_every=10", "--set", "train.eval_every=50"];
    train(&whole, &more);
    let child = wudao()
        .args(["train", "--preset", "tiny", "--data", text(data()), "--out", text(&cut)])
        .args(more)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_checkpoint(&cut, 10);
    // SAFETY: the child has not been waited for, so the number is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let ended = common::ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("Stopped after step") && ended.err.contains("--resume"), "{}", ended.err);
    ok(&["train", "--resume", "--out", text(&cut)]);
    assert_same_checkpoint(&whole, &cut);
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let more = ["--steps", "100000", "--set", "train.checkpoint_every=5", "--set", "train.eval_every=0"];
    let mut child = wudao()
        .args(["train", "--preset", "tiny", "--data", text(data()), "--out", text(&out), "-q"])
        .args(more)
        .spawn()
        .unwrap();
    wait_for_checkpoint(&out, 5);
    let ended = fails(1, &["train", "--resume", "--out", text(&out)]);
    assert!(ended.err.contains("another run"), "{}", ended.err);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    train(&out, &["--steps", "20", "--set", "train.checkpoint_every=10"]);
    let weights = out.join("checkpoints/step-00000020/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let ended = fails(1, &["inspect", text(&out), "--json"]);
    assert!(ended.err.contains("step-00000020") && ended.err.contains("goes on from"), "{}", ended.err);
    let report: serde_json::Value = serde_json::from_str(&ended.out).expect("the answer comes with the failure");
    assert!(report["checkpoints"][1]["fault"].as_str().unwrap().contains("model.safetensors"), "{report}");
    assert!(report["newest"].as_str().unwrap().ends_with("step-00000010"), "{report}");
    fails(1, &["inspect", text(weights.parent().unwrap())]);
    let ended = ok(&["train", "--resume", "--out", text(&out)]);
    assert!(ended.err.contains("step-00000020"), "{}", ended.err);
    let report = json(&["inspect", text(&out), "--json"]);
    assert!(report["newest"].as_str().unwrap().ends_with("step-00000020"), "{report}");
    assert_eq!((&report["verified"], &report["model"]["verified"]), (&true.into(), &true.into()), "{report}");
}

#[test]
fn inspect_counts_what_is_there() {
    let run = json(&["inspect", text(trained()), "--json"]);
    assert_eq!(run["kind"], "run");
    assert_eq!(run["model"]["config"]["num_hidden_layers"], 2);
    let folder = run["newest"].as_str().unwrap();
    let checkpoint = json(&["inspect", folder, "--json"]);
    assert_eq!((checkpoint["kind"].as_str(), checkpoint["verified"].as_bool()), (Some("checkpoint"), Some(true)));
    assert_eq!(checkpoint["step"], 12);
    let parameters = &checkpoint["parameters"];
    assert!(parameters["active"].as_u64() < parameters["total"].as_u64());
    let bytes = checkpoint["dtypes"]["F32"].as_u64().unwrap();
    assert_eq!(bytes, 4 * parameters["total"].as_u64().unwrap(), "four bytes a parameter");
    let tensors = json(&["inspect", &format!("{folder}/model.safetensors"), "--json"]);
    assert_eq!(tensors["tensors"].as_array().unwrap().len() as u64, checkpoint["tensors"].as_u64().unwrap());
    assert!(ok(&["inspect", folder]).out.contains("experts"));
    assert_eq!(json(&["inspect", text(data()), "--json"])["kind"], "data");
    assert_eq!(json(&["inspect", &format!("{folder}/tokenizer.json"), "--json"])["kind"], "tokenizer");
}

#[test]
fn a_flipped_bit_in_a_shard_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let shard = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let shard =
        shard.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("train-")).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap();
    let ended = fails(1, &["inspect", text(dir.path())]);
    assert!(ended.err.contains(name), "{}", ended.err);
    // Nothing is learned from it or measured on it.
    let out = dir.path().join("run");
    let train = ["train", "--preset", "tiny", "--data", text(dir.path()), "--out", text(&out), "--steps", "1"];
    let ended = fails(1, &train);
    assert!(ended.err.contains(name) && ended.err.contains("is damaged") && !out.exists(), "{}", ended.err);
    let ended = fails(1, &["eval", "--model", text(trained()), "--data", text(dir.path()), "--split", "train"]);
    assert!(ended.err.contains(name), "{}", ended.err);
    ok(&[&train[..], &["--no-verify"]].concat());
}

#[test]
fn eval_measures_shards_and_texts_by_source_and_language() {
    let report = json(&["eval", "--model", text(trained()), "--data", text(data()), "--json"]);
    let total = &report["total"];
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let nll = number(&total["nll"]);
    assert!((number(&total["perplexity"]) - nll.exp()).abs() < 1e-6 * nll.exp());
    let bits = nll * number(&total["tokens"]) / number(&total["bytes"]) / std::f64::consts::LN_2;
    assert!((number(&total["bits_per_byte"]) - bits).abs() < 1e-9);
    let sum: f64 = report["sources"].as_array().unwrap().iter().map(|row| number(&row["tokens"])).sum();
    assert_eq!(sum, number(&total["tokens"]));

    let dir = tempfile::tempdir().unwrap();
    let (zh, en) = (dir.path().join("词.txt"), dir.path().join("b.jsonl"));
    let song = "明月几时有？把酒问青天。不知天上宫阙，今夕是何年。";
    let verse = "In the beginning God created the heavens and the earth.";
    std::fs::write(&zh, song).unwrap();
    std::fs::write(&en, format!("{{\"text\": \"{verse}\"}}\n")).unwrap();
    let report = json(&["eval", "--model", text(trained()), "--data", text(&zh), text(&en), "--json"]);
    assert_eq!(report["total"]["bytes"], song.len() + verse.len());
    assert_eq!(
        (report["sources"][0]["language"].as_str(), report["sources"][1]["language"].as_str()),
        (Some("zh"), Some("en"))
    );
    assert!(report["sources"][0]["source"].as_str().unwrap().ends_with("词.txt"));
    // Shorter windows see less.
    let short = json(&["eval", "--model", text(trained()), "--data", text(&zh), "--seq-len", "4", "--json"]);
    assert_eq!(short["total"]["tokens"], report["sources"][0]["tokens"]);
    let ended = fails(1, &["eval", "--model", text(trained()), "--data", text(&zh), "--seq-len", "100000"]);
    assert!(ended.err.contains("--seq-len"), "{}", ended.err);
}

#[test]
fn generate_prints_the_completion_alone() {
    let base = ["generate", "--model", text(trained()), "--max-tokens", "12"];
    let with = |more: &[&str]| ok(&[&base[..], more].concat());
    let first = with(&["--prompt", "明月", "--seed", "3"]);
    assert!(first.err.is_empty() && !first.out.is_empty(), "{}", first.err);
    assert_eq!(first.out, with(&["--prompt", "明月", "--seed", "3"]).out, "the same seed");
    let line: serde_json::Value =
        serde_json::from_str(&with(&["--prompt", "明月", "--seed", "3", "--json"]).out).unwrap();
    assert_eq!(line["prompt"], "明月");
    assert_eq!(line["completion"].as_str().unwrap().trim_end_matches('\n'), first.out.trim_end_matches('\n'));

    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "明月\nIn the\n").unwrap();
    let lines = with(&["--prompts-file", text(&prompts), "--temperature", "0", "--json"]).out;
    assert_eq!(lines.lines().count(), 2);
    let greedy = with(&["--prompt", "In the", "--temperature", "0"]).out;
    let second: serde_json::Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!(second["completion"].as_str().unwrap().trim_end(), greedy.trim_end());

    // Experts may stay in their file, and are told of.
    let small = |code: i32, size: &str| {
        let arguments = [&base[..], &["--prompt", "In the", "--temperature", "0", "--memory", size]].concat();
        if code == 0 { ok(&arguments) } else { fails(code, &arguments) }
    };
    let err = small(1, "1K").err;
    let least = err.split("give it ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("{err}"));
    let ended = small(0, least);
    assert_eq!(ended.out, greedy);
    assert!(ended.err.contains("read from the file"), "{}", ended.err);
    assert_eq!(small(0, "1G").out, greedy);
    assert!(small(2, "much").err.contains("900M"));

    let formed = with(&["--prompt", "明月", "--regex", "[ab]{3}床", "--json"]).out;
    let formed: serde_json::Value = serde_json::from_str(&formed).unwrap();
    let written = formed["completion"].as_str().unwrap().strip_suffix('床').unwrap().to_owned();
    assert!(written.len() == 3 && written.bytes().all(|byte| b"ab".contains(&byte)), "{written}");
    assert_eq!(formed["stop"], "end_of_text");
    let schema = dir.path().join("schema.json");
    std::fs::write(&schema, "{\"enum\": [7]}").unwrap();
    assert_eq!(with(&["--prompt", "明月", "--schema", text(&schema)]).out, "7\n");
    std::fs::write(&schema, "{\"not\": {}}").unwrap();
    let ended = fails(2, &[&base[..], &["--prompt", "x", "--schema", text(&schema)]].concat());
    assert!(ended.err.contains("#/not"), "{}", ended.err);

    fails(2, &[&base[..], &["--prompt", "x", "--top-p", "2"]].concat());
    fails(2, &base);
    let long = "明月".repeat(2000);
    let ended = fails(1, &[&base[..], &["--prompt", &long]].concat());
    assert!(ended.err.contains("tokens"), "{}", ended.err);
}

#[test]
fn weights_of_another_run_can_be_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("next");
    train(&out, &["--steps", "1", "--from", text(trained()), "--lr", "1e-9"]);
    let nll = |model: &Path| {
        let report = json(&["eval", "--model", text(model), "--data", text(data()), "--json"]);
        report["total"]["nll"].as_f64().unwrap()
    };
    assert!((nll(&out) - nll(trained())).abs() < 1e-3);
}

#[test]
fn the_run_leaves_metrics_and_a_report() {
    let metrics = std::fs::read_to_string(trained().join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 12);
    let report = std::fs::read_to_string(trained().join("report.html")).unwrap();
    assert!(report.contains("天下"), "the samples are in the report");
    assert!(std::fs::read_dir(trained().join("tensorboard")).unwrap().next().is_some());
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let base = ["train", "--preset", "tiny", "--data", text(data()), "--out", text(&out)];
    let with = |code, more: &[&str]| fails(code, &[&base[..], more].concat()).err;
    let err = with(2, &["--set", "train.beta1=1.5"]);
    assert!(err.contains("`train.beta1` (--set)"), "{err}");
    let err = with(2, &["--set", "model.num_key_value_heads=3"]);
    assert!(err.contains("`model.num_key_value_heads` (--set)"), "{err}");
    let err = with(1, &["--seq-len", "100000"]);
    assert!(err.contains("seq_len"), "{err}");
    let err = with(1, &["--set", "model.vocab_size=300"]);
    assert!(err.contains("vocab_size") || err.contains("300"), "{err}");
    let err = with(2, &["--tui"]);
    assert!(err.contains("terminal"), "{err}");
    let err = with(1, &["--set", "model.hidden_size=40000", "--set", "model.intermediate_size=400000"]);
    assert!(err.contains("memory") || err.contains("bytes") || err.contains("GB"), "{err}");
    assert!(!out.join("checkpoints").exists());
}
