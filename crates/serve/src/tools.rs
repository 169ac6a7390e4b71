//! Functions that a model may call, as requests describe them, and the form of calls.
//!
//! A call is written `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`. Where one is demanded, the answer is made to begin
//! with it, and what follows is held to the form; where the model may choose, only strict functions ask for that.

use crate::error::ApiError;
use crate::split::{CALL, CALLED};
use serde::Deserialize;
use utoipa::ToSchema;
use wudao_infer::chat::Value;
use wudao_infer::constraint::{Form, check_schema};

/// Most functions of a request.
const MAX_TOOLS: usize = 256;

/// Which functions are to be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// In general.
    Mode(Mode),
    /// This one.
    Named(Named),
}

/// Whether functions are to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Not at all.
    None,
    /// As the model likes.
    Auto,
    /// One at least.
    Required,
}

/// `{"type": "function", "function": {"name": …}}`, or in `/v1/responses` `{"type": "function", "name": …}`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Named {
    #[serde(rename = "type")]
    kind: String,
    function: Option<FunctionName>,
    name: Option<String>,
}

/// The name of a function.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    name: String,
}

/// A function as its calls are written.
#[derive(Clone, Debug)]
struct Function {
    name: String,
    /// Of its arguments.
    schema: serde_json::Value,
    /// Its calls must fit the schema.
    strict: bool,
}

/// The functions of one request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As the template is given them.
    pub offered: Vec<Value>,
    /// Each of them.
    functions: Vec<Function>,
    /// What the answer is made to begin with.
    pub forced: Option<String>,
    /// One call at most.
    pub single: bool,
    /// The answer begins with the name of its function.
    named: bool,
}

impl Tools {
    /// Reads and checks what a request says. `tools` are in the form of chat completions.
    pub fn read(tools: Vec<Value>, choice: Option<ToolChoice>, parallel: Option<bool>) -> Result<Tools, ApiError> {
        #[derive(Deserialize)]
        struct Tool {
            #[serde(rename = "type")]
            kind: String,
            function: Option<Described>,
        }
        #[derive(Deserialize)]
        struct Described {
            name: String,
            parameters: Option<serde_json::Value>,
            strict: Option<bool>,
        }
        if tools.len() > MAX_TOOLS {
            return Err(ApiError::invalid_field("tools", format!("there may be {MAX_TOOLS}")));
        }
        let mut functions: Vec<Function> = Vec::new();
        for (number, tool) in tools.iter().enumerate() {
            let field = format!("tools[{number}]");
            let tool = Tool::deserialize(tool.clone()).map_err(|error| ApiError::invalid_field(&field, error))?;
            if tool.kind != "function" {
                let what = format!("a tool of type \"{}\" is not known here, only \"function\"", tool.kind);
                return Err(ApiError::unsupported(&field, &what));
            }
            let function = tool.function.ok_or_else(|| ApiError::invalid_field(&field, "\"function\" is missing"))?;
            if function.name.is_empty() || function.name.len() > 256 {
                return Err(ApiError::invalid_field(&field, "a function's name has 1 to 256 bytes"));
            }
            let Described { name, parameters, strict } = function;
            let mut schema = match parameters {
                Some(serde_json::Value::Object(schema)) => schema,
                _ => serde_json::Map::new(),
            };
            // Arguments are an object, whether the schema says it or not.
            schema.entry("type").or_insert("object".into());
            let schema = schema.into();
            functions.push(Function { name, schema, strict: strict == Some(true) });
        }
        let wrong = |message: String| Err(ApiError::invalid_field("tool_choice", message));
        let single = parallel == Some(false);
        let forced = match choice {
            None | Some(ToolChoice::Mode(Mode::Auto)) => None,
            Some(ToolChoice::Mode(Mode::None)) => return Ok(Tools::default()),
            Some(ToolChoice::Mode(Mode::Required)) if functions.is_empty() => {
                return wrong("\"required\" needs tools to choose from".into());
            }
            Some(ToolChoice::Mode(Mode::Required)) => Some(format!("{CALL}\n{{\"name\": \"")),
            Some(ToolChoice::Named(Named { kind, function, name })) => {
                let name = function.map(|function| function.name).or(name).unwrap_or_default();
                let function = functions.iter().find(|function| kind == "function" && function.name == name);
                let Some(function) = function.cloned() else {
                    return wrong(format!("\"{name}\" is not among the functions in tools"));
                };
                return Ok(Tools {
                    offered: tools,
                    forced: Some(format!("{CALL}\n{{\"name\": {}", function.rest_of_name())),
                    functions: vec![function],
                    single: true,
                    named: true,
                });
            }
        };
        Ok(Tools { offered: tools, functions, forced, single, named: false })
    }

