//! Reading a corpus: from files of many kinds to documents.
//!
//! A corpus comes as plain text, Markdown, JSON, JSON Lines, CSV or Parquet, each perhaps compressed, in any of the
//! encodings that Chinese and English text is found in. Every reader here turns such a file into a stream of texts,
//! pushed one after the other into a [`Sink`]. Pushing (and not an iterator) lets a JSON array be read by serde's
//! visitor without ever holding more than one element.
//!
//! ```text
//! file -> bytes (open) -> decompressed (open) -> UTF-8 (encoding) -> records (text, json, csv, parquet) -> Sink
//! ```
//!
//! Memory is bounded whatever the input: a text above [`ReadOptions::max_document_bytes`] is cut into several documents
//! at a paragraph, line, sentence or at least character boundary, and a record above [`ReadOptions::max_record_bytes`]
//! is skipped by name. Nothing is lost silently: what cannot be read becomes a [`Problem`] with path and line, counted
//! by the caller, or an error under [`ReadOptions::strict`].
//!
//! What is not here: cleaning and judging the text (see [`crate::clean`] and [`crate::quality`]).

pub mod csv;
pub mod encoding;
pub mod inputs;
pub mod json;
pub mod open;
pub mod parquet;
pub mod text;

#[cfg(test)]
mod fuzz_tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use encoding::Utf8Reader;
pub use inputs::{Input, Origin, discover};
pub use open::Compression;

/// What a file holds, whatever its compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text or Markdown: a file is a document, unless [`Split`] says otherwise.
    Text,
    /// JSON: an array of objects or of strings, or objects one after the other.
    Json,
    /// JSON Lines: an object or a string per line.
    Jsonl,
    /// Comma-separated values with a header row.
    Csv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// The format that belongs to a file extension (lower case, without the dot).
    pub fn from_extension(extension: &str) -> Option<Format> {
        Some(match extension {
            "txt" | "md" | "text" | "markdown" => Format::Text,
            "json" => Format::Json,
            "jsonl" | "ndjson" => Format::Jsonl,
            "csv" => Format::Csv,
            "parquet" => Format::Parquet,
            _ => return None,
        })
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        Format::from_extension(name)
            .ok_or_else(|| format!("unknown format '{name}': use txt, md, json, jsonl, csv or parquet"))
    }
}

/// How a plain text file is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The file is one document.
    #[default]
    None,
    /// Each non-blank line is a document.
    Line,
    /// Each run of lines between blank lines is a document.
    Paragraph,
}

/// How files are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// The fields (JSON keys, CSV or Parquet columns) that make the text. Those present are joined by a newline, in this
    /// order; a record with none of them is a problem.
    pub fields: Vec<String>,
    /// How plain text files are divided.
    pub split: Split,
    /// A longer text is cut into several documents (bytes).
    pub max_document_bytes: usize,
    /// A longer JSON line, JSON array element or CSV record is skipped and reported (bytes).
    pub max_record_bytes: usize,
    /// Whether the first problem is an error instead of being counted.
    pub strict: bool,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            fields: vec!["text".to_string()],
            split: Split::None,
            max_document_bytes: 4 << 20,
            max_record_bytes: 64 << 20,
            strict: false,
        }
    }
}

/// The kinds of problem that reading meets and survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// A binary file under a text extension; skipped.
    Binary,
    /// A compressed file that ends early or is damaged; what came before is kept.
    DamagedCompression,
    /// Bytes that are invalid in the file's encoding; each became U+FFFD.
    InvalidBytes,
    /// JSON that does not parse.
    MalformedJson,
    /// CSV that does not parse.
    MalformedCsv,
    /// A Parquet file that cannot be read (further).
    MalformedParquet,
    /// A record without the text field, or with something other than text in it.
    MissingField,
    /// A record above the size limit.
    RecordTooLong,
}

