//! CSV with a header row; quoted fields may span lines, and rows may differ in length.

use std::cell::Cell;
use std::io::{self, Read};

use super::encoding::Utf8Reader;
use super::json::{Record, join, names};
use super::open::Counter;
use super::{Context, ProblemKind, ReadError};

/// Stops a record that never ends (an unclosed quote) before it fills the memory. The CSV reader buffers a little ahead,
/// so the limit is exact to within that buffer.
struct Limited<'r> {
    inner: &'r mut Utf8Reader,
    left: &'r Cell<usize>,
    exceeded: &'r Cell<bool>,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            self.exceeded.set(true);
            return Err(io::Error::other("record too long"));
        }
        let n = self.inner.read(buffer)?;
        self.left.set(self.left.get().saturating_sub(n));
        Ok(n)
    }
}

/// Reads CSV to the end.
pub fn read(reader: &mut Utf8Reader, count: &Counter, context: &mut Context<'_>) -> Result<(), ReadError> {
    let limit = context.options.max_record_bytes;
    let (left, exceeded) = (Cell::new(limit), Cell::new(false));
    let limited = Limited { inner: &mut *reader, left: &left, exceeded: &exceeded };
    let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(limited);
    let header = match rows.headers() {
        Ok(header) => header.clone(),
        Err(e) => return broken(&e, exceeded.get(), context),
    };
    if header.is_empty() {
        return Ok(());
    }
    let fields = &context.options.fields;
    let columns: Vec<Option<usize>> = fields.iter().map(|f| header.iter().position(|name| name.trim() == f)).collect();
    if columns.iter().all(Option::is_none) {
        let has = names(&header.iter().take(8).collect::<Vec<_>>());
        let message = format!("the header has no column '{}'; it has {has}; file skipped", fields.join("' or '"));
        return context.problem(ProblemKind::MissingField, Some(1), message);
    }
    let mut row = csv::StringRecord::new();
    let failed = loop {
        left.set(limit);
        match rows.read_record(&mut row) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(e) => break Some(e),
        }
        context.advance(count.bytes());
        let line = row.position().map(csv::Position::line);
        let values = columns.iter().map(|c| c.and_then(|c| row.get(c)).map(str::to_string)).collect();
        match join(&context.options.fields, values, || format!("only {} columns", row.len())) {
            Record::Text(text) => context.text(text)?,
            Record::None(why) => context.problem(ProblemKind::MissingField, line, why)?,
        }
    };
    drop(rows);
    match failed {
        Some(e) if !reader.failed() => broken(&e, exceeded.get(), context),
        _ => Ok(()),
    }
}

fn broken(error: &csv::Error, exceeded: bool, context: &mut Context<'_>) -> Result<(), ReadError> {
    let line = error.position().map(csv::Position::line);
    if exceeded {
        let limit = context.options.max_record_bytes;
        let message = format!(
            "a record is above the limit of {limit} bytes (an unclosed quote?); the rest of the file is skipped"
        );
        return context.problem(ProblemKind::RecordTooLong, line, message);
    }
    context.problem(ProblemKind::MalformedCsv, line, format!("malformed CSV: {error}; the rest of the file is skipped"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::fuzz_tests::{Collected, collect};
    use crate::read::{Compression, Format, ReadOptions};

    fn read_csv(text: &str, options: &ReadOptions) -> Collected {
        collect(text.as_bytes().to_vec(), Compression::None, Format::Csv, options).unwrap()
    }

    #[test]
    fn the_named_column_is_read() {
        let read = read_csv("id,text\n1,\"春眠\n不觉晓\"\n2,\"a \"\"quote\"\"\"\n3\n4,last", &ReadOptions::default());
        assert_eq!(read.documents, ["春眠\n不觉晓", "a \"quote\"", "last"]);
        assert_eq!(read.problems.len(), 1);
        assert_eq!((read.problems[0].line, read.problems[0].kind), (Some(5), ProblemKind::MissingField));
    }

    #[test]
    fn a_missing_column_is_named_with_those_there_are() {
        let read = read_csv("标题,content\n1,x\n", &ReadOptions::default());
        assert!(read.documents.is_empty());
        assert!(read.problems[0].message.contains("'text'") && read.problems[0].message.contains("标题, content"));
        assert!(read_csv("", &ReadOptions::default()).problems.is_empty());
    }

    #[test]
    fn an_unclosed_quote_is_stopped() {
        let options = ReadOptions { max_record_bytes: 10_000, ..ReadOptions::default() };
        let read = read_csv(&format!("text\nfine\n\"open {}", "x\n".repeat(500_000)), &options);
        assert_eq!(read.documents, ["fine"]);
        assert_eq!(read.problems[0].kind, ProblemKind::RecordTooLong);
    }

    #[test]
    fn gb18030_csv_as_spreadsheets_write_it() {
        let text = "编号,text\n1,全国人民代表大会常务委员会关于修改教育法的决定\n";
        let bytes = encoding_rs::GB18030.encode(text).0.to_vec();
        let read = collect(bytes, Compression::None, Format::Csv, &ReadOptions::default()).unwrap();
        assert_eq!(read.documents, ["全国人民代表大会常务委员会关于修改教育法的决定"]);
    }
}
