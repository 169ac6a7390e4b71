//! Text, JSON, JSON Lines and CSV of any encoding. Two bytes choose format and options, the rest is the file. A file that
//! comes in small pieces, as from a pipe, must give the same as one that comes whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Read, Result};
use wudao_data::read::{Compression, Context, Format, read_stream};
use wudao_fuzz::{Gather, options};

struct Pieces(Cursor<Vec<u8>>, usize);

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

fn read(file: &[u8], piece: usize, format: Format, choice: u8) -> Gather {
    let options = options(choice);
    let mut gather = Gather::new(&options);
    let mut context = Context::new("memory", &options, &mut gather);
    let stream = Box::new(Pieces(Cursor::new(file.to_vec()), piece));
    read_stream(stream, Compression::None, format, &mut context).expect("no disk, no strictness");
    let totals = context.totals();
    assert!(totals.bytes <= file.len() as u64);
    assert_eq!(totals.documents as usize, gather.documents.len());
    assert_eq!(totals.text_bytes as usize, gather.documents.iter().map(String::len).sum::<usize>());
    gather
}

fuzz_target!(|data: &[u8]| {
    let &[format, choice, ref file @ ..] = data else { return };
    let format = [Format::Text, Format::Json, Format::Jsonl, Format::Csv][usize::from(format % 4)];
    let whole = read(file, usize::MAX, format, choice);
    assert_eq!(whole, read(file, 1 + usize::from(choice % 7), format, choice));
});
