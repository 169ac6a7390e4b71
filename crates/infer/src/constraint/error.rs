//! Why a form cannot be kept.

/// Most characters of a message that the compiler of grammars wrote.
const LONGEST: usize = 300;

/// What is said of a form that cannot be had.
pub(super) const NO_TEXT: &str = "no text has this form";

/// Why a form cannot be kept.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ConstraintError {
    /// A keyword of a schema that is not supported, or that is used in an unknown way.
    #[error("at {at}: {reason}")]
    Schema {
        /// Where in the schema, as a JSON pointer.
        at: String,
        /// What is wrong.
        reason: String,
    },
    /// The compiler refused it.
    #[error("{0}")]
    Malformed(String),
    /// More than is compiled.
    #[error("{what} are more than the {limit} that are allowed: make it smaller")]
    TooLarge {
        /// What was counted, with its number.
        what: String,
        /// Most that may be.
        limit: usize,
    },
    /// The tokens have no bytes of their own.
    #[error("this model's tokenizer does not write a text token by token, so no form can be promised")]
    Tokenizer,
    /// It was followed so far, and no further.
    #[error("the form could not be followed to its end: {0}")]
    Lost(String),
    /// No token may come next, though the text is not whole.
    #[error(
        "no token of the model's vocabulary can come next: the form asks for bytes that the vocabulary does not have"
    )]
    DeadEnd,
}

impl ConstraintError {
    /// What the compiler said.
    pub(super) fn compiling(error: impl std::fmt::Display) -> ConstraintError {
        ConstraintError::Malformed(short(&error.to_string()))
    }

    /// The words of the crate, if they are.
    pub(super) fn reason(&self) -> String {
        match self {
            ConstraintError::Lost(reason) | ConstraintError::Malformed(reason) => reason.clone(),
            other => other.to_string(),
        }
    }

    /// What the parser said about a text.
    pub(super) fn during(error: impl std::fmt::Display) -> ConstraintError {
        ConstraintError::Lost(short(&error.to_string()))
    }
}

/// Whether the crate says that nothing may come.
pub(super) fn is_nothing(message: &impl std::fmt::Display) -> bool {
    message.to_string().starts_with("NoExtensionBias")
}

/// Without states and back traces, and not too long.
fn short(message: &str) -> String {
    let message = message.split("\n<").next().unwrap_or_default().trim();
    if is_nothing(&message) {
        return NO_TEXT.into();
    }
    if message.contains("coerce_one_of") {
        return "\"oneOf\" is supported only where plainly no value fits two of its schemas: use \"anyOf\"".into();
    }
    if message.starts_with("panic") {
        return "it is beyond what the compiler of grammars can do".into();
    }
    let mut short: String = message.chars().take(LONGEST).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    short
}
