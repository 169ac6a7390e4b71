//! Everything that a person or a program sees goes through here.
//!
//! Standard output carries the answer and nothing else; progress, remarks and errors go to standard error. Colour and
//! moving bars appear only on a terminal, and colour not where `NO_COLOR` is set. When standard error is not a terminal,
//! a bar becomes a plain line now and then, so that a log file can be read.

use crate::error::{Help, Usage};
use crate::settings::SettingsError;
use anstyle::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The verbs of status lines end in this column.
const VERB_WIDTH: usize = 12;
/// How often a bar speaks in a log file.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

const VERB: Style = AnsiColor::Green.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();
const HEADING: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The one way out.
pub struct Printer {
    quiet: bool,
    verbose: bool,
    color_out: bool,
    color_err: bool,
    terminal: bool,
    bars: MultiProgress,
    /// While a full-screen view owns the terminal, lines for standard error wait here.
    held: Mutex<Option<Vec<String>>>,
}

impl Printer {
    /// Looks at the two streams. `no_color` is what the environment says.
    pub fn new(quiet: bool, verbose: bool, color: Color, no_color: bool) -> Printer {
        let terminal = io::stderr().is_terminal();
        let wanted = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color,
        };
        let shown = terminal && !quiet;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Printer {
            quiet,
            verbose,
            color_out: wanted(io::stdout().is_terminal()),
            color_err: wanted(terminal),
            terminal,
            bars: MultiProgress::with_draw_target(target),
            held: Mutex::new(None),
        }
    }

    /// Whether a full-screen view can be shown.
    pub fn full_screen(&self) -> bool {
        self.terminal && io::stdout().is_terminal() && io::stdin().is_terminal()
    }

    /// Whether somebody types at the one end and reads at the other.
    pub fn conversation(&self) -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    /// Part of the answer, as it is, at once.
    pub fn answer(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Part of the answer, bytes as they are.
    pub fn answer_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// A line of the answer.
    pub fn line(&self, text: impl Display) -> io::Result<()> {
        self.answer(&format!("{text}\n"))
    }

    /// Part of the answer, dimmed: what is beside the point, such as a model's thoughts.
    pub fn aside(&self, text: &str) -> io::Result<()> {
        self.answer(&painted(self.color_out, DIM, text))
    }

    /// A heading in the answer.
    pub fn heading(&self, text: impl Display) -> io::Result<()> {
        self.line(painted(self.color_out, HEADING, text))
    }

    /// The answer as one indented JSON value.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.line(serde_json::to_string_pretty(value)?)?)
    }

    /// Part of the answer as one line of JSON.
    pub fn json_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.line(serde_json::to_string(value)?)?)
    }

    /// What was done: a verb and what it was done to.
    pub fn status(&self, verb: &str, text: impl Display) {
        if !self.quiet {
            let verb = painted(self.color_err, VERB, format!("{verb:>VERB_WIDTH$}"));
            self.stderr(&format!("{verb} {text}"));
        }
    }

    /// A plain line for people, such as a hint at what comes next.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            self.stderr(&text.to_string());
        }
    }

    /// A plain line for people, dimmed.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            self.stderr(&painted(self.color_err, DIM, text));
        }
    }

    /// What only the curious want to know (`-v`).
    pub fn detail(&self, text: impl Display) {
        if self.verbose && !self.quiet {
            let text = text.to_string();
            text.lines()
                .for_each(|line| self.stderr(&painted(self.color_err, DIM, format!("{:>VERB_WIDTH$} {line}", ""))));
        }
    }

    /// Something that a person should know and that ends nothing.
    pub fn warn(&self, text: impl Display) {
        self.stderr(&format!("{}: {text}", painted(self.color_err, WARNING, "warning")));
    }

    /// Why the command failed: what, the causes, what to do.
    pub fn error(&self, error: &anyhow::Error) {
        for line in describe(error) {
            match line.split_once(": ") {
                Some((label @ "error", rest)) => {
                    self.stderr(&format!("{}: {rest}", painted(self.color_err, ERROR, label)));
                }
                Some((label, rest)) => {
                    let label = painted(self.color_err, HEADING, label.trim_start());
                    self.stderr(&format!("  {label}: {rest}"));
                }
                None => self.stderr(&line),
            }
        }
    }

    /// Keeps lines back until [`Printer::release`], while another view has the terminal.
    pub fn hold(&self) {
        *self.held.lock().expect("no writer panics") = Some(Vec::new());
    }

    /// Lets go the lines that were kept back.
    pub fn release(&self) {
        let lines = self.held.lock().expect("no writer panics").take();
        lines.into_iter().flatten().for_each(|line| self.stderr(&line));
    }

    fn stderr(&self, line: &str) {
        if let Some(held) = self.held.lock().expect("no writer panics").as_mut() {
            held.push(line.to_owned());
        } else if self.bars.is_hidden() || self.bars.println(line).is_err() {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Work whose end is known (`total`) or not, counted in `unit`.
    pub fn progress(&self, verb: &str, total: Option<u64>, unit: Unit) -> Progress<'_> {
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(style(&format!(
                "{{prefix:>{VERB_WIDTH}.bold}} [{{bar:30}}] {{percent:>3}} %  {{msg}}  {{eta_precise}} left"
            ))),
            None => ProgressBar::no_length().with_style(style(&format!("{{prefix:>{VERB_WIDTH}.bold}} {{msg}}"))),
        };
        let bar = self.bars.add(bar.with_prefix(verb.to_owned()));
        let state = Mutex::new(Logged { last: Instant::now(), percent: None });
        Progress { printer: self, verb: verb.to_owned(), bar, unit, total, state }
    }

    /// A line that is written over and over.
    pub fn live_line(&self) -> LiveLine<'_> {
        let bar = ProgressBar::no_length().with_style(style("{wide_msg}"));
        LiveLine { printer: self, bar: self.bars.add(bar), last: None }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well formed").progress_chars("=> ")
}

