use super::*;
use crate::checkpoint::{CHECKPOINTS, newest, verify};
use crate::settings::{Moments, OptimizerKind, Precision, ScheduleKind};
use crate::testing::Fixture;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use wudao_comm::{Solo, Threads};
use wudao_data::shard::MemoryDocuments;
use wudao_device::{Cpu, DType};
use wudao_model::model::Options;
use wudao_model::weights::Snapshot;
use wudao_model::{Config, Model, weights};

#[path = "../../../model/tests/common/families.rs"]
#[allow(dead_code, reason = "these tests use a part")]
mod families;

/// Keeps events, and stops the run after some step.
struct Stopper<'a> {
    events: Vec<Event>,
    at: u64,
    stop: &'a AtomicBool,
}

impl Observer for Stopper<'_> {
    fn on(&mut self, event: &Event) {
        if matches!(event, Event::Step(s) if s.step == self.at) {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.events.push(event.clone());
    }
}

fn go(f: &Fixture, out: &Path, init: Init, stop_at: u64, threads: usize) -> (Result<Outcome, TrainError>, Vec<Event>) {
    let (cpu, stop) = (Cpu::new(threads), AtomicBool::new(false));
    let mut observer = Stopper { events: vec![], at: stop_at, stop: &stop };
    let outcome = run(&f.job(&cpu, &Solo, out, init), &mut observer, &stop);
    (outcome, observer.events)
}

fn warnings(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(|e| if let Event::Warning(text) = e { Some(text.as_str()) } else { None }).collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    fs::read_dir(dir).unwrap().map(|e| entry(e.unwrap())).collect()
}

fn checkpoint(out: &Path, step: u64) -> PathBuf {
    out.join(CHECKPOINTS).join(crate::checkpoint::folder_name(step))
}

/// Asserts that the last checkpoints of two runs are the same, byte for byte.
fn assert_same(a: &Path, b: &Path, step: u64) {
    let (a, b) = (files(&checkpoint(a, step)), files(&checkpoint(b, step)));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert_eq!(a.len(), 8, "{:?}", a.keys());
    for (name, bytes) in &a {
        assert!(
            *bytes == b[name],
            "{name} differs:\n{}",
            String::from_utf8_lossy(if name.ends_with("json") { bytes } else { b"" })
        );
    }
}

/// A straight run to compare with.
fn straight(f: &Fixture) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    go(f, out.path(), Init::Fresh, 0, 1).0.unwrap();
    out
}

#[test]
fn a_run_leaves_all_that_it_promises() {
    let f = Fixture::new();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("运行/一");
    let (outcome, events) = go(&f, &out, Init::Fresh, 0, 1);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.end, outcome.step, outcome.steps, outcome.tokens), (End::Complete, 20, 20, 20 * 64));
    assert_eq!(outcome.last, checkpoint(&out, 20));
    assert_eq!(outcome.best, Some(checkpoint(&out, 20)), "a loss that falls makes the last the best");
    let evaluation = outcome.evaluation.unwrap();
    assert_eq!((evaluation.step, evaluation.languages.len(), evaluation.sources.len()), (20, 2, 2));
    assert!(evaluation.sources.iter().any(|s| s.source == "古文"));

    assert!(matches!(&events[0], Event::Started(s) if s.plan.steps == 20 && s.accumulation == 2 && s.documents == 52));
    let reports: Vec<&StepReport> =
        events.iter().filter_map(|e| if let Event::Step(s) = e { Some(s) } else { None }).collect();
    assert_eq!(reports.iter().map(|s| s.step).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    let share = reports[3].flops_share.unwrap();
    assert!(share > 0.0 && reports[3].routers.len() == 1 && reports[3].routers[0].load.len() == 4);
    let evaluated: Vec<u64> =
        events.iter().filter_map(|e| if let Event::Evaluated(e) = e { Some(e.step) } else { None }).collect();
    assert_eq!(evaluated, [5, 10, 15, 20]);
    let saved: Vec<u64> = events
        .iter()
        .filter_map(|e| if let Event::CheckpointWritten { step, .. } = e { Some(*step) } else { None })
        .collect();
    assert_eq!(saved, [7, 14, 20]);
    assert!(
        matches!(events.last(), Some(Event::Finished(_))) && warnings(&events).is_empty(),
        "{:?}",
        warnings(&events)
    );

    for file in ["run.json", "metrics.jsonl", "report.html", "tokenizer.json", "tensorboard", ".lock"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 24);
    assert_eq!(verify(&checkpoint(&out, 20)).unwrap().updates, 20);
    assert!(!checkpoint(&out, 7).exists(), "only the last two are kept");
}

