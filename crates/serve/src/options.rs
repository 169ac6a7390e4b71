//! What a server is told.

use crate::admission::ApiKeys;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name or address to listen at.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Who may ask; without, everybody.
    pub api_keys: Option<ApiKeys>,
    /// Encrypt connections.
    pub tls: Option<Tls>,
    /// Origins whose pages may ask; `*` is all.
    pub cors: Vec<String>,
    /// Names that this server goes by, beside its own, where it asks for no keys and listens to this machine alone.
    pub names: Vec<String>,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most tokens that a request may ask for; 0 is as many as the context holds.
    pub max_tokens: usize,
    /// Most completions of one request: prompts times answers.
    pub max_choices: usize,
    /// Most open connections; others wait to be accepted.
    pub max_connections: usize,
    /// Most requests at once; more are told to come back.
    pub max_requests: usize,
    /// Most requests a minute of one key, or without keys of one address.
    pub rate: Option<NonZeroU32>,
    /// How long the head of a request may take, and a connection may idle.
    pub header_timeout: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// How long a reader may take nothing of what is written to it.
    pub write_timeout: Duration,
    /// How long running requests may take to end when the server is stopped.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            host: "127.0.0.1".into(),
            port: 8000,
            api_keys: None,
            tls: None,
            cors: Vec::new(),
            names: Vec::new(),
            max_body: 4 << 20,
            max_tokens: 0,
            max_choices: 128,
            max_connections: 2048,
            max_requests: 256,
            rate: None,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Whether it is heard on this machine alone.
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate and those that vouch for it, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}
