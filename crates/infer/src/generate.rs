//! Continues a prompt, token by token, over a cache of keys and values.
//!
//! Text goes out as soon as it is certain: never half a character, and never the beginning of what may turn out to be a
//! stop string.

use crate::checkpoint::Checkpoint;
use crate::sampler::{Sampler, Sampling, SamplingError};
use wudao_comm::Solo;
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::{Device, Fault};
use wudao_model::{Cx, KvCache, Packing};

/// How a text is continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Ends the completion where one of these begins; the string itself is not part of it.
    pub stop: Vec<String>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// `max_tokens` were written.
    MaxTokens,
    /// A stop string came.
    StopString,
    /// The model's context is full.
    Context,
    /// The reader of the stream asked to stop.
    Reader,
}

/// A finished completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text, without the prompt.
    pub text: String,
    /// Its tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, the begin-of-document token included.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Why a prompt cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A setting out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The prompt cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The machine failed.
    #[error(transparent)]
    Device(#[from] Fault),
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, but the model takes at most {limit}: shorten the prompt")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's `max_position_embeddings`.
        limit: usize,
    },
}

impl<D: Device> Checkpoint<D> {
    /// Continues `prompt`, giving `emit` each piece of text as it is certain; `emit` answers whether to go on.
    pub fn generate(
        &self,
        prompt: &str,
        how: &Generation,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Completion, GenerateError> {
        how.sampling.check()?;
        let ids = self.prompt_ids(prompt)?;
        let limit = self.config.max_position_embeddings;
        if ids.len() >= limit {
            return Err(GenerateError::TooLong { tokens: ids.len(), limit });
        }
        let capacity = limit.min(ids.len() + how.max_tokens);
        let mut cache = KvCache::new(&self.device, &self.config, capacity, self.model.dtype());
        let mut sampler = Sampler::new(how.sampling.clone());
        let mut text = Text::new(&self.tokenizer, &how.stop);
        let prompt_tokens = ids.len();
        let mut history = ids;
        let mut next = 0;
        let stop = loop {
            if history.len() - prompt_tokens == how.max_tokens {
                break Stop::MaxTokens;
            }
            if history.len() > capacity {
                break Stop::Context;
            }
            let logits = self.decode(&mut cache, &history[next..])?;
            let mut logits: Vec<f32> = logits.into_iter().map(|x| x as f32).collect();
            next = history.len();
            let id = sampler.sample(&mut logits, &history, prompt_tokens);
            history.push(id);
            if self.config.eos_token_id.contains(&id) {
                break Stop::EndOfText;
            }
            if let Some(stop) = text.push(id, emit) {
                break stop;
            }
        };
        let (text, stop) = text.finish(stop, emit);
        Ok(Completion { text, tokens: history.split_off(prompt_tokens), prompt_tokens, stop })
    }

    /// The prompt as the model saw documents in training: the end-of-text token, then the text. Special tokens written in
    /// the prompt are special tokens.
    fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let begin = self.config.bos_token_id.or(self.config.end_of_text());
        let mut ids: Vec<u32> = begin.into_iter().collect();
        ids.extend(self.tokenizer.encode_with_special(prompt)?);
        if ids.is_empty() {
            return Err(TokenizerError::Encode { reason: "the prompt has no tokens".into() });
        }
        Ok(ids)
    }

    /// Logits after the last of `ids`, which follow what the cache holds.
    fn decode(&self, cache: &mut KvCache<D>, ids: &[u32]) -> Result<Vec<f64>, Fault> {
        let past = cache.len() as u32;
        let n = ids.len() as u32;
        let packing = Packing { positions: (past..past + n).collect(), segments: vec![0, n] };
        let mut cx = Cx {
            device: &self.device,
            comm: &Solo,
            weights: &self.weights,
            packing: &packing,
            aux: Default::default(),
            log: None,
            again: false,
        };
        Ok(self.model.decode(&mut cx, cache, ids)?.view().to_f64(&self.device))
    }
}

