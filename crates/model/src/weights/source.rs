//! A model's tensors by their Hugging Face names, whatever files they are in.

use super::convert::{convert, encode};
use super::format::Opened;
use super::fp8::{self, BLOCK, dequantize};
use super::mapped::Mapped;
use super::read::Files;
use super::write::expected;
use super::{WeightsError, read_config};
use crate::config::Config;
use crate::gguf;
use crate::packed::Incoming;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use wudao_device::Coding;

/// Elements that are converted at a time.
const CHUNK: usize = 1 << 20;

/// Where a model's tensors come from: a Hugging Face folder, or a GGUF file. Opening it reads headers alone.
pub struct Source {
    config: Config,
    files: Kind,
}

enum Kind {
    Folder(Files),
    Gguf(gguf::File),
}

impl Source {
    /// Opens a folder or a GGUF file.
    pub fn open(path: &Path) -> Result<Source, WeightsError> {
        Source::open_as(path, &read_config(path)?)
    }

    /// Opens a folder or a GGUF file for a model that is known already. What a folder's `config.json` says does not matter
    /// then; a GGUF file must be of the model's architecture, because that tells how its rows are ordered.
    pub fn open_as(path: &Path, config: &Config) -> Result<Source, WeightsError> {
        let files = if gguf::is_gguf(path) {
            let file = gguf::File::open(path)?;
            let (there, ours) = (file.architecture()?, gguf::architecture(config.family));
            if ours != Some(there) {
                let model = config.family.model_type();
                let problem = format!("is a {there:?}, and the model a {model}: give the model that family");
                return Err(WeightsError::file(path, problem));
            }
            Kind::Gguf(file)
        } else {
            Kind::Folder(Files::open(path)?)
        };
        Ok(Source { config: config.clone(), files })
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder or the file.
    pub fn path(&self) -> &Path {
        match &self.files {
            Kind::Folder(files) => files.path(),
            Kind::Gguf(file) => file.path(),
        }
    }

    /// The GGUF file, if it is one: its vocabulary, and blocks as they lie there.
    pub fn gguf(&self) -> Option<&gguf::File> {
        if let Kind::Gguf(file) = &self.files { Some(file) } else { None }
    }

    /// Refuses a source that has not every tensor of the model in its shape and in a type that can be read, or one that
    /// the model has not.
    pub fn complete(&self) -> Result<(), WeightsError> {
        match &self.files {
            Kind::Folder(files) => files.complete(&self.config)?,
            Kind::Gguf(file) => file.complete(&self.config)?,
        }
        expected(&self.config).iter().try_for_each(|(name, (_, shape))| self.tensor(name, shape).map(drop))
    }

    /// The tensor with this name, if it has this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Elements<'_>, WeightsError> {
        match &self.files {
            Kind::Folder(files) => files.elements(name, shape),
            Kind::Gguf(file) => {
                if let Some(made) = file.expansion(&self.config, name, shape)? {
                    let (shape, [a, b]) = (made.shape(), made.rows());
                    let mapped = a.mapped().join(b.mapped());
                    return Ok(Elements { shape, coded: Coded::Made(Box::new(made)), mapped });
                }
                let rows = file.part(&self.config, name, shape)?;
                Ok(Elements { shape: rows.shape(), mapped: rows.mapped(), coded: Coded::Gguf(rows) })
            }
        }
    }
}

/// A tensor that is being packed; then the file's pages may leave memory.
struct Packing<'a>(Elements<'a>);

impl Drop for Packing<'_> {
    fn drop(&mut self) {
        self.0.mapped.forget();
    }
}

/// The elements of a tensor, as a file has them.
pub struct Elements<'a> {
    shape: [usize; 2],
    coded: Coded<'a>,
    mapped: Mapped<'a>,
}