/// Run 20 is run 10, stop, resume 10, byte for byte; with other numbers of threads; with each optimizer, in each
/// precision.
#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    let mut f = Fixture::new();
    let kinds = [
        (OptimizerKind::Muon, Moments::F32, Precision::F32),
        (OptimizerKind::AdamW, Moments::F32, Precision::F32),
        (OptimizerKind::Muon, Moments::Bf16, Precision::Bf16),
        (OptimizerKind::AdamW, Moments::Bf16, Precision::Bf16),
    ];
    for (optimizer, moments, dtype) in kinds {
        (f.settings.optimizer, f.settings.moments, f.settings.dtype) = (optimizer, moments, dtype);
        let whole = straight(&f);
        let out = tempfile::tempdir().unwrap();
        let first = go(&f, out.path(), Init::Fresh, 10, 2).0.unwrap();
        assert_eq!((first.end, first.step, first.last), (End::Stopped, 10, checkpoint(out.path(), 10)));
        let (second, events) = go(&f, out.path(), Init::Resume, 0, 3);
        assert_eq!(second.unwrap().step, 20);
        assert!(matches!(&events[0], Event::Started(s) if s.step == 10 && s.resumed_from.is_some()));
        assert_same(whole.path(), out.path(), 20);
        let steps = |out: &Path| -> Vec<u64> {
            let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let step = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap();
            text.lines().map(step).collect()
        };
        assert_eq!(steps(whole.path()), steps(out.path()));
    }
}

/// Where there is no room for a copy, training waits while a checkpoint is written; the files are the same.
#[test]
fn checkpoints_without_a_copy_are_the_same() {
    let f = Fixture::new();
    let whole = straight(&f);
    let (out, cpu, stop) = (tempfile::tempdir().unwrap(), Cpu::new(2), AtomicBool::new(false));
    let mut job = f.job(&cpu, &Solo, out.path(), Init::Fresh);
    let estimate = crate::estimate::estimate(&f.config, &f.settings, 1, DType::F32).unwrap();
    job.available_memory = Some(estimate.without_copy().total());
    let mut observer = Stopper { events: vec![], at: 0, stop: &stop };
    run(&job, &mut observer, &stop).unwrap();
    assert!(warnings(&observer.events).iter().any(|text| text.contains("training waits")), "{:?}", observer.events);
    assert_same(whole.path(), out.path(), 20);
}

/// A run that is over stays as it is when it is resumed.
#[test]
fn a_complete_run_resumes_to_itself() {
    let f = Fixture::new();
    let out = straight(&f);
    let before = files(&checkpoint(out.path(), 20));
    let outcome = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap();
    assert_eq!((outcome.end, outcome.step, outcome.last), (End::Complete, 20, checkpoint(out.path(), 20)));
    assert!(before == files(&checkpoint(out.path(), 20)));
}

/// What a kill -9 may leave: a half-written checkpoint, half a line, records of steps after the checkpoint; and worse, a
/// newest checkpoint that is damaged. The run goes on from the last whole one and ends in the same bytes.
#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used() {
    let f = Fixture::new();
    let whole = straight(&f);
    let out = tempfile::tempdir().unwrap();
    go(&f, out.path(), Init::Fresh, 16, 1).0.unwrap();
    let newest = checkpoint(out.path(), 16);
    let weights = newest.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let half = out.path().join(CHECKPOINTS).join(".tmp-step-00000021");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), "half").unwrap();

    let (outcome, events) = go(&f, out.path(), Init::Resume, 0, 1);
    assert_eq!(outcome.unwrap().step, 20);
    assert!(!half.exists());
    let text = warnings(&events).join("\n");
    assert!(text.contains("step-00000016") && text.contains("model.safetensors has"), "{text}");
    assert!(text.contains("goes on from") && text.contains("step-00000014"), "{text}");
    assert_same(whole.path(), out.path(), 20);
}

#[test]
fn resume_without_a_checkpoint_begins_anew_and_a_new_run_spares_an_old_one() {
    let f = Fixture::new();
    let out = tempfile::tempdir().unwrap();
    let (outcome, events) = go(&f, out.path(), Init::Resume, 3, 1);
    assert_eq!(outcome.unwrap().step, 3);
    assert!(warnings(&events)[0].contains("begins anew"));
    let error = go(&f, out.path(), Init::Fresh, 0, 1).0.unwrap_err();
    assert!(matches!(error, TrainError::Occupied { checkpoints: 1, .. }), "{error}");
    assert_eq!(newest(out.path()).unwrap().state.step, 3);
}

