//! A model and a conversation: how an answer is made and shown.

use super::conversation::Conversation;
use super::entry::Command;
use crate::commands::Context;
use crate::commands::engine::guessed;
use crate::commands::generate::SamplingArgs;
use crate::error::Advice;
use crate::printer::grouped;
use crate::settings::{Origin, Resolved};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wudao_infer::chat::Chat;
use wudao_infer::engine::{CompleteError, Completed, Rejected, Request};
use wudao_infer::{Generation, Stop};
use wudao_serve::{Part, Served, Splitter};

/// A model and a conversation.
pub struct Talk<'a> {
    cx: &'a Context<'a>,
    model: Served,
    sampling: SamplingArgs,
    settings: Resolved,
    conversation: Conversation,
    /// Ends the answer that is being made.
    stop: Arc<AtomicBool>,
    /// Somebody looks on: thoughts, figures and hints are shown.
    watched: bool,
    /// Answers so far: each is drawn with a seed of its own, so that a second try says something else.
    answers: u64,
    /// Tokens of the conversation after the last answer.
    tokens: usize,
}

impl<'a> Talk<'a> {
    /// A conversation with a model.
    pub fn new(
        cx: &'a Context<'a>,
        model: Served,
        sampling: SamplingArgs,
        settings: Resolved,
        conversation: Conversation,
        stop: Arc<AtomicBool>,
        watched: bool,
    ) -> Self {
        Talk { cx, model, sampling, settings, conversation, stop, watched, answers: 0, tokens: 0 }
    }

    /// What this is, and what can be done.
    pub fn greet(&self) {
        let context = grouped(self.model.engine.context() as u64);
        if self.model.template.is_none() {
            let what = "has no chat template: it continues each text as it stands and remembers none";
            self.cx.printer.warn(format!("{} {what}", self.model.name));
        }
        if self.watched {
            let what =
                format!("{}, {context} tokens of context. /help lists commands, Ctrl-D leaves.", self.model.name);
            self.cx.printer.status("Talking to", what);
        }
        self.tell_loaded();
    }

    /// Something for who looks on.
    pub fn tell(&self, text: impl std::fmt::Display) {
        self.cx.printer.note(text);
    }

    fn tell_loaded(&self) {
        if self.conversation.len() > 0 {
            let open = if self.conversation.question().is_some() { "; /retry asks the last one" } else { "" };
            self.tell(format!("{} messages so far{open}", self.conversation.len()));
        }
    }

    /// Asks, and shows the answer.
    pub fn ask(&mut self, text: String) -> anyhow::Result<()> {
        self.conversation.ask(text);
        let answered = self.answer();
        if self.conversation.question().is_some() {
            // Nothing came of it: without this, the next question would follow upon this one.
            self.conversation.undo();
        }
        answered
    }

