//! What the fuzzer calls: a request's way from bytes to the engine's terms, as far as it needs no engine.

use crate::body::{parse, refuse};
use crate::conversation::Message;
use crate::form::Asked;
use crate::routes;
use crate::split::Splitter;
use crate::tools::Tools;
use wudao_infer::chat::{Chat, ChatTemplate};
use wudao_infer::constraint::{Form, check_schema};

/// Reads bytes as each kind of request. Whatever they are, it ends, in a request or in an error with words.
pub fn request(json: &[u8], template: &ChatTemplate) {
    if let Ok(request) = parse::<routes::CompletionRequest>(json) {
        let _ = refuse(&request.rest, &["suffix"]);
        if let Ok(engine) = request.draw().request(request.stop.clone()) {
            assert!(engine.stop.iter().all(|stop| !stop.is_empty()));
        }
    }
    if let Ok(request) = parse::<routes::ChatRequest>(json) {
        let structured = request.structured_outputs.as_ref();
        if let Ok(Some(asked)) = Asked::read("response_format", request.response_format.as_ref(), structured)
            && let Form::Json(schema) = asked.form
        {
            let _ = check_schema(&schema);
        }
        let tools = Tools::read(request.tools.unwrap_or_default(), request.tool_choice, request.parallel_tool_calls);
        let messages = request.messages.into_iter().map(Message::value).collect::<Result<Vec<_>, _>>();
        if let (Ok(tools), Ok(messages)) = (tools, messages) {
            let variables = request.chat_template_kwargs.unwrap_or_default();
            let _ = template.render(&Chat { messages, tools: tools.offered, variables, ..Chat::default() });
        }
    }
    if let Ok(request) = parse::<routes::ResponsesRequest>(json) {
        let _ = routes::response_messages(request.instructions, request.input);
    }
    let _ = parse::<routes::EmbeddingRequest>(json);
    let _ = parse::<routes::TokenizeRequest>(json);
    let text = String::from_utf8_lossy(json);
    let mut splitter = Splitter::new("", true);
    let middle = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
    let mut parts = splitter.push(&text[..middle]);
    parts.extend(splitter.push(&text[middle..]));
    parts.extend(splitter.finish());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template() -> ChatTemplate {
        let text =
            "{% for message in messages %}{{ message.role + message.content }}{{ message | tojson }}{% endfor %}";
        ChatTemplate::parse(text, Default::default()).unwrap()
    }

    /// The fuzzer's seeds, whole and with a piece cut out.
    #[test]
    fn seeds_end_in_a_request_or_in_words() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/request");
        let template = template();
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let seed = std::fs::read(entry.unwrap().path()).unwrap();
            for at in 0..seed.len() {
                request(&[&seed[..at], &seed[(at + 3).min(seed.len())..]].concat(), &template);
            }
            count += 1;
        }
        assert!(count >= 5);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            request(&bytes, &template());
        }
    }
}