    /// Whether calls are looked for.
    pub fn any(&self) -> bool {
        !self.functions.is_empty()
    }

    /// Whether calls must fit their schemas.
    pub fn strict(&self) -> bool {
        self.functions.iter().any(|function| function.strict)
    }

    /// What follows [`Tools::forced`]: a call, and if several may be, others. With `loose`, only the strict functions' arguments
    /// are held to their schemas.
    pub fn forced_form(&self, loose: bool) -> Form {
        let first = match (self.named, &self.functions[..]) {
            (true, [only]) => only.arguments(loose),
            _ => self.any_of(|function| {
                let name = Form::Text(function.rest_of_name()[1..].to_owned());
                Form::All(vec![name, function.arguments(loose)])
            }),
        };
        if self.single {
            return first;
        }
        let next = Form::All(vec![Form::Text(format!("\n{CALL}")), self.call(loose)]);
        Form::All(vec![first, Form::Many(Box::new(next))])
    }

    /// Text with calls in it.
    pub fn mixed_form(&self, loose: bool) -> Form {
        let call = Form::All(vec![Form::Until(CALL.into()), self.call(loose)]);
        let calls = if self.single { Form::Maybe(Box::new(call)) } else { Form::Many(Box::new(call)) };
        Form::All(vec![calls, Form::Without(CALL.into())])
    }

    /// Calls alone.
    pub fn calls_form(&self, loose: bool) -> Form {
        let call = || Form::All(vec![Form::Text(CALL.into()), self.call(loose)]);
        if self.single {
            return call();
        }
        let next = Form::All(vec![Form::Text("\n".into()), call()]);
        Form::All(vec![call(), Form::Many(Box::new(next))])
    }

    /// A call behind its mark.
    fn call(&self, loose: bool) -> Form {
        self.any_of(|function| {
            let name = Form::Text(format!("\n{{\"name\": {}", function.rest_of_name()));
            Form::All(vec![name, function.arguments(loose)])
        })
    }

    fn any_of(&self, form: impl Fn(&Function) -> Form) -> Form {
        Form::Any(self.functions.iter().map(form).collect())
    }
}

impl Function {
    /// Its name in quotes, and what follows up to its arguments.
    fn rest_of_name(&self) -> String {
        format!("{}, \"arguments\":", serde_json::Value::from(self.name.as_str()))
    }

    /// Its arguments, and the end of the call.
    fn arguments(&self, loose: bool) -> Form {
        let keep = self.strict || !loose && check_schema(&self.schema).is_ok();
        let arguments = if keep { Form::Json(self.schema.clone()) } else { Form::json_object() };
        let space = Form::Maybe(Box::new(Form::Text(" ".into())));
        Form::All(vec![space, arguments, Form::Text(format!("}}\n{CALLED}"))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(tools: serde_json::Value, choice: serde_json::Value) -> Result<Tools, String> {
        let tools = serde_json::from_value(tools).unwrap();
        let choice = serde_json::from_value(choice).map_err(|error| error.to_string())?;
        Tools::read(tools, choice, None).map_err(|error| error.json())
    }

    #[test]
    fn a_choice_is_among_the_tools() {
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        assert!(read(tools.clone(), json!(null)).unwrap().any());
        assert!(!read(tools.clone(), json!("none")).unwrap().any());
        assert!(read(tools.clone(), json!("required")).unwrap().forced.unwrap().starts_with(CALL));
        assert!(read(tools.clone(), named("f")).unwrap().forced.unwrap().contains("\"f\""));
        assert!(read(tools.clone(), json!({"type": "function", "name": "f"})).is_ok());
        assert!(read(tools.clone(), named("g")).unwrap_err().contains("not among"));
        assert!(read(json!([]), json!("required")).unwrap_err().contains("needs tools"));
        assert!(read(tools, json!("always")).is_err());
        assert!(read(json!([{"type": "web_search"}]), json!(null)).unwrap_err().contains("unsupported_value"));
        assert!(read(json!([{"type": "function"}]), json!(null)).unwrap_err().contains("tools[0]"));
        assert!(read(json!(["f"]), json!(null)).unwrap_err().contains("tools[0]"));
    }
}
