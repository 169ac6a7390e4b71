//! `wudao serve`: models behind HTTP.
//!
//! What is said goes to standard error; standard output has the address alone, so that a program that starts a server on a free
//! port (`--port 0`) can read where it is.

use super::engine::{self, GuessArgs};
use super::{CacheDtype, Context, WeightArgs};
use crate::error::{Advice, Usage};
use crate::printer::bytes;
use crate::signals;
use anyhow::Context as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wudao_device::DType;
use wudao_infer::engine::{EngineOptions, Status};
use wudao_model::WeightOptions;
use wudao_serve::{ApiKeys, Options, Served, Tls};

/// Arguments of `wudao serve`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao serve runs/quickstart\n  \
    wudao serve small=runs/a large=runs/b --dtype bf16 --host 0.0.0.0 --api-keys keys.txt")]
pub struct Args {
    /// Models: checkpoints, run folders (their newest checkpoints), or GGUF files. NAME=PATH gives one a name; requests that name none mean
    /// the first.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    weights: WeightArgs,
    /// Name or address to listen at; 0.0.0.0 is every address of the machine.
    #[arg(long, default_value = "127.0.0.1", help_heading = "Network")]
    host: String,
    /// Port to listen at; 0 takes a free one.
    #[arg(long, default_value_t = 8000, help_heading = "Network")]
    port: u16,
    /// Certificate in PEM, with those that vouch for it: encrypts connections.
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Network")]
    tls_cert: Option<PathBuf>,
    /// Its private key in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Network")]
    tls_key: Option<PathBuf>,
    /// Let pages of this origin ask, such as https://example.org; * is all. May be given several times.
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    cors_origin: Vec<String>,
    /// Answer to this name too, such as that of a proxy in front. Without keys, a server on this machine alone answers to
    /// localhost and to addresses only, or any page in a browser could ask. May be given several times.
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    name: Vec<String>,
    /// Answer only who has a key: a file of their SHA-256 hashes, one a line (`printf %s KEY | sha256sum`).
    #[arg(long, value_name = "FILE", help_heading = "Limits")]
    api_keys: Option<PathBuf>,
    /// Most requests a minute of one key, or without keys of one address.
    #[arg(long, value_name = "N", help_heading = "Limits")]
    rate: Option<NonZeroU32>,
    /// Most requests at once; more are told to come back.
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Limits")]
    max_requests: NonZeroUsize,
    /// Most open connections; more wait to be accepted.
    #[arg(long, value_name = "N", default_value = "2048", help_heading = "Limits")]
    max_connections: NonZeroUsize,
    /// Most tokens that a request may ask for [default: as many as the context holds].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_tokens: Option<NonZeroUsize>,
    /// Most completions of one request, prompts times answers.
    #[arg(long, value_name = "N", default_value = "128", help_heading = "Limits")]
    max_choices: NonZeroUsize,
    /// Most KiB of a request's body.
    #[arg(long, value_name = "KIB", default_value = "4096", help_heading = "Limits")]
    max_body: NonZeroUsize,
    /// Seconds that a request's head may take, and that a connection may idle.
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = "Limits")]
    header_timeout: NonZeroU32,
    /// Seconds that a request's body may take.
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = "Limits")]
    body_timeout: NonZeroU32,
    /// Seconds that a reader may take nothing of what is written to it.
    #[arg(long, value_name = "SECONDS", default_value = "60", help_heading = "Limits")]
    write_timeout: NonZeroU32,
    /// Seconds that running requests have to end when the server is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Limits")]
    grace: u32,
    /// Most tokens of a prompt and its completion [default: as many as the model and the cache take].
    #[arg(long, value_name = "N", help_heading = "Engine")]
    context: Option<NonZeroUsize>,
    /// Most completions that are made at once.
    #[arg(long, value_name = "N", default_value = "16", help_heading = "Engine")]
    batch: NonZeroUsize,
    /// Most completions that wait for that.
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Engine")]
    queue: NonZeroUsize,
    /// MiB for the keys and values of all completions of a model.
    #[arg(long, value_name = "MIB", default_value = "1024", help_heading = "Engine")]
    cache: NonZeroUsize,
    /// Bits of keys and values in memory [default: those of --dtype].
    #[arg(long, value_enum, help_heading = "Engine")]
    cache_dtype: Option<CacheDtype>,
    /// Most tokens of prompts that one step reads.
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Engine")]
    prefill_chunk: NonZeroUsize,
    #[command(flatten)]
    guess: GuessArgs,
    /// Forget prompts: do not keep what was read of one for others that begin alike.
    #[arg(long, help_heading = "Engine")]
    no_prefix_cache: bool,
}

