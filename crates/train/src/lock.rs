//! One run in one folder.
//!
//! The lock is the operating system's, on `OUT/.lock`: it goes with the process, however that ends, so a killed run
//! leaves nothing to clean up. The file holds the process's number for the message of the one that comes second.

use crate::error::TrainError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// The file that is locked.
pub const LOCK: &str = ".lock";

/// Held as long as the value lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the run's folder, which must exist, or says who has it.
    pub fn take(out: &Path) -> Result<Lock, TrainError> {
        let path = out.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(TrainError::io(&path, "open"))?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The number is only for the message.
                let _ = file.read_to_string(&mut text);
                return Err(TrainError::Locked { out: out.into(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(TrainError::io(&path, "lock")(error)),
        }
        let write = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        write.map_err(TrainError::io(&path, "write"))?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_is_told_who_is_there() {
        let out = tempfile::tempdir().unwrap();
        let first = Lock::take(out.path()).unwrap();
        let error = Lock::take(out.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(out.path()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Lock::take(Path::new("/no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder/.lock"), "{error}");
    }
}
