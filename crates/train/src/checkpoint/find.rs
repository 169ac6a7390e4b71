//! Finding the newest checkpoint that is whole.

use super::{CHECKPOINTS, CHECKSUMS, CheckpointError, FORMAT_VERSION, STATE, State, folder_name, steps, sync_folder};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use wudao_model::weights;

/// `checksums.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checksums {
    pub format: u32,
    pub files: Vec<Sum>,
}

/// A file as it must be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sum {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A checkpoint that is not whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Broken {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// A checkpoint that is whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Its state.
    pub state: State,
    /// Newer ones that are not whole.
    pub broken: Vec<Broken>,
}

/// The newest whole checkpoint of the run in `out`, or `None` with those that are not whole.
pub fn find(out: &Path) -> Result<Result<Found, Vec<Broken>>, CheckpointError> {
    let folder = out.join(CHECKPOINTS);
    let mut broken = vec![];
    for step in steps(&folder)?.into_iter().rev() {
        let path = folder.join(folder_name(step));
        match verify(&path) {
            Ok(state) if state.step == step => return Ok(Ok(Found { path, state, broken })),
            Ok(state) => broken.push(Broken { path, reason: format!("it is the checkpoint of step {}", state.step) }),
            Err(CheckpointError::Broken(b)) => broken.push(b),
            // A disk that fails to read one may still have the one before.
            Err(error) => broken.push(Broken { path, reason: crate::error::chain(&error) }),
        }
    }
    Ok(Err(broken))
}

/// How many checkpoints the run in `out` has, whole or not.
pub(crate) fn count(out: &Path) -> Result<usize, CheckpointError> {
    Ok(steps(&out.join(CHECKPOINTS))?.len())
}

/// A checkpoint that another rank has found whole: its state alone is read.
pub(crate) fn open(out: &Path, step: u64) -> Result<Found, CheckpointError> {
    let path = out.join(CHECKPOINTS).join(folder_name(step));
    let file = path.join(STATE);
    let bytes = fs::read(&file).map_err(CheckpointError::io(&file, "read"))?;
    let broken = |e: serde_json::Error| {
        CheckpointError::Broken(Broken { path: path.clone(), reason: format!("{STATE} is not usable: {e}") })
    };
    let state = serde_json::from_slice(&bytes).map_err(broken)?;
    Ok(Found { path, state, broken: vec![] })
}

/// As [`find`], where there must be one.
pub fn newest(out: &Path) -> Result<Found, CheckpointError> {
    find(out)?.map_err(|broken| CheckpointError::NoneUsable { folder: out.join(CHECKPOINTS), broken })
}

/// Reads every byte of a checkpoint and compares it with the recorded checksums.
pub fn verify(path: &Path) -> Result<State, CheckpointError> {
    let broken = |reason: String| CheckpointError::Broken(Broken { path: path.into(), reason });
    let read = |name: &str| {
        let file = path.join(name);
        fs::read(&file).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => broken(format!("{name} is missing")),
            _ => CheckpointError::io(&file, "read")(e),
        })
    };
    let sums: Checksums =
        serde_json::from_slice(&read(CHECKSUMS)?).map_err(|e| broken(format!("{CHECKSUMS} is damaged: {e}")))?;
    if sums.format != FORMAT_VERSION {
        let problem = format!("it has format version {}, this program knows {FORMAT_VERSION}", sums.format);
        return Err(broken(problem));
    }
    for sum in &sums.files {
        let Sum { name, bytes, sha256 } = sum;
        // A name from a file must not lead out of the folder.
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(broken(format!("{CHECKSUMS} is damaged: {name:?} is not the name of a file")));
        }
        let file = path.join(name);
        let length = match fs::metadata(&file) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(broken(format!("{name} is missing"))),
            Err(e) => return Err(CheckpointError::io(&file, "read")(e)),
        };
        if length != *bytes {
            return Err(broken(format!("{name} has {length} bytes, it was written with {bytes}")));
        }
        if weights::checksum(&file)?.sha256 != *sha256 {
            return Err(broken(format!("{name} is damaged: it has not the checksum it was written with")));
        }
    }
    let state = read(STATE)?;
    if !sums.files.iter().any(|s| s.name == STATE) {
        return Err(broken(format!("{CHECKSUMS} is damaged: it does not list {STATE}")));
    }
    let state: State = serde_json::from_slice(&state).map_err(|e| broken(format!("{STATE} is not usable: {e}")))?;
    if state.format != FORMAT_VERSION {
        return Err(broken(format!(
            "{STATE} has format version {}, this program knows {FORMAT_VERSION}",
            state.format
        )));
    }
    Ok(state)
}

/// Removes what an interrupted save or removal has left. Only for the run that holds the folder's lock.
pub(crate) fn sweep(out: &Path) -> Result<(), CheckpointError> {
    let folder = out.join(CHECKPOINTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(CheckpointError::io(&folder, "list")(e)),
    };
    for entry in entries {
        let entry = entry.map_err(CheckpointError::io(&folder, "list"))?;
        if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(CheckpointError::io(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Takes a checkpoint that is not whole out of the way, without losing it: `step-…` becomes `broken-step-…`.
pub(crate) fn set_aside(broken: &Broken) -> Result<PathBuf, CheckpointError> {
    let name = broken.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = broken.path.parent().unwrap_or(Path::new("."));
    let to = (0..)
        .map(|n| folder.join(if n == 0 { format!("broken-{name}") } else { format!("broken-{name}-{n}") }))
        .find(|path| !path.exists())
        .expect("some number is free");
    fs::rename(&broken.path, &to).map_err(CheckpointError::io(&broken.path, "rename"))?;
    sync_folder(folder)?;
    Ok(to)
}
