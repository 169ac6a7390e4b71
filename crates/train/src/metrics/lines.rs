//! A file of lines that survives a crash: a line counts when its end is there.

use super::MetricsError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use wudao_data::file::{publish, temporary_path};

/// What every line has.
#[derive(Deserialize)]
pub struct Head {
    /// What the line is about.
    #[serde(default)]
    pub kind: String,
    /// The step it belongs to.
    pub step: u64,
    /// Of the run so far.
    #[serde(default)]
    pub seconds: Option<f64>,
}

/// A value as a line, its end included. (serde_json writes a number that is not finite as `null`.)
pub fn bytes(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("records are plain numbers and strings");
    line.push(b'\n');
    line
}

/// Opens the file to append to it, making it if need be. If a crash left half a line, it is ended, so that what follows
/// is a line of its own.
pub fn open(path: &Path) -> Result<File, MetricsError> {
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(MetricsError::new("open", path))?;
    let mut ended = || {
        if file.seek(SeekFrom::End(0))? > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(())
    };
    ended().map_err(MetricsError::new("write", path))?;
    Ok(file)
}

/// Keeps the whole lines of steps up to `last`, and returns the seconds that the run had taken by then. The file changes
/// all at once, or not at all.
pub fn cut(path: &Path, last: u64) -> Result<f64, MetricsError> {
    let mut seconds = 0.0;
    let temporary = temporary_path(path);
    let mut kept = BufWriter::new(File::create(&temporary).map_err(MetricsError::new("create", &temporary))?);
    each(path, |line| match serde_json::from_slice::<Head>(line) {
        Ok(head) if head.step <= last => {
            if let Some(s) = head.seconds.filter(|_| head.kind == "step") {
                seconds = s;
            }
            kept.write_all(line).map_err(MetricsError::new("write", &temporary))
        }
        _ => Ok(()),
    })?;
    let file = kept.into_inner().map_err(|e| MetricsError::new("write", &temporary)(e.into_error()))?;
    file.sync_all().map_err(MetricsError::new("flush", &temporary))?;
    publish(&temporary, path).map_err(MetricsError::new("replace", path))?;
    Ok(seconds)
}

/// Calls `f` with every whole line, its end included; half a line at the end is not one. A missing file has no lines.
pub fn each(path: &Path, mut f: impl FnMut(&[u8]) -> Result<(), MetricsError>) -> Result<(), MetricsError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(MetricsError::new("read", path))?,
    };
    let mut reader = BufReader::new(file);
    let mut line = vec![];
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(MetricsError::new("read", path))?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        f(&line)?;
    }
}
