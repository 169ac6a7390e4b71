//! Presets: whole configurations, carried inside the binary.

use super::resolve::SettingsError;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use toml::Table;

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        /// Name and TOML text of each.
        pub const ALL: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../../presets/", $name, ".toml")))),+];
    };
}

presets![
    "tiny",
    "quickstart",
    "hour",
    "small",
    "base",
    "large",
    "bench-a",
    "bench-b",
    "bench-c",
    "bench-d",
    "bench-e",
    "bench-f"
];

/// What the first line of a preset says of it.
pub fn description(text: &'static str) -> &'static str {
    text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
}

/// The settings of a preset.
pub fn table(name: &str) -> Result<Table, SettingsError> {
    let Some((_, text)) = ALL.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        return Err(SettingsError {
            what: format!("unknown preset \"{name}\""),
            help: Some(format!("there are {}", names.join(", "))),
        });
    };
    text.parse().map_err(|error: toml::de::Error| SettingsError {
        what: format!("preset {name}: {}", error.message()),
        help: None,
    })
}

/// Reads the name of a preset from the command line.
pub fn parser() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(ALL.iter().map(|(name, text)| PossibleValue::new(name).help(description(text))))
}
