//! Files that are on the disk when a function returns, and a whole model's folder.

use super::convert::{convert, file_type, type_name};
use super::format::{self, Entry};
use super::fp8;
use super::listed::Listed;
use super::source::Source;
use super::{CONFIG, GENERATION, INDEX, MODEL, WeightsError};
use crate::config::Config;
use crate::store::{Kind, Layout, Shard, Store};
use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use wudao_device::{DType, Device};

/// A file that was written and fsynced, as a checkpoint's manifest wants to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Its name, without the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Hashes while it writes.
pub(crate) struct Hashed {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Hashed {
    fn open(path: &Path, how: &mut OpenOptions) -> Result<Hashed, WeightsError> {
        let file = how.write(true).open(path).map_err(WeightsError::io(path, "create"))?;
        Ok(Hashed { path: path.into(), file, hash: Sha256::new(), bytes: 0 })
    }

    pub fn create_new(path: &Path) -> Result<Hashed, WeightsError> {
        Hashed::open(path, OpenOptions::new().create_new(true))
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.file.write_all(bytes).map_err(WeightsError::io(&self.path, "write"))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn finish(self) -> Result<Written, WeightsError> {
        self.file.sync_all().map_err(WeightsError::io(&self.path, "bring to the disk"))?;
        Ok(written(&self.path, self.bytes, self.hash))
    }
}

fn written(path: &Path, bytes: u64, hash: Sha256) -> Written {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Written { name, bytes, sha256 }
}

/// Writes a small file, replacing what was there, and brings it to the disk.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<Written, WeightsError> {
    let mut file = Hashed::open(path, OpenOptions::new().create(true).truncate(true))?;
    file.write(bytes)?;
    file.finish()
}

/// Size and hash of a file as it is, to be compared with a manifest.
pub fn checksum(path: &Path) -> Result<Written, WeightsError> {
    let mut file = File::open(path).map_err(WeightsError::io(path, "open"))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(written(path, bytes, hash)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(WeightsError::io(path, "read")(e)),
        }
    }
}

/// Writes one safetensors file, which must not exist yet: types and bits as they are.
pub fn write_tensors(path: &Path, tensors: &[Listed]) -> Result<Written, WeightsError> {
    let entry = |(source, t): (usize, &Listed)| Entry {
        name: t.name.clone(),
        dtype: file_type(t.dtype),
        shape: t.shape.clone(),
        source,
    };
    let entries: Vec<_> = tensors.iter().enumerate().map(entry).collect();
    format::write(path, &entries, |e, file| file.write(&tensors[e.source].read()))
}

/// Writes a model's folder, which must exist: `config.json`, `generation_config.json` and the weights as `dtype`, in one
/// file or in shards of at most `max_shard_bytes` (a tensor is never cut). The tensors must be all weights, without a prefix.
pub fn write_model(
    dir: &Path,
    config: &Config,
    tensors: &[Listed],
    dtype: DType,
    max_shard_bytes: u64,
) -> Result<Vec<Written>, WeightsError> {
    let mut expected = expected(config);
    let mut described = vec![];
    for t in tensors {
        let Some((kind, _)) = expected.remove(&t.name).filter(|(_, shape)| *shape == t.shape) else {
            return Err(WeightsError::tensor(dir, &t.name, "is to be written, but the model has no such tensor"));
        };
        described.push((t.name.as_str(), kind, &t.shape[..]));
    }
    if let Some(name) = expected.keys().next() {
        return Err(WeightsError::tensor(dir, name, "the model has it, but it is not among those to be written"));
    }
    fill_model(dir, config, &described, file_type(dtype), max_shard_bytes, |entry, file| {
        let t = &tensors[entry.source];
        file.write(&convert(t.read(), file_type(t.dtype), entry.dtype))
    })
}

/// Writes a model's folder, as [`write_model`] does. The store must be a whole model's.
pub fn save<D: Device>(
    device: &D,
    dir: &Path,
    config: &Config,
    store: &Store<D>,
    dtype: DType,
    max_shard_bytes: u64,
) -> Result<Vec<Written>, WeightsError> {
    let whole = store.layout().shard.size == 1;
    assert!(whole, "a rank holds a share of the experts: append the snapshots of all ranks and write that");
    write_model(dir, config, &Listed::of(device, store, ""), dtype, max_shard_bytes)
}

