//! What a request is told when it cannot be answered, in OpenAI's shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use wudao_infer::engine::Rejected;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    retry_after: Option<u64>,
    error: Detail,
}

/// `{"error": …}`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    error: Detail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Detail {
    /// For people.
    message: String,
    /// Kind of error.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that is to blame.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> ApiError {
        let error = Detail { message: message.into(), kind, param: None, code: Some(code) };
        ApiError { status, retry_after: None, error }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_value", message)
    }

    /// A field of the request is wrong.
    pub fn invalid_field(param: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(format!("{param}: {message}")).about(param)
    }

    /// A field that this server does not know how to honour.
    pub fn unsupported(param: &str, what: &str) -> ApiError {
        let message = format!("{param}: {what}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", "unsupported_value", message).about(param)
    }

    /// The prompt does not fit.
    pub fn too_long(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", "context_length_exceeded", message)
    }

    /// The model was never taught to talk.
    pub fn no_chat_template(model: &str) -> ApiError {
        let message = format!(
            "the model \"{model}\" has no chat template, so it can only continue texts: use /v1/completions, or add a \
             chat_template.jinja to its folder"
        );
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", "no_chat_template", message)
    }

    /// Nothing is there.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", message)
    }

    /// No such model.
    pub fn no_model(name: &str, known: &str) -> ApiError {
        let message = format!("the model \"{name}\" does not exist here; there is {known}");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found", message).about("model")
    }

    /// Another method is meant.
    pub fn method() -> ApiError {
        let message = "this path is not asked with this method: see /openapi.json";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    /// No key, or none that is known.
    pub fn unauthorized(message: &str) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", message)
    }

    /// The request was meant for somebody of another name.
    pub fn stranger(name: &str) -> ApiError {
        let name: String = name.chars().take(100).collect();
        let message = format!(
            "this server does not go by the name \"{name}\" (header Host), under which a page of another site may be asking: \
             if it should, start it with --name {name}, or with --api-keys"
        );
        ApiError::new(StatusCode::FORBIDDEN, "invalid_request_error", "unknown_host", message)
    }

    /// The body has too many bytes.
    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("the body of the request is larger than {limit} bytes, the most that this server takes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    /// The body did not come in time.
    pub fn slow(seconds: u64) -> ApiError {
        let message = format!("the body of the request did not arrive within {seconds} seconds");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "request_timeout", message)
    }

    /// The body is not of the type that is understood.
    pub fn media_type() -> ApiError {
        let message = "the body must be JSON, with the header Content-Type: application/json";
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", "unsupported_media_type", message)
    }

    /// One client asks too often.
    pub fn rate(seconds: u64) -> ApiError {
        let message = format!("too many requests: try again in {seconds} seconds");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message);
        ApiError { retry_after: Some(seconds), ..error }
    }

    /// All clients together ask too much.
    pub fn overloaded(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "overloaded", message);
        ApiError { retry_after: Some(1), ..error }
    }

    /// The server is about to stop.
    pub fn stopping() -> ApiError {
        let message = "the server is being stopped";
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "shutting_down", message);
        ApiError { retry_after: Some(5), ..error }
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// The reader left what was written to it lying.
    pub fn slow_reader() -> ApiError {
        let message = "the completion was given up: it was not read as fast as it was written";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "slow_reader", message)
    }

    fn about(mut self, param: &str) -> ApiError {
        self.error.param = Some(param.to_owned());
        self
    }

    /// For programs, and for people.
    pub fn words(&self) -> (&'static str, &str) {
        (self.error.code.unwrap_or_default(), &self.error.message)
    }

    /// As JSON, for a stream that has begun.
    pub fn json(&self) -> String {
        serde_json::to_string(&ErrorBody { error: self.error.clone() }).unwrap_or_default()
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> ApiError {
        let message = rejected.to_string();
        match rejected {
            Rejected::QueueFull { .. } => ApiError::overloaded(message),
            Rejected::TooLong { .. } => ApiError::too_long(message),
            Rejected::Sampling(error) => ApiError::invalid(message).about(error.key),
            Rejected::Closed => ApiError::stopping(),
            Rejected::Empty | Rejected::BadToken { .. } => ApiError::invalid(message).about("prompt"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
