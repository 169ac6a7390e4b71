//! Reading a request's JSON: of bounded size, in bounded time, and with the name of the field that is wrong.

use crate::error::ApiError;
use crate::routes::App;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A request's body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // A page of another origin can send anything else without asking first.
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            return Err(ApiError::media_type());
        }
        parse(&read(request, app).await?).map(Json)
    }
}

async fn read(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let (limit, time) = (app.options.max_body, app.options.body_timeout);
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let body = tokio::time::timeout(time, Limited::new(request.into_body(), limit).collect()).await;
    match body.map_err(|_| ApiError::slow(time.as_secs()))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Err(error) => Err(ApiError::invalid(format!("the body of the request cannot be read: {error}"))),
    }
}

/// A value from JSON, or which field of it is wrong.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ApiError> {
    let mut source = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut source).map_err(|error| {
        let path = error.path().to_string();
        let path = if error.path().iter().next().is_none() { "" } else { path.as_str() };
        match (error.inner().classify(), path) {
            (serde_json::error::Category::Data, "") => ApiError::invalid(error.inner().to_string()),
            (serde_json::error::Category::Data, path) => ApiError::invalid_field(path, error.inner()),
            _ => ApiError::invalid(format!("the body is not JSON: {}", error.inner())),
        }
    })?;
    source.end().map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// The fields of a request that are not known here.
pub type Rest = serde_json::Map<String, serde_json::Value>;

/// Refuses fields that are not known here but elsewhere, where they would change the answer. One that asks for nothing
/// (null, false, zero, empty) is as good as absent.
pub fn refuse(rest: &Rest, fields: &[&str]) -> Result<(), ApiError> {
    use serde_json::Value;
    let idle = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    };
    match fields.iter().find(|&&field| rest.get(field).is_some_and(|value| !idle(value))) {
        Some(field) if field.starts_with("guided_") => {
            Err(ApiError::unsupported(field, "its name is \"structured_outputs\" today, with vLLM and here"))
        }
        Some(field) => {
            Err(ApiError::unsupported(field, "this server does not support it, and it would change the answer"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(serde::Deserialize, Debug)]
    struct Inner {
        #[expect(dead_code, reason = "only its type matters")]
        role: String,
    }

    #[derive(serde::Deserialize, Debug)]
    struct Outer {
        #[expect(dead_code, reason = "only its type matters")]
        messages: Vec<Inner>,
        #[serde(flatten)]
        rest: Rest,
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        let error = |json: &str| parse::<Outer>(json.as_bytes()).unwrap_err().json();
        assert!(error(r#"{"messages": [{"role": 5}]}"#).contains("messages[0].role: invalid type"));
        assert!(error(r#"{"messages": "#).contains("not JSON"));
        assert!(error(r#"{"messages": []} {}"#).contains("not JSON"));
        assert!(error(&"[".repeat(100_000)).contains("error"));
        assert!(error(&format!("{{\"messages\": [], \"x\": {}", "[".repeat(100_000))).contains("recursion"));
        assert!(error("{}").contains("messages"));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_and_the_rest_is_not() {
        let outer: Outer =
            parse(json!({"messages": [], "user": "me", "suffix": "x", "grammar": null}).to_string().as_bytes())
                .unwrap();
        assert!(refuse(&outer.rest, &["grammar", "functions"]).is_ok());
        assert!(refuse(&outer.rest, &["grammar", "suffix"]).unwrap_err().json().contains("\"param\":\"suffix\""));
    }
}
