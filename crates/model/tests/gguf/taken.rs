//! Files taken apart, changed and put together again, and files by hand.

use super::{loaded, text};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;
use wudao_model::gguf::{self, File, Value};
use wudao_model::weights::Source;

/// The keys and tensors of a file that has no lists, to be changed.
pub struct Taken {
    /// The type and the bytes of each value.
    pub keys: BTreeMap<String, (u32, Vec<u8>)>,
    /// Dimensions, type and bytes of each tensor.
    pub tensors: BTreeMap<String, (Vec<u64>, u32, Vec<u8>)>,
}

impl Taken {
    pub fn of(path: &Path) -> Taken {
        let file = File::open(path).unwrap();
        let value = |key: &str| match file.get(key).unwrap() {
            Value::Unsigned(n) => (4, (n as u32).to_le_bytes().to_vec()),
            Value::Float(x) => (6, (x as f32).to_le_bytes().to_vec()),
            Value::Bool(flag) => (7, vec![u8::from(flag)]),
            Value::Text(text) => (8, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()),
            other => panic!("{other:?}"),
        };
        let tensor = |t: &gguf::Tensor| {
            let dims = t.dims.iter().map(|&n| n as u64).collect();
            (t.name.clone(), (dims, t.kind.number(), file.bytes(t).to_vec()))
        };
        Taken {
            keys: file.keys().map(|key| (key.to_owned(), value(key))).collect(),
            tensors: file.tensors().iter().map(tensor).collect(),
        }
    }

    pub fn count(&mut self, key: &str, n: u32) {
        self.keys.insert(format!("deepseek2.{key}"), (4, n.to_le_bytes().to_vec()));
    }

    pub fn number(&mut self, key: &str, x: f32) {
        self.keys.insert(format!("deepseek2.{key}"), (6, x.to_le_bytes().to_vec()));
    }

    pub fn without(&mut self, key: &str) {
        self.keys.remove(&format!("deepseek2.{key}")).unwrap();
    }

    pub fn write(&self, path: &Path) {
        let keys: Vec<_> = self.keys.iter().map(|(key, (kind, bytes))| (key.as_str(), *kind, &bytes[..])).collect();
        let mut at = 0;
        let tensors = self.tensors.iter().map(|(name, (dims, kind, bytes))| {
            at += bytes.len().next_multiple_of(32);
            (name.as_str(), &dims[..], *kind, (at - bytes.len().next_multiple_of(32)) as u64)
        });
        let mut file = by_hand(3, &keys, &tensors.collect::<Vec<_>>(), 0);
        for (_, _, bytes) in self.tensors.values() {
            file.extend(bytes);
            file.resize(file.len().next_multiple_of(32), 0);
        }
        std::fs::write(path, file).unwrap();
    }
}

/// A file by hand: keys and tensors as they are given.
pub fn by_hand(
    version: u32,
    keys: &[(&str, u32, &[u8])],
    tensors: &[(&str, &[u64], u32, u64)],
    data: usize,
) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    b.extend(version.to_le_bytes());
    b.extend((tensors.len() as u64).to_le_bytes());
    b.extend((keys.len() as u64).to_le_bytes());
    let name = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    for (key, kind, value) in keys {
        name(&mut b, key);
        b.extend(kind.to_le_bytes());
        b.extend(*value);
    }
    for (n, dims, kind, offset) in tensors {
        name(&mut b, n);
        b.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
        b.extend(kind.to_le_bytes());
        b.extend(offset.to_le_bytes());
    }
    b.resize(b.len().next_multiple_of(32) + data, 0);
    b
}

/// Opens bytes as a file and reads all of it.
pub fn opened(bytes: &[u8]) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).map_err(text)?;
    for key in file.keys() {
        let value = file.get(key).unwrap();
        value.array().map(|a| a.iter().count());
    }
    for t in file.tensors() {
        assert_eq!(file.bytes(t).len(), t.bytes);
    }
    let config = file.config().map_err(text)?;
    let source = Source::open_as(&path, &config).map_err(text)?;
    source.complete().map_err(text)?;
    loaded(&path, &config).map(drop)
}
