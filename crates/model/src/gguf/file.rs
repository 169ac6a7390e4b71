//! A file, mapped and checked, and the rows of its tensors.

use super::blocks;
use super::config::has_router_keys;
use super::header::Tensor;
use super::mla::{self, Expansion};
use super::names::{Place, architecture, place};
use super::parts::Parts;
use super::types::TensorType;
use super::value::{Reader, Value};
use crate::config::Config;
use crate::weights::{Mapped, WeightsError};
use memmap2::Mmap;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// An opened file, or all files of a model that was split: every key and every tensor is known to be whole.
pub struct File(Parts);

impl File {
    /// Opens a file, or the first of several and with it the others, and checks all but the elements of its tensors.
    pub fn open(path: &Path) -> Result<File, WeightsError> {
        Parts::open(path).map(File)
    }

    /// Where it is, or the first of its parts.
    pub fn path(&self) -> &Path {
        &self.0.parts[0].path
    }

    /// Where all of its parts are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.parts.iter().map(|part| &*part.path)
    }

    /// The part that has a tensor.
    pub fn path_of(&self, tensor: &Tensor) -> &Path {
        &self.0.parts[tensor.part].path
    }

    /// The value of a key of the metadata.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let &at = self.0.keys.get(key)?;
        // It was read once without an error when the file was opened.
        Reader::new(self.path(), &self.0.parts[0].map).from(at).value().ok()
    }

    /// The keys of the metadata, in order of the alphabet.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys.keys().map(String::as_str)
    }

    /// `general.architecture`: what kind of model it is, and how keys of the model begin.
    pub fn architecture(&self) -> Result<&str, WeightsError> {
        self.typed("general.architecture", "a text", Value::text)?.ok_or_else(|| self.missing("general.architecture"))
    }

    /// What the model is.
    pub fn config(&self) -> Result<Config, WeightsError> {
        super::config::read(self)
    }

    /// The tensors, by part and offset.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0.tensors
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.0.by_name.get(name).map(|&i| &self.0.tensors[i])
    }

    /// The bytes of one of this file's tensors.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.0.parts[tensor.part].map[tensor.at..][..tensor.bytes]
    }

    /// The rows of the Hugging Face tensor `part`, which has the shape `shape` in the model of `config`.
    pub fn part(&self, config: &Config, part: &str, shape: &[usize]) -> Result<Rows<'_>, WeightsError> {
        let Some(Place { name, expert, paired }) = place(config, part) else {
            let problem = format!("GGUF files have no name for it in a {}", config.family.model_type());
            return Err(WeightsError::tensor(self.path(), part, problem));
        };
        let tensor = self.readable(&name, part)?;
        let fail = |problem: String| Err(WeightsError::tensor(self.path_of(tensor), &name, problem));
        let [rows, columns] = rows_and_columns(shape);
        let found = tensor.shape();
        // A matrix of one row may be a vector here.
        let fits = match (expert, &found[..]) {
            (Some(e), [experts, rest @ ..]) => e < *experts && rest == shape,
            (None, found) => found == shape || (shape.first() == Some(&1) && found == &shape[1..]),
            (Some(_), []) => false,
        };
        if !fits {
            let of = if expert.is_some() { " for each expert" } else { "" };
            return fail(format!("has shape {found:?}, expected {shape:?}{of}"));
        }
        let Some(row_bytes) = tensor.kind.row_bytes(columns) else {
            return fail(format!("has type {}, in which vectors cannot be read", tensor.kind));
        };
        if paired.is_some_and(|head| head == 0 || !head.is_multiple_of(2) || !rows.is_multiple_of(head)) {
            return fail(format!("its {rows} rows are not those of whole heads of {} columns", config.head_dim));
        }
        let bytes = &self.bytes(tensor)[expert.unwrap_or(0) * rows * row_bytes..][..rows * row_bytes];
        Ok(Rows { map: self.map_of(tensor), kind: tensor.kind, bytes, rows, columns, row_bytes, paired })
    }

    /// The Hugging Face tensor `part`, which has the shape `shape`, if this file has it in two halves; `None` if it is one of
    /// [`File::part`].
    pub fn expansion(
        &self,
        config: &Config,
        part: &str,
        shape: &[usize],
    ) -> Result<Option<Expansion<'_>>, WeightsError> {
        Expansion::find(self, config, part, shape)
    }

    /// The rows of all matrices of a tensor of three dimensions, in which `part` is, with others or in part.
    pub(super) fn stacked(&self, name: &str, part: &str, shape: [usize; 3]) -> Result<Rows<'_>, WeightsError> {
        let (tensor, [matrices, rows, columns]) = (self.readable(name, part)?, shape);
        let fail = |problem: String| Err(WeightsError::tensor(self.path_of(tensor), name, problem));
        if tensor.shape() != shape {
            return fail(format!("has shape {:?}, expected {shape:?}", tensor.shape()));
        }
        // A tensor's rows are whole blocks: it was checked when the file was opened.
        let Some(row_bytes) = tensor.kind.row_bytes(columns) else { return fail("its rows are cut".into()) };
        let (map, bytes) = (self.map_of(tensor), self.bytes(tensor));
        Ok(Rows { map, kind: tensor.kind, bytes, rows: matrices * rows, columns, row_bytes, paired: None })
    }

    /// The tensor `name`, which has elements of the Hugging Face tensor `part`.
    fn readable(&self, name: &str, part: &str) -> Result<&Tensor, WeightsError> {
        let Some(tensor) = self.tensor(name) else {
            return Err(WeightsError::tensor(self.path(), name, format!("missing (it holds {part})")));
        };
        if !tensor.kind.is_readable() {
            let problem = format!("has type {}; supported are {}", tensor.kind, TensorType::readable_names());
            return Err(WeightsError::tensor(self.path_of(tensor), name, problem));
        }
        Ok(tensor)
    }

    fn map_of(&self, tensor: &Tensor) -> &Mmap {
        &self.0.parts[tensor.part].map
    }

    /// Refuses a file with a tensor that the model has not. What is missing is told by [`File::part`].
    pub(crate) fn complete(&self, config: &Config) -> Result<(), WeightsError> {
        let names = crate::weights::names(config);
        let places = names.iter().filter_map(|part| Some(place(config, part)?.name));
        let known: BTreeSet<String> = places
            .flat_map(|name| match mla::halves_in(self, config, &name) {
                Some(halves) => halves.map(|half| half.name).to_vec(),
                None => vec![name],
            })
            .collect();
        let later = |name: &str| {
            // Layers that predict several tokens.
            let layer = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
                .map(|(layer, _)| layer.parse::<usize>());
            has_router_keys(config.family) && matches!(layer, Some(Ok(l)) if l >= config.num_hidden_layers)
        };
        let may_stay = |name: &str| name == super::rope::FREQUENCIES && architecture(config.family) == Some("llama");
        let strange = |t: &&Tensor| !known.contains(&t.name) && !later(&t.name) && !may_stay(&t.name);
        match self.tensors().iter().find(strange) {
            None => Ok(()),
            Some(t) => {
                let problem = format!("no {} has it, as far as is supported", config.family.model_type());
                Err(WeightsError::tensor(self.path_of(t), &t.name, problem))
            }
        }
    }

    /// A key's value as `f` takes it; `None` if the key is not there.
    pub(super) fn typed<'a, T>(
        &'a self,
        key: &str,
        want: &str,
        f: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match f(value) {
            Some(it) => Ok(Some(it)),
            None => Err(self.wrong(key, &format!("must be {want}, found {}", value.shown()))),
        }
    }

    pub(super) fn wrong(&self, key: &str, problem: &str) -> WeightsError {
        WeightsError::file(self.path(), format!("{key}: {problem}"))
    }

    pub(super) fn missing(&self, key: &str) -> WeightsError {
        self.wrong(key, "missing")
    }
}

