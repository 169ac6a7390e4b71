use super::*;
use crate::profile::mix;
use crate::shard::ShardSet;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;

const ZH: [&str; 24] = [
    "天地", "日月", "山河", "春风", "秋雨", "明月", "大江", "故人", "青山", "白云", "流水", "孤舟", "渔父", "书生",
    "将军", "美酒", "落花", "归雁", "长安", "洛阳", "江南", "塞北", "黄昏", "清晨",
];
const EN: [&str; 24] = [
    "whale", "captain", "harbor", "morning", "silver", "window", "garden", "letter", "mountain", "river", "shadow",
    "lantern", "market", "soldier", "teacher", "winter", "summer", "bridge", "forest", "island", "journey", "music",
    "paper", "stone",
];

/// A sentence-like text that depends on `seed` alone.
fn prose(seed: u64, zh: bool, length: usize) -> String {
    let word = |i: usize| mix(seed.wrapping_mul(1000) + i as u64) as usize;
    (0..length)
        .map(|i| match (zh, i % 6) {
            (true, 5) => format!("{}。", ZH[word(i) % 24]),
            (true, _) => format!("{}{}", ZH[word(i) % 24], ["在", "与", "见", "归"][word(i) / 24 % 4]),
            (false, 5) => format!("the {}. ", EN[word(i) % 24]),
            (false, _) => format!("{} {} ", EN[word(i) % 24], ["of the", "and a", "to his", "with"][word(i) / 24 % 4]),
        })
        .collect()
}

/// A folder of files of several kinds, with duplicates, junk and damage.
fn corpus(dir: &Path, seed: u64, documents: u64) -> PathBuf {
    let root = dir.join("raw");
    fs::create_dir_all(root.join("网页")).unwrap();
    let text = |i: u64| match i % 10 {
        8 => prose(seed + i - 5, true, 40),
        9 if i % 20 == 9 => "太短".to_string(),
        _ => prose(seed + i, !i.is_multiple_of(3), 20 + i as usize % 60),
    };
    let line = |i: u64| format!("{}\n", serde_json::json!({ "id": i, "text": text(i) }));
    let third = documents / 3;
    let mut lines: String = (0..third).map(line).collect();
    lines.push_str("{\"text\": broken\n");
    fs::write(root.join("a.jsonl"), lines).unwrap();
    let lines: String = (third..2 * third).map(line).collect();
    fs::write(root.join("b.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 3).unwrap()).unwrap();
    for i in 2 * third..documents {
        fs::write(root.join(format!("网页/{i:04}.txt")), text(i)).unwrap();
    }
    fs::write(root.join("网页/binary.txt"), b"\x7fELF\0\0\0").unwrap();
    fs::write(root.join("网页/french.md"), "Tous les êtres humains naissent libres et égaux en dignité et en droits.")
        .unwrap();
    root
}

fn options(raw: &Path, out: PathBuf) -> PrepareOptions {
    let choice = TokenizerChoice::Train { vocab_size: 300 };
    let mut options = PrepareOptions::new(vec![SourceOptions::new("raw", [raw])], out, choice);
    options.shard_tokens = 2000;
    options.tuning =
        Tuning { threads: 2, block_bytes: 2000, segment_bytes: 3000, segment_seconds: 100.0, ..Tuning::default() };
    options
}

/// The files of a folder; of the report, what does not depend on time.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut bytes = fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        if name == REPORT_FILE {
            let mut report: Report = serde_json::from_slice(&bytes).unwrap();
            report.timing = Timing::default();
            bytes = serde_json::to_vec(&report).unwrap();
        }
        files.insert(name, bytes);
    }
    files
}

/// The documents of a split, decoded.
fn documents(folder: &Path, split: Split) -> Vec<(String, Lang, u16)> {
    let set = ShardSet::open(folder, split).unwrap();
    set.verify(&mut |_| ()).unwrap();
    let tokenizer = Tokenizer::load(folder).unwrap();
    (0..set.documents())
        .map(|i| {
            let document = set.doc(i);
            let text = tokenizer.decode(&document.tokens.to_vec());
            assert_eq!(text.len() as u64, document.bytes);
            (text, document.lang, document.source)
        })
        .collect()
}

