//! The tokenizer held against the `tokenizers` crate, and against what it promises.

use super::scan::SPLITS;
use super::*;
use crate::document::Lang;
use proptest::prelude::*;
use std::sync::LazyLock;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::tokenizer::pre_tokenizer::PreTokenizedString;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizer};

/// Text with what a corpus has: prose in both languages, numbers, code, rare characters, emoji, white space.
fn sample() -> Vec<String> {
    let prose = [
        "子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”",
        "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。",
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
        "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse…",
        "中华人民共和国的一切权力属于人民。人民行使国家权力的机关是全国人民代表大会和地方各级人民代表大会。",
        "悟道 WuDao 2.0 有 1750000000000 个参数，是 GPT-3 的 10 倍；训练用了 4.9TB 数据。",
        "fn main() {\n    let x = vec![1, 2, 3];\r\n\tprintln!(\"{}\", x.len() * 1024);\n}\n\n\n",
        "㐀㐁 abc 𠀀𠀁def 〇〇 々ー カタカナひらがな漢字 ｆｕｌｌ　ｗｉｄｔｈ １２３４",
        "naïve café — Ελληνικά русский עברית العربية हिन्दी ไทย 한국어 👩‍👩‍👧‍👦🏳️‍🌈👍🏽 ½ Ⅻ ٣٤٥",
        "  leading\t\ttabs \u{a0}nbsp\u{3000}ideographic   trailing   ",
        "don't I'll we've #hashtag @user $100 https://example.com/a?b=c&d=1#e a_b-c+d=e",
    ];
    let mut texts: Vec<String> = prose.map(str::to_owned).into();
    for number in 0..200 {
        texts.push(format!("{} {} {}", prose[number % 11], number * 7919, prose[(number * 5 + 3) % 11]));
    }
    texts
}

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::train(sample(), &TrainOptions::new(1500)).unwrap());

/// Characters that matter to the pre-tokenizer, and some of each other kind.
fn tricky() -> impl Strategy<Value = String> {
    let chars: Vec<char> = "abZé12３٣½Ⅻ中文龥龦㐀𠀀〇々のカー゛・゠゙ !\"#$_~。，“”—…€👍🏽\u{200d}\u{fe0f}\u{301}\r\n\t \u{a0}\u{3000}\u{85}\u{2028}\0\u{1b}\u{e000}\u{378}\u{10ffff}"
        .chars()
        .collect();
    let pick = prop_oneof![8 => proptest::sample::select(chars), 1 => any::<char>()];
    proptest::collection::vec(pick, 0..40).prop_map(|chars| chars.into_iter().collect())
}

fn regex_pieces(splits: &Sequence, text: &str) -> Vec<String> {
    let mut pieces = PreTokenizedString::from(text);
    splits.pre_tokenize(&mut pieces).unwrap();
    let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
}

fn regexes() -> Sequence {
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().into()
    };
    Sequence::new(SPLITS.map(split).into())
}

fn our_pieces(scanner: &Scanner, text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    scanner.split(text, |piece| pieces.push(piece.to_owned()));
    pieces
}

#[test]
fn scanner_cuts_as_the_regular_expressions_do() {
    let (scanner, regexes) = (Scanner::new(), regexes());
    for text in sample() {
        assert_eq!(our_pieces(&scanner, &text), regex_pieces(&regexes, &text), "{text:?}");
    }
    proptest!(ProptestConfig::with_cases(2000), |(text in tricky())| {
        prop_assert_eq!(our_pieces(&scanner, &text), regex_pieces(&regexes, &text));
    });
}

/// Every character in contexts that tell the classes apart.
#[test]
fn scanner_knows_every_character() {
    let (scanner, regexes) = (Scanner::new(), regexes());
    let mut text = String::new();
    // Beyond the planes that are in use, some will do.
    let unused = |c: &u32| *c >= 0x3_4000 && !(0xe_0000..0xe_0200).contains(c);
    for c in (0..=0x10_ffff).filter(|c| !unused(c) || c % 0x101 == 0).filter_map(char::from_u32) {
        for part in ["a", "。", " ", "\n"] {
            text.push(c);
            text.push_str(part);
        }
        if text.len() > 1 << 16 {
            assert_eq!(our_pieces(&scanner, &text), regex_pieces(&regexes, &text), "before U+{:04X}", c as u32);
            text.clear();
        }
    }
    assert_eq!(our_pieces(&scanner, &text), regex_pieces(&regexes, &text));
}

