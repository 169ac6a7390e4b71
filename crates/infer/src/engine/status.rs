//! What an engine does and has done, in the form that monitoring wants: gauges, counters that only grow, histograms.

use crate::generate::Stop;
use std::time::Duration;
use wudao_model::weights::ExpertReads;

/// What an engine does now, and what it has done.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Status {
    /// Sequences that are read or written.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Tokens whose keys and values running sequences hold.
    pub cache_used: usize,
    /// Most that they ever held.
    pub cache_peak: usize,
    /// Tokens there is room for.
    pub cache_total: usize,
    /// Bytes of a token's keys and values.
    pub cache_token_bytes: usize,
    /// What has been done.
    pub counters: Counters,
    /// Experts that stay in their file.
    pub experts: ExpertReads,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Counters {
    /// Tokens of prompts that were taken up.
    pub prompt_tokens: u64,
    /// Of these, the ones that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Steps of the model.
    pub steps: u64,
    /// Tokens that were guessed.
    pub guessed: u64,
    /// Guesses that came true.
    pub guessed_right: u64,
    /// Times a sequence gave its memory back to be read again later.
    pub preemptions: u64,
    /// Finished by an end of text.
    pub end_of_text: u64,
    /// Finished at their limit of tokens.
    pub max_tokens: u64,
    /// Finished by a stop string.
    pub stop_string: u64,
    /// Finished at the end of the context.
    pub context: u64,
    /// Given up: the reader left.
    pub cancelled: u64,
    /// Failed.
    pub failed: u64,
    /// Seconds from a request's arrival to its first token.
    pub first_token: Histogram,
    /// Seconds from one token of a sequence to its next.
    pub between_tokens: Histogram,
    /// Seconds that requests waited before they were taken up.
    pub queued: Histogram,
}

impl Counters {
    /// How many of the guesses came true, from 0 to 1, if there were any.
    pub fn guessed_share(&self) -> Option<f64> {
        (self.guessed > 0).then(|| self.guessed_right as f64 / self.guessed as f64)
    }

    pub(super) fn finished(&mut self, stop: Stop) {
        *match stop {
            Stop::EndOfText => &mut self.end_of_text,
            Stop::MaxTokens => &mut self.max_tokens,
            Stop::StopString => &mut self.stop_string,
            Stop::Context => &mut self.context,
            Stop::Reader => &mut self.cancelled,
        } += 1;
    }
}

/// A histogram as Prometheus has them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Histogram {
    /// Observations up to each of [`Histogram::BOUNDS`] and above the one before; the last entry is those above all.
    pub counts: [u64; Histogram::BOUNDS.len() + 1],
    /// Sum of all observations.
    pub sum: f64,
}

impl Histogram {
    /// Upper bounds in seconds.
    pub const BOUNDS: [f64; 16] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

    /// All observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = Self::BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(Self::BOUNDS.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }
}
