//! What somebody typed: something to say, or a command; and whether it is finished.
//!
//! An entry is one line, or several: a line that ends in `\` goes on, and between `"""` and `"""` everything is taken as it
//! stands. The same rules hold for a keyboard, for pasted text and for a pipe.

use std::path::PathBuf;

/// What `/help` shows.
pub const HELP: &str = "\
/help               this
/retry              ask the last question again, for another answer
/undo               forget the last question and its answer
/clear              forget the conversation; the system message stays
/system [TEXT|off]  show, set or take away the message that says how to answer
/set [KEY=VALUE]    show the settings, or change one: temperature, top_k, top_p, min_p,
                    repetition_penalty, max_tokens, seed, stop
/save FILE          keep the conversation in a file
/load FILE          go on with one
/stats              tokens, speed, room in the context
/exit               leave, as Ctrl-D does

A line that ends in \\ goes on in the next; between \"\"\" and \"\"\" any number of lines are taken as they are.
Ctrl-C stops an answer. A text that begins with a slash is said with two: //";

/// The commands, for completion.
pub const NAMES: [&str; 10] =
    ["/clear", "/exit", "/help", "/load", "/retry", "/save", "/set", "/stats", "/system", "/undo"];

const QUOTE: &str = "\"\"\"";

/// What somebody typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Nothing,
    /// Something to say.
    Say(String),
    /// A command.
    Do(Command),
}

/// What can be asked of the program itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Retry,
    Undo,
    Clear,
    ShowSystem,
    /// Without a text, it is taken away.
    System(Option<String>),
    ShowSettings,
    Set {
        key: String,
        value: String,
    },
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Exit,
}

/// A command and what follows its name, if the text begins like one: `/name rest`.
fn command(text: &str) -> Option<(&str, &str)> {
    let name = text.strip_prefix('/')?;
    let end = name.find(char::is_whitespace).unwrap_or(name.len());
    (!name.starts_with('/')).then(|| (&name[..end], name[end..].trim_start()))
}

/// Where quotes may open: at the beginning, or after a command.
fn body(text: &str) -> &str {
    let text = text.trim_start();
    command(text).map_or(text, |(_, rest)| rest)
}

/// Whether a text that was typed so far needs more lines.
pub fn unfinished(text: &str) -> bool {
    match body(text).strip_prefix(QUOTE) {
        Some(quoted) => !quoted.trim_end().ends_with(QUOTE),
        None => continues(text),
    }
}

/// Whether a line ends in a backslash that is not itself one of a pair.
fn continues(line: &str) -> bool {
    (line.len() - line.trim_end_matches('\\').len()) % 2 == 1
}

