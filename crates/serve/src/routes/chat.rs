//! `POST /v1/chat/completions`: answers to messages.

use super::completions::{UsageReport, now, numbered, with_ends};
use super::logprobs::{ChatLogprob, ChatLogprobs, MAX_TOP};
use super::{App, Asker, answer};
use crate::body::{Json, Rest, refuse};
use crate::conversation::{Conversation, Message};
use crate::error::{ApiError, ErrorBody};
use crate::form::{self, ResponseFormat, StructuredOutputs};
use crate::job::{Job, Written, finish_reason};
use crate::sampling::{Stops, StreamOptions, new_id, with_sampling};
use crate::served::Served;
use crate::split::{Part, Splitter};
use crate::sse::{self, Frame, Frames};
use crate::tools::{ToolChoice, Tools};
use axum::extract::{Extension, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use wudao_infer::chat::Value;
use wudao_infer::engine::{Event, Request, Usage};

/// What would change the answer and is not done here.
pub const REFUSED: &[&str] = &[
    "functions",
    "function_call",
    "audio",
    "web_search_options",
    "verbosity",
    "chat_template",
    "continue_final_message",
    "documents",
    "use_beam_search",
    "length_penalty",
    "min_tokens",
    "prompt_logprobs",
    "echo",
    "best_of",
    "truncate_prompt_tokens",
    "include_stop_str_in_output",
    "allowed_token_ids",
    "bad_words",
    "logits_processors",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "json_schema",
    "typical_p",
    "mirostat",
];

with_sampling! {
    /// Messages to answer.
    #[derive(Clone, Debug, Deserialize, ToSchema)]
    pub struct ChatRequest {
        /// The model; without, the first that is served.
        pub model: Option<String>,
        /// The conversation.
        pub messages: Vec<Message>,
        /// Most tokens to write; without, as many as there is room for.
        pub max_completion_tokens: Option<usize>,
        /// The older name of that.
        pub max_tokens: Option<usize>,
        /// Number of answers.
        pub n: Option<usize>,
        /// The answer ends where one of these begins.
        pub stop: Option<Stops>,
        /// Whether log probabilities are wanted.
        #[serde(default)]
        pub logprobs: bool,
        /// Of so many of the likeliest tokens, too.
        #[schema(maximum = 20)]
        pub top_logprobs: Option<usize>,
        /// Send tokens as they come.
        #[serde(default)]
        pub stream: bool,
        /// Options of that.
        pub stream_options: Option<StreamOptions>,
        /// Functions that the model may call.
        #[serde(default)]
        #[schema(value_type = Option<Vec<Object>>)]
        pub tools: Option<Vec<Value>>,
        /// Which of them it is to call.
        pub tool_choice: Option<ToolChoice>,
        /// Whether it may call several at once. Default true.
        pub parallel_tool_calls: Option<bool>,
        /// The form of the answer.
        pub response_format: Option<ResponseFormat>,
        /// The same, with more to choose from.
        pub structured_outputs: Option<StructuredOutputs>,
        /// Kinds of answers; only `text` is possible.
        pub modalities: Option<Vec<String>>,
        /// How hard to think, for templates that know it.
        pub reasoning_effort: Option<String>,
        /// Whatever else the model's template understands, such as `enable_thinking`.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<BTreeMap<String, Value>>,
        /// Begin the answer for the model. Default true.
        pub add_generation_prompt: Option<bool>,
        #[serde(flatten)]
        #[schema(ignore)]
        pub rest: Rest,
    }
}

/// Answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Its name.
    id: String,
    /// `chat.completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// The answers.
    choices: Vec<ChatChoice>,
    /// Tokens read and written.
    usage: UsageReport,
}

/// One answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its number.
    index: usize,
    /// What is said.
    message: Reply,
    /// If asked for.
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `tool_calls`, or `length` where there was no more room.
    finish_reason: &'static str,
}

