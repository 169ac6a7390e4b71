//! What is written is what is read, and damage of every kind is told apart and told plainly.

use super::*;
use crate::document::Lang;
use crate::manifest::{Counts, FORMAT_VERSION, MANIFEST_FILE, Manifest, Source, Split, TOKENIZER_FILE};
use crate::tokenizer::{Tokenizer, TrainOptions};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn tokenizer() -> Tokenizer {
    Tokenizer::train(["悟道 WuDao".repeat(3)], &TrainOptions::new(280)).unwrap()
}

/// Documents of every shape: empty, short, long, all languages.
fn documents() -> Vec<MemoryDocument> {
    let document = |number: u32| MemoryDocument {
        tokens: (0..number * number % 97).map(|at| (at * 31 + number) % 280).collect(),
        bytes: u64::from(number * number % 97) * 3,
        lang: Lang::ALL[number as usize % 3],
        source: (number % 2) as u16,
    };
    (0..50).map(document).collect()
}

/// A data set of [`documents`] in `dir`, shards of 200 tokens; every fifth document held out.
fn prepare(dir: &Path) -> Manifest {
    let tokenizer = tokenizer();
    tokenizer.save(dir).unwrap();
    let stamp = tokenizer.stamp().unwrap();
    let mut writers = Split::ALL.map(|split| ShardWriter::new(dir, split, &stamp, 200, vec![]).unwrap());
    let mut languages = [BTreeMap::<Lang, Counts>::new(), BTreeMap::new()];
    for (number, document) in documents().iter().enumerate() {
        let MemoryDocument { tokens, bytes, lang, source } = document;
        writers[usize::from(number % 5 == 0)].push(tokens, *bytes, *lang, *source).unwrap();
        *languages[usize::from(*source)].entry(*lang).or_default() +=
            Counts { documents: 1, bytes: *bytes, tokens: tokens.len() as u64 };
    }
    let shards = writers.into_iter().flat_map(|writer| writer.finish().unwrap()).collect();
    let mut names = ["书", "web"].into_iter();
    let sources = languages.map(|languages| Source {
        name: names.next().unwrap().to_owned(),
        files: vec!["数据/".to_owned()],
        weight: 1.0,
        languages,
    });
    let manifest = Manifest {
        format: FORMAT_VERSION,
        created_by: "wudao test".to_owned(),
        tokenizer: stamp,
        sources: sources.into(),
        rules: serde_json::json!({"min_chars": 1}),
        report: serde_json::Value::Null,
        shards,
    };
    manifest.write(dir).unwrap();
    manifest
}

fn data_set() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = prepare(dir.path());
    (dir, manifest)
}

