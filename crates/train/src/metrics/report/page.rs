//! The page: head, key figures, charts, samples, tables.

use super::axis::{duration, grouped, short};
use super::curves::{charts, in_order, language_name, smoothed};
use super::heat;
use super::history::{History, Row};
use super::html::{Label, Text, label, script};
use crate::metrics::Sample;
use serde_json::Value;
use std::fmt::Write;
use wudao_model::Config;
use wudao_model::config::Family;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Characters of a prompt or completion that are shown.
const LONGEST_TEXT: usize = 4000;
/// Characters of a setting that are shown.
const LONGEST_VALUE: usize = 300;
/// Rows of a table that are shown.
const LONGEST_TABLE: usize = 200;

/// The whole page. `name` is that of the run's folder, `run` what `run.json` holds, or null.
pub fn page(name: &str, history: &History, run: &Value) -> String {
    let config: Option<Config> = run.get("model").and_then(|config| serde_json::from_value(config.clone()).ok());
    let clip = run.pointer("/settings/grad_clip").and_then(Value::as_f64).unwrap_or(0.0);
    let charts = charts(history, clip);
    let mut data: Value = charts.iter().map(|c| (c.id.to_owned(), c.data())).collect();
    data.sort_all_objects();

    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\" data-ui=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\"/>\n\
         <title>{} · WuDao</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        Text(name)
    );
    let _ = write!(
        html,
        "<header>\n<div><p class=\"brand\">WuDao 悟道 · {}</p>\n<h1>{}</h1>\n<p class=\"model\">{}</p></div>\n\
         <button id=\"ui\" type=\"button\" hidden=\"hidden\"><span class=\"en\" lang=\"zh\">中文</span><span class=\"zh\" lang=\"en\">English</span></button>\n\
         </header>\n<main>\n",
        label("Training report", "训练报告"),
        Text(name),
        config.as_ref().map_or(String::new(), model),
    );
    html.push_str(&notes(history));
    html.push_str(&key_figures(history, run));
    if !charts.is_empty() {
        html.push_str("<section class=\"charts\">\n");
        charts.iter().for_each(|chart| html.push_str(&chart.figure()));
        html.push_str("</section>\n");
    }
    html.push_str(&experts(history));
    html.push_str(&samples(history));
    html.push_str(&evaluation(history));
    html.push_str(&tables(run));
    let _ = write!(
        html,
        "</main>\n<script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        script(&data)
    );
    html
}

/// A model in a line.
fn model(config: &Config) -> String {
    let family = match config.family {
        Family::Llama => "Llama",
        Family::Mistral => "Mistral",
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
        Family::Mixtral => "Mixtral",
        Family::Qwen2Moe => "Qwen2-MoE",
        Family::Olmoe => "OLMoE",
        Family::Qwen3Moe => "Qwen3-MoE",
        Family::Glm4Moe => "GLM-4-MoE",
        Family::DeepseekV2 => "DeepSeek-V2",
        Family::DeepseekV3 => "DeepSeek-V3",
    };
    let (layers, width, vocab) = (config.num_hidden_layers, config.hidden_size, grouped(config.vocab_size as u64));
    let mut en = format!("{family} · {layers} layers of width {width} · vocabulary {vocab}");
    let mut zh = format!("{family} · {layers} 层，宽 {width} · 词表 {vocab}");
    if let Some(moe) = &config.moe {
        let (experts, chosen) = (moe.num_experts, moe.num_experts_per_tok);
        en += &format!(" · {experts} experts, {chosen} per token");
        zh += &format!(" · {experts} 个专家，每词元用 {chosen} 个");
    }
    label(en, zh).to_string()
}

/// What a reader should know first.
fn notes(history: &History) -> String {
    let mut notes = vec![];
    if history.steps == 0 {
        notes.push(label("No step has been recorded yet.", "尚未记录任何训练步。"));
    }
    if history.skipped.0 > 0 {
        let n = history.skipped.0;
        notes.push(label(
            format!("Skipped steps, whose loss or gradient was not finite: {n}."),
            format!("因损失或梯度非有限值而跳过的步数：{n}。"),
        ));
    }
    if history.unread > 0 {
        let n = history.unread;
        notes.push(label(
            format!("Lines of metrics.jsonl that could not be read: {n}."),
            format!("metrics.jsonl 中无法读取的行数：{n}。"),
        ));
    }
    notes.iter().map(|note| format!("<p class=\"note\">{note}</p>\n")).collect()
}

