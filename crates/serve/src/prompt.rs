//! What is to be continued, in the four forms that OpenAI allows.

use crate::error::ApiError;
use crate::served::Served;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// A text or tokens, one or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several lists of tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt in tokens.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its tokens, the one that begins documents included if it was a text.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Tokens at its beginning that its text does not spell.
    pub silent: usize,
}

impl Prompt {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Prompt::Text(_) | Prompt::Tokens(_) => 1,
            Prompt::Texts(texts) => texts.len(),
            Prompt::TokenLists(lists) => lists.len(),
        }
    }

    /// All of them in tokens. It takes time, so it is done where waiting is allowed.
    pub async fn encode(self, model: &Arc<Served>) -> Result<Vec<Encoded>, ApiError> {
        let model = model.clone();
        blocking(move || {
            let text = |text: String| -> Result<Encoded, ApiError> {
                let ids = model.encode(&text)?;
                Ok(Encoded { ids, text, silent: usize::from(model.begin().is_some()) })
            };
            let vocab = model.engine.config().vocab_size;
            let tokens = |ids: Vec<u32>| -> Result<Encoded, ApiError> {
                match ids.iter().find(|&&id| id as usize >= vocab) {
                    Some(id) => Err(ApiError::invalid_field(
                        "prompt",
                        format!("there is no token {id}, only 0 to {}", vocab - 1),
                    )),
                    None => Ok(Encoded { text: model.engine.tokenizer().decode(&ids), ids, silent: 0 }),
                }
            };
            match self {
                Prompt::Text(one) => Ok(vec![text(one)?]),
                Prompt::Texts(texts) => texts.into_iter().map(text).collect(),
                Prompt::Tokens(ids) => Ok(vec![tokens(ids)?]),
                Prompt::TokenLists(lists) => lists.into_iter().map(tokens).collect(),
            }
        })
        .await
    }
}

/// Does on another thread what would keep this one from its sockets.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}
