//! A model behind HTTP: OpenAI's interface, and a page to talk to it.

pub mod web;
