//! Pre-training: from batches to a checkpoint.
//!
//! Read [`run`](mod@run) first: it is the loop, from the checks before the start to the last checkpoint. Below it, in the
//! order of a step: [`schedule`] says the learning rate, [`step`] takes batches through the model and back and sums over
//! ranks, [`guard`] decides whether the gradient may touch the weights, [`optimizer`] makes it an update, [`health`] looks
//! at the routers. [`evaluate`] measures held-out text, [`checkpoint`] makes it all survive, [`metrics`] writes down what
//! happened, [`estimate`] says before the start what memory it will take, and [`settings`] is what a person may choose.
//!
//! This crate draws nothing: what a run tells goes to an [`Observer`] as typed [`Event`]s.

pub mod checkpoint;
pub mod error;
pub mod estimate;
pub mod evaluate;
pub mod event;
pub mod guard;
pub mod health;
pub mod lock;
pub mod metrics;
pub mod optimizer;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod step;

#[cfg(test)]
mod testing;

pub use error::TrainError;
pub use evaluate::Evaluation;
pub use event::{End, Event, Observer, Outcome, Started, StepReport};
pub use run::{Data, Init, Job, run};
pub use settings::TrainSettings;
