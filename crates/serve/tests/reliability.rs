//! Clients that misbehave, and too many of them.

mod common;

use common::{Answer, Server, post};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use wudao_infer::engine::EngineOptions;
use wudao_serve::{ApiKeys, Options, Tls};

fn long(stream: bool) -> Vec<u8> {
    post(
        "/v1/completions",
        &json!({"prompt": "a", "max_tokens": 250, "ignore_eos": true, "stream": stream}).to_string(),
        "",
    )
}

/// An engine slow enough that a request can be caught in the middle.
fn slow() -> EngineOptions {
    EngineOptions { batch: 1, ..EngineOptions::default() }
}

#[test]
fn a_client_that_leaves_ends_its_request() {
    let server = Server::start(Options::default(), slow());
    for (number, streamed) in [(1, true), (2, false)] {
        // Others keep the engine busy, so that it cannot be done before the client has left.
        let mut clients: Vec<TcpStream> = (0..8)
            .map(|_| {
                let mut stream = server.connect();
                stream.write_all(&long(streamed)).unwrap();
                stream
            })
            .collect();
        server.until("running", |status| status.running + status.waiting >= 2);
        clients.clear();
        server.until("the end", |status| status.running + status.waiting == 0);
        assert!(server.status().counters.cancelled >= number, "{:?}", server.status().counters);
    }
    assert!(server.status().counters.max_tokens < 16);
    server.ok("/v1/completions", json!({"prompt": "still there", "max_tokens": 2}));
}

#[test]
fn too_much_at_once_is_told_to_come_back() {
    let server = Server::start(Options { max_requests: 1, ..Options::default() }, slow());
    let mut first = server.connect();
    let body = json!({"prompt": "a", "n": 16, "max_tokens": 250, "ignore_eos": true, "stream": true});
    first.write_all(&post("/v1/completions", &body.to_string(), "")).unwrap();
    server.until("running", |status| status.running > 0);
    let refused = server.post("/v1/completions", json!({"prompt": "b"}));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.body);
    refused.error("overloaded");
    // Asking how it is costs nothing.
    assert_eq!(server.get("/v1/models").status, 200);
    assert_eq!(Answer::read(&mut first).events().last().unwrap(), "[DONE]");
    server.ok("/v1/completions", json!({"prompt": "b", "max_tokens": 1}));

    // The engine's own queue.
    let server = Server::start(Options::default(), EngineOptions { batch: 1, queue: 1, ..EngineOptions::default() });
    let busy = json!({"prompt": vec!["a"; 20], "max_tokens": 100, "ignore_eos": true});
    assert!(server.fails(503, "overloaded", "/v1/completions", busy).contains("wait"));
    server.until("the end", |status| status.running + status.waiting == 0);
    server.ok("/v1/completions", json!({"prompt": "b", "max_tokens": 1}));
}

