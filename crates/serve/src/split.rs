//! An answer's parts: what the model thought, what it says, which functions it calls.
//!
//! A model marks them in its text: `<think>…</think>` at the beginning, and `<tool_call>{"name": …, "arguments": …}</tool_call>`
//! where it calls (the form of Hermes and Qwen). The text comes in pieces that know nothing of marks, so what may turn out to be
//! the beginning of one is held back, with the white space before it, which belongs to no part.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Begins a thought.
pub const THINK: &str = "<think>";
/// Ends a thought.
pub const THOUGHT: &str = "</think>";
/// Begins a call.
pub const CALL: &str = "<tool_call>";
/// Ends a call.
pub const CALLED: &str = "</tool_call>";

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// More of what was thought.
    Reasoning(String),
    /// More of what is said.
    Content(String),
    /// A call, whole.
    Call {
        /// The function.
        name: String,
        /// Its arguments, a JSON object as the model wrote it.
        arguments: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space yet.
    Start,
    /// White space at the beginning of a thought.
    Thinking,
    Reasoning,
    /// White space after a thought or a call.
    Gap,
    Content,
    Call,
}

/// Splits one answer.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    held: String,
    /// White space before a call, in case it is none.
    space: String,
    tools: bool,
}

impl Splitter {
    /// At the beginning of an answer to `prompt`, which may have begun a thought. Calls are looked for with `tools`.
    pub fn new(prompt: &str, tools: bool) -> Splitter {
        let state = if prompt.trim_end().ends_with(THINK) { State::Thinking } else { State::Start };
        Splitter { state, held: String::new(), space: String::new(), tools }
    }

    /// At the beginning of an answer that was made to begin with `text`.
    pub fn forced(text: &str) -> Splitter {
        let mut splitter = Splitter { state: State::Gap, held: String::new(), space: String::new(), tools: true };
        splitter.push(text);
        splitter
    }

    /// Whether it stands inside a thought.
    pub fn thinking(&self) -> bool {
        matches!(self.state, State::Thinking | State::Reasoning)
    }

    /// More text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// One change of state; false if more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(THINK) {
                    self.held = rest.to_owned();
                    self.state = State::Thinking;
                } else if THINK.starts_with(text) {
                    return false;
                } else {
                    self.state = State::Content;
                }
                true
            }
            State::Thinking => self.skip_space(State::Reasoning),
            State::Gap => self.skip_space(State::Content),
            State::Reasoning => self.until(THOUGHT, State::Gap, Part::Reasoning, parts),
            State::Content if self.tools => self.until(CALL, State::Call, Part::Content, parts),
            State::Content => {
                push(parts, Part::Content, std::mem::take(&mut self.held));
                false
            }
            State::Call => {
                let Some(end) = self.held.find(CALLED) else { return false };
                let rest = self.held.split_off(end + CALLED.len());
                let text = std::mem::replace(&mut self.held, rest);
                self.call(&text[..end], CALLED, parts);
                true
            }
        }
    }

    fn skip_space(&mut self, next: State) -> bool {
        self.held = self.held.trim_start().to_owned();
        let more = !self.held.is_empty();
        if more {
            self.state = next;
        }
        more
    }

    /// Gives out what stands before `mark`.
    fn until(&mut self, mark: &str, next: State, part: fn(String) -> Part, parts: &mut Vec<Part>) -> bool {
        match self.held.find(mark) {
            Some(at) => {
                let rest = self.held.split_off(at + mark.len());
                let mut text = std::mem::replace(&mut self.held, rest);
                text.truncate(at);
                self.space = text.split_off(text.trim_end().len());
                push(parts, part, text);
                self.state = next;
                true
            }
            None => {
                let held = self.held.split_off(certain(&self.held, mark));
                push(parts, part, std::mem::replace(&mut self.held, held));
                false
            }
        }
    }

    /// What a call says; what does not read as one is text, as it stands.
    fn call(&mut self, text: &str, end: &str, parts: &mut Vec<Part>) {
        match read_call(text) {
            Some((name, arguments)) => {
                parts.push(Part::Call { name, arguments });
                self.state = State::Gap;
            }
            None => {
                push(parts, Part::Content, format!("{}{CALL}{text}{end}", self.space));
                self.state = State::Content;
            }
        }
    }

    /// The text has ended: what was held back.
    pub fn finish(mut self) -> Vec<Part> {
        let (mut parts, held) = (Vec::new(), std::mem::take(&mut self.held));
        match self.state {
            State::Reasoning => push(&mut parts, Part::Reasoning, held.trim_end().to_owned()),
            State::Start | State::Content => push(&mut parts, Part::Content, held),
            // Some models end their text instead of their last call.
            State::Call => self.call(&held, "", &mut parts),
            State::Thinking | State::Gap => {}
        }
        parts
    }
}