/// The crate's ids, by way of its own pre-tokenizer and merging.
fn crate_ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    foreign::encode(&tokenizer.inner, tokenizer.added.as_ref(), text, &mut ids).unwrap();
    ids
}

#[test]
fn ids_are_those_of_the_crate() {
    let tokenizer = &*TOKENIZER;
    assert!(tokenizer.is_fast());
    let encoder = std::cell::RefCell::new(tokenizer.encoder());
    let check = |text: &str| {
        let expected = crate_ids(tokenizer, text);
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        // Twice, so that the second comes from the cache.
        for _ in 0..2 {
            let mut ids = vec![7];
            encoder.borrow_mut().encode(text, &mut ids).unwrap();
            assert_eq!(ids[1..], expected, "{text:?}");
        }
    };
    for text in sample() {
        check(&text);
        // Long pre-tokens take another way through the merging.
        check(&text.replace([' ', '，', '。', '：'], ""));
        check(&format!("{}{}", "a".repeat(300), text.replace(|c: char| !c.is_alphabetic(), "").repeat(3)));
    }
    proptest!(ProptestConfig::with_cases(1000), |(text in tricky())| check(&text));
    proptest!(ProptestConfig::with_cases(200), |(text in "[abtheing人民国家]{0,400}")| check(&text));
}

#[test]
fn any_bytes_come_back() {
    let tokenizer = &*TOKENIZER;
    proptest!(ProptestConfig::with_cases(1000), |(parts in proptest::collection::vec(
        prop_oneof![tricky().prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 0..12)], 0..6))| {
        let bytes = parts.concat();
        let ids = tokenizer.encode_bytes(&bytes).unwrap();
        prop_assert_eq!(tokenizer.decode_bytes(&ids), bytes.clone());
        prop_assert_eq!(tokenizer.decode(&ids), String::from_utf8_lossy(&bytes));
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert_eq!(ids, tokenizer.encode(text).unwrap());
        }
    });
}

#[test]
fn stream_gives_whole_characters_and_all_of_the_text() {
    let tokenizer = &*TOKENIZER;
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in tricky())| {
        let ids = [tokenizer.encode_bytes(&bytes).unwrap(), tokenizer.encode(&text).unwrap()].concat();
        let mut stream = tokenizer.decode_stream(false);
        let mut decoded: String = ids.iter().map(|&id| stream.push(id)).collect();
        decoded.push_str(&stream.finish());
        prop_assert_eq!(decoded, tokenizer.decode(&ids));
    });
    // A character in pieces appears when its last byte has come, and special tokens can be left out.
    let mut stream = tokenizer.decode_stream(true);
    let bytes = "𠀀".bytes().map(|byte| tokenizer.encode_bytes(&[byte]).unwrap()[0]);
    let parts: Vec<String> = bytes.chain([0]).map(|id| stream.push(id)).collect();
    assert_eq!(parts, ["", "", "", "𠀀", ""]);
    assert_eq!(stream.finish(), "");
}

#[test]
fn training_gives_the_same_file_whatever_the_order_and_the_thread() {
    let train = |texts: Vec<String>| Tokenizer::train(texts, &TrainOptions::new(700)).unwrap();
    let expected = train(sample());
    let mut backwards = sample();
    backwards.reverse();
    assert_eq!(train(backwards).json(), expected.json());
    let threads: Vec<_> =
        (0..3).map(|_| std::thread::spawn(|| Tokenizer::train(sample(), &TrainOptions::new(700)))).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap().unwrap().hash(), expected.hash());
    }
}

#[test]
fn digits_stand_alone_and_scripts_are_not_mixed() {
    let tokenizer = &*TOKENIZER;
    let scanner = Scanner::new();
    for id in SPECIAL_TOKENS.len() as u32..tokenizer.vocab_size() as u32 {
        let Ok(text) = std::str::from_utf8(tokenizer.token_bytes(id).unwrap()) else { continue };
        if tokenizer.is_special(id) {
            continue;
        }
        let digits = text.chars().filter(|c| c.is_numeric()).count();
        assert!(digits == 0 || text.chars().count() == 1, "{text:?}");
        let han = text.chars().filter(|&c| scanner.is_han(c)).count();
        assert!(han == 0 || han == text.chars().count(), "{text:?}");
    }
    // So it makes no difference that digits are cut in threes when encoding and one by one when learning.
    proptest!(|(number in "[0-9]{1,30}")| {
        let single: Vec<u32> = number.chars().flat_map(|c| tokenizer.encode(&c.to_string()).unwrap()).collect();
        prop_assert_eq!(single.len(), number.len());
        prop_assert_eq!(tokenizer.encode(&number).unwrap(), single);
    });
}