fn painted(color: bool, style: Style, text: impl Display) -> String {
    if color { format!("{style}{text}{style:#}") } else { text.to_string() }
}

/// What an error is told as: `error: …`, then `cause: …` and `help: …` lines. A cause that the line above already holds
/// is left out.
pub fn describe(error: &anyhow::Error) -> Vec<String> {
    let mut lines = Vec::new();
    let mut above = String::new();
    let mut help = None;
    for (depth, cause) in error.chain().enumerate() {
        if let Some(found) = cause.downcast_ref::<Help>() {
            help = help.or(Some(found.help.clone()));
        }
        if let Some(found) = cause.downcast_ref::<SettingsError>() {
            help = help.or(found.help.clone());
        }
        let text = cause.to_string();
        if depth == 0 {
            lines.push(format!("error: {text}"));
        } else if !above.contains(&text) {
            lines.push(format!("  cause: {text}"));
        }
        above = text;
    }
    lines.extend(help.map(|help| format!("  help: {help}")));
    lines
}

/// The process's exit status for an error: 2 if the command or its settings were wrong, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let usage = |cause: &(dyn std::error::Error + 'static)| {
        let inside = cause.downcast_ref::<Help>().is_some_and(|help| exit_code(&help.error) == 2);
        inside || cause.is::<Usage>() || cause.is::<SettingsError>()
    };
    if error.chain().any(usage) { 2 } else { 1 }
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Tokens.
    Tokens,
    /// Something else, one after the other.
    Items,
}

impl Unit {
    fn amount(self, n: u64) -> String {
        match self {
            Unit::Bytes => bytes(n),
            Unit::Tokens => format!("{} tokens", short(n as f64)),
            Unit::Items => grouped(n),
        }
    }
}

/// A bar, or in a log file a line every ten seconds.
pub struct Progress<'a> {
    printer: &'a Printer,
    verb: String,
    bar: ProgressBar,
    unit: Unit,
    total: Option<u64>,
    state: Mutex<Logged>,
}

struct Logged {
    last: Instant,
    percent: Option<u64>,
}

