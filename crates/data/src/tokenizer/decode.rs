//! Decoding ids one by one.

use super::{Tokenizer, foreign};

/// Turns ids into text as they come and never gives half a character: a Chinese character may be spread over several
/// ids, and its bytes are held back until it is complete. All that is given, [`DecodeStream::finish`] included, is what
/// [`Tokenizer::decode`] gives for all ids at once.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// For tokenizers that only decode whole sequences: the ids given last and those not given yet.
    given: Vec<u32>,
    pending: Vec<u32>,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> DecodeStream<'a> {
        DecodeStream { tokenizer, skip_special, bytes: Vec::new(), given: Vec::new(), pending: Vec::new() }
    }

    /// Takes the next id and returns the text that is complete with it, often none.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        if self.tokenizer.pieces.are_text() {
            self.bytes.extend_from_slice(self.tokenizer.pieces.get(id).unwrap_or_default());
            return self.complete();
        }
        self.pending.push(id);
        let text = self.undecoded();
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        self.given = std::mem::take(&mut self.pending);
        text
    }

    /// What is left when no more ids come: U+FFFD for a character that was never completed.
    pub fn finish(self) -> String {
        if self.tokenizer.pieces.are_text() {
            return String::from_utf8_lossy(&self.bytes).into_owned();
        }
        self.undecoded()
    }

    /// Takes complete characters off the bytes. Bytes that can no longer become one are replaced as
    /// `String::from_utf8_lossy` does it.
    fn complete(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        let mut chunks = self.bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let open = chunks.peek().is_none()
                && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
            if !chunk.invalid().is_empty() && !open {
                text.push(char::REPLACEMENT_CHARACTER);
                used += chunk.invalid().len();
            }
        }
        self.bytes.drain(..used);
        text
    }

    /// The text of the pending ids. They are decoded together with the ids before them, because the first token of a
    /// sequence may be decoded differently.
    fn undecoded(&self) -> String {
        let before = foreign::decode(&self.tokenizer.inner, &self.given);
        let ids = [self.given.as_slice(), &self.pending].concat();
        let text = foreign::decode(&self.tokenizer.inner, &ids);
        text.strip_prefix(before.as_str()).unwrap_or(&text).to_owned()
    }
}