/// What was learned is not thrown away because no checkpoint of it can be read here and now.
#[test]
fn resume_with_damaged_checkpoints_alone_touches_nothing() {
    let f = Fixture::new();
    let out = straight(&f);
    let folder = out.path().join(CHECKPOINTS);
    let names = || fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    for name in names() {
        fs::write(folder.join(name).join("state.json"), "{}").unwrap();
    }
    let (before, record) = (names(), fs::read(out.path().join("metrics.jsonl")).unwrap());
    let error = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap_err().to_string();
    assert!(error.contains("no usable checkpoint") && error.contains("state.json has 2 bytes"), "{error}");
    assert_eq!((names(), fs::read(out.path().join("metrics.jsonl")).unwrap()), (before, record));
}

#[test]
fn a_run_goes_on_only_over_its_data() {
    let f = Fixture::new();
    let out = tempfile::tempdir().unwrap();
    go(&f, out.path(), Init::Fresh, 10, 1).0.unwrap();
    let resume = |fingerprint: Option<&str>| {
        let (cpu, stop) = (Cpu::new(1), AtomicBool::new(false));
        let mut observer = Stopper { events: vec![], at: 11, stop: &stop };
        let mut job = f.job(&cpu, &Solo, out.path(), Init::Resume);
        job.data.fingerprint = fingerprint.map(str::to_owned);
        run(&job, &mut observer, &stop)
    };
    let error = resume(Some("two")).unwrap_err();
    assert!(matches!(&error, TrainError::OtherData { then, now, .. } if then == "one" && now == "two"), "{error}");
    assert_eq!(newest(out.path()).unwrap().state.step, 10);
    assert_eq!(resume(Some("one")).unwrap().step, 11);
}

/// An error on one rank, before the first meeting or in the middle, ends the run on all.
#[test]
fn a_rank_that_fails_does_not_leave_the_others_waiting() {
    let f = Fixture::new();
    for (memory, stumble) in [(Some(1000), false), (None, true)] {
        let out = tempfile::tempdir().unwrap();
        let results: Vec<Result<Outcome, TrainError>> = thread::scope(|s| {
            let one = |comm: Threads| {
                let (f, out) = (&f, out.path());
                s.spawn(move || {
                    let cpu = Cpu::new(1);
                    let mut job = f.job(&cpu, &comm, out, Init::Fresh);
                    let second = Comm::<Cpu>::rank(&comm) == 1;
                    if second {
                        job.available_memory = memory;
                    }
                    // Held-out text that no vocabulary has.
                    let mut held_out = f.validation.clone();
                    held_out.0.iter_mut().for_each(|document| document.tokens.fill(u32::MAX));
                    if second && stumble {
                        job.data.validation = &held_out;
                    }
                    run(
                        &job,
                        &mut Stopper { events: vec![], at: 0, stop: &AtomicBool::new(false) },
                        &AtomicBool::new(false),
                    )
                })
            };
            Threads::world(2).into_iter().map(one).collect::<Vec<_>>().into_iter().map(|h| h.join().unwrap()).collect()
        });
        let first = crate::error::chain(results[0].as_ref().unwrap_err());
        assert!(first.contains("another rank failed"), "{first}");
        assert!(!crate::error::chain(results[1].as_ref().unwrap_err()).contains("another rank"));
    }
}

#[test]
fn a_run_goes_on_only_with_its_settings() {
    let mut f = Fixture::new();
    let out = tempfile::tempdir().unwrap();
    go(&f, out.path(), Init::Fresh, 10, 1).0.unwrap();
    let original = f.settings.clone();

    f.settings = TrainSettings { lr: 2e-2, beta2: 0.99, log_every: 3, ..original.clone() };
    let error = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap_err().to_string();
    assert!(
        error.contains("lr = 0.01 (now 0.02)") && error.contains("beta2") && !error.contains("log_every"),
        "{error}"
    );

    f.settings = TrainSettings { steps: Some(30), ..original.clone() };
    let error = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap_err().to_string();
    assert!(error.contains("steps") && error.contains("wsd"), "{error}");

    let hidden = f.config.hidden_size;
    f.settings = original.clone();
    f.config.rope_theta = 500.0;
    let error = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap_err().to_string();
    assert!(error.contains("rope_theta = 10000.0 (now 500.0)") && f.config.hidden_size == hidden, "{error}");

    f.config.rope_theta = 10000.0;
    f.settings = TrainSettings { log_every: 3, eval_every: 0, keep_last: 5, ..original };
    assert_eq!(go(&f, out.path(), Init::Resume, 0, 1).0.unwrap().step, 20);
}

