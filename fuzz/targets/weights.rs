//! A safetensors file as the weights of a small model: its list of tensors lies inside it, and loading it fills the store
//! or says why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use wudao_device::Cpu;
use wudao_model::model::Options;
use wudao_model::{Config, Model, weights};

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::from_json(include_bytes!("../seeds/config/tiny")).expect("a configuration"));

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, data).expect("room");
    if let Ok(tensors) = weights::tensors(&path) {
        assert!(tensors.iter().map(|tensor| tensor.bytes).sum::<u64>() <= data.len() as u64);
    }
    let device = Cpu::new(1);
    let model = Model::new(&device, &CONFIG, 8, Options::default()).expect("a model");
    let mut store = model.zeros(&device);
    let _ = weights::load(&device, folder.path(), &CONFIG, &mut store);
    let _ = weights::load_into(&device, &path, "m.", &mut store);
});
