//! Kills a preparation at random moments (SIGKILL: no handler, no destructor runs) and requires that the runs after it
//! end with the bytes of one that was never disturbed.
//!
//! The program under the knife is this test binary itself, started again with a folder as its argument.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wudao_data::prepare::{PrepareOptions, REPORT_FILE, Silent, SourceOptions, TokenizerChoice, Tuning, prepare};

const ROUNDS: u32 = 6;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|a| a == "--victim") {
        Some(at) => victim(Path::new(&arguments[at + 1])),
        None => {
            kill_at_random_moments();
            println!("1 passed, 0 failed");
        }
    }
}

fn options(root: &Path, out: &str) -> PrepareOptions {
    let source = SourceOptions { weight: 1.5, ..SourceOptions::new("raw", [root.join("raw")]) };
    let mut options = PrepareOptions::new(vec![source], root.join(out), TokenizerChoice::Train { vocab_size: 400 });
    options.shard_tokens = 20_000;
    options.tuning = Tuning { threads: 2, block_bytes: 4000, segment_seconds: 0.0, ..Tuning::default() };
    options
}

fn victim(root: &Path) {
    prepare(&options(root, "killed"), &mut Silent).expect("the preparation itself must not fail");
}

fn write_corpus(root: &Path) {
    std::fs::create_dir_all(root.join("raw")).unwrap();
    let mut state = 1u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for file in 0..10 {
        let mut lines = String::new();
        for _ in 0..120 {
            let text: String = if random(2) == 0 {
                (0..150).map(|_| char::from_u32(0x4e00 + random(600) as u32).unwrap()).collect()
            } else {
                let words = [
                    "the", "of", "and", "to", "whale", "captain", "silver", "window", "river", "was", "stone", "night",
                ];
                (0..60).map(|_| format!("{}{} ", words[random(12) as usize], ["", "s"][random(2) as usize])).collect()
            };
            lines.push_str(&format!("{{\"text\": {text:?}}}\n"));
        }
        std::fs::write(root.join(format!("raw/{file:02}.jsonl")), lines).unwrap();
    }
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    // The report tells times; the manifest has all else that is in it.
    entries.filter(|p| name(p) != REPORT_FILE).map(|p| (name(&p), std::fs::read(&p).unwrap())).collect()
}

fn kill_at_random_moments() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_corpus(root);
    prepare(&options(root, "whole"), &mut Silent).unwrap();
    let expected = contents(&root.join("whole"));
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--victim").arg(root).stdout(Stdio::null()).spawn().unwrap()
    };
    let began = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = began.elapsed();
    assert_eq!(contents(&root.join("killed")), expected);
    let mut seed = 12345u32;
    for _ in 0..ROUNDS {
        std::fs::remove_dir_all(root.join("killed")).unwrap();
        // Twice in a row, then to the end. A child that is quicker than its killer does not count.
        let mut kills = 0;
        for _ in 0..50 {
            let mut child = start();
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let share = f64::from(seed >> 8) / f64::from(1 << 24);
            std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share));
            let _ = child.kill();
            if child.wait().unwrap().success() {
                std::fs::remove_dir_all(root.join("killed")).unwrap();
                continue;
            }
            kills += 1;
            if kills == 2 {
                break;
            }
        }
        assert_eq!(kills, 2, "the preparation is too quick to be killed");
        assert!(start().wait().unwrap().success());
        let found = contents(&root.join("killed"));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "other bytes after a kill");
    }
}
