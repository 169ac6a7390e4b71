//! From questions to token sequences, cut as lm-evaluation-harness cuts them.
//!
//! White space at the end of a context goes to the continuation, and both are encoded in one piece, since they may share a
//! token's bytes: the continuation's tokens are those after as many as the context alone has. A whole text is cut into
//! windows of as many tokens as the model takes; every token is predicted once, and the last window reaches back as far as
//! it can.

use super::{Choice, Kind, Question, is_space};
use crate::checkpoint::Checkpoint;
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::Device;

/// Tokens that the model reads once, whoever asks what follows them.
#[derive(Debug, PartialEq)]
pub(super) struct Sequence {
    /// What it reads.
    pub inputs: Vec<u32>,
    /// What is asked of it.
    pub asked: Vec<Asked>,
}

/// How likely are these tokens after the last inputs, one each?
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    /// The tokens.
    pub targets: Vec<u32>,
    /// The question, its choice, and which window of it.
    pub of: (usize, usize, usize),
}

impl Sequence {
    /// Inputs after which nothing is asked: what they lead to may come from memory.
    pub fn silent(&self) -> usize {
        self.inputs.len() - self.asked.iter().map(|a| a.targets.len()).max().unwrap_or(0)
    }
}

/// Inputs, and targets after the last of them.
type Window = (Vec<u32>, Vec<u32>);

/// The sequences of one question.
pub(super) struct Encoded {
    /// Those of choices that read the same are one.
    pub sequences: Vec<Sequence>,
    /// By choice: windows, and tokens predicted.
    pub parts: Vec<(usize, usize)>,
    /// Whether a context lost its beginning.
    pub cut: bool,
}

/// What cutting depends on.
pub(super) struct Encoder<'c> {
    tokenizer: &'c Tokenizer,
    /// The token that begins documents, if the model has one.
    begin: Option<u32>,
    /// Every context begins with it, not empty ones alone.
    always: bool,
    /// Most inputs of a sequence.
    limit: usize,
}

impl<'c> Encoder<'c> {
    pub fn new<D: Device>(checkpoint: &'c Checkpoint<D>, always: bool) -> Self {
        let config = &checkpoint.config;
        let begin = config.bos_token_id.or(config.end_of_text());
        Encoder { tokenizer: &checkpoint.tokenizer, begin, always, limit: config.max_position_embeddings }
    }

    /// Special tokens that a text spells out are meant.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokenizer.encode_with_special(text)
    }

    /// The question of this number.
    pub fn question(&self, number: usize, question: &Question, kind: Kind) -> Result<Encoded, TokenizerError> {
        let mut encoded = Encoded { sequences: vec![], parts: vec![], cut: false };
        let mut context: Option<(&str, usize)> = None;
        for (c, choice) in question.choices.iter().enumerate() {
            let windows = if kind == Kind::Text {
                self.windows(&choice.continuation)?
            } else {
                let before = choice.context.trim_end_matches(is_space);
                let len = match context {
                    Some((text, len)) if text == before => len,
                    _ => self.encode(before)?.len(),
                };
                context = Some((before, len));
                vec![self.pair(choice, len, &mut encoded.cut)?]
            };
            encoded.parts.push((windows.len(), windows.iter().map(|(_, targets)| targets.len()).sum()));
            for (w, (inputs, targets)) in windows.into_iter().enumerate() {
                let asked = Asked { targets, of: (number, c, w) };
                match encoded.sequences.iter_mut().find(|s| s.inputs == inputs) {
                    Some(same) => same.asked.push(asked),
                    None => encoded.sequences.push(Sequence { inputs, asked: vec![asked] }),
                }
            }
        }
        Ok(encoded)
    }

    /// Inputs and targets of a choice, whose context alone has `len` tokens.
    fn pair(&self, choice: &Choice, len: usize, cut: &mut bool) -> Result<Window, TokenizerError> {
        let begin = self.begin.filter(|_| self.always || len == 0);
        let mut ids: Vec<u32> = begin.into_iter().collect();
        let before = ids.len() + len;
        ids.extend(self.encode(&format!("{}{}", choice.context, choice.continuation))?);
        if ids.len() < 2 {
            return Err(nothing_before());
        }
        // One token at least is asked for, and one given.
        let from = before.clamp(1, ids.len() - 1);
        let drop = (ids.len() - 1).saturating_sub(self.limit);
        *cut |= drop > 0;
        Ok((ids[drop..ids.len() - 1].to_vec(), ids[from.max(drop + 1)..].to_vec()))
    }

    /// Inputs and targets of a text's windows.
    fn windows(&self, text: &str) -> Result<Vec<Window>, TokenizerError> {
        let mut ids: Vec<u32> = self.begin.into_iter().collect();
        ids.extend(self.encode(text)?);
        if ids.len() < 2 {
            return Err(nothing_before());
        }
        let mut windows = vec![];
        let mut done = 0;
        while done < ids.len() - 1 {
            let end = (done + self.limit).min(ids.len() - 1);
            windows.push((ids[end.saturating_sub(self.limit)..end].to_vec(), ids[done + 1..end + 1].to_vec()));
            done = end;
        }
        Ok(windows)
    }
}

