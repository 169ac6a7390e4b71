//! The log-likelihood of every continuation.
//!
//! Questions share beginnings: the choices of one their context, those of a task their examples. What a beginning leads to is
//! kept in pages of keys and values, as the engine keeps it for its readers, and computed once: a step reads many sequences
//! at once, but of those that go on alike only the first; the others wait for the next step and find its pages. So nothing
//! needs to be known of how a task is built. Only what lies between a page's edge and the first token asked for is read again.
//!
//! The head sees the rows of continuations alone. A row's result depends on its own tokens, not on what else is in its
//! step, so neither does an answer, to the bit.

use super::encode::{Encoded, Encoder, Sequence};
use super::{Kind, Question};
use crate::checkpoint::Checkpoint;
use crate::engine::pages::{Content, Pages};
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};
use wudao_comm::Solo;
use wudao_data::tokenizer::TokenizerError;
use wudao_device::{Device, Fault, PAGE};
use wudao_model::{Cx, PagedCache, Step};

/// What the model says to one question, by choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Log-likelihood in nats of each continuation after its context.
    pub log_likelihood: Vec<f64>,
    /// Whether greedy decoding would have written the continuation.
    pub greedy: Vec<bool>,
    /// Tokens of each continuation.
    pub tokens: Vec<usize>,
    /// Whether the beginning of a context did not fit into the model and was cut.
    pub cut: bool,
}

/// How questions are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgeOptions {
    /// Every context begins with the token that begins documents, as in training. Without, only empty contexts do.
    pub begin: bool,
    /// Tokens that are computed at once, about.
    pub positions: usize,
}

/// Why questions could not be put.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A text that cannot be encoded.
    #[error("question {number} cannot be put")]
    Tokenizer {
        /// Which, from 0.
        number: usize,
        /// Why.
        source: TokenizerError,
    },
    /// The machine failed.
    #[error(transparent)]
    Device(#[from] Fault),
}

/// Sequences that wait while one that goes on alike is read, at most: further ones are not looked at.
const WAITING: usize = 512;

