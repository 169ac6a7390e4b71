//! From a tokenizer back to a vocabulary, for writing GGUF files.
//!
//! A vocabulary says less than a `tokenizer.json`: the pattern that cuts text must be one that has a name there, and merges
//! of a SentencePiece-style file must be those of scores. What cannot be said is refused with the reason, because a file
//! that says something else gives wrong ids without a sign. Unicode normalisation (NFC) alone is dropped silently: nobody
//! who reads these files does it.

use super::{GPT2, Method, NAMES, TokenType, Vocabulary, filler, patterns};
use crate::tokenizer::{Tokenizer, TokenizerError};
use serde_json::Value;
use std::collections::HashMap;

impl Vocabulary {
    /// The vocabulary of a tokenizer, filled up to `size` tokens: as many as a model has rows.
    pub fn of(tokenizer: &Tokenizer, size: usize) -> Result<Vocabulary, TokenizerError> {
        vocabulary(tokenizer, size).map_err(|reason| TokenizerError::Vocabulary { reason })
    }
}

fn vocabulary(tokenizer: &Tokenizer, size: usize) -> Result<Vocabulary, String> {
    if size < tokenizer.vocab_size() {
        return Err(format!("it has {} tokens, and the model rows for {size}", tokenizer.vocab_size()));
    }
    let json: Value = serde_json::from_slice(tokenizer.json()).map_err(|e| e.to_string())?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(format!("its model is {}, not BPE", model["type"]));
    }
    let fallback = model["byte_fallback"] == true;
    let (tokens, types) = tokens(tokenizer, &json, size, fallback)?;
    let config: Value = tokenizer.config_json().and_then(|c| serde_json::from_slice(c).ok()).unwrap_or_default();
    let named = |key: &str| {
        let token = &config[key];
        tokenizer.id(token.as_str().or_else(|| token["content"].as_str())?)
    };
    let unknown = model["unk_token"].as_str().and_then(|token| tokenizer.id(token)).or_else(|| named("unk_token"));
    let bos = named("bos_token");
    let merges = merges(model)?;
    let mut vocabulary = Vocabulary {
        method: Method::BytePair { pre: String::new(), merges: vec![] },
        tokens,
        types,
        bos,
        eos: tokenizer.end_of_text().or_else(|| named("eos_token")),
        unknown,
        pad: named("pad_token"),
        add_bos: bos.is_some_and(|bos| begins_with(&json["post_processor"], bos, tokenizer)),
        chat_template: template(&config["chat_template"]).map(str::to_owned),
    };
    if fallback {
        if let Some(id) = unknown {
            vocabulary.types[id as usize] = TokenType::Unknown;
        }
        let add_space_prefix = space_prefix(&json)?;
        let scores = scores(&vocabulary.tokens, &merges)?;
        if vocabulary.joins(&scores) != merges {
            return Err("its merges are not those of scores, as SentencePiece's are".into());
        }
        vocabulary.method = Method::SentencePiece { scores, add_space_prefix };
    } else {
        let pre = pre(&json)?.into();
        let merges = merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
        vocabulary.method = Method::BytePair { pre, merges };
    }
    Ok(vocabulary)
}

/// Tokens by id and what each is; ids without a token are filled.
fn tokens(
    tokenizer: &Tokenizer,
    json: &Value,
    size: usize,
    fallback: bool,
) -> Result<(Vec<String>, Vec<TokenType>), String> {
    let mut tokens: Vec<String> = (0..size).map(filler).collect();
    let mut types = vec![TokenType::Unused; size];
    let mut put = |token: &str, kind: TokenType| {
        // The id that the tokenizer gives it, which need not be the one that the file claims.
        let id = tokenizer.id(token).filter(|&id| (id as usize) < size).ok_or(format!("{token:?} has no id"))?;
        tokens[id as usize] = token.to_owned();
        types[id as usize] = kind;
        Ok::<(), String>(())
    };
    for token in json["model"]["vocab"].as_object().into_iter().flat_map(|vocab| vocab.keys()) {
        let byte = fallback && crate::tokenizer::foreign::byte_fallback(token).is_some();
        put(token, if byte { TokenType::Byte } else { TokenType::Normal })?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let content = token["content"].as_str().ok_or("an added token has no content")?;
        put(content, if token["special"] == true { TokenType::Control } else { TokenType::UserDefined })?;
    }
    Ok((tokens, types))
}

