//! The files of a model: one, or as many as it was split into. Of those the first has all keys, and each has its own table
//! of tensors; their names end in `-00001-of-00003.gguf`, and whoever opens the first opens all.

use super::header::{Header, Tensor};
use super::value::Reader;
use crate::weights::WeightsError;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which part a file is, from 0, …
const NUMBER: &str = "split.no";
/// … of how many; it has no such keys, or 1 here, if it is whole.
const COUNT: &str = "split.count";
/// The tensors of all parts.
const TENSORS: &str = "split.tensors.count";

/// A mapped file.
pub(super) struct Part {
    pub path: PathBuf,
    pub map: Mmap,
}

impl Part {
    fn open(path: &Path) -> Result<(Part, Header), WeightsError> {
        let file = std::fs::File::open(path).map_err(WeightsError::io(path, "open"))?;
        if file.metadata().map_err(WeightsError::io(path, "read"))?.len() == 0 {
            return Err(WeightsError::file(path, "not a GGUF file: it is empty"));
        }
        // SAFETY: a private, read-only mapping. Its bytes are only ever read as bytes, of which any value is valid; that
        // no other process cuts the file short meanwhile is a documented condition of this module.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::io(path, "map"))?;
        let header = Header::read(path, &map)?;
        Ok((Part { path: path.into(), map }, header))
    }

    fn whole(&self, header: &Header, key: &str) -> Result<Option<u64>, WeightsError> {
        let Some(&at) = header.keys.get(key) else { return Ok(None) };
        let value = Reader::new(&self.path, &self.map).from(at).value()?;
        let problem = || WeightsError::file(&self.path, format!("{key}: must be a count, found {}", value.shown()));
        value.whole().map(Some).ok_or_else(problem)
    }
}

/// All parts of a model with the keys of the first, and their tensors, which know in which they are.
pub(super) struct Parts {
    pub parts: Vec<Part>,
    pub keys: BTreeMap<String, usize>,
    pub tensors: Vec<Tensor>,
    /// Where each is in the list.
    pub by_name: BTreeMap<String, usize>,
}

impl Parts {
    /// Opens a file, and those that belong to it.
    pub fn open(path: &Path) -> Result<Parts, WeightsError> {
        let (first, header) = Part::open(path)?;
        let count = first.whole(&header, COUNT)?.unwrap_or(1);
        let (number, tensors) = (first.whole(&header, NUMBER)?.unwrap_or(0), first.whole(&header, TENSORS)?);
        let mut all = Parts { parts: vec![], keys: header.keys, tensors: vec![], by_name: BTreeMap::new() };
        all.add(first, header.tensors)?;
        if count <= 1 {
            return Ok(all);
        }
        let fail = |problem: String| Err(WeightsError::file(path, problem));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(stem) = name.strip_suffix(&ending(number, count)) else {
            let (part, ending) = (number.saturating_add(1), ending(number, count));
            return fail(format!("it is part {part} of {count} of a model, and its name must end in {ending:?}"));
        };
        let named = |part: u64| path.with_file_name(format!("{stem}{}", ending(part, count)));
        if number != 0 {
            let (part, first) = (number.saturating_add(1), named(0));
            return fail(format!("it is part {part} of {count} of a model: give the first, {}", first.display()));
        }
        for part in 1..count {
            all.join(&named(part), part, count)?;
        }
        if let Some(n) = tensors.filter(|&n| n != all.tensors.len() as u64) {
            return fail(format!("{TENSORS}: {n}, and its {count} parts have {}", all.tensors.len()));
        }
        Ok(all)
    }

    fn join(&mut self, path: &Path, number: u64, count: u64) -> Result<(), WeightsError> {
        let (part, header) = Part::open(path)?;
        for (key, want) in [(NUMBER, number), (COUNT, count)] {
            let found = part.whole(&header, key)?;
            if found != Some(want) {
                let found = found.map_or("none".into(), |n| n.to_string());
                return Err(WeightsError::file(path, format!("{key}: {found}, expected {want} by its name")));
            }
        }
        self.add(part, header.tensors)
    }

    fn add(&mut self, part: Part, tensors: Vec<Tensor>) -> Result<(), WeightsError> {
        for tensor in tensors {
            if let Some(&other) = self.by_name.get(&tensor.name) {
                let other = &self.parts[self.tensors[other].part].path;
                return Err(WeightsError::tensor(&part.path, &tensor.name, format!("is also in {}", other.display())));
            }
            self.by_name.insert(tensor.name.clone(), self.tensors.len());
            self.tensors.push(Tensor { part: self.parts.len(), ..tensor });
        }
        self.parts.push(part);
        Ok(())
    }
}

/// How the name of a part ends.
fn ending(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number.saturating_add(1))
}
