//! Foreign bytes get an answer, never a panic.

use super::latent::latent;
use super::taken::{by_hand, opened};
use super::{loaded, text, wide, written};
use crate::common::families::every_family;
use proptest::prelude::*;
use std::sync::LazyLock;
use wudao_model::gguf::{Field, TensorType};
use wudao_model::weights::{self, Source};
use wudao_model::{Config, Family};

/// Small good files.
static GOOD: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let (_, narrow) = every_family().swap_remove(1);
    [narrow, latent("deepseek_v3")].map(good)
});

fn good(config: Config) -> Vec<u8> {
    let fields = [("test.list".to_owned(), Field::Texts(vec!["a".into(), "b".into()]))];
    let (_dir, path) = written(&config, TensorType::F32, &fields).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn every_shorter_file_is_refused() {
    for good in &*GOOD {
        assert_eq!(opened(good), Ok(()));
        let header = good.len().min(3000);
        for n in (0..header).chain([good.len() - 1]) {
            let error = opened(&good[..n]).unwrap_err();
            assert!(error.contains("x.gguf"), "{n}: {error}");
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let list = |kind: u32, len: u64| [kind.to_le_bytes().as_slice(), &len.to_le_bytes()].concat();
    let nested: Vec<u8> = (0..6).flat_map(|_| list(9, 1)).collect();
    let alignment = 3u32.to_le_bytes();
    for (bytes, says) in [
        (b"PK\x03\x04 and so on".to_vec(), "not a GGUF file"),
        (by_hand(1, &[], &[], 0), "version 1"),
        (by_hand(9, &[], &[], 0), "version 9"),
        (by_hand(3u32.swap_bytes(), &[], &[], 0), "big-endian"),
        (by_hand(3, &[("k", 77, &[])], &[], 64), "type of values 77"),
        (by_hand(3, &[("k", 7, &[2])], &[], 64), "neither true nor false"),
        (by_hand(3, &[("k", 0, &[2]), ("k", 0, &[2])], &[], 64), "twice"),
        (by_hand(3, &[("k", 9, &list(4, u64::MAX))], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("k", 9, &list(4, 1 << 40))], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("k", 9, &nested)], &[], 64), "nested deeper"),
        (by_hand(3, &[("k", 8, &u64::MAX.to_le_bytes())], &[], 64), "cut short or damaged"),
        (by_hand(3, &[("general.alignment", 4, &alignment)], &[], 0), "power of two"),
        (by_hand(3, &[], &[("t", &[], 0, 0)], 64), "0 dimensions"),
        (by_hand(3, &[], &[("t", &[1, 1, 1, 1, 1], 0, 0)], 64), "5 dimensions"),
        (by_hand(3, &[], &[("t", &[4], 0, 0), ("t", &[4], 0, 32)], 64), "twice"),
        (by_hand(3, &[], &[("t", &[4], 99, 0)], 64), "unknown type 99"),
        (by_hand(3, &[], &[("t", &[0], 0, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[1 << 40, 1 << 40], 0, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[1 << 62], 0, 0)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[33], 8, 0)], 64), "cannot be those"),
        (by_hand(3, &[], &[("t", &[4], 0, 16)], 64), "multiple of the alignment"),
        (by_hand(3, &[], &[("t", &[4], 0, u64::MAX - 31)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[17], 0, 0)], 64), "cut short or damaged"),
        (by_hand(3, &[], &[("t", &[16], 0, 0), ("u", &[4], 0, 32)], 64), "also those of"),
        (by_hand(3, &[], &[("t", &[16], 0, 0)], 64), "general.architecture: missing"),
        (by_hand(3, &[("general.architecture", 8, b"\x04\0\0\0\0\0\0\0bert")], &[], 0), "supported are llama, qwen2"),
    ] {
        let error = opened(&bytes).unwrap_err();
        assert!(error.contains(says), "{says}: {error}");
    }
    // More keys and tensors than bytes: refused before anything is allocated for them.
    for at in [8, 16] {
        let mut bytes = by_hand(3, &[], &[], 64);
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(opened(&bytes).unwrap_err().contains("do not fit"));
    }
}

#[test]
fn what_is_not_computed_is_named() {
    let flag = |key: &str, f: Field| (format!("llama.{key}"), f);
    for (field, says) in [
        (flag("attention.sliding_window", Field::Whole(4)), "sliding_window: 4"),
        (flag("attention.causal", Field::Flag(false)), "causal: false"),
        (flag("attention.clamp_kqv", Field::Number(8.0)), "clamp_kqv: 8"),
        (flag("expert_weights_scale", Field::Number(2.0)), "expert_weights_scale: 2"),
        (flag("rope.scaling.type", Field::Text("longrope".into())), "longrope"),
        (flag("rope.scaling.alpha", Field::Number(1.0)), "alpha: 1"),
        (flag("rope.scaling.factor", Field::Text("x".into())), "must be a number"),
    ] {
        let (_, path) = &written(&wide(), TensorType::F32, &[field]).unwrap();
        let error = weights::read_config(path).map_err(text).unwrap_err();
        assert!(error.contains(says) && error.contains("model.gguf"), "{says}: {error}");
    }
    // A tensor that a llama has not, and one that is missing.
    let (_dir, path) = written(&wide(), TensorType::F32, &[]).unwrap();
    let good = std::fs::read(&path).unwrap();
    let config = weights::read_config(&path).unwrap();
    let at = good.windows(21).position(|w| w == b"blk.1.ffn_down.weight").unwrap();
    let mut bad = good.clone();
    bad[at + 4] = b'9';
    std::fs::write(&path, &bad).unwrap();
    let error = loaded(&path, &config).unwrap_err();
    assert!(error.contains("blk.9.ffn_down.weight") && error.contains("no llama has it"), "{error}");
    let qwen = Config { family: Family::Qwen3, ..config };
    assert!(Source::open_as(&path, &qwen).map(drop).map_err(text).unwrap_err().contains("give the model that family"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A few bytes changed anywhere in the header: an error or a model, never a panic.
    #[test]
    fn changed_bytes_get_an_answer(
        which in 0usize..2,
        changes in prop::collection::vec((0usize..5000, any::<u8>()), 1..4),
    ) {
        let mut bytes = GOOD[which].clone();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = opened(&bytes);
    }

    #[test]
    fn random_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(opened(&bytes).is_err());
        prop_assert!(opened(&[b"GGUF\x03\0\0\0", &bytes[..]].concat()).is_err());
    }
}
