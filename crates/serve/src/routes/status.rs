//! What is served, and how it is.

use super::{App, answer};
use crate::error::{ApiError, ErrorBody};
use crate::served::Served;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use utoipa::ToSchema;

/// The models.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    object: &'static str,
    /// The models.
    data: Vec<ModelInfo>,
}

/// A model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// What requests call it.
    id: String,
    /// `model`.
    object: &'static str,
    /// Seconds since 1970 at which it was loaded.
    created: u64,
    /// `wudao`.
    owned_by: &'static str,
    /// Most tokens of a prompt and its completion.
    max_model_len: usize,
    /// Whether it can chat.
    chat: bool,
}

/// How the server is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
}

impl ModelInfo {
    fn of(model: &Served) -> ModelInfo {
        ModelInfo {
            id: model.name.clone(),
            object: "model",
            created: model.created,
            owned_by: "wudao",
            max_model_len: model.engine.context(),
            chat: model.template.is_some(),
        }
    }
}

/// The models that are served.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelList, description = "The models")))]
pub async fn models(State(app): State<Arc<App>>) -> Response {
    answer(&ModelList { object: "list", data: app.models.iter().map(|model| ModelInfo::of(model)).collect() })
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = String, Path, description = "Its name")), responses(
    (status = 200, body = ModelInfo, description = "The model"),
    (status = 404, body = ErrorBody, description = "There is none of this name"),
))]
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    Ok(answer(&ModelInfo::of(app.models.find(Some(&name))?)))
}

/// Whether the server lives.
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health, description = "It does")))]
pub async fn health() -> Response {
    answer(&Health { status: "ok" })
}

/// Whether it takes requests: not any more when it is being stopped.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, body = Health, description = "It does"),
    (status = 503, body = ErrorBody, description = "It does not"),
))]
pub async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    match app.stopping.load(Ordering::Acquire) {
        true => Err(ApiError::stopping()),
        false => Ok(answer(&Health { status: "ok" })),
    }
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, description = "In its text form")))]
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.text(&app.models)).into_response()
}