#[test]
fn a_pace_is_kept() {
    let server = Server::start(Options { rate: NonZeroU32::new(2), ..Options::default() }, EngineOptions::default());
    let ask = json!({"content": "a"});
    server.ok("/tokenize", ask.clone());
    server.ok("/tokenize", ask.clone());
    let refused = server.post("/tokenize", ask);
    assert_eq!(refused.status, 429);
    refused.error("rate_limit_exceeded");
    assert!((1..=30).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn keys_are_asked_for_where_it_matters() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b me\n").unwrap();
    let options = Options { api_keys: Some(ApiKeys::read(&path).unwrap()), ..Options::default() };
    let server = Server::start(options, EngineOptions::default());
    for open in ["/", "/api.js", "/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    for closed in ["/v1/models", "/metrics", "/tokenizer_info"] {
        let answer = server.get(closed);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{closed}");
        answer.error("invalid_api_key");
    }
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let with = |header: &str| server.raw(&post("/v1/completions", &body, header)).status;
    assert_eq!(with("authorization: Bearer secret\r\n"), 200);
    assert_eq!(with("authorization: Bearer wrong\r\n"), 401);
    assert_eq!(with("authorization: \u{1F511}\r\n"), 401);
    assert_eq!(with(&format!("authorization: Bearer {}\r\n", "x".repeat(10_000))), 401);
    assert_eq!(with(""), 401);
}

#[test]
fn a_thousand_connections_are_served() {
    let server = Server::plain();
    let mut streams: Vec<TcpStream> = (0..1000).map(|_| server.connect()).collect();
    let ask = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for round in 0..2 {
        streams.iter_mut().for_each(|stream| stream.write_all(ask.as_bytes()).unwrap());
        for stream in &mut streams {
            let mut head = [0; 15];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK", "round {round}");
            // To the end of this answer.
            let mut rest = Vec::new();
            while !rest.ends_with(b"{\"status\":\"ok\"}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                rest.push(byte[0]);
            }
        }
    }
    server.ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
}

/// All at once: each is answered whole, or told to come back; where there is room for all, none is told.
#[test]
fn a_thousand_requests_at_once_lose_none() {
    let small = || Server::start(Options { max_requests: 64, ..Options::default() }, EngineOptions::default());
    let large = || {
        let engine = EngineOptions { queue: 1000, ..EngineOptions::default() };
        Server::start(Options { max_requests: 1000, ..Options::default() }, engine)
    };
    for (server, room) in [(small(), 64), (large(), 1000)] {
        let mut streams: Vec<TcpStream> = (0..1000).map(|_| server.connect()).collect();
        let ask = json!({"prompt": "a", "max_tokens": 3, "ignore_eos": true, "stream": true}).to_string();
        let ask = post("/v1/completions", &ask, "");
        streams.iter_mut().for_each(|stream| stream.write_all(&ask).unwrap());
        let mut served = 0;
        for stream in &mut streams {
            let answer = Answer::read(stream);
            if answer.status == 200 {
                let events = answer.events();
                let end = &events[events.len() - 2]["choices"][0]["finish_reason"];
                assert_eq!((end, events.last().unwrap()), (&json!("length"), &json!("[DONE]")), "{}", answer.body);
                served += 1;
            } else {
                assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
                answer.error("overloaded");
            }
        }
        assert!(served >= room, "{served} of {room}");
        server.until("the end", |status| status.running + status.waiting == 0);
        let counters = server.status().counters;
        assert_eq!((counters.max_tokens, counters.cancelled, counters.failed), (served, 0, 0));
    }
}

#[test]
fn half_a_request_is_not_waited_for() {
    let short = Duration::from_millis(300);
    let options = Options { header_timeout: short, body_timeout: short, ..Options::default() };
    let server = Server::start(options, EngineOptions::default());
    let start = Instant::now();
    for head in ["", "POST /v1/comp", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: app"] {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let answer = Answer::read(&mut stream);
        assert!([0, 408].contains(&answer.status), "{answer:?}");
    }
    let mut stream = server.connect();
    let whole = post("/v1/completions", &json!({"prompt": "a"}).to_string(), "");
    stream.write_all(&whole[..whole.len() - 5]).unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.status, 408);
    answer.error("request_timeout");
    assert!(start.elapsed() < Duration::from_secs(20));
    server.ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
}

#[test]
fn a_hundred_megabytes_are_not_read() {
    let server = Server::plain();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let chunk = vec![b'a'; 1 << 20];
    let mut declared = server.connect();
    declared.write_all(format!("{head}content-length: 100000000\r\n\r\n").as_bytes()).unwrap();
    let answer = Answer::read(&mut declared);
    assert_eq!(answer.status, 413);
    answer.error("request_too_large");

    let mut chunked = server.connect();
    chunked.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let mut sent = 0;
    for _ in 0..100 {
        let piece = [format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk, b"\r\n"].concat();
        if chunked.write_all(&piece).is_err() {
            break;
        }
        sent += 1;
    }
    // It is refused before it has come; how much the buffers between us took does not matter.
    assert!(sent < 100, "all of it was taken");
    server.ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
}