impl ProblemKind {
    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            ProblemKind::Binary => "binary",
            ProblemKind::DamagedCompression => "damaged_compression",
            ProblemKind::InvalidBytes => "invalid_bytes",
            ProblemKind::MalformedJson => "malformed_json",
            ProblemKind::MalformedCsv => "malformed_csv",
            ProblemKind::MalformedParquet => "malformed_parquet",
            ProblemKind::MissingField => "missing_field",
            ProblemKind::RecordTooLong => "record_too_long",
        }
    }
}

/// Something wrong in a file that reading survives: where, and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem.
    pub kind: ProblemKind,
    /// The file.
    pub path: String,
    /// The line (or the row of a Parquet file), counted from 1.
    pub line: Option<u64>,
    /// What was wrong and what became of it.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// Why reading ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// A folder without a file of a known kind.
    #[error(
        "{path} holds no file that can be read ({ignored} other files passed over): expected .txt, .md, .json, .jsonl, \
         .csv or .parquet, each also with .gz, .zst or .xz"
    )]
    NoFiles {
        /// The folder.
        path: String,
        /// Files with other extensions in it.
        ignored: u64,
    },
    /// A named file whose extension says nothing.
    #[error(
        "cannot tell the format of {path} from its name: rename it or say the format (txt, json, jsonl, csv, parquet)"
    )]
    UnknownFormat {
        /// The file.
        path: String,
    },
    /// A problem, under [`ReadOptions::strict`].
    #[error("{0} (strict: the first problem ends the run)")]
    Strict(Problem),
    /// The sink wants no more.
    #[error("reading was stopped")]
    Stopped,
}

impl ReadError {
    /// An [`ReadError::Io`] for a path.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> ReadError {
        ReadError::Io { action, path: path.as_ref().display().to_string(), source }
    }
}

/// Takes what a reader yields. An error returned from it ends the reading and comes back unchanged.
pub trait Sink {
    /// One document's text, never empty, at most [`ReadOptions::max_document_bytes`] long.
    fn document(&mut self, text: String) -> Result<(), ReadError>;
    /// One problem.
    fn problem(&mut self, problem: Problem) -> Result<(), ReadError>;
    /// Bytes of the file (as stored, so before decompression) read since the last call.
    fn progress(&mut self, _bytes: u64) {}
}

/// What reading one file amounted to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTotals {
    /// Bytes of the file as stored.
    pub bytes: u64,
    /// Documents given to the sink.
    pub documents: u64,
    /// Bytes of text given to the sink (UTF-8).
    pub text_bytes: u64,
    /// Documents that exist only because a longer text was cut.
    pub pieces: u64,
}

/// What every reader needs: the file's name for messages, the options, the sink, and the running totals.
pub struct Context<'a> {
    path: String,
    options: &'a ReadOptions,
    sink: &'a mut dyn Sink,
    totals: FileTotals,
}

impl<'a> Context<'a> {
    /// A context for one file (or other stream) called `path` in messages.
    pub fn new(path: impl Into<String>, options: &'a ReadOptions, sink: &'a mut dyn Sink) -> Context<'a> {
        Context { path: path.into(), options, sink, totals: FileTotals::default() }
    }

    /// The totals so far.
    pub fn totals(&self) -> FileTotals {
        self.totals
    }

    fn problem(&mut self, kind: ProblemKind, line: Option<u64>, message: impl Into<String>) -> Result<(), ReadError> {
        let problem = Problem { kind, path: self.path.clone(), line, message: message.into() };
        if self.options.strict { Err(ReadError::Strict(problem)) } else { self.sink.problem(problem) }
    }

    /// Gives one text to the sink, in pieces if it is too long. A text of white space alone is no document.
    fn text(&mut self, text: String) -> Result<(), ReadError> {
        if text.len() <= self.options.max_document_bytes {
            return self.piece(text);
        }
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(text::cut_point(rest, self.options.max_document_bytes));
            self.totals.pieces += u64::from(!after.is_empty());
            self.piece(piece.to_string())?;
            rest = after;
        }
        Ok(())
    }

    fn piece(&mut self, text: String) -> Result<(), ReadError> {
        if text.trim_start().is_empty() {
            return Ok(());
        }
        self.totals.documents += 1;
        self.totals.text_bytes += text.len() as u64;
        self.sink.document(text)
    }

    fn advance(&mut self, total_bytes: u64) {
        self.sink.progress(total_bytes - self.totals.bytes);
        self.totals.bytes = total_bytes;
    }
}

