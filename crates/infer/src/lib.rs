//! From a checkpoint to text and to figures: cached decoding, sampling, scoring.
//!
//! [`checkpoint`] opens a folder; [`generate`] continues prompts; [`score`] measures how well a model predicts
//! documents.

pub mod checkpoint;
pub mod generate;
pub mod sampler;
pub mod score;

pub use checkpoint::Checkpoint;
pub use generate::{Completion, Generation, Stop};
pub use sampler::{Sampler, Sampling};
