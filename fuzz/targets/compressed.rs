//! gzip, Zstandard and xz, whole or damaged, around JSON Lines. A byte chooses which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::Cursor;
use wudao_data::read::{Compression, Context, Format, read_stream};
use wudao_fuzz::{Gather, options};

fuzz_target!(|data: &[u8]| {
    let &[choice, ref file @ ..] = data else { return };
    let compression = [Compression::Gzip, Compression::Zstd, Compression::Xz][usize::from(choice % 3)];
    let options = options(0);
    let mut gather = Gather::new(&options);
    let mut context = Context::new("memory", &options, &mut gather);
    let stream = Box::new(Cursor::new(file.to_vec()));
    read_stream(stream, compression, Format::Jsonl, &mut context).expect("no disk, no strictness");
    assert_eq!(context.totals().documents as usize, gather.documents.len());
});
