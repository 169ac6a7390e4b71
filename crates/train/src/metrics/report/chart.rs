//! Curves over steps, drawn as SVG.
//!
//! A drawing that is merely scaled has letters too small to read on a phone, so each chart is drawn for two or three
//! widths and the style sheet shows the one that fits. The numbers go into the page a second time, for the pointer to
//! read off; without the script everything but that works.

use super::axis::{Axis, Format};
use super::curve::LARGEST;
use super::html::{Label, label};
use serde_json::{Value, json};
use std::fmt::Write;

/// One chart.
pub struct Chart {
    /// Name in the page.
    pub id: &'static str,
    /// Heading.
    pub title: Label,
    /// Of the vertical axis.
    pub unit: Label,
    /// First and last step.
    pub steps: [u64; 2],
    /// What is drawn, the hindmost first.
    pub series: Vec<Series>,
    /// Whether equal factors are equal heights.
    pub log: bool,
    /// Whether the vertical axis begins at 0.
    pub zero: bool,
    /// How values are written.
    pub format: Format,
    /// A value of meaning.
    pub threshold: Option<(f64, Label)>,
    /// Steps marked on the axis.
    pub marked: Vec<u64>,
    /// Whether it takes the whole width of the page.
    pub wide: bool,
}

/// One line of a chart.
pub struct Series {
    /// Its name.
    pub name: Label,
    /// Its colour in CSS.
    pub colour: String,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
    /// Steps, and least and greatest values around the line.
    pub band: Vec<(f64, f64, f64)>,
    /// How it is drawn.
    pub style: Style,
}

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// As a line.
    Line,
    /// As a thin line behind the others; it has no say in how high the chart is, but for its middle.
    Faint,
    /// As a line with a dot at each point.
    Dots,
}

impl Chart {
    /// The chart as a `figure`.
    pub fn figure(&self) -> String {
        let mut html = format!(
            "<figure class=\"card chart{}\" data-chart=\"{}\">\n<figcaption><h3>{}</h3><span class=\"unit\">{}</span></figcaption>\n",
            if self.wide { " wide" } else { "" },
            self.id,
            self.title,
            self.unit,
        );
        let faint = |s: &Series| if s.style == Style::Faint { " class=\"faint\"" } else { "" };
        let mut entries: Vec<String> = (self.series.iter())
            .map(|s| format!("<li{} style=\"--c:{}\"><i></i>{}</li>", faint(s), s.colour, s.name))
            .collect();
        if !self.marked.is_empty() {
            entries.push(format!("<li class=\"skipped\"><b>▲</b>{}</li>", label("skipped", "跳过的步")));
        }
        if entries.len() > 1 || self.series.iter().any(|s| !s.band.is_empty()) {
            let _ = writeln!(html, "<ul class=\"legend\">{}</ul>", entries.concat());
        }
        let sizes: &[(&str, f64, f64)] = match self.wide {
            true => &[("l", 1080.0, 340.0), ("m", 660.0, 300.0), ("s", 350.0, 250.0)],
            false => &[("l m", 530.0, 250.0), ("s", 350.0, 220.0)],
        };
        html.push_str("<div class=\"plot\">");
        for &(class, width, height) in sizes {
            html.push_str(&self.svg(class, width, height));
        }
        html.push_str("</div>\n</figure>\n");
        html
    }

    /// What the pointer reads off.
    pub fn data(&self) -> Value {
        let series = |s: &Series| {
            let (x, y): (Vec<f64>, Vec<f64>) = s.points.iter().map(|&(x, y)| (significant(x), significant(y))).unzip();
            json!({"en": s.name.en, "zh": s.name.zh, "c": s.colour, "x": x, "y": y})
        };
        json!({
            "percent": self.format == Format::Percent,
            "series": self.series.iter().map(series).collect::<Vec<_>>(),
        })
    }