impl<D: Device> Checkpoint<D> {
    /// Gives `sink` the answer to each question with its number, in any order, as soon as it is there; `sink` answers whether
    /// to go on.
    pub fn answers(
        &self,
        questions: &[&Question],
        kind: Kind,
        options: JudgeOptions,
        sink: &mut dyn FnMut(usize, Answer) -> bool,
    ) -> Result<(), JudgeError> {
        let encoder = Encoder::new(self, options.begin);
        let (mut queue, mut open) = (VecDeque::new(), vec![]);
        for (number, question) in questions.iter().enumerate() {
            let encoded = encoder.question(number, question, kind);
            let encoded = encoded.map_err(|source| JudgeError::Tokenizer { number, source })?;
            open.push(Open::new(&encoded));
            queue.extend(encoded.sequences);
        }
        if queue.is_empty() {
            return Ok(());
        }
        let longest = queue.iter().map(|s: &Sequence| s.inputs.len()).max().unwrap_or(0);
        let mut reader = Reader::new(self, longest, options.positions.max(1));
        while !queue.is_empty() {
            let step = reader.plan(&mut queue);
            let judged = reader.read(&step)?;
            for (asked, part) in step.iter().flat_map(|t| &t.sequence.asked).zip(judged) {
                let (number, choice, window) = asked.of;
                if let Some(answer) = open[number].take(choice, window, part)
                    && !sink(number, answer)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A question whose answer is not complete.
struct Open {
    /// Log-likelihood and greediness, by choice and window.
    parts: Vec<Vec<(f64, bool)>>,
    missing: usize,
    tokens: Vec<usize>,
    cut: bool,
}

impl Open {
    fn new(encoded: &Encoded) -> Self {
        Open {
            parts: encoded.parts.iter().map(|&(windows, _)| vec![(0.0, true); windows]).collect(),
            missing: encoded.parts.iter().map(|&(windows, _)| windows).sum(),
            tokens: encoded.parts.iter().map(|&(_, tokens)| tokens).collect(),
            cut: encoded.cut,
        }
    }

    /// The answer, with its last part. Windows are summed in their order, whatever the order they came in.
    fn take(&mut self, choice: usize, window: usize, part: (f64, bool)) -> Option<Answer> {
        self.parts[choice][window] = part;
        self.missing -= 1;
        (self.missing == 0).then(|| Answer {
            log_likelihood: self.parts.iter().map(|parts| parts.iter().map(|p| p.0).sum()).collect(),
            greedy: self.parts.iter().map(|parts| parts.iter().all(|p| p.1)).collect(),
            tokens: std::mem::take(&mut self.tokens),
            cut: self.cut,
        })
    }
}

/// A sequence in the step that reads it.
struct Taken {
    sequence: Sequence,
    pages: Vec<u32>,
    /// Tokens whose pages were there, and the content of the last.
    past: usize,
    known: Content,
}

impl Taken {
    fn step(&self) -> Step<'_> {
        let Sequence { inputs, .. } = &self.sequence;
        let wanted = self.sequence.silent() - self.past..inputs.len() - self.past;
        Step { ids: &inputs[self.past..], past: self.past, pages: &self.pages, wanted }
    }
}

/// The model and its memory.
struct Reader<'c, D: Device> {
    checkpoint: &'c Checkpoint<D>,
    cache: PagedCache<D>,
    pages: Pages,
    positions: usize,
}

impl<'c, D: Device> Reader<'c, D> {
    /// Room for the longest sequence, and for a step beside what steps before have left.
    fn new(checkpoint: &'c Checkpoint<D>, longest: usize, positions: usize) -> Self {
        let count = longest.div_ceil(PAGE) + 2 * positions.div_ceil(PAGE);
        let Checkpoint { device, config, model, .. } = checkpoint;
        let cache = PagedCache::new(device, config, count, model.dtype());
        Reader { checkpoint, cache, pages: Pages::new(count), positions }
    }

    /// Takes sequences of the next step out of the queue: the first always.
    fn plan(&mut self, queue: &mut VecDeque<Sequence>) -> Vec<Taken> {
        let (mut step, mut waiting, mut tokens) = (vec![], vec![], 0);
        // What is read in this step, by the first page of each sequence that is not known yet.
        let mut reading = HashSet::new();
        while let Some(sequence) = queue.pop_front() {
            let silent = &sequence.inputs[..sequence.silent()];
            let (mut pages, known) = self.pages.find(silent);
            let past = pages.len() * PAGE;
            let next = silent[past..].first_chunk::<PAGE>().map(|page| (known, *page));
            let waits = next.is_some_and(|page| reading.contains(&page));
            let new = sequence.inputs.len() - past;
            let fits = !waits && (step.is_empty() || tokens + new <= self.positions);
            let more = sequence.inputs.len().div_ceil(PAGE) - pages.len();
            match fits.then(|| self.pages.take(more)).flatten() {
                Some(more) => {
                    pages.extend(more);
                    reading.extend(next);
                    tokens += new;
                    step.push(Taken { sequence, pages, past, known });
                }
                None => {
                    self.pages.release(&pages);
                    waiting.push(sequence);
                    if !waits || waiting.len() == WAITING {
                        break;
                    }
                }
            }
        }
        waiting.into_iter().rev().for_each(|sequence| queue.push_front(sequence));
        step
    }

    /// Of everything asked, in order: log-likelihood, and whether all tokens are the likeliest (the lower of equals).
    fn read(&mut self, taken: &[Taken]) -> Result<Vec<(f64, bool)>, Fault> {
        let steps: Vec<Step> = taken.iter().map(Taken::step).collect();
        let packing = Step::packing(&steps);
        let Checkpoint { device, model, weights, .. } = self.checkpoint;
        let mut cx =
            Cx { device, comm: &Solo, weights, packing: &packing, aux: Default::default(), log: None, again: false };
        let h_td = model.decode_batch(&mut cx, &mut self.cache, &steps)?;
        let (mut rows, mut targets, mut end) = (vec![], vec![], 0);
        for (t, step) in taken.iter().zip(&steps) {
            end += step.wanted.len();
            for asked in &t.sequence.asked {
                rows.extend((end - asked.targets.len()..end).map(|row| row as u32));
                targets.extend(&asked.targets);
            }
        }
        let mut judged = model.judge(&cx, h_td.view(), &rows, &targets)?.into_iter();
        for t in taken {
            let silent = t.sequence.inputs[..t.sequence.silent()].as_chunks::<PAGE>().0;
            let new = silent.iter().zip(&t.pages).skip(t.past / PAGE);
            new.fold(t.known, |before, (tokens, &page)| self.pages.publish(page, before, tokens));
            self.pages.release(&t.pages);
        }
        let sum = |n| judged.by_ref().take(n).fold((0.0, true), |(l, g), (loss, best)| (l - loss, g && best));
        Ok(taken.iter().flat_map(|t| &t.sequence.asked).map(|asked| asked.targets.len()).map(sum).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Choice;
    use super::*;
    use crate::testing::checkpoint;
    use wudao_device::{Cpu, DType, IGNORE, tolerance};
    use wudao_model::Packing;

    const SHOTS: &str = "the lazy dog jumps over the quick brown fox, the lazy fox over the dog; ";

    /// Long examples that all share, contexts that some share, choices of one token and of many.
    fn questions() -> Vec<Question> {
        let question = |i: usize| {
            let context = format!(
                "{SHOTS}{}",
                "the quick brown fox over dogs ".chars().cycle().skip(i % 7).take(9 + 5 * (i % 5)).collect::<String>()
            );
            let choice = |c: &str| Choice { context: context.clone(), continuation: c.into() };
            let choices =
                if i.is_multiple_of(2) { vec!["a", "b"] } else { vec!["床前明月光", "fox jumps over", "x"] };
            Question { choices: choices.into_iter().map(choice).collect(), right: 0 }
        };
        (0..40).map(question).collect()
    }

    fn ask(own: &Checkpoint<Cpu>, questions: &[&Question], kind: Kind, positions: usize) -> Vec<Answer> {
        let mut answers = vec![None; questions.len()];
        let mut sink = |number: usize, answer| {
            assert!(answers[number].replace(answer).is_none());
            true
        };
        own.answers(questions, kind, JudgeOptions { begin: true, positions }, &mut sink).unwrap();
        answers.into_iter().map(Option::unwrap).collect()
    }

    /// Log-likelihood of the targets after the last inputs, without memory.
    fn plain(own: &Checkpoint<Cpu>, inputs: &[u32], targets: &[u32]) -> f64 {
        let mut all = vec![IGNORE; inputs.len() - targets.len()];
        all.extend(targets);
        let Checkpoint { device, weights, .. } = own;
        let packing = &Packing::of_lengths(&[inputs.len()]);
        let mut cx = Cx { device, comm: &Solo, weights, packing, aux: Default::default(), log: None, again: false };
        -own.model.losses(&mut cx, inputs, &all).unwrap().iter().sum::<f64>()
    }

    /// Whatever is read beside, from memory or anew, in steps of any size: to the bit.
    #[test]
    fn answers_do_not_depend_on_company() {
        for sparse in [false, true] {
            let own = checkpoint(sparse, DType::F32);
            let questions = questions();
            let all: Vec<&Question> = questions.iter().collect();
            let alone: Vec<Answer> = all.iter().map(|q| ask(&own, &[q], Kind::Choice, 1).remove(0)).collect();
            for positions in [1, 70, 300, 4096] {
                assert_eq!(ask(&own, &all, Kind::Choice, positions), alone, "{positions}");
            }
        }
    }

    #[test]
    fn likelihoods_are_those_of_a_plain_pass() {
        for sparse in [false, true] {
            let own = checkpoint(sparse, DType::F32);
            let questions = questions();
            let all: Vec<&Question> = questions.iter().collect();
            let encoder = Encoder::new(&own, true);
            for (answer, question) in ask(&own, &all, Kind::Choice, 300).iter().zip(all) {
                for s in encoder.question(0, question, Kind::Choice).unwrap().sequences {
                    for asked in s.asked {
                        let plain = plain(&own, &s.inputs, &asked.targets);
                        let off = (plain - answer.log_likelihood[asked.of.1]).abs();
                        assert!(off <= tolerance::of("likelihood", DType::F32).allowed(plain), "{plain}: {off}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_shared_is_read_once() {
        let own = checkpoint(false, DType::F32);
        let encoder = Encoder::new(&own, true);
        let questions = questions();
        let encode = |(i, q)| encoder.question(i, q, Kind::Choice).unwrap().sequences;
        let mut queue: VecDeque<Sequence> = questions.iter().enumerate().flat_map(encode).collect();
        let whole: usize = queue.iter().map(|s| s.inputs.len()).sum();
        // Every page once, and what no page can hold.
        let mut pages = HashSet::new();
        let mut least = 0;
        for s in &queue {
            let full = s.silent() / PAGE * PAGE;
            pages.extend((0..full).step_by(PAGE).map(|p| s.inputs[..p + PAGE].to_vec()));
            least += s.inputs.len() - full;
        }
        least += pages.len() * PAGE;
        let longest = queue.iter().map(|s| s.inputs.len()).max().unwrap();
        let mut reader = Reader::new(&own, longest, 512);
        let mut read = 0;
        while !queue.is_empty() {
            let step = reader.plan(&mut queue);
            read += step.iter().map(|t| t.sequence.inputs.len() - t.past).sum::<usize>();
            reader.read(&step).unwrap();
        }
        assert_eq!(read, least, "of {whole}");
        assert!(whole > 2 * least, "{whole} {least}: the test shares too little");
        assert_eq!(reader.pages.held(), 0);
    }

    #[test]
    fn a_long_text_is_the_sum_of_its_windows_and_a_sink_can_end_it() {
        let own = checkpoint(true, DType::F32);
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(30);
        let whole = Question { choices: vec![Choice { context: String::new(), continuation: text.clone() }], right: 0 };
        let answer = ask(&own, &[&whole], Kind::Text, 4096).remove(0);
        let tokens = own.tokenizer.encode(&text).unwrap().len();
        assert!(tokens > own.config.max_position_embeddings);
        assert_eq!((answer.tokens[0], answer.cut), (tokens, false));
        assert!(answer.log_likelihood[0] < 0.0);
        assert_eq!(ask(&own, &[&whole, &whole], Kind::Text, 300), [answer.clone(), answer]);
        let (mut told, questions) = (0, [&whole, &whole, &whole]);
        let mut sink = |_, _| {
            told += 1;
            told < 2
        };
        own.answers(&questions, Kind::Text, JudgeOptions { begin: true, positions: 1 }, &mut sink).unwrap();
        assert_eq!(told, 2);
    }
}