fn nothing_before() -> TokenizerError {
    let reason = "a single token without a begin-of-document token has nothing to follow".into();
    TokenizerError::Encode { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checkpoint;
    use wudao_device::{Cpu, DType};

    fn choice(context: &str, continuation: &str) -> Question {
        let choice = Choice { context: context.into(), continuation: continuation.into() };
        Question { choices: vec![choice], right: 0 }
    }

    fn one(encoder: &Encoder, question: &Question, kind: Kind) -> Vec<Window> {
        let encoded = encoder.question(0, question, kind).unwrap();
        let targets = |s: &Sequence| s.asked[0].targets.clone();
        encoded.sequences.iter().map(|s| (s.inputs.clone(), targets(s))).collect()
    }

    #[test]
    fn spaces_before_a_continuation_belong_to_it() {
        let own = checkpoint(false, DType::F32);
        let encoder = Encoder::new(&own, false);
        let ids = own.tokenizer.encode("the quick brown fox").unwrap();
        let context = own.tokenizer.encode("the quick").unwrap().len();
        for (a, b) in [("the quick", " brown fox"), ("the quick ", "brown fox")] {
            let expected = (ids[..ids.len() - 1].to_vec(), ids[context..].to_vec());
            assert_eq!(one(&encoder, &choice(a, b), Kind::Continuation), [expected]);
        }
        let begun = Encoder::new(&own, true);
        let (inputs, targets) = one(&begun, &choice("the quick", " brown fox"), Kind::Continuation).remove(0);
        assert_eq!((inputs[0], &inputs[1..], &targets[..]), (0, &ids[..ids.len() - 1], &ids[context..]));
        // Without a context the first token follows the one that begins documents, whether others do or not.
        let (inputs, targets) = one(&encoder, &choice("", "the quick brown fox"), Kind::Continuation).remove(0);
        assert_eq!((inputs[0], inputs.len(), targets), (0, ids.len(), ids));
    }

    #[test]
    fn choices_that_read_the_same_are_read_once() {
        let own = checkpoint(false, DType::F32);
        let letters = ["a", "b", "c"].map(|c| Choice { context: "the lazy dog ".into(), continuation: c.into() });
        let question = Question { choices: letters.to_vec(), right: 0 };
        let encoded = Encoder::new(&own, true).question(7, &question, Kind::Choice).unwrap();
        let of: Vec<_> = encoded.sequences.iter().flat_map(|s| &s.asked).map(|a| a.of).collect();
        assert_eq!((encoded.sequences.len(), of), (1, vec![(7, 0, 0), (7, 1, 0), (7, 2, 0)]));
    }

    /// The windows of `get_rolling_token_windows` and `make_disjoint_window` with a context of 1.
    #[test]
    fn a_text_is_predicted_once_in_windows() {
        let own = checkpoint(false, DType::F32);
        let text: String = (0..300u32).map(|i| char::from(b'a' + (i * i % 101 % 26) as u8)).collect();
        let encoder = Encoder { limit: 10, ..Encoder::new::<Cpu>(&own, false) };
        let ids = own.tokenizer.encode(&text).unwrap();
        let windows = one(&encoder, &choice("", &text), Kind::Text);
        assert_eq!(windows.iter().flat_map(|w| w.1.clone()).collect::<Vec<_>>(), ids);
        assert_eq!(windows[0].0, [&[0], &ids[..9]].concat());
        assert_eq!((&windows[1].0[..], &windows[1].1[..]), (&ids[9..19], &ids[10..20]));
        let (last, n) = (windows.last().unwrap(), ids.len());
        assert_eq!((&last.0[..], last.1.len()), (&ids[n - 11..n - 1], (n - 1) % 10 + 1));
    }

    #[test]
    fn a_context_that_is_too_long_loses_its_beginning() {
        let own = checkpoint(false, DType::F32);
        let encoder = Encoder { limit: 5, ..Encoder::new(&own, true) };
        let question = choice("the quick brown fox jumps over", " the lazy dog");
        let encoded = encoder.question(0, &question, Kind::Continuation).unwrap();
        assert!(encoded.cut && encoded.sequences[0].inputs.len() == 5);
    }
}