#[test]
fn documents_come_back_in_order() {
    let (dir, manifest) = data_set();
    assert!(manifest.shards(Split::Train).count() > 3, "the test wants several shards");
    let mut expected: [Vec<MemoryDocument>; 2] = Default::default();
    for (number, document) in documents().into_iter().enumerate() {
        expected[usize::from(number % 5 == 0)].push(document);
    }
    for (split, expected) in Split::ALL.into_iter().zip(expected) {
        let set = ShardSet::open(dir.path(), split).unwrap();
        set.verify(&mut |_| ()).unwrap();
        set.check_tokenizer(&tokenizer(), "it").unwrap();
        assert_eq!(set.documents(), expected.len() as u64);
        assert_eq!(set.counts().tokens, expected.iter().map(|document| document.tokens.len() as u64).sum::<u64>());
        for (index, document) in expected.iter().enumerate() {
            let found = set.doc(index as u64);
            assert_eq!(found.tokens.to_vec(), document.tokens);
            assert_eq!(found.tokens.iter().collect::<Vec<_>>(), document.tokens);
            assert_eq!(found.tokens.get(3), document.tokens.get(3).copied());
            assert_eq!(
                found.tokens.slice(2..5).to_vec(),
                document.tokens.get(2..5).unwrap_or(&document.tokens[document.tokens.len().min(2)..])
            );
            assert_eq!((found.bytes, found.lang, found.source), (document.bytes, document.lang, document.source));
        }
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

#[test]
fn same_documents_give_the_same_bytes_also_after_an_interruption() {
    let (dir, manifest) = data_set();
    let (other, again) = data_set();
    assert_eq!(manifest.to_bytes(), again.to_bytes());
    // The run was stopped when two shards were complete; the next goes on with the documents after them.
    let stamp = &manifest.tokenizer;
    let done: Vec<_> = manifest.shards(Split::Train).take(2).cloned().collect();
    let set = ShardSet::open(dir.path(), Split::Train).unwrap();
    let mut writer = ShardWriter::new(other.path(), Split::Train, stamp, 200, done.clone()).unwrap();
    for index in done.iter().map(|shard| shard.documents).sum::<u64>()..set.documents() {
        let document = set.doc(index);
        writer.push(&document.tokens.to_vec(), document.bytes, document.lang, document.source).unwrap();
    }
    let resumed = writer.finish().unwrap();
    assert_eq!(resumed, manifest.shards(Split::Train).cloned().collect::<Vec<_>>());
}

#[test]
fn the_fingerprint_is_that_of_the_contents() {
    let (_dir, manifest) = data_set();
    let mut other = manifest.clone();
    (other.created_by, other.sources[0].name) = ("somebody".into(), "elsewhere".into());
    assert_eq!(other.fingerprint(), manifest.fingerprint());
    other.shards[1].sha256 = "ab".repeat(32);
    assert_ne!(other.fingerprint(), manifest.fingerprint());
}

#[test]
fn ids_are_wide_when_the_vocabulary_is() {
    for vocab_size in [65_536u32, 65_537, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let stamp = crate::manifest::TokenizerStamp { sha256: "ab".repeat(32), vocab_size, end_of_text: 0 };
        let mut writer = ShardWriter::new(dir.path(), Split::Train, &stamp, 1000, vec![]).unwrap();
        let tokens = [0, 1, 255, 256, 65_535, vocab_size - 1];
        writer.push(&tokens, 9, Lang::Zh, 7).unwrap();
        assert!(matches!(writer.push(&[vocab_size], 1, Lang::En, 0), Err(ShardError::Unstorable { .. })));
        let [info] = writer.finish().unwrap().try_into().unwrap();
        let bytes = fs::read(dir.path().join(&info.file)).unwrap();
        assert_eq!(info.size, bytes.len() as u64);
        let shard = Shard::parse(bytes, Path::new("x")).unwrap();
        assert_eq!(shard.doc(0).tokens.to_vec(), tokens);
        assert_eq!((shard.documents(), shard.doc(0).source), (1, 7));
        shard.check_ids().unwrap();
    }
}

#[test]
fn unfinished_writer_leaves_no_open_shard() {
    let dir = tempfile::tempdir().unwrap();
    let stamp = tokenizer().stamp().unwrap();
    let mut writer = ShardWriter::new(dir.path(), Split::Train, &stamp, 4, vec![]).unwrap();
    for _ in 0..3 {
        writer.push(&[1, 2, 3], 3, Lang::En, 0).unwrap();
    }
    assert_eq!(writer.done().len(), 1);
    drop(writer);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["train-00000.bin"]);
}

/// Opens and verifies after `damage`, which gets the folder and the path of the second training shard.
fn damaged(damage: impl FnOnce(&Path, &PathBuf)) -> ShardError {
    let (dir, _) = data_set();
    damage(dir.path(), &dir.path().join("train-00001.bin"));
    let opened = ShardSet::open(dir.path(), Split::Train);
    opened.and_then(|set| set.verify(&mut |_| ())).expect_err("the damage was not noticed")
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Changes a shard and makes its recorded size and sum right again, so that only its contents can give it away.
fn edit_consistently(dir: &Path, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    edit(path, change);
    let bytes = fs::read(path).unwrap();
    let mut manifest = Manifest::read(dir).unwrap();
    let info = manifest.shards.iter_mut().find(|info| path.ends_with(&info.file)).unwrap();
    info.size = bytes.len() as u64;
    info.sha256 = crate::file::sha256_hex(&bytes);
    manifest.write(dir).unwrap();
}

#[test]
fn each_kind_of_damage_has_its_own_error() {
    let error = damaged(|_, path| edit(path, |bytes| bytes[70] ^= 1));
    let ShardError::Checksum { path, recorded, found } = &error else { panic!("{error}") };
    assert!(path.ends_with("train-00001.bin") && recorded != found);
    assert!(error.to_string().contains(recorded) && error.to_string().contains(found), "{error}");

    let error = damaged(|_, path| edit(path, |bytes| bytes.truncate(bytes.len() - 5)));
    assert!(matches!(&error, ShardError::Size { .. }), "{error}");
    let error = damaged(|dir, path| edit_consistently(dir, path, |bytes| bytes.truncate(bytes.len() - 5)));
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("cut short")), "{error}");
    let error = damaged(|dir, path| edit_consistently(dir, path, |bytes| bytes.truncate(50)));
    assert!(matches!(&error, ShardError::Size { .. }), "{error}");
    let error = damaged(|dir, path| edit_consistently(dir, path, |bytes| bytes.clear()));
    assert!(matches!(&error, ShardError::NotAShard { .. }), "{error}");

    let error = damaged(|_, path| edit(path, |bytes| bytes[0] = b'X'));
    assert!(matches!(&error, ShardError::NotAShard { .. }), "{error}");
    let error = damaged(|_, path| edit(path, |bytes| bytes[8] = 2));
    assert!(matches!(&error, ShardError::Version { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer wudao"), "{error}");
    let error = damaged(|_, path| edit(path, |bytes| bytes[40] ^= 1));
    assert!(matches!(&error, ShardError::TokenizerMismatch { .. }), "{error}");

    let from_end = |bytes: &[u8], at: usize| bytes.len() - at;
    let footer = format::FOOTER_LEN;
    let error = damaged(|_, path| {
        edit(path, |bytes| {
            let at = from_end(bytes, footer - 24);
            bytes[at] ^= 8;
        })
    });
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("do not fit")), "{error}");
    let error = damaged(|_, path| {
        edit(path, |bytes| {
            let at = from_end(bytes, footer + 24 - 7);
            bytes[at] = 1;
        })
    });
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("index")), "{error}");
    let error = damaged(|dir, path| edit_consistently(dir, path, |bytes| bytes[65] = 0xff));
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("vocabulary")), "{error}");
    let error = damaged(|dir, path| {
        edit_consistently(dir, path, |bytes| {
            let at = from_end(bytes, footer + 24 - 16);
            bytes[at] = 2;
        })
    });
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("source")), "{error}");

    let error = damaged(|_, path| fs::remove_file(path).unwrap());
    assert!(matches!(&error, ShardError::ShardMissing { .. }), "{error}");
    let error = damaged(|dir, _| fs::remove_file(dir.join(MANIFEST_FILE)).unwrap());
    assert!(matches!(&error, ShardError::ManifestMissing { .. }), "{error}");
    let error = damaged(|dir, _| edit(&dir.join(MANIFEST_FILE), |bytes| bytes.truncate(100)));
    assert!(matches!(&error, ShardError::ManifestGarbled { .. }), "{error}");
    let error = damaged(|dir, _| fs::remove_file(dir.join(TOKENIZER_FILE)).unwrap());
    assert!(matches!(&error, ShardError::TokenizerMissing { .. }), "{error}");
    let error = damaged(|dir, _| edit(&dir.join(TOKENIZER_FILE), |bytes| bytes.push(b'\n')));
    assert!(matches!(&error, ShardError::TokenizerMismatch { .. }), "{error}");

    // The manifest is of another preparation.
    let error = damaged(|dir, _| {
        let mut manifest = Manifest::read(dir).unwrap();
        manifest.shards[1].tokens += 1;
        manifest.write(dir).unwrap();
    });
    assert!(matches!(&error, ShardError::Corrupt { reason, .. } if reason.contains("manifest")), "{error}");

    let (dir, _) = data_set();
    let set = ShardSet::open(dir.path(), Split::Train).unwrap();
    let other = Tokenizer::train(["另一个"], &TrainOptions::new(280)).unwrap();
    let error = set.check_tokenizer(&other, "other/tokenizer.json").unwrap_err();
    assert!(error.to_string().contains("other/tokenizer.json"), "{error}");
}

