//! The full-screen view of a training run: loss curves, expert load, speed, messages.
//!
//! A thread of its own draws and reads keys, so that `q` is heard during a long step. The terminal is put back in order
//! when the view is dropped, and by ratatui's panic hook if anything panics.

use crate::live::Progress;
use crate::printer::{Printer, duration, grouped, short};
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph};
use ratatui::{DefaultTerminal, Frame};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use wudao_train::{Event, Observer};

/// How long a key may wait.
const TICK: Duration = Duration::from_millis(100);
const COLORS: [Color; 3] = [Color::Yellow, Color::Magenta, Color::Green];
/// Heights of a load, the fifth being the mean.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What the drawing thread sees.
#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    closed: AtomicBool,
}

/// The view, as long as it lives.
pub struct Tui<'a> {
    printer: &'a Printer,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl<'a> Tui<'a> {
    /// Takes the terminal. `q` and Ctrl-C set `stop`.
    pub fn new(printer: &'a Printer, title: String, stop: Arc<AtomicBool>) -> io::Result<Tui<'a>> {
        let terminal = ratatui::try_init()?;
        printer.hold();
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = shared.clone();
            std::thread::spawn(move || draw_until_closed(terminal, &title, &shared, &stop))
        };
        Ok(Tui { printer, shared, thread: Some(thread) })
    }
}

impl Observer for Tui<'_> {
    fn on(&mut self, event: &Event) {
        self.shared.progress.lock().expect("the drawing thread does not panic with it").note(event);
    }
}

impl Drop for Tui<'_> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        let drawn = self.thread.take().map(JoinHandle::join);
        ratatui::restore();
        self.printer.release();
        if let Some(Ok(Err(error))) = drawn {
            self.printer.warn(format!("the full view ended early: {error}"));
        }
        if let Ok(progress) = self.shared.progress.lock() {
            progress.messages.iter().for_each(|message| self.printer.say(message));
        }
    }
}

