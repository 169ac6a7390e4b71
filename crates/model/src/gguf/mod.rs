//! GGUF files: a whole model in one file, as llama.cpp and the programs around it read and write them.
//!
//! A file is a header, metadata (named values: what the model is, its vocabulary, its chat template), a table of tensors,
//! and the tensors' bytes, each at a multiple of an alignment. The format's own description is `docs/gguf.md` in ggml's
//! repository; version 3, and version 2 which is the same but for big-endian files, are read; version 3 is written.
//!
//! | module | concern |
//! |---|---|
//! | `value` | metadata: typed values, read where they lie |
//! | `header` | from bytes to a checked table of keys and tensors |
//! | `parts` | the files of a model that was split |
//! | `types` | how elements are coded: blocks and their sizes |
//! | `blocks` | from coded rows to numbers, and back where we write them |
//! | `names` | which of the file's tensors a Hugging Face tensor is |
//! | `config`, `rope`, `mla` | from metadata to [`Config`](crate::Config), and back |
//! | `write` | a file, tensor by tensor |
//!
//! Three habits of the format matter to a reader. Dimensions are listed innermost first. All experts of a layer are one
//! tensor of three dimensions. And where llama.cpp rotates neighbouring columns as pairs (the `llama` architecture), rows
//! of queries and keys are stored in another order than in Hugging Face's files, which pair a column of a head's first half
//! with one of its second: [`Rows`] puts them back, row by row, without a copy. One matrix of latent attention cannot be had
//! so, because its rows are columns in the file: an [`Expansion`] decodes it.
//!
//! A file is mapped, not read: nothing of it is in memory twice, and only headers are touched until a tensor is asked for.
//! Nothing in it is trusted; see `header`. What cannot be defended against is a file that another process cuts short while
//! it is being read.

mod blocks;
mod config;
mod file;
mod header;
mod mla;
mod names;
mod parts;
mod rope;
mod types;
mod value;
mod write;

pub(crate) use file::rows_and_columns;
pub use file::{File, Rows};
pub use header::Tensor;
pub use mla::Expansion;
pub use names::{Place, architecture, place};
pub use types::TensorType;
pub use value::{Array, Value};
pub use write::{Field, WRITABLE, write};

use std::io::Read;
use std::path::Path;

/// The first bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// True if `path` is a file that begins as GGUF files do.
pub fn is_gguf(path: &Path) -> bool {
    let mut first = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first));
    path.is_file() && read.is_ok() && first == MAGIC
}