/// Writes a model's folder, as [`save`] does, of tensors in other files: what is in memory of them is a few rows. With
/// [`Dtype::F8_E4M3`] projections that are blocks of 128 × 128 have 8 bits, and a scale for each; the rest is bf16. Refused is,
/// before anything is written, a source that is not complete, or of which nothing would have 8 bits.
pub fn copy(source: &Source, dir: &Path, dtype: Dtype, max_shard_bytes: u64) -> Result<Vec<Written>, WeightsError> {
    source.complete()?;
    let listed = listed(source.config());
    if dtype == Dtype::F8_E4M3 && listed.iter().all(|(_, kind, shape)| dtype_of(*kind, shape, dtype) != dtype) {
        let why = format!("no projection has sides that are multiples of {0}, or {0} at most", fp8::BLOCK);
        return Err(WeightsError::file(source.path(), format!("nothing of it would have 8 bits: {why}; choose bf16")));
    }
    let tensors: Vec<_> = listed.iter().map(|(name, kind, shape)| (name.as_str(), *kind, &shape[..])).collect();
    fill_model(dir, source.config(), &tensors, dtype, max_shard_bytes, |entry, file| {
        let (name, _, shape) = tensors[entry.source];
        let elements = source.tensor(name, shape)?;
        if entry.name != name {
            let mut scales = elements.pieces(fp8::BLOCK).flat_map(|rows| elements.scales(rows));
            return scales.try_for_each(|scale| file.write(&scale.to_le_bytes()));
        }
        elements.pieces(fp8::BLOCK).try_for_each(|rows| match entry.dtype {
            Dtype::F8_E4M3 => file.write(&elements.eight_bits(rows)),
            to => file.write(&elements.read(rows, to)),
        })
    })
}

/// A correction bias is never stored in less than f32: transformers keeps it so, and its steps are small. In 8 bits are
/// projections alone, as in the folders that others publish, and of them those that are blocks.
fn dtype_of(kind: Kind, shape: &[usize], dtype: Dtype) -> Dtype {
    match (kind, dtype) {
        (Kind::Correction, Dtype::BF16 | Dtype::F16 | Dtype::F8_E4M3) => Dtype::F32,
        (Kind::Matrix | Kind::Output | Kind::Expansion, Dtype::F8_E4M3) if fp8::fits(shape) => dtype,
        (_, Dtype::F8_E4M3) => Dtype::BF16,
        _ => dtype,
    }
}

/// What `config.json` says of a folder of 8 bits. Readers take every matrix but the embedding for one of these, unless its name
/// is here. Experts are one thing to them, and the head has a name even where it is the embedding.
fn quantization(entries: &[Entry]) -> Value {
    const EXPERTS: &str = ".experts";
    let matrix = |e: &&Entry| e.shape.len() == 2 && e.dtype == Dtype::BF16 && !e.name.contains("embed_tokens");
    let module = |e: &Entry| match e.name.split_once(&format!("{EXPERTS}.")) {
        Some((before, _)) => format!("{before}{EXPERTS}"),
        None => e.name.trim_end_matches(".weight").to_owned(),
    };
    let others: BTreeSet<String> = entries.iter().filter(matrix).map(module).chain(["lm_head".to_owned()]).collect();
    json!({
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": others,
        "quant_method": "fp8",
        "weight_block_size": [fp8::BLOCK, fp8::BLOCK],
    })
}

