//! Metadata: typed values, read where they lie in the file. A list of a hundred thousand tokens is not copied to be
//! checked; whoever wants its elements walks over them.

use crate::weights::WeightsError;
use std::path::Path;

/// How deep lists may be nested. Nothing known nests them at all.
const DEEPEST: usize = 4;

/// A value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value<'a> {
    /// A whole number without a sign, of any width.
    Unsigned(u64),
    /// A whole number with a sign, of any width.
    Signed(i64),
    /// A floating-point number. One of 32 bits is the number that its shortest decimal stands for: 1e-5, not
    /// 0.0000099999997.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// A list of values of one type.
    Array(Array<'a>),
}

/// A list of values of one type.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

/// The type of a value, by its number in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_number(n: u32) -> Option<Kind> {
        use Kind::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Text, Array, U64, I64, F64].get(n as usize).copied()
    }

    /// Bytes of a value; of a text or a list, bytes that every one has.
    fn least(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Text => 8,
            Kind::Array => 12,
        }
    }
}

impl<'a> Value<'a> {
    /// A whole number that is not negative.
    pub fn whole(self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A number of any kind.
    pub fn number(self) -> Option<f64> {
        match self {
            Value::Unsigned(n) => Some(n as f64),
            Value::Signed(n) => Some(n as f64),
            Value::Float(x) => Some(x),
            _ => None,
        }
    }

    /// A text.
    pub fn text(self) -> Option<&'a str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    /// True or false.
    pub fn flag(self) -> Option<bool> {
        if let Value::Bool(flag) = self { Some(flag) } else { None }
    }

    /// A list.
    pub fn array(self) -> Option<Array<'a>> {
        if let Value::Array(array) = self { Some(array) } else { None }
    }

    /// As an error or a listing shows it: at most a line of it.
    pub fn shown(self) -> String {
        match self {
            Value::Unsigned(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Text(text) if text.chars().count() <= 60 => format!("{text:?}"),
            Value::Text(text) => format!("{:?}...", text.chars().take(57).collect::<String>()),
            Value::Array(array) => format!("{array:?}"),
        }
    }
}

impl<'a> Array<'a> {
    /// How many values there are.
    pub fn len(self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The values. A text that is not UTF-8 ends them: whoever must have all compares the count.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        let mut reader = Reader::new(Path::new(""), self.bytes);
        (0..self.len).map_while(move |_| reader.value_of(self.kind, 0).ok())
    }

    /// All values as `f` takes them, or `None` if it refuses one.
    pub fn all<T>(self, f: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let all: Option<Vec<T>> = self.iter().map(f).collect();
        all.filter(|all| all.len() == self.len)
    }
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a list of {} {:?}", self.len, self.kind)
    }
}

/// Walks over the bytes of a file. Nothing is taken that is not there, and the error says where it was wanted.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Reader { path, bytes, at: 0 }
    }

    /// The same bytes from another place on.
    pub fn from(self, at: usize) -> Self {
        Reader { at, ..self }
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn fail<T>(&self, problem: impl Into<String>) -> Result<T, WeightsError> {
        Err(WeightsError::file(self.path, problem))
    }

    pub fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], WeightsError> {
        let Some(bytes) = usize::try_from(n).ok().and_then(|n| self.bytes[self.at..].get(..n)) else {
            let (at, left) = (self.at, self.left());
            return self.fail(format!("cut short or damaged: {what} at byte {at} takes {n} bytes, {left} are left"));
        };
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        Ok(self.take(N as u64, what)?.try_into().expect("as many as were asked for"))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A text: its length in bytes, and the bytes.
    pub fn text(&mut self, what: &str) -> Result<&'a str, WeightsError> {
        let at = self.at;
        let bytes = self.raw_text(what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(e) => self.fail(format!("damaged: {what} at byte {at} is not UTF-8: {e}")),
        }
    }

    fn raw_text(&mut self, what: &str) -> Result<&'a [u8], WeightsError> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// A value with its type before it.
    pub fn value(&mut self) -> Result<Value<'a>, WeightsError> {
        let kind = self.kind()?;
        self.value_of(kind, 0)
    }

    fn kind(&mut self) -> Result<Kind, WeightsError> {
        let at = self.at;
        let n = self.u32("the type of a value")?;
        match Kind::from_number(n) {
            Some(kind) => Ok(kind),
            None => self.fail(format!("damaged: there is no type of values {n}, as at byte {at}")),
        }
    }

    fn value_of(&mut self, kind: Kind, depth: usize) -> Result<Value<'a>, WeightsError> {
        let what = "a value";
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array(what)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            Kind::U32 => Value::Unsigned(u32::from_le_bytes(self.array(what)?).into()),
            Kind::U64 => Value::Unsigned(u64::from_le_bytes(self.array(what)?)),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            Kind::F32 => Value::Float(decimal(f32::from_le_bytes(self.array(what)?))),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            Kind::Bool => match self.array::<1>(what)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => {
                    return self.fail(format!("damaged: {other} at byte {} is neither true nor false", self.at - 1));
                }
            },
            Kind::Text => Value::Text(self.text("a text")?),
            Kind::Array => Value::Array(self.list(depth + 1)?),
        })
    }

    /// A list. Its elements are walked over, so that whoever reads them later finds them whole.
    fn list(&mut self, depth: usize) -> Result<Array<'a>, WeightsError> {
        if depth > DEEPEST {
            return self.fail(format!("damaged: lists are nested deeper than {DEEPEST} at byte {}", self.at));
        }
        let kind = self.kind()?;
        let (at, count) = (self.at, self.u64("the length of a list")?);
        // No list has more elements than bytes.
        let len = usize::try_from(count).ok().filter(|len| *len <= self.left() / kind.least());
        let Some(len) = len else {
            let left = self.left();
            return self
                .fail(format!("cut short or damaged: a list of {count} values at byte {at}, {left} bytes are left"));
        };
        let from = self.at;
        match kind {
            Kind::Text => (0..len).try_for_each(|_| self.raw_text("a text in a list").map(drop))?,
            Kind::Array => (0..len).try_for_each(|_| self.list(depth + 1).map(drop))?,
            // One byte may be neither true nor false.
            Kind::Bool => (0..len).try_for_each(|_| self.value_of(kind, depth).map(drop))?,
            plain => drop(self.take((len * plain.least()) as u64, "a list")?),
        }
        Ok(Array { kind, len, bytes: &self.bytes[from..self.at] })
    }
}

/// The number that the shortest decimal of `x` stands for.
pub(super) fn decimal(x: f32) -> f64 {
    if x.is_finite() { format!("{x:e}").parse().unwrap_or(x.into()) } else { x.into() }
}
