//! The models that are served.

use crate::error::ApiError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use wudao_infer::chat::{ChatError, ChatTemplate};
use wudao_infer::engine::Engine;

/// What a model says about writing beside its configuration.
const GENERATION_CONFIG: &str = "generation_config.json";
/// Most bytes of that.
const MAX_GENERATION_CONFIG: u64 = 1 << 20;

/// A model that is served.
pub struct Served {
    /// What requests call it.
    pub name: String,
    /// What makes completions.
    pub engine: Engine,
    /// How a chat is written for it, if it was taught to chat.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a text beside those of the model's configuration.
    pub stop_tokens: Vec<u32>,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    /// Its chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// `generation_config.json`.
    #[error("{}: {reason}", path.display())]
    Generation {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two models of one name.
    #[error("two models are called \"{name}\": give one another name, as in other=FOLDER")]
    Twice {
        /// The name.
        name: String,
    },
    /// No model at all.
    #[error("there is no model to serve")]
    Nothing,
}

impl Served {
    /// A model that continues texts.
    pub fn new(name: impl Into<String>, engine: Engine) -> Served {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Served { name: name.into(), engine, template: None, stop_tokens: Vec::new(), created }
    }

    /// With what its folder, or its GGUF file, says about chats and about the ends of texts.
    pub fn with_folder(mut self, dir: &Path) -> Result<Served, ServedError> {
        self.template = ChatTemplate::open(dir)?;
        if dir.is_dir() {
            self.stop_tokens = stop_tokens(&dir.join(GENERATION_CONFIG))?;
        }
        Ok(self)
    }

    /// The ids of a text that is a whole document: they begin with the token that begins documents, as in training.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let mut ids: Vec<u32> = self.begin().into_iter().collect();
        ids.extend(self.encode_plain(text)?);
        Ok(ids)
    }

    /// The ids of a text alone; special tokens that it spells out are meant.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let ids = self.engine.tokenizer().encode_with_special(text);
        ids.map_err(|error| ApiError::invalid(format!("the text cannot be encoded: {error}")))
    }

    /// The token that begins documents.
    pub fn begin(&self) -> Option<u32> {
        let config = self.engine.config();
        config.bos_token_id.or(config.end_of_text())
    }
}

/// `eos_token_id`, one or several.
fn stop_tokens(path: &Path) -> Result<Vec<u32>, ServedError> {
    let wrong = |reason: String| ServedError::Generation { path: path.to_owned(), reason };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error.to_string())),
        Ok(file) if file.len() > MAX_GENERATION_CONFIG => return Err(wrong("the file is too large".into())),
        Ok(_) => {}
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Several(Vec<u32>),
    }
    #[derive(serde::Deserialize)]
    struct Generation {
        eos_token_id: Option<Ids>,
    }
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let generation: Generation = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(match generation.eos_token_id {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Several(ids)) => ids,
    })
}

/// All of them; the first is meant where a request names none.
pub struct Models(Vec<Arc<Served>>);

impl Models {
    /// At least one, each with a name of its own.
    pub fn new(models: Vec<Served>) -> Result<Models, ServedError> {
        if models.is_empty() {
            return Err(ServedError::Nothing);
        }
        for (number, model) in models.iter().enumerate() {
            if models[..number].iter().any(|other| other.name == model.name) {
                return Err(ServedError::Twice { name: model.name.clone() });
            }
        }
        Ok(Models(models.into_iter().map(Arc::new).collect()))
    }

    /// The model that a request asks for.
    pub fn find(&self, name: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(&self.0[0]) };
        self.0.iter().find(|model| model.name == name).ok_or_else(|| {
            let known: Vec<String> = self.0.iter().map(|model| format!("\"{}\"", model.name)).collect();
            ApiError::no_model(&name.chars().take(100).collect::<String>(), &known.join(", "))
        })
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_texts_are_one_or_several_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(GENERATION_CONFIG);
        assert!(stop_tokens(&path).unwrap().is_empty());
        for (text, ids) in
            [("{}", vec![]), (r#"{"eos_token_id": 3}"#, vec![3]), (r#"{"eos_token_id": [3, 4]}"#, vec![3, 4])]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(stop_tokens(&path).unwrap(), ids);
        }
        std::fs::write(&path, r#"{"eos_token_id": "x"}"#).unwrap();
        assert!(stop_tokens(&path).unwrap_err().to_string().contains(GENERATION_CONFIG));
    }
}
