//! The output folder while a preparation is under way: the lock, the plan, and what an interrupted run left.
//!
//! Everything unfinished lies in `OUT/.work`; the folder itself shows nothing until the end. `.work/plan.json` records
//! inputs and options. A run that finds its own plan there goes on with what is finished; a run that finds another plan
//! says what changed and starts over. `OUT/.lock` is held while a run lives: the operating system lets go of it when the
//! process dies, however it dies.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::options::{PrepareOptions, TokenizerChoice};
use super::report::Report;
use super::{PrepareError, Source};
use crate::file;
use crate::manifest::MANIFEST_FILE;
use crate::read::Origin;
use crate::tokenizer::{TOKENIZER_CONFIG_FILE, Tokenizer};

/// The report's file in the data set's folder.
pub const REPORT_FILE: &str = "report.json";
const PLAN_FILE: &str = "plan.json";

/// What decides the result: inputs and options, nothing else.
pub(super) struct Plan {
    value: Value,
    /// Standard input cannot be read again.
    pub repeatable: bool,
}

impl Plan {
    pub fn new(options: &PrepareOptions, inputs: &[Source], given: Option<&Tokenizer>) -> Plan {
        let files: Vec<Value> = inputs
            .iter()
            .map(|Source { number, input }| {
                json!([number, input.name(), input.format, input.bytes, input.modified.to_string()])
            })
            .collect();
        let tokenizer = match (&options.tokenizer, given) {
            (TokenizerChoice::File(_), Some(tokenizer)) => json!({ "sha256": tokenizer.hash() }),
            (choice, _) => json!({ "choice": choice, "bytes": options.tokenizer_bytes }),
        };
        let mut value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "sources": options.sources,
            "input files": files,
            "tokenizer": tokenizer,
            "read": options.read,
            "clean": options.clean,
            "languages": options.languages,
            "rules": options.rules,
            "dedup": options.dedup,
            "validation": options.validation,
            "shard_tokens": options.shard_tokens,
        });
        // Its hash names the work, whatever the order of the fields.
        value.sort_all_objects();
        Plan { value, repeatable: !inputs.iter().any(|s| s.input.origin == Origin::Stdin) }
    }

    /// Identifies the plan.
    pub fn hash(&self) -> String {
        file::sha256_hex(self.value.to_string().as_bytes())
    }

    /// The options as the manifest records them.
    pub fn rules(&self) -> Value {
        let mut rules = self.value.clone();
        if let Some(fields) = rules.as_object_mut() {
            for other in ["version", "sources", "input files", "tokenizer"] {
                fields.shift_remove(other);
            }
        }
        rules
    }

    /// The names of the parts in which another plan differs.
    fn changes(&self, other: &Value) -> Vec<String> {
        let fields = self.value.as_object().into_iter().flatten();
        fields.filter(|(name, value)| other.get(name.as_str()) != Some(value)).map(|(name, _)| name.clone()).collect()
    }
}

