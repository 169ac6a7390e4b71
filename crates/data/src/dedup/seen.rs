//! Which documents have a key that an earlier document had, for any number of documents in bounded memory.
//!
//! Keys arrive in document order. If all of them fit the memory budget, one hash set answers at once. Otherwise they are
//! first dealt out to files by their hash, so that equal keys meet in one file; each file then gets its own set. Both ways
//! give the same answer, because in both a key's first owner comes first.
//!
//! Bound: a set takes about 40 bytes per distinct key. With the largest number of files (1024) a budget of 256 MB is
//! enough for about 7 billion keys (400 million documents of 17 keys), which take 24 bytes each on disk while the
//! search runs; beyond that the budget is exceeded in proportion. The answer itself takes two bits per document.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Memory per distinct key in a set at its worst load, right after growing.
const BYTES_PER_KEY: u64 = 40;
/// Most files the keys are dealt out to.
const MAX_FILES: u64 = 1024;
/// A key and its document on disk.
const ENTRY: usize = 24;

/// Two bits per document: has it the same text as an earlier one, or nearly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    bits: Vec<u64>,
}

impl Marks {
    /// No marks, for this many documents.
    pub fn new(documents: u64) -> Marks {
        Marks { bits: vec![0; documents.div_ceil(32) as usize] }
    }

    /// Marks from their bytes, as [`Marks::to_bytes`] gives them; `None` if there are too few for so many documents.
    pub fn from_bytes(bytes: &[u8], documents: u64) -> Option<Marks> {
        let words = bytes.chunks_exact(8).map(|word| word.try_into().map(u64::from_le_bytes));
        let bits: Vec<u64> = words.collect::<Result<_, _>>().ok()?;
        (bits.len() as u64 == documents.div_ceil(32)).then_some(Marks { bits })
    }

    /// The marks as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bits.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn set(&mut self, document: u64, bit: u64) {
        if let Some(word) = self.bits.get_mut((document / 32) as usize) {
            *word |= 1 << (document % 32 * 2 + bit);
        }
    }

    fn get(&self, document: u64, bit: u64) -> bool {
        self.bits.get((document / 32) as usize).is_some_and(|word| word >> (document % 32 * 2 + bit) & 1 == 1)
    }

    /// Whether an earlier document has the same text.
    pub fn exact(&self, document: u64) -> bool {
        self.get(document, 0)
    }

    /// Whether an earlier document has nearly the same text (exact duplicates included, if near ones were searched for).
    pub fn near(&self, document: u64) -> bool {
        self.get(document, 1)
    }
}

/// Why the search failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct SeenError {
    action: &'static str,
    path: String,
    source: io::Error,
}

impl SeenError {
    /// The temporary file's path, what was tried and the operating system's reason.
    pub fn into_parts(self) -> (&'static str, String, io::Error) {
        (self.action, self.path, self.source)
    }
}

/// The keys are hashes already: the set takes their low bits as they are.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

type Set = HashSet<u128, BuildHasherDefault<Identity>>;

/// Collects the keys of documents, then marks those that came again.
pub struct Seen {
    marks: Marks,
    store: Store,
}

enum Store {
    Memory(Set),
    Disk { folder: PathBuf, files: Vec<BufWriter<File>> },
}

impl Seen {
    /// For this many documents with at most `keys_each` keys, within about `memory` bytes; `folder` (created if needed,
    /// emptied at the end) takes the files if they do not fit.
    pub fn new(documents: u64, keys_each: usize, memory: u64, folder: &Path) -> Result<Seen, SeenError> {
        let needed = documents.saturating_mul(keys_each as u64).saturating_mul(BYTES_PER_KEY);
        let files = needed.div_ceil(memory.max(1)).next_power_of_two().min(MAX_FILES);
        let marks = Marks::new(documents);
        if files <= 1 {
            return Ok(Seen { marks, store: Store::Memory(Set::default()) });
        }
        fs::create_dir_all(folder).map_err(|source| fault("create folder", folder, source))?;
        let create = |number: u64| {
            let path = part(folder, number as usize);
            let file = File::create(&path).map_err(|source| fault("create", &path, source))?;
            Ok(BufWriter::with_capacity(16 << 10, file))
        };
        let files = (0..files).map(create).collect::<Result<_, _>>()?;
        Ok(Seen { marks, store: Store::Disk { folder: folder.to_path_buf(), files } })
    }

    /// Adds the next document's keys: the hash of its text (`None`: not searched for), and one key per band.
    pub fn add(&mut self, document: u64, exact: Option<u128>, bands: &[u64]) -> Result<(), SeenError> {
        if let Some(hash) = exact {
            self.key(hash | 1, document)?;
        }
        for (band, key) in bands.iter().enumerate() {
            self.key(band_key(band, *key), document)?;
        }
        Ok(())
    }

    fn key(&mut self, key: u128, document: u64) -> Result<(), SeenError> {
        match &mut self.store {
            Store::Memory(set) => {
                if !set.insert(key) {
                    self.marks.set(document, bit(key));
                }
            }
            Store::Disk { folder, files } => {
                let at = (key >> 40) as usize & (files.len() - 1);
                let mut entry = [0; ENTRY];
                entry[..16].copy_from_slice(&key.to_le_bytes());
                entry[16..].copy_from_slice(&document.to_le_bytes());
                files[at].write_all(&entry).map_err(|source| fault("write", &part(folder, at), source))?;
            }
        }
        Ok(())
    }

    /// The marks of all documents.
    pub fn finish(mut self) -> Result<Marks, SeenError> {
        let Store::Disk { folder, files } = self.store else { return Ok(self.marks) };
        let count = files.len();
        for (at, mut file) in files.into_iter().enumerate() {
            file.flush().map_err(|source| fault("write", &part(&folder, at), source))?;
        }
        let mut set = Set::default();
        for at in 0..count {
            let path = part(&folder, at);
            let file = File::open(&path).map_err(|source| fault("open", &path, source))?;
            let entries = file.metadata().map_err(|source| fault("examine", &path, source))?.len() / ENTRY as u64;
            let mut file = BufReader::with_capacity(1 << 20, file);
            set.clear();
            for _ in 0..entries {
                let (mut key, mut document) = ([0; 16], [0; 8]);
                let read = file.read_exact(&mut key).and_then(|()| file.read_exact(&mut document));
                read.map_err(|source| fault("read", &path, source))?;
                let key = u128::from_le_bytes(key);
                if !set.insert(key) {
                    self.marks.set(u64::from_le_bytes(document), bit(key));
                }
            }
            fs::remove_file(&path).map_err(|source| fault("remove", &path, source))?;
        }
        Ok(self.marks)
    }
}

/// Keys of texts are odd, keys of bands are even and differ by band.
fn band_key(band: usize, key: u64) -> u128 {
    (u128::from(key) | (band as u128 + 1) << 64) << 1
}

fn bit(key: u128) -> u64 {
    u64::from(key & 1 == 0)
}

fn part(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("keys-{number:04}"))
}

fn fault(action: &'static str, path: &Path, source: io::Error) -> SeenError {
    SeenError { action, path: path.display().to_string(), source }
}
