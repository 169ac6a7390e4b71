//! A copy of a store on the host. Taking it costs one copy between two steps; writing it is another thread's work, while
//! the store changes again.

use super::WeightsError;
use super::convert::{convert, file_type};
use super::format::{self, Entry};
use super::write::{Written, download, expected, parts, write_model};
use crate::config::Config;
use crate::store::{Param, Store};
use std::borrow::Cow;
use std::path::Path;
use wudao_device::{DType, Device};

/// A tensor on the host.
#[derive(Clone, PartialEq, Debug)]
pub struct HostTensor {
    /// Its name in a file.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape in a file.
    pub shape: Vec<usize>,
    /// Its elements, little-endian.
    pub bytes: Vec<u8>,
}

/// Named tensors on the host.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// The tensors, in the order of a file.
    pub tensors: Vec<HostTensor>,
}

impl Snapshot {
    /// Every tensor of `store` under `prefix` and its Hugging Face name, in the store's type. On a rank that is not the
    /// first, only its experts: appended, the snapshots of all ranks are the whole.
    pub fn of<D: Device>(device: &D, store: &Store<D>, prefix: &str) -> Snapshot {
        Self::of_some(device, store, prefix, |_| true)
    }

    /// As [`Snapshot::of`], of the parameters that `keep` keeps.
    pub fn of_some<D: Device>(device: &D, store: &Store<D>, prefix: &str, keep: impl Fn(&Param) -> bool) -> Snapshot {
        let copy = |(home, _, part)| {
            let bytes = download(device, store, home, &part);
            HostTensor { name: format!("{prefix}{}", part.name), dtype: store.dtype(), shape: part.shape, bytes }
        };
        Snapshot { tensors: parts(store, keep).into_iter().map(copy).collect() }
    }

    /// Takes in another one's tensors.
    pub fn append(&mut self, mut other: Snapshot) {
        self.tensors.append(&mut other.tensors);
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes.len() as u64).sum()
    }

    /// Writes one safetensors file, which must not exist yet: types and bits as they are.
    pub fn write(&self, path: &Path) -> Result<Written, WeightsError> {
        let entry = |(source, t): (usize, &HostTensor)| Entry {
            name: t.name.clone(),
            dtype: file_type(t.dtype),
            shape: t.shape.clone(),
            source,
        };
        let entries: Vec<_> = self.tensors.iter().enumerate().map(entry).collect();
        format::write(path, &entries, |e, file| file.write(&self.tensors[e.source].bytes))
    }

    /// Writes a model's folder, as [`super::save`] does. The snapshot must be of all weights, without a prefix.
    pub fn write_model(
        &self,
        dir: &Path,
        config: &Config,
        dtype: DType,
        max_shard_bytes: u64,
    ) -> Result<Vec<Written>, WeightsError> {
        let mut expected = expected(config);
        let mut tensors = vec![];
        for t in &self.tensors {
            let Some((kind, _)) = expected.remove(&t.name).filter(|(_, shape)| *shape == t.shape) else {
                return Err(WeightsError::tensor(dir, &t.name, "the snapshot has it, but the model has not"));
            };
            tensors.push((t.name.as_str(), kind, &t.shape[..]));
        }
        if let Some(name) = expected.keys().next() {
            return Err(WeightsError::tensor(dir, name, "the model has it, but the snapshot has not"));
        }
        write_model(dir, config, &tensors, file_type(dtype), max_shard_bytes, |entry, file| {
            let t = &self.tensors[entry.source];
            file.write(&convert(Cow::Borrowed(&t.bytes), file_type(t.dtype), entry.dtype))
        })
    }
}
