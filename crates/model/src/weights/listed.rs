//! Tensors that are read when they are wanted, one at a time: what a file is written from.

use crate::store::{Home, Param, Part, Store};
use std::borrow::Cow;
use wudao_device::{DType, Device, View};

/// Reads a tensor's elements, little-endian.
type Read<'a> = Box<dyn Fn() -> Cow<'a, [u8]> + 'a>;

/// A tensor that is read when it is wanted.
pub struct Listed<'a> {
    /// Its name in a file.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape in a file.
    pub shape: Vec<usize>,
    read: Read<'a>,
}

impl<'a> Listed<'a> {
    /// One whose elements `read` reads, little-endian.
    pub fn new(name: String, dtype: DType, shape: Vec<usize>, read: impl Fn() -> Cow<'a, [u8]> + 'a) -> Self {
        Listed { name, dtype, shape, read: Box::new(read) }
    }

    /// One whose elements are `view`'s, fetched from the device.
    pub fn of_view<D: Device>(device: &'a D, name: String, shape: Vec<usize>, view: View<'a, D>) -> Self {
        Listed::new(name, view.dtype(), shape, move || {
            let mut bytes = vec![0; view.len() * view.dtype().size()];
            device.copy_to_host(view, &mut bytes);
            bytes.into()
        })
    }

    /// Its elements, little-endian.
    pub fn read(&self) -> Cow<'a, [u8]> {
        (self.read)()
    }

    /// Every tensor of `store` under `prefix` and its Hugging Face name, in the store's type. On a rank that is not the first,
    /// only its experts.
    pub fn of<D: Device>(device: &'a D, store: &'a Store<D>, prefix: &str) -> Vec<Listed<'a>> {
        Self::of_some(device, store, prefix, |_| true)
    }

    /// As [`Listed::of`], of the parameters that `keep` keeps.
    pub fn of_some<D: Device>(
        device: &'a D,
        store: &'a Store<D>,
        prefix: &str,
        keep: impl Fn(&Param) -> bool,
    ) -> Vec<Listed<'a>> {
        let first = store.layout().shard.rank == 0;
        let mine = |home: &Home| first || matches!(home, Home::Expert(..));
        let listed = |(home, part): (Home, Part)| {
            Listed::of_view(device, format!("{prefix}{}", part.name), part.shape, store.get(home).rows(part.rows))
        };
        (store.params().into_iter())
            .filter(|(home, param)| mine(home) && keep(param))
            .flat_map(|(home, param)| param.parts.into_iter().map(move |part| (home, part)))
            .map(listed)
            .collect()
    }
}
