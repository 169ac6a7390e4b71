//! Cleaning: the same text, without what does not belong to it.
//!
//! In this order: invisible and control characters go and line ends become plain, Unicode is normalized (`characters`),
//! traditional characters become simplified ones if that was asked for (`simplify`), boilerplate lines of web pages go
//! (`boilerplate`), lines repeated on every page go, and white space is tidied (`lines`).
//!
//! Cleaning never judges a document: what is left may be empty or bad, and [`crate::quality`] decides. It never rewrites
//! words either. Normalization is NFC by default and not NFKC, because NFKC turns the full-width punctuation of Chinese
//! into ASCII and ① into 1.

pub mod boilerplate;
mod characters;
mod lines;
pub mod simplify;

use serde::{Deserialize, Serialize};

use boilerplate::Boilerplate;
use simplify::Simplifier;

/// The form of Unicode normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalization {
    /// Canonical composition: é is one character, ， stays ，.
    #[default]
    Nfc,
    /// Compatibility composition: ， becomes a comma, ① becomes 1, ﬁ becomes fi.
    Nfkc,
    /// As it came.
    None,
}

/// What to clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CleanOptions {
    /// The form of Unicode normalization.
    pub normalization: Normalization,
    /// Whether traditional characters become simplified ones.
    pub simplify: bool,
    /// Whether boilerplate lines are removed.
    pub boilerplate: bool,
    /// A line of six Han characters or more that occurs more often than this in a document stays only once; 0 for no
    /// limit.
    pub repeated_line_limit: usize,
}

impl Default for CleanOptions {
    fn default() -> CleanOptions {
        CleanOptions { normalization: Normalization::Nfc, simplify: false, boilerplate: true, repeated_line_limit: 10 }
    }
}

/// What cleaning removed, summed over documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanCounts {
    /// Control characters removed.
    pub control_characters: u64,
    /// Zero-width and other invisible characters removed.
    pub invisible_characters: u64,
    /// Unusual white space and line ends replaced by plain ones.
    pub replaced_spaces: u64,
    /// Boilerplate lines removed.
    pub boilerplate_lines: u64,
    /// Repeated lines removed.
    pub repeated_lines: u64,
}

impl std::ops::AddAssign for CleanCounts {
    fn add_assign(&mut self, other: CleanCounts) {
        self.control_characters += other.control_characters;
        self.invisible_characters += other.invisible_characters;
        self.replaced_spaces += other.replaced_spaces;
        self.boilerplate_lines += other.boilerplate_lines;
        self.repeated_lines += other.repeated_lines;
    }
}

/// Cleans documents. Immutable: threads share one.
#[derive(Debug)]
pub struct Cleaner {
    options: CleanOptions,
    boilerplate: Option<Boilerplate>,
    simplifier: Option<Simplifier>,
}

impl Cleaner {
    /// A cleaner that does this.
    pub fn new(options: &CleanOptions) -> Cleaner {
        Cleaner {
            options: options.clone(),
            boilerplate: options.boilerplate.then(Boilerplate::new),
            simplifier: options.simplify.then(Simplifier::new),
        }
    }

    /// The cleaned text, and what was removed from it.
    pub fn clean(&self, text: String) -> (String, CleanCounts) {
        let (mut text, changes) = characters::clean(text, self.options.normalization);
        if let Some(simplifier) = &self.simplifier {
            text = simplifier.convert(&text);
        }
        let marked = self.boilerplate.as_ref().map(|b| b.find(&text)).unwrap_or_default();
        let (text, removed) = lines::clean(&text, &marked, self.options.repeated_line_limit);
        let counts = CleanCounts {
            control_characters: changes.control,
            invisible_characters: changes.invisible,
            replaced_spaces: changes.replaced,
            boilerplate_lines: removed.boilerplate,
            repeated_lines: removed.repeated,
        };
        (text, counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static CLEANER: LazyLock<Cleaner> = LazyLock::new(|| Cleaner::new(&CleanOptions::default()));

    #[test]
    fn a_web_page_becomes_a_text() {
        let page = "\u{feff}首页 | 登录\r\n\r\n　　鲸鱼\u{200b}从深海里浮上来。 \r\n\r\n\r\n　　船上的人等着。\r\nCopyright © 2020 All rights reserved\r\n";
        let (text, counts) = Cleaner::new(&CleanOptions::default()).clean(page.to_string());
        assert_eq!(text, "　　鲸鱼从深海里浮上来。\n\n　　船上的人等着。");
        assert_eq!((counts.boilerplate_lines, counts.invisible_characters), (2, 2));
        let off = CleanOptions { boilerplate: false, ..CleanOptions::default() };
        assert!(Cleaner::new(&off).clean(page.to_string()).0.contains("Copyright"));
    }

    #[test]
    fn simplifying_is_an_option() {
        let poem = "舉頭望明月，低頭思故鄉。";
        assert_eq!(Cleaner::new(&CleanOptions::default()).clean(poem.to_string()).0, poem);
        let simplify = CleanOptions { simplify: true, ..CleanOptions::default() };
        assert_eq!(Cleaner::new(&simplify).clean(poem.to_string()).0, "举头望明月，低头思故乡。");
    }

    proptest! {
        #[test]
        fn any_text_can_be_cleaned_and_stays_clean(text in "[\\PC\r\n\u{0}-\u{20}登录首页|]{0,120}") {
            let (once, _) = CLEANER.clean(text);
            prop_assert_eq!(&CLEANER.clean(once.clone()).0, &once);
        }
    }
}
