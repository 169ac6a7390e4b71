//! A run's folder: `run.json` up to the first zero byte, then `metrics.jsonl`. A page comes out whatever is in them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_train::metrics::{read_run, report};

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let mut parts = data.splitn(2, |&byte| byte == 0);
    for name in ["run.json", "metrics.jsonl"] {
        std::fs::write(folder.path().join(name), parts.next().unwrap_or_default()).expect("room");
    }
    let _ = read_run(folder.path());
    let page = std::fs::read_to_string(report(folder.path()).expect("a page")).expect("text");
    assert!(page.ends_with("</html>\n"), "an unfinished page");
});
