//! Settings: what a run shall be, from flags, environment, files, presets and defaults, in that order.
//!
//! Every choice about a run is a key with a dotted path such as `train.lr`. It can be given, from the strongest to the
//! weakest, as
//!
//! 1. a flag: `--set train.lr=3e-4`, or the key's own flag if it has one (`--lr 3e-4`);
//! 2. an environment variable: `WUDAO_` and the path in capitals with `_` for the dots, `WUDAO_TRAIN_LR=3e-4`;
//! 3. a TOML file: `--config run.toml` (or `WUDAO_CONFIG`), with `[train]` and `lr = 3e-4`;
//! 4. the checkpoint that a run begins with (`--from`): its model, as a whole;
//! 5. a preset: `--preset small`, or `WUDAO_PRESET`, or `preset = "small"` at the top of the file;
//! 6. the default.
//!
//! Below the presets, facts of the prepared data (vocabulary size, end-of-text token) fill what nobody set. What is not
//! about the result (where files lie, how many threads, how much is printed) is not a setting but a flag of its command.
//!
//! The sections are the settings types of the crates that own them; no key is listed here twice.

pub mod presets;
mod resolve;
mod schema;
mod value;

pub use resolve::{Layers, Origin, SettingsError};
use schema::Schema;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::Table;
use wudao_data::clean::CleanOptions;
use wudao_data::dedup::DedupOptions;
use wudao_data::document::Lang;
use wudao_data::prepare::{PrepareOptions, SourceOptions, TokenizerChoice, ValidationOptions};
use wudao_data::quality::Rules;
use wudao_data::read::ReadOptions;

/// Prefix of the environment variables.
const PREFIX: &str = "WUDAO_";
/// Environment variables that are not keys.
const SPECIAL: [&str; 3] = ["WUDAO_CONFIG", "WUDAO_PRESET", "WUDAO_THREADS"];
/// The preset of a run that names neither a preset nor a model.
const DEFAULT_PRESET: &str = "small";

/// Every section there is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the model is.
    pub model: wudao_model::Config,
    /// The prepared text that training reads.
    pub data: DataSettings,
    /// How text is prepared.
    pub prepare: PrepareSettings,
    /// The tokenizer that preparation learns.
    pub tokenizer: TokenizerSettings,
    /// The training run.
    pub train: wudao_train::TrainSettings,
    /// How text is measured.
    pub eval: EvalSettings,
    /// How prompts are continued.
    pub generate: GenerateSettings,
}

/// The prepared text that training reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// Folder of the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// How text is prepared. What text, is the file's `[[sources]]` or the command's arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareSettings {
    /// How files are read.
    pub read: ReadOptions,
    /// What is cleaned inside documents.
    pub clean: CleanOptions,
    /// The languages that are kept.
    pub languages: BTreeSet<Lang>,
    /// Which documents are kept.
    pub rules: Rules,
    /// How duplicates are found.
    pub dedup: DedupOptions,
    /// How much is held out.
    pub validation: ValidationOptions,
    /// Tokens in a shard.
    pub shard_tokens: u64,
    /// Memory for the search for duplicates (bytes).
    pub dedup_memory: u64,
}

impl Default for PrepareSettings {
    fn default() -> Self {
        let tokenizer = TokenizerChoice::Train { vocab_size: 0 };
        let PrepareOptions { read, clean, languages, rules, dedup, validation, shard_tokens, tuning, .. } =
            PrepareOptions::new(vec![], "", tokenizer);
        let dedup_memory = tuning.dedup_memory;
        PrepareSettings { read, clean, languages, rules, dedup, validation, shard_tokens, dedup_memory }
    }
}

/// A new tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerSettings {
    /// Number of token ids, special tokens and single bytes included.
    pub vocab_size: usize,
    /// Learn from at most this many bytes of text.
    pub max_bytes: u64,
}