/// Reads one input to its end. `scratch` is a folder for the temporary copy that a compressed or piped Parquet file
/// needs, since that format is read from its end.
pub fn read_input(
    input: &Input,
    options: &ReadOptions,
    scratch: &Path,
    sink: &mut dyn Sink,
) -> Result<FileTotals, ReadError> {
    let name = input.name();
    let mut context = Context::new(name.clone(), options, sink);
    if input.format == Format::Parquet {
        match &input.origin {
            Origin::File(path) if input.compression == Compression::None => {
                let file = File::open(path).map_err(|e| ReadError::io("open", path, e))?;
                let bytes = file.metadata().map_err(|e| ReadError::io("examine", path, e))?.len();
                parquet::read(file, &mut context)?;
                context.advance(bytes);
            }
            _ => parquet::read_through_copy(input.open()?, input.compression, scratch, &mut context)?,
        }
        return Ok(context.totals);
    }
    read_stream(input.open()?, input.compression, input.format, &mut context)?;
    Ok(context.totals)
}

/// Reads a stream of any format but Parquet to its end, through decompression and decoding.
///
/// # Panics
/// Never on foreign bytes. Parquet needs [`parquet::read`]; here it is reported as a problem.
pub fn read_stream(
    raw: Box<dyn Read + Send>,
    compression: Compression,
    format: Format,
    context: &mut Context<'_>,
) -> Result<(), ReadError> {
    let raw = open::Raw::new(raw);
    let count = raw.counter();
    let bytes = open::decompress(raw, compression).map_err(|e| ReadError::io("read", &context.path, e))?;
    let mut reader = Utf8Reader::new(bytes);
    if let Some(what) = reader.binary() {
        let hint = match compression {
            Compression::None => "a binary file under a text name",
            _ => "the compressed content is binary",
        };
        let kind = ProblemKind::Binary;
        context.problem(kind, None, format!("{hint} ({what}); skipped"))?;
        context.advance(count.bytes());
        return Ok(());
    }
    match format {
        Format::Text => text::read(&mut reader, &count, context)?,
        Format::Jsonl => json::read_lines(&mut reader, &count, context)?,
        Format::Json => json::read(&mut reader, &count, context)?,
        Format::Csv => csv::read(&mut reader, &count, context)?,
        Format::Parquet => {
            context.problem(ProblemKind::MalformedParquet, None, "Parquet cannot be read as a stream")?
        }
    }
    context.advance(count.bytes());
    finish(reader, &count, context)
}

/// Reports what the decoder and the decompressor met.
fn finish(reader: Utf8Reader, count: &open::Counter, context: &mut Context<'_>) -> Result<(), ReadError> {
    if reader.malformed() > 0 {
        let message = format!(
            "{} byte sequences are not valid {}; each became U+FFFD",
            reader.malformed(),
            reader.encoding_name()
        );
        context.problem(ProblemKind::InvalidBytes, None, message)?;
    }
    let Some(failure) = reader.into_failure() else { return Ok(()) };
    if count.failed() {
        return Err(ReadError::io("read", &context.path, failure));
    }
    damaged(failure, context)
}

/// Reports a compressed stream that broke off.
fn damaged(failure: io::Error, context: &mut Context<'_>) -> Result<(), ReadError> {
    let what = match failure.kind() {
        io::ErrorKind::UnexpectedEof => "the compressed file ends early".to_string(),
        _ => format!("the compressed file is damaged ({failure})"),
    };
    let message = format!("{what}; kept the {} documents before that", context.totals.documents);
    context.problem(ProblemKind::DamagedCompression, None, message)
}
