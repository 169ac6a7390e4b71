//! From files to stores.

use super::convert::{convert, file_type, is_float};
use super::format::Opened;
use super::fp8::{BLOCK, SCALE, grid, scale_name};
use super::source::{Elements, Source};
use super::write::expected;
use super::{CONFIG, INDEX, MODEL, WeightsError};
use crate::config::{Config, Family};
use crate::gguf;
use crate::packed::{PackedWeights, WeightOptions};
use crate::store::{Layout, Param, Part, Store};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo as Info;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wudao_device::Device;

/// What a file says about a tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type, as the file spells it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
    /// The name of its file.
    pub file: String,
}

/// Reads and checks the `config.json` of a folder, or the metadata of a GGUF file.
pub fn read_config(dir: &Path) -> Result<Config, WeightsError> {
    if gguf::is_gguf(dir) {
        return gguf::File::open(dir)?.config();
    }
    let path = dir.join(CONFIG);
    let bytes = std::fs::read(&path).map_err(WeightsError::io(&path, "read"))?;
    Config::from_json(&bytes).map_err(|source| WeightsError::Config { path, source })
}

/// All tensors of a model's folder, or of one safetensors or GGUF file, by file and offset. Headers are checked, weights
/// are not read.
pub fn tensors(path: &Path) -> Result<Vec<TensorInfo>, WeightsError> {
    if gguf::is_gguf(path) {
        let file = gguf::File::open(path)?;
        let info = |t: &gguf::Tensor| TensorInfo {
            name: t.name.clone(),
            dtype: t.kind.to_string(),
            shape: t.shape(),
            bytes: t.bytes as u64,
            file: file.path_of(t).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        return Ok(file.tensors().iter().map(info).collect());
    }
    let files = if path.is_dir() { Files::open(path)? } else { Files::of(path, vec![Opened::open(path)?])? };
    let mut all = vec![];
    for file in &files.files {
        let name_of_file = file.path.file_name().unwrap_or_default().to_string_lossy();
        for name in file.names() {
            let Some(info) = file.info(&name) else { continue };
            all.push(TensorInfo {
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
                file: name_of_file.clone().into_owned(),
                name,
            });
        }
    }
    Ok(all)
}

/// Fills `store` from a model's folder, whatever floating-point type the files have, or from a GGUF file; e4m3 matrices
/// are multiplied by the scales of their blocks, as DeepSeek-V3's and Qwen3's 8-bit folders have them (activations are not
/// quantised), and blocks of a GGUF file are decoded. On a rank with a share of the experts only those are read. Nothing
/// is changed unless every tensor of the model is there in its shape, and no other.
pub fn load<D: Device>(device: &D, path: &Path, config: &Config, store: &mut Store<D>) -> Result<(), WeightsError> {
    load_from(device, &Source::open_as(path, config)?, store)
}

/// As [`load`], from a source that is open.
pub fn load_from<D: Device>(device: &D, source: &Source, store: &mut Store<D>) -> Result<(), WeightsError> {
    source.complete()?;
    fill(device, |part| source.tensor(&part.name, &part.shape), store, |_| true)
}

/// As [`load_from`], for inference: each tensor is packed as it is read, and nothing else of it is kept, so that a model
/// takes little more memory than in the end.
pub fn load_packed<D: Device>(
    device: &D,
    source: &Source,
    layout: &Arc<Layout>,
    options: &WeightOptions,
) -> Result<PackedWeights<D>, WeightsError> {
    source.complete()?;
    PackedWeights::new(device, layout, options, |param, part| {
        Ok(source.tensor(&part.name, &part.shape)?.incoming(param.shape[1]))
    })
}

/// Fills a store from the file of a [`super::Snapshot`] that was taken with the same prefix. Tensors under other prefixes
/// are left alone.
pub fn load_into<D: Device>(device: &D, path: &Path, prefix: &str, store: &mut Store<D>) -> Result<(), WeightsError> {
    load_some(device, path, prefix, store, |_| true)
}

/// As [`load_into`], of the parameters that `keep` keeps.
pub fn load_some<D: Device>(
    device: &D,
    path: &Path,
    prefix: &str,
    store: &mut Store<D>,
    keep: impl Fn(&Param) -> bool,
) -> Result<(), WeightsError> {
    let files = Files::of(path, vec![Opened::open(path)?])?;
    if store.layout().shard.size == 1 {
        let params = store.params();
        let kept = params.iter().filter(|(_, p)| keep(p)).flat_map(|(_, p)| &p.parts);
        let wanted: BTreeSet<String> = kept.map(|part| format!("{prefix}{}", part.name)).collect();
        if let Some(name) = files.names().find(|name| name.starts_with(prefix) && !wanted.contains(*name)) {
            return Err(WeightsError::tensor(path, name, "no place for it in this model"));
        }
    }
    fill(device, |part| files.elements(&format!("{prefix}{}", part.name), &part.shape), store, keep)
}

/// Checks every tensor that the store wants, then copies.
fn fill<'a, D: Device>(
    device: &D,
    find: impl Fn(&Part) -> Result<Elements<'a>, WeightsError>,
    store: &mut Store<D>,
    keep: impl Fn(&Param) -> bool,
) -> Result<(), WeightsError> {
    let mut work = vec![];
    for (home, param) in store.params().into_iter().filter(|(_, param)| keep(param)) {
        for part in param.parts {
            work.push((home, part.rows.clone(), find(&part)?));
        }
    }
    for (home, rows, tensor) in work {
        let mut to = store.get_mut(home).rows(rows);
        let (dtype, columns) = (to.dtype(), tensor.shape()[1]);
        for rows in tensor.pieces(1) {
            let at = rows.start * columns..rows.end * columns;
            let n = at.len();
            device.copy_from_host(&tensor.read(rows, file_type(dtype)), to.reborrow().part(at, [1, n]));
        }
    }
    Ok(())
}

