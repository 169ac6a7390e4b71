//! Batches hold every prediction once, in the promised shape, from wherever they are resumed and on any number of ranks.

use super::*;
use crate::cursor::Cursor;
use crate::shard::{MemoryDocument, MemoryDocuments};
use proptest::prelude::*;
use std::collections::BTreeMap;

const END: u32 = 0;
const VOCAB: u32 = 1 << 20;

/// Documents of the given lengths; ids are unique over all of them, so that a lost or doubled one shows.
fn documents(lens: &[usize]) -> MemoryDocuments {
    let mut next = 1;
    let documents = lens.iter().enumerate().map(|(number, &len)| {
        next += len as u32;
        MemoryDocument {
            tokens: (next - len as u32..next).collect(),
            bytes: (len * 7 + number) as u64,
            lang: Lang::ALL[number % 3],
            source: number as u16,
        }
    });
    MemoryDocuments(documents.collect())
}

fn layout(seq_len: usize, rows: usize) -> Layout {
    Layout { seq_len, rows, end_of_text: END, vocab_size: VOCAB, rank: 0, size: 1 }
}

/// Checks a batch by itself and returns its segments as (document, offset, inputs, targets).
fn check(batch: &Batch, documents: &MemoryDocuments) -> Vec<(u64, u64, Vec<u32>, Vec<u32>)> {
    let len = batch.rows * batch.seq_len;
    assert_eq!([batch.inputs.len(), batch.targets.len(), batch.positions.len()], [len; 3]);
    assert_eq!((batch.cu_seqlens[0], *batch.cu_seqlens.last().unwrap()), (0, len as u32));
    for span in batch.cu_seqlens.windows(2) {
        let (start, end) = (span[0] as usize, span[1] as usize);
        assert!(start < end);
        assert_eq!(start / batch.seq_len, (end - 1) / batch.seq_len, "a segment crosses the edge of a row");
        assert!(batch.positions[start..end].iter().copied().eq(0..(end - start) as u32));
        let padding = batch.targets[start..end].iter().all(|&target| target == IGNORE);
        assert_eq!(padding, !batch.segments.iter().any(|segment| segment.range == (start..end)));
        assert!(padding || batch.targets[start..end].iter().all(|&target| target != IGNORE));
    }
    assert!(batch.segments.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    let segments = batch.segments.iter().map(|segment| {
        let document = &documents.0[segment.doc as usize];
        assert_eq!((segment.lang, segment.source), (document.lang, document.source));
        // What the segment must hold, straight from the definition.
        let read: Vec<u32> = [&[END], document.tokens.as_slice()].concat();
        let predicted: Vec<u32> = [document.tokens.as_slice(), &[END]].concat();
        let here = segment.offset as usize..segment.offset as usize + segment.range.len();
        assert_eq!(batch.inputs[segment.range.clone()], read[here.clone()]);
        assert_eq!(batch.targets[segment.range.clone()], predicted[here.clone()]);
        (segment.doc, segment.offset, read[here.clone()].to_vec(), predicted[here].to_vec())
    });
    segments.collect()
}

fn lens() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![3 => 0usize..6, 2 => 0usize..40], 1..12)
}

