//! What the server and its engines do, in the text form of Prometheus.

use crate::served::Models;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wudao_infer::engine::{Histogram, Status};

/// Counts of HTTP; the engines keep their own.
#[derive(Default)]
pub struct Metrics {
    running: Arc<AtomicUsize>,
    /// By route and status: how many, and seconds until the head of the answer.
    answered: Mutex<BTreeMap<(String, u16), (u64, f64)>>,
}

/// A request that is being answered.
pub struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// One more.
    pub fn begin(&self) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.running.clone())
    }

    /// Its answer has begun. Routes are few: they are those of the table, not what a client wrote.
    pub fn answered(&self, route: &str, status: u16, time: Duration) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = answered.entry((route.to_owned(), status)).or_default();
        *entry = (entry.0 + 1, entry.1 + time.as_secs_f64());
    }

    /// Everything as text.
    pub fn text(&self, models: &Models) -> String {
        let mut page = Page::default();
        page.head("wudao_http_requests_running", "gauge", "Requests that are being answered.");
        page.line("wudao_http_requests_running", "", self.running.load(Ordering::Relaxed));
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        page.head("wudao_http_requests_total", "counter", "Requests answered, by route and status.");
        for ((route, status), (count, _)) in &answered {
            page.line("wudao_http_requests_total", &format!("route=\"{}\",status=\"{status}\"", escape(route)), count);
        }
        page.head("wudao_http_head_seconds_total", "counter", "Seconds until the head of the answer, in all.");
        for ((route, status), (_, seconds)) in &answered {
            page.line(
                "wudao_http_head_seconds_total",
                &format!("route=\"{}\",status=\"{status}\"", escape(route)),
                seconds,
            );
        }
        let engines: Vec<(String, Status)> =
            models.iter().map(|model| (format!("model=\"{}\"", escape(&model.name)), model.engine.status())).collect();
        for (name, help, value) in GAUGES {
            page.all(name, "gauge", help, &engines, |status| value(status) as u64);
        }
        for (name, help, value) in COUNTERS {
            page.all(name, "counter", help, &engines, *value);
        }
        page.head("wudao_completions_total", "counter", "Completions that ended, by the reason.");
        for (label, status) in &engines {
            let c = &status.counters;
            for (reason, count) in [
                ("end_of_text", c.end_of_text),
                ("max_tokens", c.max_tokens),
                ("stop_string", c.stop_string),
                ("context", c.context),
                ("cancelled", c.cancelled),
                ("failed", c.failed),
            ] {
                page.line("wudao_completions_total", &format!("{label},reason=\"{reason}\""), count);
            }
        }
        for (name, help, value) in HISTOGRAMS {
            page.histogram(name, help, &engines, *value);
        }
        page.0
    }
}

/// Name, meaning, and where the figure is.
type Row<T> = (&'static str, &'static str, fn(&Status) -> T);
type HistogramRow = (&'static str, &'static str, fn(&Status) -> &Histogram);

const GAUGES: &[Row<usize>] = &[
    ("wudao_sequences_running", "Completions that are being made.", |s| s.running),
    ("wudao_sequences_waiting", "Completions that wait for their turn.", |s| s.waiting),
    ("wudao_cache_used_tokens", "Tokens whose keys and values running completions hold.", |s| s.cache_used),
    ("wudao_cache_tokens", "Tokens whose keys and values there is room for.", |s| s.cache_total),
    ("wudao_cache_token_bytes", "Bytes of a token's keys and values.", |s| s.cache_token_bytes),
    ("wudao_experts_held_bytes", "Experts in memory, where others stay in their file.", |s| s.experts.held),
    ("wudao_experts_room_bytes", "Room for experts in memory, where others stay in their file.", |s| s.experts.room),
];

const COUNTERS: &[Row<u64>] = &[
    ("wudao_prompt_tokens_total", "Tokens of prompts.", |s| s.counters.prompt_tokens),
    ("wudao_prompt_tokens_cached_total", "Of these, found in the prefix cache.", |s| s.counters.cached_tokens),
    ("wudao_completion_tokens_total", "Tokens written.", |s| s.counters.completion_tokens),
    ("wudao_steps_total", "Steps of the model.", |s| s.counters.steps),
    ("wudao_preemptions_total", "Times a completion gave its memory back.", |s| s.counters.preemptions),
    ("wudao_guessed_tokens_total", "Tokens guessed.", |s| s.counters.guessed),
    ("wudao_guessed_tokens_right_total", "Guesses that came true.", |s| s.counters.guessed_right),
    ("wudao_experts_wanted_total", "Experts wanted, where they stay in their file.", |s| s.experts.wanted),
    ("wudao_experts_found_total", "Of these, found in memory.", |s| s.experts.found),
    ("wudao_experts_read_bytes_total", "Bytes of the others, read from the file.", |s| s.experts.bytes),
    ("wudao_experts_read_milliseconds_total", "Milliseconds that this took.", |s| (1e3 * s.experts.seconds) as u64),
];

const HISTOGRAMS: &[HistogramRow] = &[
    ("wudao_first_token_seconds", "From a request's arrival to its first token.", |s| &s.counters.first_token),
    ("wudao_between_tokens_seconds", "From one token of a completion to its next.", |s| &s.counters.between_tokens),
    ("wudao_queued_seconds", "Before a request was taken up.", |s| &s.counters.queued),
];

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "{name}{braces} {value}");
    }

    fn all(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        engines: &[(String, Status)],
        value: impl Fn(&Status) -> u64,
    ) {
        self.head(name, kind, help);
        engines.iter().for_each(|(label, status)| self.line(name, label, value(status)));
    }

    fn histogram(&mut self, name: &str, help: &str, engines: &[(String, Status)], value: fn(&Status) -> &Histogram) {
        self.head(name, "histogram", help);
        for (label, status) in engines {
            let histogram = value(status);
            let bounds = Histogram::BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            let mut below = 0;
            for (bound, count) in bounds.zip(histogram.counts) {
                below += count;
                self.line(&format!("{name}_bucket"), &format!("{label},le=\"{bound}\""), below);
            }
            self.line(&format!("{name}_sum"), label, histogram.sum);
            self.line(&format!("{name}_count"), label, histogram.count());
        }
    }
}

/// A label's value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
