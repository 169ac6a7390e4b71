use super::*;
use crate::profile::Profile;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn keys(text: &str) -> Vec<u64> {
    let mut keys = Vec::new();
    Signer::new(&DedupOptions::default()).sign(&Profile::new(text).units, exact_hash(text), &mut keys);
    keys
}

fn share_a_band(a: &str, b: &str) -> bool {
    let (a, b) = (keys(a), keys(b));
    assert_eq!((a.len(), b.len()), (16, 16));
    a.iter().zip(&b).any(|(a, b)| a == b)
}

const POEM: &str = "春江潮水连海平，海上明月共潮生。滟滟随波千万里，何处春江无月明！江流宛转绕芳甸，月照花林皆似霰；\
    空里流霜不觉飞，汀上白沙看不见。江天一色无纤尘，皎皎空中孤月轮。江畔何人初见月？江月何年初照人？\
    人生代代无穷已，江月年年望相似。不知江月待何人，但见长江送流水。白云一片去悠悠，青枫浦上不胜愁。";
const ENGLISH: &str = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, \
    and nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the \
    world. It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim \
    about the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before \
    coffin warehouses, and bringing up the rear of every funeral I meet.";

#[test]
fn small_changes_are_near_duplicates_in_both_languages() {
    for text in [POEM, ENGLISH] {
        assert!(share_a_band(text, &text.to_uppercase()), "case and punctuation do not count");
        assert!(share_a_band(text, &text.replace(['，', ','], " ")));
        assert!(share_a_band(text, &format!("{text} 完")));
    }
    assert!(share_a_band(POEM, &POEM.replace("青枫", "红枫")));
    assert!(share_a_band(ENGLISH, &ENGLISH.replace("grim", "bleak")));
}

#[test]
fn different_texts_are_not() {
    let texts = [
        POEM,
        ENGLISH,
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
        "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
        "第一条　为了保护民事主体的合法权益，调整民事关系，根据宪法，制定本法。",
        "第二条　民法调整平等主体的自然人、法人和非法人组织之间的人身关系和财产关系。",
        "short",
        "其他",
        "",
        "!",
    ];
    for (i, a) in texts.iter().enumerate() {
        for b in &texts[..i] {
            assert!(!share_a_band(a, b), "{a} / {b}");
        }
    }
}

/// A document of `n` units of which the first `shared` are those of every document of the same seed.
fn synthetic(n: u64, from: u64) -> Vec<u64> {
    (from..from + n).map(mix).collect()
}

#[test]
fn the_signature_estimates_the_jaccard_similarity() {
    let options = DedupOptions { bands: 16, rows: 8, shingle: 1, ..DedupOptions::default() };
    let mut signer = Signer::new(&options);
    // Small sets leave most numbers empty and lean on densification.
    for (n, rounds) in [(60u64, 400u64), (3000, 100)] {
        for overlap in [0.3, 0.5, 0.8, 0.95] {
            let step = ((1.0 - overlap) * n as f64) as u64;
            let jaccard = (n - step) as f64 / (n + step) as f64;
            let mut equal = 0;
            for round in 0..rounds {
                let a = signer.numbers(&synthetic(n, round * 100_000));
                let b = signer.numbers(&synthetic(n, round * 100_000 + step));
                equal += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            }
            let estimate = equal as f64 / (rounds * 128) as f64;
            assert!((estimate - jaccard).abs() < 0.02, "{n} {overlap}: {estimate} for {jaccard}");
        }
    }
}

#[test]
fn the_chance_of_being_caught_follows_the_curve() {
    let options = DedupOptions { shingle: 1, ..DedupOptions::default() };
    let mut signer = Signer::new(&options);
    for jaccard in [0.5f64, 0.7, 0.8, 0.9] {
        let n = 2000u64;
        let step = (n as f64 * (1.0 - jaccard) / (1.0 + jaccard)) as u64;
        let rounds = 400u64;
        let mut caught = 0;
        for round in 0..rounds {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            signer.sign(&synthetic(n, round * 100_000), 0, &mut a);
            signer.sign(&synthetic(n, round * 100_000 + step), 0, &mut b);
            caught += u64::from(a.iter().zip(&b).any(|(a, b)| a == b));
        }
        let expected = 1.0 - (1.0 - jaccard.powi(8)).powi(16);
        let share = caught as f64 / rounds as f64;
        assert!((share - expected).abs() < 0.08, "{jaccard}: {share} for {expected}");
    }
}

#[test]
fn options_are_checked() {
    assert!(DedupOptions::default().check().is_ok());
    for (bands, rows, shingle) in [(0, 8, 5), (65, 8, 5), (16, 0, 5), (16, 8, 0)] {
        assert!(DedupOptions { bands, rows, shingle, ..DedupOptions::default() }.check().is_err());
    }
    let off = DedupOptions { near: false, bands: 0, ..DedupOptions::default() };
    assert!(off.check().is_ok());
    let mut keys = Vec::new();
    Signer::new(&off).sign(&[1, 2, 3], 7, &mut keys);
    assert!(keys.is_empty());
}

/// The rule, spelled out.
fn by_definition(documents: &[(u128, Vec<u64>)]) -> (HashSet<u64>, HashSet<u64>) {
    let (mut texts, mut bands) = (HashSet::new(), HashMap::new());
    let (mut exact, mut near) = (HashSet::new(), HashSet::new());
    for (number, (hash, keys)) in documents.iter().enumerate() {
        if !texts.insert(hash | 1) {
            exact.insert(number as u64);
        }
        for (band, key) in keys.iter().enumerate() {
            if bands.insert((band, *key), number).is_some() {
                near.insert(number as u64);
            }
        }
    }
    (exact, near)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn memory_and_disk_give_what_the_definition_says(
        documents in proptest::collection::vec((0u128..60, proptest::collection::vec(0u64..200, 4)), 0..120),
        memory in prop_oneof![Just(1000u64), Just(5000), Just(1 << 30)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        let mut seen = Seen::new(documents.len() as u64, 5, memory, &folder).unwrap();
        for (number, (hash, keys)) in documents.iter().enumerate() {
            // Spread the small hashes as real ones are.
            seen.add(number as u64, Some(u128::from(mix(*hash as u64)) << 64 | hash << 1), keys).unwrap();
        }
        let marks = seen.finish().unwrap();
        let documents: Vec<_> = documents.into_iter().map(|(h, k)| (h << 1, k)).collect();
        let (exact, near) = by_definition(&documents);
        for number in 0..documents.len() as u64 {
            prop_assert_eq!(marks.exact(number), exact.contains(&number));
            prop_assert_eq!(marks.near(number), near.contains(&number));
        }
        prop_assert_eq!(Marks::from_bytes(&marks.to_bytes(), documents.len() as u64), Some(marks));
        if folder.exists() {
            prop_assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        }
    }
}