fn draw_until_closed(mut terminal: DefaultTerminal, title: &str, shared: &Shared, stop: &AtomicBool) -> io::Result<()> {
    while !shared.closed.load(Ordering::Relaxed) {
        let progress = shared.progress.lock().expect("observers do not panic with it").clone();
        let stopping = stop.load(Ordering::Relaxed);
        terminal.draw(|frame| draw(frame, title, &progress, stopping))?;
        if !event::poll(TICK)? {
            continue;
        }
        if let Input::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c && stopping {
                ratatui::restore();
                std::process::exit(130);
            }
            if control_c || key.code == KeyCode::Char('q') {
                stop.store(true, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

fn draw(frame: &mut Frame, title: &str, progress: &Progress, stopping: bool) {
    let rows = [Constraint::Length(3), Constraint::Min(8), Constraint::Length(7), Constraint::Length(1)];
    let [top, middle, bottom, foot] = Layout::vertical(rows).areas(frame.area());
    draw_head(frame, top, title, progress);
    let width = load_width(progress).min(middle.width / 2);
    let [curves, loads] = Layout::horizontal([Constraint::Min(30), Constraint::Length(width)]).areas(middle);
    draw_curves(frame, curves, progress);
    if width > 0 {
        draw_loads(frame, loads, progress);
    }
    let room = usize::from(bottom.height.saturating_sub(2));
    let from = progress.messages.len().saturating_sub(room);
    let lines: Vec<Line> = progress.messages[from..].iter().map(|message| Line::raw(message.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("messages")), bottom);
    let hint = match stopping {
        true => "stopping: the step is finished and a checkpoint saved (Ctrl-C again ends at once)",
        false => "q  stop and save",
    };
    frame.render_widget(Paragraph::new(hint).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn draw_head(frame: &mut Frame, area: Rect, title: &str, p: &Progress) {
    let [first, second, third] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    let ratio = if p.steps > 0 { (p.step as f64 / p.steps as f64).min(1.0) } else { 0.0 };
    let name = Span::styled(format!("wudao  {title}"), Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Paragraph::new(Line::from(name)), first);
    let mut parts = vec![];
    parts.extend(p.loss.map(|loss| format!("loss {loss:.4}")));
    parts.push(format!("lr {:.2e}", p.lr));
    parts.push(format!("{} tokens/s", short(p.tokens_per_second.round())));
    parts.extend(p.peak_share.map(|share| format!("{:.0} % of peak", 100.0 * share)));
    parts.push(format!("{} tokens", short(p.tokens as f64)));
    parts.extend(p.seconds_left.map(|seconds| format!("{} left", duration(seconds))));
    frame.render_widget(Paragraph::new(parts.join("   ")), second);
    let gauge = LineGauge::default()
        .ratio(ratio)
        .label(format!("step {} of {}", grouped(p.step), grouped(p.steps)))
        .filled_style(Style::new().fg(Color::Cyan));
    frame.render_widget(gauge, third);
}

fn draw_curves(frame: &mut Frame, area: Rect, p: &Progress) {
    let block = Block::bordered().title("loss, nats a token");
    let points = p.curve.iter().chain(p.held_out.values().flatten());
    let Some((low, high)) = points.fold(None, |range: Option<(f64, f64)>, &(_, y)| {
        let (low, high) = range.unwrap_or((y, y));
        Some((low.min(y), high.max(y)))
    }) else {
        return frame.render_widget(block, area);
    };
    let pad = 0.05 * (high - low).max(0.1);
    let (low, high) = ((low - pad).max(0.0), high + pad);
    let end = p.step.max(2) as f64;
    let curve = |name: String, data, color| {
        Dataset::default()
            .name(name)
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(color))
            .data(data)
    };
    let mut sets = vec![curve("training".to_owned(), &p.curve, Color::Cyan)];
    for ((language, points), color) in p.held_out.iter().zip(COLORS) {
        sets.push(curve(format!("held out {language}"), points, color));
    }
    let labels = |low: f64, high: f64, digits| {
        [low, (low + high) / 2.0, high].map(|value| Span::raw(format!("{value:.digits$}"))).to_vec()
    };
    let chart = Chart::new(sets)
        .block(block)
        .x_axis(Axis::default().bounds([0.0, end]).labels(labels(0.0, end, 0)))
        .y_axis(Axis::default().bounds([low, high]).labels(labels(low, high, 2)));
    frame.render_widget(chart, area);
}

/// Columns that the loads want: a name, a cell for each expert, the busiest.
fn load_width(p: &Progress) -> u16 {
    let experts = p.loads.iter().map(|(_, load)| load.len()).max().unwrap_or(0);
    if experts == 0 { 0 } else { u16::try_from(experts.max(12) + 18).unwrap_or(u16::MAX) }
}

fn draw_loads(frame: &mut Frame, area: Rect, p: &Progress) {
    let cells = usize::from(area.width.saturating_sub(18)).max(1);
    let lines: Vec<Line> = p
        .loads
        .iter()
        .map(|(layer, load)| {
            let busiest = load.iter().fold(0.0, |a: f64, &b| a.max(b));
            let mut spans = vec![Span::raw(format!("layer {layer:>2} "))];
            // More experts than cells: each cell shows the busiest of its share.
            for share in load.chunks(load.len().div_ceil(cells).max(1)) {
                let value = share.iter().fold(0.0, |a: f64, &b| a.max(b));
                let height = ((value * 4.0).round() as usize).min(BARS.len() - 1);
                let color = match value {
                    v if v > 2.0 => Color::Red,
                    v if v > 1.5 => Color::Yellow,
                    v if v > 0.2 => Color::Green,
                    _ => Color::Blue,
                };
                spans.push(Span::styled(BARS[height].to_string(), Style::new().fg(color)));
            }
            spans.push(Span::raw(format!(" {busiest:.1}×")));
            Line::from(spans)
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("expert load")), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::collections::BTreeMap;

    fn shown(progress: &Progress, stopping: bool, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, "runs/trial", progress, stopping)).unwrap();
        terminal.backend().to_string()
    }

    fn halfway() -> Progress {
        let curve = |from: f64| (1..=50).map(|s| (f64::from(s), from / f64::from(s).sqrt() + 2.0)).collect::<Vec<_>>();
        Progress {
            step: 50,
            steps: 100,
            tokens: 204_800,
            loss: Some(2.9),
            lr: 1.5e-3,
            tokens_per_second: 12_345.0,
            peak_share: Some(0.41),
            seconds_left: Some(75.0),
            curve: curve(6.0),
            held_out: BTreeMap::from([
                ("en".to_owned(), vec![(25.0, 3.4), (50.0, 3.0)]),
                ("zh".to_owned(), vec![(25.0, 3.9), (50.0, 3.5)]),
            ]),
            loads: vec![(1, vec![1.0, 0.5, 2.5, 0.0]), (2, vec![1.0; 4])],
            messages: vec!["step 50: checkpoint saved (1.2 MB in 0.1 s)".to_owned()],
        }
    }

    #[test]
    fn halfway_through_a_run() {
        insta::assert_snapshot!(shown(&halfway(), false, 100, 30));
    }

    #[test]
    fn before_the_first_step_and_in_a_small_window() {
        insta::assert_snapshot!(shown(&Progress::default(), true, 60, 20));
        // Nothing panics where nothing fits.
        for size in 1..20 {
            shown(&halfway(), false, size, size);
        }
    }

    #[test]
    fn many_experts_share_cells() {
        let loads = vec![(0, (0..256).map(|e| if e == 200 { 9.0 } else { 0.9 }).collect())];
        let text = shown(&Progress { loads, ..Progress::default() }, false, 80, 20);
        assert!(text.contains('█') && text.contains("9.0×"), "{text}");
    }
}
