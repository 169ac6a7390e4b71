//! Quality rules: which documents are worth learning from.
//!
//! The rules are those that the published corpora converged on, restated so that they mean the same for Chinese, which has
//! no spaces between words: lengths and n-grams are counted in units (see [`crate::profile`]). Sources: Gopher (Rae et
//! al. 2021, arXiv:2112.11446, appendix A.1: length, word length, symbols, bullets, ellipses, letters, function words,
//! repetition), C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2: short texts, placeholder text), WanJuan
//! (arXiv:2308.10755) and ChineseWebText (arXiv:2311.01149) for Chinese.
//!
//! A document is removed by the first rule it breaks, in the order of [`Rule`], and is counted under it. The defaults keep
//! a quatrain of twenty characters, an article of law and a psalm; the tests hold them to that. Rules about repetition
//! wait until a text is long enough for repetition to mean anything: poems live by refrains.

use serde::{Deserialize, Serialize};

use crate::document::Lang;
use crate::profile::{GOLDEN, Profile};

/// Why a document was removed, in the order in which the rules are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Nothing was left after cleaning.
    Empty,
    /// In a language that was not asked for.
    Language,
    /// Too many control characters: binary data among text.
    ControlCharacters,
    /// Too many U+FFFD: decoded with the wrong encoding, or damaged.
    ReplacementCharacters,
    /// Too few Han characters or words.
    TooShort,
    /// Too few letters among the visible characters: tables, logs, drawings.
    FewLetters,
    /// Too many symbols for its units.
    Symbols,
    /// Average word length outside the range of English.
    WordLength,
    /// Mostly strings too long to be words: encoded data, minified code.
    OverlongWords,
    /// English without English function words: lists of keywords.
    FewFunctionWords,
    /// Nearly every line is a bullet point.
    BulletLines,
    /// Many lines end in an ellipsis: excerpts, not texts.
    EllipsisLines,
    /// Placeholder text.
    Placeholder,
    /// Too much of it is repeated lines.
    RepeatedLines,
    /// Too much of it is repeated paragraphs.
    RepeatedParagraphs,
    /// One short phrase makes up too much of it.
    TopPhrase,
    /// Too much of it is repeated phrases.
    RepeatedPhrases,
    /// The same text as an earlier document.
    ExactDuplicate,
    /// Nearly the same text as an earlier document.
    NearDuplicate,
}

impl Rule {
    /// All rules, in order.
    pub const ALL: [Rule; 19] = [
        Rule::Empty,
        Rule::Language,
        Rule::ControlCharacters,
        Rule::ReplacementCharacters,
        Rule::TooShort,
        Rule::FewLetters,
        Rule::Symbols,
        Rule::WordLength,
        Rule::OverlongWords,
        Rule::FewFunctionWords,
        Rule::BulletLines,
        Rule::EllipsisLines,
        Rule::Placeholder,
        Rule::RepeatedLines,
        Rule::RepeatedParagraphs,
        Rule::TopPhrase,
        Rule::RepeatedPhrases,
        Rule::ExactDuplicate,
        Rule::NearDuplicate,
    ];

    /// The name used in reports: that of the variant in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Empty => "empty",
            Rule::Language => "language",
            Rule::ControlCharacters => "control_characters",
            Rule::ReplacementCharacters => "replacement_characters",
            Rule::TooShort => "too_short",
            Rule::FewLetters => "few_letters",
            Rule::Symbols => "symbols",
            Rule::WordLength => "word_length",
            Rule::OverlongWords => "overlong_words",
            Rule::FewFunctionWords => "few_function_words",
            Rule::BulletLines => "bullet_lines",
            Rule::EllipsisLines => "ellipsis_lines",
            Rule::Placeholder => "placeholder",
            Rule::RepeatedLines => "repeated_lines",
            Rule::RepeatedParagraphs => "repeated_paragraphs",
            Rule::TopPhrase => "top_phrase",
            Rule::RepeatedPhrases => "repeated_phrases",
            Rule::ExactDuplicate => "exact_duplicate",
            Rule::NearDuplicate => "near_duplicate",
        }
    }
}

