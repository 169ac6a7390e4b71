//! The form that an answer must have, as requests say it: OpenAI's `response_format`, vLLM's `structured_outputs`.

use crate::error::ApiError;
use crate::split::{Splitter, THINK, THOUGHT};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use wudao_infer::Engine;
use wudao_infer::constraint::{Constraint, ConstraintError, Form};

/// The form of an answer.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object`, or `json_schema`.
    #[serde(rename = "type")]
    kind: String,
    /// The schema, in chat completions.
    #[serde(skip_serializing_if = "Option::is_none")]
    json_schema: Option<NamedSchema>,
    /// The schema, in responses.
    #[serde(flatten)]
    own: NamedSchema,
}

/// A JSON Schema, draft 2020-12.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct NamedSchema {
    /// What it is called. It changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// What it is for. It changes nothing: what a model is to know belongs into its messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// What the answer must fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// The answer fits the schema in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// The form of an answer, as vLLM has it: one of these.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StructuredOutputs {
    /// JSON that fits this schema, an object or its text.
    #[schema(value_type = Option<Object>)]
    json: Option<Value>,
    /// Any JSON object.
    json_object: Option<bool>,
    /// What this regular expression (of Rust's kind) matches as a whole.
    regex: Option<String>,
    /// One of these texts.
    choice: Option<Vec<String>>,
    /// What this grammar accepts, in llguidance's kind of Lark.
    grammar: Option<String>,
}

/// A form, and the field that asks for it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the answer must be.
    pub form: Form,
    field: &'static str,
}

impl ResponseFormat {
    fn form(&self, field: &'static str) -> Result<Option<Form>, ApiError> {
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Form::json_object())),
            "json_schema" => {
                let schema = self.json_schema.as_ref().unwrap_or(&self.own).schema.clone();
                let missing = || ApiError::invalid_field(field, "\"json_schema\" needs a \"schema\"");
                Ok(Some(Form::Json(schema.ok_or_else(missing)?)))
            }
            _ => Err(ApiError::unsupported(field, "it may be \"text\", \"json_object\" or \"json_schema\" here")),
        }
    }
}

impl StructuredOutputs {
    fn form(&self) -> Result<Option<Form>, ApiError> {
        let wrong = |message: String| ApiError::invalid_field(STRUCTURED, message);
        let json = match &self.json {
            Some(Value::String(text)) => {
                Some(serde_json::from_str(text).map_err(|error| wrong(format!("\"json\" is no JSON: {error}")))?)
            }
            other => other.clone(),
        };
        let forms = [
            json.map(Form::Json),
            self.json_object.filter(|asked| *asked).map(|_| Form::json_object()),
            self.regex.clone().map(Form::Regex),
            self.choice.clone().map(Form::Choice),
            self.grammar.clone().map(Form::Lark),
        ];
        let mut forms: Vec<Form> = forms.into_iter().flatten().collect();
        if forms.len() > 1 {
            return Err(wrong("an answer can have one form only".into()));
        }
        Ok(forms.pop())
    }
}

const STRUCTURED: &str = "structured_outputs";

impl Asked {
    /// The form that a request asks for, if any. `field` is what it calls its format.
    pub fn read(
        field: &'static str,
        format: Option<&ResponseFormat>,
        structured: Option<&StructuredOutputs>,
    ) -> Result<Option<Asked>, ApiError> {
        let format = format.map(|format| format.form(field)).transpose()?.flatten();
        let structured = structured.map(StructuredOutputs::form).transpose()?.flatten();
        match (format, structured) {
            (Some(_), Some(_)) => Err(ApiError::invalid_field(
                STRUCTURED,
                format!("an answer can have one form only, and {field} gives one"),
            )),
            (Some(form), None) => Ok(Some(Asked { form, field })),
            (None, Some(form)) => Ok(Some(Asked { form, field: STRUCTURED })),
            (None, None) => Ok(None),
        }
    }

