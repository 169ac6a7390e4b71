//! JSON and JSON Lines: records whose fields hold the text.
//!
//! A record is an object, whose text fields are taken (see [`super::ReadOptions::fields`]), or a bare string. A field may
//! hold a string or an array of strings (verses, paragraphs), which are joined by newlines. All other fields are skipped
//! over without being built in memory.
//!
//! A JSON file is not loaded: serde's visitor walks the array and hands on one element at a time. A syntax error ends
//! that file, since there is no telling where the next element begins; in JSON Lines it costs one line.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::encoding::Utf8Reader;
use super::open::Counter;
use super::{Context, ProblemKind, ReadError};

/// What a record held.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    /// The text of its fields.
    Text(String),
    /// Why there is no text.
    None(String),
}

/// Joins the fields that are present; `seen` names what the record has instead when none is.
pub(super) fn join(fields: &[String], values: Vec<Option<String>>, seen: impl FnOnce() -> String) -> Record {
    if values.iter().all(Option::is_none) {
        let names = fields.join("' or '");
        return Record::None(format!("the record has no text field '{names}'; it has {}", seen()));
    }
    let mut present = values.into_iter().flatten();
    let mut text = present.next().unwrap_or_default();
    for value in present {
        text.push('\n');
        text.push_str(&value);
    }
    Record::Text(text)
}

/// A field's value: a string, an array of strings, or null.
struct Value;

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<String>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text: a string or an array of strings")
    }

    fn visit_str<E>(self, text: &str) -> Result<Option<String>, E> {
        Ok(Some(text.to_string()))
    }

    fn visit_string<E>(self, text: String) -> Result<Option<String>, E> {
        Ok(Some(text))
    }

    fn visit_unit<E>(self) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Option<String>, A::Error> {
        let mut text = String::new();
        let mut first = true;
        while let Some(line) = sequence.next_element::<String>()? {
            if !std::mem::take(&mut first) {
                text.push('\n');
            }
            text.push_str(&line);
        }
        Ok((!first).then_some(text))
    }
}

/// Deserializes one record.
struct RecordSeed<'f>(&'f [String]);

impl<'de> DeserializeSeed<'de> for RecordSeed<'_> {
    type Value = Record;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Record, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_> {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record: an object with text in it, or a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Record, E> {
        Ok(Record::Text(text.to_string()))
    }

    fn visit_string<E>(self, text: String) -> Result<Record, E> {
        Ok(Record::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let mut values: Vec<Option<String>> = vec![None; self.0.len()];
        let mut others: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.0.iter().position(|field| *field == key) {
                Some(at) => values[at] = map.next_value_seed(Value)?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if others.len() < 8 {
                        others.push(key);
                    }
                }
            }
        }
        Ok(join(self.0, values, || names(&others)))
    }
}

/// Names for a message, none of them long.
pub(super) fn names<S: AsRef<str>>(names: &[S]) -> String {
    if names.is_empty() {
        return "no other fields".to_string();
    }
    let short = |name: &S| name.as_ref().chars().take(40).collect::<String>();
    names.iter().map(short).collect::<Vec<_>>().join(", ")
}

/// One line's record, or what is wrong with the line.
pub(super) fn parse_line(line: &[u8], fields: &[String]) -> Result<Record, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let record = RecordSeed(fields).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(record)
}

/// Says what is wrong without the place inside the line, which means nothing to a reader of the file.
fn wrong(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("malformed JSON: {what} (column {})", error.column())
}

/// Reads JSON Lines to the end.
pub fn read_lines(reader: &mut Utf8Reader, count: &Counter, context: &mut Context<'_>) -> Result<(), ReadError> {
    let limit = context.options.max_record_bytes;
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let length = read_line(reader, limit, &mut line);
        if length == 0 || (reader.failed() && line.last() != Some(&b'\n')) {
            break;
        }
        context.advance(count.bytes());
        if length > limit {
            let kind = ProblemKind::RecordTooLong;
            context.problem(
                kind,
                Some(number),
                format!("a line of {length} bytes is above the limit of {limit}; skipped"),
            )?;
        } else if !line.trim_ascii().is_empty() {
            match parse_line(&line, &context.options.fields) {
                Ok(Record::Text(text)) => context.text(text)?,
                Ok(Record::None(why)) => context.problem(ProblemKind::MissingField, Some(number), why)?,
                Err(e) => context.problem(ProblemKind::MalformedJson, Some(number), wrong(&e) + "; line skipped")?,
            }
        }
    }
    Ok(())
}

/// Appends a line with its newline, but at most `limit` bytes of it; gives its whole length, 0 at the end.
fn read_line(reader: &mut Utf8Reader, limit: usize, line: &mut Vec<u8>) -> usize {
    let mut length = 0;
    loop {
        // Not `chunk`, which looks at all that is buffered; reading errors show as the end.
        let chunk = reader.fill_buf().unwrap_or_default();
        if chunk.is_empty() {
            return length;
        }
        let end = memchr::memchr(b'\n', chunk);
        let taken = end.map_or(chunk.len(), |at| at + 1);
        let room = limit.saturating_sub(line.len()).min(taken);
        line.extend_from_slice(&chunk[..room]);
        length += taken;
        reader.consume(taken);
        if end.is_some() {
            return length;
        }
    }
}

