//! Reports of invented runs, read back as XML.

use super::*;
use crate::metrics::testing::{Size, record, step};
use crate::metrics::{Metrics, Sample, StepReport, append_sample};
use roxmltree::{Document, Node};
use std::fs;

/// The page that a folder gets.
fn page_of(out: &Path) -> String {
    let path = report(out).unwrap();
    assert_eq!(path, out.join(REPORT));
    fs::read_to_string(path).unwrap()
}

/// Checks what holds for every page: it is well-formed, asks for nothing, and every curve lies within its axes. Returns it
/// without its style and script.
fn checked(html: &str) -> String {
    assert!(html.starts_with("<!DOCTYPE html>"));
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
    let mut markup = html["<!DOCTYPE html>".len()..].to_owned();
    for (open, close) in [("<style>", "</style>"), ("<script type", "</script>"), ("<script>", "</script>")] {
        let from = markup.find(open).unwrap();
        let to = from + markup[from..].find(close).unwrap() + close.len();
        assert!(!markup[from..to].contains("http"));
        markup.replace_range(from..to, "");
    }
    assert!(!markup.contains("<script") && !markup.contains("<style"));
    let document = Document::parse(&markup).unwrap_or_else(|e| panic!("{e}"));
    for node in document.descendants().filter(Node::is_element) {
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on"), "{}", attribute.name());
            if matches!(attribute.name(), "href" | "src") {
                assert!(attribute.value().starts_with("data:image/png;base64,"));
            }
        }
        if let Some(box_) = node.attribute("viewBox") {
            let size: Vec<f64> = box_.split(' ').map(|n| n.parse().unwrap()).collect();
            lies_within(node, size[2], size[3]);
        }
    }
    assert!(!markup.contains("NaN") && !markup.contains("inf "));
    markup
}

fn lies_within(svg: Node, width: f64, height: f64) {
    let inside = |x: f64, y: f64| (0.0..=width).contains(&x) && (0.0..=height).contains(&y);
    for node in svg.descendants() {
        let number = |name| node.attribute(name).map(|v| v.parse::<f64>().unwrap());
        for (x, y) in [("x", "y"), ("cx", "cy")] {
            if let (Some(x), Some(y)) = (number(x), number(y)) {
                assert!(inside(x, y), "{x} {y} in {width} × {height}");
            }
        }
        let drawn = node.parent().is_some_and(|g| matches!(g.attribute("class"), Some("line" | "faint" | "dots")));
        if let Some(d) = node.attribute("d").filter(|_| drawn) {
            for point in d.split(['M', 'L', 'z']).filter(|p| !p.is_empty()) {
                let (x, y) = point.split_once(' ').unwrap();
                assert!(inside(x.parse().unwrap(), y.parse().unwrap()), "{point} in {width} × {height}");
            }
        }
    }
}

fn charts(markup: &str) -> Vec<String> {
    let document = Document::parse(markup).unwrap();
    document.descendants().filter_map(|node| node.attribute("data-chart")).map(str::to_owned).collect()
}

const ALL: [&str; 9] = ["loss", "bits", "lr", "norm", "speed", "share", "busiest", "balance", "entropy"];

#[test]
fn a_page_tells_all_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), Size { steps: 50, layers: 3, experts: 8 });
    let markup = checked(&page_of(dir.path()));
    assert_eq!(charts(&markup), ALL);
    assert_eq!(markup.matches("<image ").count(), 3);
    for words in
        ["12.3\u{202f}M", "4.32\u{202f}M active", "激活 4.32\u{202f}M", "of 50 · 100", "GLM-4-MoE", "global_batch_size"]
    {
        assert!(markup.contains(words), "{words}");
    }
    assert!(markup.contains("四大名著 &lt;b&gt;") && markup.contains("A &quot;fast&quot; one &amp; more"));
}

#[test]
fn a_run_without_steps_or_with_one_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let markup = checked(&page_of(dir.path()));
    assert!(markup.contains("No step has been recorded") && charts(&markup).is_empty());

    record(dir.path(), Size { steps: 1, layers: 1, experts: 1 });
    assert_eq!(charts(&checked(&page_of(dir.path()))), ALL);

    // Nothing was finite.
    let mut metrics = Metrics::open(dir.path(), 0).unwrap();
    let (loss, grad_norm) = (f64::NAN, f64::INFINITY);
    let size = Size { steps: 1, layers: 0, experts: 0 };
    metrics.step(&StepReport { loss, grad_norm, applied: false, flops_share: None, ..step(size, 1) });
    let markup = checked(&page_of(dir.path()));
    assert_eq!(charts(&markup), ["lr", "speed"]);
    assert!(markup.contains("was not finite: 1."));
}

