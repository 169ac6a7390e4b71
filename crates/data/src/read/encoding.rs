//! From bytes in any of the encodings that Chinese and English text is found in to UTF-8, as a stream.
//!
//! Order of the decision, made on the first 64 KiB that tell anything:
//!
//! 1. a byte order mark: UTF-8, UTF-16 LE or BE;
//! 2. no mark, but the bytes make plausible text only as UTF-16 of one byte order;
//! 3. binary, when a known signature, a NUL, or too many control characters show (the caller skips the file);
//! 4. ASCII passes through until the first byte above 127; the 64 KiB from there on decide:
//!    UTF-8 if they are valid, or valid but for one sequence in twenty; otherwise what `chardetng` (the detector of
//!    Firefox) says, with GBK read as its superset GB18030.
//!
//! Deciding at the first byte above 127, and not at the start of the file, is what makes a long English preface before
//! Chinese in GB18030 come out right. A sequence that is invalid in the chosen encoding becomes U+FFFD and is counted;
//! a quality rule removes the documents that hold too many.
//!
//! A read error ends the stream early instead of travelling through the parsers above, which would each dress it up
//! differently; [`Utf8Reader::into_failure`] gives it back.

use std::io::{self, BufRead, Read};

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Decoder, DecoderResult, Encoding, GB18030, GBK, UTF_8, UTF_16BE, UTF_16LE};

/// How many bytes the detection looks at.
const SAMPLE: usize = 64 << 10;

/// Signatures of files that are not text, with what to call them.
const SIGNATURES: [(&[u8], &str); 22] = [
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "zip, or an office document"),
    (b"\x7fELF", "ELF program"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"\x1f\x8b", "gzip: add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", "zstd: add .zst to its name"),
    (b"\xfd7zXZ\0", "xz: add .xz to its name"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"BZh91AY", "bzip2"),
    (b"PAR1", "Parquet: rename it to .parquet"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"\xd0\xcf\x11\xe0", "old office document"),
    (b"OggS", "Ogg media"),
    (b"RIFF", "RIFF media"),
    (b"ID3", "MP3 audio"),
    (b"\0asm", "WebAssembly"),
    (b"\xca\xfe\xba\xbe", "Java class or Mach-O program"),
    (b"\xcf\xfa\xed\xfe", "Mach-O program"),
    (b"GGUF", "GGUF model"),
];

enum Stage {
    /// Only ASCII so far: bytes pass through.
    Ascii,
    /// Decided.
    Decoding(Box<Decoder>),
}

/// Reads bytes of unknown encoding and gives UTF-8; always valid UTF-8, cut only between characters.
pub struct Utf8Reader {
    inner: Box<dyn Read + Send>,
    /// Bytes read and not yet decoded: `raw[raw_start..raw_end]`.
    raw: Vec<u8>,
    raw_start: usize,
    raw_end: usize,
    inner_done: bool,
    stage: Stage,
    encoding: &'static Encoding,
    /// Decoded text not yet taken: `out[out_start..out_end]`.
    out: Vec<u8>,
    out_start: usize,
    out_end: usize,
    finished: bool,
    malformed: u64,
    binary: Option<&'static str>,
    failure: Option<io::Error>,
}

impl Utf8Reader {
    /// Starts reading, and looks at the beginning.
    pub fn new(inner: Box<dyn Read + Send>) -> Utf8Reader {
        let mut reader = Utf8Reader {
            inner,
            raw: vec![0; 2 * SAMPLE],
            raw_start: 0,
            raw_end: 0,
            inner_done: false,
            stage: Stage::Ascii,
            encoding: UTF_8,
            // encoding_rs wants room for the longest expansion of one step.
            out: vec![0; 4 * SAMPLE],
            out_start: 0,
            out_end: 0,
            finished: false,
            malformed: 0,
            binary: None,
            failure: None,
        };
        reader.fill_raw();
        reader.look();
        reader
    }

