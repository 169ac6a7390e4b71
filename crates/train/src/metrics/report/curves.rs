//! Which curves a report shows.

use super::axis::Format;
use super::chart::{Chart, Series, Style};
use super::curve::{Curve, smooth};
use super::history::{EvaluationLine, History, Layer, Row};
use super::html::{Label, label};
use crate::health::COLLAPSED;
use std::collections::{BTreeMap, BTreeSet};

/// More sparse layers than these are drawn as one line, their mean, in the band between the least and the greatest.
const MOST_LINES: usize = 12;

/// The charts that have anything to show. `clip` is the norm at which gradients are clipped, 0 for never.
pub fn charts(history: &History, clip: f64) -> Vec<Chart> {
    let ink = "var(--ink)";
    let mut loss = trend(&history.loss, ink, label("training", "训练"));
    loss.extend(validation(history, |row| row.nll, Some(&label("validation", "验证"))));
    let steps = history.span();
    let chart = |id, title, unit, series| Chart {
        id,
        title,
        unit,
        steps,
        series,
        log: false,
        zero: true,
        format: Format::Plain,
        threshold: None,
        marked: vec![],
        wide: false,
    };
    let layers = &history.layers;
    let charts = [
        Chart {
            zero: false,
            marked: history.skipped.1.iter().copied().collect(),
            wide: true,
            ..chart("loss", label("Loss", "损失"), label("nats per token", "奈特／词元"), loss)
        },
        Chart {
            zero: false,
            ..chart(
                "bits",
                label("Held-out text", "验证文本"),
                label("bits per byte", "比特／字节"),
                validation(history, |row| row.bits_per_byte, None),
            )
        },
        chart(
            "lr",
            label("Learning rate", "学习率"),
            Label::same(""),
            vec![line(&history.lr, ink, label("learning rate", "学习率"))],
        ),
        Chart {
            log: true,
            zero: false,
            threshold: (clip > 0.0).then(|| (clip, label("clipped above", "超过则裁剪"))),
            ..chart(
                "norm",
                label("Gradient norm", "梯度范数"),
                label("before clipping, log scale", "裁剪前，对数坐标"),
                trend(&history.grad_norm, "var(--c4)", label("norm", "范数")),
            )
        },
        chart(
            "speed",
            label("Speed", "速度"),
            label("tokens per second", "词元／秒"),
            trend(&history.speed, "var(--c3)", label("tokens/s", "词元／秒")),
        ),
        Chart {
            format: Format::Percent,
            ..chart(
                "share",
                label("Use of the machine", "算力利用率"),
                label("of the measured peak", "占实测峰值"),
                trend(&history.share, "var(--c3)", label("share", "占比")),
            )
        },
        Chart {
            zero: false,
            ..chart(
                "busiest",
                label("Busiest expert", "最忙的专家"),
                label("load over the mean; 1 is balanced", "负载与均值之比，1 为均衡"),
                by_layer(layers, |layer| &layer.max_over_mean),
            )
        },
        Chart {
            threshold: Some((COLLAPSED, label("collapsed below", "低于此为塌缩"))),
            ..chart(
                "balance",
                label("Load balance", "负载均衡"),
                label("1 is equal load, 0 always the same experts", "1 为均分，0 为总是同几个专家"),
                by_layer(layers, |layer| &layer.balance),
            )
        },
        chart(
            "entropy",
            label("Router entropy", "路由熵"),
            label("per token; 1 is undecided, 0 certain", "每词元；1 为犹疑，0 为确定"),
            by_layer(layers, |layer| &layer.entropy),
        ),
    ];
    let filled = charts.into_iter().map(|mut chart| {
        chart.series.retain(|series| !series.points.is_empty());
        chart
    });
    filled.filter(|chart| !chart.series.is_empty()).collect()
}

/// The numbers, faint, and their trend before them.
fn trend(curve: &Curve, colour: &str, name: Label) -> Vec<Series> {
    let points = curve.points();
    let raw = Series {
        name: if curve.is_binned() {
            label(format!("{}, range", name.en), format!("{}（范围）", name.zh))
        } else {
            label(format!("{}, each step", name.en), format!("{}（每步）", name.zh))
        },
        colour: colour.to_owned(),
        points: points.iter().map(|p| (p.step, p.mean)).collect(),
        band: if curve.is_binned() { points.iter().map(|p| (p.step, p.low, p.high)).collect() } else { vec![] },
        style: Style::Faint,
    };
    let smoothed = Series {
        name: label(format!("{}, smoothed", name.en), format!("{}（平滑）", name.zh)),
        points: smoothed(curve),
        band: vec![],
        style: Style::Line,
        ..raw_colour(colour)
    };
    vec![raw, smoothed]
}

