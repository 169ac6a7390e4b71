//! `wudao tokenizer`: train, encode, decode, compare.

use super::Context;
use super::texts::{self, TextArgs};
use crate::error::Usage;
use crate::printer::{bytes, columns, duration, grouped};
use crate::settings::{self, SettingsArgs, TokenizerSettings};
use anyhow::Context as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;
use wudao_data::document::Lang;
use wudao_data::profile::Profile;
use wudao_data::tokenizer::{self, Comparison, Tokenizer, TrainOptions};
use wudao_infer::checkpoint::tokenizer as load;

/// What to do with tokenizers.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Learn a tokenizer from text.
    Train(TrainArgs),
    /// Turn text into token ids.
    Encode(EncodeArgs),
    /// Turn token ids into text.
    Decode(DecodeArgs),
    /// Count what tokenizers make of the same text, by language.
    Compare(CompareArgs),
}

/// Arguments of `wudao tokenizer train`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao tokenizer train corpus --vocab-size 16000 --out my-tokenizer")]
pub struct TrainArgs {
    /// Files or folders of text; `-` is standard input.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Where to write it: a folder, or a file that ends in .json.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Number of token ids [default: 32000].
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    #[command(flatten)]
    text: TextArgs,
    /// Print what the tokenizer holds as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Arguments of `wudao tokenizer encode`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  wudao tokenizer encode --tokenizer my-tokenizer '你好, world'\n  \
    cat book.txt | wudao tokenizer encode --tokenizer my-tokenizer > ids.txt")]
pub struct EncodeArgs {
    /// A tokenizer.json, a folder that holds one (a tokenizer, checkpoint or data set), or a GGUF file.
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// The text; standard input if not given.
    text: Option<String>,
    /// Take <|im_end|> and its like in the text as the special tokens they name.
    #[arg(long)]
    special: bool,
    /// An array of {id, text}; bytes that are half a character show as U+FFFD.
    #[arg(long)]
    json: bool,
}

/// Arguments of `wudao tokenizer decode`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  wudao tokenizer decode --tokenizer my-tokenizer 1024 77 3051")]
pub struct DecodeArgs {
    /// A tokenizer.json, a folder that holds one, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Token ids; standard input if none are given.
    ids: Vec<u32>,
}

/// Arguments of `wudao tokenizer compare`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  \
    wudao tokenizer compare corpus --tokenizer my-tokenizer --tokenizer other/tokenizer.json")]
pub struct CompareArgs {
    /// Files or folders of text.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// A tokenizer to compare; give it once for each.
    #[arg(long, value_name = "PATH", required = true)]
    tokenizer: Vec<PathBuf>,
    /// Read at most this many bytes of text.
    #[arg(long, value_name = "N", default_value_t = 64_000_000)]
    max_bytes: u64,
    #[command(flatten)]
    text: TextArgs,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Does what is asked.
pub fn run(command: Command, cx: &Context) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => train(args, cx),
        Command::Encode(args) => encode(args, cx),
        Command::Decode(args) => decode(args, cx),
        Command::Compare(args) => compare(args, cx),
    }
}

fn train(args: TrainArgs, cx: &Context) -> anyhow::Result<()> {
    let own = [("tokenizer.vocab_size", "--vocab-size", args.vocab_size.map(|n| n.to_string()))];
    let settings: TokenizerSettings = settings::resolve(&args.settings, &own, &cx.environment)?.section("tokenizer")?;
    let folder = if args.out.extension().is_some_and(|e| e == "json") { args.out.parent() } else { Some(&*args.out) };
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let start = Instant::now();
    let options = TrainOptions { vocab_size: settings.vocab_size, max_bytes: settings.max_bytes };
    // Readers push, the trainer pulls; a short queue between them keeps memory small.
    let (tokenizer, read) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<String>(64);
        let trainer = scope.spawn(move || Tokenizer::train(receiver, &options));
        let mut read = 0;
        let end = texts::each(&args.paths, &args.text, cx, |_, text| {
            read += text.len() as u64;
            sender.send(text).is_ok()
        });
        drop(sender);
        let tokenizer = trainer.join().expect("the trainer does not panic");
        end.map(|()| (tokenizer, read))
    })?;
    let tokenizer = tokenizer?;
    tokenizer.save(&args.out)?;
    let seconds = start.elapsed().as_secs_f64();
    cx.printer.status(
        "Learned",
        format!("{} ids from {} in {}", grouped(tokenizer.vocab_size() as u64), bytes(read), duration(seconds)),
    );
    cx.printer.status("Wrote", args.out.display());
    if args.json {
        cx.printer.json(&tokenizer.summary())?;
    }
    Ok(())
}

