//! `wudao inspect`: what a checkpoint, a run, a data set, a tokenizer or a weight file holds, and whether it is intact.
//!
//! What a path is, is told by what lies there: `manifest.json` makes a data set, `checkpoints/` a run, `config.json` a
//! checkpoint, `tokenizer.json` a tokenizer; a GGUF file is a checkpoint too.

use super::Context;
use crate::error::Advice;
use crate::printer::{bytes, columns, grouped, short};
use crate::settings::SettingsArgs;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use wudao_data::manifest::{MANIFEST_FILE, TOKENIZER_FILE};
use wudao_data::shard::Summary;
use wudao_data::tokenizer::{Tokenizer, TokenizerSummary};
use wudao_infer::checkpoint::tokenizer as tokenizer_of;
use wudao_model::counts::{Counts, Parts};
use wudao_model::gguf::{self, is_gguf};
use wudao_model::weights::{self, TensorInfo};
use wudao_model::{Config, MoeConfig};
use wudao_train::checkpoint::{self, CheckpointError, State};

/// Arguments of `wudao inspect`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao inspect runs/quickstart\n  wudao inspect data --json\n  \
    wudao inspect --preset small --set train.dtype=bf16")]
pub struct Args {
    /// A checkpoint, run, data set or tokenizer folder, a tokenizer.json, a .gguf or a .safetensors file. Without it, a run before
    /// it starts: its size, its memory, and what each way of recomputation costs.
    #[arg(value_name = "PATH", required_unless_present_any = ["config", "preset", "set"])]
    path: Option<PathBuf>,
    /// Do not read everything to compare checksums.
    #[arg(long)]
    no_verify: bool,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Shows what is at the path.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let Some(path) = &args.path else { return super::plan::run(&args.settings, args.json, cx) };
    let shown = Shown::read(path, !args.no_verify)?;
    if args.json {
        cx.printer.json(&shown.json(path)?)?;
    } else {
        for (number, (heading, body)) in shown.text(path).into_iter().enumerate() {
            if number > 0 {
                cx.printer.answer("\n")?;
            }
            cx.printer.heading(heading)?;
            cx.printer.answer(&body)?;
        }
    }
    match &shown {
        Shown::Run(run) => run.intact(),
        _ => Ok(()),
    }
}

enum Found {
    Data,
    Run,
    Checkpoint,
    Tokenizer,
    Weights,
}

type Sections = Vec<(String, String)>;

impl Found {
    fn at(path: &Path) -> anyhow::Result<Found> {
        let has = |name: &str| path.join(name).exists();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !path.exists() {
            anyhow::bail!("there is nothing at {}", path.display());
        }
        Ok(match path.is_dir() {
            true if has(MANIFEST_FILE) => Found::Data,
            true if has(checkpoint::CHECKPOINTS) => Found::Run,
            true if has(weights::CONFIG) => Found::Checkpoint,
            true if has(TOKENIZER_FILE) => Found::Tokenizer,
            false if is_gguf(path) => Found::Checkpoint,
            false if extension == "safetensors" => Found::Weights,
            false if extension == "json" => Found::Tokenizer,
            _ => {
                let what = anyhow::anyhow!("{} is nothing that wudao knows", path.display());
                return Err(what).help(
                    "give a folder with a manifest.json (data set), checkpoints/ (run), config.json (checkpoint) or \
                     tokenizer.json, or a tokenizer.json, .gguf or .safetensors file",
                );
            }
        })
    }
}

/// What was found.
enum Shown {
    Data(Summary),
    Run(Box<Run>),
    Checkpoint(Box<Checkpoint>),
    Tokenizer(TokenizerSummary),
    Weights(Vec<TensorInfo>),
}

impl Shown {
    fn read(path: &Path, verify: bool) -> anyhow::Result<Shown> {
        Ok(match Found::at(path)? {
            Found::Data => Shown::Data(Summary::read(path, verify)?),
            Found::Run => Shown::Run(Box::new(Run::read(path, verify)?)),
            Found::Checkpoint => Shown::Checkpoint(Checkpoint::read(path, verify)?.into()),
            Found::Tokenizer => Shown::Tokenizer(Tokenizer::load(path)?.summary()),
            Found::Weights => Shown::Weights(weights::tensors(path)?),
        })
    }

