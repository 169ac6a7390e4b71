//! The log-likelihood of every continuation.
//!
//! Sequences of all questions are packed into batches, the longest first, so that a model that is too large fails at once
//! and not at the end. The head sees the rows of continuations alone. A row's result does not depend on what else is in
//! its batch, so neither does an answer, to the bit.

use super::{Choice, Question};
use crate::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use wudao_comm::Solo;
use wudao_data::tokenizer::TokenizerError;
use wudao_device::{Device, Fault};
use wudao_model::{Cx, Packing};

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

/// Why questions could not be put.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A text that cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The machine failed.
    #[error(transparent)]
    Device(#[from] Fault),
}

/// A sequence to run: inputs, of which the last `targets.len()` predict the targets.
struct Sequence {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    cut: bool,
    /// Question and choice.
    of: (usize, usize),
}

impl<D: Device> Checkpoint<D> {
    /// Answers in order of the questions. At most about `positions` tokens are computed at once; `progress` hears of choices.
    pub fn answers(
        &self,
        questions: &[Question],
        positions: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Answer>, JudgeError> {
        let mut sequences = vec![];
        for (q, question) in questions.iter().enumerate() {
            for (c, choice) in question.choices.iter().enumerate() {
                sequences.push(self.sequence(choice, (q, c))?);
            }
        }
        sequences.sort_by_key(|s| Reverse(s.inputs.len()));
        let blank = |q: &Question| {
            let n = q.choices.len();
            Answer { log_likelihood: vec![0.0; n], greedy: vec![false; n], tokens: vec![0; n], cut: false }
        };
        let mut answers: Vec<Answer> = questions.iter().map(blank).collect();
        let (mut rest, mut done) = (&sequences[..], 0);
        while !rest.is_empty() {
            let mut sum = 0;
            let fit = rest.iter().take_while(|s| {
                sum += s.inputs.len();
                sum <= positions
            });
            let (batch, more) = rest.split_at(fit.count().max(1));
            for (s, (log_likelihood, greedy)) in batch.iter().zip(self.run(batch)?) {
                let answer = &mut answers[s.of.0];
                answer.log_likelihood[s.of.1] = log_likelihood;
                answer.greedy[s.of.1] = greedy;
                answer.tokens[s.of.1] = s.targets.len();
                answer.cut |= s.cut;
            }
            rest = more;
            done += batch.len() as u64;
            progress(done);
        }
        Ok(answers)
    }

    /// Tokens as lm-evaluation-harness cuts them: spaces at the end of a context go to the continuation, and context and
    /// continuation are encoded in one piece, since they may share a token's bytes.
    fn sequence(&self, choice: &Choice, of: (usize, usize)) -> Result<Sequence, TokenizerError> {
        let context = choice.context.trim_end();
        let whole = format!("{}{}", choice.context, choice.continuation);
        let mut ids: Vec<u32> = self.config.bos_token_id.or(self.config.end_of_text()).into_iter().collect();
        let begin = ids.len();
        ids.extend(self.tokenizer.encode(&whole)?);
        // One token at least is asked for, and one given.
        let from = (begin + self.tokenizer.encode(context)?.len()).min(ids.len().saturating_sub(1)).max(1);
        if ids.len() < 2 {
            let reason = "a single token without a begin-of-document token has nothing to follow".into();
            return Err(TokenizerError::Encode { reason });
        }
        let limit = self.config.max_position_embeddings;
        let drop = (ids.len() - 1).saturating_sub(limit);
        let targets = ids[from.max(drop + 1)..].to_vec();
        let inputs = ids[drop..ids.len() - 1].to_vec();
        Ok(Sequence { inputs, targets, cut: drop > 0, of })
    }

    /// Log-likelihood of a batch's targets, and whether all are the likeliest tokens (the lower of equals).
    fn run(&self, batch: &[Sequence]) -> Result<Vec<(f64, bool)>, Fault> {
        let packing = Packing::of_lengths(&batch.iter().map(|s| s.inputs.len()).collect::<Vec<_>>());
        let inputs: Vec<u32> = batch.iter().flat_map(|s| s.inputs.iter().copied()).collect();
        let targets: Vec<u32> = batch.iter().flat_map(|s| s.targets.iter().copied()).collect();
        let rows: Vec<u32> =
            batch.iter().zip(&packing.segments[1..]).flat_map(|(s, &end)| end - s.targets.len() as u32..end).collect();
        let mut cx = Cx {
            device: &self.device,
            comm: &Solo,
            weights: &self.weights,
            packing: &packing,
            aux: Default::default(),
            log: None,
            again: false,
        };
        let judged = self.model.judge(&mut cx, &inputs, &rows, &targets)?;
        let mut judged = judged.into_iter();
        let sum = |s: &Sequence| {
            judged.by_ref().take(s.targets.len()).fold((0.0, true), |(l, g), (loss, best)| (l - loss, g && best))
        };
        Ok(batch.iter().map(sum).collect())
    }
}
