//! `optimizer.safetensors`: moments fill an optimizer, whose snapshot then holds the same, or they leave it as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;
use wudao_device::{Cpu, DType};
use wudao_model::model::Options;
use wudao_model::weights::write_tensors;
use wudao_model::{Config, Model};
use wudao_train::TrainSettings;
use wudao_train::optimizer::Optimizer;
use wudao_train::settings::{Moments, OptimizerKind};

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::from_json(include_bytes!("../seeds/config/tiny")).expect("a configuration"));

fuzz_target!(|data: &[u8]| {
    let device = Cpu::new(1);
    let model = Model::new(&device, &CONFIG, 8, Options::default()).expect("a model");
    let kinds = [OptimizerKind::AdamW, OptimizerKind::Muon];
    for (optimizer, moments) in kinds.into_iter().flat_map(|kind| [(kind, Moments::F32), (kind, Moments::Bf16)]) {
        let settings = TrainSettings { optimizer, moments, ..TrainSettings::default() };
        let mut optimizer = Optimizer::new(&device, model.layout(), DType::F32, &settings);
        let before = optimizer.snapshot(&device);
        match optimizer.parse(&device, data, Path::new("optimizer.safetensors"), 5) {
            Ok(()) => {
                let after = optimizer.snapshot(&device);
                let mut other = Optimizer::new(&device, model.layout(), DType::F32, &settings);
                let folder = tempfile::tempdir().expect("a folder");
                let path = folder.path().join("optimizer.safetensors");
                write_tensors(&path, &after.listed()).expect("room");
                other.load(&device, &path, 5).expect("our own");
                assert!(other.snapshot(&device) == after && other.updates() == 5);
            }
            Err(_) => assert!(optimizer.snapshot(&device) == before && optimizer.updates() == 0),
        }
    }
});