#[test]
fn text_becomes_a_data_set_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 1, 90);
    let out = dir.path().join("数据");
    let report = prepare(&options(&raw, out.clone()), &mut Silent).unwrap();
    let (train, validation) = (documents(&out, Split::Train), documents(&out, Split::Validation));
    assert_eq!(report.output[&Split::Train].documents as usize, train.len());
    assert_eq!(report.output[&Split::Validation].documents as usize, validation.len());
    let kept = (train.len() + validation.len()) as u64;
    let removed: u64 = report.removed.values().map(|a| a.documents).sum();
    assert_eq!(report.input.documents, kept + removed);
    assert_eq!(report.sources[0].read.documents, report.input.documents);
    assert_eq!(report.sources[0].removed.documents, removed);
    assert_eq!(report.removed[&Rule::Language].documents, 1);
    assert_eq!(report.removed[&Rule::TooShort].documents, 5);
    assert!(report.removed[&Rule::NearDuplicate].documents > 0);
    assert_eq!(report.problems.total(), 2);
    assert!(report.problems.first[0].to_string().contains("a.jsonl:31: malformed JSON"));
    // The first documents of the first file, in order, cleaned and nothing else.
    let raw_texts: Vec<String> = (0..6).map(|i| prose(1 + i, i % 3 != 0, 20 + i as usize).trim().to_string()).collect();
    let held_out: Vec<&String> = validation.iter().map(|d| &d.0).collect();
    let expected: Vec<&String> = raw_texts.iter().filter(|t| !held_out.contains(t)).collect();
    assert_eq!(train.iter().map(|d| &d.0).take(expected.len()).collect::<Vec<_>>(), expected);
    assert!(
        train
            .iter()
            .all(|(text, lang, source)| { *source == 0 && *lang == if text.is_ascii() { Lang::En } else { Lang::Zh } })
    );
    let names: Vec<String> = contents(&out).into_keys().collect();
    assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
    assert!(fs::read_dir(&out).unwrap().count() > 5, "several shards");
    let zh = report.languages[&Lang::Zh];
    assert_eq!(report.tokens_per_han, Some(zh.tokens as f64 / zh.han as f64));
    let text = report.to_string();
    assert!(text.contains("near_duplicate") && text.contains("tokens per Han character"), "{text}");
    let json = fs::read(out.join(REPORT_FILE)).unwrap();
    assert_eq!(serde_json::from_slice::<Report>(&json).unwrap(), report);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn threads_and_block_sizes_do_not_change_a_byte(seed in 0u64..1_000_000, count in 30u64..80, weight in 0.3f64..2.5) {
        let dir = tempfile::tempdir().unwrap();
        let raw = corpus(dir.path(), seed, count);
        let mut expected = None;
        for (threads, block_bytes, segment_bytes, dedup_memory) in
            [(1, 2000, 3000, 1 << 20), (2, 300, 1 << 20, 9000), (5, 7000, 1500, 2000)]
        {
            let out = dir.path().join(format!("out{threads}"));
            let mut options = options(&raw, out.clone());
            options.sources[0].weight = weight;
            options.tuning = Tuning { threads, block_bytes, segment_bytes, dedup_memory, segment_seconds: 0.01 };
            prepare(&options, &mut Silent).unwrap();
            let found = contents(&out);
            match &expected {
                None => expected = Some(found),
                Some(expected) => prop_assert_eq!(expected, &found, "{} threads", threads),
            }
        }
    }
}

/// Stops at a given call.
struct StopAt {
    calls: Cell<u64>,
    at: u64,
    notes: Vec<String>,
}

impl StopAt {
    fn new(at: u64) -> StopAt {
        StopAt { calls: Cell::new(0), at, notes: Vec::new() }
    }
}