impl Progress<'_> {
    /// So much is done.
    pub fn set(&self, done: u64) {
        let text = match self.total {
            Some(total) => format!("{} of {}", self.unit.amount(done.min(total)), self.unit.amount(total)),
            None => self.unit.amount(done),
        };
        self.bar.set_position(done);
        self.bar.set_message(text.clone());
        if self.printer.terminal {
            return;
        }
        let mut state = self.state.lock().expect("no writer panics");
        let percent = self.total.filter(|&total| total > 0).map(|total| 100 * done.min(total) / total);
        if state.last.elapsed() >= LOG_INTERVAL && (percent.is_none() || percent != state.percent) {
            state.last = Instant::now();
            state.percent = percent;
            self.printer.status(&self.verb, text);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One line that changes in place; in a log file, a new line at sensible intervals.
pub struct LiveLine<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    last: Option<Instant>,
}

impl LiveLine<'_> {
    /// Shows the line. `always` writes it into a log file however short the time since the last.
    pub fn show(&mut self, line: &str, always: bool) {
        if self.printer.terminal {
            self.bar.set_message(line.to_owned());
            self.bar.tick();
        } else if always || self.last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            self.last = Some(Instant::now());
            self.printer.say(line);
        }
    }
}

impl Drop for LiveLine<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.23 M`: three digits and a unit of thousands.
pub fn short(x: f64) -> String {
    let (scale, unit) = match x.abs() {
        x if x >= 1e12 => (1e12, " T"),
        x if x >= 1e9 => (1e9, " B"),
        x if x >= 1e6 => (1e6, " M"),
        x if x >= 1e4 => (1e3, " k"),
        _ => return if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") },
    };
    let x = x / scale;
    let digits = if x >= 100.0 {
        0
    } else if x >= 10.0 {
        1
    } else {
        2
    };
    format!("{x:.digits$}{unit}")
}

/// `12.3 MB`, in powers of ten as file managers and disks count.
pub fn bytes(n: u64) -> String {
    let x = n as f64;
    let (scale, unit) = match n {
        1_000_000_000_000.. => (1e12, "TB"),
        1_000_000_000.. => (1e9, "GB"),
        1_000_000.. => (1e6, "MB"),
        1_000.. => (1e3, "kB"),
        _ => return format!("{n} B"),
    };
    format!("{:.1} {unit}", x / scale)
}

/// `1 h 02 min`, `2 min 05 s`, `4.2 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        86_400.. => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        10.. => format!("{whole} s"),
        _ => format!("{seconds:.1} s"),
    }
}

/// Columns for people: the first to the left, the others to the right, as wide as their text looks (a Han character
/// takes two columns).
pub fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    use unicode_width::UnicodeWidthStr;
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (i, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.width());
            match i {
                0 => line.extend([cell, pad.as_str()]),
                _ => line.extend(["  ", pad.as_str(), cell]),
            }
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = if header.iter().all(|cell| cell.is_empty()) { String::new() } else { line(header) };
    rows.iter().for_each(|row| text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Advice;
    use anyhow::Context;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1234567), "1,234,567");
        assert_eq!(short(999.0), "999");
        assert_eq!(short(1234.5), "1234.5");
        assert_eq!(short(15_300_000.0), "15.3 M");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(12_340_000), "12.3 MB");
        assert_eq!(duration(4.21), "4.2 s");
        assert_eq!(duration(125.0), "2 min 05 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }

    #[test]
    fn columns_line_up_under_han_characters() {
        let rows = [vec!["三国".to_owned(), "1".to_owned()], vec!["en".to_owned(), "22".to_owned()]];
        assert_eq!(columns(&["source", "n"], &rows), "source   n\n三国     1\nen      22\n");
    }

    #[test]
    fn an_error_never_repeats_its_source() {
        let io = io::Error::other("disk full");
        let error = anyhow::Error::new(io).context("cannot save: disk full").context("training stopped");
        assert_eq!(describe(&error), ["error: training stopped", "  cause: cannot save: disk full"]);
        let error: Result<(), _> = Err(io::Error::other("no")).help("try again");
        assert_eq!(describe(&error.unwrap_err()), ["error: no", "  help: try again"]);
        let error: Result<(), _> = Err(io::Error::other("no")).context("opening x").help("try again");
        assert_eq!(describe(&error.unwrap_err()), ["error: opening x", "  cause: no", "  help: try again"]);
    }
}
