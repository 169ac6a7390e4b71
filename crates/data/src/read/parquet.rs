//! Parquet: the text columns, a few rows at a time.
//!
//! Only the columns asked for are read, page by page; the other columns' bytes are never touched. The format is read
//! from its end, so a compressed or piped file is first copied to a temporary one.
//!
//! The decoder beneath is a large parser of binary data. It is called behind `catch_unwind`, so that a panic in it, on a
//! damaged file, costs that file and not the run.

use std::fs::{self, File};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};

use super::json::{Record, join, names};
use super::open::{self, Compression};
use super::{Context, ProblemKind, ReadError};

/// Rows decoded at a time: few, because a row may be a book.
const ROWS: usize = 64;

/// Reads a Parquet file to its end. `file` is a file, or bytes in memory.
pub fn read<R: ChunkReader + 'static>(file: R, context: &mut Context<'_>) -> Result<(), ReadError> {
    let mut open = match guarded(|| Rows::open(file, &context.options.fields)) {
        Ok(Ok(rows)) => rows,
        Ok(Err(problem)) => return context.problem(problem.0, None, problem.1 + "; file skipped"),
        Err(e) => {
            return context.problem(
                ProblemKind::MalformedParquet,
                None,
                format!("not a readable Parquet file: {e}; skipped"),
            );
        }
    };
    let mut row = 0u64;
    loop {
        let batch = match guarded(|| open.next()) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Ok(()),
            Err(e) => {
                let kept = context.totals.documents;
                let message = format!("damaged Parquet file: {e}; kept the {kept} documents before that");
                return context.problem(ProblemKind::MalformedParquet, Some(row + 1), message);
            }
        };
        for values in batch {
            row += 1;
            match join(&context.options.fields, values, || "only nulls".to_string()) {
                Record::Text(text) => context.text(text)?,
                Record::None(why) => context.problem(ProblemKind::MissingField, Some(row), why)?,
            }
        }
    }
}

/// Copies a compressed or piped Parquet file into `scratch` and reads it from there.
pub fn read_through_copy(
    raw: Box<dyn Read + Send>,
    compression: Compression,
    scratch: &Path,
    context: &mut Context<'_>,
) -> Result<(), ReadError> {
    let raw = open::Raw::new(raw);
    let count = raw.counter();
    let mut bytes = open::decompress(raw, compression).map_err(|e| ReadError::io("read", &context.path, e))?;
    let path = scratch.join(format!("copy-{}.parquet", std::process::id()));
    let mut copy = File::create(&path).map_err(|e| ReadError::io("create", &path, e))?;
    let result = copy_all(&mut bytes, &mut copy, &path, &count, context).and_then(|damage| match damage {
        // The index is at the end of the file, so without the end nothing can be read.
        Some(failure) => super::damaged(failure, context),
        None => {
            drop(copy);
            read(File::open(&path).map_err(|e| ReadError::io("open", &path, e))?, context)
        }
    });
    context.advance(count.bytes());
    fs::remove_file(&path).map_err(|e| ReadError::io("remove", &path, e))?;
    result
}

/// Gives the decompressor's error, if the data is damaged.
fn copy_all(
    from: &mut dyn Read,
    to: &mut File,
    path: &Path,
    count: &open::Counter,
    context: &mut Context<'_>,
) -> Result<Option<io::Error>, ReadError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => io::Write::write_all(to, &buffer[..n]).map_err(|e| ReadError::io("write", path, e))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if count.failed() => return Err(ReadError::io("read", &context.path, e)),
            Err(e) => return Ok(Some(e)),
        }
        context.advance(count.bytes());
    }
}

/// The message of a failure: an error returned, or a panic caught.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the decoder gave up on it".to_string()),
    }
}

struct Rows {
    file: Box<dyn FileReader>,
    /// The column of each field, if the file has it.
    columns: Vec<Option<usize>>,
    next_group: usize,
    readers: Vec<Option<Column>>,
    /// Rows left in the current row group.
    left: usize,
}

struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    /// The definition level of a value that is not null.
    defined: i16,
}

type Refusal = (ProblemKind, String);
type Values = Vec<Option<String>>;

impl Rows {
    fn open<R: ChunkReader + 'static>(file: R, fields: &[String]) -> Result<Result<Rows, Refusal>, ParquetError> {
        let file = SerializedFileReader::new(file)?;
        Ok(match columns(file.metadata(), fields) {
            Ok(columns) => Ok(Rows { file: Box::new(file), columns, next_group: 0, readers: Vec::new(), left: 0 }),
            Err(refusal) => Err(refusal),
        })
    }

    /// The next rows, each with a value per field; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<Values>>, ParquetError> {
        while self.left == 0 {
            if self.next_group == self.file.num_row_groups() {
                return Ok(None);
            }
            let group = self.file.get_row_group(self.next_group)?;
            self.left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            self.readers.clear();
            for column in &self.columns {
                self.readers.push(match column {
                    None => None,
                    Some(at) => Some(Column {
                        reader: get_typed_column_reader(group.get_column_reader(*at)?),
                        defined: group.metadata().column(*at).column_descr().max_def_level(),
                    }),
                });
            }
            self.next_group += 1;
        }
        let want = self.left.min(ROWS);
        let mut rows: Vec<Values> = vec![Vec::with_capacity(self.readers.len()); want];
        for column in &mut self.readers {
            match column {
                None => rows.iter_mut().for_each(|row| row.push(None)),
                Some(column) => {
                    let values = column.read(want)?;
                    rows.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
                }
            }
        }
        self.left -= want;
        Ok(Some(rows))
    }
}

