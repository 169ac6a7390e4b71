//! `POST /v1/completions`: texts that are continued.

use super::logprobs::{Lists, MAX_TOP};
use super::{App, Asker, answer};
use crate::body::{Json, Rest, refuse};
use crate::error::{ApiError, ErrorBody};
use crate::form::{self, ResponseFormat, StructuredOutputs};
use crate::job::{Job, Written, finish_reason};
use crate::prompt::{Encoded, Prompt, blocking};
use crate::sampling::{Stops, StreamOptions, new_id, with_sampling};
use crate::served::Served;
use crate::sse::{self, Frame, Frames};
use axum::extract::{Extension, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;
use wudao_infer::engine::{Event, Logprob, Request, Usage};

/// Tokens where a request names no number, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// What would change the answer and is not done here.
const REFUSED: &[&str] = &[
    "suffix",
    "use_beam_search",
    "length_penalty",
    "min_tokens",
    "prompt_logprobs",
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
    "prompt_embeds",
    "images",
];

with_sampling! {
    /// A text to continue.
    #[derive(Clone, Debug, Deserialize, ToSchema)]
    pub struct CompletionRequest {
        /// The model; without, the first that is served.
        pub model: Option<String>,
        /// What is continued.
        pub prompt: Prompt,
        /// Most tokens to write; 0 only reads the prompt. Default 16.
        pub max_tokens: Option<usize>,
        /// Completions of each prompt.
        pub n: Option<usize>,
        /// Make so many and give the `n` whose tokens are likeliest.
        pub best_of: Option<usize>,
        /// The completion ends where one of these begins.
        pub stop: Option<Stops>,
        /// Begin the answer with the prompt.
        #[serde(default)]
        pub echo: bool,
        /// Log probabilities of the tokens, and of so many of the likeliest.
        #[schema(maximum = 20)]
        pub logprobs: Option<usize>,
        /// Send tokens as they come.
        #[serde(default)]
        pub stream: bool,
        /// Options of that.
        pub stream_options: Option<StreamOptions>,
        /// The form of the completion.
        pub response_format: Option<ResponseFormat>,
        /// The same, with more to choose from.
        pub structured_outputs: Option<StructuredOutputs>,
        #[serde(flatten)]
        #[schema(ignore)]
        pub rest: Rest,
    }
}

/// Continued texts, or a piece of one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    /// Its name.
    id: String,
    /// `text_completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// By prompt, and of each prompt by number.
    choices: Vec<Choice>,
    /// Tokens read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageReport>,
}

/// One continued text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Choice {
    /// Its number.
    index: usize,
    /// The text.
    text: String,
    /// If asked for.
    logprobs: Option<Lists>,
    /// `stop`, or `length` where there was no more room.
    finish_reason: Option<&'static str>,
}

/// Tokens read and written.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct UsageReport {
    /// Read.
    prompt_tokens: usize,
    /// Written.
    completion_tokens: usize,
    /// Both.
    total_tokens: usize,
    /// Of those read.
    prompt_tokens_details: PromptDetails,
}

/// Of the tokens that were read.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Those that had been read for another request.
    cached_tokens: usize,
}

