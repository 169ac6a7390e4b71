//! Answers as they are written: server-sent events.
//!
//! A stream takes events of the engine only as fast as its reader takes frames; what it may leave lying meanwhile is bounded by
//! [`crate::job`]. A reader that has left shows as a body that is dropped, and with it the jobs.

use crate::error::ApiError;
use crate::job::{Job, failed};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SelectAll, select_all, unfold};
use futures_util::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;
use wudao_infer::engine::Event;

/// After so long without an event a remark is sent, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that are written at once if they are there.
const AT_ONCE: usize = 64;

/// One kind of answer: what its stream says of the engine's events.
pub trait Frames: Send + 'static {
    /// Before the first event.
    fn begin(&mut self, out: &mut Frame);
    /// Of the completion with this number.
    fn event(&mut self, number: usize, event: Event, out: &mut Frame) -> Result<(), ApiError>;
    /// After the last.
    fn end(&mut self, out: &mut Frame);
    /// Where something broke.
    fn error(&mut self, error: &ApiError, out: &mut Frame) {
        out.raw("", &error.json());
    }
    /// True once the rest of the events does not matter.
    fn enough(&self) -> bool {
        false
    }
}

/// Frames that go out together.
#[derive(Debug, Default)]
pub struct Frame(String);

impl Frame {
    /// A frame of JSON.
    pub fn data(&mut self, value: &impl Serialize) {
        // JSON has no bare line ends, so one line is enough.
        self.raw("", &serde_json::to_string(value).unwrap_or_default());
    }

    /// A frame of JSON with a name.
    pub fn named(&mut self, name: &str, value: &impl Serialize) {
        self.raw(name, &serde_json::to_string(value).unwrap_or_default());
    }

    /// A frame as it is.
    pub fn raw(&mut self, name: &str, data: &str) {
        if !name.is_empty() {
            self.0.push_str(&format!("event: {name}\n"));
        }
        self.0.push_str(&format!("data: {data}\n\n"));
    }
}

#[cfg(test)]
impl Frame {
    /// The JSON of all frames.
    pub fn chunks(&self) -> Vec<serde_json::Value> {
        self.0.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
    }
}

type Numbered = Pin<Box<dyn Stream<Item = (usize, Option<Event>)> + Send>>;

struct Streaming<F> {
    events: SelectAll<Numbered>,
    frames: F,
    /// Which jobs are done.
    done: Vec<bool>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Begin,
    Middle,
    Over,
}

/// The answer that jobs make, as a stream.
pub fn respond(jobs: Vec<Job>, frames: impl Frames) -> Response {
    let done = vec![false; jobs.len()];
    let events = select_all(jobs.into_iter().enumerate().map(|(number, job)| -> Numbered {
        // The end of a job is said once, so that one which ends too soon is noticed.
        Box::pin(job.map(Some).chain(futures_util::stream::iter([None])).map(move |event| (number, event)))
    }));
    let stream = unfold(Streaming { events, frames, done, state: State::Begin }, |mut streaming| async move {
        let frame = streaming.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(frame)), streaming))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the stream before it hands it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<F: Frames> Streaming<F> {
    async fn next(&mut self) -> Option<String> {
        let mut out = Frame::default();
        while out.0.is_empty() {
            match self.state {
                State::Over => return None,
                State::Begin => {
                    self.state = State::Middle;
                    self.frames.begin(&mut out);
                }
                State::Middle => {
                    let Ok(first) = tokio::time::timeout(KEEP_ALIVE, self.events.next()).await else {
                        return Some(": still here\n\n".into());
                    };
                    let mut next = first;
                    for taken in 1..=AT_ONCE {
                        let Some((number, event)) = next else { break };
                        self.take(number, event, &mut out);
                        // What is taken off the stream must be said: of the last nothing more may be taken.
                        if self.state == State::Over || taken == AT_ONCE {
                            break;
                        }
                        next = self.events.next().now_or_never().flatten();
                    }
                }
            }
        }
        Some(out.0)
    }

    fn take(&mut self, number: usize, event: Option<Event>, out: &mut Frame) {
        self.done[number] |= matches!(event, Some(Event::Done { .. }));
        let taken = match event {
            Some(Event::Failed(why)) => Err(failed(why)),
            Some(event) => self.frames.event(number, event, out),
            // Its last word was another than that it is done.
            None if !self.done[number] => Err(ApiError::slow_reader()),
            None => Ok(()),
        };
        if let Err(error) = taken {
            self.frames.error(&error, out);
            self.state = State::Over;
        } else if self.frames.enough() || self.done.iter().all(|&done| done) {
            self.frames.end(out);
            self.state = State::Over;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use wudao_infer::engine::{EngineOptions, Request};
    use wudao_infer::testing;

    /// Says which events came.
    struct Plain;

    impl Frames for Plain {
        fn begin(&mut self, out: &mut Frame) {
            out.raw("", "begin");
        }

        fn event(&mut self, number: usize, event: Event, out: &mut Frame) -> Result<(), ApiError> {
            match event {
                Event::Done { .. } => out.raw("", &format!("done {number}")),
                Event::Token { .. } => out.raw("named", "token"),
                _ => return Err(ApiError::internal("odd")),
            }
            Ok(())
        }

        fn end(&mut self, out: &mut Frame) {
            out.raw("", "end");
        }
    }

    fn job(engine: &wudao_infer::Engine, max_tokens: usize) -> Job {
        let request = Request { prompt: vec![5], max_tokens, ignore_eos: true, ..Request::default() };
        Job::start(engine, request, true).unwrap()
    }

    #[tokio::test]
    async fn every_job_is_heard_to_its_end() {
        let engine = testing::engine(EngineOptions::default());
        let body = respond(vec![job(&engine, 3), job(&engine, 9)], Plain).into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(text.starts_with("data: begin\n\n") && text.ends_with("data: end\n\n"), "{text}");
        assert_eq!(text.matches("event: named\ndata: token\n\n").count(), 12);
        assert!(text.contains("done 0") && text.contains("done 1"));

        // More than is written at once, all of it there before anybody reads.
        let late = job(&engine, 2 * AT_ONCE + 9);
        while engine.status().counters.completion_tokens < 12 + 2 * AT_ONCE as u64 + 9 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let body = respond(vec![late], Plain).into_body().collect().await.unwrap().to_bytes();
        assert_eq!(String::from_utf8_lossy(&body).matches("data: token").count(), 2 * AT_ONCE + 9);
    }

    #[tokio::test]
    async fn a_job_that_is_cut_short_is_an_error() {
        let engine = testing::engine(EngineOptions::default());
        let job = job(&engine, 200);
        engine.shutdown(Duration::ZERO);
        let body = respond(vec![job], Plain).into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(text.contains("shut down") && !text.contains("data: end"), "{text}");
    }
}
