//! Cutting text into pre-tokens: the pieces inside which, and never across which, byte pairs are merged.
//!
//! The rules are those of DeepSeek-V3's `tokenizer.json`, which llama.cpp knows as the pre-tokenizer `deepseek-v3`, so
//! a model trained here can go there. Three regular expressions are applied one after the other, each to the pieces
//! the one before left:
//!
//! 1. up to three digits of any script,
//! 2. runs of common Han characters and kana,
//! 3. in what remains: a punctuation mark with the Latin letters after it; letters with one character before them; runs
//!    of punctuation and symbols; line ends with the white space before them; other white space, of which the last
//!    character is left to the word that follows.
//!
//! The regular expressions stand here as text, because they are what `tokenizer.json` holds. Running them takes most of
//! the time of tokenization, so [`Scanner`] is the same three written by hand; the tests hold it against the regular
//! expressions on all characters and on random text. Character classes come from the Unicode tables of the same
//! regular-expression library, so the two cannot disagree about a character.

use regex_syntax::hir::{Class, HirKind};

/// The three regular expressions of the pre-tokenizer, in order.
pub const SPLITS: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"##,
        "\r\n",
        r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[",
        "\r\n",
        r"]*|\s*[",
        "\r\n",
        r"]+|\s+(?!\S)|\s+"
    ),
];

const LETTER: u8 = 1;
const MARK: u8 = 2;
const SYMBOL: u8 = 4;
const NUMBER: u8 = 8;
const SPACE: u8 = 16;
const CJK: u8 = 32;
const HAN: u8 = 64;
const NEWLINE: u8 = 128;

const WORD: u8 = LETTER | MARK;

/// The hand-written pre-tokenizer: the same pieces as the three regular expressions of [`SPLITS`].
#[derive(Clone, Debug)]
pub struct Scanner {
    /// Class bits of every code point.
    classes: Box<[u8]>,
}

impl Scanner {
    /// Builds the table of character classes (about a millisecond).
    pub fn new() -> Scanner {
        let mut classes = vec![0u8; char::MAX as usize + 1].into_boxed_slice();
        let table = [
            (r"\p{L}", LETTER),
            (r"\p{M}", MARK),
            (r"[\p{P}\p{S}]", SYMBOL),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            ("[一-龥぀-ゟ゠-ヿ]", CJK),
            (r"\p{Han}", HAN),
            (r"[\r\n]", NEWLINE),
        ];
        for (pattern, bit) in table {
            let class = regex_syntax::parse(pattern).expect("a fixed pattern");
            let HirKind::Class(Class::Unicode(class)) = class.kind() else { unreachable!("{pattern} is a class") };
            for range in class.ranges() {
                for class in &mut classes[range.start() as usize..=range.end() as usize] {
                    *class |= bit;
                }
            }
        }
        Scanner { classes }
    }

    /// Whether a character is of the Han script.
    pub fn is_han(&self, c: char) -> bool {
        self.class(c) & HAN != 0
    }

    fn class(&self, c: char) -> u8 {
        self.classes[c as usize]
    }

