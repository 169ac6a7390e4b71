//! `tokenizer.json`: of one that is accepted, every use gives an answer or an error. The `tokenizers` crate may panic on
//! a malformed file; that must come out as an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_data::tokenizer::Tokenizer;
use wudao_fuzz::catching;

const TEXT: &str = "Hello, world!  3.14\n你好，世界 😀 <|endoftext|>\u{0}";

fn use_all(json: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else { return };
    let mut ids = vec![];
    for encoded in
        [tokenizer.encode(TEXT), tokenizer.encode_with_special(TEXT), tokenizer.encode_bytes(b"\xff\xe4\xbd ok")]
    {
        ids.extend(encoded.unwrap_or_default());
    }
    if let Ok(encoded) = tokenizer.encode(TEXT) {
        let mut again = vec![];
        tokenizer.encoder().encode(TEXT, &mut again).expect("encoded before");
        if tokenizer.is_fast() {
            assert_eq!(encoded, again);
            assert_eq!(tokenizer.decode(&encoded), TEXT);
        }
    }
    ids.extend([0, 1, tokenizer.vocab_size() as u32, u32::MAX]);
    tokenizer.decode(&ids);
    let mut stream = tokenizer.decode_stream(true);
    ids.iter().for_each(|&id| drop(stream.push(id)));
    stream.finish();
    let end = tokenizer.end_of_text();
    assert!(end.is_none_or(|id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.summary();
}

fuzz_target!(|data: &[u8]| catching(|| use_all(data)));
