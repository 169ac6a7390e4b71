//! Opening a byte stream: counting what is read, and decompression.
//!
//! The counter sits below the decompressor, so that progress is told in bytes of the file as stored, and so that an
//! error can be told apart: one that the operating system raised (the disk is failing: stop) from one that the
//! decompressor raised (the file is cut short: keep what came before).

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The most memory an xz stream may ask for (its strongest preset needs 65 MiB to decode). Zstandard's own default
/// limit (a window of 128 MiB) applies to zst.
const XZ_MEMORY: u64 = 256 << 20;

/// How a file is compressed, told by its last extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, also of several members.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
}

impl Compression {
    /// The compression that belongs to a file extension (lower case, without the dot).
    pub fn from_extension(extension: &str) -> Compression {
        match extension {
            "gz" => Compression::Gzip,
            "zst" => Compression::Zstd,
            "xz" => Compression::Xz,
            _ => Compression::None,
        }
    }
}

#[derive(Default)]
struct Shared {
    bytes: AtomicU64,
    failed: AtomicBool,
}

/// Tells how far a [`Raw`] has been read, and whether the operating system failed it.
#[derive(Clone)]
pub struct Counter(Arc<Shared>);

impl Counter {
    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether a read below the decompressor failed.
    pub fn failed(&self) -> bool {
        self.0.failed.load(Ordering::Relaxed)
    }
}

/// A byte stream that counts.
pub struct Raw {
    inner: Box<dyn Read + Send>,
    shared: Arc<Shared>,
}

impl Raw {
    /// Counts what is read from `inner`.
    pub fn new(inner: Box<dyn Read + Send>) -> Raw {
        Raw { inner, shared: Arc::default() }
    }

    /// The counter of this stream.
    pub fn counter(&self) -> Counter {
        Counter(self.shared.clone())
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        match &result {
            Ok(n) => drop(self.shared.bytes.fetch_add(*n as u64, Ordering::Relaxed)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.shared.failed.store(true, Ordering::Relaxed),
        }
        result
    }
}

/// The stream's content without its compression.
///
/// # Errors
/// When the decompressor cannot be set up (out of memory). Damage in the data shows when reading.
pub fn decompress(raw: Raw, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    let buffered = BufReader::with_capacity(128 << 10, raw);
    Ok(match compression {
        Compression::None => Box::new(buffered.into_inner()),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(buffered)?),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(buffered, stream))
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// Compresses bytes; shared with the tests of the readers.
    pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
        match compression {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    const ALL: [Compression; 4] = [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz];

    fn raw(bytes: Vec<u8>) -> Raw {
        Raw::new(Box::new(io::Cursor::new(bytes)))
    }

    #[test]
    fn every_compression_round_trips_also_in_two_members() {
        let text = "春眠不觉晓，处处闻啼鸟。\n".repeat(5000);
        let (first, second) = text.as_bytes().split_at(text.len() / 3);
        for compression in ALL {
            let stored = [compress(first, compression), compress(second, compression)].concat();
            let raw = raw(stored.clone());
            let counter = raw.counter();
            let mut out = Vec::new();
            decompress(raw, compression).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text.as_bytes(), "{compression:?}");
            assert_eq!(counter.bytes(), stored.len() as u64);
            assert!(!counter.failed());
        }
    }

    #[test]
    fn a_cut_stream_is_an_early_end_and_not_a_failing_disk() {
        let han = |i: u64| char::from_u32(0x4e00 + (crate::profile::mix(i) % 20_000) as u32).unwrap();
        let text: String = (0..200_000).map(han).collect();
        for compression in &ALL[1..] {
            let mut stored = compress(text.as_bytes(), *compression);
            stored.truncate(stored.len() * 2 / 3);
            let raw = raw(stored);
            let counter = raw.counter();
            let mut out = Vec::new();
            let mut reader = decompress(raw, *compression).unwrap();
            let mut buffer = [0; 1000];
            let error = loop {
                match reader.read(&mut buffer) {
                    Ok(n) => out.extend_from_slice(&buffer[..n]),
                    Err(e) => break e,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{compression:?}");
            assert!(!counter.failed());
            assert!(text.as_bytes().starts_with(&out), "{compression:?}");
            assert!(!out.is_empty(), "{compression:?}");
        }
    }

    #[test]
    fn a_failing_disk_is_told_apart() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("input/output error"))
            }
        }
        let raw = Raw::new(Box::new(Failing));
        let counter = raw.counter();
        let mut out = Vec::new();
        decompress(raw, Compression::Gzip).unwrap().read_to_end(&mut out).unwrap_err();
        assert!(counter.failed());
    }
}