/// The text that is meant: without quotes, or without the backslashes that continue lines.
fn meant(text: &str) -> String {
    if let Some(quoted) = text.strip_prefix(QUOTE) {
        let quoted = quoted.trim_end();
        let quoted = quoted.strip_suffix(QUOTE).unwrap_or(quoted);
        let quoted = quoted.strip_prefix('\n').unwrap_or(quoted);
        return quoted.strip_suffix('\n').unwrap_or(quoted).to_owned();
    }
    let line = |line: &str| if continues(line) { line[..line.len() - 1].to_owned() } else { line.to_owned() };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Reads an entry that is finished, or whose end was cut off.
pub fn parse(text: &str) -> Result<Entry, String> {
    let text = text.trim_matches(['\r', '\n']).replace("\r\n", "\n");
    if text.trim().is_empty() {
        return Ok(Entry::Nothing);
    }
    // A blank before a slash makes it something to say, too.
    let Some((name, rest)) = command(&text) else {
        let text = text.strip_prefix('/').filter(|rest| rest.starts_with('/')).unwrap_or(&text);
        let said = meant(if text.trim_start().starts_with(QUOTE) { text.trim_start() } else { text });
        return Ok(if said.trim().is_empty() { Entry::Nothing } else { Entry::Say(said) });
    };
    let rest = meant(rest);
    let file = |rest: String| match rest.is_empty() {
        true => Err(format!("/{name} needs the name of a file, as in /{name} talk.json")),
        false => Ok(PathBuf::from(rest)),
    };
    let alone = |command: Command| match rest.is_empty() {
        true => Ok(command),
        false => Err(format!("/{name} takes nothing after it; found \"{rest}\"")),
    };
    let command = match name {
        "help" | "?" => Command::Help,
        "retry" => alone(Command::Retry)?,
        "undo" => alone(Command::Undo)?,
        "clear" => alone(Command::Clear)?,
        "stats" => alone(Command::Stats)?,
        "exit" | "quit" => alone(Command::Exit)?,
        "save" => Command::Save(file(rest)?),
        "load" => Command::Load(file(rest)?),
        "system" => match rest.as_str() {
            "" => Command::ShowSystem,
            "off" => Command::System(None),
            _ => Command::System(Some(rest)),
        },
        "set" if rest.is_empty() => Command::ShowSettings,
        "set" => match rest.split_once('=').or(rest.split_once(' ')) {
            Some((key, value)) => Command::Set { key: key.trim().to_owned(), value: value.trim().to_owned() },
            None => return Err(format!("/set {rest}: expected KEY=VALUE, as in /set temperature=0.5")),
        },
        _ => return Err(format!("there is no command /{name}: /help lists them; //{name} says it to the model")),
    };
    Ok(Entry::Do(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(text: &str) -> String {
        match parse(text) {
            Ok(Entry::Say(said)) => said,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn done(text: &str) -> Command {
        match parse(text) {
            Ok(Entry::Do(command)) => command,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn a_backslash_goes_on_and_two_do_not() {
        assert!(unfinished("one\\") && unfinished("one\\\ntwo\\") && unfinished("one\\\\\\"));
        assert!(!unfinished("one") && !unfinished("one\\\ntwo") && !unfinished("one\\\\") && !unfinished(""));
        assert_eq!(said("one\\\ntwo\\\n三"), "one\ntwo\n三");
        assert_eq!(said("a path\\\\"), "a path\\\\");
        assert_eq!(said("cut off\\"), "cut off");
        assert_eq!(said("pasted\nlines"), "pasted\nlines");
        assert_eq!(said("from Windows\r\n"), "from Windows");
    }

    #[test]
    fn between_quotes_everything_is_as_it_stands() {
        assert!(unfinished("\"\"\"") && unfinished("\"\"\"one\\\n/clear") && unfinished("/system \"\"\"Be\nbrief"));
        assert!(!unfinished("\"\"\"one\"\"\"") && !unfinished("\"\"\"\none\n\"\"\"  "));
        assert!(!unfinished("say \"\"\" to it"), "quotes open at the beginning alone");
        assert_eq!(said("\"\"\"\n  one\\\n/clear\n\"\"\""), "  one\\\n/clear");
        assert_eq!(said("\"\"\"one\ntwo\"\"\""), "one\ntwo");
        assert_eq!(said("\"\"\"never closed\n"), "never closed");
        assert_eq!(parse("\"\"\"\"\"\""), Ok(Entry::Nothing));
        assert_eq!(done("/system \"\"\"\nBe\nbrief.\n\"\"\""), Command::System(Some("Be\nbrief.".into())));
    }

    #[test]
    fn commands_are_read_with_what_follows_them() {
        assert_eq!(done("/help"), Command::Help);
        assert_eq!((done("/quit"), done("/exit ")), (Command::Exit, Command::Exit));
        assert_eq!((done("/system"), done("/system off")), (Command::ShowSystem, Command::System(None)));
        assert_eq!(done("/system 说中文。"), Command::System(Some("说中文。".into())));
        let set = |key: &str, value: &str| Command::Set { key: key.into(), value: value.into() };
        assert_eq!(done("/set temperature=0.5"), set("temperature", "0.5"));
        assert_eq!(done("/set  top_k = 5 "), set("top_k", "5"));
        assert_eq!((done("/set seed 7"), done("/set")), (set("seed", "7"), Command::ShowSettings));
        assert_eq!(done("/save my talk.json"), Command::Save("my talk.json".into()));
        assert_eq!(done("/load 谈话.json"), Command::Load("谈话.json".into()));
        for (text, why) in [
            ("/save", "needs the name"),
            ("/retry now", "takes nothing"),
            ("/set temperature", "KEY=VALUE"),
            ("/tmp/file is where?", "//tmp/file"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
        assert!(NAMES.iter().all(|name| HELP.contains(name)));
    }

    #[test]
    fn what_is_no_command_is_said() {
        assert_eq!(said("//etc/hosts holds what?"), "/etc/hosts holds what?");
        assert_eq!(said(" /help"), " /help");
        assert_eq!((parse(""), parse(" \n ")), (Ok(Entry::Nothing), Ok(Entry::Nothing)));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[/\"\\\\a明 \n=]{0,12}") {
            let _ = (unfinished(&text), parse(&text));
        }

        /// Between quotes, a text is said as it is.
        #[test]
        fn a_quoted_text_comes_back(text in "[/\\\\a明 \n=]{0,12}") {
            let quoted = format!("\"\"\"\n{text}\n\"\"\"");
            let expected = if text.trim().is_empty() { Entry::Nothing } else { Entry::Say(text) };
            prop_assert_eq!(parse(&quoted), Ok(expected));
        }
    }
}