#[test]
fn vocabulary_is_as_large_as_asked_for() {
    for size in [MIN_VOCAB_SIZE, 300, 5000] {
        let tokenizer = Tokenizer::train(sample(), &TrainOptions::new(size)).unwrap();
        assert_eq!(tokenizer.vocab_size(), size);
        assert!((0..size as u32).all(|id| tokenizer.token_bytes(id).is_some()));
        assert_eq!(tokenizer.token_bytes(size as u32), None);
        assert!(tokenizer.is_fast());
    }
    assert!(Tokenizer::train(sample(), &TrainOptions::new(MIN_VOCAB_SIZE - 1)).is_err());
    let empty = Tokenizer::train([""; 0], &TrainOptions::new(400)).unwrap();
    assert_eq!(empty.decode(&empty.encode("没有文本 no text").unwrap()), "没有文本 no text");
}

#[test]
fn special_tokens_are_made_only_when_meant() {
    let tokenizer = &*TOKENIZER;
    for (id, name) in SPECIAL_TOKENS.iter().enumerate() {
        assert_eq!(tokenizer.id(name), Some(id as u32));
        assert!(tokenizer.is_special(id as u32));
        assert_eq!(tokenizer.token_bytes(id as u32), Some(name.as_bytes()));
    }
    assert_eq!(tokenizer.end_of_text(), Some(0));
    let chat = "<|im_start|>user\n你好<|im_end|>\n<|endoftext|>";
    let plain = tokenizer.encode(chat).unwrap();
    assert!(plain.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&plain), chat);
    let meant = tokenizer.encode_with_special(chat).unwrap();
    assert_eq!(meant.iter().filter(|&&id| tokenizer.is_special(id)).collect::<Vec<_>>(), [&2, &3, &0]);
    assert_eq!(tokenizer.decode(&meant), chat);
    assert_eq!(meant[1..meant.len() - 3], tokenizer.encode("user\n你好").unwrap());
}

#[test]
fn saved_tokenizer_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    TOKENIZER.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.hash(), TOKENIZER.hash());
    assert_eq!(loaded.hash(), file::sha256_hex(&std::fs::read(dir.path().join("tokenizer.json")).unwrap()));
    assert_eq!(loaded.stamp().unwrap(), TOKENIZER.stamp().unwrap());
    assert_eq!(loaded.summary(), TOKENIZER.summary());
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join(TOKENIZER_CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(config["eos_token"], "<|endoftext|>");
    let alone = dir.path().join("other.json");
    loaded.save(&alone).unwrap();
    assert_eq!(std::fs::read(alone).unwrap(), TOKENIZER.json());
    let error = Tokenizer::load(&dir.path().join("missing.json")).unwrap_err();
    assert!(error.to_string().contains("missing.json"), "{error}");
}

#[test]
fn compare_counts_by_language() {
    let bytes_only = Tokenizer::train([""; 0], &TrainOptions::new(MIN_VOCAB_SIZE)).unwrap();
    let texts = [(Lang::Zh, "人民代表大会"), (Lang::En, "the age of wisdom")];
    let rows = compare(&[("trained", &TOKENIZER), ("bytes", &bytes_only)], texts).unwrap();
    assert_eq!(rows[1].languages[&Lang::Zh].tokens_per_han, Some(3.0));
    assert_eq!(rows[1].languages[&Lang::Zh].bytes_per_token, 1.0);
    assert_eq!(rows[1].languages[&Lang::En].tokens_per_han, None);
    assert!(rows[0].languages[&Lang::Zh].bytes_per_token > 6.0, "{rows:?}");
    assert!(rows[0].languages[&Lang::En].tokens < 8);
}