    /// What kind of binary file this looks like, if it does.
    pub fn binary(&self) -> Option<&'static str> {
        self.binary
    }

    /// The name of the encoding that was detected.
    pub fn encoding_name(&self) -> &'static str {
        self.encoding.name()
    }

    /// Invalid sequences met so far.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Whether the stream broke off with a read error.
    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The error that ended the stream early, if one did.
    pub fn into_failure(self) -> Option<io::Error> {
        self.failure
    }

    /// The next stretch of text, empty at the end.
    pub fn chunk(&mut self) -> &str {
        while self.out_start == self.out_end && !self.finished {
            self.decode();
        }
        // The decoders write whole characters, and `consume` is only called with what was looked at: checking again
        // costs little next to cleaning, and saves an unsafe block.
        match std::str::from_utf8(&self.out[self.out_start..self.out_end]) {
            Ok(text) => text,
            Err(e) => {
                std::str::from_utf8(&self.out[self.out_start..self.out_start + e.valid_up_to()]).unwrap_or_default()
            }
        }
    }

    fn look(&mut self) {
        let sample = &self.raw[..self.raw_end.min(SAMPLE)];
        if let Some((encoding, mark)) = Encoding::for_bom(sample) {
            self.raw_start = mark;
            self.decide(encoding);
        } else if let Some((_, name)) = SIGNATURES.iter().find(|(signature, _)| sample.starts_with(signature)) {
            self.binary = Some(name);
        } else if let Some(encoding) = utf16_without_mark(sample) {
            self.decide(encoding);
        } else if sample.contains(&0) {
            self.binary = Some("it holds NUL bytes");
        } else {
            let control = |b: &&u8| **b < 32 && !matches!(**b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b) || **b == 127;
            if sample.iter().filter(control).count() * 20 > sample.len() {
                self.binary = Some("it is full of control characters");
            }
        }
    }

    fn decide(&mut self, encoding: &'static Encoding) {
        self.encoding = encoding;
        self.stage = Stage::Decoding(Box::new(encoding.new_decoder_without_bom_handling()));
    }

    /// Moves what is left to the front and reads until the buffer is full or the input ends.
    fn fill_raw(&mut self) {
        self.raw.copy_within(self.raw_start..self.raw_end, 0);
        self.raw_end -= self.raw_start;
        self.raw_start = 0;
        while !self.inner_done && self.raw_end < self.raw.len() {
            match self.inner.read(&mut self.raw[self.raw_end..]) {
                Ok(0) => self.inner_done = true,
                Ok(n) => self.raw_end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failure = Some(e);
                    self.inner_done = true;
                }
            }
        }
    }

    fn decode(&mut self) {
        (self.out_start, self.out_end) = (0, 0);
        if self.raw_start == self.raw_end && !self.inner_done {
            self.fill_raw();
        }
        let pending = &self.raw[self.raw_start..self.raw_end];
        match &mut self.stage {
            Stage::Ascii => {
                let ascii = Encoding::ascii_valid_up_to(pending);
                if ascii > 0 {
                    self.out[..ascii].copy_from_slice(&pending[..ascii]);
                    self.out_end = ascii;
                    self.raw_start += ascii;
                } else if pending.is_empty() {
                    self.finished = true;
                } else {
                    self.fill_raw();
                    let end = self.raw_end.min(SAMPLE);
                    let whole = self.inner_done && end == self.raw_end;
                    self.decide(detect(&self.raw[..end], whole));
                }
            }
            Stage::Decoding(decoder) => {
                let (result, read, written) =
                    decoder.decode_to_utf8_without_replacement(pending, &mut self.out, self.inner_done);
                self.raw_start += read;
                self.out_end = written;
                match result {
                    DecoderResult::InputEmpty => self.finished = self.inner_done,
                    DecoderResult::OutputFull => {}
                    DecoderResult::Malformed(..) => {
                        // A cut compressed file usually ends inside a character: that is not the text's fault.
                        if self.failure.is_some() && self.raw_start == self.raw_end {
                            return;
                        }
                        self.malformed += 1;
                        let mark = "\u{fffd}".as_bytes();
                        // Room for it is certain: the decoder stops early enough before the end of `out`.
                        if let Some(room) = self.out.get_mut(written..written + mark.len()) {
                            room.copy_from_slice(mark);
                            self.out_end += mark.len();
                        }
                    }
                }
            }
        }
    }
}

