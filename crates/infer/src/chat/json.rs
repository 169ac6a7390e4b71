//! `tojson` as transformers defines it: Python's `json.dumps`, to the character.
//!
//! Jinja's own escapes what is special in HTML, and minijinja's besides knows neither separators nor sorted keys.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Values inside values.
const DEPTH: usize = 200;

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let flag = |name| options.get::<Option<bool>>(name).map(Option::unwrap_or_default);
    let indent = match options.get::<Option<Value>>("indent")?.filter(|value| !value.is_none()) {
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(value)?.min(16))),
        },
        None => None,
    };
    let default = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")? {
        Some(pair) => pair
            .into_iter()
            .collect::<Vec<_>>()
            .try_into()
            .map(|[a, b]: [String; 2]| (a, b))
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts"))?,
        None => default,
    };
    // They come with every element.
    if [indent.as_ref(), Some(&item), Some(&key)].into_iter().flatten().any(|text| text.len() > 64) {
        let what = "tojson: indent and separators have 64 bytes at most";
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    let style = Style { ensure_ascii: flag("ensure_ascii")?, indent, item, key, sort_keys: flag("sort_keys")? };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: too deep"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(number) if !value.is_integer() => out.push_str(&float(number)),
                _ => write!(out, "{value}").map_err(|_| ErrorKind::WriteFailure)?,
            },
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items('{', '}', keys, depth, out, |key, out| {
                    match key.as_str() {
                        Some(text) => self.text(text, out),
                        None => {
                            // Numbers and constants as keys become texts.
                            let mut inner = String::new();
                            self.write(&key, depth + 1, &mut inner)?;
                            self.text(&inner, out);
                        }
                    }
                    out.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', items, depth, out, |item, out| self.write(&item, depth + 1, out))?;
            }
            kind => {
                let what = format!("tojson: {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        }
        Ok(())
    }

    fn items(
        &self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        mut each: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let empty = items.is_empty();
        for (number, item) in items.into_iter().enumerate() {
            if number > 0 {
                out.push_str(&self.item);
            }
            self.newline(depth + 1, out);
            each(item, out)?;
        }
        if !empty {
            self.newline(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn newline(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if c < ' ' || self.ensure_ascii && c > '~' => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python's `repr` writes it: the shortest digits that give it back, as a power of ten if it is below 1e-4 or
/// from 1e16 on.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or_default() {
        exponent @ (..-4 | 16..) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        _ => format!("{x:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_python_s() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e300, "1.25e+300"),
            (123456.789, "123456.789"),
        ];
        cases.iter().for_each(|&(x, text)| assert_eq!(float(x), text));
    }
}
