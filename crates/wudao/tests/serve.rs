//! `wudao serve` as a user starts it, asks it and stops it.
#![cfg(unix)]

mod common;

use common::{fails, text, trained, wudao};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// Stops the server if the test fails.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn post(address: &str, path: &str, body: &str) -> String {
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    ask(address, &format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_trained_run_is_served_until_it_is_stopped() {
    let model = format!("mine={}", text(trained()));
    let mut command = wudao();
    command.args(["serve", &model, "--port", "0", "--threads", "2", "--cache", "16", "--grace", "20"]);
    let mut server = Server(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut url = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let address = url.trim().strip_prefix("http://").unwrap_or_else(|| panic!("{url}"));

    let models = ask(address, "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(models.contains("\"id\":\"mine\"") && models.contains("\"chat\":true"), "{models}");
    let answer = post(address, "/v1/completions", r#"{"prompt": "话说天下", "max_tokens": 5}"#);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\""), "{answer}");
    let body = r#"{"messages": [{"role": "user", "content": "你好"}], "max_tokens": 5, "stream": true}"#;
    let answer = post(address, "/v1/chat/completions", body);
    assert!(answer.contains("data: [DONE]"), "{answer}");

    // SAFETY: kill(2) takes two integers and touches no memory of ours; the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(server.0.id() as i32, libc::SIGTERM) }, 0);
    let mut said = String::new();
    server.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(server.0.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("Serving") && said.contains("Stopped"), "{said}");
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let run = text(trained());
    assert!(fails(1, &["serve", "/nonexistent"]).err.contains("/nonexistent"));
    assert!(fails(1, &["serve", run, run, "--port", "0", "--cache", "16"]).err.contains("two models are called"));
    assert!(fails(1, &["serve", run, "--port", "0", "--api-keys", "/nonexistent"]).err.contains("keys"));
    assert!(fails(1, &["serve", run, "--host", "203.0.113.1", "--cache", "16"]).err.contains("203.0.113.1"));
    assert!(fails(1, &["serve", run, "--port", "0", "--context", "100000"]).err.contains("context"));
    assert!(fails(2, &["serve"]).err.contains("MODEL"));
    assert!(fails(2, &["serve", run, "--tls-cert", "a"]).err.contains("--tls-key"));
    assert!(fails(2, &["serve", &format!("={run}")]).err.contains("name"));
}
