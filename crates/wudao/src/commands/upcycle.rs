//! `wudao upcycle`: a dense checkpoint becomes a sparse one that begins with the same answers.

use super::Context;
use super::train::checkpoint_of;
use crate::error::Advice;
use crate::printer::{bytes, grouped};
use anyhow::Context as _;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use wudao_model::weights::{self, Upcycled};
use wudao_model::{Counts, Family, Upcycling};

/// Weights go into one file up to this size.
const MAX_SHARD_BYTES: u64 = 5 << 30;

/// Files of a model's folder that its weights have no part in.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Arguments of `wudao upcycle`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao upcycle models/qwen3-0.6b --out models/sparse --experts 8 --top-k 2\n  \
    wudao upcycle models/llama --out models/fine --experts 8 --top-k 2 --split 4\n  \
    wudao train --from models/sparse --data data --out runs/sparse --steps 1000 --lr 2e-5")]
pub struct Args {
    /// Folder of a dense checkpoint: llama, mistral, qwen2 or qwen3; or of a run, whose newest counts.
    #[arg(value_name = "DENSE")]
    dense: PathBuf,
    /// Folder of the sparse checkpoint, which must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Copies of each feed-forward layer.
    #[arg(long, value_name = "N")]
    experts: usize,
    /// Copies that a token goes to.
    #[arg(long, value_name = "K")]
    top_k: usize,
    /// Cut each copy into this many experts, a power of two: N times as many in all, K times as many for a token.
    #[arg(long, value_name = "M", default_value_t = 1)]
    split: usize,
    /// Sparse family [default: qwen2_moe of a qwen2, qwen3_moe of a qwen3, else mixtral].
    #[arg(long, value_name = "FAMILY", value_parser = ["mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"])]
    family: Option<String>,
    /// Layers that stay dense, by number from 0.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    dense_layers: Vec<usize>,
    /// Standard deviation of the routers' weights.
    #[arg(long, value_name = "STD", default_value_t = 0.02)]
    router_std: f64,
    /// Seed of the routers' weights.
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,
    /// Print what was made as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    from: &'a Path,
    out: &'a Path,
    family: &'static str,
    experts: usize,
    experts_per_token: usize,
    parameters_before: u64,
    parameters: u64,
    active: u64,
    bytes: u64,
}

/// Makes the folder.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let mut dense_layers = args.dense_layers.clone();
    dense_layers.sort_unstable();
    dense_layers.dedup();
    let how = Upcycling {
        copies: args.experts,
        chosen: args.top_k,
        split: args.split,
        family: args.family.as_deref().and_then(Family::of_model_type),
        dense_layers,
        router_std: args.router_std,
        seed: args.seed,
    };
    let from = checkpoint_of(&args.dense)?;
    let Upcycled { dense, sparse, files } = write(&from, &args.out, &how)?;
    let (before, after) = (Counts::of(&dense), Counts::of(&sparse));
    let moe = sparse.moe.as_ref().context("a sparse model")?;
    let answer = Answer {
        from: &from,
        out: &args.out,
        family: sparse.family.model_type(),
        experts: moe.num_experts,
        experts_per_token: moe.num_experts_per_tok,
        parameters_before: before.params.total(),
        parameters: after.params.total(),
        active: after.active.total(),
        bytes: files.iter().map(|file| file.bytes).sum(),
    };
    if args.json {
        return cx.printer.json(&answer);
    }
    let Answer { family, experts, experts_per_token, .. } = answer;
    cx.printer.status("Upcycled", format!("{} ({})", args.out.display(), bytes(answer.bytes)));
    cx.printer.status("Experts", format!("{experts_per_token} of {experts}, {family}"));
    let count = |n| grouped(n);
    let (was, is, active) = (count(answer.parameters_before), count(answer.parameters), count(answer.active));
    cx.printer.status("Parameters", format!("{was} before, {is} now, {active} active for a token"));
    let out = args.out.display();
    cx.printer.say(format!("\nTrain it:  wudao train --from {out} --data DATA --out RUN --lr 2e-5"));
    Ok(())
}

/// Writes beside the folder and lets it appear at once, whole.
fn write(from: &Path, out: &Path, how: &Upcycling) -> anyhow::Result<Upcycled> {
    if out.exists() {
        return Err(anyhow::anyhow!("{} exists already", out.display())).help("name a new folder with --out");
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // Removed when dropped, if something goes wrong on the way.
    let temporary = tempfile::Builder::new().prefix(".upcycle-").tempdir_in(parent);
    let temporary = temporary.with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    let done = weights::upcycle(from, temporary.path(), how, MAX_SHARD_BYTES)?;
    for name in COMPANIONS {
        let file = from.join(name);
        if file.is_file() {
            let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            weights::write_file(&temporary.path().join(name), &content)?;
        }
    }
    let sync = |dir: &Path| fs::File::open(dir).and_then(|dir| dir.sync_all());
    let place = || {
        permissions(temporary.path())?;
        sync(temporary.path())?;
        fs::rename(temporary.path(), out)?;
        sync(parent)
    };
    place().with_context(|| format!("cannot put the folder in its place at {}", out.display()))?;
    Ok(done)
}

/// Those of any new folder: a temporary one is closed to others.
#[cfg(unix)]
fn permissions(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn permissions(_: &Path) -> std::io::Result<()> {
    Ok(())
}
