//! Values: read from the words of a command line, and checked against what a key holds.

use super::schema::{Key, Kind};
use toml::Value;

/// How "no value" is spelled for an optional key.
const NONE: &str = "none";

/// Reads what somebody typed after `--set key=` or into an environment variable. `Ok(None)` is "no value".
pub fn parse(key: &Key, text: &str) -> Result<Option<Value>, String> {
    if key.optional && text == NONE {
        return Ok(None);
    }
    parse_kind(&key.kind, text).map(Some)
}

fn parse_kind(kind: &Kind, text: &str) -> Result<Value, String> {
    let wrong = || Err(format!("expected {kind}, found \"{text}\""));
    Ok(match kind {
        Kind::Bool => match text {
            "true" | "1" | "yes" | "on" => Value::Boolean(true),
            "false" | "0" | "no" | "off" => Value::Boolean(false),
            _ => return wrong(),
        },
        Kind::Integer => match text.replace('_', "").parse::<i64>() {
            Ok(number) => Value::Integer(number),
            // 1e9 is a whole number too, and easier to read than its zeros.
            Err(_) => match text.parse::<f64>() {
                Ok(number) if number.fract() == 0.0 && number.abs() < 2f64.powi(53) => Value::Integer(number as i64),
                _ => return wrong(),
            },
        },
        Kind::Float => match text.replace('_', "").parse::<f64>() {
            Ok(number) if number.is_finite() => Value::Float(number),
            _ => return wrong(),
        },
        Kind::Text => Value::String(text.to_owned()),
        Kind::Choice(words) if words.contains(&text) => Value::String(text.to_owned()),
        Kind::Choice(_) => return wrong(),
        Kind::List(item) => {
            let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text).trim();
            let items = inside.split(',').map(|part| part.trim().trim_matches('"')).filter(|part| !part.is_empty());
            Value::Array(items.map(|part| parse_kind(item, part)).collect::<Result<_, _>>()?)
        }
    })
}

/// Checks a value from a TOML file. A whole number is a number.
pub fn check(kind: &Kind, value: &Value) -> Result<Value, String> {
    match (kind, value) {
        (Kind::Bool, Value::Boolean(_)) | (Kind::Integer, Value::Integer(_)) | (Kind::Text, Value::String(_)) => {
            Ok(value.clone())
        }
        (Kind::Float, Value::Integer(number)) => Ok(Value::Float(*number as f64)),
        (Kind::Float, Value::Float(number)) if number.is_finite() => Ok(value.clone()),
        (Kind::Choice(words), Value::String(word)) if words.contains(&word.as_str()) => Ok(value.clone()),
        (Kind::List(item), Value::Array(items)) => {
            items.iter().map(|value| check(item, value)).collect::<Result<_, _>>().map(Value::Array)
        }
        (_, Value::Table(_)) => Err(format!("expected {kind}, found a table")),
        _ => Err(format!("expected {kind}, found {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: Kind) -> Key {
        Key { kind, optional: true }
    }

    #[test]
    fn words_become_values_of_the_keys_kind() {
        let list = Kind::List(Box::new(Kind::Integer));
        for (kind, text, expected) in [
            (Kind::Float, "3e-4", "0.0003"),
            (Kind::Float, "3", "3.0"),
            (Kind::Integer, "1_000", "1000"),
            (Kind::Integer, "2e9", "2000000000"),
            (Kind::Integer, "-1", "-1"),
            (Kind::Bool, "on", "true"),
            (Kind::Text, "a b", "\"a b\""),
            (Kind::Choice(&["zh", "en"]), "en", "\"en\""),
            (list.clone(), "[0, 1]", "[0, 1]"),
            (list.clone(), "2,3", "[2, 3]"),
            (list, "[]", "[]"),
        ] {
            assert_eq!(parse(&key(kind), text).unwrap().unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(parse(&key(Kind::Integer), "none").unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for (kind, text, expected) in [
            (Kind::Integer, "1.5", "expected a whole number, found \"1.5\""),
            (Kind::Float, "fast", "expected a number, found \"fast\""),
            (Kind::Float, "nan", "expected a number, found \"nan\""),
            (Kind::Choice(&["cosine", "wsd"]), "cos", "expected \"cosine\" or \"wsd\", found \"cos\""),
        ] {
            assert_eq!(parse(&key(kind), text).unwrap_err(), expected);
        }
        let value = Value::String("3".into());
        assert_eq!(check(&Kind::Integer, &value).unwrap_err(), "expected a whole number, found \"3\"");
        assert_eq!(check(&Kind::Float, &Value::Integer(3)).unwrap(), Value::Float(3.0));
    }
}
