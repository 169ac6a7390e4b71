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

    let answer = |lines: &str, question: usize| {
        let lines = lines.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut own = lines.filter(|line| line["question"] == question);
        own.next().unwrap()["answer"]["log_likelihood"].clone()
    };
    // Each alone, to the bit.
    for i in [0, 29, 150] {
        let (one, alone) = (dir.path().join(format!("{i}.jsonl")), dir.path().join(format!("{i}")));
        write(&one, &questions(300)[i..i + 1]);
        eval(&[text(&one), "--out", text(&alone)]);
        assert_eq!(answer(&std::fs::read_to_string(&alone).unwrap(), 0), answer(&lines, i));
    }

    // As a crash in the middle of a line leaves it, here of a character.
    let mut half = lines.as_bytes()[..lines.len() / 2].to_vec();
    half.extend(&"床".as_bytes()[..2]);
    std::fs::write(&out, half).unwrap();
    assert_eq!(eval(&[text(&all), "--out", text(&out)])["tasks"], whole);
    let mended = std::fs::read_to_string(&out).unwrap();
    assert!(mended.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(mended.lines().count(), 301);

    // An answer belongs to its question wherever it stands: what is known is not asked again, a new question is.
    let (moved, mut more) = (dir.path().join("moved.jsonl"), questions(300));
    more.insert(0, value!({"context": "明月", "choices": ["几时有", "a"], "label": 0}));
    write(&moved, &more);
    assert_eq!(eval(&[text(&moved), "--out", text(&out)])["tasks"][0]["questions"], 301);
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 302);

    // Another arithmetic's answers are not ours, nor those after other beginnings.
    let model = ["eval", "--model", text(trained()), "--tasks", text(&all), "--out", text(&out)];
    for other in [&["--dtype", "bf16"][..], &["--no-bos"]] {
        let ended = fails(1, &[&model[..], other].concat());
        assert!(ended.err.contains("another model"), "{}", ended.err);
    }
}

/// Killed at any moment, a run goes on where it was, to the same figures.
#[test]
fn a_killed_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (all, out) = (dir.path().join("all.jsonl"), dir.path().join("answers"));
    let numbered = |(i, mut question): (usize, Value)| {
        question["context"] = format!("{i}{}", question["context"].as_str().unwrap()).into();
        question
    };
    write(&all, &questions(3000).into_iter().enumerate().map(numbered).collect::<Vec<_>>());
    let arguments = ["eval", "--model", text(trained()), "--tasks", text(&all), "--out", text(&out), "--json"];
    let lines = || std::fs::read_to_string(&out).map_or(0, |text| text.lines().count());
    let mut child = common::wudao().args(arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    while lines() < 100 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = lines();
    assert!((100..3001).contains(&before), "killed after {before} lines");
    let report = json(&arguments);
    assert_eq!(lines(), 3001);
    std::fs::remove_file(&out).unwrap();
    assert_eq!(report["tasks"], json(&arguments)["tasks"]);
}

#[test]
fn home_made_tasks_are_sound() {
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tasks");
    let report = eval(&[text(&tasks), "--limit", "3"]);
    let names: Vec<&str> = report["tasks"].as_array().unwrap().iter().map(|t| t["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["zh/law_article", "zh/poem_next_line"]);
    for task in wudao_infer::tasks::Task::read_all(&tasks, None).unwrap() {
        assert_eq!(task.questions.len(), 400);
        // No answer is given away by its place or its length.
        for place in 0..4 {
            let there = task.questions.iter().filter(|q| q.right == place).count();
            assert!((70..130).contains(&there), "{}: {there} of 400 at {place}", task.name);
        }
        let longest = |q: &&wudao_infer::tasks::Question| {
            q.choices.iter().all(|c| c.continuation.len() <= q.choices[q.right].continuation.len())
        };
        let same = |q: &&wudao_infer::tasks::Question| {
            q.choices.iter().all(|c| c.continuation.len() == q.choices[q.right].continuation.len())
        };
        let (longest, same) =
            (task.questions.iter().filter(longest).count(), task.questions.iter().filter(same).count());
        assert!(longest - same < 150, "{}: in {longest} of 400 the longest is right", task.name);
    }
}

#[test]
fn a_context_that_does_not_fit_is_cut_at_its_beginning_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.jsonl");
    let long = "床前明月光".repeat(200);
    let question = |context: &str| value!({"context": context, "choices": ["a", "b"], "label": 0});
    write(&file, &[question(&long), question("明月")]);
    let scores = eval(&[text(&file)])["tasks"][0].clone();
    assert_eq!((scores["cut"].as_u64(), scores["questions"].as_u64()), (Some(1), Some(2)));
    assert_eq!(eval(&[text(&file), "--limit", "1"])["tasks"][0]["questions"], 1);
    // A text is read in windows, and nothing of it is cut.
    write(&file, &[value!({"text": "床前 明月 光 ".repeat(150)}), value!({"text": "明月"})]);
    let scores = eval(&[text(&file)])["tasks"][0].clone();
    assert_eq!(
        (scores["cut"].as_u64(), scores["kind"].as_str(), scores["acc"].as_f64()),
        (Some(0), Some("text"), None)
    );
    let figure = |name: &str| scores[name]["value"].as_f64().unwrap();
    assert!((figure("byte_perplexity").log2() - figure("bits_per_byte")).abs() < 1e-12);
    assert!(figure("word_perplexity") > figure("byte_perplexity"));
}

#[test]
fn wrong_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.jsonl");
    let question = |label: usize| value!({"context": "a", "choices": ["b"], "label": label});
    write(&file, &[question(0), question(5)]);
    let ended = fails(1, &["eval", "--model", text(trained()), "--tasks", text(&file)]);
    assert!(ended.err.contains("bad.jsonl:2: \"label\" is 5"), "{}", ended.err);
    write(&file, &[question(0)]);
    let ended = fails(1, &["eval", "--model", text(trained()), "--tasks", text(&file), "--shots", "2"]);
    assert!(ended.err.contains("--shots"), "{}", ended.err);
    let ended = fails(2, &["eval", "--model", text(trained())]);
    assert!(ended.err.contains("--tasks"), "{}", ended.err);
}
