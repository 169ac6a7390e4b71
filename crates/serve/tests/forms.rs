//! Answers that must have a form, through a real socket: a model that writes nonsense writes nonsense of that form.

mod common;

use common::Server;
use serde_json::{Value, json};
use wudao_infer::engine::EngineOptions;
use wudao_serve::Options;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Small enough to be written whole in the tiny model's context.
fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "n", "tags"],
        "properties": {
            "name": {"$ref": "#/$defs/name"},
            "n": {"type": "integer", "minimum": -5, "maximum": 99},
            "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "床", null]}},
        },
        "$defs": {"name": {"type": "string", "minLength": 1, "maxLength": 4}},
    })
}

#[track_caller]
fn fits(value: &Value) {
    let object = value.as_object().unwrap();
    assert_eq!(object.keys().collect::<Vec<_>>(), ["name", "n", "tags"], "{value}");
    assert!((1..=4).contains(&value["name"].as_str().unwrap().chars().count()), "{value}");
    assert!((-5..=99).contains(&value["n"].as_i64().unwrap()), "{value}");
    let tags = value["tags"].as_array().unwrap();
    assert!(tags.len() <= 2 && tags.iter().all(|tag| [json!("a"), json!("床"), json!(null)].contains(tag)), "{value}");
}

fn hello() -> Value {
    json!([{"role": "user", "content": "hello"}])
}

fn text(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

fn format() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "thing", "strict": true, "schema": schema()}})
}

#[test]
fn answers_fit_their_schema_streamed_or_not() {
    let guessing = Server::start(Options::default(), EngineOptions { guesses: 4, ..EngineOptions::default() });
    let server = Server::plain();
    let mut whole = 0;
    for seed in 0..6 {
        let ask = json!({"messages": hello(), "seed": seed, "n": 2, "logprobs": true, "top_logprobs": 1,
            "temperature": ([0.0, 0.8, 1.5][seed % 3]), "response_format": format()});
        let answer = server.ok(CHAT, ask.clone());
        for choice in answer["choices"].as_array().unwrap() {
            let content = choice["message"]["content"].as_str().unwrap();
            match choice["finish_reason"].as_str() {
                Some("stop") => fits(&serde_json::from_str(content).unwrap()),
                // So far, so good: white space may take all room.
                reason => assert_eq!((reason, &content[..1]), (Some("length"), "{")),
            }
            whole += usize::from(choice["finish_reason"] == "stop");
            let logprobs = choice["logprobs"]["content"].as_array().unwrap();
            assert!(logprobs.iter().all(|token| token["logprob"].as_f64().unwrap().is_finite()));
        }
        let events = server.stream(CHAT, ask.clone());
        for index in 0..2 {
            let own: Vec<Value> = events.iter().filter(|e| e["choices"][0]["index"] == index).cloned().collect();
            let content = &answer["choices"][index]["message"]["content"];
            assert_eq!(text(&own, "/choices/0/delta/content"), content.as_str().unwrap());
        }
        assert_eq!(guessing.ok(CHAT, ask)["choices"], answer["choices"]);
    }
    assert!(whole >= 6, "{whole} of 12 came to their end");
}

