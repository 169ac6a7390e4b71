//! Each route through a real socket.

mod common;

use common::Server;
use serde_json::{Value, json};

fn text(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[test]
fn the_server_says_what_it_is() {
    let server = Server::plain();
    let models = server.get("/v1/models").json();
    assert_eq!((models["data"][0]["id"].as_str(), models["data"][0]["chat"].as_bool()), (Some("tiny"), Some(true)));
    assert_eq!((models["data"][1]["id"].as_str(), models["data"][1]["chat"].as_bool()), (Some("mute"), Some(false)));
    assert_eq!(models["data"][0]["max_model_len"], 256);
    assert_eq!(server.get("/v1/models/mute").json()["id"], "mute");
    server.get("/v1/models/none").error("model_not_found");
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    assert!(server.get("/openapi.json").json()["paths"]["/v1/chat/completions"]["post"].is_object());
    let page = server.get("/");
    assert!(page.body.starts_with("<!doctype html>"));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(server.get("/api.js").header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(server.get("/../Cargo.toml").status, 404);
    server.get("/nothing").error("not_found");
    let get = server.get("/v1/completions");
    assert_eq!(get.status, 405);
    get.error("method_not_allowed");
    server.ok("/v1/completions", json!({"prompt": "a"}));
    let metrics = server.get("/metrics").body;
    for line in [
        "wudao_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "wudao_http_requests_total{route=\"/v1/completions\",status=\"405\"} 1",
        "wudao_completion_tokens_total{model=\"tiny\"} ",
        "wudao_first_token_seconds_bucket{model=\"tiny\",le=\"+Inf\"} 1",
        "wudao_sequences_running{model=\"mute\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn texts_are_continued() {
    let server = Server::plain();
    let path = "/v1/completions";
    let ask =
        json!({"model": "tiny", "prompt": "the lazy", "max_tokens": 30, "seed": 7, "ignore_eos": true, "logprobs": 2});
    let whole = server.ok(path, ask.clone());
    let choice = &whole["choices"][0];
    assert_eq!((choice["finish_reason"].as_str(), choice["index"].as_u64()), (Some("length"), Some(0)));
    assert_eq!(whole["usage"]["completion_tokens"], 30);
    assert_eq!(server.ok(path, ask.clone())["choices"], whole["choices"]);

    // What is streamed is the same, in whole characters.
    let mut streamed = ask.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.stream(path, streamed);
    assert_eq!(text(&events, "/choices/0/text"), choice["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap(), "[DONE]");
    let usage = &events[events.len() - 2];
    assert_eq!(
        (usage["choices"].as_array().unwrap().len(), usage["usage"]["total_tokens"].as_u64()),
        (0, whole["usage"]["total_tokens"].as_u64())
    );
    let logprobs: Vec<&Value> =
        events.iter().filter_map(|e| e.pointer("/choices/0/logprobs/token_logprobs")?.as_array()).flatten().collect();
    assert_eq!(json!(logprobs), choice["logprobs"]["token_logprobs"]);

    // Several of several.
    let several =
        server.ok(path, json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 4, "seed": 1, "ignore_eos": true}));
    let texts: Vec<&str> = several["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!((texts.len(), texts[0] == texts[1]), (4, false));
    let indices: Vec<u64> =
        several["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(several["usage"]["completion_tokens"], 16);
    let best = server
        .ok(path, json!({"prompt": "a", "best_of": 4, "max_tokens": 4, "seed": 1, "ignore_eos": true, "logprobs": 0}));
    assert_eq!((best["choices"].as_array().unwrap().len(), best["usage"]["completion_tokens"].as_u64()), (1, Some(16)));

    // A stop string ends it, and is not part of it.
    let all = choice["text"].as_str().unwrap();
    let stop: String = all.chars().skip(5).take(2).collect();
    let mut stopped = ask;
    stopped["stop"] = json!([stop]);
    let stopped = server.ok(path, stopped);
    assert_eq!(stopped["choices"][0]["text"].as_str().unwrap(), &all[..all.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

/// What cuts the choice down to one is greedy at any temperature; what is penalised is said less.
#[test]
fn every_way_of_sampling_arrives() {
    let server = Server::plain();
    let tokens = |more: &[(&str, Value)]| -> Vec<String> {
        let mut ask = json!({"prompt": "the lazy", "max_tokens": 60, "seed": 7, "ignore_eos": true, "logprobs": 0});
        more.iter().for_each(|(name, value)| ask[*name] = value.clone());
        let answer = server.ok("/v1/completions", ask);
        let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
        tokens.iter().map(|token| token.as_str().unwrap().to_owned()).collect()
    };
    let greedy = tokens(&[("temperature", json!(0))]);
    let hot = ("temperature", json!(1.9));
    assert_ne!(tokens(std::slice::from_ref(&hot)), greedy);
    for cut in [("top_k", json!(1)), ("top_p", json!(1e-6)), ("min_p", json!(1.0))] {
        assert_eq!(tokens(&[hot.clone(), cut.clone()]), greedy, "{cut:?}");
    }
    let distinct = |tokens: &[String]| tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    let before = distinct(&greedy);
    assert!(before < greedy.len(), "it repeats nothing");
    for (penalty, most) in [("presence_penalty", 2.0), ("frequency_penalty", 2.0), ("repetition_penalty", 5.0)] {
        let after = distinct(&tokens(&[("temperature", json!(0)), (penalty, json!(most))]));
        assert!(after > before, "{penalty}: {after} distinct tokens instead of {before}");
    }
}

/// As lm-eval measures likelihoods.
#[test]
fn prompts_are_echoed_with_their_log_probabilities() {
    let server = Server::plain();
    let path = "/v1/completions";
    let tokens =
        server.ok("/tokenize", json!({"prompt": "the lazy dog", "add_special_tokens": false}))["tokens"].clone();
    let n = tokens.as_array().unwrap().len();
    let ask = json!({"prompt": [tokens, [5, 6]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234});
    let answer = server.ok(path, ask);
    let lists = &answer["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[list].as_array().unwrap().len(), n + 1, "{list}");
    }
    assert!(lists["token_logprobs"][0].is_null() && lists["top_logprobs"][0].is_null());
    let last = &lists["top_logprobs"][n];
    assert_eq!(last.as_object().unwrap().len(), 1, "greedy: the likeliest is the one that was taken");
    assert_eq!(last.as_object().unwrap().values().next(), Some(&lists["token_logprobs"][n]));
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with("the lazy dog"));
    assert_eq!(answer["choices"][1]["logprobs"]["tokens"].as_array().unwrap().len(), 3);

    // A text is a document: its first token has a probability, after the one that begins documents.
    let read = server.ok(path, json!({"prompt": "床前明月光", "max_tokens": 0, "logprobs": 1, "echo": true}));
    let lists = &read["choices"][0]["logprobs"];
    assert_eq!(
        (read["choices"][0]["text"].as_str(), lists["tokens"][0].as_str()),
        (Some("床前明月光"), Some("<|endoftext|>"))
    );
    assert!(lists["token_logprobs"][1].as_f64().unwrap() < 0.0);
    assert_eq!((lists["text_offset"][0].as_u64(), lists["text_offset"][1].as_u64()), (Some(0), Some(0)));
    assert_eq!(read["usage"]["completion_tokens"], 0);
    let events = server.stream(path, json!({"prompt": "床前明月光", "max_tokens": 2, "logprobs": 1, "echo": true}));
    let lists = events.iter().filter_map(|e| e.pointer("/choices/0/logprobs/tokens")?.as_array());
    assert_eq!(lists.map(Vec::len).sum::<usize>(), read["usage"]["prompt_tokens"].as_u64().unwrap() as usize + 2);
    assert!(text(&events, "/choices/0/text").starts_with("床前明月光"));
}

#[test]
fn messages_are_answered() {
    let server = Server::plain();
    let path = "/v1/chat/completions";
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "你好"}]}]);
    let ask = json!({"model": "tiny", "messages": messages, "max_completion_tokens": 20, "seed": 3, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 2, "n": 2, "user": "me", "store": true});
    let whole = server.ok(path, ask.clone());
    assert_eq!(whole["object"], "chat.completion");
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (choice["message"]["role"].as_str(), choice["index"].as_u64()),
            (Some("assistant"), Some(index as u64))
        );
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((content.len(), content[0]["top_logprobs"].as_array().unwrap().len()), (20, 2));
        assert!(content[0]["bytes"].is_array());
    }
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let prompt = server.ok("/tokenize", json!({"messages": messages}))["count"].clone();
    assert_eq!(whole["usage"]["prompt_tokens"], prompt);

    let mut streamed = ask;
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.stream(path, streamed);
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    for index in 0..2u64 {
        let own: Vec<Value> = events.iter().filter(|e| e["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(
            text(&own, "/choices/0/delta/content"),
            whole["choices"][index as usize]["message"]["content"].as_str().unwrap()
        );
        let logprobs = own.iter().filter_map(|e| e.pointer("/choices/0/logprobs/content")?.as_array());
        assert_eq!(logprobs.map(Vec::len).sum::<usize>(), 20);
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    assert_eq!(events[events.len() - 2]["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[test]
fn responses_are_made_item_by_item() {
    let server = Server::plain();
    let path = "/v1/responses";
    let ask =
        json!({"model": "tiny", "instructions": "Be brief.", "input": "hello", "max_output_tokens": 12, "seed": 5});
    let whole = server.ok(path, ask.clone());
    assert_eq!((whole["object"].as_str(), whole["output"][0]["type"].as_str()), (Some("response"), Some("message")));
    assert!(["completed", "incomplete"].contains(&whole["status"].as_str().unwrap()));
    let said = whole["output"][0]["content"][0]["text"].as_str().unwrap();

    let events = server.stream(path, ask);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let frame =
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
    assert_eq!(kinds[..4], frame);
    let end = ["response.output_text.done", "response.content_part.done", "response.output_item.done"];
    assert_eq!(kinds[kinds.len() - 4..kinds.len() - 1], end);
    assert_eq!(*kinds.last().unwrap(), format!("response.{}", whole["status"].as_str().unwrap()));
    assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));
    assert_eq!(text(&events, "/delta"), said);
    let usage = &events.last().unwrap()["response"]["usage"];
    assert_eq!(usage["total_tokens"], whole["usage"]["total_tokens"]);
    // The prompt had been read for the answer before.
    assert!(usage["input_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    let items = json!([
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
    ]);
    assert_eq!(server.ok(path, json!({"input": items, "max_output_tokens": 1}))["status"], "incomplete");
    server.fails(400, "unsupported_value", path, json!({"input": "x", "previous_response_id": "resp_1"}));
}

#[test]
fn texts_become_vectors() {
    let server = Server::plain();
    let floats = server.ok("/v1/embeddings", json!({"model": "tiny", "input": ["a", "床前"]}));
    let vector: Vec<f64> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
    let length = vector.iter().map(|x| x * x).sum::<f64>();
    assert!((length - 1.0).abs() < f64::from(f32::EPSILON) * 32.0, "{length}");
    let coded = server.ok("/v1/embeddings", json!({"input": ["a", "床前"], "encoding_format": "base64"}));
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD.decode(coded["data"][1]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f64> = bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect();
    assert_eq!(decoded.len(), vector.len());
    assert!(decoded.iter().zip(&vector).all(|(a, b)| *a as f32 == *b as f32));
    server.fails(400, "unsupported_value", "/v1/embeddings", json!({"input": "a", "dimensions": 5}));
}

#[test]
fn tokens_are_counted_and_come_back() {
    let server = Server::plain();
    let part = server.ok("/tokenize", json!({"model": "tiny", "content": "床前明月光"}));
    let whole = server.ok("/tokenize", json!({"prompt": "床前明月光"}));
    assert_eq!(part["count"].as_u64().unwrap() + 1, whole["count"].as_u64().unwrap());
    assert_eq!((whole["tokens"][0].as_u64(), whole["max_model_len"].as_u64()), (Some(0), Some(256)));
    let text = server.ok("/detokenize", json!({"tokens": part["tokens"]}));
    assert_eq!((text["prompt"].as_str(), text["content"].as_str()), (Some("床前明月光"), Some("床前明月光")));
    let special = server.ok("/tokenize", json!({"prompt": "<|endoftext|>", "add_special_tokens": false}));
    assert_eq!(special["tokens"], json!([0]));
    let info = server.get("/tokenizer_info").json();
    assert_eq!(
        (info["eos_token"].as_str(), info["chat_template"].as_str()),
        (Some("<|endoftext|>"), Some(common::CHATML))
    );
    server.fails(400, "invalid_value", "/tokenize", json!({"model": "tiny"}));
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_reason() {
    let server = Server::plain();
    let (completions, chat) = ("/v1/completions", "/v1/chat/completions");
    let hello = json!([{"role": "user", "content": "hello"}]);
    server.fails(404, "model_not_found", completions, json!({"model": "gpt-9", "prompt": "a"}));
    server.fails(400, "no_chat_template", chat, json!({"model": "mute", "messages": hello}));
    let long = server.fails(400, "context_length_exceeded", completions, json!({"prompt": vec![5; 256]}));
    assert!(long.contains("256"), "{long}");
    server.fails(400, "context_length_exceeded", "/v1/embeddings", json!({"input": vec![5; 257]}));
    for (path, body, about) in [
        (completions, json!({"prompt": "a", "temperature": -1}), "temperature"),
        (completions, json!({"prompt": "a", "temperature": 1e300}), ""),
        (completions, json!({"prompt": "a", "top_p": 0}), "top_p"),
        (completions, json!({"prompt": "a", "n": 0}), "n"),
        (completions, json!({"prompt": "a", "n": 2, "best_of": 1}), "best_of"),
        (completions, json!({"prompt": "a", "n": 1_000_000}), "n"),
        (completions, json!({"prompt": vec!["a"; 200]}), "prompt"),
        (completions, json!({"prompt": []}), "prompt"),
        (completions, json!({"prompt": [[]]}), "prompt"),
        (completions, json!({"prompt": [99999]}), "prompt"),
        (completions, json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (completions, json!({"prompt": "a", "logit_bias": {"x": 1}}), "logit_bias"),
        (completions, json!({"prompt": "a", "stop": vec!["x"; 17]}), "stop"),
        (completions, json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (completions, json!({"prompt": {"a": 1}}), "prompt"),
        (completions, json!({}), ""),
        (chat, json!({"messages": []}), "messages"),
        (chat, json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (chat, json!({"messages": hello, "functions": [{"name": "f"}]}), "functions"),
        (chat, json!({"messages": hello, "top_logprobs": 3}), "top_logprobs"),
        (chat, json!({"messages": hello, "modalities": ["audio"]}), "modalities"),
        (chat, json!({"messages": hello, "tool_choice": "required"}), "tool_choice"),
        (chat, json!({"messages": hello, "max_tokens": -5}), "max_tokens"),
        ("/v1/responses", json!({"input": "x", "truncation": "auto"}), "truncation"),
    ] {
        let answer = server.post(path, body.clone());
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        let param = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert_eq!(param, about, "{body}: {}", answer.body);
    }
}
