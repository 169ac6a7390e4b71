//! The part of `wudao` that is not about a terminal: its settings, where the fuzzer can reach them. The rest is in the
//! binary, see `main.rs`.

pub mod settings;