#[test]
fn manifest_is_strict_about_what_it_says() {
    let (_dir, manifest) = data_set();
    let bytes = manifest.to_bytes();
    let path = Path::new("set/manifest.json");
    assert_eq!(Manifest::parse(&bytes, path).unwrap(), manifest);
    type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
    let parse_with = |change: Change<'_>| {
        let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut json);
        Manifest::parse(&serde_json::to_vec(&json).unwrap(), path).unwrap_err().to_string()
    };
    let cases: [(Change<'_>, &str); 10] = [
        (&|json| json["format"] = 2.into(), "version 2"),
        (&|json| json["colour"] = 2.into(), "colour"),
        (&|json| json["shards"][0]["file"] = "../../etc/passwd".into(), "plain file name"),
        (&|json| json["shards"][0]["file"] = "/etc/passwd".into(), "plain file name"),
        (&|json| json["shards"][0]["file"] = "..".into(), "plain file name"),
        (&|json| json["shards"][1]["file"] = json["shards"][0]["file"].clone(), "twice"),
        (&|json| json["shards"][0]["sha256"] = "00".into(), "sha256"),
        (&|json| json["shards"][0]["tokens"] = u64::MAX.into(), "overflow"),
        (&|json| json["tokenizer"]["end_of_text"] = 280.into(), "end-of-text"),
        (&|json| json["sources"][0]["weight"] = (-1.0).into(), "weight"),
    ];
    for (change, word) in cases {
        let message = parse_with(change);
        assert!(message.contains(word) && message.contains("set/manifest.json"), "{message}");
    }
}

