//! Which keys there are, asked of the settings' own types.
//!
//! Every level of settings (flags, environment, files, presets) needs the list of keys with their kinds: to find a value
//! by its name, to read `3e-4` as a number and `zh` as a word, and to name the nearest key to one that does not exist.
//! A list written by hand would go stale. So a [`Tracer`] poses as the source of a value while serde builds one: it hears
//! each field's name and the type it asks for, and answers with any value of that type.
//!
//! It understands what settings are made of: structs, numbers, words, flags, optional values, lists, and enums without
//! data. A type that is none of these is refused by [`Schema::of`], which every test of this crate calls. A type that
//! checks its values may not like made-up ones: where it is optional it is left out, once its keys are known.

use serde::de::value::StrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, IntoDeserializer, Visitor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// Text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several of one kind.
    List(Box<Kind>),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Bool => f.write_str("true or false"),
            Kind::Integer => f.write_str("a whole number"),
            Kind::Float => f.write_str("a number"),
            Kind::Text => f.write_str("text"),
            Kind::Choice(words) => match words {
                [one] => write!(f, "\"{one}\""),
                [first @ .., last] => {
                    let quoted: Vec<String> = first.iter().map(|word| format!("\"{word}\"")).collect();
                    write!(f, "{} or \"{last}\"", quoted.join(", "))
                }
                [] => f.write_str("nothing"),
            },
            Kind::List(kind) => write!(f, "a list, each item {kind}"),
        }
    }
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What it holds.
    pub kind: Kind,
    /// Whether it may be absent (`none` on a command line).
    pub optional: bool,
}

/// All keys by their dotted paths.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    keys: BTreeMap<String, Key>,
}

impl Schema {
    /// The keys of a type, or why it cannot be settings.
    pub fn of<'de, T: Deserialize<'de>>() -> Result<Schema, String> {
        let (keys, left_out) = (RefCell::new(BTreeMap::new()), RefCell::new(BTreeSet::new()));
        loop {
            let tracer = Tracer { keys: &keys, left_out: &left_out, path: String::new(), optional: false };
            match T::deserialize(tracer) {
                Ok(_) => return Ok(Schema { keys: keys.into_inner() }),
                Err(Unsupported::Check { path: Some(path), .. }) if left_out.borrow_mut().insert(path.clone()) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The key at a dotted path.
    pub fn get(&self, path: &str) -> Option<&Key> {
        self.keys.get(path)
    }

    /// All dotted paths, in order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Whether keys lie below this path.
    pub fn is_table(&self, path: &str) -> bool {
        let below = format!("{path}.");
        self.keys.range(below.clone()..).next().is_some_and(|(key, _)| key.starts_with(&below))
    }

    /// The known path most like an unknown one, a section's too. A path whose last word alone is right (`lr` for
    /// `train.lr`) is near, and so is one that abbreviates it (`train.lr` for `train.learning_rate`).
    pub fn nearest(&self, unknown: &str) -> Option<&str> {
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let initials: String = last(unknown).split('_').filter_map(|word| word.chars().next()).collect();
        let score = |known: &str| {
            let name = last(known);
            let whole = strsim::normalized_damerau_levenshtein(unknown, known);
            let abbreviated = if name == initials { 0.9 } else { 0.0 };
            whole.max(0.95 * strsim::normalized_damerau_levenshtein(&last(unknown), &name)).max(abbreviated)
        };
        let sections = self.paths().flat_map(|path| path.match_indices('.').map(|(end, _)| &path[..end]));
        let all = self.paths().chain(sections);
        let best = all.map(|known| (known, score(known))).max_by(|a, b| a.1.total_cmp(&b.1))?;
        (best.1 > 0.4).then_some(best.0)
    }
}

/// Why a type cannot be settings.
#[derive(Debug)]
enum Unsupported {
    /// It is no setting.
    Kind(String),
    /// Its own check refuses a made-up value; the path is that of the nearest optional value around it.
    Check { path: Option<String>, message: String },
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Unsupported::Kind(message) | Unsupported::Check { message, .. }) = self;
        f.write_str(message)
    }
}

impl std::error::Error for Unsupported {}

impl de::Error for Unsupported {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Unsupported::Check { path: None, message: message.to_string() }
    }
}

