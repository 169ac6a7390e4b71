//! `wudao chat` in a pipe: an entry is a turn, standard output has the answers alone. At a terminal: `terminal.rs`.

mod common;

use common::{Ended, ended, fails, newest_checkpoint, ok, text, trained, wudao};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// A conversation with a model: entries, and flags.
fn chat(model: &Path, entries: &str, more: &[&str]) -> Ended {
    let mut command = wudao();
    command.args(["chat", text(model), "--threads", "2", "--cache", "16"]).args(more);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    // A program that has failed reads no more.
    let _ = child.stdin.take().expect("it is piped").write_all(entries.as_bytes());
    ended(child.wait_with_output().expect("it ends"))
}

#[track_caller]
fn talk(entries: &str, more: &[&str]) -> String {
    let ended = chat(trained(), entries, more);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    ended.out
}

fn messages(path: &Path) -> Vec<(String, String)> {
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let word = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
    file["messages"].as_array().unwrap().iter().map(|m| (word(m, "role"), word(m, "content"))).collect()
}

#[test]
fn each_entry_is_a_turn_and_the_answers_alone_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let entries = format!("你好\n\nand\\\nmore\n/save {}\n", text(&file));
    let flags = ["--max-tokens", "12", "--temperature", "1.2", "--seed", "5", "--system", "Be brief."];
    let out = talk(&entries, &flags);
    let said = messages(&file);
    let roles: Vec<&str> = said.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!((said[0].1.as_str(), said[1].1.as_str(), said[3].1.as_str()), ("Be brief.", "你好", "and\nmore"));
    let line = |text: &str| if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    assert_eq!(out, line(&said[2].1) + &line(&said[4].1));
    // The same again, to the letter, and on with it from the file.
    assert_eq!(talk(&entries.replace("talk", "again"), &flags), out);
    let on = format!("{}\n/save {}\n", "third", text(&file));
    talk(&on, &["--load", text(&file), "--max-tokens", "3"]);
    let longer = messages(&file);
    assert_eq!((longer.len(), &longer[..5]), (7, &said[..]));
}

#[test]
fn an_answer_can_be_asked_for_again_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (first, second, third) = (file("1"), file("2"), file("3"));
    let entries = format!(
        "one\n/save {}\n/retry\n/save {}\n/undo\n/undo\n/retry\ntwo\n/save {}\n/clear\n/system off\n/stats\n/set seed=9\n/exit\nnever\n",
        text(&first),
        text(&second),
        text(&third)
    );
    let ended = chat(trained(), &entries, &["--max-tokens", "10", "--temperature", "3"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let (first, second, third) = (messages(&first), messages(&second), messages(&third));
    assert_eq!((first.len(), &first[0]), (2, &second[0]));
    assert_ne!(first[1], second[1], "another answer");
    assert_eq!((third.len(), third[0].1.as_str()), (2, "two"));
    assert!(ended.err.contains("nothing was asked yet") && ended.err.contains("nothing to forget"), "{}", ended.err);
    assert!(ended.err.contains("tokens in 3 answers") && ended.err.contains("seed = 9"), "{}", ended.err);
    assert!(!ended.out.contains("seed") && !ended.err.contains("never"));
}

#[test]
fn what_goes_wrong_ends_a_pipe_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes");
    std::fs::write(&notes, "mine").unwrap();
    for (entries, code, why) in [
        ("/set temprature=1\n", 2, "temperature"),
        ("/set top_p=7\n", 2, "top_p"),
        ("/sing\n", 2, "/help"),
        ("/load /nonexistent\n", 1, "/nonexistent"),
        (&*format!("a\n/save {}\n", text(&notes)), 1, "another name"),
        (&*"long ".repeat(5000), 1, "makes room"),
    ] {
        let ended = chat(trained(), &format!("{entries}/exit\n"), &["--max-tokens", "2"]);
        assert_eq!(ended.code, Some(code), "{entries}: {}", ended.err);
        assert!(ended.err.contains("error: ") && ended.err.contains(why), "{entries}: {}", ended.err);
    }
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
    assert!(fails(2, &["chat", "http://127.0.0.1:8000"]).err.contains("browser"));
    assert!(fails(1, &["chat", "/nonexistent"]).err.contains("/nonexistent"));
    assert!(fails(2, &["chat", text(trained()), "--temperature=-1"]).err.contains("temperature"));
}

#[test]
fn a_model_that_was_never_taught_to_chat_continues_each_text() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in newest_checkpoint(trained()) {
        let bytes = match name.as_str() {
            "tokenizer_config.json" => {
                let mut config: Value = serde_json::from_slice(&bytes).unwrap();
                config.as_object_mut().unwrap().remove("chat_template").expect("it had one");
                config.to_string().into_bytes()
            }
            _ => bytes,
        };
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let flags = ["--max-tokens", "15", "--temperature", "0"];
    let ended = chat(dir.path(), "话说天下\n", &flags);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("no chat template"), "{}", ended.err);
    let mut arguments = vec!["generate", "--model", text(dir.path()), "--prompt", "话说天下", "-q"];
    arguments.extend(flags);
    assert_eq!(ended.out, ok(&arguments).out);
}

#[test]
fn a_draft_model_writes_the_same_text() {
    let run = text(trained());
    let flags = ["--temperature", "0.9", "--max-tokens", "40", "--seed", "3", "-v"];
    assert_eq!(talk("你好\nmore\n", &flags), talk("你好\nmore\n", &[&flags[..], &["--draft", run]].concat()));
    let mut generate = vec!["generate", "--model", run, "--prompt", "话说天下"];
    generate.extend(flags);
    let (plain, drafted) = (ok(&generate), ok(&[&generate[..], &["--draft", run, "--guesses", "3"]].concat()));
    assert_eq!(plain.out, drafted.out);
    // The model knows what it will say itself.
    assert!(drafted.err.contains("(100 %)") && !plain.err.contains("guesses"), "{}", drafted.err);
    assert!(fails(2, &["serve", run, run, "--draft", run]).err.contains("--draft"));
    assert!(fails(1, &["chat", run, "--draft", "/nonexistent"]).err.contains("/nonexistent"));
}
