//! Files of weights: what transformers saved is read and written again the same, and foreign bytes get an answer that
//! names the file and the tensor.

mod common;

use common::families::{all_families, every_family};
use common::{by_name, golden_dir, model};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;
use wudao_device::{Cpu, DType};
use wudao_model::model::Options;
use wudao_model::model::Recomputation;
use wudao_model::store::{Kind, Shard};
use wudao_model::weights::{
    self, INDEX, MODEL, Snapshot, load, load_into, load_some, save, write_model, write_tensors,
};
use wudao_model::{Config, Model, Store};

const CASES: [&str; 15] = [
    "llama",
    "qwen3",
    "mixtral",
    "qwen3_moe",
    "qwen3_moe_norm",
    "glm4_moe",
    "glm4_moe_plain",
    "mistral",
    "qwen2",
    "qwen2_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v2_groups",
    "deepseek_v3",
    "deepseek_v3_plain",
];
const BIG: u64 = 1 << 40;

fn dev() -> Cpu {
    Cpu::new(1)
}

fn empty(config: &Config, dtype: DType, shard: Shard) -> Store<Cpu> {
    Model::new(&dev(), config, 8, Options { dtype, shard, ..Default::default() }).unwrap().zeros(&dev())
}

fn text(e: impl std::error::Error) -> String {
    let source = e.source().map(|s| format!(": {s}")).unwrap_or_default();
    format!("{e}{source}")
}

fn read(config: &Config, dir: &Path) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let mut store = empty(config, DType::F32, Shard::WHOLE);
    load(&dev(), dir, config, &mut store).map(|()| by_name(&dev(), &store)).map_err(text)
}

