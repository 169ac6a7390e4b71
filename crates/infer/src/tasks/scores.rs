//! From log-likelihoods to figures with standard errors.

use super::{Answer, Kind, Question, Task, is_space};
use serde::Serialize;
use std::f64::consts::LN_2;

/// What a task's authors report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of questions whose likeliest choice is the right one.
    Acc,
    /// The same, of the likelihood per character.
    AccNorm,
    /// Bits per byte of the right choice.
    BitsPerByte,
}

/// A mean and the standard error of it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Sample standard deviation over `√n`; 0 for one question.
    pub stderr: f64,
}

/// The figures of one task.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TaskScores {
    /// Its name.
    pub task: String,
    /// What it asks.
    pub kind: Kind,
    /// Questions answered.
    pub questions: usize,
    /// Questions whose context was cut at the beginning, because the model's is shorter.
    pub cut: usize,
    /// What the task's authors report, else `acc` (`bits_per_byte` where no question gives a choice).
    pub primary: Metric,
    /// Share whose likeliest choice is right (the first of equals); of continuations, whether greedy decoding writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc: Option<Mean>,
    /// As `acc`, of the log-likelihood by characters of the choice, without the space it may begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Mean>,
    /// Bits per byte of the right choice, a mean over questions; of texts, of all bytes together.
    pub bits_per_byte: Mean,
    /// Exponential of the mean negative log-likelihood of a continuation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Mean>,
    /// Perplexity by bytes, of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_perplexity: Option<Mean>,
    /// Perplexity by words between white space, of texts: of no use for Chinese.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word_perplexity: Option<Mean>,
}

impl Mean {
    /// Of a sample that is not empty.
    pub fn of(sample: &[f64]) -> Mean {
        Mean::ratio(sample, &vec![1.0; sample.len()])
    }

    /// Sum of `x` over sum of `y`, a sample of pairs; the error to first order, by the residuals `x − value·y`.
    pub fn ratio(x: &[f64], y: &[f64]) -> Mean {
        let (n, all) = (x.len() as f64, y.iter().sum::<f64>());
        let value = x.iter().sum::<f64>() / all;
        let squares: f64 = x.iter().zip(y).map(|(x, y)| (x - value * y) * (x - value * y)).sum();
        Mean { value, stderr: if x.len() < 2 { 0.0 } else { (squares * n / (n - 1.0)).sqrt() / all } }
    }

    /// The derivative of the exponential is the exponential.
    fn exp(self) -> Mean {
        Mean { value: self.value.exp(), stderr: self.value.exp() * self.stderr }
    }

    /// Nothing, if it is beyond all numbers: a page without a space is one word.
    fn finite(self) -> Option<Mean> {
        (self.value.is_finite() && self.stderr.is_finite()).then_some(self)
    }

    fn scaled(self, by: f64) -> Mean {
        Mean { value: self.value * by, stderr: self.stderr * by }
    }
}

/// The first largest.
fn best(x: impl Iterator<Item = f64>) -> usize {
    x.enumerate().fold((0, f64::NEG_INFINITY), |best, (i, x)| if x > best.1 { (i, x) } else { best }).0
}

fn share(of: bool) -> f64 {
    f64::from(u8::from(of))
}

/// Words as lm-evaluation-harness counts them: pieces between stretches of white space, the empty ones at both ends too.
fn words(text: &str) -> usize {
    let spaces: Vec<bool> = text.chars().map(is_space).collect();
    let begins = |i: usize| spaces[i] && (i == 0 || !spaces[i - 1]);
    1 + (0..spaces.len()).filter(|&i| begins(i)).count()
}