/// Small files of the other kinds, written for this test.
fn foreign_files() -> [(&'static str, String); 3] {
    let head = r#""version":"1.0","truncation":{"max_length":2,"stride":0,"strategy":"LongestFirst","direction":"Right"},"padding":null"#;
    let special = r#""added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},{"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}]"#;
    let bytes: Vec<String> = (0..256).map(|byte| format!("\"<0x{byte:02X}>\":{}", byte + 2)).collect();
    let llama = format!(
        r#"{{{head},{special},"normalizer":{{"type":"Sequence","normalizers":[{{"type":"Prepend","prepend":"▁"}},{{"type":"Replace","pattern":{{"String":" "}},"content":"▁"}}]}},"pre_tokenizer":null,"post_processor":null,"decoder":{{"type":"Sequence","decoders":[{{"type":"Replace","pattern":{{"String":"▁"}},"content":" "}},{{"type":"ByteFallback"}},{{"type":"Fuse"}},{{"type":"Strip","content":" ","start":1,"stop":0}}]}},"model":{{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{{"<unk>":0,"</s>":1,{},"▁":258,"a":259,"b":260,"▁a":261,"ab":262,"中":263}},"merges":["▁ a","a b"]}}}}"#,
        bytes.join(",")
    );
    let unigram = format!(
        r#"{{{head},{special},"normalizer":null,"pre_tokenizer":{{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}},"post_processor":null,"decoder":{{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}},"model":{{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["</s>",0.0],["▁a",-1.0],["b",-2.0],["中",-3.0],["▁",-4.0]],"byte_fallback":false}}}}"#
    );
    let wordpiece = format!(
        r###"{{{head},{special},"normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}},"pre_tokenizer":{{"type":"BertPreTokenizer"}},"post_processor":null,"decoder":{{"type":"WordPiece","prefix":"##","cleanup":true}},"model":{{"type":"WordPiece","unk_token":"<unk>","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{{"<unk>":0,"</s>":1,"a":2,"##b":3,"中":4}}}}}}"###
    );
    [("llama", llama), ("unigram", unigram), ("wordpiece", wordpiece)]
}

#[test]
fn other_kinds_of_tokenizers_work() {
    for (name, json) in foreign_files() {
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        assert!(!tokenizer.is_fast(), "{name}");
        assert_eq!(tokenizer.end_of_text(), Some(1), "{name}");
        let ids = tokenizer.encode("ab 中 ab").unwrap();
        assert!(ids.len() > 2, "{name} must not cut the text: {ids:?}");
        assert_eq!(tokenizer.decode(&ids), "ab 中 ab", "{name} {ids:?}");
        let mut stream = tokenizer.decode_stream(true);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, "ab 中 ab", "{name}");
        // `</s>` in the text is text, except that a Unigram model finds it among its own pieces.
        assert_eq!(tokenizer.encode("a</s>").unwrap().contains(&1), name == "unigram");
        assert!(tokenizer.encode_with_special("a</s>").unwrap().contains(&1), "{name}");
    }
    let [(_, llama), (_, unigram), _] = foreign_files();
    let llama = Tokenizer::from_bytes(llama.as_bytes()).unwrap();
    assert_eq!(llama.token_bytes(261), Some(" a".as_bytes()));
    let mut stream = llama.decode_stream(false);
    let bytes: Vec<u32> = "文".bytes().map(|byte| u32::from(byte) + 2).collect();
    assert_eq!(bytes.iter().map(|&id| stream.push(id)).collect::<Vec<_>>(), ["", "", "文"]);
    assert_eq!(llama.encode_bytes(b"a\xff").unwrap().last(), Some(&(0xff + 2)));
    let unigram = Tokenizer::from_bytes(unigram.as_bytes()).unwrap();
    assert!(matches!(unigram.encode_bytes(b"a\xff"), Err(TokenizerError::Encode { .. })));
}

#[test]
fn an_added_token_with_a_number_that_does_not_fit_is_in_the_vocabulary() {
    // Its number belongs to another token, and it is not in the model's vocabulary: the crate gives it the next one.
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1},"merges":[]}}"#;
    let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(2));
    assert_eq!(tokenizer.vocab_size(), 3);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(0));
    assert_eq!(tokenizer.token_bytes(2), Some("</s>".as_bytes()));
    assert_eq!(tokenizer.encode_with_special("a</s>").unwrap(), [0, 2]);

    // With a gap in the vocabulary the next number, the count of tokens, is taken.
    let gap = json.replace(r#""b":1"#, r#""b":2"#);
    let error = Tokenizer::from_bytes(gap.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("\"</s>\" would have the id 2, which is that of \"b\""), "{error}");
}

