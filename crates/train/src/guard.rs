//! What is not finite never reaches the weights.
//!
//! One bad batch, one overflow, and every weight is NaN: the run is lost, and so is each checkpoint after it. So the loss
//! and the norm of the whole gradient, both summed over ranks so that all ranks agree, are looked at before the update.
//! If either is not finite the step is skipped: weights, moments and correction biases stay as they are, the data goes
//! on. A run that skips too often in a row is beyond help, and stops.

use serde::{Deserialize, Serialize};

/// Counts skipped steps. Saved with the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Skipped since the last update.
    pub in_a_row: u64,
    /// Skipped in all.
    pub total: u64,
}

/// True if a step with this loss and gradient norm may update the weights.
pub fn is_sound(loss: f64, grad_norm: f64) -> bool {
    loss.is_finite() && grad_norm.is_finite()
}

impl Guard {
    /// Takes note of a step. True if so many were skipped in a row that the run must stop.
    pub fn note(&mut self, applied: bool, max_skipped: u64) -> bool {
        if applied {
            self.in_a_row = 0;
            return false;
        }
        self.in_a_row += 1;
        self.total += 1;
        self.in_a_row >= max_skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finite_numbers_are_sound() {
        assert!(is_sound(1.0, 2.0));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(!is_sound(bad, 1.0) && !is_sound(1.0, bad));
        }
    }

    #[test]
    fn an_update_forgives_what_was_skipped_before() {
        let mut guard = Guard::default();
        assert!(!guard.note(false, 3) && !guard.note(false, 3) && !guard.note(true, 3));
        assert!(!guard.note(false, 3) && !guard.note(false, 3) && guard.note(false, 3));
        assert_eq!(guard, Guard { in_a_row: 3, total: 5 });
    }
}
