//! Where entries come from: a keyboard with an editor and a history, or a pipe.

use super::entry::{NAMES, unfinished};
use crate::commands::Context;
use anyhow::Context as _;
use etcetera::BaseStrategy;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use std::io::{BufRead, ErrorKind};
use std::path::{Path, PathBuf};

/// Entries that the history keeps.
const HISTORY: usize = 10_000;

/// What came.
pub enum Typed {
    /// An entry, whole.
    Text(String),
    /// Ctrl-C: what was typed is void.
    Interrupted,
    /// Ctrl-D, or the pipe's end.
    End,
}

/// Where entries come from.
pub enum Reader {
    /// Somebody types.
    Keyboard { editor: Box<Editor<Rules, FileHistory>>, history: Option<PathBuf> },
    /// A file or another program.
    Pipe(std::io::StdinLock<'static>),
}

impl Reader {
    /// A keyboard, whose entries are kept in `history` for the next time.
    pub fn keyboard(history: Option<PathBuf>, cx: &Context) -> anyhow::Result<Reader> {
        let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(false);
        let mut editor = Editor::with_config(config.build()).context("cannot use this terminal")?;
        editor.set_helper(Some(Rules));
        let mut history = history;
        if let Some(path) = &history
            && let Err(error) = open_history(&mut editor, path)
        {
            cx.printer.warn(format!("entries are not kept: {}: {error}", path.display()));
            history = None;
        }
        Ok(Reader::Keyboard { editor: Box::new(editor), history })
    }

    /// Standard input as it is.
    pub fn pipe() -> Reader {
        Reader::Pipe(std::io::stdin().lock())
    }

    /// Waits for the next entry.
    pub fn next(&mut self, cx: &Context) -> anyhow::Result<Typed> {
        match self {
            Reader::Keyboard { editor, history } => {
                let text = match editor.readline("> ") {
                    Ok(text) => text,
                    Err(ReadlineError::Interrupted) => return Ok(Typed::Interrupted),
                    Err(ReadlineError::Eof) => return Ok(Typed::End),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                };
                if editor.add_history_entry(&text)?
                    && let Some(path) = history
                    && let Err(error) = editor.append_history(path)
                {
                    cx.printer.warn(format!("entries are not kept any more: {}: {error}", path.display()));
                    *history = None;
                }
                Ok(Typed::Text(text))
            }
            Reader::Pipe(lines) => {
                Ok(entry(lines).context("cannot read standard input")?.map_or(Typed::End, Typed::Text))
            }
        }
    }
}

/// The next entry of a pipe, if there is one more. What is no UTF-8 is replaced.
fn entry(lines: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        let more = lines.read_until(b'\n', &mut bytes)? > 0;
        if bytes.is_empty() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches(['\r', '\n']);
        if !more || !unfinished(text) {
            return Ok(Some(text.to_owned()));
        }
    }
}

/// The file of the history, in the folder that this system has for such things.
pub fn history_file() -> Option<PathBuf> {
    let folders = etcetera::base_strategy::choose_native_strategy().ok()?;
    Some(folders.state_dir().unwrap_or_else(|| folders.data_dir()).join("wudao").join("chat-history"))
}

fn open_history(editor: &mut Editor<Rules, FileHistory>, path: &Path) -> rustyline::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match editor.load_history(path) {
        Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What the editor knows of entries: when they are finished, and the names of commands.
pub struct Rules;

impl Helper for Rules {}
impl Highlighter for Rules {}

impl Hinter for Rules {
    type Hint = String;
}

impl Validator for Rules {
    fn validate(&self, text: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if unfinished(text.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Rules {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &rustyline::Context) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let fitting = NAMES.iter().filter(|name| !typed.is_empty() && name.starts_with(typed));
        Ok((0, fitting.map(|name| (*name).to_owned()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_one_entry_a_line_unless_lines_go_on() {
        let bytes =
            ["one\r\n\ntwo\\\nthree\n\"\"\"\nfour\n\nfive\n\"\"\"\n六".as_bytes(), b"\xff\n/system \"\"\"cut\noff"]
                .concat();
        let mut lines = bytes.as_slice();
        let entries: Vec<String> = std::iter::from_fn(|| entry(&mut lines).unwrap()).collect();
        let expected =
            ["one", "", "two\\\nthree", "\"\"\"\nfour\n\nfive\n\"\"\"", "六\u{fffd}", "/system \"\"\"cut\noff"];
        assert_eq!(entries, expected);
    }

    #[test]
    fn entries_are_kept_for_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/wudao/chat-history");
        for round in 0..2 {
            let mut editor = Editor::<Rules, FileHistory>::with_config(Config::default()).unwrap();
            open_history(&mut editor, &path).unwrap();
            let before: Vec<String> = editor.history().into_iter().cloned().collect();
            assert_eq!(before, ["床前\n明月光"; 1][..round]);
            editor.add_history_entry("床前\n明月光").unwrap();
            editor.append_history(&path).unwrap();
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o77, 0, "it is nobody else's");
        }
    }
}
