//! The text of a completion as its tokens come: given out as soon as it is certain, never half a character, and never the
//! beginning of what may turn out to be a stop string.

use crate::generate::Stop;
use wudao_data::tokenizer::{DecodeStream, Tokenizer};

/// The text so far, and what of it has been given out.
pub(crate) struct Text<'a> {
    decoder: Option<DecodeStream<'a>>,
    stops: Vec<String>,
    text: String,
    given: usize,
    /// The stop string that came.
    stopped: Option<usize>,
}

impl<'a> Text<'a> {
    /// Text of `tokenizer`, special tokens left out with `skip_special`; `stops` end it.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool, stops: Vec<String>) -> Self {
        let decoder = Some(tokenizer.decode_stream(skip_special));
        Text { decoder, stops, text: String::new(), given: 0, stopped: None }
    }

    /// The stop string that ended the text.
    pub fn stop_string(&self) -> Option<&str> {
        self.stopped.map(|i| self.stops[i].as_str())
    }

    /// Takes the next token; what of the text is certain with it goes to `emit`.
    pub fn push(&mut self, id: u32, emit: &mut dyn FnMut(&str) -> bool) -> Option<Stop> {
        let piece = self.decoder.as_mut().map(|d| d.push(id)).unwrap_or_default();
        self.append(&piece, emit)
    }

    fn append(&mut self, piece: &str, emit: &mut dyn FnMut(&str) -> bool) -> Option<Stop> {
        if piece.is_empty() {
            return None;
        }
        self.text.push_str(piece);
        let pending = &self.text[self.given..];
        let stops = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let found = stops.filter_map(|(i, s)| Some((pending.find(s.as_str())?, i))).min();
        if let Some((at, stop)) = found {
            self.stopped = Some(stop);
            self.text.truncate(self.given + at);
            self.give(self.text.len(), emit);
            return Some(Stop::StopString);
        }
        // The longest end of the text that a stop string begins with stays here.
        let held = self.stops.iter().map(|s| open_prefix(pending, s)).max().unwrap_or(0);
        let until = self.text.len() - held;
        (!self.give(until, emit)).then_some(Stop::Reader)
    }

    fn give(&mut self, until: usize, emit: &mut dyn FnMut(&str) -> bool) -> bool {
        let piece = &self.text[self.given..until];
        self.given = until;
        piece.is_empty() || emit(piece)
    }

    /// Gives out what was held back, unless the text has ended at a stop string or nobody reads it: the whole text, and why
    /// it ended.
    pub fn finish(&mut self, stop: Stop, emit: &mut dyn FnMut(&str) -> bool) -> (String, Stop) {
        let mut stop = stop;
        if !matches!(stop, Stop::StopString | Stop::Reader) {
            let rest = self.decoder.take().map(|d| d.finish()).unwrap_or_default();
            if self.append(&rest, emit) == Some(Stop::StopString) {
                stop = Stop::StopString;
            }
            self.give(self.text.len(), emit);
        }
        (std::mem::take(&mut self.text), stop)
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn open_prefix(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(i, _)| i).rev().find(|&i| i > 0 && text.ends_with(&stop[..i])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_open_prefix_is_the_longest_one() {
        assert_eq!(open_prefix("abcab", "abd"), 2);
        assert_eq!(open_prefix("abcab", "x"), 0);
        assert_eq!(open_prefix("床前明", "明月"), "明".len());
        assert_eq!(open_prefix("", "ab"), 0);
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, String, Stop) {
        let mut text = Text { decoder: None, stops: stops.to_vec(), text: String::new(), given: 0, stopped: None };
        let mut out = String::new();
        let mut emit = |s: &str| {
            out.push_str(s);
            true
        };
        let mut stop = Stop::MaxTokens;
        for p in pieces {
            if let Some(s) = text.append(p, &mut emit) {
                stop = s;
                break;
            }
        }
        let (whole, stop) = text.finish(stop, &mut emit);
        assert_eq!(text.stop_string().is_some(), stop == Stop::StopString);
        (whole, out, stop)
    }

    proptest! {
        #[test]
        fn streamed_text_ends_where_the_first_stop_string_begins(
            pieces in prop::collection::vec("[abc明月]{0,3}", 0..12),
            stops in prop::collection::vec("[abc明月]{1,3}", 0..3),
        ) {
            let (whole, streamed, stop) = run(&pieces, &stops);
            prop_assert_eq!(&whole, &streamed);
            let all = pieces.concat();
            // A stop string is seen as soon as it is complete, so of several the one that ends first wins.
            let mut expected = all.as_str();
            let mut end = usize::MAX;
            let mut sum = 0;
            for p in &pieces {
                sum += p.len();
                let hits: Vec<usize> = stops.iter().filter_map(|s| all[..sum].find(s.as_str())).collect();
                if let Some(&at) = hits.iter().min() {
                    expected = &all[..at];
                    end = at;
                    break;
                }
            }
            prop_assert_eq!(&whole, expected);
            prop_assert_eq!(stop == Stop::StopString, end != usize::MAX);
        }
    }
}