impl UsageReport {
    /// Of completions; several of one prompt have read it once.
    pub fn of(all: &[Usage], of_each: usize) -> UsageReport {
        let first = || all.iter().step_by(of_each.max(1));
        let prompt_tokens = first().map(|usage| usage.prompt_tokens).sum();
        let completion_tokens = all.iter().map(|usage| usage.completion_tokens).sum();
        let cached_tokens = first().map(|usage| usage.cached_tokens).sum();
        UsageReport {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Continues texts.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, responses(
    (status = 200, body = Completion, description = "The completions; with `stream`, pieces of them as server-sent events"),
    (status = "4XX", body = ErrorBody, description = "The request is wrong"),
    (status = 503, body = ErrorBody, description = "Too much to do: see the header Retry-After"),
))]
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Asker>,
    Json(request): Json<CompletionRequest>,
) -> Result<Response, ApiError> {
    refuse(&request.rest, REFUSED)?;
    let model = app.models.find(request.model.as_deref())?.clone();
    let n = request.n.unwrap_or(1);
    let made = request.best_of.unwrap_or(n);
    app.check_choices("n", n)?;
    app.check_choices("best_of", made)?;
    app.check_choices("prompt", request.prompt.len().saturating_mul(made))?;
    if made < n || made > n && request.stream {
        return Err(ApiError::invalid_field("best_of", "must be n or more, and n if the completions are streamed"));
    }
    if request.logprobs.is_some_and(|top| top > MAX_TOP) {
        return Err(ApiError::invalid_field("logprobs", format!("must be at most {MAX_TOP}")));
    }
    let form =
        form::Asked::read("response_format", request.response_format.as_ref(), request.structured_outputs.as_ref())?;
    let max_tokens = app.max_tokens(request.max_tokens, Some(DEFAULT_TOKENS), model.engine.context())?;
    let base = Request {
        max_tokens,
        logprobs: request.logprobs.or((made > n).then_some(0)),
        prompt_logprobs: request.logprobs.filter(|_| request.echo),
        client: asker.0,
        ..request.draw().request(request.stop.clone())?
    };
    let mut base = with_ends(base, &model);
    let prompts = request.prompt.encode(&model).await?;
    if let Some(form) = form {
        let engine = model.engine.clone();
        base.constraint = Some(blocking(move || form.compile(&engine)).await?);
    }
    let jobs: Vec<Job> = prompts
        .iter()
        .flat_map(|prompt| (0..made).map(move |number| (prompt, number)))
        .map(|(prompt, number)| Job::start(&model.engine, numbered(&base, &prompt.ids, number), request.stream))
        .collect::<Result<_, _>>()?;

    let head =
        Head { model, id: new_id("cmpl"), created: now(), n, echo: request.echo, logprobs: request.logprobs.is_some() };
    if request.stream {
        let usage = request.stream_options.is_some_and(|options| options.include_usage);
        let choices = (0..prompts.len() * n).map(|_| Streamed::default()).collect();
        return Ok(sse::respond(jobs, Stream { head, prompts, choices, usage }));
    }
    let mut written = Vec::new();
    for job in jobs {
        written.push(job.finish().await?);
    }
    Ok(answer(&head.completion(&prompts, written, made)))
}

/// The model's own ends of texts beside those of the request.
pub fn with_ends(mut request: Request, model: &Served) -> Request {
    if !request.ignore_eos {
        request.stop_tokens.extend(&model.stop_tokens);
    }
    request
}

/// The request for one of several completions of a prompt: each has a seed of its own.
pub fn numbered(base: &Request, prompt: &[u32], number: usize) -> Request {
    let mut request = Request { prompt: prompt.to_vec(), ..base.clone() };
    request.sampling.seed = request.sampling.seed.wrapping_add(number as u64);
    request
}

/// What all choices of an answer have in common.
struct Head {
    model: Arc<Served>,
    id: String,
    created: u64,
    n: usize,
    echo: bool,
    logprobs: bool,
}

impl Head {
    fn wrap(&self, choices: Vec<Choice>, usage: Option<UsageReport>) -> Completion {
        let (id, model) = (self.id.clone(), self.model.name.clone());
        Completion { id, object: "text_completion", created: self.created, model, choices, usage }
    }

    /// The whole answer: of `made` completions of each prompt the best.
    fn completion(&self, prompts: &[Encoded], written: Vec<Written>, made: usize) -> Completion {
        let usages: Vec<Usage> = written.iter().map(|written| written.usage).collect();
        let mut choices = Vec::new();
        for (prompt, of_one) in prompts.iter().zip(written.chunks(made)) {
            let mut best: Vec<&Written> = of_one.iter().collect();
            if made > self.n {
                best.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
            }
            for written in best.into_iter().take(self.n) {
                let index = choices.len();
                choices.push(self.choice(index, prompt, written));
            }
        }
        self.wrap(choices, Some(UsageReport::of(&usages, made)))
    }