#[test]
fn numbers_at_the_ends_of_floating_point_have_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let lines = r#"{"kind":"step","step":1,"loss":1.0,"grad_norm":1e-300,"lr":5e-324,"tokens_per_second":1e308}
{"kind":"step","step":2,"loss":-1e308,"grad_norm":1e308,"lr":-5e-324}
{"kind":"evaluation","step":2,"bits_per_byte":1e308}
{"kind":"evaluation","step":3,"bits_per_byte":-1e308}
{"kind":"step","step":18446744073709551615,"grad_norm":1e99,"lr":2e-323,"router":[{"layer":0,"max_over_mean":-1e308,"load":[1e308,-1e308]}]}
"#;
    fs::write(dir.path().join(METRICS), lines).unwrap();
    let markup = checked(&page_of(dir.path()));
    assert!(charts(&markup).len() > 3);
}

#[test]
fn a_long_run_has_a_small_page() {
    let dir = tempfile::tempdir().unwrap();
    let size = Size { steps: 100_000, layers: 1, experts: 2 };
    let mut lines = String::new();
    for n in 1..=size.steps {
        let r = step(size, n);
        let (entropy, load) = (r.routers[0].entropy, &r.routers[0].load);
        lines += &format!(
            "{{\"kind\":\"step\",\"step\":{n},\"loss\":{},\"grad_norm\":{},\"lr\":{},\"tokens_per_second\":{},\
             \"flops_share\":0.4,\"router\":[{{\"layer\":1,\"max_over_mean\":1.5,\"entropy\":{entropy},\"load\":{load:?}}}]}}\n",
            r.loss, r.grad_norm, r.lr, r.tokens_per_second
        );
    }
    fs::write(dir.path().join(METRICS), lines).unwrap();
    let html = page_of(dir.path());
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    let markup = checked(&html);
    assert_eq!(charts(&markup).len(), 7);
    assert!(markup.contains("100,000"));
}

#[test]
fn many_routers_have_a_small_page() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), Size { steps: 60, layers: 60, experts: 256 });
    let markup = checked(&page_of(dir.path()));
    assert_eq!(markup.matches("<image ").count(), 60);
    assert!(markup.contains("mean and range of the layers"));
}

#[test]
fn foreign_text_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a<b>&'\"c");
    fs::create_dir(&out).unwrap();
    let hostile =
        "</script></style><script>alert(1)</script><!-- ]]> <img src=x onerror=alert(1)> \" ' & &lt; \u{2028}天地玄黄";
    append_sample(&out, &Sample { step: 1, prompt: hostile.into(), completion: format!("{hostile}\u{0}\u{b}\u{1b}") })
        .unwrap();
    let line = serde_json::json!({"kind": "evaluation", "step": 1, "nll": 1.0, "bits_per_byte": 1.0,
        "languages": {hostile: {"nll": 1.0, "bits_per_byte": 2.0}}, "sources": [{"source": hostile, "language": hostile}]});
    let mut lines = fs::read_to_string(out.join(METRICS)).unwrap();
    lines += &format!("{line}\n");
    fs::write(out.join(METRICS), lines).unwrap();
    let run = serde_json::json!({"settings": {hostile: hostile}, "machine": [[hostile, hostile]], "parameters": "many", hostile: 1});
    fs::write(out.join(RUN), run.to_string()).unwrap();

    let html = page_of(&out);
    let markup = checked(&html);
    let document = Document::parse(&markup).unwrap();
    let texts: Vec<&str> = document.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect();
    assert_eq!(texts.iter().filter(|text| **text == hostile).count(), 9, "{texts:#?}");
    assert!(texts.contains(&format!("{hostile}\u{fffd}\u{fffd}\u{fffd}").as_str()));
    assert!(texts.contains(&"a<b>&'\"c"));
    // The numbers for the pointer are JSON still, and no text in them ends their element.
    let data = html.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["bits"]["series"][0]["en"], hostile);
}

#[test]
fn lines_that_make_no_sense_are_passed_over_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), Size { steps: 5, layers: 1, experts: 4 });
    let path = dir.path().join(METRICS);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(b"\xff\xfe\n{\"kind\":\"step\"}\n{\"kind\":\"poem\",\"step\":3}\n{\"kind\":\"sample\",\"step\":3}\n{\"kind\":\"st");
    fs::write(&path, bytes).unwrap();
    fs::write(dir.path().join(RUN), "{\"settings\": ").unwrap();
    let markup = checked(&page_of(dir.path()));
    assert!(markup.contains("could not be read: 5."));
    assert_eq!(charts(&markup), ALL);
}
