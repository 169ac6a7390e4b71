//! `wudao bench sparse-vs-dense`: does a mixture of experts earn its keep in the same time?
//!
//! Two runs on the same data, one after the other, with the same settings and the same time: the sparse model, and its
//! dense twin, whose feed-forward layers are as wide as what a token meets in the sparse one (the chosen experts and the
//! shared ones side by side). So both have the same active parameters, but for the router. What is compared is bits per byte
//! of held-out text against seconds of training. Each run plans its schedule for its own number of steps, as anyone
//! would who has that much time.
//!
//! A run that `wudao train` has finished in its folder with the same settings is taken as it is. So the two may run side by
//! side, on a core each, where one machine's whims then strike both.

use super::Context;
use crate::commands::train::{self, Run};
use crate::printer::columns;
use crate::settings::{self, DataSettings, OwnFlag, Resolved, SettingsArgs};
use crate::{error::Usage, signals};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use toml::Value;
use wudao_model::Config;
use wudao_train::{Init, TrainSettings, metrics};

/// Arguments of `wudao bench sparse-vs-dense`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  wudao bench sparse-vs-dense --preset small --data data --out runs/twins --minutes 30"
)]
pub struct Args {
    /// Folder of a prepared data set.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder for both runs and the comparison.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Minutes of each run.
    #[arg(long, value_name = "MIN")]
    minutes: Option<f64>,
    /// Steps of each run, instead of minutes: then times differ.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    steps: Option<u64>,
    /// Print the comparison as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// An evaluation during a run.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Of training, evaluations and checkpoints not counted.
    seconds: f64,
    tokens: u64,
    bits_per_byte: f64,
}

/// A run, as it went.
#[derive(Serialize, Debug)]
struct Course {
    folder: PathBuf,
    active_parameters: u64,
    parameters: u64,
    points: Vec<Point>,
}

/// What `--json` prints, and `sparse-vs-dense.json` keeps.
#[derive(Serialize, Debug)]
struct Answer {
    sparse: Course,
    dense: Course,
    /// Seconds after which the sparse run was as good as the dense one at its end, if it ever was.
    sparse_seconds_to_dense_end: Option<f64>,
    /// That as a share of the dense run's time.
    share_of_time: Option<f64>,
}

/// Trains both, and compares.
pub fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let stop = signals::stop_flag()?;
    let mut courses = vec![];
    for name in ["sparse", "dense"] {
        let mut resolved = resolve(&args, cx)?;
        if name == "dense" {
            make_dense(&mut resolved)?;
        }
        let data: DataSettings = resolved.section("data")?;
        let data = data.path.context("--data sets data.path")?;
        let out = args.out.join(name);
        if finished(&out, &mut resolved, &data)? {
            cx.printer.status("Twin", format!("{name}, finished before in {}", out.display()));
            courses.push(course(&out)?);
            continue;
        }
        cx.printer.status("Twin", format!("{name}, in {}", out.display()));
        let run =
            Run { resolved, data: &data, out: &out, init: Init::Fresh, full_screen: false, verify: courses.is_empty() };
        let outcome = run.train(cx, stop.clone())?;
        anyhow::ensure!(outcome.step == outcome.steps, "stopped in the {name} run: nothing to compare");
        courses.push(course(&out)?);
    }
    let (dense, sparse) = (courses.pop(), courses.pop());
    let answer = Answer::new(sparse.context("two runs")?, dense.context("two runs")?);
    let json = args.out.join("sparse-vs-dense.json");
    let text = serde_json::to_string_pretty(&answer)? + "\n";
    std::fs::write(&json, text).with_context(|| format!("cannot write {}", json.display()))?;
    let figure = args.out.join("sparse-vs-dense.svg");
    std::fs::write(&figure, answer.figure()).with_context(|| format!("cannot write {}", figure.display()))?;
    if args.json { cx.printer.json(&answer) } else { answer.print(cx, &figure) }
}

