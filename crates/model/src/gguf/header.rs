//! From bytes to a table of keys and tensors that can be relied on: every key's value and every tensor's bytes lie inside
//! the file, no two tensors share a byte, sizes follow from dimensions without overflow, and nothing is allocated in
//! proportion to a number that the file claims rather than to what it holds.

use super::MAGIC;
use super::types::TensorType;
use super::value::Reader;
use crate::weights::WeightsError;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of the shortest entry of the metadata: an empty key, its value's type, one byte.
const LEAST_PAIR: usize = 13;
/// Bytes of the shortest entry of the table: an empty name, no dimensions, type and offset.
const LEAST_TENSOR: usize = 24;
/// No tensor has more dimensions.
const MOST_DIMS: u32 = 4;
/// Where tensors begin, if the file does not say.
const ALIGNMENT: u64 = 32;

/// What a file says about a tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// How its elements are coded.
    pub kind: TensorType,
    /// Its dimensions as the file lists them, innermost first: those of a matrix are columns, rows.
    pub dims: Vec<usize>,
    /// Which of the model's files has it, …
    pub(super) part: usize,
    /// … and its first byte there.
    pub(super) at: usize,
    /// Its size.
    pub bytes: usize,
}

impl Tensor {
    /// Its dimensions as elsewhere, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }
}

/// The table of a file.
pub(super) struct Header {
    /// Where each key's value begins.
    pub keys: BTreeMap<String, usize>,
    /// The tensors, by offset.
    pub tensors: Vec<Tensor>,
}

impl Header {
    /// Reads the table of a file's bytes. `path` is for messages.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Header, WeightsError> {
        let mut r = Reader::new(path, bytes);
        if r.take(4, "the mark of the format")? != MAGIC {
            return r.fail("not a GGUF file: it does not begin with \"GGUF\"");
        }
        match r.u32("the version")? {
            2 | 3 => {}
            1 => return r.fail("GGUF version 1 is not supported; versions 2 and 3 are: convert the model again"),
            n if matches!(n.swap_bytes(), 1..=3) => {
                return r.fail("a GGUF file of a big-endian machine is not supported; little-endian files are");
            }
            n => return r.fail(format!("GGUF version {n} is not supported; versions 2 and 3 are")),
        }
        let tensors = r.u64("the number of tensors")?;
        let pairs = r.u64("the number of keys")?;
        let keys = keys(&mut r, pairs)?;
        let alignment = match keys.get("general.alignment").map(|&at| Reader::new(path, bytes).from(at).value()) {
            None => ALIGNMENT,
            Some(value) => match value?.whole() {
                Some(n) if n.is_power_of_two() && n <= 1 << 20 => n,
                _ => return r.fail("general.alignment: it must be a power of two, 2^20 at most"),
            },
        };
        let table = table(&mut r, tensors)?;
        let start = (r.at as u64).next_multiple_of(alignment);
        let mut tensors = vec![];
        for entry in table {
            tensors.push(placed(path, entry, start, alignment, bytes.len() as u64)?);
        }
        tensors.sort_by_key(|t| (t.at, t.bytes));
        for pair in tensors.windows(2) {
            if pair[0].at + pair[0].bytes > pair[1].at {
                let problem = format!("damaged: its bytes are also those of {:?}", pair[0].name);
                return Err(WeightsError::tensor(path, &pair[1].name, problem));
            }
        }
        Ok(Header { keys, tensors })
    }
}

/// Walks over the metadata, checking every value.
fn keys(r: &mut Reader, pairs: u64) -> Result<BTreeMap<String, usize>, WeightsError> {
    if pairs > (r.left() / LEAST_PAIR) as u64 {
        return r.fail(format!("cut short or damaged: {pairs} keys do not fit into the {} bytes left", r.left()));
    }
    let mut keys = BTreeMap::new();
    for _ in 0..pairs {
        let key = r.text("a key")?;
        let at = r.at;
        r.value()?;
        if keys.insert(key.to_owned(), at).is_some() {
            return r.fail(format!("damaged: the key {key:?} is there twice"));
        }
    }
    Ok(keys)
}

/// An entry of the table, as it stands there.
struct Entry {
    name: String,
    dims: Vec<u64>,
    number: u32,
    offset: u64,
}

fn table(r: &mut Reader, tensors: u64) -> Result<Vec<Entry>, WeightsError> {
    if tensors > (r.left() / LEAST_TENSOR) as u64 {
        return r.fail(format!("cut short or damaged: {tensors} tensors do not fit into the {} bytes left", r.left()));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut table = vec![];
    for _ in 0..tensors {
        let name = r.text("the name of a tensor")?;
        if !seen.insert(name) {
            return r.fail(format!("damaged: the tensor {name:?} is there twice"));
        }
        let n = r.u32("the number of dimensions")?;
        if n == 0 || n > MOST_DIMS {
            return r.fail(format!("damaged: the tensor {name:?} has {n} dimensions, not 1 to {MOST_DIMS}"));
        }
        let dims = (0..n).map(|_| r.u64("a dimension")).collect::<Result<_, _>>()?;
        let number = r.u32("the type of a tensor")?;
        let offset = r.u64("the offset of a tensor")?;
        table.push(Entry { name: name.to_owned(), dims, number, offset });
    }
    Ok(table)
}

/// The tensor of an entry, once its type, its size and its place are known to be possible.
fn placed(path: &Path, entry: Entry, start: u64, alignment: u64, size: u64) -> Result<Tensor, WeightsError> {
    let Entry { name, dims, number, offset } = entry;
    let fail = |problem: String| Err(WeightsError::tensor(path, &name, problem));
    let Some(kind) = TensorType::from_number(number) else {
        return fail(format!("has the unknown type {number}; supported are {}", TensorType::readable_names()));
    };
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
    let (Some(elements), true) = (elements, dims[0].is_multiple_of(kind.block() as u64)) else {
        return fail(format!("damaged: dimensions {dims:?} cannot be those of a tensor of type {kind}"));
    };
    let bytes = (elements / kind.block() as u64).checked_mul(kind.block_bytes() as u64);
    if !offset.is_multiple_of(alignment) {
        return fail(format!("damaged: its offset {offset} is not a multiple of the alignment, {alignment}"));
    }
    let at = start.checked_add(offset);
    let end = at.zip(bytes).and_then(|(at, bytes)| at.checked_add(bytes)).filter(|&end| end <= size);
    let (Some(at), Some(bytes), Some(_)) = (at, bytes, end) else {
        let need = bytes.map_or("more than any file's".into(), |n| n.to_string());
        return fail(format!("cut short or damaged: {need} bytes from {start} + {offset} on, the file has {size}"));
    };
    // All of these are below the size of a file that is mapped.
    let dims = dims.into_iter().map(|d| d as usize).collect();
    Ok(Tensor { name, kind, dims, part: 0, at: at as usize, bytes: bytes as usize })
}

/// Where tensors begin after `at` bytes of header: what the writer must agree on.
pub(super) fn aligned(at: u64) -> u64 {
    at.next_multiple_of(ALIGNMENT)
}