    fn svg(&self, class: &str, width: f64, height: f64) -> String {
        let (left, right, top, bottom) = (58.0, width - 14.0, 10.0, height - 34.0);
        let (x, y) = self.axes((left, right), (bottom, top));
        let mut svg = format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" \
             data-x=\"{left} {right} {} {}\">\n<g class=\"grid\">",
            self.title.both(),
            x.low,
            x.high
        );
        let y_marks = y.marks(if height > 280.0 { 7 } else { 5 }, self.format);
        let x_marks = x.marks((width / 90.0) as usize, Format::Whole);
        for (value, _) in &y_marks {
            let _ = write!(svg, "<path d=\"M{left} {:.1}H{right}\"/>", y.at(*value));
        }
        let _ = write!(svg, "</g><path class=\"base\" d=\"M{left} {bottom}H{right}\"/><g class=\"y\">");
        for (value, text) in &y_marks {
            let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\">{text}</text>", left - 8.0, y.at(*value) + 4.0);
        }
        svg.push_str("</g><g class=\"x\">");
        for (value, text) in &x_marks {
            let at = x.at(*value);
            let _ = write!(
                svg,
                "<path d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{}\">{text}</text>",
                bottom + 17.0
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"{right}\" y=\"{}\">{}</text></g>",
            bottom + 31.0,
            label("step", "步").svg()
        );
        if let Some((value, name)) = self.threshold.as_ref().filter(|(v, _)| (y.low..=y.high).contains(v)) {
            let at = y.at(*value);
            let _ = writeln!(
                svg,
                "<path class=\"threshold\" d=\"M{left} {at:.1}H{right}\"/>\
                 <text class=\"threshold\" x=\"{right}\" y=\"{:.1}\">{}</text>",
                if at - top < 16.0 { at + 14.0 } else { at - 5.0 },
                name.svg()
            );
        }
        for series in &self.series {
            svg.push_str(&series.svg(&x, &y));
        }
        for step in self.marked.iter().map(|s| *s as f64).filter(|s| (x.low..=x.high).contains(s)) {
            let _ = write!(svg, "<path class=\"skipped\" d=\"M{:.1} {bottom}l-4 -8h8z\"/>", x.at(step));
        }
        let _ = writeln!(svg, "<path class=\"cross\" d=\"M0 {top}V{bottom}\"/></svg>");
        svg
    }

    /// The axes: all steps; all values but for outliers of faint lines.
    fn axes(&self, across: (f64, f64), up: (f64, f64)) -> (Axis, Axis) {
        let mut values = Range::default();
        for series in &self.series {
            let mut own: Vec<f64> = series.points.iter().map(|p| p.1).collect();
            own.extend(series.band.iter().flat_map(|&(_, low, high)| [low, high]));
            own.sort_by(f64::total_cmp);
            let spare = if series.style == Style::Faint { own.len() / 100 } else { 0 };
            own[spare..own.len() - spare].iter().for_each(|v| values.take(*v));
        }
        if let Some((value, _)) = self.threshold.as_ref().filter(|(v, _)| *v < 2.0 * values.high) {
            values.take(*value);
        }
        if self.zero {
            values.take(0.0);
        }
        let (low, high) = values.padded(self.log, self.zero);
        let [mut first, mut last] = self.steps.map(|step| step as f64);
        if last <= first {
            (first, last) = (first - 1.0, first + 1.0);
        }
        (
            Axis { low: first, high: last, from: across.0, to: across.1, log: false },
            Axis { low, high, from: up.0, to: up.1, log: self.log && low > 0.0 },
        )
    }
}

impl Series {
    fn svg(&self, x: &Axis, y: &Axis) -> String {
        let mut svg = format!("<g class=\"{}\" style=\"--c:{}\">", self.style.class(), self.colour);
        if self.band.len() > 1 {
            let upper = self.band.iter().map(|&(step, _, high)| (step, high));
            let lower = self.band.iter().rev().map(|&(step, low, _)| (step, low));
            let _ = write!(svg, "<path class=\"band\" d=\"{}z\"/>", path(upper.chain(lower), x, y));
        }
        if self.points.len() > 1 {
            let _ = write!(svg, "<path d=\"{}\"/>", path(self.points.iter().copied(), x, y));
        }
        // A lone point is no line; and dots so close that they touch tell no more than it.
        let few = self.points.len() as f64 <= (x.to - x.from) / 9.0;
        if self.points.len() == 1 || (self.style == Style::Dots && few) {
            for (step, value) in &self.points {
                let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", x.at(*step), y.at(*value));
            }
        }
        svg.push_str("</g>\n");
        svg
    }
}

impl Style {
    fn class(self) -> &'static str {
        match self {
            Style::Line => "line",
            Style::Faint => "faint",
            Style::Dots => "dots",
        }
    }
}

/// The values seen.
struct Range {
    low: f64,
    high: f64,
}

impl Default for Range {
    fn default() -> Self {
        Range { low: f64::INFINITY, high: f64::NEG_INFINITY }
    }
}

impl Range {
    /// Nothing is so large or so small that the arithmetic of axes leaves what floating point can do.
    fn take(&mut self, value: f64) {
        let value = if value.abs() < 1.0 / LARGEST { 0.0 } else { value.clamp(-LARGEST, LARGEST) };
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    /// With a little air around.
    fn padded(&self, log: bool, zero: bool) -> (f64, f64) {
        if self.low > self.high {
            return (0.0, 1.0);
        }
        if log && self.low > 0.0 {
            let air = (self.high / self.low).powf(0.06).max(1.1);
            return (self.low / air, self.high * air);
        }
        let spread = self.high - self.low;
        let air = if spread > 0.0 { 0.06 * spread } else { (0.1 * self.high.abs()).max(1e-9) };
        (if zero && self.low >= 0.0 { 0.0 } else { self.low - air }, self.high + air)
    }
}

fn path(points: impl Iterator<Item = (f64, f64)>, x: &Axis, y: &Axis) -> String {
    let mut d = String::new();
    for (i, (step, value)) in points.enumerate() {
        let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x.at(step), y.at(value));
    }
    d
}

/// Five significant digits.
fn significant(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}