impl Progress for StopAt {
    fn update(&mut self, _: &Status) {
        self.calls.set(self.calls.get() + 1);
    }

    fn note(&mut self, message: &str) {
        self.notes.push(message.to_string());
    }

    fn stop(&self) -> bool {
        self.calls.get() == self.at
    }
}

#[test]
fn a_run_stopped_anywhere_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 7, 60);
    let with_weight = |out: PathBuf| {
        let mut options = options(&raw, out);
        options.sources[0].weight = 1.7;
        options
    };
    let whole = dir.path().join("whole");
    let mut count = StopAt::new(u64::MAX);
    prepare(&with_weight(whole.clone()), &mut count).unwrap();
    let expected = contents(&whole);
    let calls = count.calls.get();
    assert!(calls > 20, "{calls}");
    let mut resumed = 0;
    for at in (1..=calls).step_by((calls / 9) as usize) {
        let out = dir.path().join("stopped");
        let options = with_weight(out.clone());
        match prepare(&options, &mut StopAt::new(at)) {
            Err(PrepareError::Stopped) => {
                assert!(!out.join("manifest.json").exists());
                let mut again = StopAt::new(u64::MAX);
                prepare(&options, &mut again).unwrap();
                assert!(again.notes[0].contains("going on"), "{:?}", again.notes);
                resumed += u64::from(again.calls.get() < calls);
            }
            // Timed calls come and go, so the last ones may not be reached.
            other => drop(other.unwrap()),
        }
        assert_eq!(contents(&out), expected, "stopped at {at}");
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(resumed > 2, "finished parts are not done again");
}

#[test]
fn finished_segments_and_shards_are_not_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 3, 60);
    let out = dir.path().join("out");
    let options = options(&raw, out.clone());
    struct StopIn(Stage, u64);
    impl Progress for StopIn {
        fn update(&mut self, status: &Status) {
            if status.stage == self.0 && status.done > 0 {
                self.1 += 1;
            }
        }
        fn stop(&self) -> bool {
            self.1 == 6
        }
    }
    assert!(matches!(prepare(&options, &mut StopIn(Stage::Tokenize, 0)), Err(PrepareError::Stopped)));
    // What is finished keeps its bytes and its time of change.
    let shard = out.join(".work/set/train-00000.bin");
    let before = (fs::metadata(&shard).unwrap().modified().unwrap(), fs::read(&shard).unwrap());
    let segment = out.join(".work/spool/segment-000000.text");
    let segment_before = fs::metadata(&segment).unwrap().modified().unwrap();
    struct Check(PathBuf, std::time::SystemTime);
    impl Progress for Check {
        fn update(&mut self, status: &Status) {
            if status.stage == Stage::Tokenize {
                assert_eq!(fs::metadata(&self.0).unwrap().modified().unwrap(), self.1, "gathered again");
            }
        }
    }
    prepare(&options, &mut Check(segment, segment_before)).unwrap();
    let shard = out.join("train-00000.bin");
    assert_eq!((fs::metadata(&shard).unwrap().modified().unwrap(), fs::read(&shard).unwrap()), before);
}

#[test]
fn a_finished_set_is_left_alone_and_another_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 5, 40);
    let out = dir.path().join("out");
    let mut options = options(&raw, out.clone());
    let first = prepare(&options, &mut Silent).unwrap();
    let before = contents(&out);
    let mut watch = StopAt::new(u64::MAX);
    assert_eq!(prepare(&options, &mut watch).unwrap(), first);
    assert_eq!(watch.notes, ["this data set is complete already"]);
    options.shard_tokens = 1_000_000;
    let error = prepare(&options, &mut Silent).unwrap_err();
    assert!(matches!(error, PrepareError::Exists { .. }), "{error}");
    assert_eq!(contents(&out), before);
    options.overwrite = true;
    prepare(&options, &mut Silent).unwrap();
    let after = contents(&out);
    assert!(before.contains_key("train-00001.bin") && !after.contains_key("train-00001.bin"), "old shards must go");
    documents(&out, Split::Train);
}

