//! Cleaning by line: white space at line ends, runs of blank lines, lines repeated over and over.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

/// Lines shorter than this many bytes (six Han characters) may repeat as they like: `}`, `---`, 嗯。, 唐·李白.
const MIN_REPEATED: usize = 18;

/// What the pass over the lines removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    /// Lines found to be boilerplate.
    pub boilerplate: u64,
    /// Lines that repeat an earlier one too often.
    pub repeated: u64,
}

/// The text with trimmed lines, at most one blank line in a row, no blank lines at its ends, without the lines that begin
/// at `boilerplate`, and, where a line occurs more than `limit` times, with its first occurrence alone (0: no limit).
pub(super) fn clean(text: &str, boilerplate: &[usize], limit: usize) -> (String, Removed) {
    let counts = if limit > 0 { repeated(text, limit) } else { HashMap::new() };
    let mut seen = HashMap::new();
    let mut out = String::with_capacity(text.len());
    let mut removed = Removed::default();
    let mut blank = false;
    let mut boilerplate = boilerplate.iter().peekable();
    let mut start = 0;
    for line in text.split('\n') {
        let at = start;
        start += line.len() + 1;
        if boilerplate.next_if(|b| **b == at).is_some() {
            removed.boilerplate += 1;
            continue;
        }
        let line = line.trim_end();
        if line.is_empty() {
            blank = true;
            continue;
        }
        if !counts.is_empty() && line.len() >= MIN_REPEATED {
            let hash = xxh3_64(line.trim_start().as_bytes());
            if counts.contains_key(&hash) && seen.insert(hash, ()).is_some() {
                removed.repeated += 1;
                continue;
            }
        }
        if !out.is_empty() {
            out.push_str(if blank { "\n\n" } else { "\n" });
        }
        blank = false;
        out.push_str(line);
    }
    (out, removed)
}

/// Hashes of the lines that occur more than `limit` times.
fn repeated(text: &str, limit: usize) -> HashMap<u64, usize> {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    // A text of few lines cannot have one that often.
    if text.bytes().filter(|b| *b == b'\n').take(limit).count() < limit {
        return counts;
    }
    for line in text.split('\n').map(str::trim).filter(|line| line.len() >= MIN_REPEATED) {
        *counts.entry(xxh3_64(line.as_bytes())).or_default() += 1;
    }
    counts.retain(|_, count| *count > limit);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn white_space_is_tidied() {
        let (text, _) = clean("\n \n　　第一段。　 \n\n\n\n第二段。\t\n  code\n\n", &[], 0);
        assert_eq!(text, "　　第一段。\n\n第二段。\n  code");
        assert_eq!(clean(" \n\n", &[], 0).0, "");
    }

    #[test]
    fn a_line_on_every_page_stays_once() {
        let page = "第一中学校刊 第三期 内部资料\n正文内容各不相同\n嗯。\n";
        let text: String = (0..12).map(|i| page.replace("各", &format!("{i}"))).collect();
        let (out, removed) = clean(&text, &[], 10);
        assert_eq!(removed.repeated, 11);
        assert_eq!(out.matches("校刊").count(), 1);
        assert_eq!(out.matches("嗯。").count(), 12);
        assert_eq!(clean(&text, &[], 12).1.repeated, 0);
    }

    #[test]
    fn marked_lines_go() {
        let (out, removed) = clean("one\ntwo\nthree", &[4], 0);
        assert_eq!((out.as_str(), removed.boilerplate), ("one\nthree", 1));
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(text in "[ab \n　长]{0,200}") {
            let (once, _) = clean(&text, &[], 0);
            prop_assert_eq!(&clean(&once, &[], 0).0, &once);
            let visible = |t: &str| t.split_whitespace().collect::<String>();
            prop_assert_eq!(visible(&text), visible(&once));
        }
    }
}