fn key_figures(history: &History, run: &Value) -> String {
    let mut html = String::from("<section class=\"figures\">\n");
    let mut card = |name: Label, value: String, detail: Option<Label>| {
        let detail = detail.map_or(String::new(), |d| format!("<p>{d}</p>"));
        let _ = writeln!(html, "<div class=\"card\"><h2>{name}</h2><b>{}</b>{detail}</div>", Text(value));
    };
    let parameters = |i: usize| run.get("parameters").and_then(|pair| pair.get(i)).and_then(Value::as_u64);
    if let Some(total) = parameters(0) {
        let active = parameters(1).filter(|active| *active < total).map(|active| short(active as f64));
        let detail = active.map(|a| label(format!("{a} active"), format!("激活 {a}")));
        card(label("Parameters", "参数量"), short(total as f64), detail);
    }
    if history.steps > 0 {
        let planned = run.pointer("/plan/steps").and_then(Value::as_u64);
        let steps = grouped(history.last_step);
        let of = planned.map(|n| (grouped(n), 100.0 * history.last_step as f64 / n.max(1) as f64));
        let detail = of.map(|(n, share)| label(format!("of {n} · {share:.0} %"), format!("共 {n} 步 · {share:.0} %")));
        card(label("Steps", "步数"), steps, detail);
        card(label("Training tokens", "训练词元"), short(history.tokens as f64), None);
        let mean = history.tokens as f64 / history.seconds.max(1e-9);
        let detail = (history.seconds > 0.0).then(|| {
            label(format!("{} tokens/s overall", short(mean.round())), format!("总体 {} 词元／秒", short(mean.round())))
        });
        card(label("Time", "用时"), duration(history.seconds), detail);
    }
    if let Some((_, loss)) = smoothed(&history.loss).last() {
        card(label("Training loss", "训练损失"), format!("{loss:.3}"), Some(label("nats per token", "奈特／词元")));
    }
    if let Some((_, evaluation)) = history.newest_evaluation() {
        let mut rows: Vec<(&str, &Row)> = ["zh", "en"]
            .into_iter()
            .filter_map(|language| Some((language, evaluation.languages.get(language)?)))
            .collect();
        if rows.is_empty() {
            rows.push(("", &evaluation.total));
        }
        for (language, row) in rows {
            let name = match language {
                "zh" => label("Chinese, bits/byte", "中文，比特／字节"),
                "en" => label("English, bits/byte", "英文，比特／字节"),
                _ => label("Bits per byte", "比特／字节"),
            };
            let perplexity = figure(row.perplexity, 1);
            let detail = label(format!("held-out · perplexity {perplexity}"), format!("验证集 · 困惑度 {perplexity}"));
            card(name, figure(row.bits_per_byte, 3), Some(detail));
        }
    }
    html.push_str("</section>\n");
    html
}

fn experts(history: &History) -> String {
    if history.layers.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<section class=\"card experts\">\n<h2>{}</h2>\n<p class=\"scale\"><span>0</span><i></i><span>1×</span><i></i><span>≥ {}×</span>\
         <span class=\"unit\">{}</span></p>\n<div class=\"maps\">\n",
        label("Expert load over time", "专家负载随时间的变化"),
        heat::FULL,
        label(
            "of an equal share; one row per expert, steps from left to right",
            "相对于均分的负载；每行一个专家，自左至右为训练步"
        )
    );
    for (number, layer) in &history.layers {
        let last = &layer.last;
        let detail = label(
            format!(
                "busiest {}×, {} of {} idle, balance {}",
                figure(last.max_over_mean, 2),
                last.dead,
                layer.experts,
                figure(last.balance, 2)
            ),
            format!(
                "最忙 {}×，{} 个专家中闲置 {} 个，均衡度 {}",
                figure(last.max_over_mean, 2),
                layer.experts,
                last.dead,
                figure(last.balance, 2)
            ),
        );
        let name = label(format!("Layer {number}"), format!("第 {number} 层"));
        let _ = writeln!(
            html,
            "<figure><figcaption><b>{name}</b> <span>{detail}</span></figcaption>{}</figure>",
            heat::svg(*number, layer)
        );
    }
    html.push_str("</div>\n</section>\n");
    html
}

fn samples(history: &History) -> String {
    if history.samples.is_empty() {
        return String::new();
    }
    let mut html = format!("<section class=\"samples\">\n<h2>{}</h2>\n", label("Samples", "生成样例"));
    for Sample { step, prompt, completion } in &history.samples {
        let chinese =
            [prompt, completion].iter().any(|text| text.chars().any(|c| ('\u{3400}'..='\u{9fff}').contains(&c)));
        let _ = writeln!(
            html,
            "<article class=\"card\"><h3>{}</h3><p lang=\"{}\"><mark>{}</mark>{}</p></article>",
            label(format!("step {}", grouped(*step)), format!("第 {} 步", grouped(*step))),
            if chinese { "zh" } else { "en" },
            Text(cut(prompt, LONGEST_TEXT)),
            Text(cut(completion, LONGEST_TEXT)),
        );
    }
    html.push_str("</section>\n");
    html
}

