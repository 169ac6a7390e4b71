//! Texts are fed to a guide in tokens and byte by byte; forms that nobody should be able to hurt a server with are tried.

use super::*;
use crate::testing;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use wudao_data::tokenizer::Tokenizer;

fn vocabulary() -> (Tokenizer, Vocabulary) {
    let tokenizer = testing::tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    (tokenizer, vocabulary)
}

/// Whether a guide lets these tokens pass and end.
fn passes(constraint: &Constraint, ids: &[u32]) -> bool {
    let mut guide = constraint.guide();
    for &id in ids {
        if !guide.allows(id).unwrap() {
            return false;
        }
        guide.take(id).unwrap();
    }
    guide.complete().unwrap()
}

/// Whether a form accepts a text, in whatever tokens it is written.
fn accepts(form: &Form, text: &str) -> bool {
    let (tokenizer, vocabulary) = vocabulary();
    let constraint = vocabulary.compile(form).unwrap();
    let bytes: Vec<u32> = text.bytes().flat_map(|byte| tokenizer.encode_bytes(&[byte]).unwrap()).collect();
    let passes = [tokenizer.encode(text).unwrap(), bytes].map(|ids| passes(&constraint, &ids));
    assert_eq!(passes[0], passes[1], "{form:?} {text:?}");
    passes[0]
}

#[track_caller]
fn only(form: Form, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(accepts(&form, text), "{form:?} refuses {text:?}");
    }
    for text in bad {
        assert!(!accepts(&form, text), "{form:?} accepts {text:?}");
    }
}

fn refused(form: Form) -> String {
    vocabulary().1.compile(&form).unwrap_err().to_string()
}

#[test]
fn each_form_accepts_what_it_says() {
    only(
        Form::json_object(),
        &["{}", "{\"床\": [1, null, true]}", "{ \"a\" :\n 1}"],
        &["[]", "", "{\"a\"}", " {}", "{} "],
    );
    only(Form::Regex("[0-9]{2}/床?".into()), &["12/", "12/床"], &["1", "12/床床", "x"]);
    only(Form::Regex("a*".into()), &["", "aaa"], &["b"]);
    only(
        Form::Choice(vec!["a".into(), "ab".into(), "<\\\"\u{7f}\n".into()]),
        &["a", "ab", "<\\\"\u{7f}\n"],
        &["", "b"],
    );
    only(Form::Choice(vec![String::new(), "x".into()]), &["", "x"], &["xx"]);
    only(Form::Lark("start: \"a\" b\nb: /[0-9]+/".into()), &["a1", "a22"], &["a", "1"]);
    let call = Form::All(vec![
        Form::Maybe(Box::new(Form::All(vec![
            Form::Text("<think>".into()),
            Form::Until("</think>".into()),
            Form::Regex("\\s{0,4}".into()),
        ]))),
        Form::Any(vec![Form::Json(json!({"type": "integer"})), Form::Text("none".into())]),
        Form::Many(Box::new(Form::All(vec![Form::Text(";".into()), Form::Json(json!({"const": [1]}))]))),
    ]);
    let good =
        ["7", "none;[1];[1]", "<think></think>7", "<think>a </thin <think></think>\n\nnone", "<think>明</think>none"];
    only(call, &good, &["", "<think>7", "7;", "<think></think></think>7"]);
    let call = Form::All(vec![Form::Until("<x>".into()), Form::Json(json!({"const": 1})), Form::Text("</x>".into())]);
    let around = Form::All(vec![Form::Many(Box::new(call)), Form::Without("<x>".into())]);
    let good = ["", "a<b", "<x", "<x>1</x>", "a<x>1</x>\n<x>1</x>", "<x>1</x> <x"];
    only(around, &good, &["<x>", "a<x>2</x>", "<x>1</x><x>", "<x>1</x> <x> "]);
}

