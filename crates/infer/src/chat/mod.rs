//! Chat templates: from messages to the text that a model continues.
//!
//! A template is a Jinja program that comes with a checkpoint, so it is a stranger's: it is bounded in size, in depth, and in
//! the work and memory of a call. [`minijinja`] runs it, set up as transformers sets up Jinja2 (blocks take their newline
//! and indentation with them, `tojson` is Python's, `raise_exception` and `strftime_now` are there), and the text is
//! transformers', character for character: `tests/chat.rs` compares them.

mod bounds;
mod format;
mod json;
mod source;

pub use jiff::ZonedDateTime;
pub use minijinja::Value;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, ErrorKind};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use wudao_model::gguf::is_gguf;

/// File of the template, where it is not in `tokenizer_config.json`.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Folder of further templates, each named by its file.
const ADDITIONAL: &str = "additional_chat_templates";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The template that is used unless tools are given and there is one for them.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Most bytes of a template: the longest in use have 20 000.
const MAX_TEMPLATE: u64 = 1 << 16;
/// Most bytes of `tokenizer_config.json`, which may list tens of thousands of tokens.
const MAX_CONFIG: u64 = 64 << 20;
/// Most templates of a checkpoint.
const MAX_TEMPLATES: usize = 32;
/// Work of a call, about one unit an instruction and one for 64 bytes made: a second at most, and 256 MB.
const FUEL: u64 = 4 << 20;
/// Depth of macros and blocks inside each other.
const DEPTH: usize = 120;
/// Bytes of stack to read or run a template. A value can have ten thousand levels for each level of macros (`x|batch(1)|batch(1)…`),
/// some 140 000, and whoever writes it out or forgets it goes through them recursively. What is not used is not taken.
const STACK: usize = 256 << 20;

/// The chat template of a checkpoint, or the several it has by name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Special tokens by what they are for, such as `bos_token`.
    special: BTreeMap<String, String>,
}

/// What a template is given.
#[derive(Clone, Debug)]
pub struct Chat {
    /// The messages, as maps with `role` and `content`.
    pub messages: Vec<Value>,
    /// Functions that the model may call, in OpenAI's form. Empty is none.
    pub tools: Vec<Value>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Whatever else this template understands, such as `enable_thinking`.
    pub variables: BTreeMap<String, Value>,
    /// The time that `strftime_now` tells.
    pub now: ZonedDateTime,
}

impl Default for Chat {
    fn default() -> Self {
        Chat {
            messages: Vec::new(),
            tools: Vec::new(),
            add_generation_prompt: true,
            variables: BTreeMap::new(),
            now: ZonedDateTime::now(),
        }
    }
}

/// What is wrong with a template, or with a chat for it.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that no template needs to be.
    #[error("{name} is larger than {limit} bytes: it is no chat template in use")]
    TooLarge {
        /// The file or template.
        name: String,
        /// Most bytes.
        limit: u64,
    },
    /// Not what it should be.
    #[error("{name}: {reason}")]
    Malformed {
        /// The file or template.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The template itself refuses the chat, in its own words.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template fails on this chat.
    #[error("the model's chat template cannot render these messages: {0}")]
    Render(String),
}

/// Marks an error as the template's own.
#[derive(Debug, thiserror::Error)]
#[error("raise_exception")]
struct Raised;

