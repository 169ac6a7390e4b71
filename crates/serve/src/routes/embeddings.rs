//! `POST /v1/embeddings`: texts as vectors of length one.

use super::{App, answer};
use crate::body::{Json, Rest, refuse};
use crate::error::{ApiError, ErrorBody};
use crate::prompt::Prompt;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;
use utoipa::ToSchema;
use wudao_infer::engine::Pooling;

/// Texts to embed.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// The model; without, the first that is served.
    pub model: Option<String>,
    /// The texts.
    pub input: Prompt,
    /// How vectors are written. Default `float`.
    #[serde(default)]
    pub encoding_format: Encoding,
    /// The vectors' length, which cannot be chosen.
    pub dimensions: Option<usize>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As numbers.
    #[default]
    Float,
    /// As little-endian f32 in base64.
    Base64,
}

/// Vectors.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Embeddings {
    /// `list`.
    object: &'static str,
    /// One a text.
    data: Vec<Embedding>,
    /// The model.
    model: String,
    /// Tokens read.
    usage: EmbeddingUsage,
}

/// One vector.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    object: &'static str,
    /// The text's number.
    index: usize,
    /// The vector.
    embedding: Vector,
}

/// A vector.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// As numbers.
    Float(Vec<f32>),
    /// As base64.
    Base64(String),
}

/// Tokens read.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// All.
    prompt_tokens: usize,
    /// The same.
    total_tokens: usize,
}

/// Turns texts into vectors: the mean of the final hidden states, scaled to length one.
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingRequest, responses(
    (status = 200, body = Embeddings, description = "The vectors"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
    (status = 503, body = ErrorBody, description = "Too much to do: see the header Retry-After"),
))]
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Json(request): Json<EmbeddingRequest>,
) -> Result<Response, ApiError> {
    refuse(&request.rest, &["truncate_prompt_tokens", "input_type", "pooling"])?;
    let model = app.models.find(request.model.as_deref())?.clone();
    let width = model.engine.config().hidden_size;
    if request.dimensions.is_some_and(|asked| asked != width) {
        let message = format!("this model's vectors have {width} numbers, and no other");
        return Err(ApiError::unsupported("dimensions", &message));
    }
    app.check_choices("input", request.input.len())?;
    let inputs = request.input.encode(&model).await?;
    let mut data = Vec::new();
    let mut tokens = 0;
    for (index, input) in inputs.into_iter().enumerate() {
        tokens += input.ids.len();
        let (sender, receiver) = oneshot::channel();
        model.engine.embed(input.ids, Pooling::Mean, Box::new(move |vector| drop(sender.send(vector))))?;
        let vector = receiver.await.map_err(|_| ApiError::stopping())?.map_err(crate::job::failed)?;
        let vector = unit(&vector);
        let embedding = match request.encoding_format {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        data.push(Embedding { object: "embedding", index, embedding });
    }
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(answer(&Embeddings { object: "list", data, model: model.name.clone(), usage }))
}

/// The vector of length one in the same direction.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}
