//! What has been said, and the file it is kept in.
//!
//! The file is one line of JSON, `{"messages": [{"role": …, "content": …}, …]}`, as OpenAI's interface takes a conversation and
//! as training takes a document of one. It is written beside the old one and then put into its place, and only over a file
//! that the conversation goes on from: what somebody saved is never lost.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use wudao_infer::chat::Value;

/// Most bytes of a file.
const MAX_FILE: u64 = 64 << 20;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// What was thought before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    fn new(role: Role, content: String) -> Message {
        Message { role, content, reasoning_content: None }
    }

    /// As templates expect it.
    fn value(&self) -> Value {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let mut fields = vec![("role", role), ("content", self.content.as_str())];
        fields.extend(self.reasoning_content.as_deref().map(|thought| ("reasoning_content", thought)));
        Value::from_pairs(fields)
    }
}

/// A conversation: perhaps a system message, then questions and answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    /// The message that says how to answer.
    pub fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message.role == Role::System);
        first.map(|message| message.content.as_str())
    }

    /// Sets it, or takes it away.
    pub fn set_system(&mut self, text: Option<String>) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, Message::new(Role::System, text));
        }
    }

    /// Questions and answers.
    pub fn len(&self) -> usize {
        self.messages.len() - usize::from(self.system().is_some())
    }

    /// The question that waits for an answer.
    pub fn question(&self) -> Option<&str> {
        let last = self.messages.last().filter(|message| message.role == Role::User);
        last.map(|message| message.content.as_str())
    }

    /// As templates expect it.
    pub fn values(&self) -> Vec<Value> {
        self.messages.iter().map(Message::value).collect()
    }

    /// Somebody asks.
    pub fn ask(&mut self, text: String) {
        self.messages.push(Message::new(Role::User, text));
    }

    /// The model answers.
    pub fn answer(&mut self, content: String, thought: String) {
        let reasoning_content = Some(thought).filter(|thought| !thought.is_empty());
        self.messages.push(Message { role: Role::Assistant, content, reasoning_content });
    }

    /// Takes the last answer back, so that its question waits again: false if there is no question.
    pub fn reopen(&mut self) -> bool {
        let Some(at) = self.messages.iter().rposition(|message| message.role == Role::User) else { return false };
        self.messages.truncate(at + 1);
        true
    }

    /// Takes the last question back, with its answer.
    pub fn undo(&mut self) -> Option<String> {
        self.reopen().then(|| self.messages.pop().map(|message| message.content))?
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        self.messages.truncate(self.messages.len() - self.len());
    }

    /// Keeps it in a file, which may be there already if it holds a beginning of this conversation.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let cannot = || format!("cannot save the conversation to {}", path.display());
        let there = match std::fs::symlink_metadata(path) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(cannot),
        };
        if there && !Self::load(path).is_ok_and(|saved| self.messages.starts_with(&saved.messages)) {
            bail!("{} is there already and holds something else: choose another name", path.display());
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            // Who made the file meanwhile keeps it.
            if there {
                file.persist(path)?
            } else {
                file.persist_noclobber(path)?
            };
            if cfg!(unix) {
                File::open(folder)?.sync_all()?;
            }
            Ok(())
        };
        write().with_context(cannot)
    }

    /// Reads it from a file.
    pub fn load(path: &Path) -> anyhow::Result<Conversation> {
        let cannot = || format!("cannot load a conversation from {}", path.display());
        let mut text = String::new();
        let file = File::open(path).with_context(cannot)?;
        file.take(MAX_FILE + 1).read_to_string(&mut text).with_context(cannot)?;
        if text.len() as u64 > MAX_FILE {
            bail!("{} is larger than {MAX_FILE} bytes: it is no conversation", path.display());
        }
        let read: Conversation = serde_json::from_str(&text).with_context(cannot)?;
        if read.messages.iter().skip(1).any(|message| message.role == Role::System) {
            bail!("{}: only the first message can be the system's", path.display());
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Conversation {
        let mut talk = Conversation::default();
        talk.set_system(Some("Be brief.".into()));
        talk.ask("你好".into());
        talk.answer("你好！".into(), "A greeting.".into());
        talk
    }

    #[test]
    fn questions_and_answers_come_and_go() {
        let mut talk = talk();
        talk.ask("and?".into());
        assert_eq!((talk.len(), talk.question(), talk.system()), (3, Some("and?"), Some("Be brief.")));
        assert_eq!(talk.undo().as_deref(), Some("and?"));
        assert_eq!((talk.len(), talk.question()), (2, None));
        assert!(talk.reopen());
        assert_eq!((talk.len(), talk.question()), (1, Some("你好")));
        assert_eq!((talk.undo().as_deref(), talk.undo(), talk.reopen()), (Some("你好"), None, false));
        assert_eq!((talk.len(), talk.system()), (0, Some("Be brief.")));
        talk.ask("again".into());
        talk.clear();
        talk.set_system(None);
        assert_eq!(talk, Conversation::default());
    }

    #[test]
    fn a_conversation_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        talk().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), talk());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"messages":[{"role":"system","content":"Be brief."}"#), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_saved_is_written_over_by_what_goes_on_from_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        talk().save(&path).unwrap();
        let mut longer = talk();
        longer.ask("more".into());
        longer.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), longer);
        let error = talk().save(&path).unwrap_err().to_string();
        assert!(error.contains("another name"), "{error}");
        assert_eq!(Conversation::load(&path).unwrap(), longer);
        let other = dir.path().join("notes.txt");
        std::fs::write(&other, "not a conversation").unwrap();
        assert!(talk().save(&other).is_err());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "not a conversation");
        assert!(talk().save(&dir.path().join("no/such/folder.json")).unwrap_err().to_string().contains("cannot save"));
    }

    #[test]
    fn what_is_no_conversation_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        for text in [
            "",
            "[]",
            r#"{"messages": [{"role": "wizard", "content": ""}]}"#,
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Conversation::load(&path).unwrap_err().to_string();
            assert!(error.contains("talk.json"), "{error}");
        }
        assert!(Conversation::load(dir.path()).is_err());
    }
}
