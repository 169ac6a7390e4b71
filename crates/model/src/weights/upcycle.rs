//! Writes a sparse model's folder from a dense one's, one tensor at a time: neither is ever in memory.

use super::WeightsError;
use super::convert::encode;
use super::source::{Elements, Source};
use super::write::{Written, expected, fill_model};
use crate::config::Config;
use crate::init::normals;
use crate::upcycle::{self, Piece, Upcycling};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// What became of a dense model.
#[derive(Debug)]
pub struct Upcycled {
    /// What it was.
    pub dense: Config,
    /// What it is.
    pub sparse: Config,
    /// The files that were written.
    pub files: Vec<Written>,
}

/// Writes the sparse model that a dense one's folder becomes into the folder `out`, which must exist, in the type of the
/// dense one's embedding (of 16 bits bf16, else f32). Shards are as in [`super::save`].
pub fn upcycle(dir: &Path, out: &Path, how: &Upcycling, max_shard_bytes: u64) -> Result<Upcycled, WeightsError> {
    let source = Source::open(dir)?;
    let dense = source.config().clone();
    let sparse = how.config(&dense).map_err(|source| WeightsError::Upcycling { path: dir.into(), source })?;
    source.complete()?;
    let mut found = BTreeMap::new();
    for (name, (_, shape)) in expected(&dense) {
        let tensor = source.tensor(&name, &shape)?;
        found.insert(name, tensor);
    }
    let dtype = match found["model.embed_tokens.weight"].dtype() {
        Some(dtype @ (Dtype::BF16 | Dtype::F64)) => dtype,
        _ => Dtype::F32,
    };
    let pieces = how.pieces(&dense, &sparse);
    let tensors: Vec<_> = pieces.iter().map(|p| (p.name.as_str(), p.kind, &p.shape[..])).collect();
    let files = fill_model(out, &sparse, &tensors, dtype, max_shard_bytes, |entry, file| {
        file.write(&bytes(&pieces[entry.source], &found, how, entry.dtype))
    })?;
    Ok(Upcycled { dense, sparse, files })
}

/// A tensor's bytes in its type.
fn bytes<'a>(piece: &Piece, dense: &BTreeMap<String, Elements<'a>>, how: &Upcycling, to: Dtype) -> Cow<'a, [u8]> {
    let size = piece.shape.iter().product::<usize>() * to.bitsize() / 8;
    match &piece.source {
        upcycle::Source::Tensor(name) => dense[name].read(0..dense[name].shape()[0], to),
        upcycle::Source::Rows(name, rows) => dense[name].read(rows.clone(), to),
        upcycle::Source::Columns(name, columns, factor) => {
            let mut out = Vec::with_capacity(size);
            for row in 0..dense[name].shape()[0] {
                let row = dense[name].read(row..row + 1, Dtype::F64);
                let row = &row.as_chunks().0[columns.clone()];
                out.extend(encode(to, row.iter().map(|&x| f64::from_le_bytes(x) * factor)));
            }
            out.into()
        }
        // The rows of a copy's parts are the same.
        upcycle::Source::Router => {
            let [rows, columns] = [how.copies, piece.shape[1]];
            let mut values = normals(how.seed, &piece.name);
            let mut out = Vec::with_capacity(size);
            for _ in 0..rows {
                let row: Vec<f64> = values.by_ref().take(columns).map(|x| x * how.router_std).collect();
                (0..how.split).for_each(|_| out.extend(encode(to, row.iter().copied())));
            }
            out.into()
        }
        upcycle::Source::Zeros => vec![0; size].into(),
    }
}
