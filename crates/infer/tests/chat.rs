//! Chat templates against what transformers renders: `reference/chat_templates.py` made the files.

mod common;

use serde::Deserialize;
use sha2::{Digest, Sha256};
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

#[derive(Clone, Deserialize)]
struct Given {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    add_generation_prompt: Option<bool>,
    #[serde(flatten)]
    variables: BTreeMap<String, Value>,
}

impl Given {
    fn chat(self, now: &ZonedDateTime) -> Chat {
        Chat {
            messages: self.messages,
            tools: self.tools,
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            variables: self.variables,
            now: now.clone(),
        }
    }
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
            let rendered = match template.render(&given.chat(&now)) {
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

/// What the templates in llama.cpp's sources (Qwen, Llama, Mistral, DeepSeek, …) make of some chats. They have licences of their
/// own, so they are read from its Python binding, and only hashes are kept here.
#[derive(Deserialize)]
struct Hashes {
    now: String,
    special: BTreeMap<String, String>,
    chats: BTreeMap<String, Given>,
    templates: Vec<Carried>,
}

/// SHA-256 of a template, and of what each chat becomes; of an error that the template raises, its words, and of one that is
/// Python's, too.
#[derive(Deserialize)]
struct Carried {
    file: String,
    sha256: String,
    rendered: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
    failed: BTreeMap<String, String>,
}

/// What is known to come out otherwise. Numbers like 1e-07 are Python's in `tojson` alone; `safe` does not make what is added to
/// it safe, too (which is hardly what the author of that template wanted).
const OTHERWISE: [(&str, &str); 9] = [
    ("Apriel-1.6-15b-Thinker-fixed.jinja", "call"),
    ("Apriel-1.6-15b-Thinker-fixed.jinja", "tools"),
    ("GigaChat3-10B-A1.8B.jinja", "call"),
    ("GigaChat3-10B-A1.8B.jinja", "tools"),
    ("GigaChat3.1-10B-A1.8B.jinja", "call"),
    ("GigaChat3.1-10B-A1.8B.jinja", "tools"),
    ("meetkai-functionary-medium-v3.1.jinja", "call"),
    ("unsloth-Apriel-1.5.jinja", "call"),
    ("unsloth-Apriel-1.5.jinja", "tools"),
];

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn templates_in_use_render_as_in_transformers() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/golden/templates.json");
    let golden: Hashes = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let whole = |dir: &Path| golden.templates.iter().all(|t| dir.join("templates").join(&t.file).exists());
    let dir = match common::llama_cpp(whole) {
        Ok(dir) => dir.join("templates"),
        Err(reason) => return common::skipped(format_args!("llama.cpp's templates cannot be had here: {reason}")),
    };
    let now: ZonedDateTime = format!("{}[UTC]", golden.now).parse().unwrap();
    let (mut same, mut otherwise) = (0, vec![]);
    for Carried { file, sha256, rendered, refused, failed } in golden.templates {
        let source = std::fs::read_to_string(dir.join(&file)).unwrap();
        assert_eq!(hash(&source), sha256, "{file} is another");
        let template = ChatTemplate::parse(&source, golden.special.clone()).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (name, given) in golden.chats.clone() {
            let rendering = template.render(&given.chat(&now));
            if failed.contains_key(&name) {
                // There is nothing to be compared with.
                continue;
            }
            let as_theirs = match rendering {
                Ok(text) if rendered.contains_key(&name) => rendered[&name] == hash(&text),
                Err(ChatError::Refused(why)) => refused.get(&name) == Some(&why),
                other => panic!("{file}, {name}: {other:?}"),
            };
            if as_theirs {
                same += 1;
            } else {
                otherwise.push((file.clone(), name));
            }
        }
    }
    assert_eq!(otherwise, OTHERWISE.map(|(file, name)| (file.to_owned(), name.to_owned())));
    assert!(same > 400, "{same}");
}
