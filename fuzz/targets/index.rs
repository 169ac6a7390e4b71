//! `model.safetensors.index.json` beside two good shards: nothing but they is opened.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_model::weights;

/// A file of one F32 tensor of one element.
fn shard(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat()
}

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("room");
    write("a", &shard("x"));
    write("b", &shard("y"));
    write("model.safetensors.index.json", data);
    if let Ok(tensors) = weights::tensors(folder.path()) {
        assert!(tensors.iter().all(|tensor| tensor.file == "a" || tensor.file == "b"));
    }
});
