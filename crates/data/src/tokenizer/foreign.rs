//! `tokenizer.json` as others write it: what we need to know of it, and the `tokenizers` crate behind it.
//!
//! The crate trusts its input in places and panics on some malformed files, be it on loading or in use. The file is
//! looked through here first, and a panic of the crate that comes through nevertheless is turned into an error.

use super::TokenizerError;
use super::pieces::{Pieces, byte_to_char, char_to_byte};
use super::scan::SPLITS;
use aho_corasick::AhoCorasick;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::tokenizer::normalizer::NormalizedString;
use tokenizers::tokenizer::pre_tokenizer::PreTokenizedString;
use tokenizers::{AddedVocabulary, Model, Normalizer, OffsetType, PreTokenizer};

/// Ids from here on are taken for damage.
const MAX_ID: u64 = 1 << 24;
/// Ids may have gaps, but tables by id must stay in proportion to the file: so many ids may go without a token, and as
/// many again as there are tokens.
const MAX_GAPS: usize = 1 << 16;
/// Characters that replacements, one after the other, may make of one: each multiplies, so a short file could ask for any number.
const MAX_GROWTH: usize = 256;

/// Id of each byte, and the merges (left, right, merged) in order of rank.
pub(super) type FastParts = ([u32; 256], Vec<(u32, u32, u32)>);

/// A parsed `tokenizer.json`.
pub(super) struct Spec {
    json: Value,
    vocab: HashMap<String, u32>,
    size: usize,
}

impl Spec {
    pub fn parse(bytes: &[u8]) -> Result<Spec, String> {
        let json: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        for part in ["normalizer", "pre_tokenizer", "decoder"] {
            if growth(&json[part]) > MAX_GROWTH {
                return Err(format!("its {part} replaces a character by more than {MAX_GROWTH}"));
            }
        }
        let model = json.get("model").filter(|model| model.is_object()).ok_or("it has no \"model\"")?;
        let id_of = |value: &Value| {
            value.as_u64().filter(|&id| id < MAX_ID).map(|id| id as u32).ok_or(format!("{value} is not a token id"))
        };
        let mut vocab = HashMap::new();
        match model.get("vocab") {
            Some(Value::Object(map)) => {
                // Of two tokens with one id, one could be encoded and not decoded.
                let mut tokens = HashMap::new();
                for (token, id) in map {
                    let id = id_of(id)?;
                    if let Some(other) = tokens.insert(id, token) {
                        return Err(format!("its vocabulary gives the id {id} to {other:?} and to {token:?}"));
                    }
                    vocab.insert(token.clone(), id);
                }
            }
            Some(Value::Array(list)) => {
                for (id, entry) in list.iter().enumerate() {
                    let token = entry.get(0).and_then(Value::as_str).ok_or(format!("entry {id} of its vocabulary"))?;
                    vocab.insert(token.to_owned(), id as u32);
                }
            }
            _ => return Err("its model has no \"vocab\"".to_owned()),
        }
        let mut size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let added = json.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for token in added {
            size = size.max(id_of(&token["id"])? as usize + 1);
        }
        if size == 0 {
            return Err("its vocabulary is empty".to_owned());
        }
        let tokens = vocab.len() + added.len();
        if size > 2 * tokens + MAX_GAPS {
            return Err(format!("it has {tokens} tokens and the id {}, far beyond what they need", size - 1));
        }
        Ok(Spec { json, vocab, size })
    }

    fn model(&self) -> &Value {
        &self.json["model"]
    }

