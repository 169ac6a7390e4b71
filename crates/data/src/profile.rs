//! What one pass over a text counts.
//!
//! The language rule, the quality rules and the duplicate search all look at the same few facts: how many characters of
//! each kind there are, and the sequence of *units*. A unit is one Han character, or one run of other letters and digits
//! in lower case: the closest thing to a word that Chinese and English share without a segmenter. Counting once and
//! sharing the counts is what keeps preparation fast.

/// A mixer of 64 bits (the finalizer of SplitMix64): every input bit changes every output bit with probability ½.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// An odd constant without structure (2⁶⁴ divided by the golden ratio).
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// English words that carry grammar and are rare in other languages written with Latin letters.
const FUNCTION_WORDS: [&str; 32] = [
    "the", "of", "and", "to", "that", "for", "with", "his", "is", "it", "not", "by", "this", "have", "from", "are",
    "which", "be", "you", "were", "they", "but", "as", "she", "been", "their", "would", "will", "what", "there", "all",
    "your",
];

/// The kind of a character, as far as the rules tell kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Han,
    Latin,
    Kana,
    Hangul,
    OtherLetter,
    Digit,
    Space,
    Punctuation,
    Symbol,
    Replacement,
}

/// The kind of any character.
pub(crate) fn kind(c: char) -> Kind {
    match c {
        'a'..='z' | 'A'..='Z' => Kind::Latin,
        '0'..='9' => Kind::Digit,
        ' ' | '\n' | '\t' | '\r' => Kind::Space,
        '!' | '"' | '\'' | '(' | ')' | ',' | '-' | '.' | ':' | ';' | '?' => Kind::Punctuation,
        '\0'..='\u{7f}' => Kind::Symbol,
        '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{3005}' | '\u{3007}' => Kind::Han,
        '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}' => Kind::Han,
        '\u{3000}' => Kind::Space,
        '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' => Kind::Punctuation,
        '\u{2010}'..='\u{201f}' | '\u{2025}' | '\u{2026}' | '\u{00b7}' | '\u{30fb}' => Kind::Punctuation,
        '！' | '（' | '）' | '，' | '－' | '．' | '：' | '；' | '？' | '～' | '＂' | '＇' => {
            Kind::Punctuation
        }
        '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{ff66}'..='\u{ff9d}' => Kind::Kana,
        '\u{ac00}'..='\u{d7af}' | '\u{1100}'..='\u{11ff}' | '\u{3130}'..='\u{318f}' => Kind::Hangul,
        '\u{00c0}'..='\u{024f}' | '\u{1e00}'..='\u{1eff}' | 'Ａ'..='Ｚ' | 'ａ'..='ｚ' if c != '×' && c != '÷' => {
            Kind::Latin
        }
        '\u{fffd}' => Kind::Replacement,
        _ if c.is_alphabetic() => Kind::OtherLetter,
        _ if c.is_numeric() => Kind::Digit,
        _ if c.is_whitespace() => Kind::Space,
        _ => Kind::Symbol,
    }
}

/// Counts over one text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// Characters.
    pub characters: usize,
    /// Han characters.
    pub han: usize,
    /// Letters of the Latin script.
    pub latin: usize,
    /// Hiragana and katakana.
    pub kana: usize,
    /// Hangul.
    pub hangul: usize,
    /// Letters of all other scripts.
    pub other_letters: usize,
    /// Digits.
    pub digits: usize,
    /// White space.
    pub spaces: usize,
    /// Everything that is no letter, digit, white space or everyday punctuation.
    pub symbols: usize,
    /// U+FFFD.
    pub replacements: usize,
    /// Units that hold a letter and are no Han character.
    pub words: usize,
    /// Characters of those units.
    pub word_characters: usize,
    /// Characters in words of more than 40 characters: long strings of code, keys, encoded data.
    pub overlong: usize,
    /// English function words.
    pub function_words: usize,
    /// A hash of each unit, in order.
    pub units: Vec<u64>,
}

impl Profile {
    /// Counts a text.
    pub fn new(text: &str) -> Profile {
        let mut profile = Profile::default();
        profile.recount(text);
        profile
    }

    /// Counts another text, reusing the memory.
    pub fn recount(&mut self, text: &str) {
        let mut units = std::mem::take(&mut self.units);
        units.clear();
        *self = Profile { units, ..Profile::default() };
        self.count(text);
    }

    /// Letters of any script, Han included.
    pub fn letters(&self) -> usize {
        self.han + self.latin + self.kana + self.hangul + self.other_letters
    }