/// The lock of the output folder; its file is removed with it.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(out: &Path) -> Result<Lock, PrepareError> {
        let path = out.join(".lock");
        loop {
            let fault = |e| PrepareError::io("lock", &path, e);
            let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fault)?;
            match fs4::FileExt::try_lock(&file) {
                Ok(()) => {}
                Err(fs4::TryLockError::WouldBlock) => {
                    return Err(PrepareError::Locked { path: out.display().to_string() });
                }
                Err(fs4::TryLockError::Error(e)) => return Err(fault(e)),
            }
            // The run before may have removed the file between our opening and our locking it.
            if is_at(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |m: fs::Metadata| (m.dev(), m.ino());
    file.metadata().ok().map(identity) == fs::metadata(path).ok().map(identity)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody is hurt by a lock file that stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// The locked output folder of a run.
pub(super) struct Work {
    pub out: PathBuf,
    folder: PathBuf,
    _lock: Lock,
}

/// What the output folder held.
pub(super) enum Opened {
    /// The same data set, finished.
    Done(Box<Report>),
    /// Room to work, perhaps with the finished parts of an interrupted run.
    Ready {
        work: Work,
        /// What to tell the user about it.
        note: Option<String>,
    },
}

impl Work {
    /// Locks the folder and looks at what is in it.
    pub fn open(options: &PrepareOptions, plan: &Plan) -> Result<Opened, PrepareError> {
        let out = &options.out;
        fs::create_dir_all(out).map_err(|e| PrepareError::io("create folder", out, e))?;
        let work = Work { out: out.clone(), folder: out.join(".work"), _lock: Lock::take(out)? };
        let left: Option<Value> = work.load_from(&work.folder.join(PLAN_FILE));
        let resumes = plan.repeatable && left.as_ref() == Some(&plan.value);
        if out.join(MANIFEST_FILE).exists() && !resumes {
            let report: Option<Report> = work.load_from(&out.join(REPORT_FILE));
            match report {
                Some(report) if plan.repeatable && report.plan == plan.hash() => {
                    work.clear()?;
                    return Ok(Opened::Done(Box::new(report)));
                }
                _ if !options.overwrite => return Err(PrepareError::Exists { path: out.display().to_string() }),
                _ => {}
            }
        }
        let note = match left {
            Some(_) if resumes => Some("going on where an interrupted run stopped".to_string()),
            Some(_) if !plan.repeatable => {
                Some("standard input cannot be read twice: starting over after an interrupted run".to_string())
            }
            Some(left) => {
                let changes = plan.changes(&left).join(", ");
                Some(format!("an interrupted run left its work here, but since then changed: {changes}; starting over"))
            }
            None => None,
        };
        if !resumes {
            work.clear()?;
            for folder in [work.spool(), work.set()] {
                fs::create_dir_all(&folder).map_err(|e| PrepareError::io("create folder", &folder, e))?;
            }
            work.save(PLAN_FILE, &plan.value)?;
        }
        Ok(Opened::Ready { work, note })
    }

    /// The folder of temporary files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the cleaned documents.
    pub fn spool(&self) -> PathBuf {
        self.folder.join("spool")
    }

    /// The folder in which the data set grows.
    pub fn set(&self) -> PathBuf {
        self.folder.join("set")
    }

    /// Writes a file of the work folder, whole or not at all.
    pub fn save(&self, name: &str, value: &impl Serialize) -> Result<(), PrepareError> {
        let bytes = serde_json::to_vec(value).map_err(|e| PrepareError::io("write", name, e.into()))?;
        self.save_bytes(name, &bytes)
    }

    /// See [`Work::save`].
    pub fn save_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), PrepareError> {
        let path = self.folder.join(name);
        file::write_atomic(&path, bytes).map_err(|e| PrepareError::io("write", &path, e))
    }

    /// Reads a file of the work folder, if it is there and whole.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.load_from(&self.folder.join(name))
    }

    /// The bytes of a file of the work folder, if it is there.
    pub fn load_bytes(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }

    fn load_from<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Removes the work folder: first the plan, without which nobody takes up the rest.
    pub fn clear(&self) -> Result<(), PrepareError> {
        remove(&self.folder.join(PLAN_FILE))?;
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(PrepareError::io("remove folder", &self.folder, e))
            }
            _ => Ok(()),
        }
    }

    /// Moves the finished data set, whose manifest has been written, into the output folder. The old manifest goes first
    /// and the new one comes last, so that a manifest always tells the truth. May be repeated after an interruption.
    pub fn publish(&self) -> Result<(), PrepareError> {
        let set = self.set();
        let manifest = set.join(MANIFEST_FILE);
        if manifest.exists() {
            let old = self.out.join(MANIFEST_FILE);
            if old.exists() {
                // The new set may have none, and must not get the old one's.
                remove(&self.out.join(TOKENIZER_CONFIG_FILE))?;
                remove(&old)?;
            }
            let mut names = Vec::new();
            let list = |e| PrepareError::io("list folder", &set, e);
            for entry in fs::read_dir(&set).map_err(list)? {
                names.push(entry.map_err(list)?.file_name());
            }
            for entry in fs::read_dir(&self.out).map_err(|e| PrepareError::io("list folder", &self.out, e))? {
                let name = entry.map_err(|e| PrepareError::io("list folder", &self.out, e))?.file_name();
                if is_shard(&name.to_string_lossy()) && !self.listed(&name.to_string_lossy()) {
                    remove(&self.out.join(&name))?;
                }
            }
            for name in names.iter().filter(|name| *name != MANIFEST_FILE) {
                rename(&set.join(name), &self.out.join(name))?;
            }
            file::publish(&manifest, &self.out.join(MANIFEST_FILE))
                .map_err(|e| PrepareError::io("rename", &manifest, e))?;
        }
        self.clear()
    }

    /// Whether the new manifest, moved or not, names the shard.
    fn listed(&self, shard: &str) -> bool {
        let manifest: Option<Value> = self.load_from(&self.set().join(MANIFEST_FILE));
        let shards = manifest.as_ref().and_then(|m| m.get("shards")).and_then(Value::as_array);
        shards.into_iter().flatten().any(|info| info.get("file").and_then(Value::as_str) == Some(shard))
    }
}

/// Whether a file is called as shards are.
fn is_shard(name: &str) -> bool {
    let number = name.strip_prefix("train-").or_else(|| name.strip_prefix("validation-"));
    let digits = number.and_then(|rest| rest.strip_suffix(".bin"));
    digits.is_some_and(|digits| digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn remove(path: &Path) -> Result<(), PrepareError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(PrepareError::io("remove", path, e)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), PrepareError> {
    fs::rename(from, to).map_err(|e| PrepareError::io("rename", from, e))
}
