//! A file, tensor by tensor: what is in memory of it is a few rows.
//!
//! Vectors, routers and correction biases are kept in f32, as everyone keeps them. Matrices are coded as asked, but the
//! embedding and the head of a 4-bit model have 8 bits, because they are what 4 bits hurt most; and a matrix whose rows are
//! not whole blocks is kept in bf16. Blocks that a source has already in the type that is asked for are copied as they are,
//! but where latent attention's matrix is cut in halves (`mla`): its numbers are decoded and coded again.

use super::header::aligned;
use super::mla::{self, Half};
use super::names::{Place, place};
use super::rope::FREQUENCIES;
use super::types::TensorType;
use super::{MAGIC, config, rope};
use crate::config::Config;
use crate::store::{Kind, Layout, Part, Shard};
use crate::weights::{Elements, Hashed, Source, WeightsError, Written};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// A value of the metadata to be written.
#[derive(Clone, PartialEq, Debug)]
pub enum Field {
    /// A whole number of 32 bits.
    Whole(u32),
    /// A number of 32 bits.
    Number(f32),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// A list of whole numbers.
    Wholes(Vec<i32>),
    /// A list of numbers.
    Numbers(Vec<f32>),
    /// A list of texts.
    Texts(Vec<String>),
}

impl Field {
    /// The value with its type before it, as it stands in a file.
    fn put(&self, to: &mut Vec<u8>) {
        fn text(to: &mut Vec<u8>, text: &str) {
            to.extend((text.len() as u64).to_le_bytes());
            to.extend(text.as_bytes());
        }
        fn list<T>(to: &mut Vec<u8>, kind: u32, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
            to.extend(9u32.to_le_bytes());
            to.extend(kind.to_le_bytes());
            to.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put(to, item));
        }
        let mut plain = |kind: u32, bytes: &[u8]| {
            to.extend(kind.to_le_bytes());
            to.extend(bytes);
        };
        match self {
            Field::Whole(n) => plain(4, &n.to_le_bytes()),
            Field::Number(x) => plain(6, &x.to_le_bytes()),
            Field::Flag(flag) => plain(7, &[u8::from(*flag)]),
            Field::Text(it) => {
                plain(8, &[]);
                text(to, it);
            }
            Field::Wholes(all) => list(to, 5, all, |to, n| to.extend(n.to_le_bytes())),
            Field::Numbers(all) => list(to, 6, all, |to, x| to.extend(x.to_le_bytes())),
            Field::Texts(all) => list(to, 8, all, |to, it| text(to, it)),
        }
    }
}

/// A tensor to be written.
struct Entry {
    name: String,
    kind: TensorType,
    /// Innermost first.
    dims: Vec<usize>,
    content: Content,
}

enum Content {
    /// Hugging Face tensors, one after the other: one, or those of all experts.
    Parts(Vec<Part>, Option<usize>),
    /// Some rows of each head of one.
    Half(Part, Half),
    Numbers(Vec<f32>),
}

impl Entry {
    fn bytes(&self) -> u64 {
        let row = self.kind.row_bytes(self.dims[0]).expect("rows are whole blocks");
        (row * self.dims[1..].iter().product::<usize>()) as u64
    }
}

/// The types that can be written.
pub const WRITABLE: [TensorType; 5] =
    [TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0, TensorType::Q4_0];

