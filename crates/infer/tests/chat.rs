//! Chat templates against what transformers renders: `reference/chat_templates.py` made the files.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use wudao_infer::chat::{Chat, ChatError, ChatTemplate, Value, ZonedDateTime};

#[derive(Deserialize)]
struct Golden {
    now: String,
    special: BTreeMap<String, String>,
    template: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    given: Given,
    text: Option<String>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Given {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    add_generation_prompt: Option<bool>,
    #[serde(flatten)]
    variables: BTreeMap<String, Value>,
}

#[test]
fn every_template_renders_as_transformers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/golden/chat");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let golden: Golden = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let template = ChatTemplate::parse(&golden.template, golden.special).unwrap();
        let now: ZonedDateTime = format!("{}[UTC]", golden.now).parse().unwrap();
        for Case { name, given, text, refused } in golden.cases {
            let chat = Chat {
                messages: given.messages,
                tools: given.tools,
                add_generation_prompt: given.add_generation_prompt.unwrap_or(true),
                variables: given.variables,
                now: now.clone(),
            };
            let rendered = match template.render(&chat) {
                Err(ChatError::Refused(why)) => Err(why),
                other => Ok(other.unwrap_or_else(|error| panic!("{} {name}: {error}", path.display()))),
            };
            let expected = text.ok_or_else(|| refused.unwrap());
            assert_eq!(rendered, expected, "{} {name}", path.display());
            count += 1;
        }
    }
    assert!(count >= 20, "{count} cases");
}
