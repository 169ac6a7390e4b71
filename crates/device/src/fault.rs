//! What can go wrong below the waist.

/// A fault of the machine or of a peer rank, never of the caller's shapes (those panic).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);