enum Coded<'a> {
    Plain(&'a [u8], Dtype),
    /// e4m3, and a scale for each block.
    Scaled(&'a [u8], Vec<f64>),
    Gguf(gguf::Rows<'a>),
    /// Not in rows there.
    Made(Box<gguf::Expansion<'a>>),
}

impl<'a> Elements<'a> {
    pub(super) fn plain(shape: &[usize], file: &'a Opened, info: &'a TensorInfo) -> Self {
        let coded = Coded::Plain(file.bytes(info), info.dtype);
        Elements { shape: gguf::rows_and_columns(shape), coded, mapped: file.mapped(info) }
    }

    pub(super) fn scaled(shape: &[usize], file: &'a Opened, info: &'a TensorInfo, scales: Vec<f64>) -> Self {
        let coded = Coded::Scaled(file.bytes(info), scales);
        Elements { shape: gguf::rows_and_columns(shape), coded, mapped: file.mapped(info) }
    }

    /// Rows and columns; the elements of a vector are rows.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The type of the elements, if a safetensors file has them as numbers.
    pub(super) fn dtype(&self) -> Option<Dtype> {
        if let Coded::Plain(_, dtype) = self.coded { Some(dtype) } else { None }
    }

    /// Where they are in the file.
    pub(super) fn mapped(&self) -> Mapped<'a> {
        self.mapped
    }

    /// The blocks of a GGUF file, in which they need not be decoded.
    pub fn blocks(&self) -> Option<gguf::Rows<'a>> {
        if let Coded::Gguf(rows) = &self.coded { Some(*rows) } else { None }
    }

    /// For packing, as rows of so many columns.
    pub(crate) fn incoming(self, columns: usize) -> Incoming<'a> {
        let blocks = self.blocks().and_then(|rows| rows.kind().quant());
        let packing = Packing(self);
        let row = move |i: usize, coding: Coding| packing.0.row(i, columns, coding);
        Incoming { blocks, row: Box::new(row) }
    }

    /// Row i of so many columns. A vector, of which each element is a row here, may be one.
    fn row(&self, i: usize, columns: usize, coding: Coding) -> Cow<'a, [u8]> {
        let each = columns / self.shape[1];
        let rows = i * each..(i + 1) * each;
        match (coding, self.blocks()) {
            (Coding::F32, _) => self.read(rows, Dtype::F32),
            (Coding::Bf16, _) => self.read(rows, Dtype::BF16),
            (Coding::Quant(kind), Some(blocks)) if blocks.kind().quant() == Some(kind) => blocks.row(i).into(),
            (Coding::Quant(_), _) => coding.encode(&self.wide(rows)).into(),
        }
    }

    /// All rows, in stretches that take little memory, each of a multiple of `group` rows (but the last, where they do not
    /// come out even).
    pub fn pieces(&self, group: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let [rows, columns] = self.shape;
        let step = (CHUNK / columns.max(1)).max(1).next_multiple_of(group);
        (0..rows).step_by(step).map(move |from| from..(from + step).min(rows))
    }

    /// Some rows, from the first of a block on and to the last of one, as e4m3: those of the file, if it has them.
    pub(super) fn eight_bits(&self, rows: Range<usize>) -> Cow<'a, [u8]> {
        let columns = self.shape[1];
        match &self.coded {
            Coded::Scaled(bytes, _) => Cow::Borrowed(&bytes[rows.start * columns..rows.end * columns]),
            _ => fp8::quantize(&self.wide(rows), columns).into(),
        }
    }

    /// The scales of the blocks of such rows.
    pub(super) fn scales(&self, rows: Range<usize>) -> Vec<f32> {
        let columns = self.shape[1];
        let across = columns.div_ceil(BLOCK);
        match &self.coded {
            Coded::Scaled(_, scales) => {
                let blocks = rows.start / BLOCK * across..rows.end.div_ceil(BLOCK) * across;
                scales[blocks].iter().map(|&scale| scale as f32).collect()
            }
            _ => fp8::scales(&self.wide(rows), columns),
        }
    }

    /// Some rows in f32.
    fn wide(&self, rows: Range<usize>) -> Vec<f32> {
        self.read(rows, Dtype::F32).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    /// Some rows as numbers of a type that a safetensors file can have, little-endian; no copy where they are that already.
    pub fn read(&self, rows: Range<usize>, to: Dtype) -> Cow<'a, [u8]> {
        let columns = self.shape[1];
        match &self.coded {
            Coded::Plain(bytes, dtype) => {
                let row = columns * dtype.bitsize() / 8;
                convert(Cow::Borrowed(&bytes[rows.start * row..rows.end * row]), *dtype, to)
            }
            Coded::Scaled(bytes, scales) => {
                dequantize(&bytes[rows.start * columns..rows.end * columns], rows.start, columns, scales, to).into()
            }
            Coded::Gguf(blocks) => {
                let mut wide = vec![0.0; rows.len() * columns];
                blocks.decode(rows, &mut wide);
                encode(to, wide.into_iter().map(f64::from)).into()
            }
            Coded::Made(made) => {
                let wide = &made.numbers()[rows.start * columns..rows.end * columns];
                encode(to, wide.iter().copied().map(f64::from)).into()
            }
        }
    }
}