    fn json(&self, path: &Path) -> anyhow::Result<Value> {
        match self {
            Shown::Data(summary) => tagged("data", path, summary),
            Shown::Run(run) => tagged("run", path, run),
            Shown::Checkpoint(checkpoint) => tagged("checkpoint", path, checkpoint),
            Shown::Tokenizer(summary) => tagged("tokenizer", path, summary),
            Shown::Weights(rows) => {
                let row =
                    |t: &TensorInfo| json!({ "name": t.name, "dtype": t.dtype, "shape": t.shape, "bytes": t.bytes });
                tagged("weights", path, &json!({ "tensors": rows.iter().map(row).collect::<Vec<_>>() }))
            }
        }
    }

    fn text(&self, path: &Path) -> Sections {
        match self {
            Shown::Data(summary) => data(summary),
            Shown::Run(run) => run.text(),
            Shown::Checkpoint(checkpoint) => checkpoint.text(),
            Shown::Tokenizer(summary) => vec![tokenizer(summary)],
            Shown::Weights(rows) => vec![(path.display().to_string(), tensors(rows))],
        }
    }
}

/// The fields of a value after what it is and where.
fn tagged(kind: &str, path: &Path, value: &impl Serialize) -> anyhow::Result<Value> {
    let mut object = serde_json::Map::from_iter([
        ("kind".to_owned(), kind.into()),
        ("path".to_owned(), path.display().to_string().into()),
    ]);
    if let Value::Object(fields) = serde_json::to_value(value)? {
        object.extend(fields);
    }
    Ok(object.into())
}

/// `name  value` rows.
fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

fn checked(verified: Option<bool>) -> String {
    match verified {
        Some(true) => "all right".into(),
        Some(false) => "DAMAGED".into(),
        None => "not compared".into(),
    }
}

/// A model folder.
#[derive(Serialize)]
struct Checkpoint {
    config: Config,
    /// The training step, for a checkpoint of ours.
    step: Option<u64>,
    parameters: Parameters,
    tensors: usize,
    /// Bytes of the weights by type.
    dtypes: BTreeMap<String, u64>,
    files: Vec<File>,
    tokenizer: Option<TokenizerSummary>,
    /// Whether every checksum was right; `null` if there are none or they were not compared.
    verified: Option<bool>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Serialize)]
struct Parameters {
    total: u64,
    active: u64,
    parts: BTreeMap<&'static str, Share>,
}

#[derive(Serialize)]
struct Share {
    total: u64,
    active: u64,
}

#[derive(Serialize)]
struct File {
    name: String,
    bytes: u64,
}

impl Parameters {
    fn of(config: &Config) -> Parameters {
        let Counts { params, active, .. } = Counts::of(config);
        let share = |((name, total), (_, active)): (_, (_, u64))| (name, Share { total, active });
        let parts = Parts::named(&params).into_iter().zip(Parts::named(&active)).map(share).collect();
        Parameters { total: params.total(), active: active.total(), parts }
    }
}

impl Checkpoint {
    fn read(dir: &Path, verify: bool) -> anyhow::Result<Checkpoint> {
        let ours = dir.join(checkpoint::CHECKSUMS).exists();
        let state = if ours && verify { Some(checkpoint::verify(dir)?) } else { None };
        Checkpoint::with(dir, state)
    }

    /// `state` if every checksum was compared and right.
    fn with(dir: &Path, state: Option<State>) -> anyhow::Result<Checkpoint> {
        let config = weights::read_config(dir)?;
        let all: Vec<TensorInfo> = weights::tensors(dir)?;
        let mut dtypes = BTreeMap::new();
        for tensor in &all {
            *dtypes.entry(tensor.dtype.clone()).or_insert(0) += tensor.bytes;
        }
        let has_tokenizer = is_gguf(dir) || dir.join(TOKENIZER_FILE).exists();
        let tokenizer = if has_tokenizer { Some(tokenizer_of(dir)?.summary()) } else { None };
        let parameters = Parameters::of(&config);
        let verified = state.is_some().then_some(true);
        let step = state.map(|state| state.step);
        let (tensors, files, path) = (all.len(), files(dir)?, dir.to_owned());
        Ok(Checkpoint { config, step, parameters, tensors, dtypes, files, tokenizer, verified, path })
    }

