//! Models in several files, as llama-gguf-split cuts them.

use super::families::writable;
use super::taken::Taken;
use super::{folder, loaded, packed_sums, text};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use wudao_model::Config;
use wudao_model::gguf::{self, File, TensorType};
use wudao_model::weights::{self, Source};

fn path_of(dir: &Path, part: usize, count: usize) -> PathBuf {
    dir.join(format!("m-{part:05}-of-{count:05}.gguf"))
}

/// A model in so many files, a tensor in each in turn, so that what belongs together is apart.
fn split(config: &Config, count: usize) -> (TempDir, Vec<Taken>) {
    let (dir, _) = folder(config);
    let whole = dir.path().join("model.gguf");
    gguf::write(&whole, &Source::open(dir.path()).unwrap(), TensorType::F32, &[]).unwrap();
    let Taken { keys, tensors } = Taken::of(&whole);
    let total = tensors.len() as i32;
    let mut parts: Vec<Taken> = (0..count)
        .map(|part| {
            let mut keys = if part == 0 { keys.clone() } else { BTreeMap::new() };
            keys.insert("split.no".into(), (2, (part as u16).to_le_bytes().to_vec()));
            keys.insert("split.count".into(), (2, (count as u16).to_le_bytes().to_vec()));
            keys.insert("split.tensors.count".into(), (5, total.to_le_bytes().to_vec()));
            Taken { keys, tensors: BTreeMap::new() }
        })
        .collect();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        parts[i % count].tensors.insert(name, tensor);
    }
    for (i, part) in parts.iter().enumerate() {
        part.write(&path_of(dir.path(), i + 1, count));
    }
    (dir, parts)
}

#[test]
fn a_model_in_parts_is_the_model() {
    for (name, config, back) in writable().into_iter().filter(|(name, ..)| matches!(*name, "mixtral" | "deepseek_v3")) {
        for count in [2, 3, 1] {
            let (dir, _) = split(&config, count);
            let path = path_of(dir.path(), 1, count);
            assert_eq!(weights::read_config(&path).unwrap(), back, "{name}");
            assert_eq!(loaded(&path, &back).unwrap(), loaded(dir.path(), &config).unwrap(), "{name} in {count}");
            let (file, source) = (File::open(&path).unwrap(), Source::open(&path).unwrap());
            source.complete().unwrap();
            assert_eq!(file.paths().map(Path::to_owned).collect::<Vec<_>>(), {
                (1..=count).map(|part| path_of(dir.path(), part, count)).collect::<Vec<_>>()
            });
            let tensors = weights::tensors(&path).unwrap();
            assert_eq!(tensors.len(), file.tensors().len());
            let last = path_of(dir.path(), count, count);
            assert!(tensors.iter().any(|t| Some(t.file.as_ref()) == last.file_name()));
            // Packed, which lets pages of the files leave memory as it goes.
            assert_eq!(packed_sums(dir.path(), &config), packed_sums(&path, &config), "{name} in {count}");
        }
    }
}

#[test]
fn what_is_wrong_with_parts_is_named() {
    let (_, config, _) = writable().swap_remove(0);
    let open = |path: &Path| File::open(path).map(drop).map_err(text).unwrap_err();
    let check = |change: fn(&Path, &mut [Taken]), from: &str, says: &str, file: &str| {
        let (dir, mut parts) = split(&config, 3);
        change(dir.path(), &mut parts);
        let error = open(&dir.path().join(from));
        assert!(error.contains(says) && error.contains(file), "{says}, {file}: {error}");
    };
    let [first, second] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf"];
    check(|_, _| {}, second, "it is part 2 of 3 of a model: give the first, ", first);
    check(|dir, _| std::fs::remove_file(path_of(dir, 2, 3)).unwrap(), first, "cannot open", second);
    check(|dir, _| std::fs::write(path_of(dir, 2, 3), "").unwrap(), first, "empty", second);
    check(|dir, parts| parts[2].write(&path_of(dir, 2, 3)), first, "split.no: 2, expected 1", second);
    let edited = |part: usize, edit: fn(&mut Taken), says: &str, file: &str| {
        let (dir, mut parts) = split(&config, 3);
        edit(&mut parts[part]);
        parts[part].write(&path_of(dir.path(), part + 1, 3));
        let error = open(&dir.path().join(first));
        assert!(error.contains(says) && error.contains(file), "{says}, {file}: {error}");
    };
    let four = |part: &mut Taken| drop(part.keys.insert("split.count".into(), (2, vec![4, 0])));
    let fraction = |part: &mut Taken| drop(part.keys.insert("split.count".into(), (6, 2.5f32.to_le_bytes().to_vec())));
    edited(1, four, "split.count: 4, expected 3", second);
    edited(1, |part| part.keys.clear(), "split.no: none, expected 1", second);
    edited(1, |part| drop(part.tensors.pop_first()), "split.tensors.count: ", first);
    edited(0, fraction, "split.count: must be a count, found 2.5", first);
    check(
        |dir, parts| {
            let (name, tensor) = parts[0].tensors.pop_first().unwrap();
            parts[1].tensors.insert(name.clone(), tensor.clone());
            parts[0].tensors.insert(name, tensor);
            parts[1].write(&path_of(dir, 2, 3));
        },
        first,
        "is also in",
        second,
    );
    check(
        |dir, _| std::fs::rename(path_of(dir, 1, 3), dir.join("x.gguf")).unwrap(),
        "x.gguf",
        "it is part 1 of 3 of a model, and its name must end in \"-00001-of-00003.gguf\"",
        "x.gguf",
    );
    // As many parts as can be counted: the second is missing, and nothing is made for the others.
    check(
        |dir, parts| {
            parts[0].keys.insert("split.count".into(), (10, u64::MAX.to_le_bytes().to_vec()));
            parts[0].write(&dir.join(format!("m-00001-of-{}.gguf", u64::MAX)));
        },
        "m-00001-of-18446744073709551615.gguf",
        "cannot open",
        "m-00002-of-18446744073709551615.gguf",
    );
}
