//! The command line, from outside: exit statuses, where output goes, what errors say.

mod common;

use common::{corpus, data, fails, json, ok, run, text, wudao};
use std::io::Write;
use std::process::Stdio;

#[test]
fn wrong_arguments_exit_with_2_and_say_what_is_right() {
    let ended = run(&mut wudao());
    assert_eq!(ended.code, Some(2));
    let ended = fails(2, &["tarin"]);
    assert!(ended.err.contains("'train'"), "{}", ended.err);
    let ended = fails(2, &["train", "--out", "x", "--stpes", "3"]);
    assert!(ended.err.contains("--steps"), "{}", ended.err);
    fails(2, &["train", "--out", "x", "--preset", "tinny"]);
    fails(2, &["--threads", "0", "inspect", "x"]);
    let ended = fails(2, &["train", "--out", "x"]);
    assert!(ended.err.contains("--data") && ended.err.contains("help: "), "{}", ended.err);
}

#[test]
fn wrong_settings_name_the_key_the_source_and_the_nearest() {
    let train = ["train", "--data", "none", "--out", "none"];
    let with = |more: &[&str]| fails(2, &[&train[..], more].concat()).err;
    let err = with(&["--set", "train.lrr=1"]);
    assert!(
        err.contains("unknown setting `train.lrr` (--set)")
            && err.contains("help: the nearest known key is `train.lr`"),
        "{err}"
    );
    let err = with(&["--set", "train.optimizer=adam"]);
    assert!(err.contains("expected \"adamw\" or \"muon\", found \"adam\""), "{err}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, "[train]\nlr = 1e-3\nwarm_up = 3\n").unwrap();
    let err = with(&["--config", text(&file)]);
    assert!(err.contains("`train.warm_up`") && err.contains("run.toml") && err.contains("warmup"), "{err}");

    let ended = run(wudao().args(train).env("WUDAO_TRAIN_LRX", "1"));
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("WUDAO_TRAIN_LRX") && ended.err.contains("WUDAO_TRAIN_LR"), "{}", ended.err);
    let ended = run(wudao().args(train).env("WUDAO_THREADS", "many"));
    assert_eq!(ended.code, Some(2));
}

#[test]
fn failures_exit_with_1_and_name_the_path() {
    let ended = fails(1, &["inspect", "/no/such/place"]);
    assert!(ended.err.contains("/no/such/place"));
    let ended = fails(1, &["prepare", "/no/such/text", "--out", "/tmp/never"]);
    assert!(ended.err.contains("/no/such/text"), "{}", ended.err);
    let ended = fails(1, &["generate", "--model", "/no/such/model", "--prompt", "x"]);
    assert!(ended.err.contains("/no/such/model"), "{}", ended.err);
    let ended = fails(1, &["train", "--data", "/no/such/data", "--out", "/tmp/never"]);
    assert!(ended.err.contains("/no/such/data"), "{}", ended.err);
    let empty = tempfile::tempdir().unwrap();
    let ended = fails(1, &["prepare", text(empty.path()), "--out", text(&empty.path().join("out"))]);
    assert!(ended.err.contains(".jsonl"), "an empty folder: {}", ended.err);
}

#[test]
fn an_unwritable_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let out = file.join("out");
    let sample = corpus().join("zh/songci.jsonl.zst");
    let ended = fails(1, &["prepare", text(&sample), "--out", text(&out)]);
    assert!(ended.err.contains(text(&out)), "{}", ended.err);
    let ended = fails(1, &["train", "--preset", "tiny", "--data", text(data()), "--out", text(&out)]);
    assert!(ended.err.contains(text(&file)), "{}", ended.err);
    let ended = fails(1, &["quickstart", "--out", text(&out)]);
    assert!(ended.err.contains(text(&file)) && ended.err.contains("--out"), "{}", ended.err);
}