    /// Hands the file to the crate.
    pub fn load(&self, bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))?;
        // A file may ask for truncated or padded output; documents must come whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        Ok(inner)
    }

    fn is_byte_level(&self) -> bool {
        let decoder = &self.json["decoder"];
        decoder["type"] == "ByteLevel"
            || (decoder["type"] == "Sequence"
                && decoder["decoders"].as_array().is_some_and(|all| all.len() == 1 && all[0]["type"] == "ByteLevel"))
    }

    /// The bytes of every id.
    pub fn pieces(&self, inner: &tokenizers::Tokenizer) -> Result<Pieces, String> {
        let byte_level = self.is_byte_level();
        let table = char_to_byte();
        let added = inner.get_added_tokens_decoder();
        // The crate numbers an added token itself where the file's number does not fit, and so do all who use it.
        let size = added.keys().map(|&id| id as usize + 1).fold(self.size, usize::max);
        let mut pieces = vec![None; size];
        let mut single = Box::new([None; 256]);
        for (token, &id) in &self.vocab {
            let piece = if byte_level { unmapped(&table, token) } else { byte_fallback(token).map(|byte| vec![byte]) };
            if let Some(&[byte]) = piece.as_deref() {
                single[usize::from(byte)] = Some(id);
            }
            pieces[id as usize] = Some(piece.unwrap_or_else(|| token.replace('▁', " ").into_bytes()));
        }
        let mut special = BTreeSet::new();
        let tokens: HashMap<u32, &String> = self.vocab.iter().map(|(token, &id)| (id, token)).collect();
        for (id, token) in added {
            // It counts on from the number of tokens, which in a vocabulary with gaps is another token's id.
            if let Some(other) = tokens.get(&id).filter(|other| ***other != token.content) {
                return Err(format!(
                    "the added token {:?} would have the id {id}, which is that of {other:?}",
                    token.content
                ));
            }
            if let Some(piece) = pieces.get_mut(id as usize) {
                *piece = Some(token.content.into_bytes());
                if token.special {
                    special.insert(id);
                }
            }
        }
        Ok(Pieces::new(byte_level, &pieces, special, single))
    }

    /// What our own encoder needs, if it gives the ids that this file asks for, and they give the text back.
    pub fn fast(&self, inner: &tokenizers::Tokenizer) -> Option<FastParts> {
        // A token that takes the spaces beside it loses them; one that is also made by merging, of other bytes, is both.
        let table = char_to_byte();
        let plainly_added = inner.get_added_tokens_decoder().values().all(|token| {
            let other = unmapped(&table, &token.content).is_some_and(|bytes| bytes != token.content.as_bytes());
            !(self.vocab.contains_key(&token.content) && other) && (token.special || !(token.lstrip || token.rstrip))
        });
        let model = self.model();
        let unset = |key: &str| matches!(&model[key], Value::Null | Value::Bool(false)) || model[key] == "";
        let plain = model["type"] == "BPE"
            && ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"]
                .into_iter()
                .all(unset);
        let normalizer = &self.json["normalizer"];
        let unnormalized = normalizer.is_null()
            || (normalizer["type"] == "Sequence" && normalizer["normalizers"].as_array().is_some_and(Vec::is_empty));
        if !plainly_added || !plain || !unnormalized || !is_our_pre_tokenizer(&self.json["pre_tokenizer"]) {
            return None;
        }
        let mut bytes = [0; 256];
        for (byte, id) in (0..=255).zip(&mut bytes) {
            *id = *self.vocab.get(byte_to_char(byte).encode_utf8(&mut [0; 4]) as &str)?;
        }
        let merges = model["merges"].as_array()?;
        let merges = merges.iter().map(|merge| {
            let (left, right) = match merge {
                Value::String(pair) => pair.split_once(' ')?,
                pair => (pair.get(0)?.as_str()?, pair.get(1)?.as_str()?),
            };
            let id = |token: &str| self.vocab.get(token).copied();
            Some((id(left)?, id(right)?, id(&format!("{left}{right}"))?))
        });
        Some((bytes, merges.collect::<Option<_>>()?))
    }
}

/// Characters that the replacements in a part of the file may make of one.
fn growth(part: &Value) -> usize {
    let children = match part {
        Value::Array(list) => list.iter().map(growth).fold(1, usize::saturating_mul),
        Value::Object(map) => map.values().map(growth).fold(1, usize::saturating_mul),
        _ => return 1,
    };
    if part["type"] != "Replace" {
        return children;
    }
    // A pattern that matches nothing at all is found between any two.
    let beside = usize::from(part["pattern"]["String"].as_str().is_none_or(str::is_empty));
    let own = part["content"].as_str().map_or(0, |content| content.chars().count()) + beside;
    children.saturating_mul(own.max(1))
}

