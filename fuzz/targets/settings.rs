//! The settings file: one that is accepted holds settings or says which are missing, and is read as the same from what a
//! run saves of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use wudao::settings::{self, PrepareSettings, Resolved, SettingsArgs, SettingsError};
use wudao_model::Config;
use wudao_train::TrainSettings;

const SECTIONS: [&str; 7] = ["model", "data", "prepare", "tokenizer", "train", "eval", "generate"];

fn read(path: &Path) -> Result<Resolved, SettingsError> {
    settings::resolve(&SettingsArgs { config: Some(path.to_owned()), ..Default::default() }, &[], &[])
}

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.toml");
    std::fs::write(&path, data).expect("room");
    let Ok(resolved) = read(&path) else { return };
    if let Ok(config) = resolved.section::<Config>("model") {
        let _ = config.check();
    }
    if let Ok(train) = resolved.section::<TrainSettings>("train") {
        let _ = train.check();
    }
    let _ = resolved.section::<PrepareSettings>("prepare");
    // A file without a model is one with the default preset's.
    let saved = resolved.layers.to_toml(&SECTIONS);
    std::fs::write(&path, &saved).expect("room");
    let again = read(&path).expect("our own");
    for key in resolved.layers.schema().paths() {
        assert_eq!(again.layers.get(key), resolved.layers.get(key), "{key}\n{saved}");
    }
});
