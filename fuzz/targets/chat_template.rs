//! A chat template and, after a zero byte, the messages for it: whatever they are, there is a text or an error, in bounded time
//! and memory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_infer::chat::{Chat, ChatTemplate, Value};

fuzz_target!(|data: &[u8]| {
    let (template, messages) = data.split_at(data.iter().position(|&byte| byte == 0).unwrap_or(data.len()));
    let Ok(template) = std::str::from_utf8(template) else { return };
    let Ok(template) = ChatTemplate::parse(template, Default::default()) else { return };
    let messages: Vec<Value> = serde_json::from_slice(messages.get(1..).unwrap_or_default()).unwrap_or_else(|_| {
        vec![Value::from_pairs([("role", "user"), ("content", "床前明月光")])]
    });
    let chat = Chat { tools: messages.clone(), messages, ..Chat::default() };
    if let Ok(text) = template.render(&chat) {
        assert!(text.len() <= 1 << 29, "{} bytes", text.len());
    }
});
