//! The vocabulary in a GGUF file: from its keys to a tokenizer, and from a tokenizer to its keys.

use crate::chat::{ChatError, ChatTemplate};
use std::path::Path;
use wudao_data::tokenizer::vocabulary::{Method, TokenType, Vocabulary};
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_model::Config;
use wudao_model::gguf::{Field, File, Value};

const PREFIX: &str = "tokenizer.ggml.";

/// The tokenizer of a file.
pub fn tokenizer(file: &File) -> Result<Tokenizer, TokenizerError> {
    let name = file.path().display().to_string();
    let vocabulary = vocabulary(file).map_err(|reason| TokenizerError::Malformed { name: name.clone(), reason })?;
    vocabulary.tokenizer(&name)
}

/// The chat template of a file, if it has one.
pub fn chat_template(path: &Path) -> Result<Option<ChatTemplate>, ChatError> {
    let wrong = |reason: String| ChatError::Malformed { name: path.display().to_string(), reason };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let vocabulary = vocabulary(&file).map_err(wrong)?;
    let Some(template) = vocabulary.chat_template else { return Ok(None) };
    let named = [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.pad),
    ];
    let token = |id: u32| vocabulary.tokens.get(id as usize).cloned();
    let special = named.into_iter().filter_map(|(name, id)| Some((name.to_owned(), token(id?)?)));
    ChatTemplate::parse(&template, special.collect()).map(Some)
}

/// The vocabulary of a file, or what is wrong with its keys.
fn vocabulary(file: &File) -> Result<Vocabulary, String> {
    let keys = Keys(file);
    let tokens =
        keys.list("tokens", "texts", |v| v.text().map(str::to_owned))?.ok_or("it has no tokenizer.ggml.tokens")?;
    let kind = |v: Value| match v {
        Value::Signed(n) => TokenType::from_number(n),
        v => TokenType::from_number(v.whole()?.try_into().ok()?),
    };
    let types = keys.list("token_type", "types of tokens", kind)?;
    let model = keys.text("model")?.ok_or("it has no tokenizer.ggml.model")?;
    let merges = || Ok::<_, String>(keys.list("merges", "texts", |v| v.text().map(str::to_owned))?.unwrap_or_default());
    let method = match model {
        "gpt2" => Method::BytePair {
            // Files from before the key was invented have no way to say it.
            pre: keys.text("pre")?.ok_or("it has no tokenizer.ggml.pre: convert the model again")?.to_owned(),
            merges: merges()?,
        },
        "llama" => Method::SentencePiece {
            scores: keys.list("scores", "numbers", |v| v.number().map(|x| x as f32))?.unwrap_or_default(),
            add_space_prefix: keys.flag("add_space_prefix")?.unwrap_or(true),
        },
        "gemma4" => Method::Merges(merges()?),
        "bert" => {
            let lowercase = keys.flag("normalizer.lowercase")?.unwrap_or(true);
            let strip_accents = keys.flag("normalizer.strip_accents")?.unwrap_or(lowercase);
            Method::WordPiece { lowercase, strip_accents }
        }
        other => {
            let what = "only \"gpt2\", \"llama\", \"gemma4\" (byte pairs) and \"bert\" (pieces of words) are";
            return Err(format!("its kind of tokenizer, {other:?} (tokenizer.ggml.model), is not supported; {what}"));
        }
    };
    let sentence_piece = matches!(method, Method::SentencePiece { .. });
    let id = |key| Ok::<_, String>(keys.id(key)?.filter(|&id| (id as usize) < tokens.len()));
    Ok(Vocabulary {
        types: types.unwrap_or_else(|| vec![TokenType::Normal; tokens.len()]),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unknown: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: keys.flag("add_bos_token")?.unwrap_or(sentence_piece),
        chat_template: match file.get("tokenizer.chat_template") {
            None => None,
            Some(value) => Some(value.text().ok_or("tokenizer.chat_template is not a text")?.to_owned()),
        },
        method,
        tokens,
    })
}

struct Keys<'a>(&'a File);

impl<'a> Keys<'a> {
    fn typed<T>(&self, key: &str, want: &str, f: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.0.get(&format!("{PREFIX}{key}")) else { return Ok(None) };
        f(value).map(Some).ok_or_else(|| format!("{PREFIX}{key} must be {want}, found {}", value.shown()))
    }

    fn list<T>(&self, key: &str, want: &str, f: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<Vec<T>>, String> {
        self.typed(key, &format!("a list of {want}"), |v| v.array()?.all(&f))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.typed(key, "a text", Value::text)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", Value::flag)
    }

    fn id(&self, key: &str) -> Result<Option<u32>, String> {
        let id = |v: Value| match v {
            // Some files say so for none.
            Value::Signed(-1) => Some(None),
            v => v.whole()?.try_into().ok().map(Some),
        };
        Ok(self.typed(key, "a token id", id)?.flatten())
    }
}

/// The keys of a tokenizer, for a model of `config`: a token for each of the model's rows, and the model's own ids where it
/// begins and ends a document. `template` is that of the chat, if it is not the tokenizer's own.
pub fn fields(
    tokenizer: &Tokenizer,
    config: &Config,
    template: Option<String>,
) -> Result<Vec<(String, Field)>, TokenizerError> {
    let v = Vocabulary::of(tokenizer, config.vocab_size)?;
    let mut fields = vec![];
    let mut put = |key: &str, field| fields.push((format!("{PREFIX}{key}"), field));
    match v.method {
        Method::BytePair { pre, merges } => {
            put("model", Field::Text("gpt2".into()));
            put("pre", Field::Text(pre));
            put("merges", Field::Texts(merges));
        }
        Method::SentencePiece { scores, add_space_prefix } => {
            put("model", Field::Text("llama".into()));
            put("pre", Field::Text("default".into()));
            put("scores", Field::Numbers(scores));
            put("add_space_prefix", Field::Flag(add_space_prefix));
        }
        Method::Merges(merges) => {
            put("model", Field::Text("gemma4".into()));
            put("merges", Field::Texts(merges));
        }
        Method::WordPiece { lowercase, strip_accents } => {
            put("model", Field::Text("bert".into()));
            put("normalizer.lowercase", Field::Flag(lowercase));
            put("normalizer.strip_accents", Field::Flag(strip_accents));
        }
    }
    put("tokens", Field::Texts(v.tokens));
    put("token_type", Field::Wholes(v.types.into_iter().map(TokenType::number).collect()));
    put("add_bos_token", Field::Flag(v.add_bos));
    let ids = [
        ("bos_token_id", config.bos_token_id.or(v.bos)),
        ("eos_token_id", config.eos_token_id.first().copied().or(v.eos)),
        ("eot_token_id", config.eos_token_id.get(1).copied()),
        ("unknown_token_id", v.unknown),
        ("padding_token_id", config.pad_token_id.or(v.pad)),
    ];
    for (key, id) in ids {
        if let Some(id) = id {
            put(key, Field::Whole(id));
        }
    }
    if let Some(template) = template.or(v.chat_template) {
        fields.push(("tokenizer.chat_template".into(), Field::Text(template)));
    }
    Ok(fields)
}