impl Read for Utf8Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Utf8Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.out_start == self.out_end && !self.finished {
            self.decode();
        }
        Ok(&self.out[self.out_start..self.out_end])
    }

    fn consume(&mut self, n: usize) {
        self.out_start = (self.out_start + n).min(self.out_end);
    }
}

/// UTF-16 without a byte order mark: the byte order in which nearly every unit is a character that Chinese or English
/// text is made of, if the bytes are not plain UTF-8 (ASCII letters read in pairs look like Chinese).
fn utf16_without_mark(sample: &[u8]) -> Option<&'static Encoding> {
    let sample = &sample[..sample.len().min(8192)];
    if sample.len() < 4 || (!sample.contains(&0) && utf8_counts(sample, false).1 == 0) {
        return None;
    }
    let share = |unit: fn([u8; 2]) -> u16| {
        let units = sample.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let plausible = |u: &u16| matches!(u, 9 | 10 | 13 | 0x20..=0x7e | 0x2010..=0x2026 | 0x3000..=0x3020 | 0x4e00..=0x9fff | 0xff01..=0xff5e);
        units.filter(plausible).count() as f64 / (sample.len() / 2) as f64
    };
    let (little, big) = (share(u16::from_le_bytes), share(u16::from_be_bytes));
    match (little > 0.95, big > 0.95) {
        (true, _) if little > big + 0.1 => Some(UTF_16LE),
        (_, true) if big > little + 0.1 => Some(UTF_16BE),
        _ => None,
    }
}

/// Valid multi-byte sequences and invalid ones, read as UTF-8. Unless `whole`, a sequence cut off at the end is neither.
fn utf8_counts(mut bytes: &[u8], whole: bool) -> (usize, usize) {
    let (mut valid, mut invalid) = (0, 0);
    let sequences = |part: &[u8]| part.iter().filter(|b| **b >= 0xc0).count();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => return (valid + sequences(text.as_bytes()), invalid),
            Err(e) => {
                valid += sequences(&bytes[..e.valid_up_to()]);
                match e.error_len() {
                    None => return (valid, invalid + usize::from(whole)),
                    Some(n) => {
                        invalid += 1;
                        bytes = &bytes[e.valid_up_to() + n..];
                    }
                }
            }
        }
    }
}