/// Serves until it is told to stop.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let options = options(&args)?;
    let engine = engine_options(&args);
    let stop = signals::stop_flag()?;
    let weights = args.weights.options()?;
    if args.guess.draft.is_some() && args.models.len() > 1 {
        return Err(Usage("--draft guesses for one model: serve that one alone".into()).into());
    }
    let models = args.models.iter().map(|model| open(cx, model, &args.guess, &weights, args.weights.memory, &engine));
    let models = models.collect::<anyhow::Result<Vec<_>>>()?;
    for model in &models {
        let chat = if model.template.is_some() { "" } else { ", without a chat template: it can only continue texts" };
        let Status { cache_total: room, cache_token_bytes, .. } = model.engine.status();
        let (context, each) = (model.engine.context(), bytes(cache_token_bytes as u64));
        let text = format!("{}: {context} tokens of context, room for {room} of {each}{chat}", model.name);
        cx.printer.status("Model", text);
    }
    if options.api_keys.is_none() && !options.is_local() {
        cx.printer.warn("everybody who reaches this address may ask: --api-keys FILE asks for keys");
    }
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    wudao_serve::run(models, options, &stop, |address| {
        let url = format!("{scheme}://{address}");
        cx.printer.status("Serving", format!("{url} (the page) and {url}/v1 (OpenAI's interface)"));
        // Whoever does not read it does not need it.
        let _ = cx.printer.line(url);
    })
    .help("wudao help serve")?;
    cx.printer.status("Stopped", "all requests have ended");
    Ok(())
}

/// Opens one model, however it is kept.
pub fn open(
    cx: &Context,
    model: &str,
    guess: &GuessArgs,
    weights: &WeightOptions,
    memory: Option<usize>,
    options: &EngineOptions,
) -> anyhow::Result<Served> {
    let (name, path) = match model.split_once('=') {
        Some((name, path)) if !Path::new(model).exists() => (Some(name), Path::new(path)),
        _ => (None, Path::new(model)),
    };
    let name = match name {
        Some("") => return Err(Usage(format!("\"{model}\": a model's name cannot be empty")).into()),
        Some(name) => name.to_owned(),
        None => default_name(path),
    };
    let dir = super::train::checkpoint_of(path)?;
    let engine = engine::start(cx, path, guess, weights, memory, options.clone())
        .with_context(|| format!("cannot serve {}", path.display()))?;
    Ok(Served::new(name, engine).with_folder(&dir)?)
}

/// The last part of a path that says something.
fn default_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

fn options(args: &Args) -> anyhow::Result<Options> {
    let seconds = |n: NonZeroU32| Duration::from_secs(n.get().into());
    let tls = args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| Tls { cert, key });
    Ok(Options {
        host: args.host.clone(),
        port: args.port,
        api_keys: args.api_keys.as_deref().map(ApiKeys::read).transpose()?,
        tls,
        cors: args.cors_origin.clone(),
        names: args.name.clone(),
        max_body: args.max_body.get().saturating_mul(1024),
        max_tokens: args.max_tokens.map_or(0, NonZeroUsize::get),
        max_choices: args.max_choices.get(),
        max_connections: args.max_connections.get(),
        max_requests: args.max_requests.get(),
        rate: args.rate,
        header_timeout: seconds(args.header_timeout),
        body_timeout: seconds(args.body_timeout),
        write_timeout: seconds(args.write_timeout),
        grace: Duration::from_secs(args.grace.into()),
    })
}

fn engine_options(args: &Args) -> EngineOptions {
    EngineOptions {
        context: args.context.map_or(0, NonZeroUsize::get),
        batch: args.batch.get(),
        queue: args.queue.get(),
        cache_bytes: args.cache.get().saturating_mul(1 << 20),
        cache_dtype: args.cache_dtype.map(DType::from),
        prefill_chunk: args.prefill_chunk.get(),
        prefix_cache: !args.no_prefix_cache,
        ..EngineOptions::default()
    }
}