impl Default for TokenizerSettings {
    fn default() -> Self {
        TokenizerSettings { vocab_size: 32_000, max_bytes: 256 << 20 }
    }
}

/// How text is measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSettings {
    /// Tokens of a window; the model's longest if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<usize>,
    /// Windows that are computed at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
}

/// How prompts are continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateSettings {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// Logits are divided by this; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Draw from this many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Draw from the likeliest tokens whose probabilities sum to this; 1 is all.
    pub top_p: f32,
    /// Draw from tokens at least this many times as likely as the likeliest; 0 is all.
    pub min_p: f32,
    /// Discount tokens that are already in the text by this factor; 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// End where one of these begins.
    pub stop: Vec<String>,
}

impl Default for GenerateSettings {
    fn default() -> Self {
        let s = wudao_infer::Sampling::default();
        GenerateSettings {
            max_tokens: 128,
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            seed: s.seed,
            stop: vec![],
        }
    }
}

impl From<GenerateSettings> for wudao_infer::Generation {
    fn from(s: GenerateSettings) -> Self {
        let GenerateSettings { max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop } = s;
        let rest = wudao_infer::Sampling::default();
        let sampling = wudao_infer::Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..rest };
        wudao_infer::Generation { max_tokens, sampling, stop, constraint: None }
    }
}

/// The flags that every command with settings has.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// Take settings from this TOML file, such as the run.toml of another run.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Begin with a whole configuration.
    #[arg(long, value_name = "NAME", value_parser = presets::parser())]
    pub preset: Option<String>,
    /// Set any key, for instance train.lr=3e-4.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// The value of a key's own flag, if it was given: path, flag, text.
pub type OwnFlag<'a> = (&'a str, &'a str, Option<String>);

/// The three ways to say when a training run ends. They are one decision: the strongest level that names one of them
/// overrules what weaker levels say of the others.
const LIMITS: [&str; 3] = ["train.steps", "train.max_tokens", "train.max_minutes"];

/// What the process was given besides its arguments. Read once, here and nowhere else.
pub fn environment() -> Vec<(String, String)> {
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect()
}

/// The value of one of the environment variables that are not keys.
pub fn special<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// All levels laid over each other.
#[derive(Debug)]
pub struct Resolved {
    /// The keys and their values.
    pub layers: Layers,
    /// The `[[sources]]` of the file: a list of tables, which is no key.
    pub sources: Vec<SourceOptions>,
}

impl Resolved {
    /// One section, as its type.
    pub fn section<T: serde::de::DeserializeOwned>(&self, section: &str) -> Result<T, SettingsError> {
        self.layers.section(section)
    }
}

