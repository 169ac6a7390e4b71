//! Any bytes through our own encoder and back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use wudao_data::tokenizer::{Tokenizer, TrainOptions};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let texts = ["the quick brown fox, the lazy dog; 1234 it's", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"];
    Tokenizer::train(texts.iter().cycle().take(20), &TrainOptions::new(400)).expect("a tokenizer")
});

fuzz_target!(|data: &[u8]| {
    let ids = TOKENIZER.encode_bytes(data).expect("a token for every byte");
    assert!(ids.iter().all(|&id| (id as usize) < TOKENIZER.vocab_size() && !TOKENIZER.is_special(id)));
    assert_eq!(TOKENIZER.decode_bytes(&ids), data);
    let mut stream = TOKENIZER.decode_stream(true);
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text += &stream.finish();
    assert_eq!(text, String::from_utf8_lossy(data));
    if let Ok(text) = str::from_utf8(data) {
        assert_eq!(TOKENIZER.encode(text).expect("text"), ids);
    }
});
