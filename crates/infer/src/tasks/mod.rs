//! Evaluation tasks: which of several continuations does a model find likeliest?
//!
//! A [`Task`] is a list of questions, a question a list of (context, continuation) pairs. [`read`] takes them from files,
//! [`judge`] asks the model for the log-likelihood of every continuation, [`scores`] makes accuracies of them, with
//! standard errors. Tokens are cut and scores counted as EleutherAI's lm-evaluation-harness does it, so that figures may
//! be compared with published ones; but a context always begins as documents began in training, with the
//! begin-of-document token.
//!
//! Nothing is generated here: tasks that judge written answers (mathematics, programs) take part with the likelihood of
//! the right answer alone.

pub mod judge;
pub mod read;
pub mod scores;

pub use judge::{Answer, JudgeError};
pub use read::{Metric, TaskError};
pub use scores::{Mean, TaskScores};

/// A named list of questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its name: that of its folder or file.
    pub name: String,
    /// What its authors report, if they say so.
    pub primary: Option<Metric>,
    /// SHA-256 of the file that it was read from: answers belong to it.
    pub hash: String,
    /// In order of the file.
    pub questions: Vec<Question>,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What may follow what.
    pub choices: Vec<Choice>,
    /// The right one.
    pub right: usize,
}

/// A continuation, exactly as it follows its context: a space between the two belongs to one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the model is given.
    pub context: String,
    /// What it is asked for.
    pub continuation: String,
}