/// What the model says.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Reply {
    /// `assistant`.
    role: &'static str,
    /// The text; null if there are only calls.
    content: Option<String>,
    /// What was thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// Functions that are to be called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
    /// Always null: a model refuses in its text.
    #[schema(value_type = Option<String>)]
    refusal: (),
}

/// A piece of the answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Chunk {
    /// The name of all of them.
    id: String,
    /// `chat.completion.chunk`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// One, or none in the chunk that counts tokens.
    choices: Vec<ChunkChoice>,
    /// Tokens read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageReport>,
}

/// A piece of one answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// The answer's number.
    index: usize,
    /// What is new.
    delta: Delta,
    /// If asked for.
    logprobs: Option<ChatLogprobs>,
    /// In the last piece.
    finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    /// In the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// More of what is thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// A call, whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

/// A function that is to be called.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Call {
    /// Its number among the calls of a streamed answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// What its result refers to.
    id: String,
    /// `function`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Which, and with what.
    function: CalledFunction,
}

/// A function with its arguments.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CalledFunction {
    /// Its name.
    name: String,
    /// Its arguments, JSON in a text.
    arguments: String,
}

impl Call {
    fn new(index: Option<usize>, name: String, arguments: String) -> Call {
        Call { index, id: new_id("call"), kind: "function", function: CalledFunction { name, arguments } }
    }
}

/// Answers messages.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses(
    (status = 200, body = ChatCompletion, description = "The answers; with `stream`, pieces of them as server-sent events"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
    (status = 503, body = ErrorBody, description = "Too much to do: see the header Retry-After"),
))]
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Asker>,
    Json(request): Json<ChatRequest>,
) -> Result<Response, ApiError> {
    refuse(&request.rest, REFUSED)?;
    let model = app.models.find(request.model.as_deref())?.clone();
    let n = request.n.unwrap_or(1);
    app.check_choices("n", n)?;
    if request.modalities.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
        return Err(ApiError::unsupported("modalities", "only \"text\" is possible"));
    }
    let form =
        form::Asked::read("response_format", request.response_format.as_ref(), request.structured_outputs.as_ref())?;
    if request.top_logprobs.is_some_and(|top| top > MAX_TOP || top > 0 && !request.logprobs) {
        let message = format!("must be at most {MAX_TOP}, and needs \"logprobs\": true");
        return Err(ApiError::invalid_field("top_logprobs", message));
    }
    let asked = request.max_completion_tokens.or(request.max_tokens);
    let max_tokens = app.max_tokens(asked, None, model.engine.context())?;
    let base = Request {
        max_tokens,
        logprobs: request.logprobs.then_some(request.top_logprobs.unwrap_or(0)),
        client: asker.0,
        ..request.draw().request(request.stop.clone())?
    };
    let base = with_ends(base, &model);
    let mut variables = request.chat_template_kwargs.unwrap_or_default();
    variables.extend(request.reasoning_effort.map(|effort| ("reasoning_effort".to_owned(), Value::from(effort))));
    let tools = Tools::read(request.tools.unwrap_or_default(), request.tool_choice, request.parallel_tool_calls)?;
    let single = tools.single;
    let conversation = Conversation {
        messages: request.messages.into_iter().map(Message::value).collect::<Result<_, _>>()?,
        tools,
        variables,
        no_generation_prompt: request.add_generation_prompt == Some(false),
        form,
    };
    let asked = conversation.encode(&model).await?;
    let base = Request { constraint: asked.constraint, ..base };
    let jobs = (0..n).map(|number| Job::start(&model.engine, numbered(&base, &asked.ids, number), request.stream));
    let jobs: Vec<Job> = jobs.collect::<Result<_, _>>()?;
    let head = Head { model, id: new_id("chatcmpl"), created: now(), logprobs: request.logprobs };
    if request.stream {
        let usage = request.stream_options.is_some_and(|options| options.include_usage);
        let choices = (0..n).map(|_| Streamed::new(asked.splitter.clone(), single)).collect();
        return Ok(sse::respond(jobs, Stream { head, choices, usage }));
    }
    let mut choices = Vec::new();
    let mut usages = Vec::new();
    for (index, job) in jobs.into_iter().enumerate() {
        let written = job.finish().await?;
        usages.push(written.usage);
        choices.push(head.choice(index, written, asked.splitter.clone(), single));
    }
    let Head { model, id, created, .. } = head;
    let (model, usage) = (model.name.clone(), UsageReport::of(&usages, n));
    Ok(answer(&ChatCompletion { id, object: "chat.completion", created, model, choices, usage }))
}

