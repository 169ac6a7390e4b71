//! What a person at a terminal sees: a pseudo-terminal stands in for one.
#![cfg(unix)]

mod common;

use common::{data, text, wudao};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A program at a terminal of 100 × 30.
struct Seat {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Seat {
    fn new(command: &mut Command) -> Seat {
        let (mut master, mut slave) = (0, 0);
        let size = libc::winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointers are to live values of the right types, and null where the call allows it.
        let made = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                (&raw const size).cast_mut(),
            )
        };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the call above opened both, and nobody else owns them.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.env("TERM", "xterm-256color").spawn().unwrap();
        // The command holds the terminal's other end; without it, reading ends when the child does.
        *command = Command::new("true");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, copy) = (master.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                copy.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Seat { child, keyboard: master, screen }
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str) {
        let start = Instant::now();
        while !self.seen().contains(what) {
            assert!(start.elapsed() < Duration::from_secs(120), "\"{what}\" never came:\n{}", self.seen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The exit status and everything that was on the screen.
    fn leave(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        // What was written last may still be on its way.
        std::thread::sleep(Duration::from_millis(200));
        (code, self.seen())
    }
}

fn train(out: &Path, steps: &str) -> Command {
    let mut command = wudao();
    command.args(["train", "--preset", "tiny", "--data", text(data()), "--out", text(out), "--steps", steps]);
    command
}

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

#[test]
fn the_full_view_shows_the_run_and_q_ends_it_well() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut seat = Seat::new(train(&out, "100000").arg("--tui"));
    seat.wait_for("expert load");
    seat.wait_for("tokens/s");
    seat.keyboard.write_all(b"q").unwrap();
    let (code, seen) = seat.leave();
    assert_eq!(code, Some(0), "{seen}");
    let after = seen.rsplit_once(LEAVE).expect("the screen is given back").1;
    assert!(seen.contains(ENTER) && after.contains("Go on with"), "{after:?}");
    assert!(out.join("checkpoints").read_dir().unwrap().next().is_some(), "it saved");
}

#[test]
fn a_failure_gives_the_screen_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let (code, _) = Seat::new(&mut train(&out, "2")).leave();
    assert_eq!(code, Some(0));
    let (code, seen) = Seat::new(train(&out, "2").arg("--tui")).leave();
    assert_eq!(code, Some(1));
    let (before, after) = seen.rsplit_once(LEAVE).expect("the screen is given back");
    assert!(before.contains(ENTER) && after.contains("--resume"), "{seen:?}");
}

#[test]
fn the_live_line_changes_in_place_and_has_colour_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (code, seen) = Seat::new(&mut train(&dir.path().join("colour"), "20")).leave();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("tokens/s") && seen.contains("of peak") && seen.contains('\r'), "{seen}");
    assert!(seen.contains("\x1b[1m\x1b[32m") || seen.contains("\x1b[1;32m") || seen.contains("[32m"), "{seen:?}");
    let (code, seen) = Seat::new(train(&dir.path().join("plain"), "20").env("NO_COLOR", "1")).leave();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("tokens/s") && !seen.contains("[32m"), "{seen:?}");
}

#[test]
fn control_c_ends_a_run_well() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let seat = Seat::new(&mut train(&out, "100000"));
    seat.wait_for("tokens/s");
    // SAFETY: the child has not been waited for, so the number is still its own.
    unsafe { libc::kill(seat.child.id() as libc::pid_t, libc::SIGINT) };
    let (code, seen) = seat.leave();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("Stopped") && seen.contains("Go on with"), "{seen}");
}

#[test]
fn a_second_interrupt_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // One step takes long enough for two signals.
    let mut command = train(&out, "100000");
    let seat = Seat::new(command.args(["--batch-size", "4096", "--set", "train.micro_batch_size=4096"]));
    seat.wait_for("Training");
    for _ in 0..2 {
        // SAFETY: as above.
        unsafe { libc::kill(seat.child.id() as libc::pid_t, libc::SIGINT) };
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seat.leave().0, Some(130));
}