#[test]
fn schemas_mean_what_the_standard_says() {
    let schema = json!({
        "$id": "https://example.org/person", "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Person",
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {
            "name": {"$ref": "#/$defs/a~1b", "x-unknown": 1},
            "age": {"type": "integer", "minimum": 0, "maximum": 150.0, "format": "int32"},
            "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
            "sort": {"$ref": "https://example.org/person#kind"},
        },
        "$defs": {"a/b": {"type": "string", "minLength": 1, "pattern": "^[A-Z床]"}, "k": {"$anchor": "kind", "enum": [1.0, "x"]}},
    });
    let good = [
        r#"{"name":"Al","age":3}"#,
        r#"{"name":"床","age":150,"friends":[{"name":"B","age":0}],"sort":1}"#,
        r#"{ "name" : "A" , "age" : 3 , "sort" : "x" }"#,
    ];
    let bad = [
        r#"{"name":"al","age":3}"#,
        r#"{"name":"Al"}"#,
        r#"{"name":"Al","age":151}"#,
        r#"{"name":"Al","age":3,"more":1}"#,
        r#"{"name":"Al","age":3,"friends":[{}]}"#,
        r#"{"name":"Al","age":3,"sort":2}"#,
        // A deliberate difference: keys come in the order of the schema.
        r#"{"age":3,"name":"Al"}"#,
    ];
    only(Form::Json(schema), &good, &bad);
}