    fn text(&self) -> Sections {
        let c = &self.config;
        let mut rows = vec![("family", format!("{:?}", c.family))];
        rows.extend(self.step.map(|step| ("step", grouped(step))));
        rows.extend([
            ("layers", c.num_hidden_layers.to_string()),
            ("width", c.hidden_size.to_string()),
            ("heads", heads(c)),
            ("vocabulary", grouped(c.vocab_size as u64)),
            ("context", format!("{} tokens", grouped(c.max_position_embeddings as u64))),
        ]);
        if let Some(m) = &c.moe {
            let MoeConfig { num_experts, num_experts_per_tok, n_shared_experts, moe_intermediate_size, .. } = m;
            let shared = if *n_shared_experts > 0 { format!(" and {n_shared_experts} shared") } else { String::new() };
            let text = format!("{num_experts_per_tok} of {num_experts}{shared}, each {moe_intermediate_size} wide");
            rows.push(("experts", text));
        }
        let types = self.dtypes.iter().map(|(dtype, n)| format!("{} {dtype}", bytes(*n)));
        rows.push(("weights", format!("{} tensors, {}", self.tensors, types.collect::<Vec<_>>().join(", "))));
        rows.push(("checksums", checked(self.verified)));
        let Parameters { total, active, parts } = &self.parameters;
        let used = parts.iter().filter(|(_, share)| share.total > 0);
        let mut table: Vec<Vec<String>> =
            used.map(|(name, share)| vec![name.to_string(), grouped(share.total), grouped(share.active)]).collect();
        table.push(vec!["total".into(), grouped(*total), grouped(*active)]);
        let mut sections = vec![
            (format!("Checkpoint {}", self.path.display()), facts(&rows)),
            ("Parameters".into(), columns(&["part", "all", "active for a token"], &table)),
            ("Files".into(), file_table(&self.files)),
        ];
        sections.extend(self.tokenizer.as_ref().map(tokenizer));
        sections
    }
}

fn heads(c: &Config) -> String {
    let (heads, width) = (c.num_attention_heads, c.head_dim);
    match &c.mla {
        Some(m) => {
            format!("{heads} of {width}, keys and values from {} and {} numbers", m.kv_lora_rank, m.qk_rope_head_dim)
        }
        None => format!("{heads} of {width}, {} for keys and values", c.num_key_value_heads),
    }
}

/// A folder of a training run.
#[derive(Serialize)]
struct Run {
    /// Its settings, as it began.
    settings: Option<Value>,
    checkpoints: Vec<Saved>,
    /// Whether every checksum was right; `null` if they were not compared.
    verified: Option<bool>,
    /// What a resumed run would begin from.
    newest: Option<PathBuf>,
    model: Option<Checkpoint>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Serialize)]
struct Saved {
    name: String,
    bytes: u64,
    /// Whether an earlier `--resume` found it damaged and renamed it.
    set_aside: bool,
    /// What is wrong with it.
    fault: Option<String>,
}

impl Run {
    fn read(dir: &Path, verify: bool) -> anyhow::Result<Run> {
        let mut checkpoints = Vec::new();
        let folder = dir.join(checkpoint::CHECKPOINTS);
        let mut good = None;
        for file in folders(&folder)? {
            let bytes = files(&file)?.iter().map(|file| file.bytes).sum();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let set_aside = !name.starts_with("step-");
            let fault = if set_aside || !verify {
                good = if set_aside { good } else { Some((file, None)) };
                None
            } else {
                match checkpoint::verify(&file) {
                    Ok(state) => {
                        good = Some((file, Some(state)));
                        None
                    }
                    Err(CheckpointError::Broken(broken)) => Some(broken.reason),
                    Err(error) => Some(wudao_train::error::chain(&error)),
                }
            };
            checkpoints.push(Saved { name, bytes, set_aside, fault });
        }
        let newest = good.as_ref().map(|(dir, _)| dir.clone());
        let model = good.map(|(dir, state)| Checkpoint::with(&dir, state)).transpose()?;
        let settings = std::fs::read_to_string(dir.join(super::train::RUN_FILE)).ok();
        let settings = settings.and_then(|text| toml::from_str(&text).ok());
        let verified = verify.then_some(checkpoints.iter().all(|saved| saved.fault.is_none()));
        Ok(Run { settings, checkpoints, verified, newest, model, path: dir.to_owned() })
    }

    /// Fails if a checkpoint that a resumed run could begin from is damaged.
    fn intact(&self) -> anyhow::Result<()> {
        let damaged: Vec<&str> =
            self.checkpoints.iter().filter(|saved| saved.fault.is_some()).map(|saved| saved.name.as_str()).collect();
        if damaged.is_empty() {
            return Ok(());
        }
        let then = match &self.newest {
            Some(path) => format!("`wudao train --resume` goes on from {}", path.display()),
            None => "there is none to go on from".to_owned(),
        };
        Err(anyhow::anyhow!("{}: damaged: {}", self.path.display(), damaged.join(", "))).help(then)
    }

