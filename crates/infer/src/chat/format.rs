//! Formats of texts, printf's and Python's, that cannot ask for more than a bit of padding.
//!
//! A few characters of a template may ask for gigabytes (`"{:99999999999}".format(1)`), which no fuel pays for before they are
//! there, and minijinja 3.1.0 panics where a precision is above 65,535 (`'%.65536e' | format(3)`) and where a key is not ASCII
//! (`'%(名)s'`, `'{a[名]}'`). No template in use pads by more than a column, or has such keys.

use super::bounds::walk;
use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Characters that all widths and precisions of a format may come to.
const MOST: usize = 4096;

/// The filter: printf's format of values.
pub fn filter(state: &mut State, format: &Value, values: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let text = format.as_str().unwrap_or_default();
    keys(text.replace("%%", "").split("%(").skip(1).map(|key| key.split(')').next().unwrap_or_default()))?;
    // A specification follows a percent sign, or the key of a value after one, and ends with a letter.
    let specs = text.split(['%', ')']).skip(1);
    check(specs.map(padding).filter(|(_, end)| end.starts_with(|c: char| c.is_ascii_alphabetic())))?;
    minijinja::filters::format(state, format, values)
}

/// Methods that Python's values have and minijinja's do not.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    walk(state, value)?;
    if let (Some(format), "format") = (value.as_str(), name) {
        // A key in brackets follows a brace and a path, or another key.
        let path = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        let text = format.replace("{{", "");
        let mut rest = text.as_str();
        while let Some((_, field)) = rest.split_once('{') {
            rest = field.trim_start_matches(path);
            while let Some(keyed) = rest.strip_prefix('[') {
                let (key, after) = keyed.split_once(']').unwrap_or((keyed, ""));
                keys([key].into_iter())?;
                rest = after.trim_start_matches(path);
            }
        }
        // A specification follows a colon, perhaps begins with what fills the room and where, and ends before a brace.
        let specs = format.match_indices(':').map(|(at, _)| {
            let spec = &format[at + 1..];
            let filled = spec.char_indices().nth(1).filter(|&(_, place)| "<>^=".contains(place));
            padding(filled.map_or(spec, |(at, _)| &spec[at + 1..]))
        });
        let ends = |end: &str| end.trim_start_matches(|c: char| c.is_ascii_alphabetic()).starts_with('}');
        check(specs.filter(|(_, end)| ends(end)))?;
    }
    pycompat::unknown_method_callback(state, value, name, arguments)
}

/// Width and precision that a specification asks for, and what follows them.
fn padding(spec: &str) -> (usize, &str) {
    fn number(text: &str) -> (usize, &str) {
        let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        (if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) }, rest)
    }
    let (width, rest) = number(spec.trim_start_matches(['<', '>', '^', '=', '#', '0', '-', '+', ' ']));
    let rest = rest.trim_start_matches([',', '_']);
    let (precision, rest) = rest.strip_prefix('.').map_or((0, rest), number);
    (width.saturating_add(precision), rest)
}

/// That these keys are ASCII.
fn keys<'a>(mut keys: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    match keys.find(|key| !key.is_ascii()) {
        Some(key) => Err(Error::new(ErrorKind::InvalidOperation, format!("the key {key:?} of a format is not ASCII"))),
        None => Ok(()),
    }
}

/// That these ask for [`MOST`] characters at most.
fn check<'a>(specs: impl Iterator<Item = (usize, &'a str)>) -> Result<(), Error> {
    let wanted = specs.fold(0usize, |sum, (characters, _)| sum.saturating_add(characters));
    if wanted > MOST {
        let reason = format!("a format asks for {wanted} characters of width and precision; at most are {MOST}");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok(())
}
