//! JSON Schemas on their way to the compiler of grammars: only what it understands as draft 2020-12 means it, the rest refused
//! by name and place.
//!
//! The compiler leaves out what it does not know and reads some things in its own way, so it is given a schema that holds
//! nothing but the keywords of [`KEYWORDS`], each where it counts. What a `$ref` names is put under `$defs` by number: the
//! compiler need not know pointers and anchors, and how far it goes is known before it starts. Annotations and unknown keywords
//! say nothing about a value, by the standard, and are dropped.

use super::ConstraintError;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Days that there are, and some more that a format forbids.
macro_rules! leap {
    () => {
        "[0-9]{4}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{2})|\
         (?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
    };
}

/// Keywords that are kept.
pub const KEYWORDS: &[&str] = &[
    "$defs",
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "required",
    "type",
];

/// Values of `format` that are kept; others are annotations.
pub const FORMATS: &[&str] =
    &["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// What the compiler's formats leave out: the 29th of February is a day of leap years alone, and there are no leap seconds.
const STRICTER: &[(&str, &str)] = &[
    ("date", concat!("^(?:", leap!(), ")$")),
    ("date-time", concat!("^(?:", leap!(), ")[Tt][0-9:]{6}[0-5]")),
    ("time", "^[0-9:]{6}[0-5]"),
];

/// Keywords that say something about a value which is not checked here.
const REFUSED: &[&str] = &[
    "$dynamicRef",
    "$recursiveRef",
    "additionalItems",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "not",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Most schemas in a schema, `$ref`s to different places, and schemas inside schemas.
const MAX_SCHEMAS: usize = 3000;
const MAX_TARGETS: usize = 500;
const MAX_DEPTH: usize = 64;
/// Most values in all `enum`s and `const`s.
const MAX_VALUES: usize = 20_000;

/// Space between the parts of a JSON text: enough to indent it, but not so much that a model could go on with it for ever.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Whether a schema can be kept, as far as that shows without compiling it.
pub fn check(schema: &Value) -> Result<(), ConstraintError> {
    prepare(schema).map(drop)
}

/// The schema as the compiler is given it.
pub(super) fn prepare(schema: &Value) -> Result<Value, ConstraintError> {
    let mut reader = Reader {
        root: schema,
        id: schema.get("$id").and_then(Value::as_str).unwrap_or_default(),
        anchors: HashMap::new(),
        numbers: HashMap::new(),
        targets: Vec::new(),
        schemas: 0,
        values: 0,
    };
    if let Some(dialect) = schema.get("$schema").and_then(Value::as_str)
        && !dialect.contains("//json-schema.org/draft")
    {
        let reason = format!("\"{}\" is not a version of JSON Schema that is known here", short(dialect));
        return Err(ConstraintError::Schema { at: "#/$schema".into(), reason });
    }
    reader.anchors(schema, 0);
    let mut prepared = match reader.schema(schema, "#", 0)? {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        _ => return Err(ConstraintError::Schema { at: "#".into(), reason: "no value is accepted".into() }),
    };
    let mut definitions = Map::new();
    let mut done = 0;
    while let Some((at, target)) = reader.targets.get(done).cloned() {
        let depth = usize::from(!std::ptr::eq(target, schema));
        let definition = reader.schema(target, &at, depth)?;
        definitions.insert(done.to_string(), definition);
        done += 1;
    }
    if !definitions.is_empty() {
        prepared.insert("$defs".into(), Value::Object(definitions));
    }
    prepared.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
    Ok(Value::Object(prepared))
}

struct Reader<'a> {
    root: &'a Value,
    /// What the schema calls itself.
    id: &'a str,
    anchors: HashMap<&'a str, &'a Value>,
    /// The number of each place that a `$ref` names.
    numbers: HashMap<String, usize>,
    targets: Vec<(String, &'a Value)>,
    schemas: usize,
    values: usize,
}

impl<'a> Reader<'a> {
    /// All anchors, wherever they are: a schema may be kept under any name.
    fn anchors(&mut self, value: &'a Value, depth: usize) {
        if depth > 2 * MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                if let Some(anchor) = map.get("$anchor").and_then(Value::as_str) {
                    self.anchors.insert(anchor, value);
                }
                map.values().for_each(|inner| self.anchors(inner, depth + 1));
            }
            Value::Array(list) => list.iter().for_each(|inner| self.anchors(inner, depth + 1)),
            _ => {}
        }
    }

    fn schema(&mut self, schema: &'a Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS {
            return Err(ConstraintError::TooLarge { what: "the schemas in the schema".into(), limit: MAX_SCHEMAS });
        }
        if depth > MAX_DEPTH {
            return Err(ConstraintError::TooLarge { what: "schemas inside schemas".into(), limit: MAX_DEPTH });
        }
        let map = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(map) => map,
            _ => return Err(wrong(at, "a schema is an object, true or false")),
        };
        if depth > 0 && map.get("$id").is_some_and(Value::is_string) {
            return Err(wrong(&under(at, "$id"), "a schema inside the schema may not have a name of its own"));
        }
        let mut kept = Map::new();
        for (key, value) in map {
            let here = under(at, key);
            if let Some(value) = self.keyword(map, key, value, &here, depth)? {
                kept.insert(key.clone(), value);
            }
        }
        let stricter = STRICTER.iter().find(|(format, _)| kept.get("format").is_some_and(|own| own == format));
        if let Some((_, pattern)) = stricter {
            kept = Map::from_iter([("allOf".into(), json!([kept, {"pattern": pattern}]))]);
        }
        Ok(Value::Object(kept))
    }

    /// What is kept of a keyword's value, if anything.
    fn keyword(
        &mut self,
        map: &'a Map<String, Value>,
        key: &str,
        value: &'a Value,
        at: &str,
        depth: usize,
    ) -> Result<Option<Value>, ConstraintError> {
        let unsupported = || Err(wrong(at, &format!("the keyword \"{key}\" is not supported")));
        Ok(Some(match key {
            "$ref" => json!(format!("#/$defs/{}", self.target(value, at)?)),
            // What is used of them is found through `$ref`.
            "$defs" => return Ok(None),
            "properties" | "patternProperties" => {
                let inner = value.as_object().ok_or_else(|| wrong(at, "it must be an object of schemas"))?;
                let mut kept = Map::new();
                for (name, schema) in inner {
                    kept.insert(name.clone(), self.schema(schema, &under(at, name), depth + 1)?);
                }
                Value::Object(kept)
            }
            "items" if value.is_array() => return Err(wrong(at, "a list of schemas is called \"prefixItems\" today")),
            "items" | "additionalProperties" => self.schema(value, at, depth + 1)?,
            "prefixItems" | "allOf" | "anyOf" | "oneOf" => {
                let list = value.as_array().ok_or_else(|| wrong(at, "it must be a list of schemas"))?;
                let each = |(number, schema)| self.schema(schema, &under(at, &format!("{number}")), depth + 1);
                list.iter().enumerate().map(each).collect::<Result<_, _>>()?
            }
            "const" => self.value(value, at, 0)?,
            "enum" => {
                let list = value.as_array().ok_or_else(|| wrong(at, "it must be a list of values"))?;
                list.iter().map(|value| self.value(value, at, 0)).collect::<Result<_, _>>()?
            }
            "format" if !value.as_str().is_some_and(|format| FORMATS.contains(&format)) => return Ok(None),
            "maximum" | "minimum" | "exclusiveMaximum" | "exclusiveMinimum" | "multipleOf" => number(value, at)?,
            "maxItems" | "minItems" | "maxLength" | "minLength" | "maxProperties" | "minProperties" => {
                count(value, at)?
            }
            key if KEYWORDS.contains(&key) => value.clone(),
            "uniqueItems" if value == &json!(false) => return Ok(None),
            "uniqueItems" => return unsupported(),
            "if" if map.contains_key("then") || map.contains_key("else") => return unsupported(),
            key if REFUSED.contains(&key) => return unsupported(),
            _ => return Ok(None),
        }))
    }

    /// The number of the place that a `$ref` names.
    fn target(&mut self, reference: &Value, at: &str) -> Result<usize, ConstraintError> {
        let text = reference.as_str().ok_or_else(|| wrong(at, "it must be text"))?;
        let inner = if self.id.is_empty() { text } else { text.strip_prefix(self.id).unwrap_or(text) };
        let outside = || wrong(at, &format!("\"{}\" is not in this schema", short(text)));
        let fragment = percent_decoded(inner.strip_prefix('#').ok_or_else(outside)?).ok_or_else(outside)?;
        if let Some(&number) = self.numbers.get(&fragment) {
            return Ok(number);
        }
        let target = match fragment.is_empty() || fragment.starts_with('/') {
            true => self.root.pointer(&fragment),
            false => self.anchors.get(fragment.as_str()).copied(),
        };
        let number = self.targets.len();
        if number == MAX_TARGETS {
            return Err(ConstraintError::TooLarge {
                what: "the places that are named by $ref".into(),
                limit: MAX_TARGETS,
            });
        }
        self.targets.push((format!("#{fragment}"), target.ok_or_else(outside)?));
        self.numbers.insert(fragment, number);
        Ok(number)
    }

    /// A value that is asked for. A whole number is written without a fraction, however the schema writes it.
    fn value(&mut self, value: &Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(ConstraintError::TooLarge { what: "the values in enum and const".into(), limit: MAX_VALUES });
        }
        if depth > MAX_DEPTH {
            return Err(ConstraintError::TooLarge { what: "values inside values".into(), limit: MAX_DEPTH });
        }
        Ok(match value {
            Value::Number(_) => number(value, at)?,
            Value::Array(list) => {
                list.iter().map(|value| self.value(value, at, depth + 1)).collect::<Result<_, _>>()?
            }
            Value::Object(map) => {
                let each = |(key, value): (&String, &Value)| Ok((key.clone(), self.value(value, at, depth + 1)?));
                map.iter().map(each).collect::<Result<Map<_, _>, ConstraintError>>()?.into()
            }
            other => other.clone(),
        })
    }
}

/// A number, a whole one without a fraction.
fn number(value: &Value, at: &str) -> Result<Value, ConstraintError> {
    let x = value.as_f64().ok_or_else(|| wrong(at, "it must be a number"))?;
    // Up to here every whole number has an f64 of its own.
    let whole = x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0;
    Ok(if whole { json!(x as i64) } else { value.clone() })
}

fn count(value: &Value, at: &str) -> Result<Value, ConstraintError> {
    match number(value, at)?.as_u64() {
        Some(count) if u32::try_from(count).is_ok() => Ok(json!(count)),
        _ => Err(wrong(at, "it must be a whole number from 0 to 4294967295")),
    }
}

fn wrong(at: &str, reason: &str) -> ConstraintError {
    ConstraintError::Schema { at: short(at), reason: reason.to_owned() }
}

fn under(at: &str, key: &str) -> String {
    format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A part of an address, `%41` as `A`.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (16 * digit()? + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}