/// A vector is a column of numbers: its elements are rows, so that those of a bias can be reordered.
pub(crate) fn rows_and_columns(shape: &[usize]) -> [usize; 2] {
    [shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()]
}

/// The rows of a Hugging Face tensor in a file: their blocks as they lie there, in the order that Hugging Face's files
/// have. Nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    map: &'a Mmap,
    kind: TensorType,
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
    row_bytes: usize,
    paired: Option<usize>,
}

impl<'a> Rows<'a> {
    /// Where they are in their file.
    pub(crate) fn mapped(&self) -> Mapped<'a> {
        Mapped::new(self.map, self.bytes)
    }

    /// How the elements are coded.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Rows and columns; the elements of a vector are rows.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The blocks of a row. Panics if there is no such row.
    pub fn row(&self, i: usize) -> &'a [u8] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let at = match self.paired {
            None => i,
            Some(head) => {
                let (first, within) = (i / head * head, i % head);
                first + within % (head / 2) * 2 + within / (head / 2)
            }
        };
        &self.bytes[at * self.row_bytes..][..self.row_bytes]
    }

    /// The numbers of some rows. Panics if they are not there or `out` has another size.
    pub fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.columns, "{rows:?} of {} columns", self.columns);
        if self.paired.is_none() {
            return blocks::decode(self.kind, &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes], out);
        }
        rows.zip(out.chunks_exact_mut(self.columns)).for_each(|(i, x)| blocks::decode(self.kind, self.row(i), x));
    }
}
