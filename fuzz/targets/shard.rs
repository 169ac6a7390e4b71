//! Shard files: of one that is accepted, every document can be read, and they make up the whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use wudao_data::shard::Shard;

fuzz_target!(|data: &[u8]| {
    let Ok(shard) = Shard::parse(data, Path::new("train-00000.bin")) else { return };
    let documents: Vec<_> = (0..shard.documents()).map(|i| shard.doc(i)).collect();
    assert_eq!(documents.iter().map(|d| d.bytes).sum::<u64>(), shard.bytes());
    assert_eq!(documents.iter().map(|d| d.source).max().unwrap_or(0), shard.max_source());
    let ids: Vec<u32> = documents.iter().flat_map(|d| d.tokens.to_vec()).collect();
    assert_eq!(ids.len(), shard.tokens());
    assert_eq!(shard.check_ids().is_ok(), ids.iter().all(|&id| id < shard.vocab_size()));
});