#[test]
fn a_set_that_was_half_shown_is_shown_whole_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 12, 40);
    let whole = dir.path().join("whole");
    prepare(&options(&raw, whole.clone()), &mut Silent).unwrap();
    let out = dir.path().join("out");
    // A folder where a file should go: the disk is as good as full at this point.
    for obstacle in [REPORT_FILE, "train-00000.bin", "tokenizer.json"] {
        fs::create_dir_all(out.join(obstacle)).unwrap();
        let error = prepare(&options(&raw, out.clone()), &mut Silent).unwrap_err();
        assert!(error.to_string().contains("cannot rename") && error.to_string().contains(obstacle), "{error}");
        assert!(!out.join("manifest.json").exists());
        fs::remove_dir(out.join(obstacle)).unwrap();
        prepare(&options(&raw, out.clone()), &mut Silent).unwrap();
        assert_eq!(contents(&out), contents(&whole));
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn changed_options_start_over_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 6, 40);
    let out = dir.path().join("out");
    let mut options = options(&raw, out.clone());
    assert!(matches!(prepare(&options, &mut StopAt::new(12)), Err(PrepareError::Stopped)));
    options.rules.min_han = 17;
    fs::write(raw.join("new.txt"), prose(99, true, 50)).unwrap();
    let mut watch = StopAt::new(u64::MAX);
    prepare(&options, &mut watch).unwrap();
    assert!(watch.notes[0].contains("input files, rules; starting over"), "{:?}", watch.notes);
    let fresh = dir.path().join("fresh");
    options.out = fresh.clone();
    prepare(&options, &mut Silent).unwrap();
    assert_eq!(contents(&out), contents(&fresh));
}

#[test]
fn the_first_of_duplicates_stays() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    fs::create_dir(&raw).unwrap();
    let text = prose(1, true, 80);
    let near = format!("{text}完了。");
    for (name, content) in
        [("1", &text), ("2", &near), ("3", &text), ("4", &prose(2, true, 80)), ("5", &prose(3, false, 50))]
    {
        fs::write(raw.join(format!("{name}.txt")), content).unwrap();
    }
    let out = dir.path().join("out");
    let report = prepare(&options(&raw, out.clone()), &mut Silent).unwrap();
    assert_eq!(report.removed[&Rule::ExactDuplicate].documents, 1);
    assert_eq!(report.removed[&Rule::NearDuplicate].documents, 1);
    let texts: Vec<String> = documents(&out, Split::Train).into_iter().map(|d| d.0).collect();
    assert_eq!(texts, [text, prose(2, true, 80), prose(3, false, 50).trim().to_string()]);
    let mut all = options(&raw, dir.path().join("all"));
    (all.dedup.exact, all.dedup.near) = (false, false);
    assert_eq!(prepare(&all, &mut Silent).unwrap().output[&Split::Train].documents, 5);
}

#[test]
fn weights_repeat_and_thin_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for (number, weight) in [0.0, 0.4, 1.0, 2.5].into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.jsonl"));
        let line = |i: u64| format!("{}\n", serde_json::json!({ "text": prose(number as u64 * 1000 + i, true, 30) }));
        fs::write(&path, (0..200).map(line).collect::<String>()).unwrap();
        sources.push(SourceOptions { weight, ..SourceOptions::new(format!("s{number}"), [path]) });
    }
    let out = dir.path().join("out");
    let mut options = options(dir.path(), out.clone());
    options.sources = sources;
    options.validation.share = 0.0;
    let report = prepare(&options, &mut Silent).unwrap();
    let written = |source: usize| report.sources[source].train.get(&Lang::Zh).map_or(0, |w| w.documents);
    assert_eq!((written(0), written(2)), (0, 200));
    assert!((60..100).contains(&written(1)), "{}", written(1));
    assert!((470..530).contains(&written(3)), "{}", written(3));
    let mut times: HashMap<String, usize> = HashMap::new();
    let all = documents(&out, Split::Train);
    all.iter().filter(|d| d.2 == 3).for_each(|d| *times.entry(d.0.clone()).or_default() += 1);
    assert_eq!(times.len(), 200);
    assert!(times.values().all(|n| *n == 2 || *n == 3));
    assert!(all.windows(2).all(|pair| pair[0].0 != pair[1].0), "copies are apart");
}

