//! Who asks, and whether there is room: keys, pace, and the number of requests at once.
//!
//! A key is known by its SHA-256 alone, so the file of keys tells nobody a key. The hash of what a client sends is looked up, and
//! how long that takes says nothing about a key that has another hash.

use crate::error::ApiError;
use crate::options::Options;
use axum::http::{HeaderMap, header};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Hash = [u8; 32];

/// Most bytes of a file of keys.
const MAX_FILE: u64 = 16 << 20;
/// After so many requests, clients that have not asked for long are forgotten.
const FORGET: u32 = 1024;

/// The keys that open the door.
#[derive(Clone)]
pub struct ApiKeys(Arc<HashSet<Hash>>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

/// Why keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file.
    #[error("cannot read the keys in {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is no hash.
    #[error(
        "{}:{line}: not a SHA-256 hash, which is 64 hexadecimal digits (as `printf %s KEY | sha256sum` prints them; a name may \
         follow)",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// No keys.
    #[error("{} holds no keys: with it nobody could ask", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl ApiKeys {
    /// Reads a file of hashes, one a line; what follows a hash is a name for people, and `#` begins a remark.
    pub fn read(path: &Path) -> Result<ApiKeys, KeysError> {
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|source| KeysError::Io { path: path.to_owned(), source })?;
        let mut hashes = HashSet::new();
        for (number, line) in text.lines().enumerate() {
            let Some(word) = line.split('#').next().unwrap_or_default().split_whitespace().next() else { continue };
            let hash = unhex(word).ok_or_else(|| KeysError::Line { path: path.to_owned(), line: number + 1 })?;
            hashes.insert(hash);
        }
        if hashes.is_empty() {
            return Err(KeysError::Empty { path: path.to_owned() });
        }
        Ok(ApiKeys(Arc::new(hashes)))
    }
}

/// 64 hexadecimal digits as bytes.
fn unhex(text: &str) -> Option<Hash> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

/// Whose request it is: one key, or without keys one address.
pub type Client = u64;

/// The door.
pub struct Admission {
    keys: Option<ApiKeys>,
    pace: Option<RateLimiter<Client, HashMapStateStore<Client>, DefaultClock>>,
    seen: AtomicU32,
    room: Arc<Semaphore>,
    most: usize,
    /// The only names it answers to, beside addresses.
    names: Option<Vec<String>>,
}

impl Admission {
    /// As the options say.
    pub fn new(options: &Options) -> Admission {
        Admission {
            keys: options.api_keys.clone(),
            pace: options.rate.map(|rate| RateLimiter::hashmap(Quota::per_minute(rate))),
            seen: AtomicU32::new(0),
            room: Arc::new(Semaphore::new(options.max_requests.min(Semaphore::MAX_PERMITS))),
            most: options.max_requests,
            names: names(options),
        }
    }

    /// Refuses who asks for a server of another name. A server without keys on this machine alone trusts whoever reaches it;
    /// but a page of another site reaches it too, through a name of its own that leads to 127.0.0.1 (DNS rebinding). Browsers say
    /// which name they mean, and an address is nobody's to redirect.
    pub fn check_name(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let (Some(names), Some(host)) = (&self.names, headers.get(header::HOST)) else { return Ok(()) };
        let host = host.to_str().unwrap_or_default().to_ascii_lowercase();
        let name = match host.rsplit_once(':') {
            // A port follows, unless this is the inside of an address in brackets.
            Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
            _ => &host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        match address || name.ends_with(".localhost") || names.iter().any(|known| known == name) {
            true => Ok(()),
            false => Err(ApiError::stranger(name)),
        }
    }

    /// Who asks, if they may.
    pub fn client(&self, headers: &HeaderMap, address: IpAddr) -> Result<Client, ApiError> {
        let Some(keys) = &self.keys else {
            let hash = match address {
                IpAddr::V4(v4) => Sha256::digest(v4.octets()),
                // Whoever has one address of a /64 has all of them.
                IpAddr::V6(v6) => Sha256::digest(&v6.octets()[..8]),
            };
            return Ok(short(hash.into()));
        };
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(value) = value else {
            return Err(ApiError::unauthorized("an API key is needed, as the header Authorization: Bearer KEY"));
        };
        let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
        let hash: Hash = Sha256::digest(key.trim()).into();
        if !scheme.eq_ignore_ascii_case("bearer") || !keys.0.contains(&hash) {
            return Err(ApiError::unauthorized("this API key is not known here"));
        }
        Ok(short(hash))
    }

    /// A place for one more request of this client, until it is dropped.
    pub fn enter(&self, client: Client) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Some(pace) = &self.pace {
            if self.seen.fetch_add(1, Ordering::Relaxed) % FORGET == FORGET - 1 {
                pace.retain_recent();
            }
            if let Err(early) = pace.check_key(&client) {
                let wait = early.wait_time_from(DefaultClock::default().now());
                return Err(ApiError::rate(wait.as_secs().max(1)));
            }
        }
        let most = self.most;
        self.room.clone().try_acquire_owned().map_err(|_| {
            ApiError::overloaded(format!(
                "{most} requests are being answered, the most that this server takes: try again"
            ))
        })
    }
}