/// The text so far, and what of it has been given out.
struct Text<'a> {
    decoder: Option<wudao_data::tokenizer::DecodeStream<'a>>,
    stops: &'a [String],
    text: String,
    given: usize,
}

impl<'a> Text<'a> {
    fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Text { decoder: Some(tokenizer.decode_stream(true)), stops, text: String::new(), given: 0 }
    }

    fn push(&mut self, id: u32, emit: &mut dyn FnMut(&str) -> bool) -> Option<Stop> {
        let piece = self.decoder.as_mut().map(|d| d.push(id)).unwrap_or_default();
        self.append(&piece, emit)
    }

    fn append(&mut self, piece: &str, emit: &mut dyn FnMut(&str) -> bool) -> Option<Stop> {
        if piece.is_empty() {
            return None;
        }
        self.text.push_str(piece);
        let pending = &self.text[self.given..];
        let found = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| pending.find(s.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(self.given + at);
            self.give(self.text.len(), emit);
            return Some(Stop::StopString);
        }
        // The longest end of the text that a stop string begins with stays here.
        let held = self.stops.iter().map(|s| open_prefix(pending, s)).max().unwrap_or(0);
        let until = self.text.len() - held;
        (!self.give(until, emit)).then_some(Stop::Reader)
    }

    fn give(&mut self, until: usize, emit: &mut dyn FnMut(&str) -> bool) -> bool {
        let piece = &self.text[self.given..until];
        self.given = until;
        piece.is_empty() || emit(piece)
    }

    fn finish(mut self, stop: Stop, emit: &mut dyn FnMut(&str) -> bool) -> (String, Stop) {
        let mut stop = stop;
        if !matches!(stop, Stop::StopString | Stop::Reader) {
            let rest = self.decoder.take().map(|d| d.finish()).unwrap_or_default();
            if self.append(&rest, emit) == Some(Stop::StopString) {
                stop = Stop::StopString;
            }
            self.give(self.text.len(), emit);
        }
        (self.text, stop)
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn open_prefix(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(i, _)| i).rev().find(|&i| i > 0 && text.ends_with(&stop[..i])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_open_prefix_is_the_longest_one() {
        assert_eq!(open_prefix("abcab", "abd"), 2);
        assert_eq!(open_prefix("abcab", "x"), 0);
        assert_eq!(open_prefix("床前明", "明月"), "明".len());
        assert_eq!(open_prefix("", "ab"), 0);
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, String, Stop) {
        let mut text = Text { decoder: None, stops, text: String::new(), given: 0 };
        let mut out = String::new();
        let mut emit = |s: &str| {
            out.push_str(s);
            true
        };
        let mut stop = Stop::MaxTokens;
        for p in pieces {
            if let Some(s) = text.append(p, &mut emit) {
                stop = s;
                break;
            }
        }
        let (whole, stop) = text.finish(stop, &mut emit);
        (whole, out, stop)
    }

    proptest! {
        #[test]
        fn streamed_text_ends_where_the_first_stop_string_begins(
            pieces in prop::collection::vec("[abc明月]{0,3}", 0..12),
            stops in prop::collection::vec("[abc明月]{1,3}", 0..3),
        ) {
            let (whole, streamed, stop) = run(&pieces, &stops);
            prop_assert_eq!(&whole, &streamed);
            let all = pieces.concat();
            // A stop string is seen as soon as it is complete, so of several the one that ends first wins.
            let mut expected = all.as_str();
            let mut end = usize::MAX;
            let mut sum = 0;
            for p in &pieces {
                sum += p.len();
                let hits: Vec<usize> = stops.iter().filter_map(|s| all[..sum].find(s.as_str())).collect();
                if let Some(&at) = hits.iter().min() {
                    expected = &all[..at];
                    end = at;
                    break;
                }
            }
            prop_assert_eq!(&whole, expected);
            prop_assert_eq!(stop == Stop::StopString, end != usize::MAX);
        }
    }
}
