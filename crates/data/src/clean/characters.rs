//! Cleaning by character: what is invisible goes, what means the same becomes the same.
//!
//! One pass copies runs of good characters and decides only about the others. It also notes whether anything occurred
//! that Unicode normalization could change; most texts have nothing of the kind and skip it.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

use super::Normalization;

/// What the pass over the characters did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes {
    /// Control characters removed, form feeds and the like not counted.
    pub control: u64,
    /// Invisible characters removed: zero width, soft hyphens, byte order marks, direction marks.
    pub invisible: u64,
    /// Line ends and white space of other kinds replaced by the plain ones.
    pub replaced: u64,
    /// Whether something is there that normalization may change.
    pub to_normalize: bool,
}

enum Fate {
    Keep,
    /// Keep, and look at it again when normalizing.
    Normalize,
    Control,
    Invisible,
    Newline,
    Space,
    /// U+200D: belongs to an emoji, or is invisible.
    Joiner,
    /// U+000D: part of a line end.
    Return,
}

fn fate(c: char) -> Fate {
    match c {
        ' '..='~' | '\n' | '\t' => Fate::Keep,
        '\u{4e00}'..='\u{9fff}' | '\u{3001}'..='\u{3029}' | '\u{3400}'..='\u{4dbf}' => Fate::Keep,
        '\u{3000}' | '\u{ff01}'..='\u{ff5e}' => Fate::Normalize,
        '\r' => Fate::Return,
        '\u{0b}' | '\u{0c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => Fate::Newline,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' => Fate::Control,
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' => Fate::Space,
        '\u{200d}' => Fate::Joiner,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
            Fate::Invisible
        }
        '\u{fff9}'..='\u{fffb}' | '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}' => Fate::Control,
        '\u{e0000}'..='\u{e007f}' => Fate::Invisible,
        _ => Fate::Normalize,
    }
}

/// Whether NFC can change the character or join it to its neighbour; cheap, and errs towards yes.
fn may_compose(c: char) -> bool {
    !matches!(c, '\0'..='\u{2ff}' | '\u{2010}'..='\u{2027}' | '\u{3000}'..='\u{3029}' | '\u{ff01}'..='\u{ff5e}' | '\u{fffd}')
}

/// The text without invisible characters and with plain line ends and spaces, normalized.
pub(super) fn clean(text: String, normalization: Normalization) -> (String, Changes) {
    let mut changes = Changes::default();
    let mut out = String::new();
    let mut copied = 0;
    let mut previous = '\0';
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let before = std::mem::replace(&mut previous, c);
        let replacement = match fate(c) {
            Fate::Keep => continue,
            Fate::Normalize => {
                changes.to_normalize |= normalization == Normalization::Nfkc || may_compose(c);
                continue;
            }
            Fate::Joiner if is_pictograph(before) => continue,
            Fate::Joiner | Fate::Invisible => {
                changes.invisible += 1;
                ""
            }
            Fate::Control => {
                changes.control += 1;
                ""
            }
            Fate::Return if characters.peek().is_some_and(|(_, next)| *next == '\n') => "",
            Fate::Return | Fate::Newline => {
                changes.replaced += 1;
                "\n"
            }
            Fate::Space => {
                changes.replaced += 1;
                " "
            }
        };
        if out.is_empty() {
            out.reserve(text.len());
        }
        out.push_str(&text[copied..at]);
        out.push_str(replacement);
        copied = at + c.len_utf8();
    }
    let out = if copied == 0 {
        text
    } else {
        out.push_str(&text[copied..]);
        out
    };
    if !changes.to_normalize {
        return (out, changes);
    }
    let out = match normalization {
        Normalization::None => out,
        Normalization::Nfc if is_nfc_quick(out.chars()) != IsNormalized::Yes => out.nfc().collect(),
        Normalization::Nfkc if is_nfkc_quick(out.chars()) != IsNormalized::Yes => out.nfkc().collect(),
        _ => out,
    };
    (out, changes)
}

/// Whether a joiner after this character makes a combined emoji.
fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{1f000}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{fe0f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nfc(text: &str) -> String {
        clean(text.to_string(), Normalization::Nfc).0
    }

    #[test]
    fn invisible_and_control_characters_go() {
        assert_eq!(nfc("\u{feff}春\u{200b}眠\u{ad}不\u{0}觉\u{2060}晓\u{7f}"), "春眠不觉晓");
        assert_eq!(
            nfc("a\u{200d}b 👨\u{200d}👩\u{200d}👧 ❤\u{fe0f}\u{200d}🔥"),
            "ab 👨\u{200d}👩\u{200d}👧 ❤\u{fe0f}\u{200d}🔥"
        );
        let (_, changes) = clean("\u{1}\u{2}a\u{200b}\u{a0}\r\n\r".to_string(), Normalization::Nfc);
        assert_eq!((changes.control, changes.invisible, changes.replaced), (2, 1, 2));
    }

    #[test]
    fn line_ends_and_spaces_become_plain() {
        assert_eq!(nfc("a\r\nb\rc\u{2028}d\u{85}e\u{c}f\u{a0}g\u{2003}h\ti"), "a\nb\nc\nd\ne\nf g h\ti");
        assert_eq!(nfc("　　全角空格"), "　　全角空格");
    }

    #[test]
    fn normalization_keeps_full_width_punctuation_in_nfc() {
        let text = "（你好，世界！）ＡＢＣ１２３～";
        assert_eq!(nfc(text), text);
        assert_eq!(clean(text.to_string(), Normalization::Nfkc).0, "(你好,世界!)ABC123~");
        assert_eq!(nfc("cafe\u{301} \u{f900}\u{212b} 한"), "café 豈Å 한");
        assert_eq!(clean("e\u{301}".to_string(), Normalization::None).0, "e\u{301}");
        assert_eq!(clean("①ﬁ".to_string(), Normalization::Nfkc).0, "1fi");
    }

    proptest! {
        #[test]
        fn the_result_is_normal_and_stable(text in "[\\PC\u{300}-\u{310}\u{200b}\r\n\u{f900}-\u{f910}]{0,60}") {
            let once = nfc(&text);
            prop_assert_eq!(&once, &once.nfc().collect::<String>());
            let left = once.contains(['\r', '\u{200b}', '\0']);
            prop_assert!(!left);
            prop_assert_eq!(nfc(&once), once);
        }
    }
}
