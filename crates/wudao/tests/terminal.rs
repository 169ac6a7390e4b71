//! What a person at a terminal sees: a pseudo-terminal stands in for one.
#![cfg(unix)]

mod common;

use common::{data, newest_checkpoint, text, trained, wudao};
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

    #[track_caller]
    fn wait_until(&self, enough: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !enough(&self.seen()) {
            assert!(start.elapsed() < Duration::from_secs(120), "it never came:\n{}", self.seen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn interrupt(&self) {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) };
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

#[test]
fn somebody_talks_to_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for (name, bytes) in newest_checkpoint(trained()) {
        let bytes = match name.as_str() {
            // Room for an answer that can be interrupted.
            "config.json" => {
                let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                config["max_position_embeddings"] = 60_000.into();
                config.to_string().into_bytes()
            }
            _ => bytes,
        };
        std::fs::write(model.join(name), bytes).unwrap();
    }
    let mut command = wudao();
    command.args(["chat", text(&model), "--threads", "2", "--max-tokens", "12", "--temperature", "1.5"]);
    command.env("XDG_STATE_HOME", dir.path()).env("HOME", dir.path());
    let mut seat = Seat::new(&mut command);
    // Between two entries the terminal handles keys itself, and its Ctrl-C throws away what was typed: a person sees the
    // prompt, here the start of bracketed paste says that it is there.
    let typed = |seat: &mut Seat, text: &str| {
        seat.wait_until(|seen| seen.rfind("\x1b[?2004h") > seen.rfind("\x1b[?2004l"));
        seat.keyboard.write_all(text.as_bytes()).unwrap();
    };
    seat.wait_for("Ctrl-D leaves");
    // What is pasted is one entry, however many lines it has.
    typed(&mut seat, "\x1b[200~床前\n明月光\x1b[201~\r");
    seat.wait_for("the first after");

    typed(&mut seat, "/sy\t\r");
    seat.wait_for("there is no system message");
    typed(&mut seat, "/nonsense\r");
    seat.wait_for("there is no command /nonsense");
    // Ctrl-C empties the line, and later ends the answer, never the program.
    typed(&mut seat, "half a line\x03");
    seat.wait_for("/exit leaves");
    typed(&mut seat, "/set temperature=0\r");
    seat.wait_for("temperature = 0");
    typed(&mut seat, "/set max_tokens=50000\r");
    seat.wait_for("max_tokens = 50000");
    typed(&mut seat, "go on\r");
    let before = seat.seen().len();
    seat.wait_until(|seen| seen.len() > before + 300);
    seat.interrupt();
    seat.wait_for("; stopped]");
    typed(&mut seat, "/stats\r");
    seat.wait_for("in 2 answers");
    typed(&mut seat, "\x04");
    let (code, seen) = seat.leave();
    assert_eq!(code, Some(0), "{seen}");
    assert!(!seen.contains("panicked"), "{seen}");
    let file =
        if cfg!(target_os = "macos") { "Library/Application Support/wudao/chat-history" } else { "wudao/chat-history" };
    let kept = std::fs::read_to_string(dir.path().join(file)).unwrap();
    assert!(kept.contains("明月光") && kept.contains("/stats") && !kept.contains("half a line"), "{kept}");
}
