//! The paths, and what every request passes on its way to one.

mod chat;
mod completions;
mod embeddings;
mod logprobs;
mod responses;
mod status;
mod tokens;

pub use chat::ChatRequest;
pub use completions::CompletionRequest;
pub use embeddings::EmbeddingRequest;
pub use responses::{ResponsesRequest, messages as response_messages};
pub use tokens::TokenizeRequest;

use crate::admission::{Admission, Client};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::served::Models;
use crate::web;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What all requests share.
pub struct App {
    /// What the server was told.
    pub options: Options,
    /// What it serves.
    pub models: Models,
    /// The door.
    pub admission: Admission,
    /// What it has done.
    pub metrics: Metrics,
    /// It takes no more requests.
    pub stopping: AtomicBool,
}

impl App {
    /// A server of these models.
    pub fn new(options: Options, models: Models) -> Arc<App> {
        let admission = Admission::new(&options);
        Arc::new(App { options, models, admission, metrics: Metrics::default(), stopping: AtomicBool::new(false) })
    }

    /// Tokens that a request gets, which may ask for a number; without one `default`, or as many as there are.
    pub fn max_tokens(&self, asked: Option<usize>, default: Option<usize>, context: usize) -> Result<usize, ApiError> {
        let most = if self.options.max_tokens == 0 { context } else { self.options.max_tokens };
        match asked {
            Some(asked) if self.options.max_tokens > 0 && asked > most => {
                Err(ApiError::invalid_field("max_tokens", format!("{asked} is more than this server writes, {most}")))
            }
            Some(asked) => Ok(asked),
            None => Ok(default.unwrap_or(most).min(most)),
        }
    }

    /// Refuses more completions than one request may have.
    pub fn check_choices(&self, field: &str, choices: usize) -> Result<(), ApiError> {
        match self.options.max_choices {
            most if choices > most => Err(ApiError::invalid_field(
                field,
                format!("{choices} completions are more than a request may have, {most}"),
            )),
            _ if choices == 0 => Err(ApiError::invalid_field(field, "must be 1 or more")),
            _ => Ok(()),
        }
    }
}

/// Marks who asks, for the handlers.
#[derive(Clone, Copy)]
pub struct Asker(pub Client);

/// The routes that cost something, with their description.
fn costly() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(completions::completions))
        .routes(routes!(chat::chat_completions))
        .routes(routes!(responses::responses))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::detokenize))
}

/// Those that cost nothing, but are not for everybody.
fn private() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(status::models))
        .routes(routes!(status::model))
        .routes(routes!(tokens::tokenizer_info))
        .routes(routes!(status::metrics))
}

/// Those that anybody may ask.
fn public() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(status::health)).routes(routes!(status::ready))
}

/// What `/openapi.json` says: made from the routes and their types.
pub fn openapi() -> OpenApi {
    let mut api = OpenApiRouter::new().merge(costly()).merge(private()).merge(public()).into_openapi();
    api.info.title = "WuDao".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    api.info.description = Some("A model behind HTTP: OpenAI's interface.".into());
    api.info.license = None;
    api.info.contact = None;
    api
}

/// The whole server but for its sockets.
pub fn router(app: Arc<App>) -> Router {
    let document = serde_json::to_vec(&openapi()).unwrap_or_default();
    let document = Bytes::from(document);
    let json = [(header::CONTENT_TYPE, "application/json")];
    let costly = Router::from(costly()).route_layer(from_fn_with_state(app.clone(), enter));
    let guarded = Router::from(private()).merge(costly).route_layer(from_fn_with_state(app.clone(), identify));
    Router::from(public())
        .merge(guarded)
        .route("/openapi.json", axum::routing::get(move || async move { (json, document) }))
        .fallback(page)
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(from_fn_with_state(app.clone(), known))
        .layer(from_fn(secure))
        .layer(cors(&app.options.cors))
        .layer(from_fn_with_state(app.clone(), count))
        .with_state(app)
}

/// Which pages of other origins may ask.
fn cors(origins: &[String]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        // Clients send headers of their own beside these, such as x-stainless-os.
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(600))
}

/// Are we meant?
async fn known(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    app.admission.check_name(request.headers())?;
    Ok(next.run(request).await)
}

/// Who is it?
async fn identify(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let client = app.admission.client(request.headers(), address.unwrap_or([0, 0, 0, 0].into()))?;
    request.extensions_mut().insert(Asker(client));
    Ok(next.run(request).await)
}

/// Is there room? The place is held until the last byte of the answer is out.
async fn enter(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    if app.stopping.load(Ordering::Acquire) {
        return Err(ApiError::stopping());
    }
    let client = request.extensions().get::<Asker>().map_or(0, |asker| asker.0);
    let place = app.admission.enter(client)?;
    Ok(held(next.run(request).await, place))
}

/// An answer that keeps something until it is out or given up.
fn held(response: Response, kept: impl Send + Unpin + 'static) -> Response {
    response.map(|body| Body::new(Held { body, _kept: kept }))
}

/// A body with something that is dropped with it.
struct Held<T> {
    body: Body,
    _kept: T,
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts requests.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_owned();
    let start = Instant::now();
    let running = app.metrics.begin();
    let response = next.run(request).await;
    app.metrics.answered(&route, response.status().as_u16(), start.elapsed());
    held(response, running)
}

/// What keeps a browser from doing more with our answers than they are for.
async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        ("content-security-policy", crate::web::CONTENT_SECURITY_POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// The page, or nothing.
async fn page(request: Request) -> Response {
    let asset = match *request.method() {
        Method::GET | Method::HEAD => web::asset(request.uri().path().trim_start_matches('/')),
        _ => None,
    };
    let Some(asset) = asset else {
        let path: String = request.uri().path().chars().take(100).collect();
        return ApiError::not_found(format!("there is nothing at {path}: see /openapi.json")).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, asset.content_type),
        // It belongs to this version of the program.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (StatusCode::OK, headers, Bytes::from_static(asset.bytes)).into_response()
}

/// A value as an answer.
pub fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}