/// What all choices of an answer have in common.
struct Head {
    model: Arc<Served>,
    id: String,
    created: u64,
    logprobs: bool,
}

impl Head {
    fn choice(&self, index: usize, written: Written, mut splitter: Splitter, single: bool) -> ChatChoice {
        let mut parts = splitter.push(&written.text());
        parts.extend(splitter.finish());
        let mut message = Reply { role: "assistant", ..Reply::default() };
        for part in parts {
            match part {
                Part::Reasoning(text) => message.reasoning_content.get_or_insert_default().push_str(&text),
                Part::Content(text) => message.content.get_or_insert_default().push_str(&text),
                Part::Call { name, arguments } => {
                    message.tool_calls.push(Call::new(None, name, arguments));
                    if single {
                        break;
                    }
                }
            }
        }
        let called = !message.tool_calls.is_empty();
        if !called {
            message.content.get_or_insert_default();
        }
        let entry =
            |token: &crate::job::Token| Some(ChatLogprob::new(&self.model.engine, token.id, token.logprob.as_ref()?));
        let logprobs =
            self.logprobs.then(|| ChatLogprobs { content: written.tokens.iter().filter_map(entry).collect() });
        let finish_reason = if called { "tool_calls" } else { finish_reason(written.stop) };
        ChatChoice { index, message, logprobs, finish_reason }
    }
}

/// An answer that is being streamed.
struct Streamed {
    splitter: Option<Splitter>,
    single: bool,
    calls: usize,
    /// Log probabilities of tokens whose text is not certain yet.
    pending: Vec<ChatLogprob>,
    usage: Usage,
}

impl Streamed {
    fn new(splitter: Splitter, single: bool) -> Streamed {
        Streamed { splitter: Some(splitter), single, calls: 0, pending: Vec::new(), usage: Usage::default() }
    }

    /// What of the parts is for the reader.
    fn deltas(&mut self, parts: Vec<Part>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for part in parts {
            if self.single && self.calls > 0 {
                break;
            }
            deltas.push(match part {
                Part::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
                Part::Content(text) => Delta { content: Some(text), ..Delta::default() },
                Part::Call { name, arguments } => {
                    self.calls += 1;
                    Delta { tool_calls: vec![Call::new(Some(self.calls - 1), name, arguments)], ..Delta::default() }
                }
            });
        }
        deltas
    }
}

struct Stream {
    head: Head,
    choices: Vec<Streamed>,
    usage: bool,
}

impl Stream {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<UsageReport>) -> Chunk {
        let Head { model, id, created, .. } = &self.head;
        let (id, model) = (id.clone(), model.name.clone());
        Chunk { id, object: "chat.completion.chunk", created: *created, model, choices, usage }
    }

    fn send(&mut self, index: usize, delta: Delta, finish_reason: Option<&'static str>, out: &mut Frame) {
        let pending = std::mem::take(&mut self.choices[index].pending);
        let logprobs = (!pending.is_empty()).then_some(ChatLogprobs { content: pending });
        out.data(&self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None));
    }
}

impl Frames for Stream {
    fn begin(&mut self, out: &mut Frame) {
        for index in 0..self.choices.len() {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.send(index, delta, None, out);
        }
    }

