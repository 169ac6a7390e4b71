//! Manifests: one that is accepted comes back the same from what it is written as.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use wudao_data::manifest::{Manifest, Split};

fuzz_target!(|data: &[u8]| {
    let path = Path::new("manifest.json");
    let Ok(manifest) = Manifest::parse(data, path) else { return };
    let bytes = manifest.to_bytes();
    assert_eq!(Manifest::parse(&bytes, path).expect("our own"), manifest);
    let documents: u64 = Split::ALL.into_iter().map(|split| manifest.counts(split).documents).sum();
    assert_eq!(documents, manifest.shards.iter().map(|shard| shard.documents).sum::<u64>());
});