/// The folder of a model whose tensor `i` is `tensors[i]` (name, kind, shape). `put` writes the elements of one, or, of a matrix in
/// 8 bits, its scales under another name.
pub(super) fn fill_model(
    dir: &Path,
    config: &Config,
    tensors: &[(&str, Kind, &[usize])],
    dtype: Dtype,
    max_shard_bytes: u64,
    put: impl Fn(&Entry, &mut Hashed) -> Result<(), WeightsError>,
) -> Result<Vec<Written>, WeightsError> {
    // Readers take the one file if it is there and the shards otherwise: another model's must not be in the way.
    for other in [MODEL, INDEX] {
        if dir.join(other).exists() {
            return Err(WeightsError::file(&dir.join(other), "exists already; save into a new folder"));
        }
    }
    let entries: Vec<Entry> = (tensors.iter().enumerate())
        .flat_map(|(source, (name, kind, shape))| {
            let dtype = dtype_of(*kind, shape, dtype);
            let scales = || Entry { name: fp8::scale_name(name), dtype: Dtype::F32, shape: fp8::grid(shape), source };
            let scales = (dtype == Dtype::F8_E4M3).then(scales);
            [Entry { name: name.to_string(), dtype, shape: shape.to_vec(), source }].into_iter().chain(scales)
        })
        .collect();
    let quantization = (dtype == Dtype::F8_E4M3).then(|| quantization(&entries));
    let shards = cut(&entries, max_shard_bytes);
    let mut done = vec![
        write_file(&dir.join(CONFIG), config.to_json_as(type_name(dtype), quantization).as_bytes())?,
        write_file(&dir.join(GENERATION), config.generation_json().as_bytes())?,
    ];
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => MODEL.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        done.push(format::write(&dir.join(&name), shard, &put)?);
        weight_map.extend(shard.iter().map(|e| (e.name.clone(), name.clone())));
    }
    if shards.len() > 1 {
        let total: u64 = entries.iter().map(Entry::bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        done.push(write_file(&dir.join(INDEX), format!("{index:#}\n").as_bytes())?);
    }
    Ok(done)
}

/// Consecutive shards of at most `most` bytes, or of one tensor.
fn cut(entries: &[Entry], most: u64) -> Vec<Vec<Entry>> {
    let mut shards = vec![vec![]];
    let mut size = 0;
    for e in entries {
        if size > 0 && size + e.bytes() > most {
            shards.push(vec![]);
            size = 0;
        }
        size += e.bytes();
        shards.last_mut().expect("never empty").push(e.clone());
    }
    shards
}

/// Names, kinds and shapes of all tensors of a model, in the order of a store.
fn listed(config: &Config) -> Vec<(String, Kind, Vec<usize>)> {
    let layout = Layout::new(config, Shard::WHOLE);
    let experts = layout.experts().flat_map(|(.., p)| p);
    (layout.dense().map(|(_, p)| p).chain(experts))
        .flat_map(|p| p.parts.iter().map(|part| (part.name.clone(), p.kind, part.shape.clone())))
        .collect()
}

/// Kinds and shapes of all tensors of a model by name.
pub(super) fn expected(config: &Config) -> BTreeMap<String, (Kind, Vec<usize>)> {
    listed(config).into_iter().map(|(name, kind, shape)| (name, (kind, shape))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_has_sixteen_bits_and_is_named() {
        let tensors: [(&str, Kind, [usize; 2]); 6] = [
            ("model.embed_tokens.weight", Kind::Embedding, [256, 128]),
            ("model.layers.0.self_attn.q_proj.weight", Kind::Matrix, [64, 256]),
            ("model.layers.0.self_attn.k_proj.weight", Kind::Matrix, [192, 256]),
            ("model.layers.0.mlp.gate.weight", Kind::Router, [128, 256]),
            ("model.layers.0.mlp.experts.0.up_proj.weight", Kind::Matrix, [160, 256]),
            ("model.layers.0.mlp.experts.1.down_proj.weight", Kind::Output, [256, 160]),
        ];
        let entry = |(source, (name, kind, shape)): (usize, &(&str, Kind, [usize; 2]))| {
            let dtype = dtype_of(*kind, shape, Dtype::F8_E4M3);
            Entry { name: (*name).to_owned(), dtype, shape: shape.to_vec(), source }
        };
        let entries: Vec<Entry> = tensors.iter().enumerate().map(entry).collect();
        let eight: Vec<usize> = entries.iter().filter(|e| e.dtype == Dtype::F8_E4M3).map(|e| e.source).collect();
        assert_eq!(eight, [1]);
        let at = "model.layers.0";
        let named =
            json!(
                ["lm_head", format!("{at}.mlp.experts"), format!("{at}.mlp.gate"), format!("{at}.self_attn.k_proj"),]
            );
        assert_eq!(quantization(&entries)["modules_to_not_convert"], named);
    }
}