fn merges(model: &Value) -> Result<Vec<[&str; 2]>, String> {
    let list = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|merge| merge_of(merge).ok_or(format!("{merge} is not a merge"))).collect()
}

fn merge_of(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(pair) => pair.split_once(' ').map(|(left, right)| [left, right]),
        pair => Some([pair.get(0)?.as_str()?, pair.get(1)?.as_str()?]),
    }
}

/// Whether `bos` is put before a text.
fn begins_with(processor: &Value, bos: u32, tokenizer: &Tokenizer) -> bool {
    let first = processor["single"].get(0).and_then(|first| first["SpecialToken"]["id"].as_str());
    let steps = processor["processors"].as_array().map_or(&[][..], Vec::as_slice);
    first.and_then(|token| tokenizer.id(token)) == Some(bos)
        || steps.iter().any(|step| begins_with(step, bos, tokenizer))
}

/// A template, or the default one of several with names.
fn template(value: &Value) -> Option<&str> {
    match value {
        Value::Array(list) => list.iter().find(|t| t["name"] == "default")?["template"].as_str(),
        one => one.as_str(),
    }
}

/// The name of the patterns that cut text.
fn pre(json: &Value) -> Result<&'static str, String> {
    let normalizer = &json["normalizer"];
    let none = normalizer.is_null() || normalizer["normalizers"].as_array().is_some_and(Vec::is_empty);
    if !none && normalizer["type"] != "NFC" {
        return Err(format!("its normalizer is {}, not NFC or none", normalizer["type"]));
    }
    let pre_tokenizer = &json["pre_tokenizer"];
    let one = std::slice::from_ref(pre_tokenizer);
    let steps = pre_tokenizer["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    let Some((level, splits)) = steps.split_last().filter(|(last, _)| last["type"] == "ByteLevel") else {
        return Err("its pre-tokenizer does not end in ByteLevel".into());
    };
    if level["add_prefix_space"] == true {
        return Err("it adds a space before a text".into());
    }
    let mut cut = vec![];
    for step in splits {
        let isolated = step["behavior"] == "Isolated" && step["invert"] != true;
        cut.push(match (step["type"].as_str(), step["pattern"]["Regex"].as_str()) {
            (Some("Split"), Some(pattern)) if isolated => escaped(pattern),
            (Some("Digits"), _) if step["individual_digits"] == true => r"\p{N}".into(),
            _ => return Err(format!("a step of its pre-tokenizer has no name: {step}")),
        });
    }
    if level["use_regex"] != false {
        cut.push(GPT2.into());
    }
    let ignore_merges = json["model"]["ignore_merges"] == true;
    let same = |name: &&&str| {
        patterns(name).is_some_and(|(ours, ignore)| {
            ignore == ignore_merges && ours.iter().map(|p| escaped(p)).eq(cut.iter().cloned())
        })
    };
    NAMES.iter().find(same).copied().ok_or_else(|| format!("its way of cutting text has no name: {cut:?}"))
}

/// Line ends as files and sources spell them in one way.
fn escaped(pattern: &str) -> String {
    pattern.replace('\r', "\\r").replace('\n', "\\n")
}

/// Whether a space goes before the text; fails if spaces are not what is marked.
fn space_prefix(json: &Value) -> Result<bool, String> {
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    if pre_tokenizer["type"] == "Metaspace" && normalizer.is_null() {
        if pre_tokenizer["split"] != false || pre_tokenizer["replacement"] != "▁" {
            return Err("its pre-tokenizer splits at spaces".into());
        }
        return Ok(pre_tokenizer["prepend_scheme"] != "never");
    }
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) if pre_tokenizer.is_null() => steps,
        _ => return Err("spaces are not marked as SentencePiece does it".into()),
    };
    let replace =
        |step: &Value| step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁";
    let prepend = |step: &Value| step["type"] == "Prepend" && step["prepend"] == "▁";
    match &steps[..] {
        [last] if replace(last) => Ok(false),
        [first, last] if prepend(first) && replace(last) => Ok(true),
        _ => Err("its normalizer does more than to mark spaces".into()),
    }
}

