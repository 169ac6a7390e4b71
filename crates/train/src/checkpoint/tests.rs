use super::*;
use crate::optimizer::Optimizer;
use crate::testing::{tiny_moe, tiny_settings};
use std::fs;
use std::sync::Arc;
use wudao_device::{Cpu, DType};
use wudao_model::Model;
use wudao_model::model::Options;
use wudao_model::weights::Snapshot;

fn state(step: u64) -> State {
    State {
        format: FORMAT_VERSION,
        step,
        updates: step,
        tokens: 64 * step,
        cursor: Cursor { seed: 1, documents: 5, epoch: 0, position: 2, offset: 1 },
        guard: Guard::default(),
        best: None,
        plan: Plan::new(&tiny_settings(), 0),
        data: Some("ab".into()),
        tokenizer: "ab".repeat(32),
        settings: tiny_settings(),
    }
}

fn contents(step: u64) -> Contents<Snapshot> {
    let cpu = Cpu::new(1);
    let model = Model::new(&cpu, &tiny_moe(), 8, Options::default()).unwrap();
    let optimizer = Optimizer::new(&cpu, model.layout(), DType::F32, &tiny_settings());
    Contents {
        config: tiny_moe(),
        dtype: DType::F32,
        weights: Snapshot::of(&cpu, &model.init(&cpu, step), ""),
        optimizer: optimizer.snapshot(&cpu),
        state: state(step),
        extra: Arc::new(vec![("tokenizer.json".into(), b"{}".to_vec())]),
    }
}

fn save(writer: &mut Writer, contents: Contents<Snapshot>) -> Result<Saved, CheckpointError> {
    writer.start(contents).unwrap();
    writer.wait().unwrap().1
}

fn names(out: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(out.join(CHECKPOINTS)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_is_what_hugging_face_opens_and_what_a_run_needs() {
    let out = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(out.path(), 2).unwrap();
    let saved = save(&mut writer, contents(7)).unwrap();
    assert_eq!(saved.path, out.path().join("checkpoints/step-00000007"));
    let mut files: Vec<String> =
        fs::read_dir(&saved.path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let expected = [
        "checksums.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
    ];
    assert_eq!(files, expected);
    let found = newest(out.path()).unwrap();
    assert_eq!((found.path, found.state, found.broken), (saved.path, state(7), vec![]));
    assert!(saved.bytes > contents(7).weights.bytes());
}

/// Any byte that changes, any file that is cut or lost, is found and named; the one before is taken.
#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_found() {
    let out = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(out.path(), 3).unwrap();
    let good = save(&mut writer, contents(1)).unwrap().path;
    let bad = save(&mut writer, contents(2)).unwrap().path;
    for file in fs::read_dir(&bad).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&file).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x04;
        for damage in [Some(&bytes[..bytes.len() / 2]), Some(&flipped[..]), None] {
            match damage {
                Some(damage) => fs::write(&file, damage).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let found = newest(out.path()).unwrap();
            assert_eq!((&found.path, found.state.step), (&good, 1));
            assert_eq!(found.broken.len(), 1);
            assert_eq!(found.broken[0].path, bad);
            let reason = &found.broken[0].reason;
            assert!(reason.contains(&name) || name == CHECKSUMS, "{name}: {reason}");
            fs::write(&file, &bytes).unwrap();
        }
    }
    assert_eq!(newest(out.path()).unwrap().state.step, 2);
    for dir in [&good, &bad] {
        fs::write(dir.join(STATE), "").unwrap();
    }
    let error = newest(out.path()).unwrap_err().to_string();
    assert!(error.contains("step-00000001") && error.contains("step-00000002") && error.contains(STATE), "{error}");
}

#[test]
fn the_last_and_the_best_are_kept() {
    let out = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(out.path(), 2).unwrap();
    for step in 1..=6 {
        let mut c = contents(step);
        c.state.best = (step >= 2).then_some(Best { step: 2, bits_per_byte: 1.0 });
        save(&mut writer, c).unwrap();
    }
    assert_eq!(names(out.path()), ["step-00000002", "step-00000005", "step-00000006"]);
    // A step that is written again replaces the old folder, and does not touch later ones.
    let mut c = contents(5);
    c.state.tokens = 9;
    save(&mut writer, c).unwrap();
    assert_eq!(names(out.path()), ["step-00000002", "step-00000005", "step-00000006"][..]);
    assert_eq!(verify(&out.path().join("checkpoints/step-00000005")).unwrap().tokens, 9);
}

/// A save that fails after the weights are on the disk leaves the older checkpoint and nothing else.
#[test]
fn a_save_that_fails_in_the_middle_leaves_the_old_one() {
    let out = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(out.path(), 1).unwrap();
    save(&mut writer, contents(1)).unwrap();
    let mut c = contents(2);
    // A file that cannot be written, after those of the weights and the moments.
    c.extra = Arc::new(vec![("no/such/folder/tokenizer.json".into(), vec![])]);
    let error = save(&mut writer, c).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    assert_eq!(names(out.path()), ["step-00000001"]);
    assert_eq!(newest(out.path()).unwrap().state.step, 1);
}

#[test]
fn leftovers_are_swept_and_broken_ones_set_aside() {
    let out = tempfile::tempdir().unwrap();
    sweep(out.path()).unwrap();
    let mut writer = Writer::new(out.path(), 1).unwrap();
    save(&mut writer, contents(1)).unwrap();
    let folder = out.path().join(CHECKPOINTS);
    fs::create_dir_all(folder.join(".tmp-step-00000002/x")).unwrap();
    fs::create_dir_all(folder.join(".tmp-remove-step-00000000")).unwrap();
    fs::create_dir_all(folder.join("step-00000003")).unwrap();
    sweep(out.path()).unwrap();
    let found = newest(out.path()).unwrap();
    assert_eq!(found.state.step, 1);
    set_aside(&found.broken[0]).unwrap();
    fs::create_dir_all(folder.join("step-00000003")).unwrap();
    set_aside(&found.broken[0]).unwrap();
    assert_eq!(names(out.path()), ["broken-step-00000003", "broken-step-00000003-1", "step-00000001"]);
}

#[test]
fn only_folders_of_checkpoints_count() {
    assert_eq!(step_of("step-00000012"), Some(12));
    assert_eq!(step_of("step-123456789"), Some(123456789));
    for other in ["step-1", "step-0000000x", "step-99999999999999999999", "broken-step-00000001", ".tmp-step-00000001"]
    {
        assert_eq!(step_of(other), None, "{other}");
    }
}
