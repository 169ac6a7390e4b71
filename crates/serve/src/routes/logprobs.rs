//! Log probabilities in OpenAI's two forms: lists side by side for completions, objects for chats.

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use wudao_infer::Engine;
use wudao_infer::engine::Logprob;

/// Most alternatives of a token.
pub const MAX_TOP: usize = 20;

/// A token's spelling. One that is no text by itself, such as a third of a Chinese character, is spelled `bytes:\xe5`.
pub fn spelling(engine: &Engine, id: u32) -> String {
    let bytes = engine.tokenizer().token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".into(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// Lists side by side, one entry a token.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Lists {
    /// Their spelling.
    pub tokens: Vec<String>,
    /// Their log probabilities; the first of a prompt has none.
    pub token_logprobs: Vec<Option<f32>>,
    /// Those of the likeliest tokens in their place, and their own.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Characters of the text before each.
    pub text_offset: Vec<usize>,
}

impl Lists {
    /// Appends a token at a place of the text.
    pub fn push(&mut self, engine: &Engine, id: u32, logprob: Option<&Logprob>, offset: usize) {
        self.tokens.push(spelling(engine, id));
        self.token_logprobs.push(logprob.map(|logprob| logprob.logprob));
        self.top_logprobs.push(logprob.map(|logprob| {
            let mut top: BTreeMap<String, f32> = BTreeMap::from([(spelling(engine, id), logprob.logprob)]);
            for &(id, value) in &logprob.top {
                // Of tokens that are spelled alike the likeliest counts.
                let entry = top.entry(spelling(engine, id)).or_insert(value);
                *entry = entry.max(value);
            }
            top
        }));
        self.text_offset.push(offset);
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Of a chat's answer.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One a token.
    pub content: Vec<ChatLogprob>,
}

/// Of one token.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    /// Its spelling.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
    /// The likeliest in its place, best first.
    top_logprobs: Vec<TopLogprob>,
}

/// Of one alternative.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its spelling.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
}

impl ChatLogprob {
    /// Of a token with its alternatives.
    pub fn new(engine: &Engine, id: u32, logprob: &Logprob) -> ChatLogprob {
        let bytes = |id| engine.tokenizer().token_bytes(id).unwrap_or_default().to_vec();
        let top = |&(id, logprob): &(u32, f32)| TopLogprob { token: spelling(engine, id), logprob, bytes: bytes(id) };
        ChatLogprob {
            token: spelling(engine, id),
            logprob: logprob.logprob,
            bytes: bytes(id),
            top_logprobs: logprob.top.iter().map(top).collect(),
        }
    }
}