fn resolve(args: &Args, cx: &Context) -> anyhow::Result<Resolved> {
    let own: [OwnFlag; 3] = [
        ("data.path", "--data", Some(args.data.display().to_string())),
        ("train.max_minutes", "--minutes", args.minutes.map(|x| x.to_string())),
        ("train.steps", "--steps", args.steps.map(|n| n.to_string())),
    ];
    Ok(settings::resolve(&args.settings, &own, &cx.environment)?)
}

/// Gives every layer a dense feed-forward network as wide as what a token meets of the experts.
fn make_dense(resolved: &mut Resolved) -> anyhow::Result<()> {
    let layers = &mut resolved.layers;
    let family = layers.get("model.family").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !matches!(family.as_str(), "glm4_moe" | "qwen3_moe") {
        let what = format!("a model of the family \"{family}\" has no dense twin: glm4_moe and qwen3_moe have");
        return Err(Usage(what).into());
    }
    let number = |key: &str| {
        let value = layers.get(key).and_then(Value::as_integer);
        value.with_context(|| format!("the settings say nothing of {key}: choose a preset of a sparse model"))
    };
    let depth = number("model.num_hidden_layers")?;
    let experts = number("model.moe.num_experts_per_tok")? + number("model.moe.n_shared_experts").unwrap_or(0);
    let width = experts * number("model.moe.moe_intermediate_size")?;
    let before = match layers.get("model.moe.dense_layers") {
        Some(Value::Array(some)) => some.len(),
        _ => 0,
    };
    // Layers that are dense already stay as wide as they are only if that is the width of the others too.
    if before > 0 && number("model.intermediate_size")? != width {
        let what = format!(
            "the dense layers of the sparse model must be as wide as what a token meets of its experts: \
             set model.intermediate_size={width}"
        );
        return Err(Usage(what).into());
    }
    layers.set("model.intermediate_size", Value::Integer(width));
    layers.set("model.moe.dense_layers", Value::Array((0..depth).map(Value::Integer).collect()));
    Ok(())
}

/// Whether a run with these settings has come to its end in the folder. One of others, or one that goes on, is refused.
fn finished(out: &Path, resolved: &mut Resolved, data: &Path) -> anyhow::Result<bool> {
    let Ok(run) = metrics::read_run(out) else { return Ok(false) };
    train::fill_facts(&mut resolved.layers, data)?;
    let (model, settings) = (resolved.section::<Config>("model")?, resolved.section::<TrainSettings>("train")?);
    let problem = if run.model != model || run.settings != settings {
        "holds a run of other settings: give another --out"
    } else if steps(out)?.last().is_none_or(|last| last.step < run.plan.steps) {
        "holds a run that has not come to its end: `wudao train --resume --out` that folder goes on"
    } else {
        return Ok(true);
    };
    Err(Usage(format!("{} {problem}", out.display())).into())
}

/// A step of a run, and what held-out text said after it.
struct Step {
    step: u64,
    tokens: u64,
    seconds: f64,
    bits_per_byte: Option<f64>,
}

/// The steps of the run in `out` so far.
fn steps(out: &Path) -> anyhow::Result<Vec<Step>> {
    #[derive(Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Line {
        Step {
            step: u64,
            tokens: u64,
            seconds: f64,
        },
        Evaluation {
            step: u64,
            bits_per_byte: f64,
        },
        #[serde(other)]
        Other,
    }
    let path = out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut steps: Vec<Step> = vec![];
    for line in text.lines() {
        match serde_json::from_str(line).with_context(|| format!("in {}", path.display()))? {
            Line::Step { step, tokens, seconds } => {
                let before = steps.last().map_or(0.0, |last| last.seconds);
                steps.push(Step { step, tokens, seconds: before + seconds, bits_per_byte: None });
            }
            Line::Evaluation { step, bits_per_byte } => {
                if let Some(last) = steps.last_mut().filter(|last| last.step == step) {
                    last.bits_per_byte = Some(bits_per_byte);
                }
            }
            Line::Other => {}
        }
    }
    Ok(steps)
}