/// A file's tensors, to be changed.
type Raw = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn raw(path: &Path) -> Raw {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn put(raw: &Raw, path: &Path) {
    let views = raw.iter().map(|(name, (d, s, b))| (name, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Loads a golden folder after `change`.
fn changed(case: &str, change: impl FnOnce(&mut Raw, &mut Config)) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let from = golden_dir().join(case);
    let mut config = weights::read_config(&from).unwrap();
    let mut tensors = raw(&from.join(MODEL));
    change(&mut tensors, &mut config);
    let dir = TempDir::new().unwrap();
    put(&tensors, &dir.path().join(MODEL));
    read(&config, dir.path())
}

#[test]
fn what_transformers_saved_we_save_again() {
    for case in CASES {
        let from = golden_dir().join(case);
        let config = weights::read_config(&from).unwrap();
        let mut store = empty(&config, DType::F32, Shard::WHOLE);
        load(&dev(), &from, &config, &mut store).unwrap();
        let dir = TempDir::new().unwrap();
        let written = save(&dev(), dir.path(), &config, &store, DType::F32, BIG).unwrap();
        assert_eq!(raw(&dir.path().join(MODEL)), raw(&from.join(MODEL)), "{case}");
        let bytes = std::fs::read(dir.path().join(MODEL)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(weights::read_config(dir.path()).unwrap(), config);
        let names: Vec<&str> = written.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(names, ["config.json", "generation_config.json", MODEL]);
        for w in &written {
            assert_eq!(&weights::checksum(&dir.path().join(&w.name)).unwrap(), w);
        }
        // Nothing of value is overwritten.
        let e = save(&dev(), dir.path(), &config, &store, DType::F32, BIG).map_err(text).unwrap_err();
        assert!(e.contains("exists already"), "{e}");
    }
}

#[test]
fn shards_hold_the_same() {
    for (name, config) in all_families() {
        let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
        let dir = TempDir::new().unwrap();
        let written = save(&dev(), dir.path(), &config, &store, DType::F32, 2500).unwrap();
        assert!(written.len() >= 5, "{name}: {} files", written.len());
        assert_eq!(written.last().unwrap().name, INDEX);
        assert!(!dir.path().join(MODEL).exists());
        let tensors = weights::tensors(dir.path()).unwrap();
        let size = |file: &str| tensors.iter().filter(|t| t.file == file).map(|t| t.bytes).collect::<Vec<_>>();
        for w in written.iter().filter(|w| w.name.ends_with(".safetensors")) {
            let sizes = size(&w.name);
            assert!(!sizes.is_empty() && (sizes.len() == 1 || sizes.iter().sum::<u64>() <= 2500), "{name}: {sizes:?}");
        }
        assert_eq!(read(&config, dir.path()).unwrap(), by_name(&dev(), &store), "{name}");
        let index: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], tensors.iter().map(|t| t.bytes).sum::<u64>());
        assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors.len());
    }
}

#[test]
fn half_precision_is_rounded_once_and_read_exactly() {
    let (_, config) = every_family().swap_remove(6);
    let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
    let exact = by_name(&dev(), &store);
    let dir = TempDir::new().unwrap();
    save(&dev(), dir.path(), &config, &store, DType::Bf16, BIG).unwrap();
    let got = read(&config, dir.path()).unwrap();
    for (name, x) in &exact {
        // The correction bias keeps its precision, as in transformers.
        let keeps = name.ends_with("e_score_correction_bias");
        let want: Vec<f64> = x.iter().map(|&x| if keeps { x } else { bf16::from_f32(x as f32).to_f64() }).collect();
        assert_eq!(got[name], want, "{name}");
    }
    let json = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(json.contains("\"dtype\": \"bfloat16\""));
    // float16 as others write it, and a store in f64.
    let mut tensors = raw(&dir.path().join(MODEL));
    for (name, (dtype, _, bytes)) in &mut tensors {
        *dtype = Dtype::F16;
        *bytes = exact[name].iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect();
    }
    put(&tensors, &dir.path().join(MODEL));
    let mut wide = empty(&config, DType::F64, Shard::WHOLE);
    load(&dev(), dir.path(), &config, &mut wide).unwrap();
    for (name, x) in by_name(&dev(), &wide) {
        let want: Vec<f64> = exact[&name].iter().map(|&x| f16::from_f64(x).to_f64()).collect();
        assert_eq!(x, want, "{name}");
    }
}

#[test]
fn a_file_that_does_not_fit_is_refused_by_name() {
    let refused = |case: &str, words: &[&str], change: &dyn Fn(&mut Raw, &mut Config)| {
        let e = changed(case, |t, c| change(t, c)).unwrap_err();
        assert!(words.iter().all(|w| e.contains(w)), "{words:?} in: {e}");
    };
    let norm = "model.layers.1.input_layernorm.weight";
    refused("llama", &[norm, "missing"], &|t, _| drop(t.remove(norm)));
    refused("llama", &["lm_head.weight", "missing", "tie_word_embeddings"], &|t, _| drop(t.remove("lm_head.weight")));
    refused("llama", &["missing", "2 more"], &|t, _| {
        t.retain(|name, _| !name.starts_with("model.layers.0.mlp."));
    });
    refused("llama", &["surplus.weight", "no llama has it"], &|t, _| {
        t.insert("surplus.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    refused("llama", &[norm, "[32]", "[1, 32]"], &|t, _| t.get_mut(norm).unwrap().1 = vec![1, 32]);
    refused("llama", &[norm, "I32", "BF16"], &|t, _| t.get_mut(norm).unwrap().0 = Dtype::I32);
    refused("qwen3", &["lm_head.weight", "tie_word_embeddings"], &|t, _| {
        let mut copy = t["model.embed_tokens.weight"].clone();
        copy.2[0] ^= 1;
        t.insert("lm_head.weight".into(), copy);
    });
    refused("qwen3_moe", &["experts.3.up_proj", "missing"], &|t, _| {
        t.remove("model.layers.0.mlp.experts.3.up_proj.weight");
    });
    // More layers than the configuration says are an error, but in GLM's and DeepSeek's files they predict several tokens.
    let more = |t: &mut Raw| {
        let extra = t[norm].clone();
        t.insert("model.layers.2.input_layernorm.weight".into(), extra.clone());
        t.insert("model.layers.2.eh_proj.weight".into(), extra);
    };
    refused("llama", &["model.layers.2."], &|t, _| more(t));
    changed("glm4_moe", |t, _| more(t)).unwrap();
    changed("deepseek_v3", |t, _| more(t)).unwrap();
    refused("deepseek_v2", &["model.layers.2."], &|t, _| more(t));
}

#[test]
fn scales_of_eight_bits_are_checked() {
    let refused = |words: &[&str], change: &dyn Fn(&mut Raw)| {
        let e = changed("fp8", |t, _| change(t)).unwrap_err();
        assert!(words.iter().all(|w| e.contains(w)), "{words:?} in: {e}");
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let scale = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    refused(&[scale, "missing"], &|t| drop(t.remove(scale)));
    refused(&[scale, "[2, 1]", "[1, 2]"], &|t| t.get_mut(scale).unwrap().1 = vec![2, 1]);
    refused(&[scale, "I32", "BF16"], &|t| t.get_mut(scale).unwrap().0 = Dtype::I32);
    refused(&[q, "F8_E5M2", "F8_E4M3 with a scale"], &|t| {
        t.remove(scale);
        t.get_mut(q).unwrap().0 = Dtype::F8_E5M2;
    });
    let norm = "model.layers.0.input_layernorm.weight";
    refused(&["norm.weight_scale_inv", "no qwen3 has it"], &|t| {
        t.insert(format!("{norm}_scale_inv"), (Dtype::F32, vec![1, 1], vec![0; 4]));
    });
    // What is wide in the file needs no scale, and a scale may have fewer bits.
    let plain = changed("fp8", |_, _| ()).unwrap();
    let half = changed("fp8", |t, _| {
        let (dtype, _, bytes) = t.get_mut(scale).unwrap();
        *dtype = Dtype::F16;
        *bytes = [0.5, 4.0].iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect();
    });
    let half = half.unwrap();
    for (row, before) in half[q].chunks(256).zip(plain[q].chunks(256)) {
        let signs = row.iter().zip(before).all(|(a, b)| a.signum() == b.signum());
        assert!(signs && row[..128].iter().all(|x| (x * 2.0 * 512.0).fract() == 0.0), "e4m3 halved");
    }
}

/// Of every family: projections in 8 bits, the rest in 16, as a folder that says so; and what is 8 bits already stays as it is.
#[test]
fn eight_bits_are_written_as_they_are_read() {
    for case in CASES.into_iter().chain(["fp8"]) {
        let from = golden_dir().join(case);
        let (config, out) = (weights::read_config(&from).unwrap(), TempDir::new().unwrap());
        weights::copy(&weights::Source::open(&from).unwrap(), out.path(), Dtype::F8_E4M3, BIG).unwrap();
        assert_eq!(weights::read_config(out.path()).unwrap(), config, "{case}");
        let said: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.path().join("config.json")).unwrap()).unwrap();
        let excepted = &said["quantization_config"]["modules_to_not_convert"];
        let excepted: Vec<&str> = excepted.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let (before, after) = (read(&config, &from).unwrap(), read(&config, out.path()).unwrap());
        let (old, new) = (raw(&from.join(MODEL)), raw(&out.path().join(MODEL)));
        for (name, x) in &before {
            let (dtype, shape, _) = &new[name];
            let eight = *dtype == Dtype::F8_E4M3;
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let projection = shape.len() == 2 && !name.contains("embed_tokens") && !excepted.contains(&module);
            assert_eq!(eight, projection, "{case}: {name}");
            assert_eq!(new.contains_key(&format!("{name}_scale_inv")), eight, "{case}: {name}");
            if case == "fp8" && eight {
                assert!(new[name] == old[name], "{name}");
                assert_eq!(after[name], *x, "{name}");
                continue;
            }
            let largest = x.iter().fold(0f64, |largest, x| largest.max(x.abs()));
            // Half of the last bit of a mantissa of three (or of seven), or of the smallest number.
            let near = |x: f64| if eight { (x.abs() / 16.0).max(largest / 448.0 / 1024.0) } else { x.abs() / 256.0 };
            let close = x.iter().zip(&after[name]).all(|(&x, y)| (x - y).abs() <= near(x) * (1.0 + 1e-6));
            assert!(close, "{case}: {name}");
        }
    }
    // 192 columns are neither within a block nor blocks.
    let config = Config { hidden_size: 192, ..weights::read_config(&golden_dir().join("llama")).unwrap() };
    let [from, out] = [0, 1].map(|_| TempDir::new().unwrap());
    save(&dev(), from.path(), &config, &empty(&config, DType::F32, Shard::WHOLE), DType::F32, BIG).unwrap();
    let source = weights::Source::open(from.path()).unwrap();
    let e = weights::copy(&source, out.path(), Dtype::F8_E4M3, BIG).map_err(text).unwrap_err();
    assert!(e.contains("multiples of 128") && std::fs::read_dir(out.path()).unwrap().count() == 0, "{e}");
}

/// As DeepSeek-V3 is published: the projections of its latents too, whose rows are no multiple of a block.
#[test]
fn latents_of_eight_bits() {
    let name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight";
    let plain = changed("deepseek_v3", |_, _| ()).unwrap();
    let eight = changed("deepseek_v3", |t, _| {
        let (dtype, shape, bytes) = t.get_mut(name).unwrap();
        // 1.5 everywhere, and a scale for the one block.
        (*dtype, *bytes) = (Dtype::F8_E4M3, vec![0x3c; shape.iter().product()]);
        t.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![1, 1], 2f32.to_le_bytes().to_vec()));
    });
    let eight = eight.unwrap();
    assert!(eight[name].len() == plain[name].len() && eight[name].iter().all(|&x| x == 3.0));
    assert!(plain.iter().all(|(other, x)| other == name || eight[other] == *x));
}

#[test]
fn harmless_surplus_is_left_out() {
    let plain = changed("qwen3", |_, _| ()).unwrap();
    let tied = changed("qwen3", |t, _| {
        let copy = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), copy);
        t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![2], vec![0; 8]));
    });
    assert_eq!(tied.unwrap(), plain);
    // Not tied, the same file has a head of its own.
    let untied = changed("qwen3", |t, c| {
        let copy = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), copy);
        c.tie_word_embeddings = false;
    });
    assert_eq!(untied.unwrap()["lm_head.weight"], plain["model.embed_tokens.weight"]);
}