/// The thresholds. A share is a number from 0 to 1; setting a maximum share to 1 or a minimum to 0 turns a rule off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Fewest Han characters of a Chinese document. A quatrain of five-character lines has 20, the shortest ci form 16.
    pub min_han: usize,
    /// Fewest words of an English document.
    pub min_words: usize,
    /// Most control characters, as a share of all characters before cleaning.
    pub max_control_share: f64,
    /// Most U+FFFD, as a share of the characters.
    pub max_replacement_share: f64,
    /// Fewest letters (Han included), as a share of the characters that are not white space.
    pub min_letter_share: f64,
    /// Most symbols, per unit (Gopher: 0.1 for `#` and `…`; here for all symbols, hence more).
    pub max_symbols_per_unit: f64,
    /// Shortest average word of an English document (Gopher: 3).
    pub min_word_length: f64,
    /// Longest average word of an English document (Gopher: 10).
    pub max_word_length: f64,
    /// Most characters in words longer than 40 characters, as a share of the letters and digits.
    pub max_overlong_share: f64,
    /// Fewest English function words of an English document of 50 words or more, as a share of its words.
    pub min_function_word_share: f64,
    /// Most lines that begin with a bullet, as a share of the lines (Gopher: 0.9).
    pub max_bullet_line_share: f64,
    /// Most lines that end with an ellipsis, as a share of the lines (Gopher: 0.3).
    pub max_ellipsis_line_share: f64,
    /// Whether placeholder text (lorem ipsum) removes a document (C4).
    pub placeholder: bool,
    /// The rules below apply to documents of at least this many units.
    pub repetition_min_units: usize,
    /// Most lines that occurred before in the document, as a share of the lines (Gopher: 0.3; songs come to 0.31).
    pub max_repeated_line_share: f64,
    /// Most bytes in such lines, as a share of the bytes of all lines (Gopher: 0.2; songs come to 0.3).
    pub max_repeated_line_bytes: f64,
    /// Most paragraphs that occurred before in the document, as a share of the paragraphs (Gopher: 0.3).
    pub max_repeated_paragraph_share: f64,
    /// Most units in the commonest phrase (3 words, or 6 Han characters), as a share of the units (Gopher: 0.18; the
    /// genealogy of Luke 3 comes to 0.27).
    pub max_top_phrase_share: f64,
    /// Most units in phrases that occurred before (5 words, or 10 Han characters) within 8192 units, as a share of the
    /// units (Gopher: 0.15; the genealogy of Genesis 5 comes to 0.44, short statutes to 0.46).
    pub max_repeated_phrase_share: f64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            min_han: 16,
            min_words: 10,
            max_control_share: 0.01,
            max_replacement_share: 0.002,
            min_letter_share: 0.5,
            max_symbols_per_unit: 0.3,
            min_word_length: 3.0,
            max_word_length: 10.0,
            max_overlong_share: 0.3,
            min_function_word_share: 0.02,
            max_bullet_line_share: 0.9,
            max_ellipsis_line_share: 0.3,
            placeholder: true,
            repetition_min_units: 400,
            max_repeated_line_share: 0.4,
            max_repeated_line_bytes: 0.4,
            max_repeated_paragraph_share: 0.3,
            max_top_phrase_share: 0.3,
            max_repeated_phrase_share: 0.5,
        }
    }
}

impl Rules {
    /// Rules that keep everything that is not empty.
    pub fn keep_all() -> Rules {
        Rules {
            min_han: 0,
            min_words: 0,
            max_control_share: 1.0,
            max_replacement_share: 1.0,
            min_letter_share: 0.0,
            max_symbols_per_unit: f64::MAX,
            min_word_length: 0.0,
            max_word_length: f64::MAX,
            max_overlong_share: 1.0,
            min_function_word_share: 0.0,
            max_bullet_line_share: 1.0,
            max_ellipsis_line_share: 1.0,
            placeholder: false,
            repetition_min_units: usize::MAX,
            ..Rules::default()
        }
    }
}

/// Judges documents; keeps its tables between them. One for each thread.
#[derive(Debug)]
pub struct Judge {
    rules: Rules,
    seen: Table,
}

impl Judge {
    /// A judge by these rules.
    pub fn new(rules: &Rules) -> Judge {
        Judge { rules: rules.clone(), seen: Table::default() }
    }