/// Under warmup-stable-decay a run that is made longer in time is the longer run.
#[test]
fn a_stable_run_may_be_made_longer() {
    let mut f = Fixture::new();
    f.settings = TrainSettings { lr_schedule: ScheduleKind::Wsd, warmup_steps: Some(3), ..f.settings };
    let out = tempfile::tempdir().unwrap();
    go(&f, out.path(), Init::Fresh, 12, 1).0.unwrap();
    f.settings.steps = Some(24);
    let outcome = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap();
    assert_eq!((outcome.step, outcome.steps), (24, 24));
    let whole = straight(&f);
    assert_same(whole.path(), out.path(), 24);
}

#[test]
fn a_run_that_is_beyond_help_stops_and_names_the_last_good_checkpoint() {
    let mut f = Fixture::new();
    f.settings = TrainSettings {
        lr: 1e30,
        optimizer: OptimizerKind::AdamW,
        warmup_ratio: 0.0,
        max_skipped: 3,
        checkpoint_every: 1,
        ..f.settings
    };
    let out = tempfile::tempdir().unwrap();
    let (outcome, events) = go(&f, out.path(), Init::Fresh, 0, 1);
    let error = outcome.unwrap_err();
    let TrainError::NotFinite { in_a_row: 3, last_good: Some(path), step } = &error else { panic!("{error}") };
    assert!(error.to_string().contains(path.to_str().unwrap()));
    let skipped: Vec<u64> =
        events.iter().filter_map(|e| if let Event::Skipped { step, .. } = e { Some(*step) } else { None }).collect();
    assert_eq!(skipped, [step - 2, step - 1, *step]);
    let state = verify(path).unwrap();
    assert_eq!(state.updates, step - 3);
    let weights = fs::read(path.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let finite = |c: &[u8]| f32::from_le_bytes(c.try_into().unwrap()).is_finite();
    assert!(weights[8 + header..].chunks_exact(4).all(finite), "no weight is NaN or infinite");
}

/// Everything that can be known before the start is said before the start.
#[test]
fn bad_input_is_refused_before_the_first_step() {
    type Spoil = fn(&mut Fixture);
    let cases: [(&str, Spoil); 8] = [
        ("seq_len", |f| f.settings.seq_len = 65),
        ("global_batch_size", |f| f.settings.micro_batch_size = 3),
        ("vocab_size", |f| f.config.vocab_size -= 1),
        ("eos_token_id", |f| f.config.eos_token_id = vec![3]),
        ("no documents", |f| f.train = MemoryDocuments(vec![])),
        ("lr", |f| f.settings.lr = -1.0),
        ("num_key_value_heads", |f| f.config.num_key_value_heads = 3),
        ("bytes", |f| {
            f.settings = TrainSettings {
                seq_len: 64,
                global_batch_size: 1 << 18,
                micro_batch_size: 1 << 18,
                ..f.settings.clone()
            }
        }),
    ];
    for (needle, spoil) in cases {
        let mut f = Fixture::new();
        spoil(&mut f);
        let out = tempfile::tempdir().unwrap();
        let (outcome, events) = go(&f, &out.path().join("x"), Init::Fresh, 0, 1);
        let text = crate::error::chain(&outcome.unwrap_err());
        assert!(text.contains(needle), "{needle}: {text}");
        assert!(events.is_empty() && !out.path().join("x").exists(), "{needle}");
    }

    let (f, other) = (Fixture::new(), Fixture::new());
    let cpu = Cpu::new(1);
    let out = tempfile::tempdir().unwrap();
    let mut job = f.job(&cpu, &Solo, out.path(), Init::Fresh);
    let texts = (0..9).map(|i| format!("another text {i}"));
    let tokenizer = Tokenizer::train(texts, &wudao_data::tokenizer::TrainOptions::new(300)).unwrap();
    job.tokenizer = &tokenizer;
    let error = run(&job, &mut (), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, TrainError::Tokenizer { .. }), "{error}");

    let file = out.path().join("a file");
    fs::write(&file, "").unwrap();
    let error = go(&other, &file, Init::Fresh, 0, 1).0.unwrap_err();
    assert!(error.to_string().contains("a file"), "{error}");

    let _lock = Lock::take(out.path()).unwrap();
    let error = go(&other, out.path(), Init::Fresh, 0, 1).0.unwrap_err();
    assert!(matches!(error, TrainError::Locked { pid: Some(_), .. }), "{error}");
}