/// Reads a finished run.
fn course(out: &Path) -> anyhow::Result<Course> {
    let point = |Step { tokens, seconds, bits_per_byte, .. }: Step| {
        Some(Point { seconds, tokens, bits_per_byte: bits_per_byte? })
    };
    let points: Vec<Point> = steps(out)?.into_iter().filter_map(point).collect();
    anyhow::ensure!(points.len() > 1, "{} has fewer than two evaluations: lower train.eval_every", out.display());
    let run = metrics::read_run(out).with_context(|| format!("cannot read the run in {}", out.display()))?;
    let counts = wudao_model::Counts::of(&run.model);
    let (parameters, active_parameters) = (counts.params.total(), counts.active.total());
    Ok(Course { folder: out.to_owned(), parameters, active_parameters, points })
}

impl Course {
    fn end(&self) -> Point {
        self.points[self.points.len() - 1]
    }

    /// When the curve, drawn from one evaluation to the next, first came down to `bits`.
    fn reached(&self, bits: f64) -> Option<f64> {
        if self.points[0].bits_per_byte <= bits {
            return Some(self.points[0].seconds);
        }
        self.points.windows(2).find(|pair| pair[1].bits_per_byte <= bits).map(|pair| {
            let share = (pair[0].bits_per_byte - bits) / (pair[0].bits_per_byte - pair[1].bits_per_byte);
            pair[0].seconds + share * (pair[1].seconds - pair[0].seconds)
        })
    }
}

impl Answer {
    fn new(sparse: Course, dense: Course) -> Answer {
        let reached = sparse.reached(dense.end().bits_per_byte);
        let share_of_time = reached.map(|seconds| seconds / dense.end().seconds);
        Answer { sparse_seconds_to_dense_end: reached, share_of_time, sparse, dense }
    }

    fn print(&self, cx: &Context, figure: &Path) -> anyhow::Result<()> {
        let row = |name: &str, course: &Course| {
            let end = course.end();
            vec![
                name.to_owned(),
                crate::printer::short(course.parameters as f64),
                crate::printer::short(course.active_parameters as f64),
                crate::printer::short(end.tokens as f64),
                crate::printer::duration(end.seconds),
                format!("{:.4}", end.bits_per_byte),
            ]
        };
        let header = ["", "parameters", "active", "tokens", "time", "bits/byte"];
        cx.printer.answer(&columns(&header, &[row("sparse", &self.sparse), row("dense", &self.dense)]))?;
        let verdict = match self.share_of_time {
            Some(share) => {
                format!("The sparse model was as good as the dense one in {:.0} % of its time.", 100.0 * share)
            }
            None => "The sparse model never was as good as the dense one in this time.".to_owned(),
        };
        Ok(cx.printer.answer(&format!("\n{verdict}\n{}\n", figure.display()))?)
    }