    /// Calls `emit` with each pre-token of `text`, in order; together they are the text.
    pub fn split<'t>(&self, text: &'t str, mut emit: impl FnMut(&'t str)) {
        // The first two expressions: runs of digits, of Han and kana, and of the rest.
        let kind = |c: char| self.class(c) & (NUMBER | CJK);
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let run_kind = kind(first);
            let end = self.run(rest, 0, |class| class & (NUMBER | CJK) == run_kind);
            let (run, after) = rest.split_at(end);
            rest = after;
            match run_kind {
                NUMBER => {
                    let mut digits = run;
                    while !digits.is_empty() {
                        let end = digits.char_indices().nth(3).map_or(digits.len(), |(at, _)| at);
                        let (group, others) = digits.split_at(end);
                        emit(group);
                        digits = others;
                    }
                }
                _ => self.split_words(run, &mut emit),
            }
        }
    }

    /// Pre-tokens for learning merges: like [`Scanner::split`], but each digit alone, and cut between Han and other
    /// scripts where rarer Han characters stand in one word with them. So no token is ever learned that holds two
    /// digits, or Han with something else.
    pub fn split_for_training<'t>(&self, text: &'t str, mut emit: impl FnMut(&'t str)) {
        self.split(text, |piece| {
            let mut start = 0;
            let mut before = None;
            if !piece.is_ascii() || piece.as_bytes()[0].is_ascii_digit() {
                for (at, c) in piece.char_indices() {
                    let class = self.class(c) & (HAN | NUMBER);
                    if before.is_some_and(|before| before != class || class & NUMBER != 0) {
                        emit(&piece[start..at]);
                        start = at;
                    }
                    before = Some(class);
                }
            }
            emit(&piece[start..]);
        });
    }

    /// The third expression, on a piece of text that the first two have left.
    fn split_words<'t>(&self, piece: &'t str, emit: &mut impl FnMut(&'t str)) {
        // What no alternative matches forms a piece of its own, up to the next match.
        let mut unmatched = 0;
        let mut at = 0;
        while at < piece.len() {
            match self.word(piece, at) {
                Ok(end) => {
                    if unmatched < at {
                        emit(&piece[unmatched..at]);
                    }
                    emit(&piece[at..end]);
                    at = end;
                    unmatched = end;
                }
                Err(next) => at = next,
            }
        }
        if unmatched < piece.len() {
            emit(&piece[unmatched..]);
        }
    }

    /// The end of the match of the third expression at `at`, or the next place to try.
    fn word(&self, piece: &str, at: usize) -> Result<usize, usize> {
        let bytes = piece.as_bytes();
        let (first, class, next) = self.char_at(piece, at).unwrap_or(('\0', 0, piece.len()));
        let next_class = self.char_at(piece, next).map_or(0, |(_, class, _)| class);

        // [!"#$…][A-Za-z]+
        if first.is_ascii_punctuation() && bytes.get(next).is_some_and(u8::is_ascii_alphabetic) {
            let letters = bytes[next..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
            return Ok(next + letters);
        }
        // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
        if class & WORD != 0 || (class & (NEWLINE | SYMBOL) == 0 && next_class & WORD != 0) {
            return Ok(self.run(piece, next, |class| class & WORD != 0));
        }
        // ` ?[\p{P}\p{S}]+[\r\n]*`
        if class & SYMBOL != 0 || (first == ' ' && next_class & SYMBOL != 0) {
            let symbols = self.run(piece, next, |class| class & SYMBOL != 0);
            let newlines = bytes[symbols..].iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count();
            return Ok(symbols + newlines);
        }
        if class & SPACE == 0 {
            return Err(next);
        }
        let end = self.run(piece, next, |class| class & SPACE != 0);
        // `\s*[\r\n]+`: up to the last line end in the white space.
        if let Some(newline) = bytes[at..end].iter().rposition(|&byte| byte == b'\r' || byte == b'\n') {
            return Ok(at + newline + 1);
        }
        // `\s+(?!\S)`: all of it before the end of the piece, else all but its last character; `\s+`: the one there is.
        let last = piece[at..end].char_indices().next_back().map_or(0, |(last, _)| last);
        Ok(if end == piece.len() || last == 0 { end } else { at + last })
    }

    fn char_at(&self, piece: &str, at: usize) -> Option<(char, u8, usize)> {
        let c = piece[at..].chars().next()?;
        Some((c, self.class(c), at + c.len_utf8()))
    }

    /// The end of the run of characters from `at` on whose classes satisfy `inside`.
    fn run(&self, piece: &str, at: usize, inside: impl Fn(u8) -> bool) -> usize {
        piece[at..].char_indices().find(|&(_, c)| !inside(self.class(c))).map_or(piece.len(), |(end, _)| at + end)
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner::new()
    }
}
