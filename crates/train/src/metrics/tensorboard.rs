//! TensorBoard's event files, written by hand.
//!
//! The format is a sequence of records (TensorFlow's `record_writer`): length, masked CRC-32C of the length, data, masked
//! CRC-32C of the data. The data is one `Event` of `event.proto`; of it, four fields are enough: the time, the step, a
//! summary of scalars, and at the beginning the version of the format. That is less code than a protobuf library has
//! configuration.
//!
//! Each start of a run makes a file of its own, and a session that starts at step n tells TensorBoard to forget what
//! earlier files say about later steps.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// How the names of event files begin.
const PREFIX: &str = "events.out.tfevents.";

/// An open event file.
pub(super) struct EventFile {
    file: File,
}

impl EventFile {
    /// Makes a new file in `folder`, of a run that goes on after `step`. A run from the beginning removes older files.
    pub fn create(folder: &Path, step: u64) -> io::Result<EventFile> {
        fs::create_dir_all(folder)?;
        if step == 0 {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX)) {
                    fs::remove_file(path)?;
                }
            }
        }
        // Readers take the files in the order of their names: each is later than those before it, whatever the clock says.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let seconds = newest(folder)?.map_or(0, |before| before.saturating_add(1)).max(now);
        let file = File::create_new(folder.join(format!("{PREFIX}{seconds:010}.wudao")))?;
        let mut events = EventFile { file };
        events.write(0, |event| bytes_field(event, 3, b"brain.Event:2"))?;
        if step > 0 {
            // SessionLog { status: START }
            events.write(step + 1, |event| bytes_field(event, 7, &[0x08, 1]))?;
        }
        Ok(events)
    }

    /// Writes scalars of one step, as one event.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        let mut summary = vec![];
        for (tag, value) in scalars {
            let mut v = vec![];
            bytes_field(&mut v, 1, tag.as_bytes());
            key(&mut v, 2, 5);
            v.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &v);
        }
        self.write(step, |event| bytes_field(event, 5, &summary))
    }

    /// Brings what was written to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&mut self, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let mut event = vec![];
        key(&mut event, 1, 1);
        event.extend(time.to_le_bytes());
        key(&mut event, 2, 0);
        varint(&mut event, step);
        what(&mut event);
        self.file.write_all(&record(&event))
    }
}

/// The seconds since 1970 in the name of the newest event file.
fn newest(folder: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(rest) = name.to_string_lossy().strip_prefix(PREFIX) {
            newest = newest.max(Some(rest.split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0)));
        }
    }
    Ok(newest)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(data);
    record.extend(masked(crc32c(data)).to_le_bytes());
    record
}

