//! Event files that TensorBoard reads.
//!
//! A file is a sequence of TFRecords (length, checksum of the length, data, checksum of the data), each of them one
//! `tensorflow.Event` in the protocol buffers' wire format. Of its messages this project writes four fields of one and
//! two of another, so they are written out here by hand; the numbers are those of `event.proto` and `summary.proto`.
//!
//! A reader takes the files of a folder in the order of their names. When a run goes on after a crash, its new file
//! begins with a `SessionLog` of status START, which makes the reader forget what older files said of that step and
//! later ones.

use super::MetricsError;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What the names of event files have in common, before the seconds since 1970.
const PREFIX: &str = "events.out.tfevents.";

/// An event file being written.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a new file in `folder`, at `now` seconds since 1970. What earlier files there say of the steps from
    /// `first_step` on no longer counts.
    pub fn create(folder: &Path, first_step: u64, now: f64) -> Result<EventFile, MetricsError> {
        let newest = newest(folder)?;
        // Later than every other file, whatever the clock says, so that the order of names is that of writing.
        let seconds = newest.map_or(0, |n| n.saturating_add(1)).max(now as u64);
        let path = folder.join(format!("{PREFIX}{seconds:010}.wudao"));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(MetricsError::new("create", &path))?;
        let mut events = EventFile { path, file };
        events.write(&event(now, 0, &bytes_field(3, b"brain.Event:2")))?;
        if newest.is_some() {
            const START: u64 = 1;
            let status = varint_field(1, START);
            events.write(&event(now, first_step, &bytes_field(7, &status)))?;
        }
        Ok(events)
    }

    /// Writes numbers that belong to a step, by their tags.
    pub fn scalars(&mut self, step: u64, now: f64, scalars: &[(String, f64)]) -> Result<(), MetricsError> {
        let mut summary = vec![];
        for (tag, value) in scalars {
            let mut entry = bytes_field(1, tag.as_bytes());
            entry.push(2 << 3 | FIXED32);
            entry.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.write(&event(now, step, &bytes_field(5, &summary)))
    }

    /// Waits until the file has reached the medium.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(MetricsError::new("flush", &self.path))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), MetricsError> {
        self.file.write_all(&record(event)).map_err(MetricsError::new("write", &self.path))
    }
}

/// The seconds in the name of the newest event file of a folder.
fn newest(folder: &Path) -> Result<Option<u64>, MetricsError> {
    let mut newest = None;
    for entry in fs::read_dir(folder).map_err(MetricsError::new("list", folder))? {
        let name = entry.map_err(MetricsError::new("list", folder))?.file_name();
        if let Some(rest) = name.to_string_lossy().strip_prefix(PREFIX) {
            let digits = rest.split('.').next().unwrap_or_default();
            newest = newest.max(Some(digits.parse().unwrap_or(0)));
        }
    }
    Ok(newest)
}

/// The framing of a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// TFRecord's guard against checksums of checksums.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The cyclic redundancy check of Castagnoli et al. 1993 (polynomial 0x1EDC6F41, reflected).
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

// The wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// An `Event`: `wall_time` 1, `step` 2, and one field more, which `what` holds.
fn event(wall_time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | FIXED64];
    out.extend(wall_time.to_le_bytes());
    out.extend(varint_field(2, step));
    out.extend(what);
    out
}

fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | LENGTH];
    varint(&mut out, bytes.len() as u64);
    out.extend(bytes);
    out
}

fn varint_field(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3 | VARINT];
    varint(&mut out, value);
    out
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorflow_writes() {
        // The 24 bytes every TensorFlow event file begins with, for an event of 24 bytes, less the wall time.
        let bytes = record(&event(0.0, 0, &[])[..9]);
        assert_eq!(bytes.len(), 8 + 4 + 9 + 4);
        assert_eq!(record(&[0; 24])[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn files_are_named_in_the_order_of_writing_even_if_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut names = vec![];
        for now in [2e9, 2e9, 1e9] {
            names.push(EventFile::create(dir.path(), 1, now).unwrap().path);
        }
        assert!(names.is_sorted() && names[0] < names[1] && names[1] < names[2], "{names:?}");
    }

    proptest! {
        #[test]
        fn varints_read_back(value: u64) {
            let mut bytes = vec![];
            varint(&mut bytes, value);
            let back = bytes.iter().rev().fold(0u64, |v, b| v << 7 | u64::from(b & 0x7f));
            prop_assert_eq!(back, value);
            prop_assert!(bytes.len() <= 10);
            prop_assert!(bytes[..bytes.len() - 1].iter().all(|b| b & 0x80 != 0) && bytes[bytes.len() - 1] < 0x80);
        }
    }
}