impl TaskScores {
    /// Of the answers to a task's questions; there must be one at least.
    pub fn of(task: &Task, answers: &[Answer]) -> TaskScores {
        let pairs: Vec<_> = task.questions.iter().zip(answers).collect();
        let each = |f: &dyn Fn(&Question, &Answer) -> f64| pairs.iter().map(|(q, a)| f(q, a)).collect::<Vec<f64>>();
        let nll = each(&|q, a| -a.log_likelihood[q.right]);
        let bytes = each(&|q, _| q.choices[q.right].continuation.len() as f64);
        let mut scores = TaskScores {
            task: task.name.clone(),
            kind: task.kind,
            questions: pairs.len(),
            cut: answers.iter().filter(|a| a.cut).count(),
            primary: task.primary.unwrap_or(if task.kind == Kind::Choice { Metric::Acc } else { Metric::BitsPerByte }),
            acc: None,
            acc_norm: None,
            bits_per_byte: Mean::of(&each(&|q, a| {
                -a.log_likelihood[q.right] / LN_2 / q.choices[q.right].continuation.len() as f64
            })),
            perplexity: None,
            byte_perplexity: None,
            word_perplexity: None,
        };
        match task.kind {
            Kind::Choice => {
                let right = |q: &Question, a: &Answer| share(best(a.log_likelihood.iter().copied()) == q.right);
                scores.acc = Some(Mean::of(&each(&right)));
                let length = |c: &str| c.strip_prefix(' ').unwrap_or(c).chars().count().max(1) as f64;
                let by_length = |q: &Question, a: &Answer| {
                    let each = a.log_likelihood.iter().zip(&q.choices).map(|(l, c)| l / length(&c.continuation));
                    share(best(each) == q.right)
                };
                scores.acc_norm = Some(Mean::of(&each(&by_length)));
            }
            Kind::Continuation => {
                scores.acc = Some(Mean::of(&each(&|_, a| share(a.greedy[0]))));
                scores.perplexity = Mean::of(&nll).exp().finite();
            }
            Kind::Text => {
                let by_byte = Mean::ratio(&nll, &bytes);
                scores.bits_per_byte = by_byte.scaled(1.0 / LN_2);
                scores.byte_perplexity = Some(by_byte.exp());
                let words = each(&|q, _| words(&q.choices[0].continuation) as f64);
                scores.word_perplexity = Mean::ratio(&nll, &words).exp().finite();
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::super::Choice;
    use super::*;

    fn task(kind: Kind, questions: Vec<(Vec<&str>, usize)>) -> Task {
        let choice = |c: &str| Choice { context: "q".into(), continuation: c.into() };
        let question =
            |(c, right): (Vec<&str>, usize)| Question { choices: c.into_iter().map(choice).collect(), right };
        let questions = questions.into_iter().map(question).collect();
        Task { name: "t".into(), group: None, kind, primary: None, questions }
    }

    fn answer(log_likelihood: &[f64], greedy: bool) -> Answer {
        let n = log_likelihood.len();
        Answer { log_likelihood: log_likelihood.to_vec(), greedy: vec![greedy; n], tokens: vec![1; n], cut: false }
    }

    #[test]
    fn choices_are_counted_plainly_and_by_length() {
        let task =
            task(Kind::Choice, vec![(vec![" ab", " abcdefgh"], 1), (vec![" 明", " x"], 0), (vec![" 明", " x"], 1)]);
        let scores = TaskScores::of(
            &task,
            &[answer(&[-1.0, -2.0], false), answer(&[-1.0, -1.0], false), answer(&[-3.0, -2.0], false)],
        );
        let acc = scores.acc.unwrap();
        assert_eq!(acc.value, 2.0 / 3.0);
        assert!((acc.stderr - (2.0f64 / 9.0 / 2.0).sqrt()).abs() < 1e-15);
        // −1/2 < −2/8; the first of equals; one character each.
        assert_eq!(scores.acc_norm.unwrap().value, 1.0);
        let bits = (2.0 / 9.0 + 1.0 / 4.0 + 2.0 / 2.0) / 3.0 / LN_2;
        assert!((scores.bits_per_byte.value - bits).abs() < 1e-15);
        assert_eq!((scores.primary, scores.perplexity), (Metric::Acc, None));
    }

    #[test]
    fn of_continuations_greedy_decoding_is_judged() {
        let task = task(Kind::Continuation, vec![(vec!["ab"], 0), (vec!["cd"], 0)]);
        let scores = TaskScores::of(&task, &[answer(&[-2.0], true), answer(&[-4.0], false)]);
        assert_eq!((scores.acc.unwrap().value, scores.acc_norm, scores.primary), (0.5, None, Metric::BitsPerByte));
        let perplexity = scores.perplexity.unwrap();
        assert!((perplexity.value - 3f64.exp()).abs() < 1e-12 && (perplexity.stderr - 3f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn texts_are_weighed_by_their_length() {
        let task = task(Kind::Text, vec![(vec!["a b"], 0), (vec![" c\n\n"], 0)]);
        let scores = TaskScores::of(&task, &[answer(&[-2.0], false), answer(&[-5.0], false)]);
        assert_eq!(scores.acc, None);
        assert!((scores.bits_per_byte.value - 1.0 / LN_2).abs() < 1e-15);
        // Two words, and one between two empty ones.
        assert!((scores.word_perplexity.unwrap().value - (7.0f64 / 5.0).exp()).abs() < 1e-14);
        assert!((scores.byte_perplexity.unwrap().value - 1f64.exp()).abs() < 1e-14);
        // Residuals −1 and 1 around a mean of 1 a byte.
        let stderr = (2.0f64 * 2.0).sqrt() / 7.0;
        assert!((scores.byte_perplexity.unwrap().stderr - 1f64.exp() * stderr).abs() < 1e-14);
    }

    #[test]
    fn a_perplexity_beyond_all_numbers_is_none() {
        let task = task(Kind::Text, vec![(vec!["明月"], 0)]);
        let scores = TaskScores::of(&task, &[answer(&[-2000.0], false)]);
        assert!(scores.word_perplexity.is_none() && scores.byte_perplexity.is_some());
    }

    #[test]
    fn words_are_those_of_a_split_at_white_space() {
        for (text, n) in [("", 1), ("a", 1), ("a b", 2), (" a  b\n", 4), ("\u{1c}床前　明月光", 3)] {
            assert_eq!(words(text), n, "{text:?}");
        }
    }
}
