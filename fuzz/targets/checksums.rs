//! `checksums.json` of a checkpoint with a good `state.json`: no file outside the folder is looked at, and a checkpoint
//! that is accepted has the state's checksum right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_model::weights::write_file;
use wudao_train::checkpoint::{CHECKSUMS, STATE, verify};

const GOOD: &[u8] = include_bytes!("../seeds/state/good");

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let sum = write_file(&folder.path().join(STATE), GOOD).expect("room");
    std::fs::write(folder.path().join(CHECKSUMS), data).expect("room");
    if verify(folder.path()).is_ok() {
        let text = String::from_utf8_lossy(data);
        assert!(text.contains(&sum.sha256), "{text}");
    }
});
