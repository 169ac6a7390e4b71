//! Writing a checkpoint, while training goes on or, where there is no memory for a copy, while it waits.
//!
//! The snapshot is taken between two steps; from then on its own thread writes it. One at a time: the next waits for the
//! one before, so that a slow disk costs time and not memory. Without a copy, tensors are read one by one while they are
//! written, and the files are the same. What went wrong is told at the next occasion; by then the half-written folder is
//! gone and the older checkpoints are as they were.

use super::find::{Checksums, Sum};
use super::{
    CHECKPOINTS, CHECKSUMS, CheckpointError, FORMAT_VERSION, OPTIMIZER, STATE, State, folder_name, steps, sync_folder,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use wudao_device::DType;
use wudao_model::Config;
use wudao_model::weights::{self, Listed, Snapshot, Written};

/// Weights go into one file up to this size.
const MAX_SHARD_BYTES: u64 = 5 << 30;

/// A checkpoint, ready to be written: its tensors are [`Snapshot`]s, or [`Listed`] by what holds them.
pub struct Contents<T> {
    /// What the model is.
    pub config: Config,
    /// The type of the weights in the file.
    pub dtype: DType,
    /// The weights.
    pub weights: T,
    /// The moments.
    pub optimizer: T,
    /// The rest.
    pub state: State,
    /// Files that are the same in every checkpoint: the tokenizer's.
    pub extra: Arc<Vec<(String, Vec<u8>)>>,
}

impl Contents<Snapshot> {
    fn listed(&self) -> Contents<Vec<Listed<'_>>> {
        let Contents { config, dtype, weights, optimizer, state, extra } = self;
        let (config, state, extra) = (config.clone(), state.clone(), extra.clone());
        Contents { config, dtype: *dtype, weights: weights.listed(), optimizer: optimizer.listed(), state, extra }
    }
}

/// A checkpoint on the disk.
#[derive(Clone, PartialEq, Debug)]
pub struct Saved {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// How long it took to write.
    pub seconds: f64,
    /// Why an older one could not be removed, if so.
    pub not_removed: Option<String>,
}

/// A checkpoint that is being written, or was.
enum Job {
    Thread(JoinHandle<Result<Saved, CheckpointError>>),
    Done(Box<Result<Saved, CheckpointError>>),
}

/// Writes checkpoints, one at a time.
pub struct Writer {
    folder: PathBuf,
    keep_last: usize,
    job: Option<(u64, Job)>,
}

impl Writer {
    /// For the run in `out`, whose folder of checkpoints is made. After each save, the newest `keep_last` and the best are
    /// kept.
    pub fn new(out: &Path, keep_last: usize) -> Result<Writer, CheckpointError> {
        let folder = out.join(CHECKPOINTS);
        fs::create_dir_all(&folder).map_err(CheckpointError::io(&folder, "create"))?;
        Ok(Writer { folder, keep_last, job: None })
    }

    /// Begins to write, in a thread. Panics if the one before was not waited for.
    pub fn start(&mut self, contents: Contents<Snapshot>) -> Result<(), CheckpointError> {
        assert!(self.job.is_none(), "one checkpoint at a time");
        let (folder, keep_last, step) = (self.folder.clone(), self.keep_last, contents.state.step);
        let job = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || write(&folder, &contents.listed(), keep_last))
            .map_err(CheckpointError::io(&self.folder, "start the thread that writes to"))?;
        self.job = Some((step, Job::Thread(job)));
        Ok(())
    }

    /// Writes at once, reading each tensor when its turn comes. What became of it is told as after [`Writer::start`]. Panics if the
    /// one before was not waited for.
    pub fn write(&mut self, contents: &Contents<Vec<Listed>>) {
        assert!(self.job.is_none(), "one checkpoint at a time");
        let result = write(&self.folder, contents, self.keep_last);
        self.job = Some((contents.state.step, Job::Done(Box::new(result))));
    }

    /// What became of the checkpoint that was being written, if it is done by now: its step, and the result.
    pub fn poll(&mut self) -> Option<(u64, Result<Saved, CheckpointError>)> {
        let done = |job: &Job| match job {
            Job::Thread(thread) => thread.is_finished(),
            Job::Done(_) => true,
        };
        if self.job.as_ref().is_some_and(|(_, job)| done(job)) { self.wait() } else { None }
    }

    /// Waits for the checkpoint that is being written, if there is one.
    pub fn wait(&mut self) -> Option<(u64, Result<Saved, CheckpointError>)> {
        let (step, job) = self.job.take()?;
        let result = match job {
            Job::Thread(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Job::Done(result) => *result,
        };
        Some((step, result))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((_, Job::Thread(job))) = self.job.take() {
            // On the way out of an error there is nobody left to tell.
            let _ = job.join();
        }
    }
}

