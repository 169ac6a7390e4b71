//! From a checkpoint to text and to figures: cached decoding, sampling, scoring.
//!
//! [`checkpoint`] opens a folder or a GGUF file; [`chat`] turns messages into a prompt; [`generate`] continues prompts;
//! [`constraint`] gives completions a form;
//! [`engine`] serves many readers at once; [`score`] measures how well a model predicts documents; [`tasks`] lets it choose
//! between answers.

pub mod chat;
pub mod checkpoint;
pub mod constraint;
pub mod engine;
pub mod generate;
pub mod gguf;
pub mod sampler;
pub mod score;
pub mod tasks;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;

pub use checkpoint::Checkpoint;
pub use engine::Engine;
pub use generate::{Completion, Generation, Stop};
pub use sampler::{Sampler, Sampling};
