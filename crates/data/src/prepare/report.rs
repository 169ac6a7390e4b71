//! What a preparation read, removed and wrote: for people as text, for programs as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clean::CleanCounts;
use crate::document::Lang;
use crate::manifest::{Counts, Split, TokenizerStamp};
use crate::quality::Rule;
use crate::read::{Problem, ProblemKind};

/// Documents and their text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Documents.
    pub documents: u64,
    /// Bytes of text (UTF-8).
    pub bytes: u64,
}

impl Amount {
    /// Adds one document.
    pub fn add(&mut self, bytes: u64) {
        *self += Amount { documents: 1, bytes };
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.documents += other.documents;
        self.bytes += other.bytes;
    }
}

/// What one source and language came to in the shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Documents, repeated ones counted each time.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens.
    pub tokens: u64,
    /// Han characters.
    pub han: u64,
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, other: Written) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.tokens += other.tokens;
        self.han += other.han;
    }
}

impl Written {
    pub(super) fn counts(self) -> Counts {
        Counts { documents: self.documents, bytes: self.bytes, tokens: self.tokens }
    }
}

/// What went in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReport {
    /// Files.
    pub files: u64,
    /// Bytes of the files as stored.
    pub stored_bytes: u64,
    /// Documents read.
    pub documents: u64,
    /// Bytes of their text, decompressed and as UTF-8.
    pub text_bytes: u64,
    /// Documents that exist only because a longer text was cut.
    pub pieces: u64,
}

/// One source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// What was read of it.
    pub read: Amount,
    /// What was removed of it, by any rule.
    pub removed: Amount,
    /// What went into the training shards, by language.
    pub train: BTreeMap<Lang, Written>,
    /// What went into the validation shards, by language.
    pub validation: BTreeMap<Lang, Written>,
}

/// What could not be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProblemReport {
    /// How many of each kind.
    pub counts: BTreeMap<ProblemKind, u64>,
    /// The first of them ([`ProblemReport::NAMED`] at most).
    pub first: Vec<Problem>,
}

impl ProblemReport {
    /// Problems that are named; the others are only counted.
    pub const NAMED: usize = 100;

    pub(super) fn add(&mut self, problem: Problem) {
        *self.counts.entry(problem.kind).or_default() += 1;
        if self.first.len() < Self::NAMED {
            self.first.push(problem);
        }
    }

    pub(super) fn append(&mut self, other: ProblemReport) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        let room = Self::NAMED.saturating_sub(self.first.len());
        self.first.extend(other.first.into_iter().take(room));
    }

    /// All problems together.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// How long it took; of a resumed run, its last part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Seconds in all.
    pub seconds: f64,
    /// Text read (10⁶ bytes of UTF-8) per second, if the run was not resumed.
    pub megabytes_per_second: Option<f64>,
    /// Seconds by stage.
    pub stages: BTreeMap<String, f64>,
}

/// The report of a preparation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What went in.
    pub input: InputReport,
    /// The sources, in the order given.
    pub sources: Vec<SourceReport>,
    /// What each rule removed (bytes of cleaned text); rules that removed nothing are left out.
    pub removed: BTreeMap<Rule, Amount>,
    /// What cleaning removed inside documents.
    pub cleaned: CleanCounts,
    /// What could not be read.
    pub problems: ProblemReport,
    /// What came out, by split.
    pub output: BTreeMap<Split, Counts>,
    /// The same by language, both splits together.
    pub languages: BTreeMap<Lang, Written>,
    /// Tokens of Chinese documents per Han character in them.
    pub tokens_per_han: Option<f64>,
    /// Tokens of English documents per byte of their text.
    pub tokens_per_english_byte: Option<f64>,
    /// The tokenizer.
    pub tokenizer: TokenizerStamp,
    /// Identifies inputs and options: a later run with the same ones finds its work done.
    pub plan: String,
    /// How long it took.
    pub timing: Timing,
}

impl Report {
    /// The part that is the same in every run: without times, and without the paths of files with problems.
    pub(super) fn lasting(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.shift_remove("timing");
            fields.shift_remove("plan");
            let counts = fields.get("problems").and_then(|p| p.get("counts")).cloned().unwrap_or_default();
            fields.insert("problems".to_string(), counts);
        }
        value.sort_all_objects();
        value
    }
}

/// A number with separators between thousands.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// Bytes in the largest unit that keeps three digits before the point.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "kB", "MB", "GB", "TB", "PB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < units.len() {
            value /= 1000.0;
            unit += 1;
        }
        let text = if unit == 0 { format!("{} B", self.0) } else { format!("{value:.1} {}", units[unit]) };
        f.pad(&text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let input = &self.input;
        writeln!(
            f,
            "read      {:>14} documents  {:>9} of text from {} files ({})",
            Grouped(input.documents),
            Bytes(input.text_bytes),
            Grouped(input.files),
            Bytes(input.stored_bytes)
        )?;
        if input.pieces > 0 {
            writeln!(f, "          {:>14} of them because longer texts were cut", Grouped(input.pieces))?;
        }
        let all = self.removed.values().fold(Amount::default(), |mut sum, amount| {
            sum += *amount;
            sum
        });
        writeln!(f, "removed   {:>14} documents  {:>9}", Grouped(all.documents), Bytes(all.bytes))?;
        for (rule, amount) in &self.removed {
            let (documents, bytes) = (Grouped(amount.documents), Bytes(amount.bytes));
            writeln!(f, "          {documents:>14}            {bytes:>9}  {}", rule.name())?;
        }
        for (split, counts) in &self.output {
            let (documents, bytes) = (Grouped(counts.documents), Bytes(counts.bytes));
            writeln!(f, "{split:<10}{documents:>14} documents  {bytes:>9}  {:>15} tokens", Grouped(counts.tokens))?;
        }
        for source in &self.sources {
            writeln!(f, "source    {} (weight {})", source.name, source.weight)?;
            for lang in Lang::ALL {
                let mut sum = Written::default();
                [&source.train, &source.validation].into_iter().filter_map(|by| by.get(&lang)).for_each(|w| sum += *w);
                if sum.documents > 0 {
                    let (documents, bytes) = (Grouped(sum.documents), Bytes(sum.bytes));
                    writeln!(
                        f,
                        "  {lang:<8}{documents:>14} documents  {bytes:>9}  {:>15} tokens",
                        Grouped(sum.tokens)
                    )?;
                }
            }
        }
        if let Some(ratio) = self.tokens_per_han {
            writeln!(f, "Chinese   {ratio:>14.3} tokens per Han character")?;
        }
        if let Some(ratio) = self.tokens_per_english_byte {
            writeln!(f, "English   {ratio:>14.3} tokens per byte")?;
        }
        if self.problems.total() > 0 {
            writeln!(f, "problems  {:>14}", Grouped(self.problems.total()))?;
            for (kind, count) in &self.problems.counts {
                writeln!(f, "          {:>14}  {}", Grouped(*count), kind.name())?;
            }
            for problem in self.problems.first.iter().take(5) {
                writeln!(f, "  {problem}")?;
            }
        }
        write!(f, "time      {:>12.1} s", self.timing.seconds)?;
        match self.timing.megabytes_per_second {
            Some(speed) => writeln!(f, "            {speed:>6.1} MB/s"),
            None => writeln!(f),
        }
    }
}