    /// The first rule that a cleaned text breaks, if any. `control_share` is the share of control characters before
    /// cleaning.
    pub fn judge(&mut self, text: &str, lang: Lang, profile: &Profile, control_share: f64) -> Option<Rule> {
        self.by_counts(lang, profile, control_share)
            .or_else(|| self.by_lines(text, profile))
            .or_else(|| self.by_repetition(lang, profile))
    }

    fn by_counts(&self, lang: Lang, p: &Profile, control_share: f64) -> Option<Rule> {
        let rules = &self.rules;
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let short = match lang {
            Lang::Zh => p.han < rules.min_han,
            Lang::En => p.words < rules.min_words,
            Lang::Other => p.units.len() < rules.min_words,
        };
        let word_length = share(p.word_characters, p.words);
        let english = lang == Lang::En;
        let broken = [
            (Rule::ControlCharacters, control_share > rules.max_control_share),
            (Rule::ReplacementCharacters, share(p.replacements, p.characters) > rules.max_replacement_share),
            (Rule::TooShort, short),
            (Rule::FewLetters, share(p.letters(), p.characters - p.spaces) < rules.min_letter_share),
            (Rule::Symbols, share(p.symbols, p.units.len()) > rules.max_symbols_per_unit),
            (
                Rule::WordLength,
                english && p.words > 0 && !(rules.min_word_length..=rules.max_word_length).contains(&word_length),
            ),
            (Rule::OverlongWords, share(p.overlong, p.letters() + p.digits) > rules.max_overlong_share),
            (
                Rule::FewFunctionWords,
                english && p.words >= 50 && share(p.function_words, p.words) < rules.min_function_word_share,
            ),
        ];
        broken.into_iter().find(|(_, broken)| *broken).map(|(rule, _)| rule)
    }

    fn by_lines(&mut self, text: &str, profile: &Profile) -> Option<Rule> {
        let rules = &self.rules;
        let (mut lines, mut bullets, mut ellipses, mut bytes) = (0usize, 0usize, 0usize, 0usize);
        let (mut again, mut again_bytes) = (0usize, 0usize);
        let repetition = profile.units.len() >= rules.repetition_min_units;
        if repetition {
            self.seen.clear(text.len() / 8);
        }
        for line in text.split('\n') {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            lines += 1;
            bytes += line.len();
            bullets += usize::from(line.starts_with(['-', '*', '•', '●', '■', '○', '◆', '►', '※', '+']));
            ellipses += usize::from(line.ends_with(['…']) || line.ends_with("...") || line.ends_with("。。。"));
            if repetition && self.seen.count(xxhash_rust::xxh3::xxh3_64(line.as_bytes())) > 1 {
                again += 1;
                again_bytes += line.len();
            }
        }
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        if lines >= 4 {
            if share(bullets, lines) > rules.max_bullet_line_share {
                return Some(Rule::BulletLines);
            }
            if share(ellipses, lines) > rules.max_ellipsis_line_share {
                return Some(Rule::EllipsisLines);
            }
        }
        if rules.placeholder && placeholder(text) {
            return Some(Rule::Placeholder);
        }
        if again > 0
            && (share(again, lines) > rules.max_repeated_line_share
                || share(again_bytes, bytes) > rules.max_repeated_line_bytes)
        {
            return Some(Rule::RepeatedLines);
        }
        if repetition {
            self.seen.clear(text.len() / 8);
            let (mut paragraphs, mut again) = (0usize, 0usize);
            for paragraph in text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
                paragraphs += 1;
                again += usize::from(self.seen.count(xxhash_rust::xxh3::xxh3_64(paragraph.as_bytes())) > 1);
            }
            if share(again, paragraphs) > rules.max_repeated_paragraph_share {
                return Some(Rule::RepeatedParagraphs);
            }
        }
        None
    }

    fn by_repetition(&mut self, lang: Lang, profile: &Profile) -> Option<Rule> {
        let units = &profile.units;
        if units.len() < self.rules.repetition_min_units {
            return None;
        }
        let (short, long) = if lang == Lang::Zh { (6, 10) } else { (3, 5) };
        let (mut top, mut repeated) = (0, 0);
        for block in units.chunks(BLOCK) {
            top += self.top(block, short) * short;
            repeated += self.repeated(block, long);
        }
        if top as f64 > self.rules.max_top_phrase_share * units.len() as f64 {
            return Some(Rule::TopPhrase);
        }
        if repeated as f64 > self.rules.max_repeated_phrase_share * units.len() as f64 {
            return Some(Rule::RepeatedPhrases);
        }
        None
    }

    /// How often the commonest n-gram occurs, if more than once.
    fn top(&mut self, units: &[u64], n: usize) -> usize {
        self.seen.clear(units.len());
        let mut most = 0;
        ngrams(units, n, |hash| most = most.max(self.seen.count(hash)));
        if most > 1 { most as usize } else { 0 }
    }

    /// How many units lie in n-grams that occurred before.
    fn repeated(&mut self, units: &[u64], n: usize) -> usize {
        self.seen.clear(units.len());
        let (mut at, mut covered_to, mut covered) = (0, 0, 0);
        ngrams(units, n, |hash| {
            if self.seen.count(hash) > 1 {
                covered += (at + n) - covered_to.max(at);
                covered_to = at + n;
            }
            at += 1;
        });
        covered
    }
}

