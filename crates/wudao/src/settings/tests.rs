use super::*;
use wudao_model::RopeScaling;
use wudao_train::TrainSettings;

fn args(config: Option<&Path>, preset: Option<&str>, set: &[&str]) -> SettingsArgs {
    SettingsArgs {
        config: config.map(Path::to_owned),
        preset: preset.map(str::to_owned),
        set: set.iter().map(|s| s.to_string()).collect(),
    }
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn train(resolved: &Resolved) -> TrainSettings {
    resolved.section("train").unwrap()
}

/// A TOML file that disappears with its folder.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn each_level_overrules_those_below() {
    let (_dir, path) = file("preset = \"tiny\"\n[train]\nlr = 0.1\nseed = 1\nseq_len = 32\n");
    let variables = environment(&[("WUDAO_TRAIN_LR", "0.2"), ("WUDAO_TRAIN_SEED", "2")]);
    let own = [("train.lr", "--lr", Some("0.3".to_owned()))];
    let resolved = resolve(&args(Some(&path), None, &[]), &own, &variables).unwrap();
    let settings = train(&resolved);
    assert_eq!((settings.lr, settings.seed, settings.seq_len), (0.3, 2, 32));
    assert_eq!(settings.global_batch_size, 8, "the preset's");
    assert_eq!(settings.beta1, 0.9, "the default");
    let origin = |path: &str| resolved.layers.origin(path).to_string();
    assert_eq!(origin("train.lr"), "--lr");
    assert_eq!(origin("train.seed"), "environment WUDAO_TRAIN_SEED");
    assert_eq!(origin("train.seq_len"), path.display().to_string());
    assert_eq!(origin("train.global_batch_size"), "preset tiny");
    assert_eq!(origin("train.beta1"), "default");
}

#[test]
fn a_stronger_preset_replaces_the_files() {
    let (_dir, path) = file("preset = \"tiny\"\n");
    let width = |resolved: Resolved| resolved.layers.get("model.hidden_size").cloned();
    let none = environment(&[]);
    let tiny = width(resolve(&args(Some(&path), None, &[]), &[], &none).unwrap());
    let small = width(resolve(&args(Some(&path), Some("small"), &[]), &[], &none).unwrap());
    let variable = environment(&[("WUDAO_PRESET", "small")]);
    let by_variable = width(resolve(&args(Some(&path), None, &[]), &[], &variable).unwrap());
    assert!(tiny != small && small == by_variable);
}

#[test]
fn a_file_with_a_model_gets_none_from_a_preset() {
    let (_dir, path) = file("[model]\nfamily = \"llama\"\n");
    let resolved = resolve(&args(Some(&path), None, &[]), &[], &[]).unwrap();
    let error = resolved.section::<wudao_model::Config>("model").unwrap_err();
    assert!(error.what.contains("missing field"), "{}", error.what);
}

#[test]
fn the_limits_of_a_run_are_one_decision() {
    let own = [("train.steps", "--steps", Some("7".to_owned()))];
    let settings = train(&resolve(&args(None, Some("quickstart"), &[]), &own, &[]).unwrap());
    assert_eq!((settings.steps, settings.max_minutes), (Some(7), None));
    let variable = environment(&[("WUDAO_TRAIN_MAX_TOKENS", "1e6")]);
    let settings = train(&resolve(&args(None, Some("quickstart"), &[]), &[], &variable).unwrap());
    assert_eq!((settings.max_tokens, settings.max_minutes), (Some(1_000_000), None));
}

#[test]
fn mistakes_name_the_key_the_place_and_the_nearest() {
    let fails =
        |args: SettingsArgs, variables: &[(&str, &str)]| resolve(&args, &[], &environment(variables)).unwrap_err();
    let error = fails(args(None, None, &["train.lrr=1"]), &[]);
    assert_eq!(error.what, "unknown setting `train.lrr` (--set)");
    assert_eq!(error.help.unwrap(), "the nearest known key is `train.lr`");
    let error = fails(args(None, None, &[]), &[("WUDAO_TRAIN_LLR", "1")]);
    assert_eq!(error.what, "unknown environment variable WUDAO_TRAIN_LLR");
    assert!(error.help.unwrap().contains("WUDAO_TRAIN_LR"));
    let (_dir, path) = file("[train]\nlr = 1\nlearning_rate = 2\n");
    let error = fails(args(Some(&path), None, &[]), &[]);
    assert!(error.what.starts_with("unknown setting `train.learning_rate` ("), "{}", error.what);
    let (_dir, path) = file("[train]\nlr = = 3\n");
    let error = fails(args(Some(&path), None, &[]), &[]);
    assert!(error.what.contains("run.toml:2: "), "{}", error.what);
    let error = fails(args(None, None, &["train.lr"]), &[]);
    assert!(error.what.contains("KEY=VALUE"));
    let error = fails(args(Some(Path::new("/no/such/file.toml")), None, &[]), &[]);
    assert!(error.what.contains("/no/such/file.toml"));
}