fn encode(args: EncodeArgs, cx: &Context) -> anyhow::Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let input = match args.text {
        Some(text) => text.into_bytes(),
        None => stdin()?,
    };
    let ids = match args.special {
        true => tokenizer.encode_with_special(std::str::from_utf8(&input).context("--special needs text in UTF-8")?)?,
        false => tokenizer.encode_bytes(&input)?,
    };
    if args.json {
        let piece = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id).unwrap_or_default()).into_owned();
        let rows: Vec<_> = ids.iter().map(|id| serde_json::json!({ "id": id, "text": piece(id) })).collect();
        return cx.printer.json(&rows);
    }
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(cx.printer.line(words.join(" "))?)
}

fn decode(args: DecodeArgs, cx: &Context) -> anyhow::Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let ids = match args.ids.is_empty() {
        false => args.ids,
        true => {
            let input = stdin()?;
            let words = String::from_utf8_lossy(&input);
            let words = words.split(|c: char| c.is_whitespace() || "[],".contains(c)).filter(|word| !word.is_empty());
            words
                .map(|word| word.parse().map_err(|_| Usage(format!("\"{word}\" in standard input is not a token id"))))
                .collect::<Result<Vec<u32>, _>>()?
        }
    };
    if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
        let what =
            format!("there is no token {id}: {} has ids below {}", args.tokenizer.display(), tokenizer.vocab_size());
        return Err(Usage(what).into());
    }
    // Bytes as they are: what was encoded comes back exactly, text or not.
    Ok(cx.printer.answer_bytes(&tokenizer.decode_bytes(&ids))?)
}

fn compare(args: CompareArgs, cx: &Context) -> anyhow::Result<()> {
    let loaded = args.tokenizer.iter().map(|path| Ok((name(path), load(path)?)));
    let loaded: Vec<(String, Tokenizer)> = loaded.collect::<anyhow::Result<_>>()?;
    let mut texts: Vec<(Lang, String)> = Vec::new();
    let mut read = 0;
    texts::each(&args.paths, &args.text, cx, |_, text| {
        read += text.len() as u64;
        texts.push((language(&text), text));
        read < args.max_bytes
    })?;
    let tokenizers: Vec<_> = loaded.iter().map(|(name, tokenizer)| (name.as_str(), tokenizer)).collect();
    let rows = tokenizer::compare(&tokenizers, texts.iter().map(|(lang, text)| (*lang, text.as_str())))?;
    if args.json {
        return cx.printer.json(&rows);
    }
    Ok(cx.printer.answer(&table(&rows))?)
}

fn table(rows: &[Comparison]) -> String {
    let lines = rows.iter().flat_map(|row| {
        row.languages.iter().map(move |(lang, figures)| {
            vec![
                row.name.clone(),
                grouped(row.vocab_size as u64),
                lang.to_string(),
                grouped(figures.tokens),
                format!("{:.3}", figures.bytes_per_token),
                figures.tokens_per_han.filter(|_| *lang == Lang::Zh).map_or("–".into(), |x| format!("{x:.3}")),
            ]
        })
    });
    let header = ["tokenizer", "ids", "language", "tokens", "bytes a token", "tokens a Han character"];
    columns(&header, &lines.collect::<Vec<_>>())
}

/// The language of a text, as preparation tells it.
pub fn language(text: &str) -> Lang {
    wudao_data::lang::detect(text, &Profile::new(text))
}

fn name(path: &Path) -> String {
    let parent = path.parent().filter(|_| path.ends_with("tokenizer.json")).filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(path).display().to_string()
}

fn stdin() -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
    Ok(input)
}