fn detect(sample: &[u8], whole: bool) -> &'static Encoding {
    let (valid, invalid) = utf8_counts(sample, whole);
    if invalid == 0 || valid >= 20 * invalid {
        return UTF_8;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(sample, whole);
    let guess = detector.guess(None, Utf8Detection::Deny);
    if guess == GBK { GB18030 } else { guess }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use encoding_rs::BIG5;

    const SIMPLIFIED: &str = "全国人民代表大会常务委员会关于修改《中华人民共和国教育法》的决定，自公布之日起施行。";
    const TRADITIONAL: &str = "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。這首詩是李白所作，後人傳誦至今。";
    const ENGLISH: &str = "It was the best of times, it was the worst of times, it was the age of wisdom.";

    fn utf16(text: &str, little: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|u| if little { u.to_le_bytes() } else { u.to_be_bytes() }).collect()
    }

    fn read(bytes: Vec<u8>) -> (String, Utf8Reader) {
        let mut reader = Utf8Reader::new(Box::new(io::Cursor::new(bytes)));
        let mut text = String::new();
        loop {
            let chunk = reader.chunk();
            if chunk.is_empty() {
                return (text, reader);
            }
            text.push_str(chunk);
            let n = chunk.len();
            reader.consume(n);
        }
    }

    #[track_caller]
    fn check(bytes: Vec<u8>, expected: &str, encoding: &str) {
        let (text, reader) = read(bytes);
        assert_eq!(reader.encoding_name(), encoding);
        assert_eq!(text, expected);
        assert_eq!((reader.malformed(), reader.binary()), (0, None));
    }

    #[test]
    fn each_encoding_is_recognised() {
        for text in [SIMPLIFIED, TRADITIONAL, ENGLISH, "", "a"] {
            check(text.as_bytes().to_vec(), text, "UTF-8");
            check([b"\xef\xbb\xbf", text.as_bytes()].concat(), text, "UTF-8");
            check([b"\xff\xfe".to_vec(), utf16(text, true)].concat(), text, "UTF-16LE");
            check([b"\xfe\xff".to_vec(), utf16(text, false)].concat(), text, "UTF-16BE");
        }
        for text in [SIMPLIFIED, TRADITIONAL, ENGLISH] {
            check(utf16(text, true), text, "UTF-16LE");
            check(utf16(text, false), text, "UTF-16BE");
        }
        check(GB18030.encode(SIMPLIFIED).0.to_vec(), SIMPLIFIED, "gb18030");
        check(BIG5.encode(TRADITIONAL).0.to_vec(), TRADITIONAL, "Big5");
        // Four-byte GB18030: characters outside GBK.
        let rare = format!("{SIMPLIFIED}𠮷野家，㐂。{SIMPLIFIED}");
        check(GB18030.encode(&rare).0.to_vec(), &rare, "gb18030");
    }

    #[test]
    fn short_files_in_the_chinese_encodings_are_recognised() {
        for text in ["春眠不觉晓，处处闻啼鸟。", "学而时习之，不亦说乎？", "第一条　为了保护公民的权利，制定本法。"]
        {
            check(GB18030.encode(text).0.to_vec(), text, "gb18030");
        }
        for text in ["春眠不覺曉，處處聞啼鳥。", "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？"]
        {
            check(BIG5.encode(text).0.to_vec(), text, "Big5");
        }
    }

    #[test]
    fn a_long_english_preface_does_not_hide_the_encoding() {
        let text = format!("{}\n{}", ENGLISH.repeat(4000), SIMPLIFIED.repeat(4000));
        check(GB18030.encode(&text).0.to_vec(), &text, "gb18030");
        check(text.as_bytes().to_vec(), &text, "UTF-8");
        check(utf16(&text, true), &text, "UTF-16LE");
    }

    #[test]
    fn a_few_bad_bytes_leave_utf8_utf8() {
        let mut bytes = SIMPLIFIED.repeat(30).into_bytes();
        bytes[500] = 0xff;
        let (text, reader) = read(bytes);
        assert_eq!(reader.encoding_name(), "UTF-8");
        assert!(reader.malformed() >= 1);
        assert_eq!(text.matches('\u{fffd}').count() as u64, reader.malformed());
    }

    #[test]
    fn binary_is_recognised() {
        for bytes in [
            &b"%PDF-1.4 text"[..],
            b"PK\x03\x04....",
            b"abc\0\0\0\x01\x02def",
            b"\x1f\x8b\x08",
            b"a\x01\x02\x03\x04\x05b",
        ] {
            assert!(Utf8Reader::new(Box::new(bytes)).binary().is_some(), "{bytes:?}");
        }
    }

    #[test]
    fn one_byte_at_a_time_gives_the_same() {
        struct Drip(Vec<u8>, usize);
        impl Read for Drip {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let Some(byte) = self.0.get(self.1) else { return Ok(0) };
                buffer[0] = *byte;
                self.1 += 1;
                Ok(1)
            }
        }
        let text = SIMPLIFIED.repeat(20);
        let mut reader = Utf8Reader::new(Box::new(Drip(GB18030.encode(&text).0.to_vec(), 0)));
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        assert_eq!(out, text);
    }
}
