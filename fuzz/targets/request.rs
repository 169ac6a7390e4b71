//! The body of a request: read as each kind of request, it is one or an error, in bounded time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use wudao_infer::chat::ChatTemplate;

static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    let text = "{% for message in messages %}{{ message.role + message.content }}{{ message.tool_calls | tojson }}{% endfor %}";
    ChatTemplate::parse(&format!("{text}{{{{ tools | tojson(indent=2) }}}}"), Default::default()).expect("it is sound")
});

fuzz_target!(|data: &[u8]| wudao_serve::fuzzing::request(data, &TEMPLATE));
