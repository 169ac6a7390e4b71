//! `report.html`: a run at a glance, on one page that needs nothing but itself.
//!
//! The page is drawn here, in Rust: curves as SVG, expert load as small images. Its script adds the switch between
//! English and Chinese and the values under the pointer; without it, on paper or in a mail, all is there to be seen. It
//! makes no request, and a content security policy keeps it from ever making one.
//!
//! It is made from the files of the run's folder and tolerates what they lack, so that an unfinished run, a broken
//! `run.json` or one of another version gets a page too. [`history`] reads the record, [`curves`] decides what is drawn,
//! [`chart`] and [`heat`] draw it, and [`page`] puts it together.

mod axis;
mod chart;
mod curve;
mod curves;
mod heat;
mod history;
mod html;
mod page;

use super::{METRICS, REPORT, RUN, jsonl};
use history::History;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the report: {}", path.display())]
pub struct ReportError {
    /// The file that could not be read or written.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Makes `report.html` in the folder of a run from what is recorded there so far, and returns its path. The old page is
/// replaced all at once.
pub fn report(out: &Path) -> Result<PathBuf, ReportError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        |source| ReportError { path, source }
    };
    let record = out.join(METRICS);
    let history = History::read(&record).map_err(at(&record))?;
    let run = std::fs::read(out.join(RUN)).ok();
    let mut run = run.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
    run.sort_all_objects();
    let absolute = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = out.join(REPORT);
    jsonl::replace(&path, page::page(&name, &history, &run).as_bytes()).map_err(at(&path))?;
    Ok(path)
}

#[cfg(test)]
mod tests;