/// Resolves all levels. `own` are the command's own flags.
pub fn resolve(
    args: &SettingsArgs,
    own: &[OwnFlag],
    environment: &[(String, String)],
) -> Result<Resolved, SettingsError> {
    let schema = Schema::of::<Settings>().map_err(|what| SettingsError { what, help: None })?;
    let mut layers = Layers::new(schema);
    layers.add_value("data", &DataSettings::default(), &Origin::Default)?;
    layers.add_value("prepare", &PrepareSettings::default(), &Origin::Default)?;
    layers.add_value("tokenizer", &TokenizerSettings::default(), &Origin::Default)?;
    layers.add_value("train", &wudao_train::TrainSettings::default(), &Origin::Default)?;
    layers.add_value("eval", &EvalSettings::default(), &Origin::Default)?;
    layers.add_value("generate", &GenerateSettings::default(), &Origin::Default)?;

    let config = args.config.clone().or_else(|| special(environment, "WUDAO_CONFIG").map(PathBuf::from));
    let mut file = config.map(|path| read(&path).map(|table| (path, table))).transpose()?;
    let named = file.as_mut().and_then(|(path, table)| table.remove("preset").map(|name| (path.clone(), name)));
    let preset = match (&args.preset, special(environment, "WUDAO_PRESET"), named) {
        (Some(name), ..) => Some(name.clone()),
        (None, Some(name), _) => Some(name.to_owned()),
        (None, None, Some((_, toml::Value::String(name)))) => Some(name),
        (None, None, Some((path, other))) => {
            let what = format!("setting `preset` ({}): expected the name of a preset, found {other}", path.display());
            return Err(SettingsError { what, help: None });
        }
        (None, None, None) if file.as_ref().is_some_and(|(_, table)| table.contains_key("model")) => None,
        (None, None, None) => Some(DEFAULT_PRESET.to_owned()),
    };
    if let Some(name) = preset {
        layers.add_table(&presets::table(&name)?, &Origin::Preset(name))?;
    }

    let mut sources = Vec::new();
    if let Some((path, mut table)) = file {
        if let Some(list) = table.remove("sources") {
            sources = list.try_into().map_err(|error: toml::de::Error| {
                let what = format!("[[sources]] ({}): {}", path.display(), error.message());
                SettingsError { what, help: Some("a source has a name, paths and perhaps a weight".into()) }
            })?;
        }
        if table.get("train").and_then(toml::Value::as_table).is_some_and(|train| names_limit(train.keys())) {
            layers.forget(&LIMITS);
        }
        layers.add_table(&table, &Origin::File(path))?;
    }

    let known: Vec<(String, String)> = layers.schema().paths().map(|path| (variable(path), path.to_owned())).collect();
    let mut found = Vec::new();
    for (name, value) in environment.iter().filter(|(name, _)| !SPECIAL.contains(&name.as_str())) {
        match known.iter().find(|(variable, _)| variable == name) {
            Some((_, path)) => found.push((path.as_str(), value, Origin::Environment(name.clone()))),
            None => return Err(unknown_variable(name, &known)),
        }
    }
    if found.iter().any(|(path, ..)| LIMITS.contains(path)) {
        layers.forget(&LIMITS);
    }
    for (path, value, origin) in found {
        layers.add_text(path, value, &origin)?;
    }

    let mut flags: Vec<(&str, &str, Origin)> = Vec::new();
    for pair in &args.set {
        let Some((path, text)) = pair.split_once('=') else {
            let what = format!("--set {pair}: expected KEY=VALUE");
            return Err(SettingsError { what, help: Some("for instance --set train.lr=3e-4".into()) });
        };
        flags.push((path.trim(), text.trim(), Origin::Flag("--set".into())));
    }
    for (path, flag, text) in own {
        if let Some(text) = text {
            flags.push((path, text, Origin::Flag((*flag).to_owned())));
        }
    }
    if flags.iter().any(|(path, ..)| LIMITS.contains(path)) {
        layers.forget(&LIMITS);
    }
    for (path, text, origin) in flags {
        layers.add_text(path, text, &origin)?;
    }
    Ok(Resolved { layers, sources })
}

fn names_limit<'a>(mut keys: impl Iterator<Item = &'a String>) -> bool {
    keys.any(|key| LIMITS.iter().any(|limit| limit.strip_prefix("train.") == Some(key)))
}

/// The environment variable of a key.
fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
}

fn unknown_variable(name: &str, known: &[(String, String)]) -> SettingsError {
    let all = known.iter().map(|(variable, _)| variable.as_str()).chain(SPECIAL);
    let nearest = all.max_by(|a, b| {
        let score = |other| strsim::normalized_damerau_levenshtein(name, other);
        score(a).total_cmp(&score(b))
    });
    SettingsError {
        what: format!("unknown environment variable {name}"),
        help: nearest.map(|near| format!("unset it; the nearest known one is {near}")),
    }
}

fn read(path: &Path) -> Result<Table, SettingsError> {
    let place = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| SettingsError { what: format!("cannot read the settings in {place}: {error}"), help: None })?;
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        SettingsError { what: format!("{place}:{line}: {}", error.message()), help: None }
    })
}

#[cfg(test)]
mod tests;