fn raw_colour(colour: &str) -> Series {
    Series { name: Label::same(""), colour: colour.to_owned(), points: vec![], band: vec![], style: Style::Line }
}

/// The trend of a curve.
pub fn smoothed(curve: &Curve) -> Vec<(f64, f64)> {
    let points = curve.points();
    smooth(&points, (points.len() as f64 / 60.0).max(1.0))
}

fn line(curve: &Curve, colour: &str, name: Label) -> Series {
    Series { name, points: curve.points().iter().map(|p| (p.step, p.mean)).collect(), ..raw_colour(colour) }
}

/// A figure of every evaluation, one line a language; if there is but one language, or none, of all text.
fn validation(history: &History, figure: impl Fn(&Row) -> Option<f64>, prefix: Option<&Label>) -> Vec<Series> {
    let all: BTreeSet<&str> =
        history.evaluations.values().flat_map(|e| e.languages.keys()).map(String::as_str).collect();
    let mut series: Vec<Series> = vec![];
    for language in in_order(all) {
        let row = |e: &EvaluationLine| e.languages.get(language).and_then(&figure);
        let name = language_name(language);
        series.push(Series {
            name: prefix
                .map_or(name.clone(), |p| label(format!("{}, {}", p.en, name.en), format!("{}（{}）", p.zh, name.zh))),
            points: history.evaluations.iter().filter_map(|(step, e)| Some((*step as f64, row(e)?))).collect(),
            style: Style::Dots,
            ..raw_colour(language_colour(language))
        });
    }
    series.retain(|s| !s.points.is_empty());
    if series.is_empty() {
        series.push(Series {
            name: prefix.cloned().unwrap_or(label("all text", "全部文本")),
            points: history
                .evaluations
                .iter()
                .filter_map(|(step, e)| Some((*step as f64, figure(&e.total)?)))
                .collect(),
            style: Style::Dots,
            ..raw_colour("var(--c4)")
        });
    }
    series
}

/// Languages in the order in which the page names them: Chinese, English, others.
pub fn in_order<'a>(languages: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all: Vec<&str> = languages.into_iter().collect();
    all.sort_by_key(|language| ["zh", "en"].iter().position(|known| known == language).unwrap_or(2));
    all
}

/// What a language is called.
pub fn language_name(short: &str) -> Label {
    match short {
        "zh" => label("Chinese", "中文"),
        "en" => label("English", "英文"),
        "other" => label("other", "其他"),
        short => Label::same(short),
    }
}

fn language_colour(short: &str) -> &'static str {
    match short {
        "zh" => "var(--c1)",
        "en" => "var(--c2)",
        _ => "var(--c3)",
    }
}

/// One line a layer, from shallow to deep.
fn by_layer(layers: &BTreeMap<usize, Layer>, curve: impl Fn(&Layer) -> &Curve) -> Vec<Series> {
    if layers.len() > MOST_LINES {
        // Bins of all layers are the same steps, since each router is in every line.
        let mut together: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for point in layers.values().flat_map(|layer| curve(layer).points()) {
            together.entry(point.step.to_bits()).or_default().push(point.mean);
        }
        let step = |bits: &u64| f64::from_bits(*bits);
        let extreme = |v: &[f64]| v.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
        return vec![Series {
            name: label("mean and range of the layers", "各层均值与范围"),
            points: together.iter().map(|(s, v)| (step(s), v.iter().sum::<f64>() / v.len() as f64)).collect(),
            band: together.iter().map(|(s, v)| (step(s), extreme(v).0, extreme(v).1)).collect(),
            ..raw_colour("var(--c2)")
        }];
    }
    let depth = |i: usize| 100 * i / (layers.len() - 1).max(1);
    let series = |(i, (number, layer)): (usize, (&usize, &Layer))| {
        let colour = format!("color-mix(in oklab,var(--deep) {}%,var(--shallow))", depth(i));
        line(curve(layer), &colour, label(format!("layer {number}"), format!("第 {number} 层")))
    };
    layers.iter().enumerate().map(series).collect()
}
