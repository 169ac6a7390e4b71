//! One completion for a caller who waits for it.

use super::{Engine, Event, Rejected, Request, Usage};
use crate::generate::{Completion, Stop};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a caller who wants to stop may have to wait for being asked.
const LOOK: Duration = Duration::from_millis(50);

/// A completion that somebody has waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    /// What was written.
    pub completion: Completion,
    /// What it took.
    pub usage: Usage,
    /// From the request to the first token.
    pub first_token: Duration,
    /// From the request to the last token.
    pub last_token: Duration,
}

impl Completed {
    /// Tokens a second from the first token to the last, if there were several.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let written = self.usage.completion_tokens.checked_sub(1).filter(|&n| n > 0)?;
        let seconds = self.last_token.saturating_sub(self.first_token).as_secs_f64();
        (seconds > 0.0).then(|| written as f64 / seconds)
    }
}

/// Why there is no completion.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CompleteError {
    /// The request was not taken.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It was taken, and then something broke.
    #[error("the completion failed: {0}")]
    Failed(String),
}

impl Engine {
    /// Makes a completion and waits for its end. `emit` gets each piece of text as it is certain and answers whether to go
    /// on; while nothing comes it is asked with an empty piece, some twenty times a second.
    pub fn complete(&self, request: Request, emit: &mut dyn FnMut(&str) -> bool) -> Result<Completed, CompleteError> {
        let start = Instant::now();
        let (sender, events) = channel();
        let mut usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        // Dropped on the way out, it ends a completion that nobody waits for any more.
        let _ticket = self.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
        let (mut text, mut tokens, mut times) = (String::new(), Vec::new(), Vec::new());
        let stop = loop {
            match events.recv_timeout(LOOK) {
                Ok(Event::Prompt(_)) => {}
                Ok(Event::Token { id, text: piece, .. }) => {
                    times.push(start.elapsed());
                    tokens.push(id);
                    text.push_str(&piece);
                    if !emit(&piece) {
                        break Stop::Reader;
                    }
                }
                Ok(Event::Done { stop, usage: whole, .. }) => {
                    usage = whole;
                    break stop;
                }
                Ok(Event::Failed(why)) => return Err(CompleteError::Failed(why)),
                Err(RecvTimeoutError::Timeout) if emit("") => {}
                Err(RecvTimeoutError::Timeout) => break Stop::Reader,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(CompleteError::Failed("the engine has stopped".into()));
                }
            }
        };
        usage.completion_tokens = tokens.len();
        let (first_token, last_token) = (times.first().copied(), times.last().copied());
        Ok(Completed {
            completion: Completion { text, tokens, prompt_tokens: usage.prompt_tokens, stop },
            usage,
            first_token: first_token.unwrap_or_default(),
            last_token: last_token.unwrap_or_default(),
        })
    }
}
