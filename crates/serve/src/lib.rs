//! A model behind HTTP: OpenAI's interface, and a page to talk to it.
//!
//! A request goes through four hands. `server.rs` takes connections and bounds what a stranger can do with one; `admission.rs`
//! asks who it is and whether there is room; a route reads it and turns it into the engine's terms; `job.rs` carries the
//! engine's events, which come on a thread of its own, back to where sockets are written. Whatever the client does (reads
//! slowly, leaves, sends half a request) ends in a dropped future, and that drops the engine's ticket, and that ends the work.
//!
//! The interface is OpenAI's, with the extensions that vLLM and llama.cpp made common. A field that is not known is ignored, as
//! clients are used to; one that is known, not supported, and would change the answer is refused: an answer to another
//! question is worse than none.

mod admission;
mod body;
mod conversation;
mod error;
mod form;
mod job;
mod metrics;
mod options;
mod prompt;
mod routes;
mod sampling;
mod served;
mod server;
mod split;
mod sse;
mod tools;
pub mod web;

pub use admission::{ApiKeys, KeysError};
pub use options::{Options, Tls};
pub use routes::openapi;
pub use served::{Served, ServedError};
pub use server::{ServeError, run};
pub use split::{Part, Splitter};

#[doc(hidden)]
pub mod fuzzing;