    /// What the program itself is asked.
    pub fn command(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Retry => self.retry()?,
            Command::Undo => match self.conversation.undo() {
                Some(question) => self.tell(format!("forgotten: {}", super::super::generate::beginning(&question))),
                None => self.tell("there is nothing to forget"),
            },
            Command::Clear => {
                self.conversation.clear();
                self.tokens = 0;
                self.tell("the conversation begins anew");
            }
            Command::ShowSystem => self.tell(self.conversation.system().unwrap_or("there is no system message")),
            Command::System(text) => {
                self.conversation.set_system(text);
                self.tell("from the next answer on");
            }
            Command::ShowSettings => self.tell(self.show_settings()?),
            Command::Set { key, value } => self.set(&key, &value)?,
            Command::Save(path) => {
                self.conversation.save(&path)?;
                self.tell(format!("{} messages are in {}", self.conversation.len(), path.display()));
            }
            Command::Load(path) => {
                self.conversation = Conversation::load(&path)?;
                self.tokens = 0;
                self.tell_loaded();
            }
            Command::Stats => self.tell(self.stats()),
            Command::Help | Command::Exit => {}
        }
        Ok(())
    }

    /// Another answer to the last question; if none comes, the old one stays.
    fn retry(&mut self) -> anyhow::Result<()> {
        let before = self.conversation.clone();
        if !self.conversation.reopen() {
            self.tell("nothing was asked yet");
            return Ok(());
        }
        let answered = self.answer();
        if self.conversation.question().is_some() {
            self.conversation = before;
        }
        answered
    }

    /// Changes a setting of `[generate]`; what is out of range changes nothing.
    fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("generate.{key}");
        let old = self.settings.layers.clone();
        self.settings.layers.add_text(&path, value, &Origin::Flag("/set".into()))?;
        if key == "stop" {
            self.sampling.stop.clear();
        }
        if let Err(error) = self.generation() {
            self.settings.layers = old;
            return Err(error);
        }
        self.tell(format!("{key} = {}", self.settings.layers.get(&path).map_or("none".into(), ToString::to_string)));
        Ok(())
    }

    /// What the settings come to. Unless somebody says otherwise, an answer may fill the context.
    fn generation(&self) -> anyhow::Result<Generation> {
        let mut how = self.sampling.generation(&self.settings)?;
        if *self.settings.layers.origin("generate.max_tokens") == Origin::Default {
            how.max_tokens = self.model.engine.context();
        }
        Ok(how)
    }

    fn show_settings(&self) -> anyhow::Result<String> {
        let Generation { max_tokens, sampling: s, stop, .. } = self.generation()?;
        Ok(format!(
            "temperature = {}\ntop_k = {}\ntop_p = {}\nmin_p = {}\nrepetition_penalty = {}\nmax_tokens = {max_tokens}\n\
             seed = {}\nstop = {stop:?}",
            s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.seed
        ))
    }

    fn stats(&self) -> String {
        let (status, context) = (self.model.engine.status(), self.model.engine.context());
        let c = &status.counters;
        let mut text = format!(
            "messages   {}\ncontext    {} of {} tokens\nread       {} tokens, of which {} were still in memory\n\
             written    {} tokens in {} answers",
            self.conversation.len(),
            grouped(self.tokens as u64),
            grouped(context as u64),
            grouped(c.prompt_tokens),
            grouped(c.cached_tokens),
            grouped(c.completion_tokens),
            self.answers,
        );
        text.extend(guessed(c).map(|guessed| format!("\nguesses    {guessed}")));
        text
    }

    /// The question in tokens, and what splits its answer.
    fn prompt(&self) -> anyhow::Result<(Vec<u32>, Option<Splitter>)> {
        let Some(template) = &self.model.template else {
            let begin = self.model.begin();
            let text = self.model.engine.tokenizer().encode_with_special(self.conversation.question().unwrap_or(""))?;
            return Ok((begin.into_iter().chain(text).collect(), None));
        };
        let text = template.render(&Chat { messages: self.conversation.values(), ..Chat::default() })?;
        let ids = self.model.engine.tokenizer().encode_with_special(&text)?;
        Ok((ids, Some(Splitter::new(&text, false))))
    }

    /// Answers the question that waits.
    fn answer(&mut self) -> anyhow::Result<()> {
        let (prompt, mut splitter) = self.prompt()?;
        let Generation { max_tokens, mut sampling, stop, .. } = self.generation()?;
        sampling.seed = sampling.seed.wrapping_add(self.answers);
        self.answers += 1;
        let stop_tokens = self.model.stop_tokens.clone();
        let request = Request { prompt, max_tokens, sampling, stop, stop_tokens, ..Request::default() };
        let mut page = Page::new(self.cx, self.watched);
        let mut broken = None;
        self.stop.store(false, Ordering::Relaxed);
        let made = self.model.engine.complete(request, &mut |piece| {
            let parts = match &mut splitter {
                Some(splitter) => splitter.push(piece),
                None => vec![Part::Content(piece.to_owned())],
            };
            broken = parts.into_iter().try_for_each(|part| page.show(part)).err();
            broken.is_none() && !self.stop.load(Ordering::Relaxed)
        });
        let rest = splitter.map(Splitter::finish).unwrap_or_default();
        let shown = rest.into_iter().try_for_each(|part| page.show(part)).and_then(|()| page.end());
        if let Some(error) = broken.or(shown.err()) {
            return Err(error.into());
        }
        let made = made.map_err(anyhow::Error::from).map_err(|error| match error.downcast_ref() {
            Some(CompleteError::Rejected(Rejected::TooLong { .. })) => {
                Err::<(), _>(error).help("/undo, /clear or a larger --context makes room").unwrap_err()
            }
            _ => error,
        })?;
        self.tokens = made.usage.prompt_tokens + made.usage.completion_tokens;
        if made.completion.stop != Stop::Reader || !page.content.is_empty() {
            self.conversation.answer(page.content, page.thought);
        }
        self.report(&made);
        Ok(())
    }

    /// What an answer took.
    fn report(&self, made: &Completed) {
        let why = match made.completion.stop {
            Stop::EndOfText | Stop::StopString => "",
            Stop::MaxTokens => "; cut off at max_tokens",
            Stop::Context => "; the context is full: /undo or /clear makes room",
            Stop::Reader => "; stopped",
        };
        let rate = made.tokens_per_second().map_or(String::new(), |rate| format!(", {rate:.1} tokens/s"));
        let (written, first) = (made.usage.completion_tokens, made.first_token.as_secs_f64());
        let text = format!("[{written} tokens{rate}, the first after {first:.1} s{why}]");
        if self.watched { self.tell(text) } else { self.cx.printer.detail(text) }
    }
}

/// An answer as it is shown. Somebody who looks on sees thoughts too, dimmed, and no control characters: those of a model
/// have no business with a terminal.
struct Page<'a> {
    cx: &'a Context<'a>,
    watched: bool,
    content: String,
    thought: String,
    /// The last character that was shown.
    last: Option<char>,
}

impl<'a> Page<'a> {
    fn new(cx: &'a Context<'a>, watched: bool) -> Self {
        Page { cx, watched, content: String::new(), thought: String::new(), last: None }
    }

    fn show(&mut self, part: Part) -> io::Result<()> {
        match part {
            Part::Reasoning(text) => {
                let first = self.thought.is_empty();
                self.thought.push_str(&text);
                if !self.watched {
                    return Ok(());
                }
                let text = visible(&text);
                self.last = text.chars().last().or(self.last);
                self.cx.printer.aside(&if first { format!("Thinking: {text}") } else { text })
            }
            Part::Content(text) => {
                if self.watched && self.content.is_empty() && self.last.is_some() {
                    self.cx.printer.answer("\n\n")?;
                }
                self.content.push_str(&text);
                let text = if self.watched { visible(&text) } else { text };
                self.last = text.chars().last().or(self.last);
                self.cx.printer.answer(&text)
            }
            // Nothing is offered to be called.
            Part::Call { .. } => Ok(()),
        }
    }

    /// An answer ends its line, though it be empty: the next one begins on its own.
    fn end(&mut self) -> io::Result<()> {
        if self.last == Some('\n') { Ok(()) } else { self.cx.printer.answer("\n") }
    }
}

/// Text with control characters as pictures of them.
fn visible(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '\u{2421}',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn a_model_cannot_control_the_terminal() {
        assert_eq!(visible("a\x1b[2J明\r\n\tb\u{9b}\x7f"), "a␛[2J明␍\n\tb\u{fffd}␡");
    }
}
