//! From log-likelihoods to figures with standard errors.

use super::{Answer, Metric, Task};
use serde::Serialize;
use std::f64::consts::LN_2;

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
    /// Questions answered.
    pub questions: usize,
    /// Questions whose context was cut at the beginning, because the model's is shorter.
    pub cut: usize,
    /// What the task's authors report, else `acc` (`bits_per_byte` where no question gives a choice).
    pub primary: Metric,
    /// Share whose likeliest choice is right (the first of equals); with one choice, whether greedy decoding writes it.
    pub acc: Mean,
    /// As `acc`, of the log-likelihood by characters of the choice, without the space it may begin with. Only where there
    /// are choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Mean>,
    /// Bits per byte of the right choice, a mean over questions.
    pub bits_per_byte: Mean,
    /// Exponential of the mean negative log-likelihood of the right answer. Only where no question gives a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Mean>,
}

impl Mean {
    /// Of a sample that is not empty.
    pub fn of(sample: &[f64]) -> Mean {
        let n = sample.len() as f64;
        let value = sample.iter().sum::<f64>() / n;
        let squares: f64 = sample.iter().map(|x| (x - value) * (x - value)).sum();
        Mean { value, stderr: if sample.len() < 2 { 0.0 } else { (squares / (n - 1.0) / n).sqrt() } }
    }
}

/// The first largest.
fn best(x: impl Iterator<Item = f64>) -> usize {
    x.enumerate().fold((0, f64::NEG_INFINITY), |best, (i, x)| if x > best.1 { (i, x) } else { best }).0
}

impl TaskScores {
    /// Of the answers to a task's first questions; there must be one at least.
    pub fn of(task: &Task, answers: &[Answer]) -> TaskScores {
        let pairs: Vec<_> = task.questions.iter().zip(answers).collect();
        let mean = |f: &dyn Fn(&super::Question, &Answer) -> f64| {
            Mean::of(&pairs.iter().map(|(q, a)| f(q, a)).collect::<Vec<_>>())
        };
        let choices = pairs.iter().any(|(q, _)| q.choices.len() > 1);
        let acc = mean(&|q, a| match q.choices.len() {
            1 => f64::from(u8::from(a.greedy[0])),
            _ => f64::from(u8::from(best(a.log_likelihood.iter().copied()) == q.right)),
        });
        let norm = |q: &super::Question, a: &Answer| {
            let length = |c: &str| c.strip_prefix(' ').unwrap_or(c).chars().count().max(1) as f64;
            let each = a.log_likelihood.iter().zip(&q.choices).map(|(l, c)| l / length(&c.continuation));
            f64::from(u8::from(best(each) == q.right))
        };
        let bits = |q: &super::Question, a: &Answer| {
            -a.log_likelihood[q.right] / LN_2 / q.choices[q.right].continuation.len() as f64
        };
        let nll = mean(&|q, a| -a.log_likelihood[q.right]);
        // Error propagation: the derivative of the exponential is the exponential.
        let perplexity = Mean { value: nll.value.exp(), stderr: nll.value.exp() * nll.stderr };
        TaskScores {
            task: task.name.clone(),
            questions: pairs.len(),
            cut: pairs.iter().filter(|(_, a)| a.cut).count(),
            primary: task.primary.unwrap_or(if choices { Metric::Acc } else { Metric::BitsPerByte }),
            acc,
            acc_norm: choices.then(|| mean(&norm)),
            bits_per_byte: mean(&bits),
            perplexity: (!choices).then_some(perplexity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Choice, Question};
    use super::*;

    fn task(questions: Vec<(Vec<&str>, usize)>) -> Task {
        let choice = |c: &str| Choice { context: "q".into(), continuation: c.into() };
        let question =
            |(c, right): (Vec<&str>, usize)| Question { choices: c.into_iter().map(choice).collect(), right };
        let questions = questions.into_iter().map(question).collect();
        Task { name: "t".into(), primary: None, hash: String::new(), questions }
    }

    fn answer(log_likelihood: &[f64], greedy: bool) -> Answer {
        let n = log_likelihood.len();
        Answer { log_likelihood: log_likelihood.to_vec(), greedy: vec![greedy; n], tokens: vec![1; n], cut: false }
    }

    #[test]
    fn choices_are_counted_plainly_and_by_length() {
        let task = task(vec![(vec![" ab", " abcdefgh"], 1), (vec![" 明", " x"], 0), (vec![" 明", " x"], 1)]);
        let scores = TaskScores::of(
            &task,
            &[answer(&[-1.0, -2.0], false), answer(&[-1.0, -1.0], false), answer(&[-3.0, -2.0], false)],
        );
        assert_eq!(scores.acc.value, 2.0 / 3.0);
        assert!((scores.acc.stderr - (2.0f64 / 9.0 / 2.0).sqrt()).abs() < 1e-15);
        // −1/2 < −2/8; the first of equals; one character each.
        assert_eq!(scores.acc_norm.unwrap().value, 1.0);
        let bits = (2.0 / 9.0 + 1.0 / 4.0 + 2.0 / 2.0) / 3.0 / LN_2;
        assert!((scores.bits_per_byte.value - bits).abs() < 1e-15);
        assert_eq!((scores.primary, scores.perplexity), (Metric::Acc, None));
    }

    #[test]
    fn without_choices_greedy_decoding_is_judged() {
        let task = task(vec![(vec!["ab"], 0), (vec!["cd"], 0)]);
        let scores = TaskScores::of(&task, &[answer(&[-2.0], true), answer(&[-4.0], false)]);
        assert_eq!((scores.acc.value, scores.acc_norm, scores.primary), (0.5, None, Metric::BitsPerByte));
        let perplexity = scores.perplexity.unwrap();
        assert!((perplexity.value - 3f64.exp()).abs() < 1e-12 && (perplexity.stderr - 3f64.exp()).abs() < 1e-12);
    }
}