#[test]
fn sources_are_read_from_the_file() {
    let (_dir, path) = file("[[sources]]\nname = \"books\"\npaths = [\"a\", \"b\"]\nweight = 2\n");
    let sources = resolve(&args(Some(&path), None, &[]), &[], &[]).unwrap().sources;
    assert_eq!((sources[0].name.as_str(), sources[0].paths.len(), sources[0].weight), ("books", 2, 2.0));
    let (_dir, path) = file("[[sources]]\nname = \"books\"\npath = \"a\"\n");
    let error = resolve(&args(Some(&path), None, &[]), &[], &[]).unwrap_err();
    assert!(error.what.contains("unknown field `path`"), "{}", error.what);
}

#[test]
fn every_preset_is_a_whole_configuration() {
    for (name, text) in presets::ALL {
        assert!(!presets::description(text).is_empty(), "{name}");
        let mut resolved = resolve(&args(None, Some(name), &[]), &[], &[]).unwrap();
        let data: Table = "[model]\nvocab_size = 512\neos_token_id = [0]".parse().unwrap();
        resolved.layers.fill(&data, &Origin::Data).unwrap();
        let config: wudao_model::Config = resolved.section("model").unwrap();
        config.check().unwrap();
        let settings = train(&resolved);
        settings.check().unwrap();
        settings.accumulation(1).unwrap();
        assert!(settings.seq_len <= config.max_position_embeddings, "{name}");
        resolved.section::<PrepareSettings>("prepare").unwrap();
    }
}

#[test]
fn every_key_has_its_own_variable_and_is_read_from_it() {
    let schema = Schema::of::<Settings>().unwrap();
    let mut names: Vec<String> = schema.paths().map(variable).collect();
    names.extend(SPECIAL.map(str::to_owned));
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(all > 60, "the sections are all there");
}

#[test]
fn saved_settings_reproduce_themselves() {
    let resolved = resolve(&args(None, Some("tiny"), &["train.lr=0.5", "prepare.languages=zh"]), &[], &[]).unwrap();
    let mut resolved = resolved;
    resolved.layers.add_text("train.seed", "3", &Origin::File("two\nlines.toml".into())).unwrap();
    let (_dir, path) = file(&resolved.layers.to_toml(&["model", "train", "prepare"]));
    let again = resolve(&args(Some(&path), None, &[]), &[], &[]).unwrap();
    assert_eq!(train(&again), train(&resolved));
    let prepare = |r: &Resolved| r.section::<PrepareSettings>("prepare").unwrap();
    assert_eq!(prepare(&again), prepare(&resolved));
    assert_eq!(again.layers.get("model.moe.num_experts"), resolved.layers.get("model.moe.num_experts"));
}

#[test]
fn rope_scaling_is_a_table_like_any_other() {
    let with = |text: &str| {
        let (_dir, path) = file(&format!("preset = \"tiny\"\n{text}"));
        let resolved = resolve(&args(Some(&path), None, &["model.vocab_size=512"]), &[], &environment(&[]));
        resolved.and_then(|r| r.section::<wudao_model::Config>("model")).map(|c| c.rope_scaling)
    };
    assert_eq!(with("").unwrap(), None);
    let yarn = "[model.rope_scaling]\nrope_type = \"yarn\"\nfactor = 4\noriginal_max_position_embeddings = 64\n";
    assert!(matches!(with(yarn).unwrap(), Some(RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, .. })));
    let of = |text: &str| with(&format!("[model.rope_scaling]\n{text}")).unwrap_err().to_string();
    assert!(of("rope_type = \"linear\"\nfactor = 2\nmscale = 1").contains("mscale means nothing"));
    assert!(of("rope_type = \"llama3\"\nfactor = 2").contains("low_freq_factor is missing"));
    assert!(of("rope_type = \"dynamic\"\nfactor = 2").contains("\"linear\", \"llama3\" or \"yarn\""));
}