fn push(parts: &mut Vec<Part>, part: fn(String) -> Part, text: String) {
    if !text.is_empty() {
        parts.push(part(text));
    }
}

/// Bytes of `text` that cannot be white space before `mark` or the beginning of it.
fn certain(text: &str, mark: &str) -> usize {
    let open = (1..mark.len()).rev().find(|&n| text.ends_with(&mark[..n])).unwrap_or(0);
    text[..text.len() - open].trim_end().len()
}

/// The function and its arguments.
fn read_call(text: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Call<'a> {
        name: String,
        #[serde(borrow, alias = "parameters")]
        arguments: Option<&'a RawValue>,
    }
    let call: Call = serde_json::from_str(text.trim()).ok()?;
    let arguments = call.arguments.map_or("{}", RawValue::get);
    let arguments = match arguments.as_bytes().first() {
        Some(b'{') => arguments.to_owned(),
        // Some models write the object as a string.
        Some(b'"') => serde_json::from_str(arguments).ok()?,
        _ => return None,
    };
    Some((call.name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All parts, neighbours of a kind as one.
    fn split<'a>(mut splitter: Splitter, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
        let mut parts: Vec<Part> = pieces.into_iter().flat_map(|piece| splitter.push(piece)).collect();
        parts.extend(splitter.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Reasoning(a)), Part::Reasoning(b)) | (Some(Part::Content(a)), Part::Content(b)) => {
                    a.push_str(&b)
                }
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn reasoning(text: &str) -> Part {
        Part::Reasoning(text.into())
    }

    fn content(text: &str) -> Part {
        Part::Content(text.into())
    }

    fn call(name: &str, arguments: &str) -> Part {
        Part::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn marks_are_found_and_white_space_around_them_is_nobody_s() {
        let at_once = |prompt: &str, tools, text| split(Splitter::new(prompt, tools), [text]);
        let two = "\n<think>\nhm </think>\n\nYes.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"床\"}}\n</tool_call>\n\
                   <tool_call>{\"name\":\"g\"}</tool_call>";
        let calls = vec![reasoning("hm"), content("Yes."), call("f", "{\"b\": 1, \"a\": \"床\"}"), call("g", "{}")];
        assert_eq!(at_once("", true, two), calls);
        assert_eq!(at_once("user\n<think>\n", true, &two[9..]), calls);
        assert_eq!(at_once("", false, " Yes. <tool_call> "), [content(" Yes. <tool_call> ")]);
        let no_call = "a <tool_call>{oops}</tool_call> b";
        assert_eq!(at_once("", true, no_call), [content(no_call)]);
        assert_eq!(at_once("", true, "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}"), [call("f", "{}")]);
        assert_eq!(at_once("", true, "<think>never ends "), [reasoning("never ends")]);
        assert_eq!(at_once("<think>\n\n</think>\n\n", true, "ok"), [content("ok")]);
        assert_eq!(at_once("", true, "<thin"), [content("<thin")]);
        assert_eq!(at_once("", true, " "), [content(" ")]);
        let begun = Splitter::forced("<tool_call>\n{\"name\": \"f\", \"arguments\": ");
        assert_eq!(split(begun, ["{\"x\": ", "2}}"]), [call("f", "{\"x\": 2}")]);
    }

    proptest! {
        /// Wherever the text is cut, the parts are the same, and no byte that is not a mark or white space is lost.
        #[test]
        fn cuts_change_nothing(
            words in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"f\"}", " ", "\n", "<", "</t", "床", "x", "{}",
            ]), 0..14),
            cuts in prop::collection::vec(0usize..120, 0..8),
            tools: bool,
        ) {
            let text = words.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| at < text.len() && text.is_char_boundary(at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let whole = split(Splitter::new("", tools), [text.as_str()]);
            prop_assert_eq!(&split(Splitter::new("", tools), pieces), &whole);
            let kept: usize = whole.iter().map(|part| match part {
                Part::Reasoning(text) | Part::Content(text) => text.matches(['床', 'x']).count(),
                Part::Call { .. } => 0,
            }).sum();
            prop_assert_eq!(kept, text.matches(['床', 'x']).count());
        }
    }
}