proptest! {
    #[test]
    fn training_loses_nothing(lens in lens(), seq_len in 1usize..20, rows in 1usize..5, seed: u64) {
        let documents = documents(&lens);
        let mut stream = TrainStream::new(&documents, layout(seq_len, rows), seed).unwrap();
        // Until at least three epochs have been seen, put the targets together again.
        let mut predicted = Vec::new();
        let mut bytes = BTreeMap::<u64, u64>::new();
        while stream.cursor().epoch < 3 {
            let batch = stream.next_batch().unwrap();
            prop_assert_eq!((batch.rows, batch.predictions()), (rows, rows * seq_len));
            for (doc, _, _, targets) in check(&batch, &documents) {
                predicted.extend(targets.into_iter().map(|target| (doc, target)));
            }
            for segment in &batch.segments {
                *bytes.entry(segment.doc).or_default() += segment.bytes;
            }
        }
        let per_epoch = predictions(&documents) as usize;
        for (epoch, seen) in predicted.chunks_exact(per_epoch).take(3).enumerate() {
            let mut seen = seen.to_vec();
            // Each document is whole and in one piece: its targets, then the end of text.
            let order: Vec<u64> = seen.chunk_by(|a, b| a.0 == b.0 && a.1 != END).map(|run| run[0].0).collect();
            prop_assert_eq!(order.len(), lens.len(), "epoch {}", epoch);
            seen.sort();
            let mut expected: Vec<(u64, u32)> = (0..).zip(&documents.0)
                .flat_map(|(doc, document)| document.tokens.iter().chain([&END]).map(move |&id| (doc, id)))
                .collect();
            expected.sort();
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn resumed_training_gives_the_same_batches(lens in lens(), seq_len in 1usize..20, rows in 1usize..5, seed: u64, skip in 0usize..20) {
        let documents = documents(&lens);
        let mut stream = TrainStream::new(&documents, layout(seq_len, rows), seed).unwrap();
        for _ in 0..skip {
            stream.next_batch().unwrap();
        }
        let saved = serde_json::to_string(&stream.cursor()).unwrap();
        let mut resumed = TrainStream::new(&documents, layout(seq_len, rows), seed).unwrap();
        resumed.seek(serde_json::from_str(&saved).unwrap()).unwrap();
        for _ in 0..10 {
            prop_assert_eq!(stream.next_batch().unwrap(), resumed.next_batch().unwrap());
            prop_assert_eq!(stream.cursor(), resumed.cursor());
        }
    }

    #[test]
    fn ranks_share_the_global_batch(lens in lens(), seq_len in 1usize..20, rows in 1usize..4, size in 1usize..5, seed: u64) {
        let documents = documents(&lens);
        let mut whole = TrainStream::new(&documents, layout(seq_len, rows * size), seed).unwrap();
        let mut whole_eval = EvalStream::new(&documents, layout(seq_len, rows * size)).unwrap();
        let ranked = |rank| layout(seq_len, rows).ranked(rank, size);
        let mut ranks: Vec<_> = (0..size).map(|rank| TrainStream::new(&documents, ranked(rank), seed).unwrap()).collect();
        let mut evals: Vec<_> = (0..size).map(|rank| EvalStream::new(&documents, ranked(rank)).unwrap()).collect();
        // Row by row: inputs, targets and positions, and the segments with ranges from the row's start.
        let rows_of = |batch: &Batch| -> Vec<_> {
            (0..batch.rows).map(|row| {
                let range = row * seq_len..(row + 1) * seq_len;
                let segments: Vec<_> = batch.segments.iter().filter(|segment| range.contains(&segment.range.start))
                    .map(|segment| (segment.doc, segment.offset, segment.bytes, segment.range.start - range.start)).collect();
                (batch.inputs[range.clone()].to_vec(), batch.targets[range.clone()].to_vec(), batch.positions[range].to_vec(), segments)
            }).collect()
        };
        for _ in 0..5 {
            let expected = rows_of(&whole.next_batch().unwrap());
            let parts: Vec<_> = ranks.iter_mut().map(|stream| rows_of(&stream.next_batch().unwrap())).collect();
            for (row, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&parts[row % size][row / size], expected);
            }
            prop_assert!(ranks.iter().all(|stream| stream.cursor() == whole.cursor()));
        }
        while let Some(batch) = whole_eval.next_batch().unwrap() {
            let parts: Vec<_> = evals.iter_mut().map(|stream| stream.next_batch().unwrap().unwrap()).collect();
            parts.iter().for_each(|part| drop(check(part, &documents)));
            prop_assert!(parts.iter().all(|part| part.rows == batch.rows.div_ceil(size)));
            for (row, expected) in rows_of(&batch).iter().enumerate() {
                prop_assert_eq!(&rows_of(&parts[row % size])[row / size], expected);
            }
        }
        for stream in &mut evals {
            prop_assert_eq!(stream.next_batch().unwrap(), None);
        }
    }

    #[test]
    fn evaluation_takes_each_prediction_once_in_windows(lens in lens(), seq_len in 1usize..20, rows in 1usize..5) {
        let documents = documents(&lens);
        let windows = |rows| -> Vec<_> {
            EvalStream::new(&documents, layout(seq_len, rows)).unwrap().flat_map(|batch| check(&batch.unwrap(), &documents)).collect()
        };
        let found = windows(rows);
        let mut expected = Vec::new();
        for (doc, document) in (0..).zip(&documents.0) {
            for offset in (0..=document.tokens.len()).step_by(seq_len) {
                expected.push((doc, offset as u64, seq_len.min(document.tokens.len() + 1 - offset)));
            }
        }
        prop_assert_eq!(found.iter().map(|(doc, offset, _, targets)| (*doc, *offset, targets.len())).collect::<Vec<_>>(), expected);
        prop_assert_eq!(found, windows(rows + 3), "windows must not depend on the number of rows");
        // Bytes of the segments add up to those of each document.
        let mut bytes = vec![0; lens.len()];
        for batch in EvalStream::new(&documents, layout(seq_len, rows)).unwrap() {
            batch.unwrap().segments.iter().for_each(|segment| bytes[segment.doc as usize] += segment.bytes);
        }
        prop_assert_eq!(bytes, documents.0.iter().map(|document| document.bytes).collect::<Vec<_>>());
    }

    #[test]
    fn any_cursor_is_refused_or_usable(lens in lens(), seed: u64, cursor in any::<(bool, bool, u64, u64, u64)>()) {
        let documents = documents(&lens);
        let mut stream = TrainStream::new(&documents, layout(5, 2), seed).unwrap();
        let (same_seed, same_documents, epoch, position, offset) = cursor;
        let cursor = Cursor {
            seed: if same_seed { seed } else { seed ^ 1 },
            documents: lens.len() as u64 + u64::from(!same_documents),
            epoch: epoch >> 1,
            position: position % 16,
            offset: offset % 16,
        };
        if stream.seek(cursor).is_ok() {
            prop_assert!(same_seed && same_documents);
            prop_assert_eq!(stream.cursor(), cursor);
            check(&stream.next_batch().unwrap(), &documents);
        }
    }
}

#[test]
fn epochs_differ_in_order_and_seeds_too() {
    let documents = documents(&[3; 100]);
    let order = |seed, epoch| -> Vec<u64> {
        let mut stream = TrainStream::new(&documents, layout(4, 1), seed).unwrap();
        (0..100 * epoch).for_each(|_| drop(stream.next_batch().unwrap()));
        (0..100).map(|_| stream.next_batch().unwrap().segments[0].doc).collect()
    };
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    assert_eq!(order(1, 1), order(1, 1));
}

#[test]
fn a_document_is_read_and_predicted_as_defined() {
    let documents =
        MemoryDocuments(vec![MemoryDocument { tokens: vec![11, 12, 13], bytes: 10, lang: Lang::Zh, source: 4 }]);
    let mut stream = EvalStream::new(&documents, layout(3, 4)).unwrap();
    let batch = stream.next_batch().unwrap().unwrap();
    assert_eq!(batch.rows, 2, "the last batch has only the rows it needs");
    assert_eq!(batch.inputs, [END, 11, 12, 13, END, END]);
    assert_eq!(batch.targets, [11, 12, 13, END, IGNORE, IGNORE]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 0, 1]);
    assert_eq!(batch.cu_seqlens, [0, 3, 4, 6]);
    assert_eq!(batch.segments.iter().map(|segment| segment.bytes).collect::<Vec<_>>(), [7, 3]);
    assert_eq!(stream.next_batch().unwrap(), None);
    assert_eq!(EvalStream::new(&MemoryDocuments::default(), layout(3, 4)).unwrap().next_batch().unwrap(), None);
}

#[test]
fn nonsense_is_refused() {
    let documents = documents(&[5]);
    assert_eq!(TrainStream::new(&MemoryDocuments::default(), layout(4, 1), 0).unwrap_err(), BatchError::Empty);
    for bad in [
        layout(0, 1),
        layout(1, 0),
        layout(1 << 20, 1 << 20),
        layout(4, 1).ranked(2, 2),
        Layout { end_of_text: VOCAB, ..layout(4, 1) },
    ] {
        assert!(matches!(TrainStream::new(&documents, bad, 0), Err(BatchError::Settings { .. })), "{bad:?}");
        assert!(matches!(EvalStream::new(&documents, bad), Err(BatchError::Settings { .. })), "{bad:?}");
    }
    let mut stream = TrainStream::new(&documents, Layout { vocab_size: 5, ..layout(4, 1) }, 0).unwrap();
    let before = stream.cursor();
    let mut errors = std::iter::from_fn(|| stream.next_batch().err());
    assert_eq!(errors.next(), None);
    assert_eq!(stream.next_batch(), Err(BatchError::Token { doc: 0, id: 5, vocab_size: 5 }));
    assert_ne!(stream.cursor(), before);
}
