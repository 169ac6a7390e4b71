//! A chat on its way to the engine: from messages to tokens, whichever route they came by.

use crate::error::ApiError;
use crate::form::{self, behind_thought, refusal};
use crate::prompt::blocking;
use crate::served::Served;
use crate::split::{Splitter, THINK};
use crate::tools::Tools;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use wudao_infer::Engine;
use wudao_infer::chat::{Chat, ChatError, Value};
use wudao_infer::constraint::{Constraint, Form};

/// A message of a chat.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: Option<Content>,
    /// What was thought before.
    #[serde(alias = "reasoning")]
    pub reasoning_content: Option<String>,
    /// Functions that the assistant called.
    #[serde(default)]
    pub tool_calls: Option<Vec<PastCall>>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The name of who says it.
    pub name: Option<String>,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// OpenAI's newer name for that.
    Developer,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
    /// The result of a function.
    Tool,
}

/// What a message says.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// A text in parts.
    Parts(Vec<ContentPart>),
}

/// A part of a text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`, `input_text` or `output_text`; `refusal` is read as text too.
    #[serde(rename = "type")]
    kind: String,
    /// The text.
    text: Option<String>,
    /// Why the model refused.
    refusal: Option<String>,
}

/// A function that was called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastCall {
    /// What its result refers to.
    pub id: Option<String>,
    /// The function.
    pub function: PastFunction,
}

/// A function with its arguments.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct PastFunction {
    /// Its name.
    pub name: String,
    /// Its arguments: JSON in a text, or an object.
    #[schema(value_type = Object)]
    pub arguments: Value,
}