#[test]
fn odd_bodies_are_errors_and_nothing_else() {
    let server = Server::plain();
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let map = format!("{{\"prompt\": \"a\", \"metadata\": {}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    for body in [
        deep.as_str(),
        map.as_str(),
        "",
        "null",
        "[]",
        "{",
        "{\"prompt\": \"\\ud800\"}",
        "{\"prompt\": 1e999}",
        "\u{feff}{}",
    ] {
        let answer = server.raw(&post("/v1/completions", body, ""));
        assert_eq!(answer.status, 400, "{} {}", &body[..body.len().min(40)], answer.body);
        answer.error("invalid_value");
    }
    let mut not_utf8 = post("/v1/completions", "{\"prompt\": \"床\"}", "");
    not_utf8.iter_mut().filter(|byte| **byte > 127).for_each(|byte| *byte = 0xff);
    assert_eq!(server.raw(&not_utf8).status, 400);
    let text = post("/v1/completions", "{\"prompt\": \"a\"}", "");
    let text = String::from_utf8(text).unwrap().replace("application/json", "text/plain");
    server.raw(text.as_bytes()).error("unsupported_media_type");
    let nonsense = server.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 nonsense\r\n\r\n");
    assert!([0, 400].contains(&nonsense.status));
    server.ok("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
}

#[test]
fn who_reads_nothing_is_let_go() {
    let options = Options { write_timeout: Duration::from_millis(300), ..Options::default() };
    let server = Server::start(options, EngineOptions::default());
    // Answers long enough that the buffers of the sockets cannot take them: many choices with many alternatives.
    let body = json!({"prompt": "a", "n": 64, "max_tokens": 250, "ignore_eos": true, "logprobs": 20, "stream": true});
    let mut stream = server.connect();
    stream.write_all(&post("/v1/completions", &body.to_string(), "")).unwrap();
    server.until("running", |status| status.running > 0);
    server.until("the end", |status| status.running + status.waiting == 0);
    let counters = server.status().counters;
    assert!(counters.cancelled > 0, "{counters:?}");
    drop(stream);
}

#[test]
fn a_stopped_server_lets_requests_end() {
    let server = Server::start(Options::default(), slow());
    let mut first = server.connect();
    first.write_all(&long(true)).unwrap();
    let mut idle = server.connect();
    server.until("running", |status| status.running > 0);
    let address = server.address;
    server.join();
    let events = Answer::read(&mut first).events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_grace_has_an_end() {
    let server = Server::start(Options { grace: Duration::ZERO, ..Options::default() }, slow());
    let mut clients: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(&long(true)).unwrap();
            stream
        })
        .collect();
    server.until("running", |status| status.running > 0 && status.waiting > 5);
    server.join();
    let last = Answer::read(clients.last_mut().unwrap());
    assert!(!last.body.contains("[DONE]"), "{}", last.body);
}

#[test]
fn pages_of_other_origins_ask_only_if_they_may() {
    let preflight = "OPTIONS /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\norigin: https://a.example\r\n\
                     access-control-request-method: POST\r\naccess-control-request-headers: content-type,x-own\r\n\r\n";
    let server = Server::start(
        Options { cors: vec!["https://a.example".into()], ..Options::default() },
        EngineOptions::default(),
    );
    let answer = server.raw(preflight.as_bytes());
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://a.example")));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,x-own"));
    let other = server.raw(preflight.replace("a.example", "b.example").as_bytes());
    assert_eq!(other.header("access-control-allow-origin"), None);
    let closed = Server::plain().raw(preflight.as_bytes());
    assert_eq!(closed.header("access-control-allow-origin"), None);
}

#[test]
fn connections_can_be_encrypted() {
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let server =
        Server::start(Options { tls: Some(Tls { cert, key }), ..Options::default() }, EngineOptions::default());
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, server.connect());
    stream.write_all(&post("/v1/completions", &json!({"prompt": "a", "max_tokens": 3}).to_string(), "")).unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.status, 200, "{}", answer.body);
    // Who does not encrypt is not understood.
    assert_eq!(server.get("/health").status, 0);
}

/// A page of another site that reaches us through a name of its own (DNS rebinding) gets nothing, the page included.
#[test]
fn another_name_is_refused() {
    let server = Server::plain();
    for path in ["/", "/v1/models", "/health"] {
        let ask = |host: &str| {
            server.raw(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
        };
        assert_eq!(ask("127.0.0.1:1").status, 200);
        let refused = ask("evil.example:1");
        assert_eq!(refused.status, 403);
        assert!(refused.error("unknown_host").contains("--name evil.example"));
    }
}
