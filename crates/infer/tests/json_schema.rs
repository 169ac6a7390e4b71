//! The official test suite of JSON Schema, draft 2020-12, against the constraint: what a schema says is valid can be written,
//! what it says is not cannot, and a schema that is not understood is refused.
//!
//! A text is fed token by token, so this is the whole way from a schema to masks. A valid instance may be out of reach where
//! the form is stricter than the standard; those are counted by reason, and what is found is pinned, test by test.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use wudao_data::tokenizer::{Tokenizer, TrainOptions};
use wudao_infer::constraint::{Constraint, FORMATS, Form, KEYWORDS, Vocabulary};

/// One line of the suite.
#[derive(serde::Deserialize)]
struct Group {
    file: String,
    description: String,
    schema: Value,
    /// What it is about, an instance, and whether that is valid.
    tests: Vec<(String, Value, bool)>,
}

/// Whether these tokens may be written, and the text may end behind them.
fn passes(constraint: &Constraint, ids: &[u32]) -> bool {
    let mut guide = constraint.guide();
    let written = ids.iter().all(|&id| guide.allows(id).unwrap() && guide.take(id).is_ok());
    written && guide.complete().unwrap()
}

/// All orders of the keys of an object's objects, as texts; objects with many keys in one order only.
fn spellings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => {
            let items = product(list.iter().map(spellings).collect());
            items.into_iter().map(|items| format!("[{}]", items.join(","))).collect()
        }
        Value::Object(map) => {
            let pairs: Vec<(&String, &Value)> = map.iter().collect();
            let mut all = Vec::new();
            for order in orders(pairs.len()) {
                let values = product(order.iter().map(|&i| spellings(pairs[i].1)).collect());
                let key = |(&i, value): (&usize, &String)| format!("{}:{value}", Value::from(pairs[i].0.as_str()));
                let text = |values: Vec<String>| order.iter().zip(&values).map(key).collect::<Vec<_>>().join(",");
                all.extend(values.into_iter().map(|values| format!("{{{}}}", text(values))));
            }
            all
        }
        other => vec![other.to_string()],
    }
}

fn orders(n: usize) -> Vec<Vec<usize>> {
    if n > 5 {
        return vec![(0..n).collect()];
    }
    let mut all = vec![vec![]];
    for i in 0..n {
        all = all
            .iter()
            .flat_map(|order: &Vec<usize>| (0..=order.len()).map(move |at| [&order[..at], &[i], &order[at..]].concat()))
            .collect();
    }
    all
}

/// One of each.
fn product(sets: Vec<Vec<String>>) -> Vec<Vec<String>> {
    sets.into_iter().fold(vec![vec![]], |all, set| {
        all.iter()
            .flat_map(|head: &Vec<String>| set.iter().map(move |item| [&head[..], std::slice::from_ref(item)].concat()))
            .collect()
    })
}

/// Numbers with a fraction of zero as whole ones, as JSON Schema sees them.
fn whole(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0 => Value::from(x as i64),
            _ => value.clone(),
        },
        Value::Array(list) => list.iter().map(whole).collect(),
        Value::Object(map) => Value::Object(map.iter().map(|(key, value)| (key.clone(), whole(value))).collect()),
        other => other.clone(),
    }
}

struct Suite {
    tokenizer: Tokenizer,
    /// By file: how many tests came out in which way.
    counts: BTreeMap<String, BTreeMap<&'static str, usize>>,
    /// What does not come out as the standard has it.
    differ: Vec<String>,
}

impl Suite {
    fn written(&self, constraint: &Constraint, text: &str) -> bool {
        let bytes: Vec<u32> = text.bytes().flat_map(|byte| self.tokenizer.encode_bytes(&[byte]).unwrap()).collect();
        let written = [self.tokenizer.encode(text).unwrap(), bytes].map(|ids| passes(constraint, &ids));
        assert_eq!(written[0], written[1], "{text} depends on how it is cut");
        written[0]
    }

    fn instance(&mut self, group: &Group, constraint: &Constraint, test: &(String, Value, bool)) -> &'static str {
        let (description, instance, valid) = test;
        let same = self.written(constraint, &instance.to_string());
        let any = same
            || [instance.clone(), whole(instance)]
                .iter()
                .flat_map(spellings)
                .any(|text| self.written(constraint, &text));
        match (valid, same, any) {
            (true, true, _) => "accepted",
            (true, false, true) => "accepted if spelled otherwise",
            (false, _, false) => "not accepted",
            (true, _, false) => {
                self.differ.push(format!(
                    "{}: {}: {description}: valid, but cannot be written",
                    group.file, group.description
                ));
                "valid, out of reach"
            }
            (false, _, true) => {
                self.differ.push(format!(
                    "{}: {}: {description}: NOT VALID, BUT CAN BE WRITTEN",
                    group.file, group.description
                ));
                "INVALID, ACCEPTED"
            }
        }
    }
}

#[test]
fn the_constraint_keeps_what_the_suite_asks() {
    // Some tokens of several bytes, and one for each byte.
    let tokenizer = Tokenizer::train(["the quick brown {\"foo\": \"bar\"} jumps"], &TrainOptions::new(320)).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let mut suite = Suite { tokenizer, counts: BTreeMap::new(), differ: vec![] };
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/json_schema_suite/draft2020-12.jsonl");
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let group: Group = serde_json::from_str(line).unwrap();
        match vocabulary.compile(&Form::Json(group.schema.clone())) {
            Ok(constraint) => {
                for test in &group.tests {
                    let how = suite.instance(&group, &constraint, test);
                    *suite.counts.entry(group.file.clone()).or_default().entry(how).or_default() += 1;
                }
            }
            Err(error) => {
                let error = error.to_string();
                // A schema that accepts nothing is right to be refused.
                let nothing = group.tests.iter().all(|test| !test.2);
                let how = if nothing { "refused: accepts nothing" } else { "refused" };
                *suite.counts.entry(group.file.clone()).or_default().entry(how).or_default() += group.tests.len();
                let reason = error.lines().next().unwrap_or_default().to_owned();
                *refused.entry(format!("{}: {reason}", group.file)).or_default() += group.tests.len();
            }
        }
    }
    let mut total: BTreeMap<&str, usize> = BTreeMap::new();
    let mut report = String::new();
    for (file, counts) in &suite.counts {
        let shown: Vec<String> = counts.iter().map(|(how, n)| format!("{n} {how}")).collect();
        let _ = writeln!(report, "{file}: {}", shown.join(", "));
        counts.iter().for_each(|(how, n)| *total.entry(how).or_default() += n);
    }
    let _ = writeln!(report, "\nall: {total:?}\n\nOther than the standard:\n{}\n\nRefused:", suite.differ.join("\n"));
    for (reason, n) in refused {
        let _ = writeln!(report, "{n} {reason}");
    }
    assert!(!total.contains_key("INVALID, ACCEPTED"), "{report}");
    insta::assert_snapshot!(report);
}

#[test]
fn the_documentation_names_what_is_kept() {
    for file in ["docs/serving.md", "docs/zh-CN/serving.md"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        for word in KEYWORDS.iter().chain(FORMATS) {
            assert!(text.contains(&format!("`{word}`")), "{file} does not name {word}");
        }
    }
}