#[test]
fn a_completion_is_what_an_expression_a_list_or_a_grammar_says() {
    let server = Server::plain();
    let ask = |form: Value, more: Value| {
        let mut body = json!({"prompt": "the fox", "max_tokens": 60, "seed": 1, "n": 3, "structured_outputs": form});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.ok(TEXT, body);
        let choices = answer["choices"].as_array().unwrap().clone();
        let texts: Vec<String> = choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect();
        (texts, choices)
    };
    let (texts, choices) = ask(json!({"regex": "[0-9]{3}-床[a-c]"}), json!({}));
    for (text, choice) in texts.iter().zip(&choices) {
        let (digits, rest) = text.split_once('-').unwrap();
        assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        assert!(["床a", "床b", "床c"].contains(&rest), "{text}");
        // It ends where nothing can follow, though the model would go on.
        assert_eq!(choice["finish_reason"], "stop");
    }
    let (texts, _) = ask(json!({"choice": ["yes", "no", "yesterday"]}), json!({"best_of": 6, "temperature": 2}));
    assert!(texts.iter().all(|text| ["yes", "no", "yesterday"].contains(&text.as_str())), "{texts:?}");
    let (texts, _) = ask(json!({"grammar": "start: \"(\" start \")\" | /[xy]/"}), json!({"ignore_eos": true}));
    for text in texts {
        let inner = text.trim_start_matches('(').trim_end_matches(')');
        assert!(["x", "y", ""].contains(&inner), "{text}");
    }
    let (texts, choices) = ask(json!({"json": {"type": "boolean"}}), json!({"logit_bias": {"0": 100}}));
    assert!(texts.iter().all(|text| text == "true" || text == "false"), "{texts:?}");
    assert!(choices.iter().all(|choice| choice["finish_reason"] == "stop"));
    // A stop string cuts what it would cut without a form.
    let (texts, _) = ask(json!({"choice": ["one;two"]}), json!({"stop": ";"}));
    assert_eq!(texts, ["one"; 3]);
    let (texts, _) = ask(json!({"choice": [""]}), json!({}));
    assert_eq!(texts, [""; 3]);
    let (texts, choices) = ask(json!({"json_object": true}), json!({"temperature": 0}));
    for (text, choice) in texts.iter().zip(&choices) {
        assert!(
            choice["finish_reason"] == "length" || serde_json::from_str::<Value>(text).unwrap().is_object(),
            "{text}"
        );
    }
    let same = server.ok(TEXT, json!({"prompt": "a", "max_tokens": 9, "seed": 4, "response_format": {"type": "text"}}));
    assert_eq!(same["choices"], server.ok(TEXT, json!({"prompt": "a", "max_tokens": 9, "seed": 4}))["choices"]);
}

#[test]
fn responses_have_a_format_too() {
    let server = Server::plain();
    let format = json!({"type": "json_schema", "name": "thing", "strict": true, "schema": schema()});
    let mut whole = 0;
    for seed in 0..4 {
        let ask = json!({"input": "hello", "seed": seed, "text": {"format": format}});
        let answer = server.ok("/v1/responses", ask.clone());
        let said = answer["output"][0]["content"][0]["text"].as_str().unwrap();
        if answer["status"] == "completed" {
            fits(&serde_json::from_str(said).unwrap());
            whole += 1;
        }
        assert_eq!(answer["text"]["format"], format);
        assert_eq!(text(&server.stream("/v1/responses", ask), "/delta"), said);
    }
    assert!(whole > 0);
}

fn tools(strict: bool) -> Value {
    let small = json!({"type": "object", "additionalProperties": false, "required": ["x"],
        "properties": {"x": {"enum": [1, 2]}}});
    json!([
        {"type": "function", "function": {"name": "get \"it\"", "parameters": small, "strict": strict}},
        {"type": "function", "function": {"name": "none", "strict": strict,
            "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}},
    ])
}

#[track_caller]
fn is_call(call: &Value) {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "get \"it\"" => assert!(arguments == json!({"x": 1}) || arguments == json!({"x": 2}), "{call}"),
        "none" => assert_eq!(arguments, json!({})),
        name => panic!("{name}"),
    }
}

#[test]
fn calls_that_are_demanded_fit_their_functions() {
    let server = Server::plain();
    let named = json!({"type": "function", "function": {"name": "get \"it\""}});
    for (choice, single, strict) in
        [(json!("required"), true, true), (json!("required"), false, false), (named, true, false)]
    {
        for seed in 0..3 {
            let ask = json!({"messages": hello(), "seed": seed, "tools": tools(strict), "tool_choice": choice,
                "parallel_tool_calls": !single, "max_tokens": 150});
            let answer = server.ok(CHAT, ask.clone());
            let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
            assert!(!calls.is_empty() && (!single || calls.len() == 1), "{answer}");
            calls.iter().for_each(is_call);
            // The last of several may have been cut: then it is text.
            let content = answer["choices"][0]["message"]["content"].as_str();
            assert!(content.is_none_or(|text| !single && text.starts_with("<tool_call>")), "{answer}");
            let events = server.stream(CHAT, ask);
            let name = events.iter().find_map(|e| e.pointer("/choices/0/delta/tool_calls/0/function/name")).unwrap();
            assert_eq!(name, &calls[0]["function"]["name"]);
        }
    }
    // A schema that is not understood is no hindrance where it was not promised to be kept.
    let loose = |strict: bool| {
        json!({"messages": hello(), "tool_choice": "required", "max_tokens": 20, "tools": [{"type": "function",
            "function": {"name": "f", "strict": strict, "parameters": {"not": {}}}}]})
    };
    server.ok(CHAT, loose(false));
    let why = server.fails(400, "invalid_value", CHAT, loose(true));
    assert!(why.contains("tools") && why.contains("\"not\""), "{why}");
}

#[test]
fn responses_call_functions_too() {
    let server = Server::plain();
    // The newer form has the fields of a function beside its type.
    let flat: Vec<Value> = tools(true)
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            let mut function = tool["function"].clone();
            function["type"] = "function".into();
            function
        })
        .collect();
    let named = json!({"type": "function", "name": "get \"it\""});
    for (choice, seed) in [(json!("required"), 0), (json!("required"), 1), (named, 2)] {
        let ask = json!({"input": "hello", "seed": seed, "tools": flat, "tool_choice": choice,
            "parallel_tool_calls": false, "max_output_tokens": 150});
        let answer = server.ok("/v1/responses", ask.clone());
        let call = &answer["output"][0];
        assert_eq!((answer["status"].as_str(), call["type"].as_str()), (Some("completed"), Some("function_call")));
        is_call(&json!({"function": call}));
        let events = server.stream("/v1/responses", ask);
        let done: Vec<&Value> =
            events.iter().filter(|event| event["type"] == "response.function_call_arguments.done").collect();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0]["arguments"], call["arguments"]);
    }
}