/// Writes the checkpoint, lets it appear, and then removes those that need not be kept.
fn write(folder: &Path, contents: &Contents<Vec<Listed>>, keep_last: usize) -> Result<Saved, CheckpointError> {
    let begin = Instant::now();
    let step = contents.state.step;
    let temporary = folder.join(format!(".tmp-{}", folder_name(step)));
    let bytes = match fill(&temporary, contents) {
        Ok(bytes) => bytes,
        Err(error) => {
            // The disk may be full: what is half written helps nobody.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
    };
    let path = folder.join(folder_name(step));
    if path.exists() {
        // The same step again, after a resume from an older one.
        remove(folder, step)?;
    }
    fs::rename(&temporary, &path).map_err(CheckpointError::io(&temporary, "rename"))?;
    sync_folder(folder)?;
    let best = contents.state.best.map(|b| b.step);
    let not_removed = prune(folder, step, keep_last, best).err().map(|e| crate::error::chain(&e));
    Ok(Saved { step, path, bytes, seconds: begin.elapsed().as_secs_f64(), not_removed })
}

/// Removes all but the newest `keep_last` up to `newest`, and the best.
fn prune(folder: &Path, newest: u64, keep_last: usize, best: Option<u64>) -> Result<(), CheckpointError> {
    let old = steps(folder)?.into_iter().filter(|&step| step <= newest).rev().skip(keep_last);
    old.filter(|&step| Some(step) != best).try_for_each(|step| remove(folder, step))
}

/// Removes a checkpoint; its name is gone before its files are.
fn remove(folder: &Path, step: u64) -> Result<(), CheckpointError> {
    let (path, going) = (folder.join(folder_name(step)), folder.join(format!(".tmp-remove-{}", folder_name(step))));
    fs::rename(&path, &going).map_err(CheckpointError::io(&path, "rename"))?;
    sync_folder(folder)?;
    fs::remove_dir_all(&going).map_err(CheckpointError::io(&going, "remove"))
}

/// Writes all files of a checkpoint into a new folder and brings them to the disk. Returns their size.
fn fill(dir: &Path, contents: &Contents<Vec<Listed>>) -> Result<u64, CheckpointError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(CheckpointError::io(dir, "remove"))?;
    }
    fs::create_dir(dir).map_err(CheckpointError::io(dir, "create"))?;
    let Contents { config, dtype, weights, optimizer, state, extra } = contents;
    let mut written = weights::write_model(dir, config, weights, *dtype, MAX_SHARD_BYTES)?;
    written.push(weights::write_tensors(&dir.join(OPTIMIZER), optimizer)?);
    for (name, bytes) in extra.iter() {
        written.push(weights::write_file(&dir.join(name), bytes)?);
    }
    written.push(weights::write_file(&dir.join(STATE), &json(state))?);
    written.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = written.iter().map(|w| w.bytes).sum();
    let sum = |w: Written| Sum { name: w.name, bytes: w.bytes, sha256: w.sha256 };
    let sums = Checksums { format: FORMAT_VERSION, files: written.into_iter().map(sum).collect() };
    weights::write_file(&dir.join(CHECKSUMS), &json(&sums))?;
    sync_folder(dir)?;
    Ok(bytes)
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structures with string keys");
    bytes.push(b'\n');
    bytes
}
