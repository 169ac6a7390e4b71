//! The unit that travels through preparation: one text, where it came from, and its language.
//!
//! A document is what a reader yields (a file, a JSON record, a row), what a quality rule keeps or removes, what is
//! compared for duplicates and what goes whole to the training or to the validation set. Attention never crosses
//! its edge later, so its boundaries are kept all the way into the shards.

use serde::{Deserialize, Serialize};

/// The language a document is written in, as far as this project tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Lang {
    /// Chinese: simplified, traditional or classical.
    Zh = 0,
    /// English.
    En = 1,
    /// Anything else, or not enough letters to tell.
    Other = 2,
}

impl Lang {
    /// All languages, in order.
    pub const ALL: [Lang; 3] = [Lang::Zh, Lang::En, Lang::Other];

    /// The lower-case name used in files and messages: `zh`, `en` or `other`.
    pub fn name(self) -> &'static str {
        match self {
            Lang::Zh => "zh",
            Lang::En => "en",
            Lang::Other => "other",
        }
    }

    /// The language with the given number (`Lang as u8`), if there is one.
    pub fn from_u8(number: u8) -> Option<Lang> {
        Lang::ALL.get(number as usize).copied()
    }
}

impl std::fmt::Display for Lang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Lang {
    type Err = String;

    fn from_str(name: &str) -> Result<Lang, String> {
        Lang::ALL
            .into_iter()
            .find(|lang| lang.name() == name)
            .ok_or_else(|| format!("unknown language '{name}': use zh, en or other"))
    }
}

/// One text with its source and language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text, UTF-8.
    pub text: String,
    /// Index of the source in the list of sources.
    pub source: u16,
    /// The language.
    pub lang: Lang,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for lang in Lang::ALL {
            assert_eq!(lang.name().parse::<Lang>().unwrap(), lang);
            assert_eq!(Lang::from_u8(lang as u8), Some(lang));
            assert_eq!(serde_json::to_string(&lang).unwrap(), format!("\"{lang}\""));
        }
        assert_eq!(Lang::from_u8(3), None);
        assert!("de".parse::<Lang>().is_err());
    }
}
