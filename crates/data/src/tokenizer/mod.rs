//! The tokenizer: text to ids and back.
//!
//! What is trained here is byte-level byte-pair encoding: text is cut into pre-tokens ([`scan`]), each pre-token is taken
//! as bytes, and adjacent pieces are merged in the order the merges were learned in (`bpe.rs`). Every byte has an id of its
//! own, so any bytes can be encoded and come back exactly, valid UTF-8 or not. Digits stand alone and no token holds
//! Han characters together with another script, so that numbers and mixed text are cut the same way everywhere.
//!
//! The format is Hugging Face's `tokenizer.json`, read and written by the `tokenizers` crate, which is also the
//! authority on what the ids are. It is slow on plain text, because it runs three regular expressions and keeps
//! character offsets; for files with our pre-tokenizer (DeepSeek-V3's is one) the same ids are computed by our own code.
//! A file with another pre-tokenizer, or of another kind (SentencePiece-style, WordPiece, Unigram), is left to the crate.
//!
//! Special tokens are never made from text by [`Tokenizer::encode`]: a document that speaks of `<|endoftext|>` is a
//! document like any other. [`Tokenizer::encode_with_special`] is for text that a program wrote, such as a chat. Tokens that
//! a file adds to its model without calling them special (runs of spaces, `<think>`) are found in any text, before it is cut.

mod bpe;
mod compare;
mod decode;
mod error;
mod foreign;
mod greedy;
mod learn;
mod pieces;
pub mod scan;
mod train;
pub mod vocabulary;

pub use compare::{Comparison, LanguageFigures, TokenizerSummary, compare};
pub use decode::DecodeStream;
pub use error::TokenizerError;
pub use train::{DEFAULT_TRAIN_BYTES, MIN_VOCAB_SIZE, SPECIAL_TOKENS, TrainOptions};

use crate::file;
use crate::manifest::{TOKENIZER_FILE, TokenizerStamp};
use bpe::{Bpe, Cache, Scratch};
use foreign::{Added, FastParts, Spec};
use greedy::Greedy;
use pieces::Pieces;
use scan::Scanner;
use std::path::Path;
use std::sync::OnceLock;

