//! Writes a sparse model's folder from a dense one's, one tensor at a time: neither is ever in memory.

use super::WeightsError;
use super::convert::{convert, encode, file_type};
use super::read::{Files, Found, read_config};
use super::write::{Written, dtype_of, write_model};
use crate::config::Config;
use crate::init::normals;
use crate::upcycle::{Piece, Source, Upcycling};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use wudao_device::DType;

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
    let dense = read_config(dir)?;
    let sparse = how.config(&dense).map_err(|source| WeightsError::Upcycling { path: dir.into(), source })?;
    let files = Files::open(dir)?;
    files.check_names(&dense)?;
    let mut found = BTreeMap::new();
    for (name, (_, shape)) in super::write::expected(&dense) {
        let tensor = files.found(&name, &shape)?;
        found.insert(name, tensor);
    }
    let dtype = match found["model.embed_tokens.weight"].info.dtype {
        Dtype::BF16 => DType::Bf16,
        Dtype::F64 => DType::F64,
        _ => DType::F32,
    };
    let pieces = how.pieces(&dense, &sparse);
    let tensors: Vec<_> = pieces.iter().map(|p| (p.name.as_str(), p.kind, &p.shape[..])).collect();
    let files = write_model(out, &sparse, &tensors, dtype, max_shard_bytes, |i| {
        bytes(&pieces[i], &found, how, dtype_of(pieces[i].kind, dtype))
    })?;
    Ok(Upcycled { dense, sparse, files })
}

/// A tensor's bytes in its type.
fn bytes<'a>(piece: &Piece, dense: &BTreeMap<String, Found<'a>>, how: &Upcycling, to: DType) -> Cow<'a, [u8]> {
    let elements: usize = piece.shape.iter().product();
    match &piece.source {
        Source::Tensor(name) => dense[name].rows(0..dense[name].info.shape[0], to),
        Source::Rows(name, rows) => dense[name].rows(rows.clone(), to),
        Source::Columns(name, columns, factor) => {
            let mut out = Vec::with_capacity(elements * to.size());
            for row in 0..dense[name].info.shape[0] {
                let row = dense[name].rows(row..row + 1, DType::F64);
                let row = &row.as_chunks().0[columns.clone()];
                out.extend(encode(to, row.iter().map(|&x| f64::from_le_bytes(x) * factor)));
            }
            out.into()
        }
        // The rows of a copy's parts are the same.
        Source::Router => {
            let [rows, columns] = [how.copies, piece.shape[1]];
            let mut values = normals(how.seed, &piece.name);
            let mut out = Vec::with_capacity(elements * to.size());
            for _ in 0..rows {
                let row: Vec<f64> = values.by_ref().take(columns).map(|x| x * how.router_std).collect();
                (0..how.split).for_each(|_| out.extend(encode(to, row.iter().copied())));
            }
            out.into()
        }
        Source::Zeros => vec![0; elements * to.size()].into(),
    }
}

impl<'a> Found<'a> {
    /// Some rows in another type. A vector has rows of one element.
    fn rows(&self, rows: std::ops::Range<usize>, to: DType) -> Cow<'a, [u8]> {
        let width = self.info.shape[1..].iter().product::<usize>() * self.info.dtype.bitsize() / 8;
        let bytes = &self.file.bytes(self.info)[rows.start * width..rows.end * width];
        match &self.scales {
            Some(scales) => super::convert::dequantize(bytes, rows.start, self.info.shape[1], scales, to).into(),
            None if self.info.dtype == file_type(to) => Cow::Borrowed(bytes),
            None => convert(Cow::Borrowed(bytes), self.info.dtype, to),
        }
    }
}
