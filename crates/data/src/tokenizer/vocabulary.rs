//! Vocabularies as GGUF files carry them, as `tokenizer.json`.
//!
//! GGUF writes down tokens, merges or scores, and a name for how text is cut before merging (`tokenizer.ggml.pre`). The
//! patterns behind those names are those of the models' own `tokenizer.json`; a name that is not in the table is refused,
//! because a wrong pattern gives wrong ids without a sign. From here on such a tokenizer is like any other: it can be
//! saved beside a checkpoint, and transformers opens it.

mod inverse;

use super::scan::SPLITS;
use super::{Tokenizer, TokenizerError};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What kind of token an entry is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenType {
    /// Made of text by merging.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Never made of text: `</s>`, `<|im_end|>`.
    Control,
    /// Added by hand, found in text before anything else.
    UserDefined,
    /// Fills the table.
    Unused,
    /// One byte: `<0x0A>`.
    Byte,
}

impl TokenType {
    /// Its number in a file.
    pub fn number(self) -> i32 {
        self as i32 + 1
    }

    /// By its number in a file.
    pub fn from_number(n: i64) -> Option<TokenType> {
        use TokenType::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].get(usize::try_from(n).ok()?.checked_sub(1)?).copied()
    }
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Byte-level byte-pair encoding (`gpt2`): the name of its patterns, and the merges, `left right`, in order of rank.
    BytePair {
        /// `tokenizer.ggml.pre`.
        pre: String,
        /// `tokenizer.ggml.merges`.
        merges: Vec<String>,
    },
    /// Pieces joined by their scores, as SentencePiece's byte-pair mode does (`llama`).
    SentencePiece {
        /// One per token; the highest is joined first.
        scores: Vec<f32>,
        /// Whether a space goes before the text.
        add_space_prefix: bool,
    },
    /// Pieces joined by merges, `left right`, in order of rank, without cutting the text before (`gemma4`).
    Merges(Vec<String>),
    /// The longest pieces of each word, from its beginning on (`bert`). A token that begins a word begins with `▁` here, and
    /// the others have no mark.
    WordPiece {
        /// Whether letters are taken as small ones.
        lowercase: bool,
        /// Whether accents are left out.
        strip_accents: bool,
    },
}

/// A vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// How text becomes tokens.
    pub method: Method,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// What each is.
    pub types: Vec<TokenType>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
    /// Whether clients expect `bos` before a prompt.
    pub add_bos: bool,
    /// How a conversation is written (Jinja).
    pub chat_template: Option<String>,
}

/// GPT-2's pattern (Radford et al. 2019).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Letters of scripts with upper and lower case, as the model's own file lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// The names to write, of those with the same patterns the one that was first.
const NAMES: &[&str] = &[
    "gpt-2",
    "smollm",
    "falcon",
    "llama-bpe",
    "glm4",
    "qwen2",
    "qwen35",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
];

/// What writers of files put where a model has a row and its tokenizer no token.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// What `tokenizer.json` puts before a piece that does not begin a word.
const PART_OF_WORD: &str = "##";

/// A piece of a word as `tokenizer.json` spells it. Writers of GGUF leave names in brackets, such as `[MASK]`, as they are.
fn marked(piece: &str) -> String {
    match piece.strip_prefix('▁') {
        Some(beginning) => beginning.to_owned(),
        None if piece.starts_with('[') && piece.ends_with(']') => piece.to_owned(),
        None => format!("{PART_OF_WORD}{piece}"),
    }
}

/// The patterns of a name, applied one after the other, and whether a piece that is a token needs no merging.
fn patterns(pre: &str) -> Option<(&'static [&'static str], bool)> {
    Some(match pre {
        "gpt-2" | "mpt" | "olmo" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" => (&[GPT2], false),
        "command-r" | "starcoder" | "refact" | "smollm" | "codeshell" | "exaone" => (&[r"\p{N}", GPT2], false),
        "falcon" => (&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], false),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "smaug-bpe" | "pixtral" => (&[LLAMA3], true),
        "glm4" | "chatglm-bpe" => (&[LLAMA3], false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" => (&[QWEN2], false),
        "qwen35" => (&[QWEN35], false),
        "deepseek-llm" => (
            &["[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"],
            false,
        ),
        "deepseek-coder" => (&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], false),
        // The same as here.
        "deepseek-v3" => (&SPLITS, false),
        _ => return None,
    })
}