    fn event(&mut self, number: usize, event: Event, out: &mut Frame) -> Result<(), ApiError> {
        let choice = &mut self.choices[number];
        match event {
            Event::Token { id, text, logprob } => {
                choice.pending.extend(logprob.map(|logprob| ChatLogprob::new(&self.head.model.engine, id, &logprob)));
                let parts = choice.splitter.as_mut().map(|splitter| splitter.push(&text)).unwrap_or_default();
                for delta in choice.deltas(parts) {
                    self.send(number, delta, None, out);
                }
            }
            Event::Done { stop, usage, .. } => {
                choice.usage = usage;
                let parts = choice.splitter.take().map(Splitter::finish).unwrap_or_default();
                for delta in choice.deltas(parts) {
                    self.send(number, delta, None, out);
                }
                let called = self.choices[number].calls > 0;
                let reason = if called { "tool_calls" } else { finish_reason(Some(stop)) };
                self.send(number, Delta::default(), Some(reason), out);
            }
            Event::Prompt(_) | Event::Failed(_) => {}
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Frame) {
        if self.usage {
            let usages: Vec<Usage> = self.choices.iter().map(|choice| choice.usage).collect();
            out.data(&self.chunk(Vec::new(), Some(UsageReport::of(&usages, usages.len()))));
        }
        out.raw("", "[DONE]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Token;
    use wudao_infer::Stop;
    use wudao_infer::engine::EngineOptions;
    use wudao_infer::testing;

    const ANSWER: [&str; 7] = [
        "<thi",
        "nk>\nhm",
        "\n</think>\n\nI loo",
        "k.\n<tool_call>\n{\"name\": \"f\", ",
        "\"arguments\": {\"城\": \"北京\"}}\n</tool_call>",
        "\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
        "",
    ];

    fn head() -> Head {
        let model = Arc::new(Served::new("tiny", testing::engine(EngineOptions::default())));
        Head { model, id: "id".into(), created: 1, logprobs: false }
    }

    fn written() -> Written {
        let token = |text: &&str| Token { id: 5, text: (*text).to_owned(), logprob: None };
        Written { tokens: ANSWER.iter().map(token).collect(), stop: Some(Stop::EndOfText), ..Written::default() }
    }

    #[test]
    fn an_answer_has_a_thought_a_text_and_calls() {
        let choice = serde_json::to_value(head().choice(0, written(), Splitter::new("", true), false)).unwrap();
        let message = &choice["message"];
        assert_eq!((&message["reasoning_content"], &message["content"]), (&"hm".into(), &"I look.".into()));
        assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{\"城\": \"北京\"}");
        assert_eq!(message["tool_calls"][1]["function"]["name"], "g");
        assert_eq!(choice["finish_reason"], "tool_calls");
        let choice = serde_json::to_value(head().choice(0, written(), Splitter::new("", true), true)).unwrap();
        assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1);
        let plain = serde_json::to_value(head().choice(0, Written::default(), Splitter::new("", true), false)).unwrap();
        assert_eq!((&plain["message"]["content"], &plain["finish_reason"]), (&"".into(), &"stop".into()));
    }

    #[test]
    fn a_streamed_answer_says_the_same() {
        for single in [false, true] {
            let choices = vec![Streamed::new(Splitter::new("", true), single)];
            let (mut stream, mut out) = (Stream { head: head(), choices, usage: true }, Frame::default());
            stream.begin(&mut out);
            for token in written().tokens {
                let event = Event::Token { id: token.id, text: token.text, logprob: None };
                stream.event(0, event, &mut out).unwrap();
            }
            let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 7 };
            let done = Event::Done { stop: Stop::EndOfText, stop_string: None, usage };
            stream.event(0, done, &mut out).unwrap();
            stream.end(&mut out);
            let chunks: Vec<serde_json::Value> = out.chunks();
            let join = |field: &str| -> String {
                chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
            };
            assert_eq!((join("reasoning_content"), join("content")), ("hm".into(), "I look.".into()));
            let calls: Vec<&serde_json::Value> =
                chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
            assert_eq!(calls.len(), if single { 1 } else { 2 });
            assert_eq!((&calls[0]["index"], &calls[0]["function"]["name"]), (&0.into(), &"f".into()));
            let reasons: Vec<&str> =
                chunks.iter().filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str()).collect();
            assert_eq!(reasons, ["tool_calls"]);
            assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
        }
    }
}
