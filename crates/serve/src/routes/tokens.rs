//! Texts as tokens and back, for clients that count or cut for themselves.

use super::{App, answer};
use crate::body::Json;
use crate::conversation::{Conversation, Message};
use crate::error::{ApiError, ErrorBody};
use crate::prompt::blocking;
use crate::tools::Tools;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

/// A text, or a chat, to encode.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The model; without, the first that is served.
    pub model: Option<String>,
    /// A text, as vLLM calls it: by default a whole document.
    pub prompt: Option<String>,
    /// A text, as llama.cpp calls it: by default only a part.
    pub content: Option<String>,
    /// A chat, written with the model's template.
    pub messages: Option<Vec<Message>>,
    /// Put the token before it that begins documents.
    #[serde(alias = "add_special")]
    pub add_special_tokens: Option<bool>,
}

/// Tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokenized {
    /// Their ids.
    tokens: Vec<u32>,
    /// How many.
    count: usize,
    /// How many the model can hold.
    max_model_len: usize,
}

/// Tokens to decode.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// The model; without, the first that is served.
    pub model: Option<String>,
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// A text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Detokenized {
    /// As vLLM calls it.
    prompt: String,
    /// As llama.cpp calls it.
    content: String,
}

/// Encodes a text or a chat.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest, responses(
    (status = 200, body = Tokenized, description = "Its tokens"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
))]
pub async fn tokenize(State(app): State<Arc<App>>, Json(request): Json<TokenizeRequest>) -> Result<Response, ApiError> {
    let model = app.models.find(request.model.as_deref())?.clone();
    let max_model_len = model.engine.context();
    let (text, whole) = match (request.prompt, request.content, request.messages) {
        (Some(text), None, None) => (text, true),
        (None, Some(text), None) => (text, false),
        (None, None, Some(messages)) => {
            let messages = messages.into_iter().map(Message::value).collect::<Result<_, _>>()?;
            let chat = Conversation { messages, tools: Tools::default(), ..Conversation::default() };
            let tokens = chat.encode(&model).await?.ids;
            return Ok(answer(&Tokenized { count: tokens.len(), tokens, max_model_len }));
        }
        _ => return Err(ApiError::invalid("give one of \"prompt\", \"content\" and \"messages\"")),
    };
    let whole = request.add_special_tokens.unwrap_or(whole);
    let encode = move || if whole { model.encode(&text) } else { model.encode_plain(&text) };
    let tokens = blocking(encode).await?;
    Ok(answer(&Tokenized { count: tokens.len(), tokens, max_model_len }))
}

/// Decodes tokens.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest, responses(
    (status = 200, body = Detokenized, description = "Their text"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
))]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<DetokenizeRequest>,
) -> Result<Response, ApiError> {
    let model = app.models.find(request.model.as_deref())?.clone();
    let prompt = blocking(move || Ok(model.engine.tokenizer().decode(&request.tokens))).await?;
    Ok(answer(&Detokenized { content: prompt.clone(), prompt }))
}

/// What a client needs to know of the tokenizer: the special tokens, the chat template.
#[utoipa::path(get, path = "/tokenizer_info", responses(
    (status = 200, body = Object, description = "As in tokenizer_config.json"),
))]
pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.models.find(None)?;
    let tokenizer = model.engine.tokenizer();
    let mut info: Map<String, Value> =
        tokenizer.config_json().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
    let spelling = |id: u32| tokenizer.token_bytes(id).map(|bytes| Value::from(String::from_utf8_lossy(bytes)));
    let config = model.engine.config();
    for (name, id) in [("bos_token", model.begin()), ("eos_token", config.end_of_text())] {
        let missing = info.get(name).is_none_or(Value::is_null);
        let token = id.filter(|_| missing).and_then(spelling);
        info.entry(name).or_insert(Value::Null);
        if let Some(token) = token {
            info.insert(name.into(), token);
        }
    }
    for (name, token) in model.template.iter().flat_map(|template| template.special()) {
        info.insert(name.clone(), Value::from(token.as_str()));
    }
    info.insert("chat_template".into(), model.template.as_ref().map(|template| template.source()).into());
    info.entry("tokenizer_class").or_insert("PreTrainedTokenizerFast".into());
    info.insert("vocab_size".into(), tokenizer.vocab_size().into());
    info.insert("model_max_length".into(), model.engine.context().into());
    Ok(answer(&info))
}