#[test]
fn an_index_is_not_trusted() {
    let (_, config) = every_family().swap_remove(0);
    let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
    let with_index = |change: &dyn Fn(&Path, &mut serde_json::Value)| {
        let dir = TempDir::new().unwrap();
        save(&dev(), dir.path(), &config, &store, DType::F32, 2000).unwrap();
        let path = dir.path().join(INDEX);
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(dir.path(), &mut index);
        std::fs::write(&path, index.to_string()).unwrap();
        read(&config, dir.path()).unwrap_err()
    };
    let e = with_index(&|_, i| i["weight_map"]["lm_head.weight"] = "../../etc/passwd".into());
    assert!(e.contains("not the name of a file in this folder"), "{e}");
    let e = with_index(&|_, i| i["weight_map"]["lm_head.weight"] = "model-00001-of-00099.safetensors".into());
    assert!(e.contains("00099") && e.contains("cannot open"), "{e}");
    let e = with_index(&|_, i| i["weight_map"]["ghost"] = i["weight_map"]["lm_head.weight"].clone());
    assert!(e.contains("ghost") && e.contains("where the index puts it"), "{e}");
    let e = with_index(&|_, i| i["weight_map"] = serde_json::json!([1, 2]));
    assert!(e.contains("not an index"), "{e}");
    let e = with_index(&|dir, i| {
        let first = i["weight_map"]["model.embed_tokens.weight"].as_str().unwrap();
        std::fs::copy(dir.join(first), dir.join("twin.safetensors")).unwrap();
        i["weight_map"]["twin"] = "twin.safetensors".into();
    });
    assert!(e.contains("is in") && e.contains("too"), "{e}");
    let dir = TempDir::new().unwrap();
    assert!(read(&config, dir.path()).unwrap_err().contains("no weights here"));
    assert!(text(weights::read_config(dir.path()).unwrap_err()).contains("config.json: cannot read"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(text(weights::read_config(dir.path()).unwrap_err()).contains("model_type: missing"));
}

#[test]
fn a_rank_reads_its_experts() {
    for (name, config) in all_families() {
        let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
        let whole = by_name(&dev(), &store);
        let dir = TempDir::new().unwrap();
        save(&dev(), dir.path(), &config, &store, DType::F32, 3000).unwrap();
        let mut all = Snapshot::default();
        for rank in 0..2 {
            let mut share = empty(&config, DType::F32, Shard { rank, size: 2 });
            load(&dev(), dir.path(), &config, &mut share).unwrap();
            for (tensor, w) in by_name(&dev(), &share) {
                assert_eq!(w, whole[&tensor], "{name}: {tensor}");
            }
            all.append(Snapshot::of(&dev(), &share, ""));
        }
        // Together the ranks save what one would.
        let again = TempDir::new().unwrap();
        write_model(again.path(), &config, &all.listed(), DType::F32, BIG).unwrap();
        assert_eq!(read(&config, again.path()).unwrap(), whole, "{name}");
    }
}

#[test]
fn a_snapshot_is_written_later_and_comes_back_exactly() {
    for (name, config) in all_families() {
        for dtype in [DType::F32, DType::F64] {
            let (_, m) = model(&dev(), &config, dtype, Recomputation::None, Shard::WHOLE, 3);
            let (_, v) = model(&dev(), &config, dtype, Recomputation::None, Shard::WHOLE, 4);
            let matrices = |p: &wudao_model::store::Param| p.kind == Kind::Matrix;
            let mut snapshot = Snapshot::of(&dev(), &m, "m.");
            snapshot.append(Snapshot::of_some(&dev(), &v, "v.", matrices));
            assert!(snapshot.tensors.iter().any(|t| t.name == "m.model.embed_tokens.weight"));
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("optimizer.safetensors");
            let write = move || write_tensors(&path, &snapshot.listed()).map(|_| path);
            let path = std::thread::spawn(write).join().unwrap().unwrap();
            let mut again = empty(&config, dtype, Shard::WHOLE);
            load_into(&dev(), &path, "m.", &mut again).unwrap();
            assert_eq!(by_name(&dev(), &again), by_name(&dev(), &m), "{name}");
            let mut again = empty(&config, dtype, Shard::WHOLE);
            load_some(&dev(), &path, "v.", &mut again, matrices).unwrap();
            for (home, p) in v.params() {
                let (got, was) = (again.get(home).to_f64(&dev()), v.get(home).to_f64(&dev()));
                if matrices(&p) { assert_eq!(got, was) } else { assert!(got.iter().all(|x| *x == 0.0)) }
            }
            // The second moment of everything is not there, and what is there has no place among the biases.
            let e = load_into(&dev(), &path, "v.", &mut again).map_err(text).unwrap_err();
            assert!(e.contains("\"v.model") && e.contains("missing"), "{e}");
            let biases = |p: &wudao_model::store::Param| p.kind == Kind::Bias;
            let e = load_some(&dev(), &path, "v.", &mut again, biases).map_err(text).unwrap_err();
            assert!(e.contains("no place for it"), "{e}");
        }
    }
}

#[test]
fn a_model_is_the_same_from_a_snapshot_as_from_the_store() {
    for (name, config) in all_families() {
        let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
        for dtype in [DType::F32, DType::Bf16] {
            let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let snapshot = Snapshot::of(&dev(), &store, "");
            assert_eq!(snapshot.bytes(), 4 * store.layout().len() as u64);
            let one = save(&dev(), a.path(), &config, &store, dtype, 3000).unwrap();
            assert_eq!(one, write_model(b.path(), &config, &snapshot.listed(), dtype, 3000).unwrap(), "{name}");
        }
        let mut cut = Snapshot::of(&dev(), &store, "");
        let lost = cut.tensors.pop().unwrap();
        let dir = TempDir::new().unwrap();
        let e = write_model(dir.path(), &config, &cut.listed(), DType::F32, BIG).map_err(text).unwrap_err();
        assert!(e.contains(&lost.name), "{e}");
    }
}

#[test]
fn small_files_are_hashed_and_replaced() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.json");
    weights::write_file(&path, b"something longer").unwrap();
    let w = weights::write_file(&path, b"abc").unwrap();
    assert_eq!(w.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!((w.bytes, w.name.as_str()), (3, "state.json"));
    assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    let nowhere = dir.path().join("no such folder").join("x");
    assert!(text(weights::write_file(&nowhere, b"").unwrap_err()).contains("cannot create"));
}

/// A header and data, whatever they say.
fn file_of(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn crafted_headers_are_answered() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(MODEL);
    let answer = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let e = weights::tensors(&path).map_err(text).unwrap_err();
        assert!(e.contains(MODEL), "{e}");
        e
    };
    assert!(answer(b"").contains("cut short"));
    assert!(answer(&[0; 7]).contains("cut short"));
    assert!(answer(&u64::MAX.to_le_bytes()).contains("longer than any"));
    assert!(answer(&1000u64.to_le_bytes()).contains("cut short"));
    assert!(answer(&file_of("not json", 4)).contains("header is wrong"));
    let one = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    assert!(answer(&file_of(&one("[2]", 0, 8), 7)).contains("cut short"));
    assert!(answer(&file_of(&one("[2]", 0, 8), 9)).contains("1 bytes more"));
    assert!(answer(&file_of(&one("[3]", 0, 8), 8)).contains("header is wrong"));
    assert!(answer(&file_of(&one("[2]", 4, 12), 12)).contains("header is wrong"));
    assert!(answer(&file_of(&one("[2]", 8, 0), 8)).contains("header is wrong"));
    answer(&file_of(&one("[9223372036854775807, 9223372036854775807]", 0, 8), 8));
    // Offsets that run past the end of all addresses.
    const MOST: u64 = (1 << 61) - 1;
    let huge = (0..8).map(|i| {
        let (from, to) = (i * MOST, (i + 1) * MOST);
        format!(r#""t{i}":{{"dtype":"U8","shape":[{MOST}],"data_offsets":[{from},{to}]}}"#)
    });
    let huge: Vec<String> = huge.collect();
    assert!(answer(&file_of(&format!("{{{}}}", huge.join(",")), 8)).contains("cut short"));
    // An empty file of tensors is a file, but not a model.
    std::fs::write(&path, file_of("{}", 0)).unwrap();
    assert_eq!(weights::tensors(&path).unwrap(), []);
    let (_, config) = every_family().swap_remove(0);
    assert!(read(&config, dir.path()).unwrap_err().contains("missing"));
}

/// A model in shards, saved once.
static SHARDED: LazyLock<TempDir> = LazyLock::new(|| {
    let (_, config) = every_family().swap_remove(1);
    let (_, store) = model(&dev(), &config, DType::F32, Recomputation::None, Shard::WHOLE, 3);
    let dir = TempDir::new().unwrap();
    save(&dev(), dir.path(), &config, &store, DType::F32, 3000).unwrap();
    dir
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A model's file with a few bytes changed, most of them in the header, or cut, is read or refused: no panic, and a
    /// refusal changes no weight.
    #[test]
    fn garbled_files_are_answered(
        case in 0..CASES.len(),
        edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<u32>()),
    ) {
        let from = golden_dir().join(CASES[case]);
        let config = weights::read_config(&from).unwrap();
        let mut bytes = std::fs::read(from.join(MODEL)).unwrap();
        for (at, byte) in edits {
            let at = at as usize % bytes.len().min(8000);
            bytes[at] = byte;
        }
        let whole = bytes.len();
        bytes.truncate(cut.map_or(whole, |cut| cut as usize % whole));
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join(MODEL), &bytes).unwrap();
        let mut store = empty(&config, DType::F32, Shard::WHOLE);
        if let Err(e) = load(&dev(), dir.path(), &config, &mut store) {
            prop_assert!(e.to_string().contains(&dir.path().display().to_string()));
            prop_assert!(by_name(&dev(), &store).values().flatten().all(|x| *x == 0.0));
        } else {
            prop_assert_eq!(bytes.len(), whole);
        }
    }

    /// So is an index.
    #[test]
    fn garbled_indices_are_answered(edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4)) {
        let (_, config) = every_family().swap_remove(1);
        let dir = TempDir::new().unwrap();
        for file in std::fs::read_dir(SHARDED.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        let path = dir.path().join(INDEX);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in edits {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(e) = read(&config, dir.path()) {
            prop_assert!(e.contains(&dir.path().display().to_string()));
        }
    }
}
