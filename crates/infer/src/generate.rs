//! Continues a prompt, token by token, over a cache of keys and values.

use crate::checkpoint::Checkpoint;
use crate::constraint::{Constraint, ConstraintError, Form, Vocabulary};
use crate::sampler::{Sampler, Sampling, SamplingError};
use crate::text::Text;
use wudao_comm::Solo;
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::{Device, Fault};
use wudao_model::{Config, Cx, KvCache, Packing};

/// How a text is continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Ends the completion where one of these begins; the string itself is not part of it.
    pub stop: Vec<String>,
    /// The form that the completion must have (see [`Checkpoint::constrain`]).
    pub constraint: Option<Constraint>,
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
    /// The completion cannot have its form.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
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
    /// Compiles a form for [`Generation::constraint`].
    pub fn constrain(&self, form: &Form) -> Result<Constraint, ConstraintError> {
        Vocabulary::new(&self.tokenizer)?.compile(form)
    }

    /// Continues `prompt`, giving `emit` each piece of text as it is certain; `emit` answers whether to go on.
    pub fn generate(
        &self,
        prompt: &str,
        how: &Generation,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Completion, GenerateError> {
        how.sampling.check()?;
        let ids = prompt_ids(&self.config, &self.tokenizer, prompt)?;
        let limit = self.config.max_position_embeddings;
        if ids.len() >= limit {
            return Err(GenerateError::TooLong { tokens: ids.len(), limit });
        }
        let capacity = limit.min(ids.len() + how.max_tokens);
        let mut cache = KvCache::new(&self.device, &self.config, capacity, self.model.dtype());
        let mut sampler = Sampler::new(how.sampling.clone());
        let mut guide = how.constraint.as_ref().map(Constraint::guide);
        let mut text = Text::new(&self.tokenizer, true, how.stop.clone());
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
            let mut sample = |logits: &mut [f32]| sampler.sample(logits, &history, prompt_tokens);
            let id = match &mut guide {
                Some(guide) => guide.draw(&mut logits, &self.config.eos_token_id, sample)?,
                None => Some(sample(&mut logits)),
            };
            let Some(id) = id else { break Stop::EndOfText };
            history.push(id);
            if self.config.eos_token_id.contains(&id) {
                break Stop::EndOfText;
            }
            if let Some(stop) = text.push(id, emit) {
                break stop;
            }
            if let Some(guide) = &mut guide {
                guide.take(id)?;
                if guide.finished()? {
                    break Stop::EndOfText;
                }
            }
        };
        let (text, stop) = text.finish(stop, emit);
        Ok(Completion { text, tokens: history.split_off(prompt_tokens), prompt_tokens, stop })
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

/// The prompt as the model saw documents in training: the end-of-text token, then the text. Special tokens written in the
/// prompt are special tokens.
pub(crate) fn prompt_ids(config: &Config, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
    let begin = config.bos_token_id.or(config.end_of_text());
    let mut ids: Vec<u32> = begin.into_iter().collect();
    ids.extend(tokenizer.encode_with_special(prompt)?);
    if ids.is_empty() {
        return Err(TokenizerError::Encode { reason: "the prompt has no tokens".into() });
    }
    Ok(ids)
}