    fn text(&self) -> Sections {
        let rows = self.checkpoints.iter().map(|saved| {
            let state = match &saved.fault {
                Some(fault) => format!("DAMAGED: {fault}"),
                None if saved.set_aside => "set aside".to_owned(),
                None if self.verified.is_some() => "all right".to_owned(),
                None => "not compared".to_owned(),
            };
            vec![saved.name.clone(), bytes(saved.bytes), state]
        });
        let table = columns(&["checkpoint", "size", "state"], &rows.collect::<Vec<_>>());
        let mut sections = vec![(format!("Run {}", self.path.display()), table)];
        sections.extend(self.model.iter().flat_map(|model| model.text()));
        sections
    }
}

fn data(summary: &Summary) -> Sections {
    let splits = summary.splits.iter().flat_map(|(split, s)| {
        let row = |name: String, c: &wudao_data::manifest::Counts, state: String| {
            vec![name, grouped(c.documents), bytes(c.bytes), short(c.tokens as f64), state]
        };
        let whole = row(split.to_string(), &s.counts, checked(s.verified));
        let languages = s.languages.iter().map(move |(lang, counts)| row(format!("  {lang}"), counts, String::new()));
        std::iter::once(whole).chain(languages)
    });
    let header = ["part", "documents", "text", "tokens", "checksums"];
    let splits = columns(&header, &splits.collect::<Vec<_>>());
    let sources = summary.sources.iter().flat_map(|source| {
        source.languages.iter().map(move |(lang, counts)| {
            let weight = format!("{}", source.weight);
            let tokens = short(counts.tokens as f64);
            vec![source.name.clone(), lang.to_string(), grouped(counts.documents), bytes(counts.bytes), tokens, weight]
        })
    });
    let header = ["source", "language", "documents", "text", "tokens", "weight"];
    let sources = columns(&header, &sources.collect::<Vec<_>>());
    let facts = facts(&[
        ("made by", summary.created_by.clone()),
        (
            "tokenizer",
            format!(
                "{} ids, sha256 {}…",
                grouped(summary.tokenizer.vocab_size.into()),
                &summary.tokenizer.sha256[..16]
            ),
        ),
    ]);
    vec![(format!("Data set {}", summary.path.display()), facts), ("Parts".into(), splits), ("Sources".into(), sources)]
}

fn tokenizer(summary: &TokenizerSummary) -> (String, String) {
    let special: Vec<&str> = summary.special.values().map(String::as_str).take(8).collect();
    let more = summary.special.len().saturating_sub(special.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let han = summary.han_tokens.iter().map(|(length, n)| format!("{} of {length}", grouped(*n)));
    let text = facts(&[
        ("ids", grouped(summary.vocab_size as u64)),
        ("sha256", summary.sha256.clone()),
        ("special", special.join(" ") + &more),
        ("end of text", summary.end_of_text.map_or("unknown".into(), |id| id.to_string())),
        ("Han tokens", han.collect::<Vec<_>>().join(", ") + " characters"),
        ("longest token", bytes(summary.longest_token as u64)),
        ("encoder", if summary.fast { "own (fast)" } else { "tokenizers crate (slow)" }.into()),
    ]);
    ("Tokenizer".into(), text)
}

fn tensors(rows: &[TensorInfo]) -> String {
    let rows = rows.iter().map(|t| vec![t.name.clone(), t.dtype.clone(), format!("{:?}", t.shape), bytes(t.bytes)]);
    columns(&["tensor", "type", "shape", "size"], &rows.collect::<Vec<_>>())
}

fn file_table(files: &[File]) -> String {
    let rows = files.iter().map(|file| vec![file.name.clone(), bytes(file.bytes)]);
    columns(&["file", "size"], &rows.collect::<Vec<_>>())
}

/// The plain files of a folder by name, or a model's one or several GGUF files.
fn files(dir: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    if is_gguf(dir) {
        for path in gguf::File::open(dir)?.paths() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push(File { name, bytes: path.metadata()?.len() });
        }
        return Ok(files);
    }
    for entry in entries(dir)? {
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            files.push(File { name: entry.file_name().to_string_lossy().into_owned(), bytes: metadata.len() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The folders in a folder by name, hidden and temporary ones left out.
fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let visible = |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
    let mut folders: Vec<PathBuf> =
        entries(dir)?.into_iter().filter(visible).map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn entries(dir: &Path) -> anyhow::Result<Vec<std::fs::DirEntry>> {
    use anyhow::Context as _;
    let list = || std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>();
    list().with_context(|| format!("cannot list {}", dir.display()))
}
