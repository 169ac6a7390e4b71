//! Parquet files. The decoder beneath may panic on a damaged one; the reader must make a problem of it.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wudao_data::read::{Context, ReadOptions, parquet};
use wudao_fuzz::{Gather, catching};

fuzz_target!(|data: &[u8]| {
    let options = ReadOptions::default();
    let mut gather = Gather::new(&options);
    let mut context = Context::new("memory", &options, &mut gather);
    catching(|| parquet::read(Bytes::copy_from_slice(data), &mut context)).expect("no disk, no strictness");
    assert_eq!(context.totals().documents as usize, gather.documents.len());
});
