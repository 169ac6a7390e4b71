//! What can be wrong with a tokenizer, with the file and what to do about it.

use std::path::PathBuf;

/// An error of reading, learning or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was being done, a verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A `tokenizer.json`, or the vocabulary of a GGUF file, that cannot be used.
    #[error(
        "{name} holds no usable tokenizer: {reason}; get the file again, or train one with `wudao tokenizer train`"
    )]
    Malformed {
        /// The file, or a name for it.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer that is no vocabulary of a GGUF file.
    #[error("the tokenizer cannot be written into a GGUF file: {reason}")]
    Vocabulary {
        /// Why not.
        reason: String,
    },
    /// A text that this tokenizer cannot take.
    #[error("the tokenizer cannot encode the text: {reason}")]
    Encode {
        /// Why not.
        reason: String,
    },
    /// Ids that this tokenizer cannot take.
    #[error("the tokenizer cannot decode the ids: {reason}")]
    Decode {
        /// Why not.
        reason: String,
    },
    /// Settings or text that no tokenizer can be learned from.
    #[error("cannot train a tokenizer: {reason}")]
    Train {
        /// What is wrong.
        reason: String,
    },
    /// There is no token that ends a text.
    #[error(
        "the tokenizer has no token that ends a text (none of {known:?} and no eos_token in tokenizer_config.json): \
         add an eos_token to tokenizer_config.json"
    )]
    NoEndOfText {
        /// Names that were looked for.
        known: &'static [&'static str],
    },
}