    fn count(&mut self, text: &str) {
        let mut word = Word::default();
        for c in text.chars() {
            self.characters += 1;
            // The two commonest kinds first.
            if c.is_ascii_lowercase() {
                self.latin += 1;
                word.push(c);
                continue;
            }
            if matches!(c, '\u{4e00}'..='\u{9fff}') {
                self.end_word(&mut word);
                self.han += 1;
                self.units.push(mix(u64::from(u32::from(c))));
                continue;
            }
            let kind = kind(c);
            match kind {
                Kind::Han => {
                    self.end_word(&mut word);
                    self.han += 1;
                    self.units.push(mix(u64::from(u32::from(c))));
                    continue;
                }
                Kind::Latin => self.latin += 1,
                Kind::Kana => self.kana += 1,
                Kind::Hangul => self.hangul += 1,
                Kind::OtherLetter => self.other_letters += 1,
                Kind::Digit => self.digits += 1,
                Kind::Space => self.spaces += 1,
                Kind::Punctuation => {}
                Kind::Symbol => self.symbols += 1,
                Kind::Replacement => self.replacements += 1,
            }
            match kind {
                Kind::Latin if c.is_ascii() => word.push(c.to_ascii_lowercase()),
                Kind::Latin | Kind::OtherLetter => c.to_lowercase().for_each(|c| word.push(c)),
                Kind::Kana | Kind::Hangul => word.push(c),
                Kind::Digit => word.push_digit(c),
                _ => self.end_word(&mut word),
            }
        }
        self.end_word(&mut word);
    }

    fn end_word(&mut self, word: &mut Word) {
        if word.length == 0 {
            return;
        }
        let word = std::mem::take(word);
        self.units.push(mix(word.hash));
        if word.letters {
            self.words += 1;
            self.word_characters += word.length;
            if word.length > 40 {
                self.overlong += word.length;
            }
            if word.length <= 8 && FUNCTION_KEYS.binary_search(&word.spelling).is_ok() {
                self.function_words += 1;
            }
        }
    }
}

/// The word being read.
#[derive(Default)]
struct Word {
    hash: u64,
    /// The last eight bytes of its ASCII spelling: all of a short word.
    spelling: u64,
    length: usize,
    letters: bool,
}

impl Word {
    fn push(&mut self, c: char) {
        self.letters = true;
        self.push_digit(c);
    }

    fn push_digit(&mut self, c: char) {
        let code = u64::from(u32::from(c));
        self.hash = (self.hash.rotate_left(5) ^ code).wrapping_mul(GOLDEN);
        self.spelling = self.spelling << 8 | if c.is_ascii() { code } else { 0xff };
        self.length += 1;
    }
}

const fn spelling(word: &str) -> u64 {
    let bytes = word.as_bytes();
    let (mut key, mut i) = (0, 0);
    while i < bytes.len() {
        key = key << 8 | bytes[i] as u64;
        i += 1;
    }
    key
}

/// The spellings of [`FUNCTION_WORDS`], sorted.
const FUNCTION_KEYS: [u64; FUNCTION_WORDS.len()] = {
    let mut keys = [0; FUNCTION_WORDS.len()];
    let mut i = 0;
    while i < keys.len() {
        let key = spelling(FUNCTION_WORDS[i]);
        let mut j = i;
        while j > 0 && keys[j - 1] > key {
            keys[j] = keys[j - 1];
            j -= 1;
        }
        keys[j] = key;
        i += 1;
    }
    keys
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_han_characters_and_words() {
        let profile = Profile::new("The 3 cats，吃了 iPhone15。é");
        assert_eq!((profile.han, profile.words, profile.units.len()), (2, 4, 7));
        assert_eq!((profile.latin, profile.digits, profile.function_words), (3 + 4 + 6 + 1, 3, 1));
        let (upper, lower) = (Profile::new("THE Cat"), Profile::new("the, cat!"));
        assert_eq!(upper.units, lower.units);
        assert_ne!(Profile::new("ab").units, Profile::new("ba").units);
    }

    #[test]
    fn kinds_of_characters() {
        let profile = Profile::new("ひらカナ 한국어 привет ©® \u{fffd}");
        assert_eq!((profile.kana, profile.hangul, profile.other_letters), (4, 3, 6));
        assert_eq!((profile.symbols, profile.replacements, profile.words), (2, 1, 3));
        assert_eq!(Profile::new(&"x".repeat(50)).overlong, 50);
        for word in FUNCTION_WORDS {
            assert_eq!(Profile::new(word).function_words, 1, "{word}");
        }
    }

    proptest! {
        #[test]
        fn every_character_is_counted_once(text in "\\PC{0,60}") {
            let p = Profile::new(&text);
            let punctuation = text.chars().filter(|c| kind(*c) == Kind::Punctuation).count();
            let sum = p.letters() + p.digits + p.spaces + p.symbols + p.replacements + punctuation;
            prop_assert_eq!(sum, p.characters);
            prop_assert_eq!(p.characters, text.chars().count());
        }
    }
}
