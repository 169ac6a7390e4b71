//! What the targets share.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use wudao_data::read::{Problem, ReadError, ReadOptions, Sink, Split};

static SAID: Mutex<Option<String>> = Mutex::new(None);

/// Runs code that catches panics of a library itself. The fuzzer's hook would end the process before they are caught,
/// so it is out of the way meanwhile; a panic that comes through is a finding all the same.
pub fn catching<T>(call: impl FnOnce() -> T) -> T {
    let said = || SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |what| *said() = Some(what.to_string())));
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    panic::set_hook(hook);
    result.unwrap_or_else(|_| panic!("{}", said().take().unwrap_or_default()))
}

/// Options small enough that every limit is met, chosen by a byte.
pub fn options(choice: u8) -> ReadOptions {
    let split = [Split::None, Split::Line, Split::Paragraph][usize::from(choice) % 3];
    let fields = if choice & 64 == 0 { vec!["text".into()] } else { vec!["title".into(), "text".into()] };
    match choice & 128 {
        0 => ReadOptions { split, fields, max_document_bytes: 50, max_record_bytes: 200, ..ReadOptions::default() },
        _ => ReadOptions { split, fields, ..ReadOptions::default() },
    }
}

/// Keeps what a reader yields, and checks what every reader promises of it.
#[derive(Debug, PartialEq)]
pub struct Gather {
    longest: usize,
    /// The texts.
    pub documents: Vec<String>,
    /// What was wrong.
    pub problems: Vec<Problem>,
}

impl Gather {
    /// For a reader with these options.
    pub fn new(options: &ReadOptions) -> Gather {
        Gather { longest: options.max_document_bytes, documents: vec![], problems: vec![] }
    }
}

impl Sink for Gather {
    fn document(&mut self, text: String) -> Result<(), ReadError> {
        assert!(!text.trim().is_empty() && text.len() <= self.longest, "{text:?}");
        self.documents.push(text);
        Ok(())
    }

    fn problem(&mut self, problem: Problem) -> Result<(), ReadError> {
        self.problems.push(problem);
        Ok(())
    }
}