/// Stands between the file and serde: counts lines, and refuses to go on when one element grows above the limit.
struct Metered<'r> {
    inner: &'r mut Utf8Reader,
    meter: &'r RefCell<Meter>,
}

struct Meter {
    line: u64,
    left: usize,
    exceeded: bool,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut meter = self.meter.borrow_mut();
        if meter.left == 0 {
            meter.exceeded = true;
            return Err(io::Error::other("record too long"));
        }
        let room = buffer.len().min(meter.left);
        let n = self.inner.read(&mut buffer[..room])?;
        meter.left -= n;
        meter.line += buffer[..n].iter().filter(|b| **b == b'\n').count() as u64;
        Ok(n)
    }
}

/// Walks a top-level value: an array's elements, or one record.
struct Walk<'w, 'c> {
    context: &'w mut Context<'c>,
    count: &'w Counter,
    meter: &'w RefCell<Meter>,
    /// The sink's own error, which serde cannot carry.
    stop: &'w mut Option<ReadError>,
}

impl Walk<'_, '_> {
    fn element(&mut self, record: Record) -> Result<(), ReadError> {
        let line = {
            let mut meter = self.meter.borrow_mut();
            meter.left = self.context.options.max_record_bytes;
            meter.line
        };
        self.context.advance(self.count.bytes());
        match record {
            Record::Text(text) => self.context.text(text),
            Record::None(why) => self.context.problem(ProblemKind::MissingField, Some(line), why),
        }
    }