    /// The same with something around it.
    pub fn with(&self, wrap: impl FnOnce(Form) -> Form) -> Asked {
        Asked { form: wrap(self.form.clone()), field: self.field }
    }

    /// Compiled for a model. It takes time: call it where waiting is allowed.
    pub fn compile(&self, engine: &Engine) -> Result<Constraint, ApiError> {
        engine.constrain(&self.form).map_err(|error| refusal(self.field, &error))
    }
}

/// What a client is told of a form that cannot be kept.
pub fn refusal(field: &str, error: &ConstraintError) -> ApiError {
    match error {
        ConstraintError::Tokenizer => ApiError::unsupported(field, &error.to_string()),
        _ => ApiError::invalid_field(field, error),
    }
}

/// A form of an answer before which a model may think: it must end a thought that the prompt has begun, and may begin one if
/// its template knows of thoughts (`thinks`) and the prompt has not ended one.
pub fn behind_thought(form: Form, splitter: &Splitter, prompt: &str, thinks: bool) -> Form {
    let space = || Form::Maybe(Box::new(Form::Regex("\\s{1,4}".into())));
    let thought = || Form::Until(THOUGHT.into());
    if splitter.thinking() {
        Form::All(vec![thought(), space(), form])
    } else if thinks && !prompt.trim_end().ends_with(THOUGHT) {
        let whole = Form::All(vec![Form::Text(THINK.into()), thought(), space()]);
        Form::All(vec![Form::Maybe(Box::new(whole)), form])
    } else {
        form
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(format: Value, structured: Value) -> Result<Option<Form>, String> {
        let format: Option<ResponseFormat> = serde_json::from_value(format).map_err(|error| error.to_string())?;
        let structured: Option<StructuredOutputs> =
            serde_json::from_value(structured).map_err(|error| error.to_string())?;
        let asked = Asked::read("response_format", format.as_ref(), structured.as_ref());
        asked.map(|asked| asked.map(|asked| asked.form)).map_err(|error| error.json())
    }

    #[test]
    fn one_form_is_read_however_it_is_asked_for() {
        let schema = json!({"b": 1, "a": 2});
        let json_schema =
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        let flat = json!({"type": "json_schema", "name": "x", "schema": schema});
        for format in [json_schema, flat] {
            assert_eq!(read(format, json!(null)).unwrap(), Some(Form::Json(schema.clone())));
        }
        assert_eq!(read(json!({"type": "text"}), json!({})).unwrap(), None);
        assert_eq!(read(json!({"type": "json_object"}), json!(null)).unwrap(), Some(Form::json_object()));
        assert_eq!(read(json!(null), json!({"regex": "a", "json": null})).unwrap(), Some(Form::Regex("a".into())));
        assert_eq!(read(json!(null), json!({"json": "{\"b\":1,\"a\":2}"})).unwrap(), Some(Form::Json(schema)));
        assert_eq!(read(json!(null), json!({"choice": ["a"]})).unwrap(), Some(Form::Choice(vec!["a".into()])));
        assert_eq!(
            read(json!(null), json!({"grammar": "start: \"a\""})).unwrap(),
            Some(Form::Lark("start: \"a\"".into()))
        );
        assert_eq!(read(json!(null), json!({"json_object": false})).unwrap(), None);
        let both = read(json!({"type": "json_object"}), json!({"json_object": true})).unwrap_err();
        assert!(both.contains("one form only"));
        assert!(read(json!(null), json!({"regex": "a", "choice": ["b"]})).unwrap_err().contains("one form only"));
        assert!(read(json!({"type": "json_schema"}), json!(null)).unwrap_err().contains("needs a"));
        assert!(read(json!({"type": "structural_tag"}), json!(null)).unwrap_err().contains("unsupported_value"));
        assert!(read(json!(null), json!({"whitespace_pattern": " "})).unwrap_err().contains("whitespace_pattern"));
        assert!(read(json!(null), json!({"json": "{"})).unwrap_err().contains("no JSON"));
    }
}
