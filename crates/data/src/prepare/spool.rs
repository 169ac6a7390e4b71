//! The cleaned documents between the stages, on disk.
//!
//! A spool is a row of segments; a segment is the cleaned documents of some input files, in order. Its texts lie in
//! `segment-N.text` as blocks, each a zstd frame that a working thread makes or reads on its own; what the search for
//! duplicates needs lies apart in `segment-N.keys` as records of fixed size; and `segment-N.json`, written last, says
//! that the segment is whole and which inputs it covers. A segment without it is from an interrupted run and is
//! overwritten.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::PrepareError;
use crate::document::Lang;

/// Bytes of an [`Entry`] on disk.
pub(super) const ENTRY: usize = 28;
/// Bytes before a block.
const HEADER: usize = 12;

/// What is known of a document besides its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Hash of the text.
    pub exact: u128,
    /// Number of the source.
    pub source: u16,
    /// Language.
    pub lang: Lang,
    /// Han characters.
    pub han: u32,
    /// Bytes of text.
    pub bytes: u32,
}

impl Entry {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.exact.to_le_bytes());
        out.extend(self.source.to_le_bytes());
        out.extend([self.lang as u8, 0]);
        out.extend(self.han.to_le_bytes());
        out.extend(self.bytes.to_le_bytes());
    }

    /// Reads an entry from the front of `bytes`; `None` if that is none.
    pub fn read(bytes: &[u8]) -> Option<Entry> {
        Some(Entry {
            exact: u128::from_le_bytes(bytes.get(..16)?.try_into().ok()?),
            source: u16::from_le_bytes(bytes.get(16..18)?.try_into().ok()?),
            lang: Lang::from_u8(*bytes.get(18)?)?,
            han: u32::from_le_bytes(bytes.get(20..24)?.try_into().ok()?),
            bytes: u32::from_le_bytes(bytes.get(24..28)?.try_into().ok()?),
        })
    }
}

/// Some documents, compressed, and their keys.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub documents: u32,
    pub raw_bytes: u32,
    pub compressed: Vec<u8>,
    pub keys: Vec<u8>,
}

/// Puts documents into blocks; one for each thread.
pub(super) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
}

impl Packer {
    pub fn new() -> Result<Packer, PrepareError> {
        let compressor = zstd::bulk::Compressor::new(1).map_err(|e| PrepareError::io("start compressing", "", e))?;
        Ok(Packer { compressor, raw: Vec::new() })
    }

    /// Adds a document to the block being made.
    pub fn add(&mut self, entry: &Entry, text: &str) {
        entry.write(&mut self.raw);
        self.raw.extend(text.as_bytes());
    }

    /// Completes the block.
    pub fn pack(&mut self, documents: u32, keys: Vec<u8>) -> Result<Block, PrepareError> {
        let compressed = self.compressor.compress(&self.raw).map_err(|e| PrepareError::io("compress", "a block", e))?;
        let raw_bytes = self.raw.len() as u32;
        self.raw.clear();
        Ok(Block { documents, raw_bytes, compressed, keys })
    }
}

