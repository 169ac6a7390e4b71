//! `POST /v1/responses`: OpenAI's newer form of a chat, text in and text out.
//!
//! Nothing is kept between requests, so there is nothing to refer to: a conversation is sent whole. An answer is a list of
//! items, a thought, a text, calls; it is built piece by piece, and each change is an event. Whoever does not stream gets what
//! was built.

mod making;

pub use making::ResponseObject;

use super::chat::REFUSED;
use super::completions::{now, with_ends};
use super::{App, Asker, answer};
use crate::body::{Json, Rest, refuse};
use crate::conversation::{Content, Conversation, Message, PastCall, PastFunction, Role};
use crate::error::{ApiError, ErrorBody};
use crate::form::{self, ResponseFormat};
use crate::job::Job;
use crate::sampling::Draw;
use crate::sse::{self, Frame, Frames};
use crate::tools::{ToolChoice, Tools};
use axum::extract::{Extension, State};
use axum::response::Response;
use futures_util::StreamExt;
use making::Making;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use wudao_infer::chat::Value;
use wudao_infer::engine::{Event, Request};

/// What would change the answer and is not done here, beside what chats refuse.
const REFUSED_TOO: &[&str] = &[
    "previous_response_id",
    "conversation",
    "background",
    "prompt",
    "max_tool_calls",
    "top_logprobs",
    "structured_outputs",
];

/// Something to answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// The model; without, the first that is served.
    pub model: Option<String>,
    /// A question, or a conversation.
    pub input: Input,
    /// The rules; they come first.
    pub instructions: Option<String>,
    /// Most tokens to write; without, as many as there is room for.
    pub max_output_tokens: Option<usize>,
    /// Logits are divided by this; 0 takes the likeliest token always. Default 1.
    pub temperature: Option<f32>,
    /// Only the likeliest tokens whose probabilities sum to this. Default 1, all.
    pub top_p: Option<f32>,
    /// The same seed gives the same answer.
    pub seed: Option<i64>,
    /// Send the answer as it comes.
    #[serde(default)]
    pub stream: bool,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Which of them it is to call.
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    /// Whether it may call several at once. Default true.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    pub text: Option<TextOptions>,
    /// How hard to think, for templates that know it.
    pub reasoning: Option<ReasoningOptions>,
    /// What to do with too long an input; only `disabled`, an error, is possible.
    pub truncation: Option<String>,
    /// Whatever else the model's template understands.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Given back as it is.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Rest,
}

/// A question, or a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// A question.
    Text(String),
    /// What was said and done so far.
    Items(Vec<InputItem>),
}

/// One thing that was said or done.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct InputItem {
    /// `message`, `function_call`, `function_call_output` or `reasoning`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Of a message.
    role: Option<Role>,
    /// Of a message.
    content: Option<Content>,
    /// Of a call and its result.
    call_id: Option<String>,
    /// Of a call.
    name: Option<String>,
    /// Of a call.
    arguments: Option<String>,
    /// Of a result.
    output: Option<Content>,
}

/// The form of an answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextOptions {
    format: Option<ResponseFormat>,
}

/// How to think.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ReasoningOptions {
    effort: Option<String>,
}

/// Answers.
#[utoipa::path(post, path = "/v1/responses", request_body = ResponsesRequest, responses(
    (status = 200, body = ResponseObject, description = "The answer; with `stream`, its making as server-sent events"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
    (status = 503, body = ErrorBody, description = "Too much to do: see the header Retry-After"),
))]
pub async fn responses(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Asker>,
    Json(request): Json<ResponsesRequest>,
) -> Result<Response, ApiError> {
    refuse(&request.rest, REFUSED)?;
    refuse(&request.rest, REFUSED_TOO)?;
    if request.truncation.as_ref().is_some_and(|how| how != "disabled") {
        return Err(ApiError::unsupported("truncation", "too long an input is an error here, never cut"));
    }
    let format = request.text.as_ref().and_then(|text| text.format.as_ref());
    let form = form::Asked::read("text.format", format, None)?;
    let model = app.models.find(request.model.as_deref())?.clone();
    let echo = echo(&request);
    let draw = Draw {
        temperature: request.temperature,
        top_p: request.top_p,
        seed: request.seed,
        skip_special: true,
        ..Draw::default()
    };
    let max_tokens = app.max_tokens(request.max_output_tokens, None, model.engine.context())?;
    let base = with_ends(Request { max_tokens, client: asker.0, ..draw.request(None)? }, &model);
    let choice = request.tool_choice.map(ToolChoice::deserialize).transpose();
    let choice = choice.map_err(|error| ApiError::invalid_field("tool_choice", error))?;
    let tools = request.tools.unwrap_or_default().into_iter().map(chat_tool).collect::<Result<_, _>>()?;
    let tools = Tools::read(tools, choice, request.parallel_tool_calls)?;
    let single = tools.single;
    let mut variables = request.chat_template_kwargs.unwrap_or_default();
    let effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    variables.extend(effort.map(|effort| ("reasoning_effort".to_owned(), Value::from(effort))));
    let messages = messages(request.instructions, request.input)?;
    let messages = messages.into_iter().map(Message::value).collect::<Result<_, _>>()?;
    let asked = Conversation { messages, tools, variables, no_generation_prompt: false, form }.encode(&model).await?;
    let mut job =
        Job::start(&model.engine, Request { prompt: asked.ids, constraint: asked.constraint, ..base }, request.stream)?;
    let response = ResponseObject::new(model.name.clone(), now(), echo);
    let mut making = Making::new(response, asked.splitter, single);
    if request.stream {
        return Ok(sse::respond(vec![job], making));
    }
    while let Some(event) = job.next().await {
        if let Event::Failed(why) = event {
            return Err(crate::job::failed(why));
        }
        making.event(0, event, &mut Frame::default())?;
    }
    making.end(&mut Frame::default());
    match making.stop {
        Some(_) => Ok(answer(&making.response)),
        None => Err(ApiError::internal("the engine ended before the answer did")),
    }
}