/// The names that a server answers to, if it matters.
fn names(options: &Options) -> Option<Vec<String>> {
    let all = ["localhost", &options.host].into_iter().chain(options.names.iter().map(String::as_str));
    (options.api_keys.is_none() && options.is_local()).then(|| all.map(str::to_ascii_lowercase).collect())
}

/// The beginning of a hash as a number.
fn short(hash: Hash) -> Client {
    u64::from_le_bytes(*hash.first_chunk().expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn keys(text: &str) -> Result<ApiKeys, KeysError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, text).unwrap();
        ApiKeys::read(&path)
    }

    /// SHA-256 of "secret" and "another".
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn keys_are_hashes_with_names_and_remarks() {
        let keys = keys(&format!("# ours\n\n{SECRET}  alice # since May\n{}\n", SECRET.to_uppercase())).unwrap();
        assert_eq!(keys.0.len(), 1);
        let options = Options { api_keys: Some(keys), ..Options::default() };
        let (door, here) = (Admission::new(&options), IpAddr::from([127, 0, 0, 1]));
        let client = door.client(&headers("Bearer secret"), here).unwrap();
        assert_eq!(door.client(&headers("bearer  secret "), IpAddr::from([1, 2, 3, 4])).unwrap(), client);
        for wrong in ["Bearer secreT", "Bearer", "secret", "Basic secret", &format!("Bearer {SECRET}")] {
            assert!(door.client(&headers(wrong), here).is_err(), "{wrong}");
        }
        assert!(door.client(&HeaderMap::new(), here).is_err());
    }

    #[test]
    fn a_file_without_keys_opens_nothing() {
        assert!(keys("secret\n").unwrap_err().to_string().contains("keys:1: not a SHA-256"));
        assert!(keys(&format!("{SECRET}\n{}", &SECRET[1..])).unwrap_err().to_string().contains(":2:"));
        assert!(matches!(keys("# none\n"), Err(KeysError::Empty { .. })));
        assert!(matches!(ApiKeys::read(Path::new("/nonexistent")), Err(KeysError::Io { .. })));
    }

    #[test]
    fn a_server_without_keys_on_this_machine_answers_to_its_own_names() {
        let asks = |options: &Options, host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            Admission::new(options).check_name(&headers).is_ok()
        };
        let open = Options { names: vec!["Chat.example".into()], ..Options::default() };
        for own in [
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1]",
            "10.1.2.3",
            "localhost:1",
            "LOCALHOST",
            "a.localhost",
            "chat.example:8",
        ] {
            assert!(asks(&open, own), "{own}");
        }
        for other in ["evil.example:8000", "chat.example.evil", "localhost.evil", "127.0.0.1.evil", ":8000", ""] {
            assert!(!asks(&open, other), "{other}");
        }
        assert!(Admission::new(&open).check_name(&HeaderMap::new()).is_ok());
        let locked = Options { api_keys: Some(keys(SECRET).unwrap()), ..Options::default() };
        assert!(
            asks(&locked, "evil.example")
                && asks(&Options { host: "0.0.0.0".into(), ..Options::default() }, "a.example")
        );
    }

    #[test]
    fn one_client_s_haste_is_not_another_s_and_room_comes_back() {
        let options = Options { rate: NonZeroU32::new(2), max_requests: 3, ..Options::default() };
        let door = Admission::new(&options);
        let address = |last| door.client(&HeaderMap::new(), IpAddr::from([10, 0, 0, last])).unwrap();
        let first: Vec<_> = (0..2).map(|_| door.enter(address(1)).unwrap()).collect();
        assert!(door.enter(address(1)).unwrap_err().json().contains("rate_limit_exceeded"));
        let second = door.enter(address(2)).unwrap();
        assert!(door.enter(address(2)).unwrap_err().json().contains("overloaded"));
        drop((first, second));
        assert!(door.enter(address(3)).is_ok());
    }
}