/// The files of a model and where each tensor is.
pub(super) struct Files {
    path: PathBuf,
    files: Vec<Opened>,
    by_name: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Refuses a folder that has not every tensor of the model, or one that the model has not.
    pub(super) fn complete(&self, config: &Config) -> Result<(), WeightsError> {
        let known = expected(config);
        for name in self.names() {
            if !known.contains_key(name) && !self.may_be_left_out(config, name)? {
                let path = &self.of_tensor(name).path;
                return Err(WeightsError::tensor(path, name, format!("no {} has it", config.family.model_type())));
            }
        }
        if let Some(name) = known.keys().find(|name| !self.by_name.contains_key(*name)) {
            let more = known.keys().filter(|name| !self.by_name.contains_key(*name)).count() - 1;
            let hint = if name == "lm_head.weight" { "; is tie_word_embeddings true?" } else { "" };
            let others = if more > 0 { format!(", and {more} more") } else { String::new() };
            return Err(WeightsError::tensor(&self.path, name, format!("missing{others}{hint}")));
        }
        Ok(())
    }

    /// A tensor that is right: it has this shape, and elements that can become weights.
    pub(super) fn elements(&self, name: &str, shape: &[usize]) -> Result<Elements<'_>, WeightsError> {
        let (file, info) = self.get(name)?;
        if info.shape != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", info.shape);
            return Err(WeightsError::tensor(&file.path, name, problem));
        }
        match info.dtype {
            Dtype::F8_E4M3 => Ok(Elements::scaled(shape, file, info, self.scales(name, info)?)),
            dtype if is_float(dtype) => Ok(Elements::plain(shape, file, info)),
            other => {
                let known = "F32, BF16, F16, F64, and F8_E4M3 with a scale for each block";
                let problem = format!("has type {other:?}; supported are {known}");
                Err(WeightsError::tensor(&file.path, name, problem))
            }
        }
    }

    /// One file if it is there, the shards of the index otherwise, as in transformers.
    pub(super) fn open(dir: &Path) -> Result<Files, WeightsError> {
        let one = dir.join(MODEL);
        if one.exists() {
            return Files::of(dir, vec![Opened::open(&one)?]);
        }
        let path = dir.join(INDEX);
        if !path.exists() {
            return Err(WeightsError::file(dir, format!("no weights here: neither {MODEL} nor {INDEX}")));
        }
        let bytes = std::fs::read(&path).map_err(WeightsError::io(&path, "read"))?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| WeightsError::file(&path, format!("not an index of shards: {e}")))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let open = |name: &&String| {
            // A name from a foreign file must not lead out of the folder.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(WeightsError::file(&path, format!("{name:?} is not the name of a file in this folder")));
            }
            Opened::open(&dir.join(name))
        };
        let files = Files::of(dir, names.iter().map(open).collect::<Result<_, _>>()?)?;
        for (tensor, file) in &index.weight_map {
            let there = files.by_name.get(tensor).is_some_and(|&i| files.files[i].path == dir.join(file));
            if !there {
                return Err(WeightsError::tensor(&path, tensor, format!("is not in {file}, where the index puts it")));
            }
        }
        Ok(files)
    }

    fn of(path: &Path, files: Vec<Opened>) -> Result<Files, WeightsError> {
        let mut by_name = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = by_name.insert(name.clone(), i) {
                    let other = files[other].path.display();
                    return Err(WeightsError::tensor(&file.path, &name, format!("is in {other} too")));
                }
            }
        }
        Ok(Files { path: path.into(), files, by_name })
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    fn of_tensor(&self, name: &str) -> &Opened {
        &self.files[self.by_name[name]]
    }

    fn get(&self, name: &str) -> Result<(&Opened, &Info), WeightsError> {
        let file = self.by_name.get(name).map(|&i| &self.files[i]);
        file.and_then(|f| f.info(name).map(|info| (f, info)))
            .ok_or_else(|| WeightsError::tensor(&self.path, name, "missing"))
    }

    /// The scales of an e4m3 matrix, one for each block of 128 × 128.
    fn scales(&self, name: &str, matrix: &Info) -> Result<Vec<f64>, WeightsError> {
        let (file, info) = self.get(&scale_name(name))?;
        let grid = grid(&matrix.shape);
        if info.shape != grid || grid.len() != 2 || !is_float(info.dtype) {
            let (dtype, shape) = (info.dtype, &info.shape);
            let problem = format!(
                "has type {dtype:?} and shape {shape:?}, expected F32, BF16, F16 or F64 and {grid:?}: a scale for each \
                 block of {BLOCK} x {BLOCK} of a matrix of {:?}",
                matrix.shape
            );
            return Err(WeightsError::tensor(&file.path, &scale_name(name), problem));
        }
        let wide = convert(file.bytes(info).into(), info.dtype, Dtype::F64);
        Ok(wide.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect())
    }

    /// Tensors that files hold and models do not: the rotary frequencies of old files, GLM's and DeepSeek's layers for
    /// predicting several tokens, scales of matrices of 8 bits, and a tied head's copy of the embedding, if a copy is what it is.
    fn may_be_left_out(&self, config: &Config, name: &str) -> Result<bool, WeightsError> {
        if name.ends_with(".rotary_emb.inv_freq") {
            return Ok(true);
        }
        if let Some(matrix) = name.strip_suffix(SCALE)
            && let Ok((_, info)) = self.get(matrix)
            && info.dtype == Dtype::F8_E4M3
        {
            return Ok(true);
        }
        if matches!(config.family, Family::Glm4Moe | Family::DeepseekV3)
            && let Some(rest) = name.strip_prefix("model.layers.")
            && let Some((layer, _)) = rest.split_once('.')
            && layer.parse().is_ok_and(|l: usize| l >= config.num_hidden_layers)
        {
            return Ok(true);
        }
        if name == "lm_head.weight" && config.tie_word_embeddings {
            let (file, head) = self.get(name)?;
            let (embedding_file, embedding) = self.get("model.embed_tokens.weight")?;
            let (a, b) = (file.bytes(head), embedding_file.bytes(embedding));
            if head.dtype != embedding.dtype || a != b {
                let problem = "is not the embedding, though tie_word_embeddings is true: one of the two is wrong";
                return Err(WeightsError::tensor(&file.path, name, problem));
            }
            return Ok(true);
        }
        Ok(false)
    }
}
