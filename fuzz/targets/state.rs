//! `state.json` of a checkpoint that is whole otherwise: one that is accepted comes back the same from what it is written
//! as, and its settings are judged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_model::weights::write_file;
use wudao_train::checkpoint::{CHECKSUMS, FORMAT_VERSION, STATE, State, verify};

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let sum = write_file(&folder.path().join(STATE), data).expect("room");
    let sums = format!(
        r#"{{"format":{FORMAT_VERSION},"files":[{{"name":"{STATE}","bytes":{},"sha256":"{}"}}]}}"#,
        sum.bytes, sum.sha256
    );
    std::fs::write(folder.path().join(CHECKSUMS), sums).expect("room");
    let Ok(state) = verify(folder.path()) else { return };
    let _ = state.settings.check();
    let written = serde_json::to_vec(&state).expect("plain structures");
    assert_eq!(serde_json::from_slice::<State>(&written).expect("our own"), state);
});