impl Content {
    /// The text alone, or which part is none.
    pub fn text(self) -> Result<String, ApiError> {
        match self {
            Content::Text(text) => Ok(text),
            Content::Parts(parts) => {
                let text = |part: ContentPart| match part.kind.as_str() {
                    "text" | "input_text" | "output_text" | "refusal" => {
                        Ok(part.text.or(part.refusal).unwrap_or_default())
                    }
                    kind => {
                        let what =
                            format!("a part of type \"{}\" is not known here: this model reads text", short(kind));
                        Err(ApiError::unsupported("content", &what))
                    }
                };
                let texts: Vec<String> = parts.into_iter().map(text).collect::<Result<_, _>>()?;
                Ok(texts.join("\n"))
            }
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

impl Message {
    /// As templates expect it: content is text, arguments are objects, and there is no developer.
    pub fn value(self) -> Result<Value, ApiError> {
        let role = match self.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let content = self.content.map(Content::text).transpose()?;
        if content.is_none() && self.role != Role::Assistant {
            return Err(ApiError::invalid_field("messages", format!("a message of the role \"{role}\" needs content")));
        }
        let mut fields = vec![("role", Value::from(role)), ("content", Value::from(content.unwrap_or_default()))];
        fields.extend(self.reasoning_content.map(|text| ("reasoning_content", Value::from(text))));
        fields.extend(self.name.map(|text| ("name", Value::from(text))));
        fields.extend(self.tool_call_id.map(|text| ("tool_call_id", Value::from(text))));
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() {
            fields.push(("tool_calls", calls.into_iter().map(PastCall::value).collect()));
        }
        Ok(Value::from_pairs(fields))
    }
}

impl PastCall {
    fn value(self) -> Value {
        let arguments = match self.function.arguments.as_str() {
            // What is no JSON goes to the template as it is.
            Some(text) => serde_json::from_str::<Value>(text).unwrap_or(self.function.arguments.clone()),
            None => self.function.arguments,
        };
        let function = Value::from_pairs([("name", Value::from(self.function.name)), ("arguments", arguments)]);
        let mut fields = vec![("type", Value::from("function")), ("function", function)];
        fields.extend(self.id.map(|id| ("id", Value::from(id))));
        Value::from_pairs(fields)
    }
}

/// What a model is asked to answer.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// The messages, as templates expect them.
    pub messages: Vec<Value>,
    /// The functions.
    pub tools: Tools,
    /// What else the template understands.
    pub variables: BTreeMap<String, Value>,
    /// Leave the answer's beginning to the model.
    pub no_generation_prompt: bool,
    /// The form of the answer.
    pub form: Option<form::Asked>,
}

/// A conversation in tokens.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// At the beginning of the answer.
    pub splitter: Splitter,
    /// The form of the answer.
    pub constraint: Option<Constraint>,
}

impl Conversation {
    /// Writes it as this model was taught to read it.
    pub async fn encode(self, model: &Arc<Served>) -> Result<Asked, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid_field("messages", "there must be one at least"));
        }
        let model = model.clone();
        blocking(move || {
            let Some(template) = &model.template else { return Err(ApiError::no_chat_template(&model.name)) };
            let mut tools = self.tools;
            let chat = Chat {
                messages: self.messages,
                tools: std::mem::take(&mut tools.offered),
                add_generation_prompt: !self.no_generation_prompt,
                variables: self.variables,
                ..Chat::default()
            };
            let mut text = template.render(&chat).map_err(|error| match error {
                ChatError::Refused(_) => ApiError::invalid_field("messages", error),
                error => ApiError::invalid(error.to_string()),
            })?;
            let mut splitter = Splitter::new(&text, tools.any());
            let thinks = template.source().contains(THINK);
            let wrap = |form| behind_thought(form, &splitter, &text, thinks);
            let constraint = match &self.form {
                _ if tools.forced.is_some() => called(&model.engine, &tools, |loose| tools.forced_form(loose))?,
                Some(asked) if tools.any() => {
                    let either = |loose| wrap(Form::Any(vec![asked.form.clone(), tools.calls_form(loose)]));
                    match called(&model.engine, &tools, either) {
                        Ok(Some(constraint)) => Some(constraint),
                        // It is the answer's form that cannot be kept, or else a strict function's.
                        Ok(None) => Some(asked.with(wrap).compile(&model.engine)?),
                        Err(error) => return asked.with(wrap).compile(&model.engine).and(Err(error)),
                    }
                }
                Some(asked) => Some(asked.with(wrap).compile(&model.engine)?),
                None if tools.strict() => called(&model.engine, &tools, |loose| wrap(tools.mixed_form(loose)))?,
                None => None,
            };
            if let Some(forced) = tools.forced {
                if splitter.thinking() {
                    text.push_str("\n</think>\n\n");
                }
                text.push_str(&forced);
                splitter = Splitter::forced(&forced);
            }
            Ok(Asked { ids: model.encode_plain(&text)?, splitter, constraint })
        })
        .await
    }
}

/// The form of calls, with as many schemas in it as can be kept. Only of strict functions must they be.
fn called(engine: &Engine, tools: &Tools, form: impl Fn(bool) -> Form) -> Result<Option<Constraint>, ApiError> {
    match engine.constrain(&form(false)).or_else(|_| engine.constrain(&form(true))) {
        Ok(constraint) => Ok(Some(constraint)),
        Err(error) if tools.strict() => Err(refusal("tools", &error)),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(message: serde_json::Value) -> Result<String, String> {
        let message: Message = serde_json::from_value(message).map_err(|error| error.to_string())?;
        let value = message.value().map_err(|error| error.json())?;
        Ok(serde_json::to_string(&value).unwrap())
    }

    #[test]
    fn messages_become_what_templates_expect() {
        assert_eq!(
            value(
                json!({"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
            )
            .unwrap(),
            r#"{"role":"system","content":"a\nb"}"#
        );
        let called = json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]});
        assert_eq!(
            value(called).unwrap(),
            r#"{"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"b":1,"a":2}},"id":"1"}]}"#
        );
        assert!(value(json!({"role": "user"})).unwrap_err().contains("needs content"));
        assert!(value(json!({"role": "user", "content": [{"type": "image_url"}]})).unwrap_err().contains("image_url"));
        assert!(value(json!({"role": "wizard", "content": ""})).unwrap_err().contains("wizard"));
    }
}