/// File name of the settings that `transformers` reads beside `tokenizer.json`.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Tokens that end a text, as the known families of models call them; the first that is there counts.
const END_OF_TEXT: &[&str] =
    &["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "[EOS]", "<eos>", "</s>", "<|im_end|>"];

/// A tokenizer, ready to encode and decode from any number of threads.
#[derive(Debug)]
pub struct Tokenizer {
    /// The file, byte for byte.
    json: Vec<u8>,
    hash: String,
    /// `tokenizer_config.json`, byte for byte, if there is one.
    config: Option<Vec<u8>>,
    inner: Box<tokenizers::Tokenizer>,
    pieces: Pieces,
    end_of_text: Option<u32>,
    /// The added tokens that plain text may have, if there are any.
    added: Option<Added>,
    /// Our own encoder, where its ids are those of the file.
    fast: Option<Fast>,
}

#[derive(Debug)]
struct Fast {
    scanner: Scanner,
    bpe: Bpe,
    parts: FastParts,
    /// Made for the first [`Encoder`]; `None` if the vocabulary is not fit for it.
    greedy: OnceLock<Option<Greedy>>,
}

impl Tokenizer {
    /// Learns a tokenizer from texts; see [`TrainOptions`]. The same texts in the same order give the same file.
    pub fn train(
        texts: impl IntoIterator<Item = impl AsRef<str>>,
        options: &TrainOptions,
    ) -> Result<Tokenizer, TokenizerError> {
        train::train(texts, options)
    }

    /// Loads a `tokenizer.json`, or the one in a folder; a `tokenizer_config.json` beside it is kept for
    /// [`Tokenizer::save`].
    pub fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_owned() };
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TokenizerError::Io {
                operation: "read",
                path: path.to_owned(),
                source,
            })
        };
        let json = read(&path)?;
        let config_path = path.with_file_name(TOKENIZER_CONFIG_FILE);
        let config = if config_path.is_file() { Some(read(&config_path)?) } else { None };
        Tokenizer::parse(json, config, &path.display().to_string())
    }

    /// Reads a tokenizer from the bytes of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::parse(json.to_vec(), None, TOKENIZER_FILE)
    }

    /// `name` is only for the messages.
    fn parse(json: Vec<u8>, config: Option<Vec<u8>>, name: &str) -> Result<Tokenizer, TokenizerError> {
        let malformed = |reason: String| TokenizerError::Malformed { name: name.to_owned(), reason };
        let spec = Spec::parse(&json).map_err(malformed)?;
        let inner = spec.load(&json).map_err(malformed)?;
        let pieces = spec.pieces(&inner).map_err(malformed)?;
        let added = Added::of(&inner).map_err(malformed)?;
        let fast = spec.fast(&inner).map(|parts| Fast {
            scanner: Scanner::new(),
            bpe: Bpe::new(parts.0, &parts.1),
            parts,
            greedy: OnceLock::new(),
        });
        let hash = file::sha256_hex(&json);
        let inner = Box::new(inner);
        let mut tokenizer = Tokenizer { json, hash, config, inner, pieces, end_of_text: None, added, fast };
        tokenizer.end_of_text = END_OF_TEXT
            .iter()
            .find_map(|token| tokenizer.id(token))
            .or_else(|| foreign::eos_token(tokenizer.config.as_deref()?).and_then(|token| tokenizer.id(&token)));
        Ok(tokenizer)
    }

    /// Writes `tokenizer.json` and, if there is one, `tokenizer_config.json` into an existing folder; a `path` that ends
    /// in `.json` names the first file alone. Each file is written atomically.
    pub fn save(&self, path: &Path) -> Result<(), TokenizerError> {
        let write = |path: &Path, bytes: &[u8]| {
            file::write_atomic(path, bytes).map_err(|source| TokenizerError::Io {
                operation: "write",
                path: path.to_owned(),
                source,
            })
        };
        if path.extension().is_some_and(|extension| extension == "json") {
            return write(path, &self.json);
        }
        // In this order, so that whoever finds the tokenizer finds all of it.
        if let Some(config) = &self.config {
            write(&path.join(TOKENIZER_CONFIG_FILE), config)?;
        }
        write(&path.join(TOKENIZER_FILE), &self.json)
    }

    /// The ids of a text. Nothing is added, and special tokens that the text spells out are taken as the plain text they
    /// are; other added tokens are found. For many texts, an [`Encoder`] is faster. Tokenizers trained here cannot fail.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match self.fast_for(text) {
            Some(Fast { scanner, bpe, .. }) => {
                let mut scratch = Scratch::default();
                scanner.split(text, |piece| bpe.encode(piece.as_bytes(), &mut scratch, &mut ids));
            }
            None => foreign::encode(&self.inner, self.added.as_ref(), text, &mut ids)?,
        }
        Ok(ids)
    }

    /// Our own encoder, if it gives the ids of this text: it knows nothing of added tokens.
    fn fast_for(&self, text: &str) -> Option<&Fast> {
        self.fast.as_ref().filter(|_| self.added.as_ref().is_none_or(|added| !added.are_in(text)))
    }

    /// The ids of a text in which special tokens are meant: `<|im_end|>` becomes its one id. Nothing is added.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        foreign::encode_with_special(&self.inner, text)
    }

    /// The ids of any bytes: stretches of valid UTF-8 as [`Tokenizer::encode`] does it, other bytes one by one. Fails
    /// for invalid UTF-8 if the tokenizer has no tokens for bytes.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(bytes.len() / 3);
        let mut encoder = self.encoder();
        for chunk in bytes.utf8_chunks() {
            encoder.encode(chunk.valid(), &mut ids)?;
            for &byte in chunk.invalid() {
                ids.push(self.pieces.byte(byte).ok_or_else(|| TokenizerError::Encode {
                    reason: format!("it is not UTF-8 and there is no token for the byte 0x{byte:02x}"),
                })?);
            }
        }
        Ok(ids)
    }

    /// An encoder for many texts; one for each thread. The first takes a moment, in which its tables are made.
    pub fn encoder(&self) -> Encoder<'_> {
        let fast = self.fast.as_ref().map(|fast| FastEncoder {
            fast,
            greedy: fast.greedy.get_or_init(|| Greedy::new(&fast.parts.0, &fast.parts.1, &fast.bpe)).as_ref(),
            cache: Cache::new(),
            scratch: Scratch::default(),
            dead: Vec::new(),
        });
        Encoder { tokenizer: self, fast }
    }

    /// The bytes that ids stand for: what was encoded, for byte-level tokenizers. Special tokens are spelled out, ids
    /// outside the vocabulary stand for nothing.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        if self.pieces.are_text() {
            let mut bytes = Vec::with_capacity(4 * ids.len());
            ids.iter().filter_map(|&id| self.pieces.get(id)).for_each(|piece| bytes.extend_from_slice(piece));
            return bytes;
        }
        foreign::decode(&self.inner, ids).into_bytes()
    }

    /// The text that ids stand for; bytes that are no UTF-8 become U+FFFD. Special tokens are spelled out.
    pub fn decode(&self, ids: &[u32]) -> String {
        match String::from_utf8(self.decode_bytes(ids)) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// A decoder for ids that come one by one; with `skip_special`, special tokens are left out.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// Number of ids that a model must know: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The bytes that one id stands for; `None` if it is not in the vocabulary. For tokenizers that are not byte-level,
    /// the spelling of the token with its marks for spaces and bytes resolved.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Whether the text of any ids is what [`Tokenizer::token_bytes`] gives for each, one after the other, but for a space at
    /// its beginning (see [`Tokenizer::trims_space`]). Byte-level tokenizers do; with others each id is tried.
    pub fn joins_bytes(&self) -> bool {
        if self.pieces.are_text() {
            return true;
        }
        let Some(before) = self.id("a") else { return false };
        (0..self.pieces.len() as u32).filter(|&id| !self.is_special(id)).all(|id| {
            // A byte of a character shows only with the others.
            let Some(Ok(text)) = self.pieces.get(id).map(std::str::from_utf8) else { return true };
            foreign::decode(&self.inner, &[before, id]).strip_prefix('a') == Some(text)
        })
    }

    /// Whether a space at the beginning of a text is not written.
    pub fn trims_space(&self) -> bool {
        let spaced = |&id: &u32| self.pieces.get(id).is_some_and(|piece| piece.len() > 1 && piece[0] == b' ');
        let first = (0..self.pieces.len() as u32).filter(|&id| !self.is_special(id)).find(spaced);
        !self.pieces.are_text() && first.is_some_and(|id| !foreign::decode(&self.inner, &[id]).starts_with(' '))
    }

    /// The id of a token by its spelling in the file, such as `<|endoftext|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The token that ends (and, in batches, begins) every text, if one is known.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// SHA-256 of the `tokenizer.json`, 64 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What a manifest records of a tokenizer; fails if it has no token that ends a text.
    pub fn stamp(&self) -> Result<TokenizerStamp, TokenizerError> {
        let end_of_text = self.end_of_text.ok_or(TokenizerError::NoEndOfText { known: END_OF_TEXT })?;
        Ok(TokenizerStamp { sha256: self.hash.clone(), vocab_size: self.vocab_size() as u32, end_of_text })
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The bytes of the `tokenizer_config.json` that lay beside it, if one did.
    pub fn config_json(&self) -> Option<&[u8]> {
        self.config.as_deref()
    }

    /// Whether our own encoder serves this file; if not, the `tokenizers` crate does, many times slower.
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }
}

/// Encodes many texts, remembering the ids of short pre-tokens. Takes about half a megabyte and some working memory in
/// proportion to the longest pre-token.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    fast: Option<FastEncoder<'a>>,
}

#[derive(Debug)]
struct FastEncoder<'a> {
    fast: &'a Fast,
    greedy: Option<&'a Greedy>,
    cache: Cache,
    scratch: Scratch,
    dead: Vec<u64>,
}

impl Encoder<'_> {
    /// Appends the ids of `text` to `ids`; the same as [`Tokenizer::encode`].
    pub fn encode(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let tokenizer = self.tokenizer;
        let fast = self.fast.as_mut().filter(|_| tokenizer.fast_for(text).is_some());
        let Some(FastEncoder { fast, greedy, cache, scratch, dead }) = fast else {
            return foreign::encode(&tokenizer.inner, tokenizer.added.as_ref(), text, ids);
        };
        fast.scanner.split(text, |piece| {
            cache.encode(piece.as_bytes(), ids, |piece, ids| match greedy {
                Some(greedy) => greedy.encode(piece, dead, ids),
                None => fast.bpe.encode(piece, scratch, ids),
            });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