#[test]
fn what_cannot_be_kept_is_refused_by_name_and_place() {
    let schema = |schema: Value| refused(Form::Json(schema));
    assert_eq!(
        schema(json!({"properties": {"a/b": {"not": {}}}})),
        "at #/properties/a~1b/not: the keyword \"not\" is not supported"
    );
    for (schema_, says) in [
        (json!({"$ref": "http://elsewhere"}), "not in this schema"),
        (json!({"$ref": "#/nowhere"}), "not in this schema"),
        (json!({"items": [{}]}), "prefixItems"),
        (json!({"properties": {"x": {"$id": "y", "type": "string"}}}), "name of its own"),
        (json!({"$schema": "http://example.org/mine"}), "version"),
        (json!({"minLength": -1}), "whole number"),
        (json!({"minimum": "1"}), "number"),
        (json!({"type": "strong"}), "strong"),
        (json!(7), "object"),
        (json!(false), "no value"),
        (json!({"type": "string", "pattern": "(?=a)"}), "look"),
        (json!({"oneOf": [{"type": "integer"}, {"minimum": 2}]}), "oneOf"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (json!({"$ref": "#"}), "no text"),
        (json!({"uniqueItems": true}), "uniqueItems"),
        (json!({"if": {}, "then": false}), "\"if\""),
    ] {
        assert!(schema(schema_.clone()).contains(says), "{schema_}: {}", schema(schema_.clone()));
    }
    assert!(refused(Form::Choice(vec![])).contains("nothing"));
    assert!(refused(Form::Regex("(".into())).contains("regex"), "{}", refused(Form::Regex("(".into())));
    assert!(refused(Form::Lark("begin: \"a\"".into())).contains("start"));
    assert!(
        refused(Form::Lark("root ::= \"a\"".into())).contains("root ::="),
        "{}",
        refused(Form::Lark("root ::= \"a\"".into()))
    );
}

/// Each of these would take a naive compiler all memory, all time or all of its stack.
#[test]
fn hostile_forms_end_soon() {
    let (_, vocabulary) = vocabulary();
    let chain = |n: usize, wrap: fn(String) -> Value| -> Value {
        let link = |i: usize| (format!("d{i}"), wrap(format!("#/$defs/d{}", (i + 1) % n)));
        json!({"$ref": "#/$defs/d0", "$defs": (0..n).map(link).collect::<serde_json::Map<_, _>>()})
    };
    let deep =
        |n: usize, open: &str, middle: &str, close: &str| format!("{}{middle}{}", open.repeat(n), close.repeat(n));
    let nested: Value = serde_json::from_str(&deep(60, "{\"items\":", "{}", "}")).unwrap();
    let rules: String = (0..4000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let forms = [
        Form::Json(chain(499, |next| json!({"$ref": next}))),
        Form::Json(chain(499, |next| json!({"properties": {"x": {"allOf": [{"$ref": next}, {"type": "object"}]}}}))),
        Form::Json(chain(499, |next| json!({"anyOf": [{"$ref": next}, {"type": "array", "items": {"$ref": next}}]}))),
        Form::Json(chain(5000, |next| json!({"$ref": next}))),
        Form::Json(nested),
        Form::Json(json!({"type": "string", "minLength": 4_000_000_000_u32})),
        Form::Json(json!({"type": "string", "pattern": "^(((a{1000}){1000}){1000})$"})),
        Form::Json(json!({"type": "array", "minItems": 4_000_000_000_u32})),
        Form::Json(json!({"type": "integer", "multipleOf": 4_000_000_007_u32})),
        Form::Json(json!({"enum": (0..30_000).collect::<Vec<u32>>()})),
        Form::Json(json!({"enum": (0..3000).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
        Form::Json(
            json!({"properties": (0..3000).map(|i| (format!("p{i}"), json!({}))).collect::<serde_json::Map<_, _>>()}),
        ),
        Form::Regex(deep(200, "(", "a", ")*")),
        Form::Regex(deep(30_000, "(", "a", ")")),
        Form::Regex("(.*a){50}.{100}b".into()),
        Form::Regex("a".repeat(60_000)),
        Form::Regex("[^a]|".repeat(10_000)),
        Form::Regex("x".repeat(70_000)),
        Form::Lark(format!("start: r0\n{rules}r4000: \"x\"\n")),
        Form::Lark(format!("start: {}", deep(30_000, "(", "\"a\"", ")"))),
        Form::Lark(format!("start: {}", deep(190, "(", "\"a\"", ")"))),
        Form::Lark("start: start start | \"a\" | \"\"".into()),
        Form::Lark("start: (/.*/ /.*/ /.*/ /.*/){100}".into()),
        Form::Lark("start: x{1000000}\nx: y{1000000}\ny: \"a\"{1000000}".into()),
    ];
    for form in forms {
        let since = Instant::now();
        let compiled = vocabulary.compile(&form);
        let took = since.elapsed();
        let shown: String = format!("{form:?}").chars().take(80).collect();
        eprintln!("{took:?} {} {shown}", compiled.as_ref().map_or_else(ToString::to_string, |_| "compiled".into()));
        // Some are sound. A step of one costs no more than its limits, even in a build for tests.
        assert!(took < Duration::from_secs(20), "{took:?} for {shown}");
        let Ok(constraint) = compiled else { continue };
        let mut guide = constraint.guide();
        for _ in 0..30 {
            let since = Instant::now();
            let Ok(false) = guide.finished() else { break };
            let mut logits = vec![0.0; 320];
            let Ok(Some(id)) = guide.draw(&mut logits, &[], |x| x.iter().position(|x| *x == 0.0).unwrap() as u32)
            else {
                break;
            };
            if guide.take(id).is_err() {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(5), "{:?} for a token of {shown}", since.elapsed());
        }
    }
}

#[test]
fn a_guide_is_drawn_from_as_the_form_says() {
    let (tokenizer, vocabulary) = vocabulary();
    let byte = |byte: u8| tokenizer.encode_bytes(&[byte]).unwrap()[0];
    let constraint = vocabulary.compile(&Form::Regex("ab?".into())).unwrap();
    let mut guide = constraint.guide();
    let end = 0;
    let draw = |guide: &mut Guide, likes: &[u32]| {
        let mut logits: Vec<f32> = vec![0.0; 400];
        for (rank, &id) in likes.iter().enumerate() {
            logits[id as usize] = 100.0 - rank as f32;
        }
        let best =
            |x: &mut [f32]| (0..x.len() as u32).max_by(|&a, &b| x[a as usize].total_cmp(&x[b as usize])).unwrap();
        guide.draw(&mut logits, &[end, 5000], best).unwrap()
    };
    // The end would be likelier, and so would tokens beyond the vocabulary; what is no number is drawn if it must be.
    assert_eq!(draw(&mut guide, &[end, 390, byte(b'x'), byte(b'a')]), Some(byte(b'a')));
    let mut nan = vec![f32::NAN; 400];
    assert_eq!(guide.draw(&mut nan, &[end], |_| 7).unwrap(), Some(byte(b'a')));
    guide.take(byte(b'a')).unwrap();
    assert!(guide.complete().unwrap() && !guide.finished().unwrap());
    assert_eq!(draw(&mut guide, &[byte(b'x'), end, byte(b'b')]), Some(end));
    assert_eq!(draw(&mut guide, &[byte(b'b'), end]), Some(byte(b'b')));
    guide.take(byte(b'b')).unwrap();
    assert!(guide.finished().unwrap());
    assert_eq!(draw(&mut guide, &[byte(b'b')]), None);
    // Two guides know nothing of each other.
    assert!(passes(&constraint, &[byte(b'a')]) && !passes(&constraint, &[byte(b'b')]));
    assert_eq!(
        (constraint.clone() == constraint, vocabulary.compile(&Form::Regex("ab?".into())).unwrap() == constraint),
        (true, false)
    );
}
