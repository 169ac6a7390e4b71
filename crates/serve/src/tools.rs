//! Functions that a model may call, as requests describe them.

use crate::error::ApiError;
use crate::split::CALL;
use serde::Deserialize;
use utoipa::ToSchema;
use wudao_infer::chat::Value;

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

/// The functions of one request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As the template is given them.
    pub offered: Vec<Value>,
    /// Their names.
    names: Vec<String>,
    /// What the answer is made to begin with.
    pub forced: Option<String>,
    /// One call at most.
    pub single: bool,
}

impl Tools {
    /// Reads and checks what a request says. `tools` are in the form of chat completions.
    pub fn read(tools: Vec<Value>, choice: Option<ToolChoice>, parallel: Option<bool>) -> Result<Tools, ApiError> {
        #[derive(Deserialize)]
        struct Tool {
            #[serde(rename = "type")]
            kind: String,
            function: Option<FunctionName>,
        }
        if tools.len() > MAX_TOOLS {
            return Err(ApiError::invalid_field("tools", format!("there may be {MAX_TOOLS}")));
        }
        let mut names = Vec::new();
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
            names.push(function.name);
        }
        let wrong = |message: String| Err(ApiError::invalid_field("tool_choice", message));
        let single = parallel == Some(false);
        let forced = match choice {
            None | Some(ToolChoice::Mode(Mode::Auto)) => None,
            Some(ToolChoice::Mode(Mode::None)) => return Ok(Tools::default()),
            Some(ToolChoice::Mode(Mode::Required)) if names.is_empty() => {
                return wrong("\"required\" needs tools to choose from".into());
            }
            Some(ToolChoice::Mode(Mode::Required)) => Some(format!("{CALL}\n{{\"name\": \"")),
            Some(ToolChoice::Named(Named { kind, function, name })) => {
                let name = function.map(|function| function.name).or(name).unwrap_or_default();
                if kind != "function" || !names.contains(&name) {
                    return wrong(format!("\"{name}\" is not among the functions in tools"));
                }
                let name = serde_json::Value::from(name);
                return Ok(Tools {
                    offered: tools,
                    names,
                    forced: Some(format!("{CALL}\n{{\"name\": {name}, \"arguments\": {{")),
                    single: true,
                });
            }
        };
        Ok(Tools { offered: tools, names, forced, single })
    }

    /// Whether calls are looked for.
    pub fn any(&self) -> bool {
        !self.names.is_empty()
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