impl Vocabulary {
    /// The tokenizer. `name` is for messages: the file that the vocabulary came from.
    pub fn tokenizer(&self, name: &str) -> Result<Tokenizer, TokenizerError> {
        let json = self.json().map_err(|reason| TokenizerError::Malformed { name: name.into(), reason })?;
        // The hash is of these bytes: they must not depend on the order in which they were put together.
        let bytes = |mut value: Value| {
            value.sort_all_objects();
            serde_json::to_vec(&value).expect("JSON of strings and numbers")
        };
        Tokenizer::parse(bytes(json), Some(bytes(self.config())), name)
    }

    fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    fn json(&self) -> Result<Value, String> {
        if self.types.len() != self.tokens.len() {
            return Err(format!("{} tokens, but {} token types", self.tokens.len(), self.types.len()));
        }
        let word_piece = matches!(self.method, Method::WordPiece { .. });
        let mut vocab = Map::new();
        let fills = |id, token: &String| self.types[id] == TokenType::Unused && *token == filler(id);
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, token)| !fills(*id, token)) {
            let token = if word_piece { marked(token) } else { token.clone() };
            if let Some(other) = vocab.insert(token.clone(), json!(id)) {
                return Err(format!("the token {token:?} has two ids, {other} and {id}"));
            }
        }
        let added = |(id, kind): (usize, &TokenType)| {
            let special = match kind {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        let added: Vec<Value> = self.types.iter().enumerate().filter_map(added).collect();
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let (spaces_marked, mut spaces_shown) =
            (replace(" ", "▁"), vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]);
        // The model's own vocabulary is put in at the end.
        let byte_pairs = |merges: Value, ignore_merges: bool, fallback: bool| {
            json!({
                "type": "BPE", "dropout": null, "unk_token": if fallback { self.token(self.unknown) } else { None },
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": fallback,
                "byte_fallback": fallback, "ignore_merges": ignore_merges, "merges": merges,
            })
        };
        let (normalizer, pre_tokenizer, decoder, mut model) = match &self.method {
            Method::BytePair { pre, merges } => {
                let (patterns, ignore_merges) = patterns(pre).ok_or_else(|| {
                    format!("its way of cutting text, {pre:?} (tokenizer.ggml.pre), is not supported")
                })?;
                let split = |p: &&str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
                let mut steps: Vec<Value> = patterns.iter().map(split).collect();
                let level =
                    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
                steps.push(level.clone());
                let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": steps});
                (Value::Null, pre_tokenizer, level, byte_pairs(json!(merges), ignore_merges, false))
            }
            Method::SentencePiece { scores, add_space_prefix } => {
                if scores.len() != self.tokens.len() {
                    return Err(format!("{} tokens, but {} scores", self.tokens.len(), scores.len()));
                }
                let mut normalizers = vec![spaces_marked];
                if *add_space_prefix {
                    normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
                    spaces_shown.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
                let decoder = json!({"type": "Sequence", "decoders": spaces_shown});
                (normalizer, Value::Null, decoder, byte_pairs(json!(self.joins(scores)), false, true))
            }
            Method::Merges(merges) => {
                let decoder = json!({"type": "Sequence", "decoders": spaces_shown});
                (spaces_marked, Value::Null, decoder, byte_pairs(json!(merges), false, true))
            }
            Method::WordPiece { lowercase, strip_accents } => {
                let unknown = self.token(self.unknown).ok_or("its words need a token for what is unknown")?;
                let normalizer = json!({
                    "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": strip_accents, "lowercase": lowercase,
                });
                let decoder = json!({"type": "WordPiece", "prefix": PART_OF_WORD, "cleanup": true});
                let model = json!({
                    "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": PART_OF_WORD,
                    "max_input_chars_per_word": 100,
                });
                (normalizer, json!({"type": "BertPreTokenizer"}), decoder, model)
            }
        };
        model["vocab"] = Value::Object(vocab);
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": self.post_processor(),
            "decoder": decoder, "model": model,
        }))
    }

    /// The merges behind the scores: every way to cut a piece into two pieces, the best piece first.
    fn joins(&self, scores: &[f32]) -> Vec<[&str; 2]> {
        let ids: HashMap<&str, usize> = self.tokens.iter().enumerate().map(|(id, t)| (&t[..], id)).collect();
        let mut joins = vec![];
        for (id, token) in self.tokens.iter().enumerate().filter(|&(id, _)| self.types[id] == TokenType::Normal) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    joins.push((scores[id], l, r, [left, right]));
                }
            }
        }
        joins.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        joins.into_iter().map(|j| j.3).collect()
    }

    fn post_processor(&self) -> Value {
        let Some((id, token)) = self.bos.zip(self.token(self.bos)).filter(|_| self.add_bos) else { return Value::Null };
        let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
        let special_b = json!({"SpecialToken": {"id": token, "type_id": 1}});
        json!({
            "type": "TemplateProcessing",
            "single": [special, text("A", 0)],
            "pair": [special, text("A", 0), special_b, text("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        })
    }

    fn config(&self) -> Value {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        let special =
            [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unknown), ("pad_token", self.pad)];
        for (key, id) in special {
            if let Some(token) = self.token(id) {
                config.insert(key.into(), json!(token));
            }
        }
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), json!(template));
        }
        Value::Object(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(method: Method, tokens: &[&str], types: &[i64]) -> Vocabulary {
        Vocabulary {
            method,
            tokens: tokens.iter().map(|t| t.to_string()).collect(),
            types: types.iter().map(|&n| TokenType::from_number(n).unwrap()).collect(),
            bos: None,
            eos: Some(0),
            unknown: None,
            pad: None,
            add_bos: false,
            chat_template: Some("{{ messages }}".into()),
        }
    }

    #[test]
    fn byte_pairs_are_merged_within_the_pieces_of_the_pattern() {
        let bytes = |merges: &[&str], pre: &str| Method::BytePair {
            pre: pre.into(),
            merges: merges.iter().map(|m| m.to_string()).collect(),
        };
        let tokens = ["</s>", "a", "b", "Ġ", "ab", "Ġa", "1", "11", "<hi>"];
        let v = vocabulary(bytes(&["a b", "Ġ a", "1 1"], "gpt-2"), &tokens, &[3, 1, 1, 1, 1, 1, 1, 1, 4]);
        let t = v.tokenizer("t").unwrap();
        // "a b" comes before "Ġ a".
        assert_eq!(t.encode("ab ab a11").unwrap(), [4, 3, 4, 5, 7]);
        // Added by hand, and not special.
        for encoded in [t.encode("a<hi>b"), t.encode_with_special("a<hi>b"), t.encode_bytes(b"a<hi>b")] {
            assert_eq!(encoded.unwrap(), [1, 8, 2]);
        }
        assert!(!t.encode("a</s>").unwrap().contains(&0));
        assert_eq!(t.decode(&[4, 5, 2]), "ab ab");
        assert_eq!(t.end_of_text(), Some(0));
        let v = vocabulary(bytes(&["a b", "Ġ a", "1 1"], "qwen2"), &tokens, &[3, 1, 1, 1, 1, 1, 1, 1, 4]);
        assert_eq!(v.tokenizer("t").unwrap().encode("ab11").unwrap(), [4, 6, 6]);
        let v = vocabulary(bytes(&[], "unheard-of"), &tokens, &[3, 1, 1, 1, 1, 1, 1, 1, 4]);
        let error = v.tokenizer("file.gguf").unwrap_err().to_string();
        assert!(error.contains("file.gguf") && error.contains("unheard-of"), "{error}");
    }

    #[test]
    fn pieces_are_joined_by_score_and_bytes_stand_in() {
        let mut tokens = vec!["<unk>".to_owned(), "</s>".into()];
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(["▁", "a", "b", "▁a", "ab"].map(String::from));
        let types: Vec<i64> = [2, 3].into_iter().chain([6; 256]).chain([1; 5]).collect();
        let scores: Vec<f32> = [0.0; 261].into_iter().chain([-1.0, -2.0]).collect();
        let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let of = |add_space_prefix, scores: &[f32]| {
            let method = Method::SentencePiece { scores: scores.to_vec(), add_space_prefix };
            vocabulary(method, &names, &types).tokenizer("t").unwrap()
        };
        assert_eq!(of(true, &scores).encode("ab").unwrap(), [261, 260]);
        assert_eq!(of(false, &scores).encode("ab").unwrap(), [262]);
        let other: Vec<f32> = [0.0; 261].into_iter().chain([-2.0, -1.0]).collect();
        assert_eq!(of(true, &other).encode("ab").unwrap(), [258, 262]);
        let t = of(true, &scores);
        let ids = t.encode("a中").unwrap();
        assert_eq!(ids, [261, 2 + 0xe4, 2 + 0xb8, 2 + 0xad]);
        assert_eq!(t.decode(&ids), "a中");
    }

    #[test]
    fn merges_join_pieces_of_the_whole_text() {
        let mut tokens = vec!["<unk>".to_owned(), "</s>".into()];
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(["▁", "a", "b", "▁a", "b▁a", "\n", "\n\n"].map(String::from));
        let types: Vec<i64> = [2, 3].into_iter().chain([6; 256]).chain([1; 7]).collect();
        let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let method = Method::Merges(["▁ a", "b ▁a", "\n \n"].map(String::from).to_vec());
        let t = vocabulary(method, &names, &types).tokenizer("t").unwrap();
        for (text, ids) in [("ab a", &[259, 262][..]), ("b\n\n\n a", &[260, 264, 263, 261]), ("é", &[0xc5, 0xab])] {
            assert_eq!(t.encode(text).unwrap(), ids, "{text:?}");
            assert_eq!(t.decode(ids), text);
        }
    }

    #[test]
    fn words_are_cut_into_their_longest_pieces() {
        let tokens = ["[PAD]", "[UNK]", "[unused0]", "▁ab", "▁a", "b", "c", "▁中", "▁é"];
        let types = [3, 3, 1, 1, 1, 1, 1, 1, 1];
        let of = |lowercase| {
            let method = Method::WordPiece { lowercase, strip_accents: lowercase };
            Vocabulary { unknown: Some(1), ..vocabulary(method, &tokens, &types) }.tokenizer("t").unwrap()
        };
        let t = of(true);
        for (text, ids) in [("abc Ac", &[3, 6, 4, 6][..]), ("a中b\ta", &[4, 7, 1, 4]), ("Áb á", &[3, 4]), ("abd", &[1])]
        {
            assert_eq!(t.encode(text).unwrap(), ids, "{text:?}");
        }
        assert_eq!(t.decode(&[3, 6, 4]), "abc a");
        assert_eq!(of(false).encode("Ab é").unwrap(), [1, 8]);
        let method = Method::WordPiece { lowercase: true, strip_accents: true };
        let error = vocabulary(method, &tokens, &types).tokenizer("t").unwrap_err().to_string();
        assert!(error.contains("unknown"), "{error}");
    }

    #[test]
    fn lists_that_do_not_fit_together_are_refused() {
        let method = || Method::SentencePiece { scores: vec![0.0; 2], add_space_prefix: true };
        for (tokens, types) in [(&["a", "a"][..], &[1, 1][..]), (&["a"], &[1]), (&["a", "b"], &[1])] {
            assert!(vocabulary(method(), tokens, types).tokenizer("t").is_err());
        }
        assert!(TokenType::from_number(0).is_none() && TokenType::from_number(7).is_none());
    }
}
