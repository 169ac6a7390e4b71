//! Killed at random moments, again and again, a run ends with the same bits as one that was left alone.
//!
//! `KILL_ROUNDS` sets how many kills (5 if not set); `cargo xtask kill --rounds 200` is the long version.
#![cfg(unix)]

mod common;

use common::{assert_same_checkpoint, data, ok, text, wudao};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

/// Checkpoints, evaluations and log lines all come often, so that a kill meets each of them.
fn settings(steps: u64) -> Vec<String> {
    let set = ["train.checkpoint_every=2", "train.eval_every=6", "train.eval_tokens=500", "train.seq_len=32"];
    let mut arguments = vec!["--steps".to_owned(), steps.to_string()];
    arguments.extend(set.iter().flat_map(|key| ["--set".to_owned(), (*key).to_owned()]));
    arguments
}

fn start(out: &Path, steps: u64, resume: bool) -> Child {
    let mut command = wudao();
    command.args(["train", "--preset", "tiny", "--data", text(data()), "--out", text(out), "-q"]).args(settings(steps));
    if resume {
        command.arg("--resume");
    }
    command.stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_killed_run_always_ends_with_the_same_bits() {
    let rounds: u64 = std::env::var("KILL_ROUNDS").map_or(5, |text| text.parse().expect("KILL_ROUNDS is a number"));
    // About four steps a round is what a killed run gets done; it need not outlast all the rounds.
    let steps = 40 + 4 * rounds.min(50);
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let begin = Instant::now();
    let ended = common::ended(start(&whole, steps, false).wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    // What a kill may fall into: from before the first step to a few steps after it.
    let span = (begin.elapsed().as_millis() as u64 * 8 / steps).max(50) + 300;

    let (mut random, mut kills, mut runs) = (Random(20_26), 0, 0);
    while kills < rounds {
        runs += 1;
        let mut running = true;
        while running && kills < rounds {
            let mut child = start(&cut, steps, cut.exists());
            let begin = Instant::now();
            let wait = Duration::from_millis(random.below(span));
            while begin.elapsed() < wait && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(random.below(2000)));
            }
            // SIGKILL; a child that has ended by itself is not hurt.
            child.kill().unwrap();
            let ended = common::ended(child.wait_with_output().unwrap());
            match ended.code {
                None => kills += 1,
                Some(0) => running = false,
                Some(code) => panic!("run {runs}, after {kills} kills: exit status {code}\n{}", ended.err),
            }
        }
        if running {
            let settings = settings(steps);
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let base = ["train", "--preset", "tiny", "--data", text(data()), "--out", text(&cut), "--resume"];
            ok(&[&base[..], &settings].concat());
        }
        assert_same_checkpoint(&whole, &cut);
        // Nothing half-written is left behind.
        for entry in std::fs::read_dir(cut.join("checkpoints")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.starts_with("step-"), "{name} was left behind");
        }
        std::fs::remove_dir_all(&cut).unwrap();
        println!("{kills} kills in {runs} runs of {steps} steps, all with the same end");
    }
}
