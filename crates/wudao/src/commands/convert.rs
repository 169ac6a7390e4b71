//! `wudao convert`: a model from one kind of files to another: Hugging Face folders, our runs and GGUF files in; folders
//! and GGUF files out.
//!
//! What is written appears under its name when it is whole and on the disk, not before; nothing is overwritten.

use super::Context;
use crate::error::{Advice, Usage};
use crate::printer::bytes;
use anyhow::Context as _;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use wudao_data::tokenizer::Tokenizer;
use wudao_infer::checkpoint::tokenizer;
use wudao_model::gguf::{self, TensorType};
use wudao_model::weights::{self, Dtype, Source, Written};

/// A folder's chat template, where it is a file of its own; the other place is `tokenizer_config.json`.
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Arguments of `wudao convert`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao convert runs/quickstart --out quickstart.gguf --dtype q8_0\n  \
    wudao convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2 --dtype bf16\n  \
    wudao convert Qwen3-0.6B --out qwen3-f16 --format hf --dtype f16 --max-shard-gb 2")]
pub struct Args {
    /// A checkpoint or Hugging Face folder, a run folder (its newest checkpoint), or a GGUF file.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The folder or file to make; it must not exist yet.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// What to make [default: a GGUF file if PATH ends in .gguf, a Hugging Face folder otherwise].
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// How matrices are stored. Vectors, routers and correction biases of a GGUF file are f32 in any case; embedding, head, routers
    /// and vectors of an fp8 folder are bf16.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Stored,
    /// Most gigabytes of one file of a folder's weights.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=1000))]
    max_shard_gb: u64,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

/// A kind of files.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// A folder of config.json, safetensors and tokenizer.json.
    Hf,
    /// One file, for llama.cpp and programs around it.
    Gguf,
}

/// A type of stored numbers.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
enum Stored {
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them for the exponent.
    F16,
    /// 16 bits, 8 of them for the exponent.
    Bf16,
    /// 8 bits, 4 of them for the exponent, and a scale for each block of 128 × 128 numbers (folder).
    Fp8,
    /// 8 bits and a scale for each 32 numbers (GGUF).
    #[value(name = "q8_0")]
    Q8,
    /// 4 bits and a scale for each 32 numbers; the embedding and the head 8 bits (GGUF).
    #[value(name = "q4_0")]
    Q4,
}

impl Stored {
    fn in_gguf(self) -> Result<TensorType, Usage> {
        match self {
            Stored::F32 => Ok(TensorType::F32),
            Stored::F16 => Ok(TensorType::F16),
            Stored::Bf16 => Ok(TensorType::BF16),
            Stored::Q8 => Ok(TensorType::Q8_0),
            Stored::Q4 => Ok(TensorType::Q4_0),
            Stored::Fp8 => {
                Err(Usage("a GGUF file is written in f32, f16, bf16, q8_0 or q4_0; give --format hf for fp8".into()))
            }
        }
    }

    fn in_folder(self) -> Result<Dtype, Usage> {
        match self {
            Stored::F32 => Ok(Dtype::F32),
            Stored::F16 => Ok(Dtype::F16),
            Stored::Bf16 => Ok(Dtype::BF16),
            Stored::Fp8 => Ok(Dtype::F8_E4M3),
            Stored::Q8 | Stored::Q4 => Err(Usage(
                "a Hugging Face folder is written in f32, f16, bf16 or fp8; give --format gguf for q8_0 and q4_0"
                    .into(),
            )),
        }
    }
}

/// Kind of files and type of numbers, where they fit.
enum As {
    Folder(Dtype),
    Gguf(TensorType),
}

#[derive(Serialize)]
struct Answer {
    out: PathBuf,
    bytes: u64,
    files: usize,
}

/// Converts.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let ends_in_gguf = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let format = args.format.unwrap_or(if ends_in_gguf { Format::Gguf } else { Format::Hf });
    let stored = match format {
        Format::Hf => As::Folder(args.dtype.in_folder()?),
        Format::Gguf => As::Gguf(args.dtype.in_gguf()?),
    };
    anyhow::ensure!(!args.out.exists(), "{} exists already: give another --out", args.out.display());
    let from = super::train::checkpoint_of(&args.model)?;
    let help = || format!("`wudao inspect {}` says what is there", args.model.display());
    let source = Source::open(&from).help(help())?;
    let tokenizer = tokenizer(&from).help(help())?;
    let template = template(&from)?;

    let parent = args.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    // In the folder of the result, so that the last step is a rename; removed if anything fails.
    let scratch = tempfile::Builder::new()
        .prefix(".wudao-convert-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
    let whole = scratch.path().join("whole");
    let written = match stored {
        As::Folder(dtype) => {
            fs::create_dir(&whole).with_context(|| format!("cannot make {}", whole.display()))?;
            folder(&source, &tokenizer, template.as_deref(), &whole, dtype, args.max_shard_gb << 30)?
        }
        As::Gguf(dtype) => {
            let fields = wudao_infer::gguf::fields(&tokenizer, source.config(), template)?;
            vec![gguf::write(&whole, &source, dtype, &fields)?]
        }
    };
    if format == Format::Hf {
        sync(&whole)?;
    }
    fs::rename(&whole, &args.out).with_context(|| format!("cannot rename the result to {}", args.out.display()))?;
    sync(parent)?;
    let total = written.iter().map(|file| file.bytes).sum();
    if args.json {
        return cx.printer.json(&Answer { out: args.out, bytes: total, files: written.len() });
    }
    cx.printer.status("Wrote", format!("{} ({})", args.out.display(), bytes(total)));
    Ok(())
}

/// The template of a folder that has it in a file of its own.
fn template(folder: &Path) -> anyhow::Result<Option<String>> {
    let path = folder.join(CHAT_TEMPLATE);
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?))
}

fn folder(
    source: &Source,
    tokenizer: &Tokenizer,
    template: Option<&str>,
    dir: &Path,
    dtype: Dtype,
    max_shard_bytes: u64,
) -> anyhow::Result<Vec<Written>> {
    let mut written = weights::copy(source, dir, dtype, max_shard_bytes)?;
    tokenizer.save(dir)?;
    if let Some(template) = template {
        written.push(weights::write_file(&dir.join(CHAT_TEMPLATE), template.as_bytes())?);
    }
    Ok(written)
}

/// Brings a folder's list of names to the disk.
fn sync(folder: &Path) -> anyhow::Result<()> {
    // Windows has no such call, and needs none.
    if cfg!(unix) {
        let sync = || fs::File::open(folder)?.sync_all();
        sync().with_context(|| format!("cannot bring {} to the disk", folder.display()))?;
    }
    Ok(())
}