/// Tables by id stay in proportion to the file.
#[test]
fn an_id_far_beyond_the_number_of_tokens_is_refused() {
    let file =
        |id: u32| format!(r#"{{"model": {{"type": "WordLevel", "vocab": {{"a": 0, "b": {id}}}, "unk_token": "a"}}}}"#);
    assert_eq!(Tokenizer::from_bytes(file(50_000).as_bytes()).unwrap().vocab_size(), 50_001);
    let error = Tokenizer::from_bytes(file((1 << 24) - 1).as_bytes()).unwrap_err().to_string();
    assert!(error.contains("2 tokens") && error.contains("16777215"), "{error}");
}

#[test]
fn damaged_files_are_refused_without_panic() {
    let twice = br#"{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}"#;
    let error = Tokenizer::from_bytes(twice).unwrap_err().to_string();
    assert!(error.contains("the id 0 to \"a\" and to \"b\""), "{error}");
    for bytes in
        [b"".as_slice(), b"{", b"[]", b"{}", b"\xff\xfe", br#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#]
    {
        let error = Tokenizer::from_bytes(bytes).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
    let small = Tokenizer::train(sample(), &TrainOptions::new(280)).unwrap();
    let mut files: Vec<Vec<u8>> = foreign_files().map(|(_, json)| json.into_bytes()).into();
    files.push(small.json().to_vec());
    proptest!(ProptestConfig::with_cases(400), |(file in 0usize..4, edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<Option<prop::sample::Index>>())| {
        let mut bytes = files[file].clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            // Digits and quotes more often than others: they keep the file valid JSON with another meaning.
            bytes[at] = if byte < 128 { b"0129\"{}[],:-ae"[byte as usize % 14] } else { byte };
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_all(&bytes);
    });
}

/// Uses whatever can be loaded in every way; only panics count.
fn use_all(json: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else { return };
    let text = "ab 中 </s> 12\u{300}";
    let ids = tokenizer.encode_bytes(text.as_bytes()).unwrap_or_default();
    tokenizer.decode(&ids);
    tokenizer.decode(&[0, 1, 2, 258, 300, u32::MAX]);
    let mut stream = tokenizer.decode_stream(false);
    ids.iter().for_each(|&id| drop(stream.push(id)));
    stream.finish();
    let _ = tokenizer.encode_with_special(text);
    tokenizer.summary();
}

/// A file with parts of many kinds.
fn everything() -> String {
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": {"strategy": {"Fixed": 4}, "direction": "Left", "pad_to_multiple_of": 2, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true, "special": true},
            {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "StripAccents"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Lowercase"}, {"type": "Nmt"},
            {"type": "Prepend", "prepend": "a"}
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": "b"}, "behavior": "MergedWithPrevious", "invert": true},
            {"type": "Split", "pattern": {"Regex": "\\d+|(?=x)"}, "behavior": "Removed", "invert": false},
            {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "UnicodeScripts"}, {"type": "FixedLength", "length": 2}, {"type": "WhitespaceSplit"},
            {"type": "CharDelimiterSplit", "delimiter": "-"}, {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
        ]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<unk>", 0], "trim_offsets": true, "add_prefix_space": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true},
            {"type": "BPEDecoder", "suffix": "</w>"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
            {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}, {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
        ]},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "</s>": 1, "a": 2, "ab": 3}}
    });
    json.to_string()
}

/// All places in a JSON value.
fn pointers(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| {
                pointers(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found)
            });
        }
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| pointers(value, format!("{at}/{index}"), found));
        }
        _ => {}
    }
    found.push(at);
}

/// Each value in the files is replaced by each of some others.
#[test]
fn files_with_wrong_values_are_refused_without_panic() {
    let wrong = serde_json::json!([
        null,
        true,
        0,
        1,
        -1,
        4_294_967_295_u64,
        1e300,
        "",
        "a",
        "▁",
        "ByteLevel",
        [],
        ["a", "b"],
        {}
    ]);
    let small = Tokenizer::train(sample(), &TrainOptions::new(274)).unwrap();
    let mut files: Vec<String> = foreign_files().map(|(_, json)| json).into();
    files.push(String::from_utf8(small.json().to_vec()).unwrap());
    files.push(everything());
    for file in files {
        let mut json: serde_json::Value = serde_json::from_str(&file).unwrap();
        let mut places = Vec::new();
        pointers(&json, String::new(), &mut places);
        // Of the many entries of a vocabulary a few will do.
        let some = |(index, place): &(usize, String)| !place.contains("/vocab/") || index % 37 == 0;
        for (_, place) in places.into_iter().enumerate().filter(some) {
            for value in wrong.as_array().unwrap() {
                let before = std::mem::replace(json.pointer_mut(&place).unwrap(), value.clone());
                let bytes = serde_json::to_vec(&json).unwrap();
                use_all(&bytes);
                *json.pointer_mut(&place).unwrap() = before;
            }
        }
    }
}

