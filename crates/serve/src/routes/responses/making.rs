//! An answer that is being made: its items, and the events that tell of them.

use crate::error::ApiError;
use crate::sampling::new_id;
use crate::split::{Part, Splitter};
use crate::sse::{Frame, Frames};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use wudao_infer::Stop;
use wudao_infer::engine::{Event, Usage};

/// Something the model made.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    /// What it thought.
    Reasoning {
        /// Its name.
        id: String,
        /// Always empty.
        summary: Vec<Piece>,
        /// The thought.
        content: Vec<Piece>,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
    /// What it says.
    Message {
        /// Its name.
        id: String,
        /// `assistant`.
        role: &'static str,
        /// The text.
        content: Vec<Piece>,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
    },
    /// What it calls.
    FunctionCall {
        /// Its name.
        id: String,
        /// What its result refers to.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments, JSON in a text.
        arguments: String,
        /// `completed`.
        status: &'static str,
    },
}

/// A piece of text.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Piece {
    /// Of a message.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        annotations: [(); 0],
    },
    /// Of a thought.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// An answer. The fields that only repeat the request are not listed here.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseObject {
    /// Its name.
    id: String,
    /// `response`.
    object: &'static str,
    /// Seconds since 1970.
    created_at: u64,
    /// `in_progress`, `completed`, or `incomplete` where there was no more room.
    status: &'static str,
    /// The model.
    model: String,
    /// What the model made.
    output: Vec<Item>,
    /// Why it is incomplete.
    incomplete_details: Option<Incomplete>,
    /// Tokens read and written.
    usage: Option<ResponseUsage>,
    /// What the request said.
    #[serde(flatten)]
    #[schema(ignore)]
    echo: serde_json::Map<String, serde_json::Value>,
}

impl ResponseObject {
    /// Of which nothing is made yet.
    pub fn new(model: String, created_at: u64, echo: serde_json::Map<String, serde_json::Value>) -> ResponseObject {
        ResponseObject {
            id: new_id("resp"),
            object: "response",
            created_at,
            status: "in_progress",
            model,
            output: Vec::new(),
            incomplete_details: None,
            usage: None,
            echo,
        }
    }
}

/// Why an answer is incomplete.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Incomplete {
    /// `max_output_tokens`.
    reason: &'static str,
}

/// Tokens read and written.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Read.
    input_tokens: usize,
    /// Of these.
    input_tokens_details: InputDetails,
    /// Written.
    output_tokens: usize,
    /// Of these.
    output_tokens_details: OutputDetails,
    /// Both.
    total_tokens: usize,
}

/// Of the tokens read.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InputDetails {
    /// Those that had been read for another request.
    cached_tokens: usize,
}

/// Of the tokens written.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OutputDetails {
    /// Those of thoughts, about.
    reasoning_tokens: usize,
}

/// An answer that is being made.
pub struct Making {
    /// What was made so far.
    pub response: ResponseObject,
    splitter: Option<Splitter>,
    single: bool,
    calls: usize,
    reasoning_tokens: usize,
    /// Why it ended, if it has.
    pub stop: Option<Stop>,
    usage: Usage,
    /// Events so far.
    sequence: usize,
}

impl Making {
    /// Nothing yet.
    pub fn new(response: ResponseObject, splitter: Splitter, single: bool) -> Making {
        Making {
            response,
            splitter: Some(splitter),
            single,
            calls: 0,
            reasoning_tokens: 0,
            stop: None,
            usage: Usage::default(),
            sequence: 0,
        }
    }

    fn say(&mut self, name: &str, mut event: serde_json::Value, out: &mut Frame) {
        event["type"] = name.into();
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.named(name, &event);
    }

    fn tell_response(&mut self, name: &str, out: &mut Frame) {
        let event = json!({"response": self.response});
        self.say(name, event, out);
    }

    /// The text of the item that is open, with its name and the kind of its events.
    fn open(&mut self) -> Option<(&str, &'static str, &mut String)> {
        match self.response.output.last_mut()? {
            Item::Message { id, content, status: "in_progress", .. } => match content.first_mut()? {
                Piece::OutputText { text, .. } => Some((id, "output_text", text)),
                Piece::ReasoningText { .. } => None,
            },
            Item::Reasoning { id, content, status: "in_progress", .. } => match content.first_mut()? {
                Piece::ReasoningText { text } => Some((id, "reasoning_text", text)),
                Piece::OutputText { .. } => None,
            },
            _ => None,
        }
    }