#[test]
fn a_document_is_held_out_whatever_else_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let held_out = |name: &str, range: std::ops::Range<u64>, options: ValidationOptions| {
        let path = dir.path().join(format!("{name}.jsonl"));
        let line = |i: u64| format!("{}\n", serde_json::json!({ "text": prose(i, i.is_multiple_of(2), 30) }));
        fs::write(&path, range.map(line).collect::<String>()).unwrap();
        let mut all = self::options(&path, dir.path().join(name));
        all.validation = options;
        prepare(&all, &mut Silent).unwrap();
        let (train, validation) = (documents(&all.out, Split::Train), documents(&all.out, Split::Validation));
        (train, validation)
    };
    let share = |share| ValidationOptions { share, min_documents: 0 };
    let (_, few) = held_out("few", 0..200, share(0.1));
    let (train, many) = held_out("many", 0..500, share(0.1));
    assert!(few.iter().all(|document| many.contains(document)));
    assert!((30..70).contains(&many.len()), "{}", many.len());
    assert!(many.iter().all(|document| !train.contains(document)));
    // A share that gives nothing still leaves something of both languages to measure on, but not more than a tenth.
    let (_, least) = held_out("least", 0..200, ValidationOptions { share: 1e-9, min_documents: 7 });
    assert_eq!([Lang::Zh, Lang::En].map(|lang| least.iter().filter(|d| d.1 == lang).count()), [7, 7]);
    let (_, tenth) = held_out("tenth", 0..80, ValidationOptions { share: 1e-9, min_documents: 100 });
    assert_eq!(tenth.len(), 8);
    let (_, none) = held_out("none", 0..80, share(0.0));
    assert!(none.is_empty());
}

#[test]
fn fields_and_formats_can_differ_by_source() {
    let dir = tempfile::tempdir().unwrap();
    let (poems, prices) = (dir.path().join("poems.json"), dir.path().join("prices"));
    let poem = |i: u64| serde_json::json!({ "title": format!("其{i}"), "lines": [prose(i, true, 10), prose(i + 50, true, 10)] });
    fs::write(&poems, serde_json::Value::from_iter((0..20).map(poem)).to_string()).unwrap();
    fs::write(&prices, format!("id,body\n1,\"{}\"\n", prose(9, false, 40))).unwrap();
    let out = dir.path().join("out");
    let mut options = options(dir.path(), out.clone());
    options.sources = vec![
        SourceOptions { fields: Some(vec!["title".into(), "lines".into()]), ..SourceOptions::new("poems", [poems]) },
        SourceOptions {
            fields: Some(vec!["body".into()]),
            format: Some(crate::read::Format::Csv),
            ..SourceOptions::new("prices", [prices])
        },
    ];
    prepare(&options, &mut Silent).unwrap();
    let all = documents(&out, Split::Train);
    assert!(all.iter().any(|d| d.2 == 1));
    assert!(all.iter().filter(|d| d.2 == 0).all(|d| d.0.starts_with('其') && d.0.lines().count() == 3));
}

