//! One safetensors file: eight bytes that say how long the header is, the header (JSON: name, type, shape and offsets of
//! every tensor), and the tensors' bytes without a gap.

use super::WeightsError;
use super::mapped::Mapped;
use super::write::{Hashed, Written};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// As in the reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;

/// A tensor to be written.
#[derive(Clone)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Which of the source's tensors it is.
    pub source: usize,
}

impl Entry {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bitsize() as u64 / 8
    }
}

/// Writes a file that does not exist yet. `put` is asked to write one tensor after another, in order of the file: larger
/// elements first, so that every tensor is aligned.
pub(super) fn write(
    path: &Path,
    entries: &[Entry],
    put: impl Fn(&Entry, &mut Hashed) -> Result<(), WeightsError>,
) -> Result<Written, WeightsError> {
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by_key(|e| std::cmp::Reverse(e.dtype.bitsize()));
    let mut at = 0;
    let infos = entries.iter().map(|e| {
        let from = at;
        at += e.bytes() as usize;
        (e.name.clone(), TensorInfo { dtype: e.dtype, shape: e.shape.clone(), data_offsets: (from, at) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect())
        .and_then(|m| serde_json::to_vec(&m).map_err(SafeTensorError::from))
        .map_err(|e| WeightsError::file(path, format!("cannot be described: {e}")))?;
    let mut file = Hashed::create_new(path)?;
    let padded = header.len().next_multiple_of(8);
    file.write(&(padded as u64).to_le_bytes())?;
    file.write(&header)?;
    file.write(&b"       "[..padded - header.len()])?;
    for entry in entries {
        let before = file.bytes();
        put(entry, &mut file)?;
        assert_eq!(file.bytes() - before, entry.bytes(), "{}", entry.name);
    }
    file.finish()
}

/// A file, mapped and checked.
pub(super) struct Opened {
    pub path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Where the tensors begin.
    start: usize,
}

impl Opened {
    /// Every tensor of an opened file lies inside the file and has as many bytes as its shape says.
    pub fn open(path: &Path) -> Result<Opened, WeightsError> {
        let file = File::open(path).map_err(WeightsError::io(path, "open"))?;
        let size = file.metadata().map_err(WeightsError::io(path, "read"))?.len();
        let too_short = |need: u64| {
            WeightsError::file(path, format!("cut short: {need} bytes expected, {size} found; fetch or save it again"))
        };
        if size < 8 {
            return Err(too_short(8));
        }
        // SAFETY: a private, read-only mapping. Its bytes are only ever read as bytes, of which any value is valid; that
        // no other process cuts the file short meanwhile is a documented condition of this module.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::io(path, "map"))?;
        let length = u64::from_le_bytes(map[..8].try_into().expect("eight bytes"));
        if length > LARGEST_HEADER {
            let problem = format!("not a safetensors file: a header of {length} bytes is longer than any");
            return Err(WeightsError::file(path, problem));
        }
        let start = 8 + length as usize;
        let bytes = map.get(8..start).ok_or_else(|| too_short(start as u64))?;
        let header: Metadata = serde_json::from_slice(bytes)
            .map_err(|e| WeightsError::file(path, format!("not a safetensors file: its header is wrong: {e}")))?;
        let end = (start as u64).saturating_add(header.data_len() as u64);
        if end > map.len() as u64 {
            return Err(too_short(end));
        }
        if end < map.len() as u64 {
            let more = map.len() as u64 - end;
            return Err(WeightsError::file(path, format!("{more} bytes more than its header says; save it again")));
        }
        Ok(Opened { path: path.into(), map, header, start })
    }

    /// Names in order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    pub fn mapped(&self, info: &TensorInfo) -> Mapped<'_> {
        Mapped::new(&self.map, self.bytes(info))
    }

    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.start..][info.data_offsets.0..info.data_offsets.1]
    }
}