    /// More of a text, in the item that is open if it is of this kind, or in a new one.
    fn text(&mut self, kind: &'static str, piece: &str, out: &mut Frame) {
        if self.open().is_none_or(|(_, open, _)| open != kind) {
            self.close("completed", out);
            let status = "in_progress";
            let (item, empty) = match kind {
                "output_text" => {
                    let empty = Piece::OutputText { text: String::new(), annotations: [] };
                    let (id, content) = (new_id("msg"), Vec::new());
                    (Item::Message { id, role: "assistant", content, status }, empty)
                }
                _ => {
                    let empty = Piece::ReasoningText { text: String::new() };
                    let (id, content) = (new_id("rs"), Vec::new());
                    (Item::Reasoning { id, summary: Vec::new(), content, status }, empty)
                }
            };
            self.add(item, out);
            let at = self.response.output.len() - 1;
            let mut id = String::new();
            if let Some(Item::Message { id: own, content, .. } | Item::Reasoning { id: own, content, .. }) =
                self.response.output.last_mut()
            {
                content.push(empty.clone());
                id.clone_from(own);
            }
            let event = json!({"item_id": id, "output_index": at, "content_index": 0, "part": empty});
            self.say("response.content_part.added", event, out);
        }
        let at = self.response.output.len() - 1;
        let Some((id, kind, text)) = self.open() else { return };
        text.push_str(piece);
        let mut event = json!({"item_id": id, "output_index": at, "content_index": 0, "delta": piece});
        if kind == "output_text" {
            event["logprobs"] = json!([]);
        }
        self.say(&format!("response.{kind}.delta"), event, out);
    }

    fn add(&mut self, item: Item, out: &mut Frame) {
        let event = json!({"output_index": self.response.output.len(), "item": item});
        self.response.output.push(item);
        self.say("response.output_item.added", event, out);
    }

    /// Ends the item that is open, if one is.
    fn close(&mut self, end: &'static str, out: &mut Frame) {
        let Some((id, kind, text)) = self.open() else { return };
        let (id, text) = (id.to_owned(), text.clone());
        let at = self.response.output.len() - 1;
        let mut event = json!({"item_id": id, "output_index": at, "content_index": 0, "text": text});
        if kind == "output_text" {
            event["logprobs"] = json!([]);
        }
        self.say(&format!("response.{kind}.done"), event, out);
        let item = match &mut self.response.output[at] {
            item @ (Item::Message { .. } | Item::Reasoning { .. }) => {
                if let Item::Message { status, .. } | Item::Reasoning { status, .. } = item {
                    *status = end;
                }
                item.clone()
            }
            Item::FunctionCall { .. } => return,
        };
        if let Item::Message { content, .. } | Item::Reasoning { content, .. } = &item {
            let event = json!({"item_id": id, "output_index": at, "content_index": 0, "part": content.first()});
            self.say("response.content_part.done", event, out);
        }
        self.say("response.output_item.done", json!({"output_index": at, "item": item}), out);
    }

    fn call(&mut self, name: String, arguments: String, out: &mut Frame) {
        self.close("completed", out);
        self.calls += 1;
        let (id, call_id) = (new_id("fc"), new_id("call"));
        let begun = Item::FunctionCall {
            id: id.clone(),
            call_id: call_id.clone(),
            name: name.clone(),
            arguments: String::new(),
            status: "in_progress",
        };
        self.add(begun, out);
        let at = self.response.output.len() - 1;
        let delta = json!({"item_id": id, "output_index": at, "delta": arguments});
        self.say("response.function_call_arguments.delta", delta, out);
        let done = json!({"item_id": id, "output_index": at, "name": name, "arguments": arguments});
        self.say("response.function_call_arguments.done", done, out);
        let item = Item::FunctionCall { id, call_id, name, arguments, status: "completed" };
        self.say("response.output_item.done", json!({"output_index": at, "item": item}), out);
        self.response.output[at] = item;
    }