    /// Bits per byte against minutes.
    fn figure(&self) -> String {
        const SIZE: [f64; 2] = [640.0, 360.0];
        const EDGES: [f64; 4] = [20.0, 20.0, 44.0, 56.0]; // top, right, bottom, left
        let both = || self.sparse.points.iter().chain(&self.dense.points);
        let last = both().map(|p| p.seconds).fold(1e-9, f64::max);
        // The first evaluations are off the scale: what matters is where the curves are near each other.
        let best = both().map(|p| p.bits_per_byte).fold(f64::INFINITY, f64::min);
        let worst = self.sparse.end().bits_per_byte.max(self.dense.end().bits_per_byte);
        let (low, high) = (best - 0.02, worst + 3.0 * (worst - best).max(0.15));
        let x = |s: f64| EDGES[3] + (SIZE[0] - EDGES[3] - EDGES[1]) * s / last;
        let y = |b: f64| EDGES[0] + (SIZE[1] - EDGES[0] - EDGES[2]) * (high - b.min(high)) / (high - low);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\" \
             role=\"img\"><title>Bits per byte of held-out text against time</title>\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            SIZE[0], SIZE[1]
        );
        let text = |svg: &mut String, x: f64, y: f64, anchor: &str, text: &str| {
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
        };
        for i in 0..=5 {
            let share = f64::from(i) / 5.0;
            let (bits, seconds) = (low + share * (high - low), share * last);
            let line = (EDGES[3], y(bits), SIZE[0] - EDGES[1], y(bits));
            let (x1, y1, x2, y2) = line;
            let _ =
                writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>");
            text(&mut svg, EDGES[3] - 6.0, y(bits) + 4.0, "end", &format!("{bits:.2}"));
            text(&mut svg, x(seconds), SIZE[1] - EDGES[2] + 16.0, "middle", &format!("{:.1}", seconds / 60.0));
        }
        text(&mut svg, x(last / 2.0), SIZE[1] - 8.0, "middle", "minutes of training");
        text(&mut svg, EDGES[3], EDGES[0] - 6.0, "start", "bits per byte of held-out text");
        for (row, (name, course, colour)) in
            [("sparse", &self.sparse, "#c0392b"), ("dense", &self.dense, "#2c5f8a")].into_iter().enumerate()
        {
            let seen = course.points.iter().filter(|p| p.bits_per_byte <= high);
            let points: Vec<String> = seen.map(|p| format!("{:.1},{:.1}", x(p.seconds), y(p.bits_per_byte))).collect();
            let points = points.join(" ");
            let _ =
                writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            let label =
                format!("{name}: {:.4} after {:.1} min", course.end().bits_per_byte, course.end().seconds / 60.0);
            let at = EDGES[0] + 16.0 * (row as f64 + 1.0);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"end\" fill=\"{colour}\">{label}</text>",
                SIZE[0] - EDGES[1]
            );
        }
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wudao_model::Counts;

    fn course(points: &[(f64, f64)]) -> Course {
        let point = |&(seconds, bits_per_byte): &(f64, f64)| Point { seconds, tokens: 1, bits_per_byte };
        let points = points.iter().map(point).collect();
        Course { folder: "x".into(), active_parameters: 1, parameters: 2, points }
    }

    #[test]
    fn the_time_to_the_others_end_lies_on_the_curve() {
        let dense = || course(&[(10.0, 4.0), (20.0, 3.0)]);
        let answer = Answer::new(course(&[(5.0, 4.0), (10.0, 3.5), (20.0, 2.5)]), dense());
        assert_eq!((answer.sparse_seconds_to_dense_end, answer.share_of_time), (Some(15.0), Some(0.75)));
        assert_eq!(Answer::new(course(&[(5.0, 4.0), (20.0, 3.1)]), dense()).share_of_time, None);
        assert_eq!(Answer::new(course(&[(5.0, 2.0), (20.0, 1.0)]), dense()).share_of_time, Some(0.25));
        assert_eq!(answer.figure().matches("<polyline").count(), 2);
    }

    /// The twin meets a token with as many parameters as the sparse model, but for routers.
    #[test]
    fn twins_have_the_same_active_parameters() {
        let args = SettingsArgs { preset: Some("quickstart".into()), ..SettingsArgs::default() };
        let counts = |dense: bool| {
            let mut resolved = settings::resolve(&args, &[], &[]).unwrap();
            if dense {
                make_dense(&mut resolved).unwrap();
            }
            let facts = "[model]\nvocab_size = 100\neos_token_id = [0]\n".parse().unwrap();
            resolved.layers.fill(&facts, &settings::Origin::Data).unwrap();
            let config: Config = resolved.section("model").unwrap();
            config.check().unwrap();
            Counts::of(&config)
        };
        let (sparse, dense) = (counts(false), counts(true));
        assert_eq!(dense.params, dense.active);
        let without_router = |c: Counts| c.active.total() - c.active.router;
        assert_eq!(without_router(sparse), without_router(dense));
        assert!(sparse.params.total() > dense.params.total());
        let args = SettingsArgs { preset: Some("bench-b".into()), ..SettingsArgs::default() };
        assert!(make_dense(&mut settings::resolve(&args, &[], &[]).unwrap()).is_err());
    }
}