impl Column {
    fn read(&mut self, rows: usize) -> Result<Vec<Option<String>>, ParquetError> {
        let (mut values, mut levels) = (Vec::<ByteArray>::new(), Vec::new());
        let (records, ..) = self.reader.read_records(rows, Some(&mut levels), None, &mut values)?;
        if records != rows {
            return Err(ParquetError::EOF(format!("{rows} rows were promised, {records} are there")));
        }
        let mut values = values.into_iter();
        let text = |value: ByteArray| String::from_utf8_lossy(value.data()).into_owned();
        Ok((0..rows)
            .map(|row| match self.defined > 0 && levels.get(row) != Some(&self.defined) {
                true => None,
                false => values.next().map(text),
            })
            .collect())
    }
}

/// Which column holds each field.
fn columns(metadata: &ParquetMetaData, fields: &[String]) -> Result<Vec<Option<usize>>, Refusal> {
    let all = metadata.file_metadata().schema_descr().columns();
    let mut found = Vec::with_capacity(fields.len());
    for field in fields {
        let at = all.iter().position(|column| column.path().string() == *field);
        if let Some(at) = at {
            let text = all[at].physical_type() == PhysicalType::BYTE_ARRAY && all[at].max_rep_level() == 0;
            if !text {
                let message = format!("column '{field}' does not hold text, or holds lists");
                return Err((ProblemKind::MissingField, message));
            }
        }
        found.push(at);
    }
    if found.iter().all(Option::is_none) {
        let has: Vec<String> = all.iter().take(8).map(|c| c.path().string()).collect();
        let message = format!("no column '{}'; it has {}", fields.join("' or '"), names(&has));
        return Err((ProblemKind::MissingField, message));
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::read::fuzz_tests::{Collected, Gather};
    use crate::read::{FileTotals, Format, Input, Origin, ReadOptions, read_input};
    use parquet::basic::Compression as Codec;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// A file of an id column and a nullable text column, `per_group` rows a row group.
    pub(crate) fn write(texts: &[Option<&str>], per_group: usize, codec: Codec) -> Vec<u8> {
        let schema = "message schema { required int64 id; optional binary text (UTF8); repeated binary list (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
        for rows in texts.chunks(per_group) {
            let mut group = writer.next_row_group().unwrap();
            let ids: Vec<i64> = (0..rows.len() as i64).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<parquet::data_type::Int64Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            let values: Vec<ByteArray> = rows.iter().flatten().map(|t| ByteArray::from(*t)).collect();
            let levels: Vec<i16> = rows.iter().map(|t| i16::from(t.is_some())).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let zeros = vec![0; rows.len()];
            column.typed::<ByteArrayType>().write_batch(&[], Some(&zeros), Some(&zeros)).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    fn collect(bytes: Vec<u8>, compression: Compression, options: &ReadOptions) -> Collected {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.parquet");
        let stored = crate::read::open::tests::compress(&bytes, compression);
        std::fs::write(&path, &stored).unwrap();
        let length = stored.len() as u64;
        let input =
            Input { origin: Origin::File(path), format: Format::Parquet, compression, bytes: length, modified: 0 };
        let mut gather = Gather::default();
        let totals = read_input(&input, options, dir.path(), &mut gather).unwrap();
        assert_eq!(totals.bytes, length);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the copy must be gone");
        Collected { documents: gather.documents, problems: gather.problems, totals }
    }

    #[test]
    fn rows_come_in_order_with_every_codec() {
        let long = "长文本。".repeat(1000);
        let mut texts: Vec<Option<&str>> =
            (0..300).map(|i| [Some("春眠不觉晓"), None, Some("text"), Some(&long[..])][i % 4]).collect();
        texts.push(Some("last"));
        let codecs = [
            Codec::UNCOMPRESSED,
            Codec::SNAPPY,
            Codec::ZSTD(Default::default()),
            Codec::GZIP(Default::default()),
            Codec::LZ4_RAW,
            Codec::BROTLI(Default::default()),
        ];
        for (codec, compression) in codecs.into_iter().zip([Compression::None, Compression::Zstd].into_iter().cycle()) {
            let read = collect(write(&texts, 100, codec), compression, &ReadOptions::default());
            let expected: Vec<&str> = texts.iter().flatten().copied().collect();
            assert_eq!(read.documents, expected, "{codec:?}");
            assert_eq!(read.problems.len(), 75);
            assert_eq!(read.problems[0].line, Some(2));
        }
    }

    #[test]
    fn a_wrong_column_and_a_broken_file_are_named() {
        let bytes = write(&[Some("a"), Some("b")], 10, Codec::SNAPPY);
        for (field, message) in
            [("content", "it has id, text, list"), ("list", "holds lists"), ("id", "does not hold text")]
        {
            let options = ReadOptions { fields: vec![field.to_string()], ..ReadOptions::default() };
            let read = collect(bytes.clone(), Compression::None, &options);
            assert!(read.problems[0].message.contains(message), "{}", read.problems[0]);
        }
        let cut = collect(bytes[..bytes.len() - 3].to_vec(), Compression::None, &ReadOptions::default());
        assert_eq!(cut.problems[0].kind, ProblemKind::MalformedParquet);
        let FileTotals { documents, .. } = cut.totals;
        assert_eq!(documents, 0);
    }
}