    fn parts(&mut self, parts: Vec<Part>, out: &mut Frame) {
        for part in parts {
            if self.single && self.calls > 0 {
                return;
            }
            match part {
                Part::Reasoning(text) => self.text("reasoning_text", &text, out),
                Part::Content(text) => self.text("output_text", &text, out),
                Part::Call { name, arguments } => self.call(name, arguments, out),
            }
        }
    }
}

impl Frames for Making {
    fn begin(&mut self, out: &mut Frame) {
        self.tell_response("response.created", out);
        self.tell_response("response.in_progress", out);
    }

    fn event(&mut self, _number: usize, event: Event, out: &mut Frame) -> Result<(), ApiError> {
        match event {
            Event::Token { text, .. } => {
                let Some(splitter) = &mut self.splitter else { return Ok(()) };
                let parts = splitter.push(&text);
                self.reasoning_tokens += usize::from(splitter.thinking());
                self.parts(parts, out);
            }
            Event::Done { stop, usage, .. } => {
                let parts = self.splitter.take().map(Splitter::finish).unwrap_or_default();
                self.parts(parts, out);
                (self.stop, self.usage) = (Some(stop), usage);
            }
            Event::Prompt(_) | Event::Failed(_) => {}
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Frame) {
        let full = matches!(self.stop, Some(Stop::MaxTokens | Stop::Context));
        let (status, name) =
            if full { ("incomplete", "response.incomplete") } else { ("completed", "response.completed") };
        if self.response.output.is_empty() {
            self.text("output_text", "", out);
        }
        self.close(status, out);
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        self.response.status = status;
        self.response.incomplete_details = full.then_some(Incomplete { reason: "max_output_tokens" });
        self.response.usage = Some(ResponseUsage {
            input_tokens: prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens },
            output_tokens: completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: self.reasoning_tokens },
            total_tokens: prompt_tokens + completion_tokens,
        });
        self.tell_response(name, out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Frame) {
        let (code, message) = error.words();
        self.say("error", json!({"code": code, "message": message, "param": null}), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The items and the names of the events of an answer in these pieces.
    fn make(pieces: &[&str], stop: Stop) -> (serde_json::Value, Vec<String>) {
        let response = ResponseObject::new("tiny".into(), 1, Default::default());
        let (mut making, mut out) = (Making::new(response, Splitter::new("", true), false), Frame::default());
        making.begin(&mut out);
        for text in pieces {
            making.event(0, Event::Token { id: 5, text: (*text).to_owned(), logprob: None }, &mut out).unwrap();
        }
        making.event(0, Event::Done { stop, stop_string: None, usage: Usage::default() }, &mut out).unwrap();
        making.end(&mut out);
        let kinds = out.chunks().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
        (serde_json::to_value(&making.response).unwrap(), kinds)
    }

    #[test]
    fn an_answer_is_a_list_of_items() {
        let pieces = ["<think>h", "m</think>", "Yes", ".<tool_call>{\"name\": \"f\"}</tool_call>", "more"];
        let (response, kinds) = make(&pieces, Stop::MaxTokens);
        let types: Vec<&str> =
            response["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["reasoning", "message", "function_call", "message"]);
        assert_eq!(response["output"][0]["content"][0], json!({"type": "reasoning_text", "text": "hm"}));
        assert_eq!(response["output"][2]["arguments"], "{}");
        assert_eq!(
            (&response["output"][3]["status"], &response["status"]),
            (&"incomplete".into(), &"incomplete".into())
        );
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        let count = |kind: &str| kinds.iter().filter(|own| *own == kind).count();
        for kind in ["response.output_item.added", "response.output_item.done"] {
            assert_eq!(count(kind), 4, "{kind}");
        }
        assert_eq!((count("response.reasoning_text.done"), count("response.output_text.done")), (1, 2));
        assert_eq!(kinds.last().unwrap(), "response.incomplete");
    }

    #[test]
    fn silence_is_an_empty_message() {
        let (response, _) = make(&[""], Stop::EndOfText);
        assert_eq!(response["output"][0]["content"][0]["text"], "");
        assert_eq!(response["status"], "completed");
    }
}