#[test]
fn weights_of_another_run_are_a_beginning() {
    let f = Fixture::new();
    let first = straight(&f);
    let from = checkpoint(first.path(), 20);
    let out = tempfile::tempdir().unwrap();
    let (outcome, events) = go(&f, out.path(), Init::From(&from), 0, 1);
    assert_eq!(outcome.unwrap().step, 20);
    let loss = |n: u64| {
        events.iter().find_map(|e| if let Event::Step(s) = e { (s.step == n).then_some(s.loss) } else { None }).unwrap()
    };
    let fresh = (f.config.vocab_size as f64).ln();
    assert!(loss(1) < fresh - 1.0, "{} is no better than {fresh}", loss(1));
    let error = go(&f, &out.path().join("y"), Init::From(out.path()), 0, 1).0.unwrap_err();
    assert!(matches!(error, TrainError::Weights(_)), "{error}");
}

/// A model of a family with the vocabulary of the fixture.
fn fitted(f: &Fixture, config: Config) -> Config {
    let stamp = f.tokenizer.stamp().unwrap();
    Config { vocab_size: stamp.vocab_size as usize, eos_token_id: vec![stamp.end_of_text], ..config }
}

/// A checkpoint of any family, as anyone may have written it: a run whose steps change nothing saves it again to the bit.
#[test]
fn a_checkpoint_of_any_family_is_a_beginning() {
    let cpu = Cpu::new(1);
    let mut f = Fixture::new();
    f.settings = TrainSettings {
        steps: Some(2),
        // In f32 that is 0: even weights that begin as 0 stay.
        lr: 1e-60,
        bias_update_rate: 0.0,
        optimizer: OptimizerKind::AdamW,
        ..f.settings.clone()
    };
    for (name, config) in families::every_family() {
        f.config = fitted(&f, config);
        let model = Model::new(&cpu, &f.config, 16, Options::default()).unwrap();
        let store = model.init(&cpu, 3);
        let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        weights::save(&cpu, from.path(), &f.config, &store, DType::F32, 1 << 40).unwrap();
        f.tokenizer.save(from.path()).unwrap();
        let (outcome, _) = go(&f, out.path(), Init::From(from.path()), 0, 1);
        let outcome = outcome.unwrap_or_else(|e| panic!("{name}: {}", crate::error::chain(&e)));
        let mut again = model.no_weights(&cpu);
        weights::load(&cpu, &outcome.last, &f.config, &mut again).unwrap();
        assert!(Snapshot::of(&cpu, &again, "") == Snapshot::of(&cpu, &store, ""), "{name}");
    }
}

#[test]
fn weights_of_another_tokenizer_are_refused() {
    let f = Fixture::new();
    let first = straight(&f);
    let from = checkpoint(first.path(), 20);
    let texts = (0..9).map(|i| format!("另一段文字 another text {i}"));
    let other = Tokenizer::train(texts, &wudao_data::tokenizer::TrainOptions::new(300)).unwrap();
    other.save(&from).unwrap();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("x");
    let error = go(&f, &out, Init::From(&from), 0, 1).0.unwrap_err();
    assert!(matches!(error, TrainError::OtherTokenizer { example: Some(_), .. }), "{error}");
    assert!(error.to_string().contains("--tokenizer") && !out.exists(), "{error}");
    // The same tokenizer in other bytes.
    let json: serde_json::Value = serde_json::from_slice(f.tokenizer.json()).unwrap();
    fs::write(from.join("tokenizer.json"), format!("{json:#}\n\n")).unwrap();
    go(&f, &out, Init::From(&from), 0, 1).0.unwrap();
}

/// There is no backward pass for it, and nobody waits to learn that.
#[test]
fn latent_attention_is_refused_before_anything_is_made() {
    for (name, config) in families::latent_families() {
        let mut f = Fixture::new();
        f.config = fitted(&f, config);
        let out = tempfile::tempdir().unwrap();
        let (outcome, events) = go(&f, &out.path().join("x"), Init::Fresh, 0, 1);
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("cannot be trained") && text.contains("deepseek"), "{name}: {text}");
        assert!(events.is_empty() && !out.path().join("x").exists(), "{name}");
    }
}

