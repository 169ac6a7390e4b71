//! How tokens are drawn, as requests say it.

use crate::error::ApiError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use wudao_infer::Sampling;
use wudao_infer::engine::Request;

/// Most tokens with a bias.
const MAX_BIAS: usize = 1024;
/// Most stop strings, and most bytes of one.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 1024;
/// Most stop tokens.
const MAX_STOP_TOKENS: usize = 64;

/// One text or several.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Stops {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// Options of a stream.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// End with a chunk that counts tokens.
    #[serde(default)]
    pub include_usage: bool,
}

/// Adds the fields that all requests for completions share, and `fn draw(&self) -> Draw`.
macro_rules! with_sampling {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// Logits are divided by this; 0 takes the likeliest token always. Default 1.
            #[schema(minimum = 0)]
            pub temperature: Option<f32>,
            /// Only the likeliest tokens whose probabilities sum to this. Default 1, all.
            #[schema(minimum = 0, maximum = 1)]
            pub top_p: Option<f32>,
            /// Only so many of the likeliest tokens; 0 or -1 is all.
            pub top_k: Option<i64>,
            /// Only tokens at least this many times as likely as the likeliest.
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f32>,
            /// Taken off the logit of every token written so far.
            #[schema(minimum = -2, maximum = 2)]
            pub presence_penalty: Option<f32>,
            /// Taken off the logit of a token as often as it was written so far.
            #[schema(minimum = -2, maximum = 2)]
            pub frequency_penalty: Option<f32>,
            /// Divides the logits of tokens that the text has already; 1 is off.
            pub repetition_penalty: Option<f32>,
            /// Added to the logits of tokens, by id.
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// The same seed gives the same completion.
            pub seed: Option<i64>,
            /// Tokens that end the completion.
            pub stop_token_ids: Option<Vec<u32>>,
            /// Write on after the model has ended the text.
            #[serde(default)]
            pub ignore_eos: bool,
            /// Leave special tokens out of the text. Default true.
            pub skip_special_tokens: Option<bool>,
        }

        impl $name {
            /// How tokens are drawn.
            pub fn draw(&self) -> crate::sampling::Draw {
                crate::sampling::Draw {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.clone().unwrap_or_default(),
                    seed: self.seed,
                    stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
                    ignore_eos: self.ignore_eos,
                    skip_special: self.skip_special_tokens.unwrap_or(true),
                }
            }
        }
    };
}
pub(crate) use with_sampling;

/// How tokens are drawn.
#[derive(Clone, Debug, Default)]
pub struct Draw {
    /// See [`Sampling`], as all that follow.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// By the token's id in decimal.
    pub logit_bias: BTreeMap<String, f32>,
    pub seed: Option<i64>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub skip_special: bool,
}

impl Draw {
    /// A request of the engine, still without prompt and length.
    pub fn request(self, stop: Option<Stops>) -> Result<Request, ApiError> {
        let stop = match stop {
            None => Vec::new(),
            Some(Stops::One(text)) => vec![text],
            Some(Stops::Several(texts)) => texts,
        };
        if stop.len() > MAX_STOPS || stop.iter().any(|text| text.len() > MAX_STOP) {
            let limit = format!("there may be {MAX_STOPS} stop strings of {MAX_STOP} bytes each");
            return Err(ApiError::invalid_field("stop", limit));
        }
        if self.stop_token_ids.len() > MAX_STOP_TOKENS {
            return Err(ApiError::invalid_field("stop_token_ids", format!("there may be {MAX_STOP_TOKENS}")));
        }
        if self.logit_bias.len() > MAX_BIAS {
            return Err(ApiError::invalid_field("logit_bias", format!("{MAX_BIAS} tokens may have a bias")));
        }
        let bias = |(id, bias): (&String, &f32)| match id.parse() {
            Ok(id) => Ok((id, *bias)),
            Err(_) => Err(ApiError::invalid_field("logit_bias", format!("\"{id}\" is not the id of a token"))),
        };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0).max(0) as usize,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.iter().map(bias).collect::<Result<_, _>>()?,
            seed: self.seed.map_or_else(random, |seed| seed as u64),
        };
        Ok(Request {
            sampling,
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            stop_tokens: self.stop_token_ids,
            ignore_eos: self.ignore_eos,
            skip_special: self.skip_special,
            ..Request::default()
        })
    }
}

/// A number that nobody foresees.
pub fn random() -> u64 {
    // Without a source of chance there is still the clock.
    getrandom::u64().unwrap_or_else(|_| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
    })
}

/// A name for an answer, such as `cmpl-…`.
pub fn new_id(kind: &str) -> String {
    format!("{kind}-{:016x}{:016x}", random(), random())
}
