//! Models from one kind of files to another, through the binary.

mod common;

use common::{fails, json, newest_checkpoint, ok, text, trained};
use std::path::Path;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Of a text: a data set of tokens belongs to the very bytes of a tokenizer.json.
fn loss(model: &Path) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    std::fs::write(
        &file,
        "In the beginning God created the heaven and the earth. 春眠不觉晓，处处闻啼鸟。\n".repeat(20),
    )
    .unwrap();
    let report = json(&["eval", "--model", text(model), "--data", text(&file), "--json", "-q"]);
    report["total"]["nll"].as_f64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn a_run_goes_through_a_gguf_file_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("model.gguf"), dir.path().join("back"));
    let answer = json(&["convert", text(trained()), "--out", text(&file), "--dtype", "f32", "--json"]);
    assert_eq!(answer["bytes"], file.metadata().unwrap().len());
    ok(&["convert", text(&file), "--out", text(&folder), "--dtype", "f32"]);
    // The weights are those of the run, bit for bit; so are the tokenizer's ids.
    let run = newest_checkpoint(trained());
    let bytes = |name: &str| run.iter().find(|(n, _)| n == name).unwrap().1.clone();
    assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == bytes("model.safetensors"));
    let prompt = ["--prompt", "春眠 don't  1234\n", "--temperature", "0", "--max-tokens", "12", "-q"];
    let said = |model: &Path| ok(&[&["generate", "--model", text(model)][..], &prompt].concat()).out;
    assert_eq!(said(&file), said(trained()));
    assert_eq!(said(&folder), said(trained()));
    assert_eq!(loss(&file), loss(trained()));
    let shown = json(&["inspect", text(&file), "--json"]);
    assert_eq!(shown["kind"], "checkpoint");
    let before = json(&["inspect", text(trained()), "--json"]);
    assert_eq!(shown["parameters"], before["model"]["parameters"]);
    assert_eq!(shown["tokenizer"]["vocab_size"], before["model"]["tokenizer"]["vocab_size"]);
    assert_eq!(shown["tokenizer"]["fast"], true, "its way of cutting text is still known");
    let config = std::fs::read_to_string(folder.join("tokenizer_config.json")).unwrap();
    assert!(config.contains("<|im_start|>"), "the chat template came along");
    // The file is something to train from.
    common::train(&dir.path().join("tuned"), &["--steps", "2", "--from", text(&file)]);
}

#[test]
fn fewer_bits_are_a_smaller_file_and_nearly_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let full = loss(trained());
    let mut last = u64::MAX;
    let near = wudao_device::tolerance::of("mixed losses", wudao_device::DType::Bf16).allowed(full);
    for dtype in ["bf16", "q8_0", "q4_0"] {
        let file = dir.path().join(format!("{dtype}.gguf"));
        ok(&["convert", text(trained()), "--out", text(&file), "--dtype", dtype, "-q"]);
        let size = file.metadata().unwrap().len();
        assert!(size < last, "{dtype}: {size}");
        last = size;
        let change = (loss(&file) - full).abs();
        assert!(change < near, "{dtype}: {change}");
    }
}

#[test]
fn a_folder_of_eight_bits_is_half_as_large_and_nearly_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let [half, eight, again] = ["bf16", "fp8", "again"].map(|name| dir.path().join(name));
    ok(&["convert", text(trained()), "--out", text(&half), "-q"]);
    ok(&["convert", text(trained()), "--out", text(&eight), "--dtype", "fp8", "-q"]);
    let near = wudao_device::tolerance::of("mixed losses", wudao_device::DType::Bf16).allowed(loss(trained()));
    let change = (loss(&eight) - loss(trained())).abs();
    assert!(change < near, "{change}");
    let size = |folder: &Path| folder.join("model.safetensors").metadata().unwrap().len();
    assert!(size(&eight) < size(&half), "{} of {}", size(&eight), size(&half));
    // What has 8 bits already keeps them.
    ok(&["convert", text(&eight), "--out", text(&again), "--dtype", "fp8", "-q"]);
    for name in names(&eight) {
        assert!(std::fs::read(again.join(&name)).unwrap() == std::fs::read(eight.join(&name)).unwrap(), "{name}");
    }
    let ended = fails(2, &["convert", text(trained()), "--out", text(&dir.path().join("f.gguf")), "--dtype", "fp8"]);
    assert!(ended.err.contains("--format hf"), "{}", ended.err);
}

#[test]
fn nothing_is_overwritten_and_nothing_half_done_stays() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    std::fs::write(&out, "mine").unwrap();
    let ended = fails(1, &["convert", text(trained()), "--out", text(&out)]);
    assert!(ended.err.contains("exists already"), "{}", ended.err);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let ended = fails(2, &["convert", text(trained()), "--out", text(&dir.path().join("f")), "--dtype", "q8_0"]);
    assert!(ended.err.contains("--format gguf"), "{}", ended.err);
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, b"GGUF\x03\0\0\0 and no more").unwrap();
    for command in ["inspect", "convert"] {
        let arguments = match command {
            "inspect" => vec!["inspect", text(&bad)],
            _ => vec!["convert", text(&bad), "--out", "never"],
        };
        let ended = fails(1, &arguments);
        assert!(ended.err.contains("bad.gguf"), "{}", ended.err);
    }
    assert_eq!(names(dir.path()), ["bad.gguf", "out.gguf"]);
}