#[test]
fn a_given_tokenizer_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 8, 40);
    let learned = dir.path().join("learned");
    prepare(&options(&raw, learned.clone()), &mut Silent).unwrap();
    let mut given = options(&raw, dir.path().join("given"));
    given.tokenizer = TokenizerChoice::File(learned.clone());
    prepare(&given, &mut Silent).unwrap();
    let (learned, given) = (contents(&learned), contents(&given.out));
    assert_eq!(learned["tokenizer.json"], given["tokenizer.json"]);
    assert_eq!(learned["train-00000.bin"], given["train-00000.bin"]);
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 9, 40);
    let options = options(&raw, dir.path().join("out"));
    struct Second(PrepareOptions, bool);
    impl Progress for Second {
        fn update(&mut self, _: &Status) {
            let error = prepare(&self.0, &mut Silent).unwrap_err();
            assert!(matches!(error, PrepareError::Locked { .. }), "{error}");
            self.1 = true;
        }
    }
    let mut second = Second(options.clone(), false);
    prepare(&options, &mut second).unwrap();
    assert!(second.1);
}

#[test]
fn errors_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 10, 40);
    let out = dir.path().join("out");
    let message = |options: &PrepareOptions| prepare(options, &mut Silent).unwrap_err().to_string();
    let good = options(&raw, out.clone());

    let mut bad = good.clone();
    bad.read.fields = vec!["content".to_string()];
    bad.sources[0].paths = vec![raw.join("a.jsonl")];
    let text = message(&bad);
    assert!(text.contains("no document could be read") && text.contains("it has id, text"), "{text}");

    let mut bad = good.clone();
    bad.out = dir.path().join("removed");
    bad.rules.min_han = 100_000;
    bad.rules.min_words = 100_000;
    let text = message(&bad);
    assert!(text.contains("too_short"), "{text}");

    let mut bad = good.clone();
    bad.out = dir.path().join("strict");
    bad.read.strict = true;
    assert!(message(&bad).contains("a.jsonl:14: malformed JSON"), "{}", message(&bad));

    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let bad = PrepareOptions { out: file.join("out"), ..good.clone() };
    assert!(message(&bad).contains("cannot create folder"), "{}", message(&bad));

    let mut bad = good.clone();
    bad.sources[0].paths = vec![dir.path().join("nowhere")];
    assert!(message(&bad).contains("nowhere"));

    for (change, part) in [
        ((|o| o.sources.clear()) as fn(&mut PrepareOptions), "no sources"),
        (|o| o.sources.push(o.sources[0].clone()), "two sources"),
        (|o| o.sources[0].weight = f64::NAN, "weight"),
        (|o| o.sources[0].weight = -1.0, "weight"),
        (|o| o.validation.share = 0.9, "validation.share"),
        (|o| o.languages.clear(), "language"),
        (|o| o.dedup.bands = 0, "dedup.bands"),
        (|o| o.read.fields.clear(), "fields"),
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(message(&bad).contains(part), "{}", message(&bad));
    }
    let full = PrepareError::io("write", "x", io::Error::from(io::ErrorKind::StorageFull));
    assert!(full.to_string().contains("free some space"));
}

#[test]
fn the_output_folder_is_never_an_input() {
    let dir = tempfile::tempdir().unwrap();
    let raw = corpus(dir.path(), 11, 40);
    let mut options = options(&raw, raw.join("prepared"));
    let first = prepare(&options, &mut Silent).unwrap();
    options.overwrite = true;
    options.shard_tokens = 999;
    let second = prepare(&options, &mut Silent).unwrap();
    assert_eq!(first.input, second.input);
}

#[test]
fn options_come_from_a_file_with_defaults() {
    let text =
        r#"{"sources": [{"name": "a", "paths": ["x"]}], "out": "o", "tokenizer": {"train": {"vocab_size": 300}}}"#;
    let options: PrepareOptions = serde_json::from_str(text).unwrap();
    let source = SourceOptions::new("a", ["x"]);
    assert_eq!(options, PrepareOptions::new(vec![source], "o", TokenizerChoice::Train { vocab_size: 300 }));
    let text = text.replace("\"out\"", "\"dedup\": {\"band\": 3}, \"out\"");
    assert!(serde_json::from_str::<PrepareOptions>(&text).unwrap_err().to_string().contains("band"));
}
