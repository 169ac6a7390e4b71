//! A GGUF file: its keys and tensors lie inside it, its vocabulary is a tokenizer or not one, and a model that it says to
//! have whole can be loaded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wudao_device::Cpu;
use wudao_fuzz::catching;
use wudao_model::gguf::{File, Value};
use wudao_model::model::Options;
use wudao_model::weights::{Source, load_from};
use wudao_model::Model;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, data).expect("room");
    let Ok(file) = File::open(&path) else { return };
    for key in file.keys() {
        let value = file.get(key).expect("it was read once");
        if let Value::Array(list) = value {
            assert!(list.len() <= data.len() && list.iter().count() <= list.len());
        }
        assert!(value.shown().chars().count() < 800);
    }
    assert!(file.tensors().iter().map(|t| file.bytes(t).len()).sum::<usize>() <= data.len());
    let text = "Hello, wörld!  3.14\n你好，世界 😀";
    let _ = catching(|| wudao_infer::gguf::tokenizer(&file)?.encode(text).map(drop));
    let Ok(source) = Source::open(&path) else { return };
    if source.complete().is_err() {
        return;
    }
    let device = Cpu::new(1);
    let model = Model::new(&device, source.config(), 8, Options::default()).expect("it was checked");
    let mut store = model.zeros(&device);
    load_from(&device, &source, &mut store).expect("it is complete");
});
