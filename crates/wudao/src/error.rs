//! What a failure tells a person besides what happened: what to do about it.

use std::fmt;

/// An error together with advice.
#[derive(Debug)]
pub struct Help {
    /// The failure.
    pub error: anyhow::Error,
    /// What to do.
    pub help: String,
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Help {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// The command itself was wrong: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Adds advice to a result's error.
pub trait Advice<T> {
    /// Says what to do if this fails.
    fn help(self, help: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Advice<T> for Result<T, E> {
    fn help(self, help: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| anyhow::Error::new(Help { error: error.into(), help: help.into() }))
    }
}