/// Repetition is counted within this many units, so that a long book is not held to a stricter measure than its chapters.
const BLOCK: usize = 8192;

/// Calls with the hash of each run of `n` units: a polynomial, so that each step is two multiplications.
pub(crate) fn ngrams(units: &[u64], n: usize, mut call: impl FnMut(u64)) {
    if n == 0 || units.len() < n {
        return;
    }
    let mut leading = 1u64;
    let mut hash = 0u64;
    for (i, unit) in units[..n].iter().enumerate() {
        hash = hash.wrapping_mul(GOLDEN).wrapping_add(*unit);
        if i > 0 {
            leading = leading.wrapping_mul(GOLDEN);
        }
    }
    call(hash);
    for i in n..units.len() {
        hash = hash.wrapping_sub(units[i - n].wrapping_mul(leading)).wrapping_mul(GOLDEN).wrapping_add(units[i]);
        call(hash);
    }
}

fn placeholder(text: &str) -> bool {
    // Searching for the rarer word is enough, and needs no lower-case copy.
    memchr::memmem::find_iter(text.as_bytes(), "ipsum").any(|at| {
        let mut start = at.saturating_sub(6);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text[start..at].trim_end().to_ascii_lowercase().ends_with("lorem")
    })
}

/// A counting table of hashes with open addressing. A collision of whole hashes would count as a repetition; at 64 bits
/// that does not happen.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<(u64, u32)>,
    mask: usize,
    shift: u32,
}

impl Table {
    /// Empties the table and makes room for `expected` hashes; it grows when there are more.
    fn clear(&mut self, expected: usize) {
        self.resize((2 * expected).next_power_of_two().clamp(64, 4 * BLOCK));
    }

    fn resize(&mut self, size: usize) {
        self.slots.clear();
        self.slots.resize(size, (0, 0));
        self.mask = size - 1;
        self.shift = 64 - size.trailing_zeros();
    }

    /// Counts a hash; how often it has occurred, this time included.
    fn count(&mut self, hash: u64) -> u32 {
        // The polynomial's low bits are its worst; multiplying and taking the high ones spreads them.
        let mut at = (hash.wrapping_mul(GOLDEN) >> self.shift) as usize;
        for _ in 0..64 {
            let slot = &mut self.slots[at];
            if slot.1 == 0 || slot.0 == hash {
                *slot = (hash, slot.1 + 1);
                return slot.1;
            }
            at = (at + 1) & self.mask;
        }
        self.grow();
        self.count(hash)
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.resize(old.len() * 2);
        for (hash, count) in old.into_iter().filter(|slot| slot.1 > 0) {
            let mut at = (hash.wrapping_mul(GOLDEN) >> self.shift) as usize;
            while self.slots[at].1 > 0 {
                at = (at + 1) & self.mask;
            }
            self.slots[at] = (hash, count);
        }
    }
}

#[cfg(test)]
mod tests;
