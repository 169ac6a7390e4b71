//! `config.json`: one that is accepted comes back the same from what it is written as, and can be counted.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_device::DType;
use wudao_model::{Config, Counts};

fuzz_target!(|data: &[u8]| {
    let Ok(config) = Config::from_json(data) else { return };
    let written = config.to_json(DType::Bf16);
    assert_eq!(Config::from_json(written.as_bytes()).expect("our own"), config, "{written}");
    let counts = Counts::of(&config);
    assert!(counts.flops_training(1).is_finite() && counts.training_bytes(DType::F32) > 0);
    config.generation_json();
});