#[test]
fn added_tokens_that_are_not_special_are_found_in_any_text() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER.json()).unwrap();
    let first = TOKENIZER.vocab_size();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (i, (content, single_word)) in
        [("<think>", false), ("  ", false), ("    ", false), ("made", true), ("悟道", false)].into_iter().enumerate()
    {
        added.push(serde_json::json!({
            "id": first + i, "content": content, "single_word": single_word, "lstrip": false, "rstrip": false,
            "normalized": i > 2, "special": false,
        }));
    }
    let tokenizer = Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap();
    assert!(tokenizer.is_fast());
    let mut encoder = tokenizer.encoder();
    let mut texts = sample();
    texts.extend(["<think>a</think>", "      x", "made remade, made", "学而悟道 ", "悟 道", ""].map(String::from));
    for text in &texts {
        let (expected, mut again) = (tokenizer.encode_with_special(text).unwrap(), vec![]);
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        encoder.encode(text, &mut again).unwrap();
        assert_eq!(again, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected), *text);
        // What text has none of them is as it was.
        if !["  ", "<think>", "made", "悟道"].iter().any(|token| text.contains(token)) {
            assert_eq!(TOKENIZER.encode(text).unwrap(), expected, "{text:?}");
        }
    }
    let id = |content: &str| tokenizer.id(content).unwrap();
    assert_eq!(tokenizer.encode("      x").unwrap()[..2], [id("    "), id("  ")]);
    // Special ones stay text.
    let mixed = tokenizer.encode("<think><|endoftext|>").unwrap();
    assert_eq!(mixed[0], id("<think>"));
    assert!(!mixed.contains(&id("<|endoftext|>")));
    assert_eq!(tokenizer.decode(&mixed), "<think><|endoftext|>");
}

#[test]
fn files_whose_added_tokens_lose_text_are_left_to_the_crate() {
    let with = |token: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER.json()).unwrap();
        json["added_tokens"].as_array_mut().unwrap().push(token);
        Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap()
    };
    let token = |content: &str, id: usize, lstrip: bool| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": false, "normalized": false,
            "special": false,
        })
    };
    let free = TOKENIZER.vocab_size();
    assert!(with(token("mask", free, false)).is_fast());
    let stripping = with(token("mask", free, true));
    assert!(!stripping.is_fast());
    assert_eq!(stripping.encode("  mask").unwrap(), [free as u32]);
    // Merging makes this one of " t".
    let (spelled, id) = ("Ġt", TOKENIZER.id("Ġt").unwrap());
    assert!(!with(token(spelled, id as usize, false)).is_fast());
}

#[test]
fn replacements_that_multiply_are_refused() {
    let with = |part: &str, pattern: serde_json::Value, content: &str, times: usize| {
        let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER.json()).unwrap();
        let replace = serde_json::json!({"type": "Replace", "pattern": pattern, "content": content});
        let list = if part == "normalizer" { "normalizers" } else { "decoders" };
        json[part] = serde_json::json!({"type": "Sequence", list: vec![replace; times]});
        Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).map(drop).map_err(|error| error.to_string())
    };
    let (text, regex) = (|s: &str| serde_json::json!({"String": s}), serde_json::json!({"Regex": "x*"}));
    for part in ["normalizer", "decoder"] {
        // Of a character as many characters again, five times over.
        for pattern in [text("a"), text(""), regex.clone()] {
            let error = with(part, pattern.clone(), &"a".repeat(100), 5).unwrap_err();
            assert!(error.contains(part) && error.contains("256"), "{error}");
            assert_eq!(with(part, pattern, &"a".repeat(100), 1), Ok(()));
        }
        assert_eq!(with(part, text(" "), "▁", 50), Ok(()));
        assert!(with(part, regex.clone(), "b", 64).is_err());
    }
}