/// The newest evaluation in full.
fn evaluation(history: &History) -> String {
    let Some((step, line)) = history.newest_evaluation() else { return String::new() };
    let mut html = format!(
        "<section class=\"card\">\n<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>",
        label(format!("Held-out text at step {}", grouped(step)), format!("第 {} 步的验证文本", grouped(step)))
    );
    for name in [
        label("source", "来源"),
        label("language", "语言"),
        label("tokens", "词元"),
        label("bytes", "字节"),
        label("nats per token", "奈特／词元"),
        label("perplexity", "困惑度"),
        label("bits per byte", "比特／字节"),
    ] {
        let _ = write!(html, "<th>{name}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let mut row = |row: &Row, source: String, language: &str, class: &str| {
        let language = if language.is_empty() { String::new() } else { language_name(language).to_string() };
        let _ = writeln!(
            html,
            "<tr class=\"{class}\"><td>{source}</td><td>{language}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            grouped(row.tokens),
            grouped(row.bytes),
            figure(row.nll, 4),
            figure(row.perplexity, 2),
            figure(row.bits_per_byte, 4)
        );
    };
    for r in line.sources.iter().take(LONGEST_TABLE) {
        row(r, Text(cut(&r.source, LONGEST_VALUE)).to_string(), &r.language, "source");
    }
    for language in in_order(line.languages.keys().map(String::as_str)) {
        row(&line.languages[language], label("all sources", "全部来源").to_string(), language, "language");
    }
    row(&line.total, label("total", "合计").to_string(), "", "total");
    html.push_str("</tbody>\n</table></div>\n");
    if let Some((best, _)) = history.best().filter(|(best, _)| *best != step) {
        let note =
            label(format!("The best was at step {}.", grouped(best)), format!("最佳结果在第 {} 步。", grouped(best)));
        let _ = writeln!(html, "<p class=\"unit\">{note}</p>");
    }
    html.push_str("</section>\n");
    html
}

/// What the run was given, from `run.json`.
fn tables(run: &Value) -> String {
    let mut sections = vec![];
    let known = [
        ("settings", label("Settings", "设置")),
        ("model", label("Model", "模型")),
        ("plan", label("Plan", "计划")),
        ("machine", label("Machine", "机器")),
    ];
    for (key, name) in &known {
        sections.push((name.clone(), run.get(key).map(rows).unwrap_or_default()));
    }
    if let Value::Object(all) = run {
        let other: serde_json::Map<String, Value> = all
            .iter()
            .filter(|(key, _)| known.iter().all(|(k, _)| k != key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        sections.push((label("Run", "运行"), rows(&Value::Object(other))));
    }
    sections.retain(|(_, rows)| !rows.is_empty());
    if sections.is_empty() {
        return String::new();
    }
    let mut html = String::from("<section class=\"tables\">\n");
    for (name, rows) in sections {
        let _ = write!(html, "<details class=\"card\" open=\"open\"><summary><h2>{name}</h2></summary>\n<dl>");
        for (key, value) in rows.iter().take(LONGEST_TABLE) {
            let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", Text(key), Text(value));
        }
        html.push_str("</dl></details>\n");
    }
    html.push_str("</section>\n");
    html
}

/// The leaves of a value by their paths. A list of pairs of texts is a table too.
fn rows(value: &Value) -> Vec<(String, String)> {
    fn walk(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
        match value {
            Value::Null => (),
            Value::Object(map) => {
                for (key, value) in map {
                    walk(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, rows);
                }
            }
            Value::String(text) => rows.push((path.to_owned(), cut(text, LONGEST_VALUE))),
            Value::Array(list) if list.iter().all(|item| !item.is_object() && !item.is_array()) => {
                let items = list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
                rows.push((path.to_owned(), cut(&items.collect::<Vec<_>>().join(", "), LONGEST_VALUE)));
            }
            Value::Array(list) => {
                for (i, item) in list.iter().enumerate() {
                    match item.as_array().map(Vec::as_slice) {
                        Some([Value::String(key), value]) => walk(key, value, rows),
                        _ => walk(&format!("{path}[{i}]"), item, rows),
                    }
                }
            }
            other => rows.push((path.to_owned(), other.to_string())),
        }
    }
    let mut all = vec![];
    walk("", value, &mut all);
    all.retain(|(_, value)| !value.is_empty());
    all
}

/// A number with so many decimals; a large one is shortened, a missing one is a dash.
fn figure(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.abs() >= 1e5 => short(value),
        Some(value) => format!("{value:.decimals$}"),
        None => "–".to_owned(),
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