/// A model that likes to call is held to strict functions even where it may choose.
#[test]
fn calls_that_come_by_themselves_fit_strict_functions() {
    let server = Server::plain();
    let mark = server.ok("/tokenize", json!({"content": "<tool_call>"}))["tokens"].clone();
    let bias: serde_json::Map<String, Value> =
        mark.as_array().unwrap().iter().map(|id| (id.to_string(), json!(12))).collect();
    let mut called = 0;
    for seed in 0..8 {
        let ask = json!({"messages": hello(), "seed": seed, "tools": tools(true), "max_tokens": 150, "logit_bias": bias,
            "response_format": if seed % 2 == 0 { json!({"type": "text"}) } else { format() }});
        let answer = server.ok(CHAT, ask);
        let choice = &answer["choices"][0];
        for call in choice["message"]["tool_calls"].as_array().into_iter().flatten().take(1) {
            is_call(call);
            called += 1;
        }
    }
    assert!(called > 0, "no call at all");
}

#[test]
fn what_cannot_be_kept_is_refused_before_any_work() {
    let server = Server::plain();
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let chat = |format: Value| json!({"messages": hello(), "response_format": format});
    let text = |form: Value| json!({"prompt": "a", "structured_outputs": form});
    let many: serde_json::Map<String, Value> = (0..3001).map(|i| (format!("p{i}"), json!({}))).collect();
    for (path, body, about, says) in [
        (CHAT, chat(schema(json!({"properties": {"a": {"not": {}}}}))), "response_format", "#/properties/a/not"),
        (CHAT, chat(schema(json!({"type": "nothing"}))), "response_format", "nothing"),
        (CHAT, chat(schema(json!({"properties": many}))), "response_format", "3000"),
        (CHAT, chat(json!({"type": "json_schema"})), "response_format", "schema"),
        (CHAT, chat(json!({"type": "xml"})), "response_format", "json_object"),
        (CHAT, json!({"messages": hello(), "guided_json": {"type": "object"}}), "guided_json", "structured_outputs"),
        (TEXT, text(json!({"regex": "("})), "structured_outputs", "regex"),
        (TEXT, text(json!({"regex": "a".repeat(70_000)})), "structured_outputs", "65536"),
        (TEXT, text(json!({"grammar": "root ::= \"a\""})), "structured_outputs", "::="),
        (TEXT, text(json!({"choice": []})), "structured_outputs", "nothing"),
        (TEXT, text(json!({"regex": "a", "choice": ["b"]})), "structured_outputs", "one form"),
        (TEXT, text(json!({"structural_tag": "x"})), "structured_outputs", "structural_tag"),
        (
            "/v1/responses",
            json!({"input": "a", "text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format",
            "schema",
        ),
    ] {
        let answer = server.post(path, body.clone());
        assert_eq!(answer.status, 400, "{}", answer.body);
        let error = &answer.json()["error"];
        assert!(error["param"].as_str().unwrap_or_default().starts_with(about), "{}", answer.body);
        assert!(error["message"].as_str().unwrap().contains(says), "{}", answer.body);
    }
    assert_eq!(server.status().counters.prompt_tokens, 0);
}
