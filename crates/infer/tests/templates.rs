//! The chat templates that llama.cpp carries (Qwen, Llama, Mistral, DeepSeek, …), rendered as transformers renders them.
//! `reference/chat_templates.py others` made the golden values, which are hashes: the templates have licences of their own, so
//! they are read from the sources of llama.cpp's Python binding (77 MB), and nothing of them is kept here.

mod common;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use wudao_infer::chat::{Chat, ChatError, ChatTemplate, Value, ZonedDateTime};

#[derive(Deserialize)]
struct Golden {
    now: String,
    special: BTreeMap<String, String>,
    chats: BTreeMap<String, Given>,
    templates: Vec<Template>,
}

#[derive(Clone, Deserialize)]
struct Given {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    add_generation_prompt: Option<bool>,
    #[serde(flatten)]
    variables: BTreeMap<String, Value>,
}

/// SHA-256 of a template, and of what each chat becomes; of an error that the template raises, its words.
#[derive(Deserialize)]
struct Template {
    file: String,
    sha256: String,
    rendered: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn templates_in_use_render_as_in_transformers() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/golden/templates.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let whole = |dir: &std::path::Path| golden.templates.iter().all(|t| dir.join("templates").join(&t.file).exists());
    let dir = match common::llama_cpp(whole) {
        Ok(dir) => dir.join("templates"),
        Err(reason) => return common::skipped(format_args!("llama.cpp's templates cannot be had here: {reason}")),
    };
    let now: ZonedDateTime = format!("{}[UTC]", golden.now).parse().unwrap();
    for Template { file, sha256, rendered, refused } in golden.templates {
        let source = std::fs::read_to_string(dir.join(&file)).unwrap();
        assert_eq!(hash(&source), sha256, "{file} is another");
        let template = ChatTemplate::parse(&source, golden.special.clone()).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (name, given) in golden.chats.clone() {
            let chat = Chat {
                messages: given.messages,
                tools: given.tools,
                add_generation_prompt: given.add_generation_prompt.unwrap_or(true),
                variables: given.variables,
                now: now.clone(),
            };
            match template.render(&chat) {
                Ok(text) => assert_eq!(Some(&hash(&text)), rendered.get(&name), "{file}, {name}: {text}"),
                Err(ChatError::Refused(why)) => assert_eq!(Some(&why), refused.get(&name), "{file}, {name}"),
                // Where transformers fails without the template's wish, its words are Python's.
                Err(error) => assert!(refused.contains_key(&name), "{file}, {name}: {error}"),
            }
        }
    }
}
