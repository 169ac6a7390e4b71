//! Random and damaged bytes through every reader: any outcome but a panic, and totals that agree with what came out.

use super::*;
use proptest::prelude::*;

/// A sink that keeps everything.
#[derive(Default)]
pub(super) struct Gather {
    pub documents: Vec<String>,
    pub problems: Vec<Problem>,
}

impl Sink for Gather {
    fn document(&mut self, text: String) -> Result<(), ReadError> {
        assert!(!text.trim().is_empty());
        self.documents.push(text);
        Ok(())
    }

    fn problem(&mut self, problem: Problem) -> Result<(), ReadError> {
        self.problems.push(problem);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Collected {
    pub documents: Vec<String>,
    pub problems: Vec<Problem>,
    pub totals: FileTotals,
}

/// Reads bytes in memory, called `memory` in messages.
pub(super) fn collect(
    bytes: Vec<u8>,
    compression: Compression,
    format: Format,
    options: &ReadOptions,
) -> Result<Collected, ReadError> {
    let mut gather = Gather::default();
    let mut context = Context::new("memory", options, &mut gather);
    let length = bytes.len() as u64;
    read_stream(Box::new(io::Cursor::new(bytes)), compression, format, &mut context)?;
    let totals = context.totals();
    assert!(totals.bytes <= length);
    assert_eq!(totals.documents as usize, gather.documents.len());
    assert_eq!(totals.text_bytes as usize, gather.documents.iter().map(String::len).sum::<usize>());
    Ok(Collected { documents: gather.documents, problems: gather.problems, totals })
}

const FORMATS: [Format; 4] = [Format::Text, Format::Json, Format::Jsonl, Format::Csv];
const COMPRESSIONS: [Compression; 4] = [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz];

fn everything(bytes: &[u8]) {
    let options = ReadOptions { max_document_bytes: 50, max_record_bytes: 200, ..ReadOptions::default() };
    for format in FORMATS {
        for compression in COMPRESSIONS {
            for split in [Split::None, Split::Line, Split::Paragraph] {
                let options = ReadOptions { split, ..options.clone() };
                collect(bytes.to_vec(), compression, format, &options).unwrap();
            }
        }
    }
}

/// Text that is nearly right, which gets further into the parsers than noise does.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("{\"text\":\"".to_string()),
        Just("\"}\n".to_string()),
        Just("[".to_string()),
        Just("]".to_string()),
        Just(",".to_string()),
        Just("\"".to_string()),
        Just("text\n".to_string()),
        Just("\\u4e0".to_string()),
        Just("\\ud83d".to_string()),
        "[a-z一-龥\n ]{0,20}",
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        everything(&bytes);
    }

    #[test]
    fn nearly_text(bytes in nearly()) {
        everything(&bytes);
    }

    #[test]
    fn damaged_compression(bytes in nearly(), which in 1usize..4, at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut stored = open::tests::compress(&bytes, COMPRESSIONS[which]);
        let at = at.index(stored.len());
        stored[at] ^= value;
        everything(&stored);
    }

    #[test]
    fn damaged_parquet(at in any::<prop::sample::Index>(), value in 1u8.., cut in any::<prop::sample::Index>()) {
        let texts: Vec<Option<&str>> = (0..40).map(|i| (i % 5 > 0).then_some("春眠不觉晓，处处闻啼鸟。")).collect();
        let mut bytes = parquet::tests::write(&texts, 15, ::parquet::basic::Compression::SNAPPY);
        let at = at.index(bytes.len());
        bytes[at] ^= value;
        let end = cut.index(2 * bytes.len());
        bytes.truncate(end.max(8));
        let options = ReadOptions::default();
        let mut gather = Gather::default();
        parquet::read(bytes::Bytes::from(bytes), &mut Context::new("memory", &options, &mut gather)).unwrap();
    }
}
