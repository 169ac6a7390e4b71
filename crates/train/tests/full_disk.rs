//! A disk that fills up in the middle of a save: the older checkpoint survives, the run says so and goes on.
//!
//! The limit on the size of a file makes `write` fail half-way through the weights, as a full disk does. It holds for the
//! whole process, so this test is alone in its own.

#![cfg(unix)]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use wudao_comm::Solo;
use wudao_data::document::Lang;
use wudao_data::shard::{MemoryDocument, MemoryDocuments};
use wudao_data::tokenizer::{Tokenizer, TrainOptions};
use wudao_device::Cpu;
use wudao_model::{Config, Family};
use wudao_train::{Data, Event, Init, Job, Observer, TrainError, TrainSettings, checkpoint, run};

/// Limits the size of files once some checkpoint is on the disk, and listens.
struct Disk {
    full_after: u64,
    warnings: Vec<String>,
    steps: u64,
}

fn limit(bytes: u64) {
    // SAFETY: plain calls that change this process's limit and the signal that comes with it, with a valid structure.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut now = std::mem::zeroed::<libc::rlimit>();
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut now), 0);
        now.rlim_cur = if bytes == u64::MAX { now.rlim_max } else { bytes };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &now), 0);
    }
}

impl Observer for Disk {
    fn on(&mut self, event: &Event) {
        match event {
            Event::Step(s) => self.steps = s.step,
            Event::CheckpointWritten { step, .. } if *step == self.full_after => limit(1 << 16),
            Event::Warning(text) => self.warnings.push(text.clone()),
            _ => (),
        }
    }
}

fn names(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out.join(checkpoint::CHECKPOINTS)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_costs_the_new_checkpoint_and_not_the_old_one() {
    let texts: Vec<String> = (0..20).map(|i| format!("第{i}日，江上有风。On day {i} the wind blew.")).collect();
    let tokenizer = Tokenizer::train(texts.clone(), &TrainOptions::new(300)).unwrap();
    let document = |text: &String| MemoryDocument {
        tokens: tokenizer.encode(text).unwrap(),
        bytes: text.len() as u64,
        lang: Lang::Other,
        source: 0,
    };
    let documents = MemoryDocuments(texts.iter().map(document).collect());
    let stamp = tokenizer.stamp().unwrap();
    // Large enough that its weights do not fit under the limit.
    let config = Config {
        family: Family::Qwen3,
        vocab_size: stamp.vocab_size as usize,
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 32,
        rope_theta: 10_000.0,
        rope_scaling: None,
        partial_rotary_factor: 1.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        attention_output_bias: false,
        qk_norm: true,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_id: vec![stamp.end_of_text],
        pad_token_id: None,
        moe: None,
        mla: None,
    };
    let settings = TrainSettings {
        seq_len: 16,
        global_batch_size: 2,
        micro_batch_size: 2,
        steps: Some(6),
        checkpoint_every: 2,
        eval_every: 0,
        ..Default::default()
    };
    let out = tempfile::tempdir().unwrap();
    let cpu = Cpu::new(1);
    let job = |init| Job {
        device: &cpu,
        comm: &Solo,
        config: &config,
        settings: &settings,
        data: Data {
            train: &documents,
            validation: &documents,
            stamp: stamp.clone(),
            sources: vec!["sample".into()],
            fingerprint: None,
        },
        tokenizer: &tokenizer,
        out: out.path(),
        init,
        available_memory: None,
        peak_flops: None,
        machine: vec![],
    };

    let mut disk = Disk { full_after: 2, warnings: vec![], steps: 0 };
    let error = run(&job(Init::Fresh), &mut disk, &AtomicBool::new(false)).unwrap_err();
    limit(u64::MAX);
    assert!(matches!(error, TrainError::Checkpoint(_)), "the last save failed too, and that is an error: {error}");
    assert_eq!(disk.steps, 6, "a save that failed is no reason to stop learning");
    assert_eq!(disk.warnings.len(), 1, "{:?}", disk.warnings);
    let warning = &disk.warnings[0];
    assert!(warning.contains("step 4") && warning.contains("step-00000002 is whole"), "{warning}");
    assert_eq!(names(out.path()), ["step-00000002"], "nothing half-written is left");
    assert_eq!(checkpoint::newest(out.path()).unwrap().state.step, 2);

    let mut disk = Disk { full_after: 0, warnings: vec![], steps: 0 };
    let outcome = run(&job(Init::Resume), &mut disk, &AtomicBool::new(false)).unwrap();
    assert_eq!((outcome.step, disk.warnings.len()), (6, 0));
    assert_eq!(names(out.path()), ["step-00000004", "step-00000006"]);
}