#[test]
fn summary_counts_what_is_there() {
    let (dir, manifest) = data_set();
    let summary = Summary::read(dir.path(), true).unwrap();
    let all = documents();
    let train = &summary.splits[&Split::Train];
    assert_eq!(train.verified, Some(true));
    assert_eq!(train.counts, manifest.counts(Split::Train));
    let sum = |f: &dyn Fn(&Counts) -> u64| -> u64 {
        summary.splits.values().flat_map(|split| split.languages.values()).map(f).sum()
    };
    assert_eq!(sum(&|counts| counts.documents), all.len() as u64);
    assert_eq!(sum(&|counts| counts.bytes), all.iter().map(|document| document.bytes).sum::<u64>());
    let longest = summary.splits.values().map(|split| split.longest_document).max();
    assert_eq!(longest, all.iter().map(|document| document.tokens.len() as u64).max());
    assert!(serde_json::to_string(&summary).unwrap().contains("书"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    /// A changed shard is refused or read without panic; never is more read than there is.
    #[test]
    fn changed_shards_do_no_harm(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        use std::sync::LazyLock;
        static SHARD: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let (dir, _) = data_set();
            fs::read(dir.path().join("train-00001.bin")).unwrap()
        });
        let mut bytes = SHARD.clone();
        for (at, value, near_the_ends) in edits {
            // The header and what follows the ids are where damage can do most.
            let at = if near_the_ends { bytes.len() - 1 - at.index(bytes.len() / 2) } else { at.index(bytes.len()) };
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(shard) = Shard::parse(&bytes, Path::new("shard")) {
            let _ = shard.check_ids();
            let tokens: usize = (0..shard.documents()).map(|index| shard.doc(index).tokens.to_vec().len()).sum();
            prop_assert_eq!(tokens, shard.tokens());
        }
    }

    #[test]
    fn changed_manifests_do_no_harm(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        noise in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        use std::sync::LazyLock;
        static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| data_set().1.to_bytes());
        let mut bytes = BYTES.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Manifest::parse(&bytes, Path::new("manifest.json"));
        let _ = Manifest::parse(&noise, Path::new("manifest.json"));
    }
}