    fn choice(&self, index: usize, prompt: &Encoded, written: &Written) -> Choice {
        let mut text = String::new();
        let mut lists = Lists::default();
        if self.echo {
            text.push_str(&prompt.text);
            self.echo_lists(prompt, written.prompt.as_deref(), &mut lists);
        }
        let mut offset = text.chars().count();
        for token in &written.tokens {
            lists.push(&self.model.engine, token.id, token.logprob.as_ref(), offset);
            offset += token.text.chars().count();
            text.push_str(&token.text);
        }
        let logprobs = self.logprobs.then_some(lists);
        Choice { index, text, logprobs, finish_reason: Some(finish_reason(written.stop)) }
    }

    /// The prompt's tokens, each at the place of its text.
    fn echo_lists(&self, prompt: &Encoded, scores: Option<&[Option<Logprob>]>, lists: &mut Lists) {
        let mut decoder = self.model.engine.tokenizer().decode_stream(false);
        let mut offset = 0;
        for (number, &id) in prompt.ids.iter().enumerate() {
            let score = scores.and_then(|scores| scores.get(number)?.as_ref());
            lists.push(&self.model.engine, id, score, offset);
            if number >= prompt.silent {
                offset += decoder.push(id).chars().count();
            }
        }
    }
}

/// A choice that is being streamed.
#[derive(Default)]
struct Streamed {
    /// Characters sent.
    offset: usize,
    usage: Usage,
}

struct Stream {
    head: Head,
    prompts: Vec<Encoded>,
    choices: Vec<Streamed>,
    usage: bool,
}

impl Stream {
    fn send(&self, index: usize, text: String, lists: Lists, finish_reason: Option<&'static str>, out: &mut Frame) {
        let logprobs = (self.head.logprobs && !lists.is_empty()).then_some(lists);
        out.data(&self.head.wrap(vec![Choice { index, text, logprobs, finish_reason }], None));
    }
}

impl Frames for Stream {
    fn begin(&mut self, out: &mut Frame) {
        // With log probabilities it comes with them.
        if self.head.echo && !self.head.logprobs {
            for number in 0..self.choices.len() {
                let text = self.prompts[number / self.head.n].text.clone();
                self.send(number, text, Lists::default(), None, out);
            }
        }
    }

    fn event(&mut self, number: usize, event: Event, out: &mut Frame) -> Result<(), ApiError> {
        match event {
            Event::Prompt(scores) => {
                let prompt = &self.prompts[number / self.head.n];
                let mut lists = Lists::default();
                self.head.echo_lists(prompt, Some(&scores), &mut lists);
                self.choices[number].offset = prompt.text.chars().count();
                self.send(number, prompt.text.clone(), lists, None, out);
            }
            Event::Token { id, text, logprob } => {
                let mut lists = Lists::default();
                if self.head.logprobs {
                    lists.push(&self.head.model.engine, id, logprob.as_ref(), self.choices[number].offset);
                }
                self.choices[number].offset += text.chars().count();
                if !text.is_empty() || self.head.logprobs {
                    self.send(number, text, lists, None, out);
                }
            }
            Event::Done { stop, usage, .. } => {
                self.choices[number].usage = usage;
                self.send(number, String::new(), Lists::default(), Some(finish_reason(Some(stop))), out);
            }
            Event::Failed(_) => {}
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Frame) {
        if self.usage {
            let usages: Vec<Usage> = self.choices.iter().map(|choice| choice.usage).collect();
            out.data(&self.head.wrap(Vec::new(), Some(UsageReport::of(&usages, self.head.n))));
        }
        out.raw("", "[DONE]");
    }
}
