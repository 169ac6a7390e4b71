//! Plain text and Markdown: the file, its paragraphs or its lines are the documents.

use std::io::BufRead;

use super::encoding::Utf8Reader;
use super::open::Counter;
use super::{Context, ReadError, Split};

/// Where to cut a text that is longer than `max` bytes: after the last paragraph, line, sentence or word that ends in
/// the last quarter before `max`, else between two characters. Never 0, unless the text is empty.
pub fn cut_point(text: &str, max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 {
        return text.chars().next().map_or(0, char::len_utf8);
    }
    let mut start = end - end / 4;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let window = &text[start..end];
    let after = |found: Option<usize>, length: usize| found.map(|at| start + at + length);
    let sentence = || {
        window.char_indices().rev().find_map(|(at, c)| match c {
            '。' | '！' | '？' | '；' => Some(start + at + c.len_utf8()),
            '.' | '!' | '?' if window[at + 1..].starts_with(' ') => Some(start + at + 2),
            _ => None,
        })
    };
    after(window.rfind("\n\n"), 2)
        .or_else(|| after(window.rfind('\n'), 1))
        .or_else(sentence)
        .or_else(|| after(window.rfind(' '), 1))
        .unwrap_or(end)
}

/// Reads plain text to its end.
pub fn read(reader: &mut Utf8Reader, count: &Counter, context: &mut Context<'_>) -> Result<(), ReadError> {
    let max = context.options.max_document_bytes;
    let split = context.options.split;
    let mut document = String::new();
    let mut line_has_text = false;
    loop {
        let chunk = reader.chunk();
        if chunk.is_empty() {
            break;
        }
        let taken = chunk.len();
        if split == Split::None {
            document.push_str(chunk);
            shed(&mut document, max, context)?;
        } else {
            for part in chunk.split_inclusive('\n') {
                line_has_text |= !part.trim_start().is_empty();
                document.push_str(part);
                shed(&mut document, max, context)?;
                if part.ends_with('\n') {
                    if split == Split::Line || !line_has_text {
                        context.text(std::mem::take(&mut document))?;
                    }
                    line_has_text = false;
                }
            }
        }
        reader.consume(taken);
        context.advance(count.bytes());
    }
    context.text(document)
}

/// Gives away full pieces of a document that has grown above the limit.
fn shed(document: &mut String, max: usize, context: &mut Context<'_>) -> Result<(), ReadError> {
    while document.len() > max {
        let rest = document.split_off(cut_point(document, max));
        context.totals.pieces += 1;
        let piece = std::mem::replace(document, rest);
        context.piece(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::fuzz_tests::{Collected, collect};
    use crate::read::{Compression, Format, ReadOptions};
    use proptest::prelude::*;

    fn with(split: Split, max: usize) -> ReadOptions {
        ReadOptions { split, max_document_bytes: max, ..ReadOptions::default() }
    }

    fn texts(bytes: &str, options: &ReadOptions) -> Collected {
        collect(bytes.as_bytes().to_vec(), Compression::None, Format::Text, options).unwrap()
    }

    #[test]
    fn a_file_a_paragraph_or_a_line_is_a_document() {
        let text = "第一段。\n还是第一段。\n \n\n第二段。\r\n\r\nthird";
        assert_eq!(texts(text, &with(Split::None, 1000)).documents, [text]);
        let paragraphs = texts(text, &with(Split::Paragraph, 1000)).documents;
        assert_eq!(
            paragraphs.iter().map(|p| p.trim()).collect::<Vec<_>>(),
            ["第一段。\n还是第一段。", "第二段。", "third"]
        );
        let lines = texts(text, &with(Split::Line, 1000)).documents;
        assert_eq!(
            lines.iter().map(|p| p.trim()).collect::<Vec<_>>(),
            ["第一段。", "还是第一段。", "第二段。", "third"]
        );
        assert!(texts(" \n\n\t", &with(Split::None, 1000)).documents.is_empty());
    }

    #[test]
    fn a_long_text_is_cut_where_it_hurts_least() {
        let cut = |text: &str, max| text[..cut_point(text, max)].to_string();
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("aaaaaaaaaaaa\n\nbb\ncc", 17), "aaaaaaaaaaaa\n\nbb\n");
        assert_eq!(cut("aaaaaaaaaaaaaaa\n\nbbcc", 19), "aaaaaaaaaaaaaaa\n\n");
        assert_eq!(cut("一二三四五六七八九十。一二三", 40), "一二三四五六七八九十。");
        assert_eq!(cut("One two three four. Five six", 24), "One two three four. ");
        assert_eq!(cut("一二三四五六七八九十", 10), "一二三");
        assert_eq!(cut("一二三", 1), "一");
    }

    #[test]
    fn one_huge_line_loses_nothing() {
        let line: String = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。".repeat(20_000);
        for split in [Split::None, Split::Line, Split::Paragraph] {
            let read = texts(&line, &with(split, 100_000));
            assert_eq!(read.documents.concat(), line);
            assert!(read.documents.iter().all(|d| d.len() <= 100_000));
            assert_eq!(read.totals.pieces as usize, read.documents.len() - 1);
            assert_eq!(read.totals.bytes as usize, line.len());
        }
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text(text in "[a-z。\n 一-十]{0,300}", max in 1usize..80) {
            let read = texts(&text, &with(Split::None, max));
            let kept: String = read.documents.concat();
            // Pieces of white space alone are dropped; nothing else is.
            prop_assert_eq!(kept.split_whitespace().collect::<String>(), text.split_whitespace().collect::<String>());
        }
    }
}
