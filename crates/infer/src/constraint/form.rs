//! What a text must be, and how that is said to the compiler of grammars.

use super::ConstraintError;
use super::schema;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::Value;

/// Most bytes of a regular expression or a grammar, and of all choices.
pub const MAX_SOURCE: usize = 64 << 10;
/// Most choices.
const MAX_CHOICES: usize = 1000;
/// Most brackets inside brackets in a grammar. Those in its strings and expressions count, too: the compiler would go as deep.
const MAX_NESTING: usize = 200;

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// A JSON value that a JSON Schema (draft 2020-12) accepts.
    Json(Value),
    /// What a regular expression (of Rust's kind) matches from its beginning to its end.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// What a grammar accepts, written in llguidance's kind of Lark.
    Lark(String),
    /// This.
    Text(String),
    /// Whatever ends in this, which comes once.
    Until(String),
    /// Whatever does not have this in it.
    Without(String),
    /// One after the other.
    All(Vec<Form>),
    /// One of these.
    Any(Vec<Form>),
    /// This, or nothing.
    Maybe(Box<Form>),
    /// This, any number of times.
    Many(Box<Form>),
}

impl Form {
    /// Any JSON object.
    pub fn json_object() -> Form {
        Form::Json(serde_json::json!({"type": "object"}))
    }

    /// In the compiler's words.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, ConstraintError> {
        let mut writer = Writer::default();
        let grammars = match self {
            Form::Json(_) | Form::Lark(_) => {
                writer.expression(self)?;
                writer.grammars
            }
            _ => {
                let start = writer.expression(self)?;
                let rules = format!("start: {start}\n{}", writer.rules);
                let mut grammars = vec![GrammarWithLexer::from_lark(rules)];
                grammars.append(&mut writer.grammars);
                grammars
            }
        };
        Ok(TopLevelGrammar { grammars, max_tokens: None })
    }
}

/// Writes one grammar in Lark, with others beside it that it names.
#[derive(Default)]
struct Writer {
    rules: String,
    grammars: Vec<GrammarWithLexer>,
    names: usize,
}

impl Writer {
    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// What stands for a form on the right side of a rule.
    fn expression(&mut self, form: &Form) -> Result<String, ConstraintError> {
        Ok(match form {
            Form::Text(text) => quoted(text),
            Form::Regex(source) if source.is_empty() => quoted(""),
            Form::Regex(source) => {
                sized(source)?;
                format!("/{}/", regex_to_lark(source, ""))
            }
            Form::Choice(choices) => self.choice(choices)?,
            Form::Json(schema) => {
                let schema = schema::prepare(schema)?;
                match self.grammars.iter().find(|own| own.json_schema.as_ref() == Some(&schema)) {
                    Some(GrammarWithLexer { name: Some(name), .. }) => format!("@{name}"),
                    _ => self.beside(GrammarWithLexer::from_json_schema(schema)),
                }
            }
            Form::Lark(source) => {
                sized(source)?;
                nested(source)?;
                self.beside(GrammarWithLexer::from_lark(source.clone()))
            }
            Form::Until(mark) => {
                let name = self.name("until");
                self.rules.push_str(&format!("{name}[suffix={}]: /(?s:.*)/\n", quoted(mark)));
                name
            }
            Form::Without(mark) => {
                let name = self.name("WITHOUT");
                let mark = quoted(mark);
                self.rules.push_str(&format!("{name}: /(?s:.+)/ & ~(/(?s:.*)/ {mark} /(?s:.*)/)\n"));
                format!("({name})?")
            }
            Form::All(forms) => format!("({})", self.expressions(forms)?.join(" ")),
            Form::Any(forms) => format!("({})", self.expressions(forms)?.join(" | ")),
            Form::Maybe(form) => format!("({})?", self.expression(form)?),
            Form::Many(form) => format!("({})*", self.expression(form)?),
        })
    }

    fn expressions(&mut self, forms: &[Form]) -> Result<Vec<String>, ConstraintError> {
        forms.iter().map(|form| self.expression(form)).collect()
    }

    /// One word, so that of two choices of which one begins the other both are possible.
    fn choice(&mut self, choices: &[String]) -> Result<String, ConstraintError> {
        if choices.is_empty() {
            return Err(ConstraintError::Malformed("there is nothing to choose from".into()));
        }
        if choices.len() > MAX_CHOICES {
            return Err(ConstraintError::TooLarge { what: format!("{} choices", choices.len()), limit: MAX_CHOICES });
        }
        sized(&choices.concat())?;
        let texts: Vec<String> = choices.iter().filter(|text| !text.is_empty()).map(|text| quoted(text)).collect();
        if texts.is_empty() {
            return Ok(quoted(""));
        }
        let name = self.name("CHOICE");
        self.rules.push_str(&format!("{name}: {}\n", texts.join(" | ")));
        Ok(if choices.iter().any(String::is_empty) { format!("({name})?") } else { name })
    }

    fn beside(&mut self, mut grammar: GrammarWithLexer) -> String {
        let name = self.name("g");
        grammar.name = Some(name.clone());
        self.grammars.push(grammar);
        format!("@{name}")
    }
}

/// Text as a string of Lark, which writes strings as JSON does.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn sized(source: &str) -> Result<(), ConstraintError> {
    match source.len() {
        length if length > MAX_SOURCE => {
            Err(ConstraintError::TooLarge { what: format!("{length} bytes"), limit: MAX_SOURCE })
        }
        _ => Ok(()),
    }
}

/// The compiler goes down into brackets by recursion.
fn nested(source: &str) -> Result<(), ConstraintError> {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    match deepest {
        deepest if deepest > MAX_NESTING => {
            Err(ConstraintError::TooLarge { what: format!("{deepest} open brackets"), limit: MAX_NESTING })
        }
        _ => Ok(()),
    }
}
