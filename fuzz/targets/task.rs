//! A file of evaluation tasks: lines, or if the first byte is odd a table of MMLU. Whatever it is, there are questions that can be
//! put, or an error. The decoder of tables may panic on a damaged one; the reader must make an error of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_fuzz::catching;
use wudao_infer::tasks::Task;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    if kind % 2 == 0 {
        std::fs::write(folder.path().join("own.jsonl"), bytes).expect("room");
    } else {
        for split in ["dev", "test"] {
            std::fs::create_dir(folder.path().join(split)).expect("room");
            std::fs::write(folder.path().join(split).join("data.arrow"), bytes).expect("room");
        }
    }
    for task in catching(|| Task::read_all(folder.path(), Some(1))).unwrap_or_default() {
        assert!(!task.questions.is_empty());
        for question in &task.questions {
            assert!(question.right < question.choices.len());
            assert!(question.choices.iter().all(|choice| !choice.continuation.is_empty()));
        }
    }
});