/// A score for each token, by the rank of the first merge that makes it.
fn scores(tokens: &[String], merges: &[[&str; 2]]) -> Result<Vec<f32>, String> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (&token[..], id)).collect();
    let mut scores = vec![0.0; tokens.len()];
    for (rank, [left, right]) in merges.iter().enumerate() {
        let whole = format!("{left}{right}");
        let &id = ids.get(&whole[..]).ok_or(format!("a merge makes {whole:?}, which has no id"))?;
        if scores[id] == 0.0 {
            scores[id] = -(rank as f32) - 1.0;
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TrainOptions;

    fn ours() -> Tokenizer {
        let text = "the theory of the thing 中文 it's 12345 the\n\n  end";
        Tokenizer::train([text, text], &TrainOptions::new(280)).unwrap()
    }

    #[test]
    fn our_tokenizer_goes_there_and_back() {
        let t = ours();
        let v = Vocabulary::of(&t, 300).unwrap();
        assert!(matches!(&v.method, Method::BytePair { pre, .. } if pre == "deepseek-v3"));
        assert_eq!((v.tokens.len(), v.tokens[299].as_str(), v.types[299]), (300, "[PAD299]", TokenType::Unused));
        assert_eq!(v.types[t.end_of_text().unwrap() as usize], TokenType::Control);
        let back = v.tokenizer("t").unwrap();
        assert!(back.is_fast() && back.vocab_size() == t.vocab_size());
        for text in ["the theory", "中文 12345 it's\n\n", "<|endoftext|> [PAD299]", "\u{0}é😀"] {
            assert_eq!(back.encode(text).unwrap(), t.encode(text).unwrap(), "{text:?}");
            assert_eq!(back.encode_with_special(text).unwrap(), t.encode_with_special(text).unwrap(), "{text:?}");
        }
        assert_eq!(Vocabulary::of(&back, 300).unwrap(), v);
        assert!(Vocabulary::of(&t, 279).unwrap_err().to_string().contains("280"));
    }

    /// Every name that is written is read again as the patterns that it was written for.
    #[test]
    fn names_stand_for_their_patterns() {
        for name in NAMES {
            let v = Vocabulary {
                method: Method::BytePair { pre: name.to_string(), merges: vec!["a b".into()] },
                tokens: ["a", "b", "ab"].map(String::from).to_vec(),
                types: vec![TokenType::Normal; 3],
                bos: None,
                eos: None,
                unknown: None,
                pad: None,
                add_bos: false,
                chat_template: None,
            };
            assert_eq!(Vocabulary::of(&v.tokenizer("t").unwrap(), 3).unwrap().method, v.method);
        }
    }

    #[test]
    fn pieces_with_scores_go_there_and_back() {
        let mut tokens = vec!["<unk>".to_owned(), "<s>".into()];
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(["▁", "a", "b", "▁a", "ab"].map(String::from));
        let types: Vec<TokenType> =
            [2, 3].into_iter().chain([6; 256]).chain([1; 5]).map(|n| TokenType::from_number(n).unwrap()).collect();
        let scores = [0.0; 261].into_iter().chain([-1.0, -2.0]).collect();
        let v = Vocabulary {
            method: Method::SentencePiece { scores, add_space_prefix: true },
            tokens,
            types,
            bos: Some(1),
            eos: None,
            unknown: Some(0),
            pad: None,
            add_bos: true,
            chat_template: Some("{{ x }}".into()),
        };
        assert_eq!(Vocabulary::of(&v.tokenizer("t").unwrap(), v.tokens.len()).unwrap(), v);
    }

    #[test]
    fn what_has_no_name_is_refused() {
        let t = ours();
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut json: Value = serde_json::from_slice(t.json()).unwrap();
            change(&mut json);
            let t = Tokenizer::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap();
            Vocabulary::of(&t, 280).map(|v| v.method).map_err(|e| e.to_string())
        };
        assert!(changed(&|_| {}).is_ok());
        assert!(changed(&|j| j["normalizer"] = serde_json::json!({"type": "NFC"})).is_ok());
        let refused = |says: &str, change: &dyn Fn(&mut Value)| {
            let error = changed(change).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        };
        refused("has no name", &|j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "x".into());
        refused("has no name", &|j| j["model"]["ignore_merges"] = true.into());
        refused("normalizer", &|j| j["normalizer"] = serde_json::json!({"type": "Lowercase"}));
        refused("ByteLevel", &|j| j["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"}));
    }
}
