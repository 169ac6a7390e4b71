//! Finding the files of a corpus: folders are walked recursively, in an order that depends on names alone.
//!
//! Inside a folder, files of unknown kind and hidden ones (a leading dot) are passed over and counted; a file named by
//! the user must be readable, or it is an error. The order decides which copy of a duplicate stays, so it must be the
//! same on every machine: entries are sorted by the bytes of their names.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Compression, Format, ReadError};

/// Where an input's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// One file (or standard input) to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where the bytes come from.
    pub origin: Origin,
    /// What they hold.
    pub format: Format,
    /// How they are compressed.
    pub compression: Compression,
    /// Size as stored (bytes); 0 for standard input, whose size nobody knows.
    pub bytes: u64,
    /// Time of the last change (nanoseconds since 1970), 0 where unknown: part of what tells a changed corpus.
    pub modified: u128,
}

impl Input {
    /// The name used in messages.
    pub fn name(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Stdin => "standard input".to_string(),
        }
    }

    /// Opens the bytes as stored.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, ReadError> {
        Ok(match &self.origin {
            Origin::File(path) => Box::new(File::open(path).map_err(|e| ReadError::io("open", path, e))?),
            Origin::Stdin => Box::new(io::stdin()),
        })
    }
}

/// Finds the inputs under `path`: a file, a folder, or `-` for standard input. `format` overrides what the extension of
/// a named file says and is needed for standard input (without it: plain text); inside a folder it restricts which files
/// are taken to those of that format.
pub fn discover(path: &Path, format: Option<Format>) -> Result<Vec<Input>, ReadError> {
    if path == Path::new("-") {
        let format = format.unwrap_or(Format::Text);
        return Ok(vec![Input {
            origin: Origin::Stdin,
            format,
            compression: Compression::None,
            bytes: 0,
            modified: 0,
        }]);
    }
    let metadata = fs::metadata(path).map_err(|e| ReadError::io("read", path, e))?;
    if !metadata.is_dir() {
        let (known, compression) = kind(path);
        let format = format.or(known).ok_or_else(|| ReadError::UnknownFormat { path: path.display().to_string() })?;
        return Ok(vec![input(path, format, compression, &metadata)]);
    }
    let mut walk = Walk { format, found: Vec::new(), ignored: 0, above: HashSet::new() };
    walk.folder(path)?;
    if walk.found.is_empty() {
        return Err(ReadError::NoFiles { path: path.display().to_string(), ignored: walk.ignored });
    }
    Ok(walk.found)
}

struct Walk {
    format: Option<Format>,
    found: Vec<Input>,
    ignored: u64,
    /// The folders on the way down, so that a link to one of them does not lead round in circles.
    above: HashSet<PathBuf>,
}

impl Walk {
    fn folder(&mut self, folder: &Path) -> Result<(), ReadError> {
        let real = fs::canonicalize(folder).map_err(|e| ReadError::io("open folder", folder, e))?;
        if !self.above.insert(real.clone()) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| ReadError::io("list folder", folder, e))? {
            names.push(entry.map_err(|e| ReadError::io("list folder", folder, e))?.file_name());
        }
        names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        for name in names {
            let path = folder.join(&name);
            if name.as_encoded_bytes().starts_with(b".") {
                self.ignored += 1;
                continue;
            }
            let metadata = fs::metadata(&path).map_err(|e| ReadError::io("read", &path, e))?;
            if metadata.is_dir() {
                self.folder(&path)?;
                continue;
            }
            match kind(&path) {
                (Some(format), compression) if metadata.is_file() && self.format.is_none_or(|only| only == format) => {
                    self.found.push(input(&path, format, compression, &metadata));
                }
                _ => self.ignored += 1,
            }
        }
        self.above.remove(&real);
        Ok(())
    }
}

fn input(path: &Path, format: Format, compression: Compression, metadata: &fs::Metadata) -> Input {
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Input {
        origin: Origin::File(path.to_path_buf()),
        format,
        compression,
        bytes: metadata.len(),
        modified: modified.map_or(0, |d| d.as_nanos()),
    }
}

/// Format and compression by the last two extensions.
fn kind(path: &Path) -> (Option<Format>, Compression) {
    let extension = |p: &Path| p.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default();
    let compression = Compression::from_extension(&extension(path));
    let inner = if compression == Compression::None { path.to_path_buf() } else { path.with_extension("") };
    (Format::from_extension(&extension(&inner)), compression)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("b/深")).unwrap();
        for name in ["c.txt", "a.JSONL.gz", "b/z.md", "b/深/x.parquet", ".hidden.txt", "picture.png", "d.csv.xz"] {
            fs::write(root.join(name), "x").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
        let found = discover(root, None).unwrap();
        let names: Vec<_> =
            found.iter().map(|i| i.name().strip_prefix(root.to_str().unwrap()).unwrap()[1..].to_string()).collect();
        assert_eq!(names, ["a.JSONL.gz", "b/z.md", "b/深/x.parquet", "c.txt", "d.csv.xz"]);
        assert_eq!((found[0].format, found[0].compression), (Format::Jsonl, Compression::Gzip));
        assert_eq!((found[4].format, found[4].compression), (Format::Csv, Compression::Xz));
        let only = discover(root, Some(Format::Csv)).unwrap();
        assert_eq!(only.len(), 1);
    }

    #[test]
    fn nothing_to_read_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("picture.png"), "x").unwrap();
        let error = discover(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("1 other files") && error.contains(".jsonl"), "{error}");
        let missing = discover(&dir.path().join("none.txt"), None).unwrap_err();
        assert!(missing.to_string().contains("none.txt"));
        assert!(std::error::Error::source(&missing).is_some());
        let unknown = discover(&dir.path().join("picture.png"), None).unwrap_err();
        assert!(matches!(unknown, ReadError::UnknownFormat { .. }));
        assert_eq!(discover(&dir.path().join("picture.png"), Some(Format::Text)).unwrap().len(), 1);
    }
}