    fn take<E: serde::de::Error>(mut self, record: Record) -> Result<(), E> {
        self.element(record).map_err(|e| {
            *self.stop = Some(e);
            E::custom("stopped")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records, or an object with text in it, or a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.take(Record::Text(text.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let fields = self.context.options.fields.clone();
        let record = RecordSeed(&fields).visit_map(map)?;
        self.take(record)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<(), A::Error> {
        let fields = self.context.options.fields.clone();
        while let Some(record) = sequence.next_element_seed(RecordSeed(&fields))? {
            if let Err(e) = self.element(record) {
                *self.stop = Some(e);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Reads a JSON file to the end: values one after the other, each an array of records or a record.
pub fn read(reader: &mut Utf8Reader, count: &Counter, context: &mut Context<'_>) -> Result<(), ReadError> {
    let limit = context.options.max_record_bytes;
    let meter = RefCell::new(Meter { line: 1, left: limit, exceeded: false });
    loop {
        skip_space(reader, &meter);
        if reader.chunk().is_empty() {
            return Ok(());
        }
        meter.borrow_mut().left = limit;
        let mut stop = None;
        let walk = Walk { context, count, meter: &meter, stop: &mut stop };
        let mut deserializer = serde_json::Deserializer::from_reader(Metered { inner: reader, meter: &meter });
        let Err(error) = walk.deserialize(&mut deserializer) else { continue };
        drop(deserializer);
        if let Some(stop) = stop {
            return Err(stop);
        }
        if reader.failed() {
            return Ok(());
        }
        let Meter { line, exceeded, .. } = *meter.borrow();
        let kept = context.totals.documents;
        return if exceeded {
            let message = format!("an element is above the limit of {limit} bytes; the rest of the file is skipped");
            context.problem(ProblemKind::RecordTooLong, Some(line), message)
        } else {
            let message = format!(
                "{}; kept the {kept} documents before that, the rest of the file is skipped (if it holds an object a line, \
                 call it .jsonl)",
                wrong(&error)
            );
            context.problem(ProblemKind::MalformedJson, Some(line), message)
        };
    }
}

fn skip_space(reader: &mut Utf8Reader, meter: &RefCell<Meter>) {
    loop {
        let chunk = reader.chunk();
        let space = chunk.len() - chunk.trim_start_matches([' ', '\n', '\r', '\t']).len();
        if space == 0 {
            return;
        }
        meter.borrow_mut().line += chunk[..space].matches('\n').count() as u64;
        reader.consume(space);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::fuzz_tests::{Collected, collect};
    use crate::read::{Compression, Format, ReadOptions};

    fn read_as(format: Format, text: &str, options: &ReadOptions) -> Collected {
        collect(text.as_bytes().to_vec(), Compression::None, format, options).unwrap()
    }

    fn fields(names: &[&str]) -> ReadOptions {
        ReadOptions { fields: names.iter().map(|n| n.to_string()).collect(), ..ReadOptions::default() }
    }

    #[test]
    fn lines_hold_objects_or_strings() {
        let text = "{\"id\":1,\"text\":\"春眠\\n不觉晓\"}\n\n\"just text\"\r\n{\"text\":[\"a\",\"b\"],\"meta\":{\"x\":[1,{}]}}";
        let read = read_as(Format::Jsonl, text, &ReadOptions::default());
        assert_eq!(read.documents, ["春眠\n不觉晓", "just text", "a\nb"]);
        assert!(read.problems.is_empty());
    }

    #[test]
    fn bad_lines_are_named_counted_and_skipped() {
        let text = "{\"text\":\"one\"}\n{\"text\": oops}\n{\"content\":\"x\"}\n{\"text\":7}\n{\"text\":\"two\"} x\n{\"text\":\"three\"}\n";
        let read = read_as(Format::Jsonl, text, &ReadOptions::default());
        assert_eq!(read.documents, ["one", "three"]);
        let problems: Vec<_> = read.problems.iter().map(|p| (p.line.unwrap(), p.kind)).collect();
        let (json, field) = (ProblemKind::MalformedJson, ProblemKind::MissingField);
        assert_eq!(problems, [(2, json), (3, field), (4, json), (5, json)]);
        assert!(read.problems[1].to_string().contains("memory:3: the record has no text field 'text'; it has content"));
        let strict = ReadOptions { strict: true, ..ReadOptions::default() };
        let error = collect(text.as_bytes().to_vec(), Compression::None, Format::Jsonl, &strict).unwrap_err();
        assert!(error.to_string().contains("memory:2: malformed JSON"), "{error}");
    }

    #[test]
    fn a_line_above_the_limit_is_skipped_by_name() {
        let options = ReadOptions { max_record_bytes: 100, ..ReadOptions::default() };
        let text = format!("{{\"text\":\"a\"}}\n{{\"text\":\"{}\"}}\n{{\"text\":\"b\"}}\n", "长".repeat(1000));
        let read = read_as(Format::Jsonl, &text, &options);
        assert_eq!(read.documents, ["a", "b"]);
        assert_eq!((read.problems[0].kind, read.problems[0].line), (ProblemKind::RecordTooLong, Some(2)));
    }

    #[test]
    fn fields_are_joined_in_the_order_asked_for() {
        let text = "{\"content\":\"床前明月光\",\"title\":\"静夜思\"}\n{\"content\":\"only\"}\n{\"title\":null}";
        let read = read_as(Format::Jsonl, text, &fields(&["title", "content"]));
        assert_eq!(read.documents, ["静夜思\n床前明月光", "only"]);
        assert_eq!(read.problems.len(), 1);
    }

    #[test]
    fn json_holds_an_array_an_object_or_several() {
        let default = ReadOptions::default();
        let array = "[{\"text\":\"a\"}, \"b\",\n {\"x\":1}, {\"text\":[\"c\",\"d\"]}]\n";
        let read = read_as(Format::Json, array, &default);
        assert_eq!(read.documents, ["a", "b", "c\nd"]);
        assert_eq!((read.problems.len(), read.problems[0].line), (1, Some(2)));
        assert_eq!(read_as(Format::Json, "{\"text\":\"a\"}", &default).documents, ["a"]);
        assert_eq!(read_as(Format::Json, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n", &default).documents, ["a", "b"]);
        assert!(read_as(Format::Json, " \n", &default).documents.is_empty());
    }

    #[test]
    fn broken_json_keeps_what_came_before() {
        let default = ReadOptions::default();
        let read = read_as(Format::Json, "[\"a\",\n\"b\",\n{\"text\": nope}, \"c\"]", &default);
        assert_eq!(read.documents, ["a", "b"]);
        assert_eq!((read.problems[0].kind, read.problems[0].line), (ProblemKind::MalformedJson, Some(3)));
        let short = read_as(Format::Json, "[\"a\", \"b", &default);
        assert_eq!((short.documents.len(), short.problems.len()), (1, 1));
        let options = ReadOptions { max_record_bytes: 50, ..ReadOptions::default() };
        let long = read_as(Format::Json, &format!("[\"a\", \"{}\"]", "x".repeat(500)), &options);
        assert_eq!(long.documents, ["a"]);
        assert_eq!(long.problems[0].kind, ProblemKind::RecordTooLong);
    }

    #[test]
    fn an_early_end_of_a_compressed_file_keeps_whole_lines() {
        let line = |i: u32| format!("{{\"text\":\"document {i} {}\"}}\n", i.wrapping_mul(2_654_435_761));
        let text: String = (0..20_000).map(line).collect();
        let mut stored = crate::read::open::tests::compress(text.as_bytes(), Compression::Gzip);
        stored.truncate(stored.len() / 2);
        let read = collect(stored, Compression::Gzip, Format::Jsonl, &ReadOptions::default()).unwrap();
        assert!(read.documents.len() > 1000);
        assert_eq!(read.problems.len(), 1);
        assert_eq!(read.problems[0].kind, ProblemKind::DamagedCompression);
        assert!(read.problems[0].message.contains("ends early"), "{}", read.problems[0]);
        for (i, document) in read.documents.iter().enumerate() {
            assert!(line(i as u32).contains(document.as_str()));
        }
    }
}
