//! One completion on its way from the engine's thread to whoever awaits it.

use crate::error::ApiError;
use futures_util::Stream;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{self, Receiver};
use wudao_infer::engine::{Event, Logprob, Request, Ticket, Usage};
use wudao_infer::{Engine, Stop};

/// Events that a slow reader may leave lying before its completion is given up.
const BUFFER: usize = 1024;

/// A completion that is being made. Dropped, it is cancelled.
pub struct Job {
    events: Receiver<Event>,
    _ticket: Ticket,
}

impl Job {
    /// Begins a completion; with `streamed` it may not run far ahead of its reader.
    pub fn start(engine: &Engine, request: Request, streamed: bool) -> Result<Job, ApiError> {
        // Prompt, tokens, end.
        let all = request.max_tokens.min(engine.context()) + 2;
        let (sender, events) = mpsc::channel(if streamed { all.min(BUFFER) } else { all });
        // A full buffer ends the completion as a reader who has left does: the engine waits for nobody.
        let ticket = engine.submit(request, Box::new(move |event| sender.try_send(event).is_ok()))?;
        Ok(Job { events, _ticket: ticket })
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<Written, ApiError> {
        let mut written = Written::default();
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Prompt(scores) => written.prompt = Some(scores),
                Event::Token { id, text, logprob } => written.tokens.push(Token { id, text, logprob }),
                Event::Done { stop, usage, .. } => {
                    (written.stop, written.usage) = (Some(stop), usage);
                    return Ok(written);
                }
                Event::Failed(why) => return Err(failed(why)),
            }
        }
        Err(ApiError::internal("the engine ended before the completion did"))
    }
}

impl Stream for Job {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}

/// What an engine's failure is to a client.
pub fn failed(why: String) -> ApiError {
    ApiError::internal(format!("the completion failed: {why}"))
}

/// A token of a completion.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What became certain of the text with it.
    pub text: String,
    /// If asked for.
    pub logprob: Option<Logprob>,
}

/// A finished completion.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Log probabilities of the prompt, if asked for.
    pub prompt: Option<Vec<Option<Logprob>>>,
    /// What was written.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub stop: Option<Stop>,
    /// What it took.
    pub usage: Usage,
}

impl Written {
    /// The whole text.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    /// Mean log probability of a token, for the choice of the best completion.
    pub fn mean_logprob(&self) -> f64 {
        let all = self.tokens.iter().filter_map(|token| Some(f64::from(token.logprob.as_ref()?.logprob)));
        all.sum::<f64>() / self.tokens.len().max(1) as f64
    }
}

/// `finish_reason` as OpenAI names it.
pub fn finish_reason(stop: Option<Stop>) -> &'static str {
    match stop {
        Some(Stop::MaxTokens | Stop::Context) => "length",
        Some(Stop::EndOfText | Stop::StopString | Stop::Reader) | None => "stop",
    }
}