/// Two ranks: one folder, whole checkpoints, and one rank can go on from them.
#[test]
fn ranks_write_one_checkpoint_and_any_number_can_go_on() {
    let f = Fixture::new();
    let out = tempfile::tempdir().unwrap();
    let ranks = |init: Init, at: u64| -> Vec<Outcome> {
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            let one = |comm: Threads| {
                let (f, out, stop) = (&f, out.path(), &stop);
                s.spawn(move || {
                    let cpu = Cpu::new(1);
                    let never = AtomicBool::new(false);
                    // The second rank alone is told to stop.
                    let mine = if Comm::<Cpu>::rank(&comm) == 1 { stop } else { &never };
                    let mut observer = Stopper { events: vec![], at, stop: mine };
                    run(&f.job(&cpu, &comm, out, init), &mut observer, mine).unwrap()
                })
            };
            Threads::world(2).into_iter().map(one).collect::<Vec<_>>().into_iter().map(|h| h.join().unwrap()).collect()
        })
    };
    let first = ranks(Init::Fresh, 10);
    assert_eq!(first.iter().map(|o| (o.end, o.step)).collect::<Vec<_>>(), [(End::Stopped, 10); 2]);
    assert_eq!(newest(out.path()).unwrap().state.step, 10);
    let second = ranks(Init::Resume, 13);
    assert_eq!(second[0].step, 13);
    let alone = go(&f, out.path(), Init::Resume, 0, 1).0.unwrap();
    assert_eq!(alone.step, 20);
    let whole = straight(&f);
    let score = |out: &Path| newest(out).unwrap().state.best.unwrap().bits_per_byte;
    let (a, b) = (score(whole.path()), score(out.path()));
    assert!((a - b).abs() < 0.05 * a, "ranks learn what one learns: {a} {b}");
}

/// Minutes become a number of steps, once: the run that goes on has the plan of the run that began.
#[test]
fn minutes_are_steps_that_were_fixed_at_the_start() {
    let mut f = Fixture::new();
    f.settings = TrainSettings { steps: None, max_minutes: Some(0.02), eval_tokens: Some(1), ..f.settings };
    let out = tempfile::tempdir().unwrap();
    let first = go(&f, out.path(), Init::Fresh, 2, 1).0.unwrap();
    assert!(first.steps > 2 && first.step == 2, "{first:?}");
    let second = go(&f, out.path(), Init::Resume, 4, 1).0.unwrap();
    assert_eq!((second.steps, second.step), (first.steps, 4));
    // Also before there is a checkpoint.
    fs::remove_dir_all(out.path().join(CHECKPOINTS)).unwrap();
    let third = go(&f, out.path(), Init::Resume, 1, 1).0.unwrap();
    assert_eq!((third.steps, third.step), (first.steps, 1));
}

/// The proof that learning happens: after a short while, held-out text costs less than under the best model that knows
/// only how frequent each token is.
#[test]
fn a_short_run_beats_a_unigram_model() {
    let mut f = Fixture::new();
    f.settings = TrainSettings {
        steps: Some(60),
        global_batch_size: 8,
        micro_batch_size: 8,
        seq_len: 32,
        lr: 2e-2,
        eval_every: 0,
        eval_tokens: None,
        checkpoint_every: 0,
        ..f.settings
    };
    let out = tempfile::tempdir().unwrap();
    let measured = go(&f, out.path(), Init::Fresh, 0, 2).0.unwrap().evaluation.unwrap().total;
    let end = f.tokenizer.end_of_text().unwrap();
    let mut count = vec![1.0; f.config.vocab_size];
    let targets =
        |d: &MemoryDocuments| -> Vec<u32> { d.0.iter().flat_map(|d| d.tokens.iter().copied().chain([end])).collect() };
    targets(&f.train).into_iter().for_each(|id| count[id as usize] += 1.0);
    let all: f64 = count.iter().sum();
    let held_out = targets(&f.validation);
    let unigram = held_out.iter().map(|&id| -(count[id as usize] / all).ln()).sum::<f64>() / held_out.len() as f64;
    assert_eq!(measured.tokens, held_out.len() as u64);
    assert!(measured.nll < 0.7 * unigram, "{} nats a token, a unigram model needs {unigram}", measured.nll);
}