#[test]
fn the_answer_goes_to_standard_output_and_the_rest_to_standard_error() {
    let ended = ok(&["inspect", text(data())]);
    assert!(ended.out.contains("train") && ended.err.is_empty(), "{}", ended.err);
    let dir = tempfile::tempdir().unwrap();
    let sample = corpus().join("zh/tang.jsonl.zst");
    let out = dir.path().join("out");
    let arguments = ["prepare", text(&sample), "--out", text(&out), "--vocab-size", "600"];
    let ended = ok(&arguments);
    assert!(ended.err.contains("Prepared") && !ended.out.contains("Prepared"));
    for stream in [&ended.out, &ended.err] {
        assert!(!stream.contains('\x1b') && !stream.contains('\r'), "colour or a bar in a pipe: {stream:?}");
    }
    let again = ok(&[&arguments[..], &["-q", "--json"]].concat());
    assert!(again.err.is_empty(), "{}", again.err);
    let report: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(report["tokenizer"]["vocab_size"], 600);
    let other = fails(1, &["prepare", text(&sample), "--out", text(&out), "--vocab-size", "601"]);
    assert!(other.err.contains("--overwrite"), "{}", other.err);
    let coloured = ok(&["inspect", text(&out), "--color", "always"]);
    assert!(coloured.out.contains('\x1b'));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child =
        wudao().args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = common::ended(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(ok(&["completions", shell]).out.contains("quickstart"), "{shell}");
    }
}

#[test]
fn help_has_an_example() {
    for command in ["quickstart", "prepare", "train", "eval", "generate", "inspect", "completions"] {
        let help = ok(&[command, "--help"]).out;
        assert!(help.contains("Example") && help.contains(&format!("wudao {command}")), "{command}");
    }
}

#[test]
fn tokenizers_are_trained_used_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tok");
    let sample = corpus().join("zh/songci.jsonl.zst");
    let summary = json(&["tokenizer", "train", text(&sample), "--out", text(&out), "--vocab-size", "500", "--json"]);
    assert_eq!(summary["vocab_size"], 500);
    let tokenizer = text(&out);

    let line = "明月几时有？把酒问青天。Hello, 2026!";
    let ids = ok(&["tokenizer", "encode", "--tokenizer", tokenizer, line]).out;
    let words: Vec<&str> = ids.split_whitespace().collect();
    let back = ok(&[&["tokenizer", "decode", "--tokenizer", tokenizer][..], &words].concat());
    assert_eq!(back.out, line);

    // Through pipes, and bytes that are no text.
    let pipe = |arguments: &[&str], input: &[u8]| {
        let mut child =
            wudao().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let bytes: Vec<u8> = (0..=255).chain("半".bytes().take(2)).collect();
    let ids = pipe(&["tokenizer", "encode", "--tokenizer", tokenizer], &bytes);
    assert_eq!(pipe(&["tokenizer", "decode", "--tokenizer", tokenizer], &ids), bytes);

    let ended = fails(2, &["tokenizer", "decode", "--tokenizer", tokenizer, "500"]);
    assert!(ended.err.contains("500"));
    let rows =
        json(&["tokenizer", "compare", text(&sample), "--tokenizer", tokenizer, "--tokenizer", text(data()), "--json"]);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert!(rows[0]["languages"]["zh"]["bytes_per_token"].as_f64().unwrap() > 1.0);
    let special = json(&["tokenizer", "encode", "--tokenizer", tokenizer, "--special", "--json", "<|im_end|>"]);
    assert_eq!(special[0]["id"], 3);
}

#[test]
fn sources_weights_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let (tang, out) = (corpus().join("zh/tang.jsonl.zst"), dir.path().join("out"));
    let source = format!("poems={}", text(&tang));
    let arguments =
        ["prepare", "--source", &source, "--weight", "poems=2", "--out", text(&out), "--vocab-size", "600", "--json"];
    let report = json(&arguments);
    assert_eq!(
        (report["sources"][0]["name"].as_str(), report["sources"][0]["weight"].as_f64()),
        (Some("poems"), Some(2.0))
    );
    let ended = fails(2, &["prepare", "--source", &source, "--weight", "songs=2", "--out", "x"]);
    assert!(ended.err.contains("there is no source \"songs\""), "{}", ended.err);

    let mut child = wudao()
        .args(["prepare", "-", "--format", "jsonl", "--fields", "body", "--vocab-size", "300", "--out"])
        .arg(dir.path().join("piped"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for number in 0..40 {
        let body =
            format!("这是第{number}篇文章，讲的是第{number}件事。它不长，可是也不短，正好可以用来做一个测试。{number}");
        writeln!(input, "{}", serde_json::json!({ "body": body.repeat(2) })).unwrap();
    }
    writeln!(input, "{{ broken").unwrap();
    drop(input);
    let ended = common::ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.out.contains("malformed_json"), "{}", ended.out);
}