/// Writes a file that does not exist yet: the tensors of `source` with matrices of type `dtype`, and `fields` (of the
/// vocabulary) after those that say what the model is. Refused is, before the file is made, a source that is not complete
/// and a model that llama.cpp does not compute.
pub fn write(
    path: &Path,
    source: &Source,
    dtype: TensorType,
    fields: &[(String, Field)],
) -> Result<Written, WeightsError> {
    let config = source.config();
    let model = config::write(config).map_err(|source| WeightsError::Config { path: path.into(), source })?;
    assert!(WRITABLE.contains(&dtype), "{dtype} is not written");
    source.complete()?;
    let file_type = match dtype {
        TensorType::F16 => 1,
        TensorType::Q4_0 => 2,
        TensorType::Q8_0 => 7,
        TensorType::BF16 => 32,
        _ => 0,
    };
    let general = [("general.file_type", file_type), ("general.quantization_version", 2)]
        .map(|(key, n)| (key.to_owned(), Field::Whole(n)));
    let entries = entries(config, dtype);
    let header = header(&[&model, &general[..], fields].concat(), &entries);
    let mut file = Hashed::create_new(path)?;
    file.write(&header)?;
    for entry in &entries {
        match &entry.content {
            Content::Numbers(all) => file.write(&all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?,
            Content::Parts(parts, paired) => {
                for part in parts {
                    copy(source, part, *paired, entry.kind, &mut file)?;
                }
            }
            Content::Half(part, half) => copy_half(source, part, half, entry.kind, &mut file)?,
        }
        let bytes = entry.bytes();
        file.write(&vec![0; (aligned(bytes) - bytes) as usize])?;
    }
    file.finish()
}

/// The table of tensors in the order of the model.
fn entries(config: &Config, dtype: TensorType) -> Vec<Entry> {
    let layout = Layout::new(config, Shard::WHOLE);
    let params = layout.dense().map(|(_, p)| p).chain(layout.experts().flat_map(|(.., p)| p));
    let mut entries: Vec<Entry> = vec![];
    let mut by_name = BTreeMap::new();
    for (kind, part) in params.flat_map(|p| p.parts.iter().map(|part| (p.kind, part))) {
        let Place { name, expert, paired } = place(config, &part.name).expect("checked: the family has names");
        if let Some(halves) = mla::halves(config, &name) {
            entries.extend(halves.map(|half| {
                let dims: Vec<usize> = half.shape().into_iter().rev().collect();
                let kind = coded(kind, dtype, dims[0]);
                Entry { name: half.name.clone(), kind, dims, content: Content::Half(part.clone(), half) }
            }));
            continue;
        }
        let at = *by_name.entry(name.clone()).or_insert_with(|| {
            // A gate that is a matrix of one row is a vector here.
            let shape = if part.shape[0] == 1 { &part.shape[1..] } else { &part.shape[..] };
            let mut dims: Vec<usize> = shape.iter().rev().copied().collect();
            dims.extend(expert.map(|_| 0));
            let kind = coded(kind, dtype, dims[0]);
            entries.push(Entry { name, kind, dims, content: Content::Parts(vec![], paired) });
            entries.len() - 1
        });
        let entry = &mut entries[at];
        if expert.is_some() {
            entry.dims[2] += 1;
        }
        let Content::Parts(parts, _) = &mut entry.content else { unreachable!("only parts so far") };
        parts.push(part.clone());
    }
    // llama.cpp wants a head of these architectures, be it the embedding once more.
    if config.tie_word_embeddings && config::needs_head(config.family) {
        let Entry { kind, dims, content: Content::Parts(parts, _), .. } = &entries[by_name["token_embd.weight"]] else {
            unreachable!("the embedding is a part")
        };
        let content = Content::Parts(parts.clone(), None);
        entries.push(Entry { name: "output.weight".into(), kind: *kind, dims: dims.clone(), content });
    }
    if let Some(scaling @ crate::RopeScaling::Llama3 { .. }) = &config.rope_scaling {
        let all: Vec<f32> = rope::factors(config, Some(scaling)).into_iter().map(|x| x as f32).collect();
        let (name, dims) = (FREQUENCIES.into(), vec![all.len()]);
        entries.push(Entry { name, kind: TensorType::F32, dims, content: Content::Numbers(all) });
    }
    entries
}

/// The type of a parameter where `dtype` is asked for.
fn coded(kind: Kind, dtype: TensorType, columns: usize) -> TensorType {
    let dtype = match kind {
        Kind::Norm | Kind::Bias | Kind::Correction | Kind::Router => return TensorType::F32,
        Kind::Embedding | Kind::Head if dtype == TensorType::Q4_0 => TensorType::Q8_0,
        _ => dtype,
    };
    if dtype.row_bytes(columns).is_some() { dtype } else { TensorType::BF16 }
}

fn header(fields: &[(String, Field)], entries: &[Entry]) -> Vec<u8> {
    let mut to = MAGIC.to_vec();
    to.extend(3u32.to_le_bytes());
    to.extend((entries.len() as u64).to_le_bytes());
    to.extend((fields.len() as u64).to_le_bytes());
    let name = |to: &mut Vec<u8>, name: &str| {
        to.extend((name.len() as u64).to_le_bytes());
        to.extend(name.as_bytes());
    };
    for (key, field) in fields {
        name(&mut to, key);
        field.put(&mut to);
    }
    let mut at = 0u64;
    for entry in entries {
        name(&mut to, &entry.name);
        to.extend((entry.dims.len() as u32).to_le_bytes());
        entry.dims.iter().for_each(|&n| to.extend((n as u64).to_le_bytes()));
        to.extend(entry.kind.number().to_le_bytes());
        to.extend(at.to_le_bytes());
        at = aligned(at + entry.bytes());
    }
    to.resize(aligned(to.len() as u64) as usize, 0);
    to
}

/// Writes one Hugging Face tensor, its rows in the order of the file, coded as `kind`.
fn copy(
    source: &Source,
    part: &Part,
    paired: Option<usize>,
    kind: TensorType,
    file: &mut Hashed,
) -> Result<(), WeightsError> {
    let elements = source.tensor(&part.name, &part.shape)?;
    let [rows, columns] = elements.shape();
    // Within each head: row 2j + s of the file is row s·C/2 + j here.
    let from = |i: usize| match paired {
        None => i,
        Some(head) => i / head * head + i % head % 2 * (head / 2) + i % head / 2,
    };
    if let Some(blocks) = elements.blocks().filter(|blocks| blocks.kind() == kind) {
        return (0..rows).try_for_each(|i| file.write(blocks.row(from(i))));
    }
    let whole_heads = paired.unwrap_or(1);
    for piece in elements.pieces(whole_heads) {
        let wide = wide(&elements, piece.clone());
        let row = |i| &wide[(from(i) - piece.start) * columns..][..columns];
        let ordered: Vec<f32> = piece.clone().flat_map(row).copied().collect();
        file.write(&super::blocks::encode(kind, &ordered))?;
    }
    Ok(())
}

/// Writes the rows of each head that are this half's, coded as `kind`.
fn copy_half(
    source: &Source,
    part: &Part,
    half: &Half,
    kind: TensorType,
    file: &mut Hashed,
) -> Result<(), WeightsError> {
    let elements = source.tensor(&part.name, &part.shape)?;
    for head in 0..half.heads {
        let at = head * half.per_head;
        let x = wide(&elements, at + half.rows.start..at + half.rows.end);
        file.write(&super::blocks::encode(kind, &half.turned(x, half.columns)))?;
    }
    Ok(())
}

/// The numbers of some rows.
fn wide(elements: &Elements, rows: Range<usize>) -> Vec<f32> {
    elements.read(rows, Dtype::F32).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