/// What an answer repeats of its request.
fn echo(request: &ResponsesRequest) -> serde_json::Map<String, serde_json::Value> {
    let format = request.text.as_ref().and_then(|text| text.format.as_ref());
    let value = json!({
        "error": null,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata.clone().unwrap_or_else(|| Value::from_pairs::<_, String, String>([])),
        "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": null,
        "reasoning": {"effort": request.reasoning.as_ref().and_then(|how| how.effort.clone()), "summary": null},
        "store": false,
        "temperature": request.temperature.unwrap_or(1.0),
        "text": {"format": format.map_or_else(|| json!({"type": "text"}), |format| json!(format))},
        "tool_choice": request.tool_choice.clone().unwrap_or_else(|| Value::from("auto")),
        "tools": request.tools.clone().unwrap_or_default(),
        "top_p": request.top_p.unwrap_or(1.0),
        "truncation": "disabled",
    });
    match value {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

/// A function as chat completions describe it.
fn chat_tool(tool: Value) -> Result<Value, ApiError> {
    let get = |name: &str| tool.get_attr(name).ok().filter(|value| !value.is_undefined());
    if get("function").is_some() || get("type").is_none_or(|kind| kind.as_str() != Some("function")) {
        return Ok(tool);
    }
    let fields =
        ["name", "description", "parameters", "strict"].into_iter().filter_map(|name| Some((name, get(name)?)));
    Ok(Value::from_pairs([("type", Value::from("function")), ("function", Value::from_pairs(fields))]))
}

/// The conversation as messages. Calls that follow each other are one message's.
pub fn messages(instructions: Option<String>, input: Input) -> Result<Vec<Message>, ApiError> {
    let say = |role, text| Message {
        role,
        content: Some(Content::Text(text)),
        reasoning_content: None,
        tool_calls: None,
        tool_call_id: None,
        name: None,
    };
    let mut messages: Vec<Message> = instructions.map(|text| say(Role::System, text)).into_iter().collect();
    let items = match input {
        Input::Text(text) => {
            messages.push(say(Role::User, text));
            return Ok(messages);
        }
        Input::Items(items) => items,
    };
    for (number, item) in items.into_iter().enumerate() {
        let missing =
            |what: &str| ApiError::invalid_field(&format!("input[{number}]"), format!("\"{what}\" is missing"));
        match item.kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = item.role.ok_or_else(|| missing("role"))?;
                messages.push(Message { content: item.content, ..say(role, String::new()) });
            }
            "function_call" => {
                let name = item.name.ok_or_else(|| missing("name"))?;
                let arguments = Value::from(item.arguments.ok_or_else(|| missing("arguments"))?);
                let call = PastCall { id: item.call_id, function: PastFunction { name, arguments } };
                match messages.last_mut() {
                    Some(last) if last.role == Role::Assistant => last.tool_calls.get_or_insert_default().push(call),
                    _ => messages.push(Message { tool_calls: Some(vec![call]), ..say(Role::Assistant, String::new()) }),
                }
            }
            "function_call_output" => {
                let output = item.output.ok_or_else(|| missing("output"))?.text()?;
                messages.push(Message { tool_call_id: item.call_id, ..say(Role::Tool, output) });
            }
            // What was thought for earlier answers is not read again.
            "reasoning" => {}
            kind => {
                let kind: String = kind.chars().take(40).collect();
                let what = format!("an item of type \"{kind}\" is not known here");
                return Err(ApiError::unsupported(&format!("input[{number}]"), &what));
            }
        }
    }
    Ok(messages)
}
