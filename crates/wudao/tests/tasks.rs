//! Evaluation tasks through the binary.

mod common;

use common::{fails, json, ok, text, trained};
use serde_json::{Value, json as value};
use std::path::Path;

fn write(path: &Path, lines: &[Value]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

fn eval(more: &[&str]) -> Value {
    json(&[&["eval", "--model", text(trained()), "--json", "--tasks"], more].concat())
}

/// What the model itself writes must be what it finds likeliest, and no other text may be.
#[test]
fn greedy_text_is_its_own_right_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (dir.path().join("own.jsonl"), dir.path().join("other.jsonl"));
    let prompt = "明月几时有";
    let written =
        ok(&["generate", "--model", text(trained()), "--prompt", prompt, "--temperature", "0", "--max-tokens", "6"]);
    let written = written.out.strip_suffix('\n').unwrap_or(&written.out);
    write(&own, &[value!({"context": prompt, "continuation": written})]);
    write(&other, &[value!({"context": prompt, "continuation": "Zebra"})]);
    let report = eval(&[text(&own), text(&other)]);
    let scores = report["tasks"].as_array().unwrap();
    assert_eq!((scores[0]["task"].as_str(), scores[1]["task"].as_str()), (Some("own"), Some("other")));
    let acc = |i: usize| scores[i]["acc"]["value"].as_f64().unwrap();
    assert_eq!((acc(0), acc(1)), (1.0, 0.0), "{written:?}");
    let bits = |i: usize| scores[i]["bits_per_byte"]["value"].as_f64().unwrap();
    assert!(bits(0) < bits(1));
}

fn questions(n: usize) -> Vec<Value> {
    let question = |i: usize| {
        let context =
            format!("{}。", "床前明月光，疑是地上霜".chars().cycle().skip(i % 11).take(1 + i % 30).collect::<String>());
        value!({"context": context, "choices": ["举头望", " low", "低头思故乡"], "label": i % 3})
    };
    (0..n).map(question).collect()
}

#[test]
fn answers_do_not_depend_on_what_is_asked_beside_and_outlive_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (all, out) = (dir.path().join("all.jsonl"), dir.path().join("answers"));
    write(&all, &questions(300));
    let whole = eval(&[text(&all), "--out", text(&out)])["tasks"].clone();
    let lines = std::fs::read_to_string(&out).unwrap();
    assert_eq!(lines.lines().count(), 301);

    // Each alone, to the bit.
    let answer = |line: &str| serde_json::from_str::<Value>(line).unwrap()["answer"]["log_likelihood"].clone();
    for i in [0, 29, 150] {
        let (one, alone) = (dir.path().join(format!("{i}.jsonl")), dir.path().join(format!("{i}")));
        write(&one, &questions(300)[i..i + 1]);
        eval(&[text(&one), "--out", text(&alone)]);
        let alone = std::fs::read_to_string(&alone).unwrap();
        assert_eq!(answer(alone.lines().nth(1).unwrap()), answer(lines.lines().nth(i + 1).unwrap()));
    }

    // As a crash in the middle of a line leaves it.
    std::fs::write(&out, &lines[..lines.len() / 2]).unwrap();
    assert_eq!(eval(&[text(&all), "--out", text(&out)])["tasks"], whole);
    let mended = std::fs::read_to_string(&out).unwrap();
    assert!(mended.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));

    // Other questions under the same name are asked anew; another arithmetic's answers are not ours.
    write(&all, &questions(299));
    assert_eq!(eval(&[text(&all), "--out", text(&out)])["tasks"][0]["questions"], 299);
    let model = ["eval", "--model", text(trained()), "--tasks", text(&all), "--out", text(&out)];
    let ended = fails(1, &[&model[..], &["--dtype", "bf16"]].concat());
    assert!(ended.err.contains("another model"), "{}", ended.err);
}

#[test]
fn a_context_that_does_not_fit_is_cut_at_its_beginning_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.jsonl");
    let long = "床前明月光".repeat(200);
    write(&file, &[value!({"context": long, "choices": ["a", "b"], "label": 0}), value!({"text": "明月"})]);
    let scores = eval(&[text(&file)])["tasks"][0].clone();
    assert_eq!((scores["cut"].as_u64(), scores["questions"].as_u64()), (Some(1), Some(2)));
    assert_eq!(eval(&[text(&file), "--limit", "1"])["tasks"][0]["questions"], 1);
}

#[test]
fn wrong_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.jsonl");
    write(&file, &[value!({"text": "a"}), value!({"context": "a", "choices": ["b"], "label": 5})]);
    let ended = fails(1, &["eval", "--model", text(trained()), "--tasks", text(&file)]);
    assert!(ended.err.contains("bad.jsonl:2") && ended.err.contains("of 1"), "{}", ended.err);
    let ended = fails(2, &["eval", "--model", text(trained())]);
    assert!(ended.err.contains("--tasks"), "{}", ended.err);
}
