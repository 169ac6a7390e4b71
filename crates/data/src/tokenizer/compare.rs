//! Figures about tokenizers: how much text a token carries, by language.

use super::{Tokenizer, TokenizerError};
use crate::document::Lang;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a tokenizer makes of the texts of one language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LanguageFigures {
    /// UTF-8 bytes of the texts.
    pub bytes: u64,
    /// Characters of the texts.
    pub characters: u64,
    /// Han characters among them.
    pub han: u64,
    /// Tokens the texts become.
    pub tokens: u64,
    /// Bytes of text a token carries; more is better.
    pub bytes_per_token: f64,
    /// Tokens a Han character takes, all tokens counted; less is better. `None` if there are none.
    pub tokens_per_han: Option<f64>,
}

/// One tokenizer's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name given by the caller.
    pub name: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// Figures by language.
    pub languages: BTreeMap<Lang, LanguageFigures>,
}

/// Encodes the same texts with each of the named tokenizers and counts.
pub fn compare<'t>(
    tokenizers: &[(&str, &Tokenizer)],
    texts: impl IntoIterator<Item = (Lang, &'t str)>,
) -> Result<Vec<Comparison>, TokenizerError> {
    let mut encoders: Vec<_> = tokenizers.iter().map(|(_, tokenizer)| tokenizer.encoder()).collect();
    let mut rows: Vec<Comparison> = tokenizers
        .iter()
        .map(|(name, tokenizer)| Comparison {
            name: (*name).to_owned(),
            vocab_size: tokenizer.vocab_size(),
            languages: BTreeMap::new(),
        })
        .collect();
    let scanner = super::Scanner::new();
    let mut ids = Vec::new();
    for (lang, text) in texts {
        let characters = text.chars().count() as u64;
        let han = text.chars().filter(|&c| scanner.is_han(c)).count() as u64;
        for (row, encoder) in rows.iter_mut().zip(&mut encoders) {
            ids.clear();
            encoder.encode(text, &mut ids)?;
            let figures = row.languages.entry(lang).or_default();
            figures.bytes += text.len() as u64;
            figures.characters += characters;
            figures.han += han;
            figures.tokens += ids.len() as u64;
        }
    }
    for figures in rows.iter_mut().flat_map(|row| row.languages.values_mut()) {
        figures.bytes_per_token = figures.bytes as f64 / figures.tokens.max(1) as f64;
        figures.tokens_per_han = (figures.han > 0).then(|| figures.tokens as f64 / figures.han as f64);
    }
    Ok(rows)
}

/// What a tokenizer holds, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenizerSummary {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// Whether any bytes can be encoded and come back exactly.
    pub byte_level: bool,
    /// Whether our own encoder serves it.
    pub fast: bool,
    /// The token that ends a text.
    pub end_of_text: Option<u32>,
    /// Special tokens with their ids.
    pub special: BTreeMap<u32, String>,
    /// Ids whose text is wholly Han characters, by the number of characters.
    pub han_tokens: BTreeMap<usize, u64>,
    /// The longest token that is no special token, in bytes.
    pub longest_token: usize,
}

impl Tokenizer {
    /// Summarises the vocabulary.
    pub fn summary(&self) -> TokenizerSummary {
        let scanner = super::Scanner::new();
        let mut han_tokens = BTreeMap::new();
        let mut longest_token = 0;
        for id in (0..self.vocab_size() as u32).filter(|&id| !self.is_special(id)) {
            let piece = self.token_bytes(id).unwrap_or_default();
            longest_token = longest_token.max(piece.len());
            let text = std::str::from_utf8(piece).unwrap_or_default();
            if !text.is_empty() && text.chars().all(|c| scanner.is_han(c)) {
                *han_tokens.entry(text.chars().count()).or_default() += 1;
            }
        }
        let text_of = |id| (id, String::from_utf8_lossy(self.token_bytes(id).unwrap_or_default()).into_owned());
        TokenizerSummary {
            sha256: self.hash().to_owned(),
            vocab_size: self.vocab_size(),
            byte_level: self.pieces.are_text(),
            fast: self.is_fast(),
            end_of_text: self.end_of_text(),
            special: self.pieces.special().map(text_of).collect(),
            han_tokens,
            longest_token,
        }
    }
}
