//! What the black-box tests share: the binary, its output, a little corpus, a prepared data set, a trained run.
#![allow(dead_code, reason = "no test uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The binary, with an environment that is ours alone.
pub fn wudao() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wudao"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WUDAO_") || name == "NO_COLOR" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Ended {
    ended(command.output().expect("the binary starts"))
}

pub fn ended(output: Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs with these arguments and expects success.
#[track_caller]
pub fn ok(arguments: &[&str]) -> Ended {
    let ended = run(wudao().args(arguments));
    assert_eq!(ended.code, Some(0), "{arguments:?}\n{}", ended.err);
    ended
}

/// Runs with these arguments and expects this exit status.
#[track_caller]
pub fn fails(code: i32, arguments: &[&str]) -> Ended {
    let ended = run(wudao().args(arguments));
    assert_eq!(ended.code, Some(code), "{arguments:?}\n{}\n{}", ended.out, ended.err);
    assert!(ended.err.contains("error: "), "{}", ended.err);
    ended
}

/// The answer as JSON.
#[track_caller]
pub fn json(arguments: &[&str]) -> serde_json::Value {
    let ended = ok(arguments);
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", ended.out))
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The folder of the shipped sample.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../corpus")
}

/// A data set of part of the sample, prepared once for each test program: poems and chapters, 768 token ids.
pub fn data() -> &'static Path {
    static DATA: OnceLock<TempDir> = OnceLock::new();
    let dir = DATA.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (songs, whale) = (corpus().join("zh/songci.jsonl.zst"), corpus().join("en/web-bible.jsonl.zst"));
        let out = dir.path().join("data");
        ok(&[
            "prepare",
            text(&songs),
            text(&whale),
            "--out",
            text(&out),
            "--preset",
            "tiny",
            "--validation",
            "0.05",
            "-q",
        ]);
        dir
    });
    // A static is never dropped, so the folder stays until the system clears its temporary files: it is small.
    Box::leak(dir.path().join("data").into_boxed_path())
}

/// A short run of the smallest preset, trained once for each test program.
pub fn trained() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let dir = RUN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        train(&dir.path().join("run"), &["--steps", "12"]);
        dir
    });
    Box::leak(dir.path().join("run").into_boxed_path())
}

/// Trains the smallest preset.
#[track_caller]
pub fn train(out: &Path, more: &[&str]) -> Ended {
    let mut arguments = vec!["train", "--preset", "tiny", "--data", text(data()), "--out", text(out)];
    arguments.extend(more);
    ok(&arguments)
}

/// Every file of the newest checkpoint, by name.
pub fn newest_checkpoint(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-"))
        .collect();
    folders.sort();
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folders.last().expect("there is a checkpoint"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Asserts that two runs ended with the same bytes.
#[track_caller]
pub fn assert_same_checkpoint(a: &Path, b: &Path) {
    let (a, b) = (newest_checkpoint(a), newest_checkpoint(b));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for ((name, left), (_, right)) in a.iter().zip(&b) {
        assert!(left == right, "{name} differs");
    }
}