impl ChatTemplate {
    /// The template of a checkpoint folder, or of a GGUF file, if it has one.
    pub fn open(dir: &Path) -> Result<Option<ChatTemplate>, ChatError> {
        if is_gguf(dir) {
            return crate::gguf::chat_template(dir);
        }
        let config_path = dir.join(TOKENIZER_CONFIG);
        let config = match read(&config_path, MAX_CONFIG)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| ChatError::Malformed {
                name: config_path.display().to_string(),
                reason: error.to_string(),
            })?,
            None => serde_json::Value::Null,
        };
        let mut templates = named(&config["chat_template"], &config_path)?;
        if let Some(text) = read(&dir.join(CHAT_TEMPLATE), MAX_TEMPLATE)? {
            // It replaces those of the configuration, as in transformers.
            templates = BTreeMap::from([(DEFAULT.to_owned(), text)]);
            templates.extend(additional(&dir.join(ADDITIONAL))?);
        }
        if templates.is_empty() {
            return Ok(None);
        }
        ChatTemplate::new(templates, special_tokens(&config)).map(Some)
    }

    /// One template, and the special tokens it may name.
    pub fn parse(source: &str, special: BTreeMap<String, String>) -> Result<ChatTemplate, ChatError> {
        ChatTemplate::new(BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]), special)
    }

    fn new(templates: BTreeMap<String, String>, special: BTreeMap<String, String>) -> Result<ChatTemplate, ChatError> {
        let mut environment = environment();
        let source = templates.get(DEFAULT).cloned().unwrap_or_default();
        if templates.len() > MAX_TEMPLATES {
            let reason = format!("{} chat templates are more than {MAX_TEMPLATES}", templates.len());
            return Err(ChatError::Malformed { name: TOKENIZER_CONFIG.into(), reason });
        }
        for (name, text) in templates {
            if text.len() as u64 > MAX_TEMPLATE {
                return Err(ChatError::TooLarge { name: format!("chat template \"{name}\""), limit: MAX_TEMPLATE });
            }
            let added = with_stack(|| {
                let text = bounds::bounded(&source::without_generation_tags(&text), syntax());
                text.and_then(|text| environment.add_template_owned(name.clone(), text))
                    .map_err(|error| describe(&error))
            });
            added
                .and_then(|added| added)
                .map_err(|reason| ChatError::Malformed { name: format!("chat template \"{name}\""), reason })?;
        }
        Ok(ChatTemplate { environment, source, special })
    }

    /// The text of the template that is used where there are no tools.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special tokens it may name, by what they are for, such as `bos_token`.
    pub fn special(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// The text of a chat. Special tokens are spelled out: encode it with `Tokenizer::encode_with_special`.
    pub fn render(&self, chat: &Chat) -> Result<String, ChatError> {
        let tool_use = (!chat.tools.is_empty()).then(|| self.environment.get_template(TOOL_USE).ok()).flatten();
        let template = match tool_use {
            Some(template) => template,
            None => self.environment.get_template(DEFAULT).map_err(|error| ChatError::Render(describe(&error)))?,
        };
        let list = |items: &[Value]| if items.is_empty() { Value::from(()) } else { items.iter().cloned().collect() };
        let now = chat.now.clone();
        let strftime_now = move |format: &str| {
            jiff::fmt::strtime::format(format, &now)
                .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
        };
        let mut context: BTreeMap<String, Value> =
            self.special.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        context.extend(chat.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        context.extend([
            ("messages".to_owned(), chat.messages.iter().cloned().collect()),
            ("tools".to_owned(), list(&chat.tools)),
            ("add_generation_prompt".to_owned(), Value::from(chat.add_generation_prompt)),
            ("strftime_now".to_owned(), Value::from_function(strftime_now)),
        ]);
        context.entry("documents".to_owned()).or_insert_with(|| Value::from(()));
        let text = with_stack(|| template.render(Value::from_pairs(context))).map_err(ChatError::Render)?;
        text.map_err(|error| {
            use std::error::Error;
            match error.source().is_some_and(|source| source.is::<Raised>()) {
                true => ChatError::Refused(error.detail().unwrap_or_default().to_owned()),
                false => ChatError::Render(describe(&error)),
            }
        })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
        f.debug_struct("ChatTemplate").field("templates", &names).field("special", &self.special).finish()
    }
}

/// Jinja's, as transformers sets it up.
fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the delimiters are the usual ones")
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(format::method);
    environment.add_filter("format", format::filter);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment.add_filter("tojson", json::tojson);
    bounds::add_filters(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
    });
    // In Python texts and maps have a length and items too, and so has what is undefined.
    let sequence = |kind| matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined);
    environment.add_test("sequence", move |value: &Value| sequence(value.kind()));
    environment
        .add_test("iterable", move |value: &Value| sequence(value.kind()) || value.kind() == ValueKind::Iterable);
    environment
}

/// Runs `f` where there is room to go deep, or says why that cannot be.
fn with_stack<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn_scoped(scope, f);
        let thread = thread.map_err(|error| format!("no thread to read the chat template on: {error}"))?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// What happened, and in which line.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A file's text, if there is such a file.
fn read(path: &Path, limit: u64) -> Result<Option<String>, ChatError> {
    let failed = |source| ChatError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > limit {
        return Err(ChatError::TooLarge { name: path.display().to_string(), limit });
    }
    Ok(Some(text))
}

/// The templates of `tokenizer_config.json`: one, or a list of them with names.
fn named(value: &serde_json::Value, path: &Path) -> Result<BTreeMap<String, String>, ChatError> {
    let malformed = || ChatError::Malformed {
        name: path.display().to_string(),
        reason: "\"chat_template\" must be text, or a list of {\"name\": text, \"template\": text}".into(),
    };
    match value {
        serde_json::Value::Null => Ok(BTreeMap::new()),
        serde_json::Value::String(text) => Ok(BTreeMap::from([(DEFAULT.to_owned(), text.clone())])),
        serde_json::Value::Array(list) => {
            let text = |item: &serde_json::Value, key: &str| item[key].as_str().map(str::to_owned);
            list.iter().map(|item| text(item, "name").zip(text(item, "template")).ok_or_else(malformed)).collect()
        }
        _ => Err(malformed()),
    }
}

/// The templates of a folder, by the names of their files.
fn additional(dir: &Path) -> Result<BTreeMap<String, String>, ChatError> {
    let mut templates = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(templates) };
    for path in entries.flatten().map(|entry| entry.path()).take(MAX_TEMPLATES) {
        let name = path.file_stem().and_then(|name| name.to_str());
        if let (Some(name), true) = (name, path.extension().is_some_and(|extension| extension == "jinja"))
            && let Some(text) = read(&path, MAX_TEMPLATE)?
        {
            templates.insert(name.to_owned(), text);
        }
    }
    Ok(templates)
}

/// `bos_token` and its like, which are text or `{"content": text}`.
fn special_tokens(config: &serde_json::Value) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
    let text = |value: &serde_json::Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    entries.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

#[cfg(test)]
mod tests;
