//! A server of a tiny random model, and a client that speaks HTTP by hand, so that it can also speak it badly.
#![allow(dead_code, reason = "no test uses all of it")]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wudao_infer::Engine;
use wudao_infer::chat::ChatTemplate;
use wudao_infer::engine::{EngineOptions, Status};
use wudao_infer::testing;
use wudao_serve::{Options, Served};

/// What `wudao tokenizer train` writes.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    engine: Engine,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Of one model that chats and one that does not, `tiny` and `mute`.
    pub fn start(options: Options, engine: EngineOptions) -> Server {
        let engine = testing::engine(engine);
        let mut tiny = Served::new("tiny", engine.clone());
        tiny.template = Some(ChatTemplate::parse(CHATML, Default::default()).unwrap());
        let mute = Served::new("mute", testing::engine(EngineOptions::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = std::sync::mpsc::channel();
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let options = Options { port: 0, ..options };
            wudao_serve::run(vec![tiny, mute], options, &flag, |address| sender.send(address).unwrap()).unwrap();
        });
        let address = receiver.recv().expect("the server starts");
        Server { address, engine, stop, thread: Some(thread) }
    }

    /// With nothing special.
    pub fn plain() -> Server {
        Server::start(Options::default(), EngineOptions::default())
    }

    /// Asks it to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops it and waits.
    pub fn join(mut self) {
        self.stop();
        self.thread.take().unwrap().join().expect("the server ends well");
    }

    /// What its engine does.
    pub fn status(&self) -> Status {
        self.engine.status()
    }

    /// Waits for the engine to come to something.
    #[track_caller]
    pub fn until(&self, what: &str, reached: impl Fn(&Status) -> bool) {
        for _ in 0..2000 {
            if reached(&self.status()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what} was never reached: {:?}", self.status());
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads what comes until the end.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request);
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: Value) -> Answer {
        self.raw(&post(path, &body.to_string(), ""))
    }

    /// Posts and expects success.
    #[track_caller]
    pub fn ok(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Posts and expects an error in OpenAI's shape, of this status and code.
    #[track_caller]
    pub fn fails(&self, status: u16, code: &str, path: &str, body: Value) -> String {
        let answer = self.post(path, body);
        assert_eq!(answer.status, status, "{}", answer.body);
        answer.error(code)
    }

    /// Posts, and reads the events of the stream.
    #[track_caller]
    pub fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        answer.events()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A request in bytes.
pub fn post(path: &str, body: &str, headers: &str) -> Vec<u8> {
    let length = body.len();
    let head = "host: localhost\r\nconnection: close\r\ncontent-type: application/json";
    format!("POST {path} HTTP/1.1\r\n{head}\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The body came to its proper end.
    pub whole: bool,
}

impl Answer {
    pub fn read(stream: &mut impl Read) -> Answer {
        let mut bytes = Vec::new();
        // A reset after the answer is the end, too.
        let _ = stream.read_to_end(&mut bytes);
        Answer::parse(&bytes)
    }

    pub fn parse(bytes: &[u8]) -> Answer {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Answer { status: 0, headers: vec![], body: String::new(), whole: false };
        };
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> =
            lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
        let rest = &bytes[end + 4..];
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let (body, whole) = if chunked { unchunk(rest) } else { (rest.to_vec(), true) };
        Answer { status, headers, body: String::from_utf8(body).expect("UTF-8"), whole }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error with this code.
    #[track_caller]
    pub fn error(&self, code: &str) -> String {
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{}", self.body);
        assert!(error["type"].is_string() && error.get("param").is_some(), "{}", self.body);
        error["message"].as_str().unwrap().to_owned()
    }

    /// The data of all events; one that is no JSON, `[DONE]`, as a text.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert!(self.whole, "the stream was cut: {}", self.body);
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into())).collect()
    }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        rest = &rest[(end + 4 + size).min(rest.len())..];
    }
    (body, false)
}
