//! A copy of tensors on the host. Taking it costs a moment between two steps; writing it is another thread's work, while the
//! tensors change again.

use super::listed::Listed;
use crate::store::{Param, Store};
use std::borrow::Cow;
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
    /// A copy of everything that is listed.
    pub fn take(listed: Vec<Listed>) -> Snapshot {
        let copy = |t: Listed| {
            let bytes = t.read().into_owned();
            HostTensor { name: t.name, dtype: t.dtype, shape: t.shape, bytes }
        };
        Snapshot { tensors: listed.into_iter().map(copy).collect() }
    }

    /// A copy of every tensor of `store`, as [`Listed::of`] lists them: appended, the snapshots of all ranks are the whole.
    pub fn of<D: Device>(device: &D, store: &Store<D>, prefix: &str) -> Snapshot {
        Self::take(Listed::of(device, store, prefix))
    }

    /// As [`Snapshot::of`], of the parameters that `keep` keeps.
    pub fn of_some<D: Device>(device: &D, store: &Store<D>, prefix: &str, keep: impl Fn(&Param) -> bool) -> Snapshot {
        Self::take(Listed::of_some(device, store, prefix, keep))
    }

    /// Its tensors, to be written.
    pub fn listed<'s>(&'s self) -> Vec<Listed<'s>> {
        let listed =
            |t: &'s HostTensor| Listed::new(t.name.clone(), t.dtype, t.shape.clone(), || Cow::Borrowed(&t.bytes[..]));
        self.tensors.iter().map(listed).collect()
    }

    /// Takes in another one's tensors.
    pub fn append(&mut self, mut other: Snapshot) {
        self.tensors.append(&mut other.tensors);
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes.len() as u64).sum()
    }
}
