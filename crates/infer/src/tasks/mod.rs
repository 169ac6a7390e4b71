//! Evaluation tasks: which of several continuations does a model find likeliest?
//!
//! A [`Task`] is a list of questions, a question a list of (context, continuation) pairs. [`read`] takes them from files and
//! [`mmlu`] from the tables of that benchmark; `encode` cuts them into tokens; [`judge`] asks the model for the
//! log-likelihood of every continuation; [`scores`] makes accuracies of them, with standard errors. Tokens are cut and
//! scores counted as EleutherAI's lm-evaluation-harness does it, so that figures may be compared with published ones.
//!
//! Nothing is generated here: tasks that judge written answers (mathematics, programs) take part with the likelihood of
//! the right answer alone.

mod encode;
pub mod judge;
pub mod mmlu;
pub mod read;
pub mod scores;

pub use judge::{Answer, JudgeError, JudgeOptions};
pub use read::TaskError;
pub use scores::{Mean, Metric, TaskScores};

use sha2::{Digest, Sha256};

/// A named list of questions, all of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its name: that of its folder or file.
    pub name: String,
    /// The benchmark of which it is a part, whose figures are those of all parts' questions together.
    pub group: Option<String>,
    /// What is asked.
    pub kind: Kind,
    /// What its authors report, if they say so.
    pub primary: Option<Metric>,
    /// In order of the file.
    pub questions: Vec<Question>,
}

/// What the questions of a task ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Which continuation is the right one.
    Choice,
    /// How likely the one continuation is.
    Continuation,
    /// How likely a whole text is, however long: in windows, each predicted once.
    Text,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What may follow what. One at least.
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

impl Question {
    /// 128 bits of SHA-256 over what the model is asked: equal questions have equal answers, in whatever file they stand.
    pub fn id(&self, kind: Kind) -> String {
        let mut hash = Sha256::new();
        hash.update([u8::from(kind == Kind::Text)]);
        for text in self.choices.iter().flat_map(|c| [&c.context, &c.continuation]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// White space as Python's `str.isspace` has it: Unicode's, and four control characters more.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
