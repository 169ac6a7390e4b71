//! Traditional to simplified Chinese, with the dictionaries of OpenCC.
//!
//! The longest phrase of the dictionary that begins at a character wins (乾坤 stays 乾坤, though 乾 alone becomes 干);
//! elsewhere each character is replaced by itself. This is OpenCC's `t2s` conversion. It knows nothing of regional words:
//! 軟體 becomes 软体, not 软件.

use std::collections::HashMap;

const CHARACTERS: &str = include_str!("opencc/TSCharacters.txt");
const PHRASES: &str = include_str!("opencc/TSPhrases.txt");

/// The part of the character set that is looked up in a flat table: everything from the first Han character to the last
/// one of the basic plane.
const FIRST: u32 = 0x3400;
const LAST: u32 = 0xffff;

/// Converts traditional to simplified characters.
#[derive(Debug)]
pub struct Simplifier {
    /// The replacement of each character from [`FIRST`] to [`LAST`].
    basic: Vec<char>,
    /// Whether a phrase begins with it.
    begins: Vec<bool>,
    /// Replacements outside the basic plane.
    rare: HashMap<char, char>,
    /// Phrases by first character, the longest first.
    phrases: HashMap<char, Vec<(&'static str, &'static str)>>,
}

impl Default for Simplifier {
    fn default() -> Simplifier {
        Simplifier::new()
    }
}

impl Simplifier {
    /// Reads the dictionaries (about a millisecond).
    pub fn new() -> Simplifier {
        let mut simplifier = Simplifier {
            basic: (FIRST..=LAST).map(|code| char::from_u32(code).unwrap_or('\u{fffd}')).collect(),
            begins: vec![false; (LAST - FIRST + 1) as usize],
            rare: HashMap::new(),
            phrases: HashMap::new(),
        };
        for (key, value) in entries(CHARACTERS) {
            if let (Some(from), Some(to)) = (key.chars().next(), value.chars().next()) {
                match slot(from) {
                    Some(at) => simplifier.basic[at] = to,
                    None => drop(simplifier.rare.insert(from, to)),
                }
            }
        }
        for (key, value) in entries(PHRASES) {
            if let Some(first) = key.chars().next() {
                simplifier.phrases.entry(first).or_default().push((key, value));
                if let Some(at) = slot(first) {
                    simplifier.begins[at] = true;
                }
            }
        }
        for phrases in simplifier.phrases.values_mut() {
            phrases.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        }
        simplifier
    }

    /// The text in simplified characters.
    pub fn convert(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if u32::from(c) < FIRST {
                // Latin text goes over in runs.
                let end = rest.find(|c: char| u32::from(c) >= FIRST).unwrap_or(rest.len());
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            if let Some(at) = slot(c) {
                if self.begins[at]
                    && let Some((key, value)) = self.phrase(c, rest)
                {
                    out.push_str(value);
                    rest = &rest[key.len()..];
                    continue;
                }
                out.push(self.basic[at]);
            } else {
                out.push(*self.rare.get(&c).unwrap_or(&c));
            }
            rest = &rest[c.len_utf8()..];
        }
        out
    }

    fn phrase(&self, first: char, text: &str) -> Option<(&'static str, &'static str)> {
        self.phrases.get(&first)?.iter().find(|(key, _)| text.starts_with(key)).copied()
    }
}

fn slot(c: char) -> Option<usize> {
    let code = u32::from(c);
    (FIRST..=LAST).contains(&code).then(|| (code - FIRST) as usize)
}

fn entries(dictionary: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    dictionary.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, values) = line.split_once('\t')?;
        Some((key, values.split(' ').next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static SIMPLIFIER: LazyLock<Simplifier> = LazyLock::new(Simplifier::new);

    #[test]
    fn characters_and_phrases() {
        let simplifier = Simplifier::new();
        for (from, to) in [
            ("舉頭望明月，低頭思故鄉。", "举头望明月，低头思故乡。"),
            ("乾坤一擲，衣服乾了。", "乾坤一掷，衣服干了。"),
            ("一目瞭然，瞭望臺上看得清楚。", "一目了然，瞭望台上看得清楚。"),
            ("The 電腦 is new，頭髮與發財。", "The 电脑 is new，头发与发财。"),
            ("𠁞", "𠀾"),
            ("", ""),
        ] {
            assert_eq!(simplifier.convert(from), to);
        }
    }

    #[test]
    fn the_dictionaries_are_whole() {
        assert!(entries(CHARACTERS).count() > 3000);
        assert!(entries(PHRASES).count() > 200);
        assert!(entries(CHARACTERS).all(|(key, value)| key.chars().count() == 1 && !value.is_empty()));
    }

    proptest! {
        #[test]
        fn simplified_text_and_other_scripts_stay(text in "[a-z 天地玄黄宇宙洪荒é，。\u{20000}-\u{20010}]{0,50}") {
            prop_assert_eq!(SIMPLIFIER.convert(&text), text);
        }

        #[test]
        fn any_text_converts(text in "\\PC{0,50}") {
            SIMPLIFIER.convert(&text);
        }
    }
}