/// The bytes that a token of a byte-level vocabulary spells.
fn unmapped(table: &[Option<u8>], token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| table.get(c as usize).copied().flatten()).collect()
}

/// The byte of a token such as `<0xE4>`.
pub(super) fn byte_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn is_our_pre_tokenizer(json: &Value) -> bool {
    let Some(steps) = json["pretokenizers"].as_array().filter(|_| json["type"] == "Sequence") else { return false };
    let [splits @ .., bytes] = steps.as_slice() else { return false };
    splits.len() == SPLITS.len()
        && splits.iter().zip(SPLITS).all(|(step, pattern)| {
            step["type"] == "Split"
                && step["behavior"] == "Isolated"
                && step["invert"] == false
                && step["pattern"]["Regex"] == pattern
        })
        && bytes["type"] == "ByteLevel"
        && bytes["add_prefix_space"] == false
        && bytes["use_regex"] == false
}

/// The `eos_token` of a `tokenizer_config.json`.
pub(super) fn eos_token(config: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let token = &config["eos_token"];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// Tokens that a file adds to its model and that are not special.
#[derive(Debug)]
pub(super) struct Added {
    vocabulary: AddedVocabulary,
    texts: AhoCorasick,
}

impl Added {
    /// `None` if there are none.
    pub fn of(inner: &tokenizers::Tokenizer) -> Result<Option<Added>, String> {
        let mut vocabulary = inner.get_added_vocabulary().clone();
        let plain = vocabulary.get_added_tokens_decoder().values().filter(|token| !token.special);
        let texts: Vec<&str> = plain.map(|token| &*token.content).collect();
        if texts.is_empty() {
            return Ok(None);
        }
        let texts = AhoCorasick::new(texts).map_err(|error| error.to_string())?;
        // The special ones are text then.
        vocabulary.set_encode_special_tokens(true);
        Ok(Some(Added { vocabulary, texts }))
    }

    /// Whether a text has any of them as they are spelled in the file.
    pub fn are_in(&self, text: &str) -> bool {
        self.texts.is_match(text)
    }
}

/// Appends the ids of plain text. This is what the crate's `encode` does, less the search for special tokens.
pub(super) fn encode(
    inner: &tokenizers::Tokenizer,
    added: Option<&Added>,
    text: &str,
    ids: &mut Vec<u32>,
) -> Result<(), TokenizerError> {
    let run = || -> tokenizers::Result<_> {
        let mut text = match added {
            Some(added) => added.vocabulary.extract_and_normalize(inner.get_normalizer(), text),
            None => {
                let mut text = NormalizedString::from(text);
                if let Some(normalizer) = inner.get_normalizer() {
                    normalizer.normalize(&mut text)?;
                }
                PreTokenizedString::from(text)
            }
        };
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut text)?;
        }
        text.tokenize(|piece| inner.get_model().tokenize(piece.get()))?;
        text.into_encoding(None, 0, OffsetType::None)
    };
    let encoding = guarded(run).map_err(|reason| TokenizerError::Encode { reason })?;
    ids.extend_from_slice(encoding.get_ids());
    Ok(())
}

pub(super) fn encode_with_special(inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let encoding = guarded(|| inner.encode_fast(text, false)).map_err(|reason| TokenizerError::Encode { reason })?;
    Ok(encoding.get_ids().to_vec())
}

/// The text of ids. Decoding fails only on tokens that a decoder cannot take; all are then decoded one by one.
pub(super) fn decode(inner: &tokenizers::Tokenizer, ids: &[u32]) -> String {
    let decode = |ids: &[u32]| guarded(|| inner.decode(ids, false));
    decode(ids).unwrap_or_else(|_| ids.iter().filter_map(|&id| decode(&[id]).ok()).collect())
}

/// Calls the crate; an error or a panic of it becomes a text that says what happened.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing of ours is changed by the calls, and the crate's caches are only ever added to.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it; the file is probably damaged".to_owned()),
    }
}