/// Poses as the value at a path.
struct Tracer<'a> {
    keys: &'a RefCell<BTreeMap<String, Key>>,
    left_out: &'a RefCell<BTreeSet<String>>,
    path: String,
    optional: bool,
}

impl Tracer<'_> {
    fn record(&self, kind: Kind) {
        self.keys.borrow_mut().insert(self.path.clone(), Key { kind, optional: self.optional });
    }

    fn refuse<T>(&self, what: &str) -> Result<T, Unsupported> {
        Err(Unsupported::Kind(format!("{}: {what} cannot be a setting", self.path)))
    }
}

macro_rules! scalars {
    ($($method:ident => $kind:expr, $visit:ident($value:expr);)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unsupported> {
            self.record($kind);
            visitor.$visit($value)
        })+
    };
}

macro_rules! refused {
    ($($method:ident => $what:expr;)+) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unsupported> {
            self.refuse($what)
        })+
    };
}

impl<'de> de::Deserializer<'de> for Tracer<'_> {
    type Error = Unsupported;

    scalars! {
        deserialize_bool => Kind::Bool, visit_bool(false);
        deserialize_i8 => Kind::Integer, visit_i8(1);
        deserialize_i16 => Kind::Integer, visit_i16(1);
        deserialize_i32 => Kind::Integer, visit_i32(1);
        deserialize_i64 => Kind::Integer, visit_i64(1);
        deserialize_u8 => Kind::Integer, visit_u8(1);
        deserialize_u16 => Kind::Integer, visit_u16(1);
        deserialize_u32 => Kind::Integer, visit_u32(1);
        deserialize_u64 => Kind::Integer, visit_u64(1);
        deserialize_f32 => Kind::Float, visit_f32(1.0);
        deserialize_f64 => Kind::Float, visit_f64(1.0);
        deserialize_str => Kind::Text, visit_str("");
        deserialize_string => Kind::Text, visit_str("");
    }

    refused! {
        deserialize_any => "a value of any type";
        deserialize_ignored_any => "an ignored value";
        deserialize_char => "a character";
        deserialize_bytes => "bytes";
        deserialize_byte_buf => "bytes";
        deserialize_unit => "nothing";
        deserialize_map => "a map";
        deserialize_identifier => "a name";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unsupported> {
        if self.left_out.borrow().contains(&self.path) {
            return visitor.visit_none();
        }
        let around = self.path.clone();
        visitor.visit_some(Tracer { optional: true, ..self }).map_err(|error| match error {
            Unsupported::Check { path: None, message } => Unsupported::Check { path: Some(around), message },
            other => other,
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, Unsupported> {
        v.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, Unsupported> {
        self.refuse("nothing")
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unsupported> {
        visitor.visit_map(Fields { tracer: self, fields, next: 0 })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unsupported> {
        self.record(Kind::Choice(variants));
        let first: StrDeserializer<'_, Unsupported> = variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unsupported> {
        let item = RefCell::new(BTreeMap::new());
        let value = visitor.visit_seq(One { keys: &item, left_out: self.left_out, given: false })?;
        let Some(Key { kind, .. }) = item.into_inner().remove("") else {
            return self.refuse("a list of tables");
        };
        self.record(Kind::List(Box::new(kind)));
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Unsupported> {
        self.refuse("a tuple")
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        _: V,
    ) -> Result<V::Value, Unsupported> {
        self.refuse("a tuple")
    }
}

/// The fields of a struct, one after the other.
struct Fields<'a> {
    tracer: Tracer<'a>,
    fields: &'static [&'static str],
    next: usize,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = Unsupported;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unsupported> {
        let Some(field) = self.fields.get(self.next) else { return Ok(None) };
        let name: StrDeserializer<'_, Unsupported> = (*field).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Unsupported> {
        let field = self.fields[self.next];
        self.next += 1;
        let above = &self.tracer.path;
        let path = if above.is_empty() { field.to_owned() } else { format!("{above}.{field}") };
        seed.deserialize(Tracer { path, optional: false, ..self.tracer })
    }
}

/// A list of one item.
struct One<'a> {
    keys: &'a RefCell<BTreeMap<String, Key>>,
    left_out: &'a RefCell<BTreeSet<String>>,
    given: bool,
}

impl<'de> de::SeqAccess<'de> for One<'_> {
    type Error = Unsupported;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Unsupported> {
        if std::mem::replace(&mut self.given, true) {
            return Ok(None);
        }
        let Self { keys, left_out, .. } = *self;
        seed.deserialize(Tracer { keys, left_out, path: String::new(), optional: false }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[derive(Default)]
    struct Sample {
        steps: u64,
        rate: f64,
        out: Option<std::path::PathBuf>,
        layers: Vec<usize>,
        colour: Colour,
        inner: Option<Inner>,
        picky: Option<Picky>,
    }

    /// Likes no value that is made up.
    #[derive(Deserialize)]
    #[serde(try_from = "Taste")]
    struct Picky;

    #[derive(Deserialize)]
    struct Taste {
        flavour: String,
    }

    impl TryFrom<Taste> for Picky {
        type Error = &'static str;

        fn try_from(taste: Taste) -> Result<Self, Self::Error> {
            if taste.flavour.is_empty() { Err("no flavour") } else { Ok(Picky) }
        }
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        #[default]
        Red,
        DarkBlue,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape is looked at")]
    struct Short {
        lr: f64,
        decay_ratio: f64,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape is looked at")]
    struct Inner {
        name: String,
        on: bool,
    }

    #[test]
    fn the_keys_of_a_type_are_found_with_their_kinds() {
        let schema = Schema::of::<Sample>().unwrap();
        let found: Vec<_> = schema.paths().map(|path| (path, schema.get(path).unwrap().clone())).collect();
        let key = |kind, optional| Key { kind, optional };
        assert_eq!(
            found,
            [
                ("colour", key(Kind::Choice(&["red", "dark_blue"]), false)),
                ("inner.name", key(Kind::Text, false)),
                ("inner.on", key(Kind::Bool, false)),
                ("layers", key(Kind::List(Box::new(Kind::Integer)), false)),
                ("out", key(Kind::Text, true)),
                ("picky.flavour", key(Kind::Text, false)),
                ("rate", key(Kind::Float, false)),
                ("steps", key(Kind::Integer, false)),
            ]
        );
        assert!(schema.is_table("inner") && !schema.is_table("rate") && !schema.is_table("in"));
    }

    #[test]
    fn the_nearest_key_is_named() {
        let schema = Schema::of::<Sample>().unwrap();
        assert_eq!(schema.nearest("stps"), Some("steps"));
        assert_eq!(schema.nearest("name"), Some("inner.name"));
        assert_eq!(schema.nearest("iner.name"), Some("inner.name"));
        assert_eq!(schema.nearest("inenr"), Some("inner"));
        assert_eq!(Schema::of::<Short>().unwrap().nearest("learning_rate"), Some("lr"));
        assert_eq!(schema.nearest("zzzzzzzz"), None);
    }

    #[test]
    fn what_cannot_be_a_setting_is_refused() {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "only its shape is looked at")]
        struct Free {
            any: BTreeMap<String, String>,
        }
        assert_eq!(Schema::of::<Free>().unwrap_err(), "any: a map cannot be a setting");
        assert_eq!(Schema::of::<Picky>().unwrap_err(), "no flavour");
    }
}
