//! Sparse transformer language models.
//!
//! Read in this order: [`config`] says what a model is; [`store`] holds its parameters under one table of names (`packed`, for
//! inference alone, each in few bits);
//! [`layer`] is the contract of a layer; `norm`, `rope`, `attention`, `mla`, `mlp`, `gate`, `moe` are the layers; `block`
//! composes them;
//! [`model`] goes from token ids to a loss, to gradients, and to the next token; [`weights`] reads and writes Hugging
//! Face files; [`mod@upcycle`] makes a sparse model of a dense one.
//!
//! # Legend
//! A tensor's name ends in its shape where that helps: `x_td` is tokens × width.
//!
//! | letter | meaning | Hugging Face name |
//! |---|---|---|
//! | T | tokens (rows of a packed batch) | |
//! | D | width | `hidden_size` |
//! | L | layers | `num_hidden_layers` |
//! | H, G | query heads, key/value heads | `num_attention_heads`, `num_key_value_heads` |
//! | C | width of a head | `head_dim` |
//! | F | width of a feed-forward or expert | `intermediate_size`, `moe_intermediate_size` |
//! | E, K | experts, choices per token | `num_experts`, `num_experts_per_tok` |
//! | V | vocabulary | `vocab_size` |
//! | N | rows that reached this rank's experts | |

mod attention;
mod block;
pub mod cache;
pub mod config;
pub mod counts;
pub mod exchange;
mod gate;
pub mod gguf;
pub mod hf;
mod init;
pub mod layer;
mod mla;
mod mlp;
pub mod model;
mod moe;
mod norm;
mod packed;
mod rope;
pub mod store;
pub mod upcycle;
pub mod weights;

#[cfg(test)]
extern crate self as wudao_model;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

pub use cache::{KvCache, PagedCache, Step};
pub use config::{Config, Family, MlaConfig, MoeConfig};
pub use counts::Counts;
pub use layer::{Cx, Layer, Packing, RouterLog};
pub use model::Model;
pub use packed::{Incoming, PackedWeights, WeightOptions};
pub use rope::RopeScaling;
pub use store::{Layout, Store, Weights};
pub use upcycle::Upcycling;