/// A protobuf field's number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
fn key(to: &mut Vec<u8>, field: u64, wire: u64) {
    varint(to, field << 3 | wire);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn bytes_field(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(to, field, 2);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

/// CRC-32C (Castagnoli), by a table of bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, &b| TABLE[(crc as u8 ^ b) as usize] ^ crc >> 8)
}

/// TensorFlow stores sums turned and shifted, so that a sum over data that holds sums is a good one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An independent reader: bit by bit for the sums, a general walk over protobuf's fields.
    mod reader {
        pub fn crc(bytes: &[u8]) -> u32 {
            let mut remainder = 0xffff_ffffu32;
            for byte in bytes {
                for bit in 0..8 {
                    let carry = (remainder ^ u32::from(byte >> bit)) & 1;
                    remainder >>= 1;
                    if carry == 1 {
                        remainder ^= 0x82f6_3b78;
                    }
                }
            }
            remainder ^ 0xffff_ffff
        }

        fn check(stored: &[u8], data: &[u8]) {
            let stored = u32::from_le_bytes(stored.try_into().unwrap());
            let turned = stored.wrapping_sub(0xa282_ead8);
            assert_eq!(turned.rotate_left(15), crc(data));
        }

        pub fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
            let mut records = vec![];
            while !bytes.is_empty() {
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                check(&bytes[8..12], &bytes[..8]);
                check(&bytes[12 + length..16 + length], &bytes[12..12 + length]);
                records.push(bytes[12..12 + length].to_vec());
                bytes = &bytes[16 + length..];
            }
            records
        }

        #[derive(Debug, PartialEq, Clone)]
        pub enum Value {
            Int(u64),
            Eight([u8; 8]),
            Bytes(Vec<u8>),
            Four([u8; 4]),
        }

        pub fn fields(bytes: &[u8]) -> Vec<(u64, Value)> {
            let mut at = 0;
            let int = |at: &mut usize| {
                let (mut value, mut shift) = (0u64, 0);
                loop {
                    let byte = bytes[*at];
                    *at += 1;
                    value += u64::from(byte % 128) << shift;
                    shift += 7;
                    if byte < 128 {
                        return value;
                    }
                }
            };
            let mut fields = vec![];
            while at < bytes.len() {
                let key = int(&mut at);
                let value = match key % 8 {
                    0 => Value::Int(int(&mut at)),
                    1 => {
                        at += 8;
                        Value::Eight(bytes[at - 8..at].try_into().unwrap())
                    }
                    2 => {
                        let n = int(&mut at) as usize;
                        at += n;
                        Value::Bytes(bytes[at - n..at].to_vec())
                    }
                    5 => {
                        at += 4;
                        Value::Four(bytes[at - 4..at].try_into().unwrap())
                    }
                    other => panic!("wire type {other}"),
                };
                fields.push((key / 8, value));
            }
            fields
        }
    }
    use reader::{Value, fields, records};

    fn events(folder: &Path) -> Vec<Vec<(u64, Value)>> {
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths.iter().flat_map(|p| records(&fs::read(p).unwrap())).map(|r| fields(&r)).collect()
    }

    fn get(event: &[(u64, Value)], field: u64) -> &Value {
        &event.iter().find(|(f, _)| *f == field).unwrap().1
    }

    #[test]
    fn sums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(reader::crc(b"123456789"), 0xe306_9283);
        // RFC 3720, appendix B.4; and how every event file of TensorFlow begins.
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(record(&[0; 24])[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn what_is_written_is_what_a_reader_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), 0).unwrap();
        file.scalars(1, &[("train/loss".into(), 2.5), ("训练/损失".into(), -1.0)]).unwrap();
        file.scalars(300, &[("train/loss".into(), f64::NAN)]).unwrap();
        let events = events(dir.path());
        assert_eq!(events.len(), 3);
        assert_eq!(*get(&events[0], 3), Value::Bytes(b"brain.Event:2".to_vec()));
        let Value::Eight(time) = get(&events[1], 1) else { panic!() };
        assert!(f64::from_le_bytes(*time) > 1e9);
        assert_eq!(*get(&events[1], 2), Value::Int(1));
        let Value::Bytes(summary) = get(&events[1], 5) else { panic!() };
        let values = fields(summary);
        assert_eq!(values.len(), 2);
        let read = |v: &Value| {
            let Value::Bytes(v) = v else { panic!() };
            let v = fields(v);
            let (Value::Bytes(tag), Value::Four(x)) = (get(&v, 1), get(&v, 2)) else { panic!() };
            (String::from_utf8(tag.clone()).unwrap(), f32::from_le_bytes(*x))
        };
        assert_eq!(read(&values[0].1), ("train/loss".into(), 2.5));
        assert_eq!(read(&values[1].1), ("训练/损失".into(), -1.0));
        assert_eq!(*get(&events[2], 2), Value::Int(300));
    }

    #[test]
    fn a_resumed_run_makes_tensorboard_forget_and_a_new_one_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        EventFile::create(dir.path(), 0).unwrap().scalars(9, &[("x".into(), 1.0)]).unwrap();
        EventFile::create(dir.path(), 5).unwrap();
        let all = events(dir.path());
        let last = all.last().unwrap();
        assert_eq!((get(last, 2), get(last, 7)), (&Value::Int(6), &Value::Bytes(vec![8, 1])));
        assert_eq!(all.len(), 4);
        fs::write(dir.path().join("events.out.tfevents.4102444800.wudao"), b"").unwrap();
        EventFile::create(dir.path(), 7).unwrap();
        assert_eq!(*get(events(dir.path()).last().unwrap(), 2), Value::Int(8), "the newest file is read last");
        EventFile::create(dir.path(), 0).unwrap();
        assert_eq!(events(dir.path()).len(), 1);
    }
}