/// The documents of a block that was read back.
pub(super) fn unpack<'a>(
    block: &Block,
    raw: &'a mut Vec<u8>,
) -> Option<impl Iterator<Item = (Entry, &'a str)> + use<'a>> {
    *raw = zstd::bulk::decompress(&block.compressed, block.raw_bytes as usize).ok()?;
    let mut rest = raw.as_slice();
    let mut documents = Vec::with_capacity(block.documents as usize);
    for _ in 0..block.documents {
        let entry = Entry::read(rest)?;
        let text = rest.get(ENTRY..ENTRY + entry.bytes as usize)?;
        rest = &rest[ENTRY + text.len()..];
        documents.push((entry, std::str::from_utf8(text).ok()?));
    }
    rest.is_empty().then(|| documents.into_iter())
}

/// The path of one of a segment's files.
pub(super) fn path(folder: &Path, number: usize, what: &str) -> PathBuf {
    folder.join(format!("segment-{number:06}.{what}"))
}

/// Writes the texts and keys of a segment.
pub(super) struct SegmentWriter {
    text: Output,
    keys: Output,
}

struct Output {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Output {
    fn create(path: PathBuf) -> Result<Output, PrepareError> {
        let file = File::create(&path).map_err(|e| PrepareError::io("create", &path, e))?;
        Ok(Output { path, file: BufWriter::with_capacity(1 << 20, file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PrepareError> {
        self.file.write_all(bytes).map_err(|e| PrepareError::io("write", &self.path, e))
    }

    fn finish(mut self) -> Result<(), PrepareError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| PrepareError::io("write", &self.path, e))
    }
}

impl SegmentWriter {
    pub fn create(folder: &Path, number: usize) -> Result<SegmentWriter, PrepareError> {
        let create = |what| Output::create(path(folder, number, what));
        Ok(SegmentWriter { text: create("text")?, keys: create("keys")? })
    }

    pub fn write(&mut self, block: &Block) -> Result<(), PrepareError> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend((block.compressed.len() as u32).to_le_bytes());
        header.extend(block.raw_bytes.to_le_bytes());
        header.extend(block.documents.to_le_bytes());
        self.text.write(&header)?;
        self.text.write(&block.compressed)?;
        self.keys.write(&block.keys)
    }

    /// Makes what was written durable.
    pub fn finish(self) -> Result<(), PrepareError> {
        self.text.finish()?;
        self.keys.finish()
    }
}

/// Reads the blocks of all segments, in order.
pub(super) struct Blocks {
    folder: PathBuf,
    segments: usize,
    next: usize,
    open: Option<(PathBuf, BufReader<File>)>,
    /// Number of the next document.
    document: u64,
}

impl Blocks {
    pub fn new(folder: &Path, segments: usize) -> Blocks {
        Blocks { folder: folder.to_path_buf(), segments, next: 0, open: None, document: 0 }
    }

    /// The next block that has documents at or after `from`, with the number of its first document.
    pub fn next(&mut self, from: u64) -> Result<Option<(u64, Block)>, PrepareError> {
        loop {
            let Some((path, file)) = &mut self.open else {
                if self.next == self.segments {
                    return Ok(None);
                }
                let path = path(&self.folder, self.next, "text");
                let file = File::open(&path).map_err(|e| PrepareError::io("open", &path, e))?;
                self.open = Some((path, BufReader::with_capacity(256 << 10, file)));
                self.next += 1;
                continue;
            };
            let fault = |e| PrepareError::io("read", &*path, e);
            let mut header = [0; HEADER];
            let mut filled = 0;
            while filled < HEADER {
                match file.read(&mut header[filled..]).map_err(fault)? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                self.open = None;
                continue;
            }
            if filled < HEADER {
                return Err(PrepareError::Damaged { path: path.display().to_string() });
            }
            let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (length, raw_bytes, documents) = (number(0), number(4), number(8));
            let first = self.document;
            self.document += u64::from(documents);
            if self.document <= from {
                file.seek_relative(i64::from(length)).map_err(fault)?;
                continue;
            }
            let mut compressed = vec![0; length as usize];
            file.read_exact(&mut compressed).map_err(fault)?;
            return Ok(Some((first, Block { documents, raw_bytes, compressed, keys: Vec::new() })));
        }
    }
}

/// Calls with the number, the entry and the keys of every document of all segments, in order.
pub(super) fn for_each_key(
    folder: &Path,
    segments: usize,
    keys_each: usize,
    mut call: impl FnMut(u64, Entry, &[u64]) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let mut document = 0;
    let mut record = vec![0; ENTRY + 8 * keys_each];
    let mut keys = vec![0; keys_each];
    for segment in 0..segments {
        let path = path(folder, segment, "keys");
        let file = File::open(&path).map_err(|e| PrepareError::io("open", &path, e))?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let bytes = file.seek(SeekFrom::End(0)).map_err(|e| PrepareError::io("read", &path, e))?;
        file.rewind().map_err(|e| PrepareError::io("read", &path, e))?;
        let damaged = || PrepareError::Damaged { path: path.display().to_string() };
        if !bytes.is_multiple_of(record.len() as u64) {
            return Err(damaged());
        }
        for _ in 0..bytes / record.len() as u64 {
            file.read_exact(&mut record).map_err(|e| PrepareError::io("read", &path, e))?;
            let entry = Entry::read(&record).ok_or_else(damaged)?;
            for (key, bytes) in keys.iter_mut().zip(record[ENTRY..].chunks_exact(8)) {
                *key = bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
            }
            call(document, entry, &keys)?;
            document += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut packer = Packer::new().unwrap();
        let mut expected = Vec::new();
        for segment in 0..3 {
            let mut writer = SegmentWriter::create(dir.path(), segment).unwrap();
            for block in 0..segment {
                let mut keys = Vec::new();
                for document in 0..4u32 {
                    let text = format!("第{segment}段，第{block}块，第{document}篇");
                    let entry = Entry {
                        exact: crate::dedup::exact_hash(&text),
                        source: segment as u16,
                        lang: Lang::Zh,
                        han: 7,
                        bytes: text.len() as u32,
                    };
                    packer.add(&entry, &text);
                    entry.write(&mut keys);
                    keys.extend(u64::from(document).to_le_bytes());
                    expected.push((entry, text));
                }
                writer.write(&packer.pack(4, keys).unwrap()).unwrap();
            }
            writer.finish().unwrap();
        }
        let read = |from: u64| {
            let mut blocks = Blocks::new(dir.path(), 3);
            let (mut out, mut raw) = (Vec::new(), Vec::new());
            while let Some((first, block)) = blocks.next(from).unwrap() {
                let documents = unpack(&block, &mut raw).unwrap();
                out.extend(documents.enumerate().map(|(i, (e, t))| (first + i as u64, e, t.to_string())));
            }
            out
        };
        let numbered: Vec<_> = expected.iter().enumerate().map(|(i, (e, t))| (i as u64, *e, t.clone())).collect();
        assert_eq!(read(0), numbered);
        assert_eq!(read(5), numbered[4..]);
        let mut at = 0;
        for_each_key(dir.path(), 3, 1, |number, entry, keys| {
            assert_eq!((number, entry, keys), (at, expected[at as usize].0, &[at % 4][..]));
            at += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(at, 12);
    }

    #[test]
    fn a_damaged_block_is_recognised() {
        let mut packer = Packer::new().unwrap();
        let entry = Entry { exact: 1, source: 0, lang: Lang::En, han: 0, bytes: 4 };
        packer.add(&entry, "text");
        let block = packer.pack(1, Vec::new()).unwrap();
        let mut raw = Vec::new();
        assert!(unpack(&block, &mut raw).is_some());
        assert!(unpack(&Block { documents: 2, ..block }, &mut raw).is_none());
        let garbage = Block { documents: 1, raw_bytes: 10, compressed: vec![1; 9], keys: Vec::new() };
        assert!(unpack(&garbage, &mut raw).is_none());
    }
}
