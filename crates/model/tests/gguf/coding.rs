//! Blocks, fewer bits, and the values of keys.

use super::{dev, folder, loaded, wide, written};
use crate::common::by_name;
use crate::common::families::every_family;
use std::collections::BTreeMap;
use wudao_model::gguf::{self, Field, File, TensorType, Value};
use wudao_model::weights::{self, Dtype, Source};

#[test]
fn matrices_are_coded_as_asked_and_others_are_not() {
    let config = wide();
    let (dir, path) = written(&config, TensorType::Q4_0, &[]).unwrap();
    let file = File::open(&path).unwrap();
    let kind = |name: &str| file.tensor(name).unwrap().kind.name();
    assert_eq!(kind("token_embd.weight"), "Q8_0");
    assert_eq!(kind("output.weight"), "Q8_0");
    assert_eq!(kind("blk.0.attn_q.weight"), "Q4_0");
    assert_eq!(kind("blk.0.attn_q.bias"), "F32");
    assert_eq!(kind("blk.1.ffn_norm.weight"), "F32");
    // Raw blocks, row by row in Hugging Face's order, are the coded rows of the folder.
    let source = Source::open(dir.path()).unwrap();
    for (part, shape) in
        [("model.layers.0.self_attn.q_proj.weight", [64, 64]), ("model.layers.1.mlp.down_proj.weight", [64, 96])]
    {
        let rows = file.part(&config, part, &shape).unwrap();
        assert_eq!((rows.kind(), rows.shape()), (TensorType::Q4_0, shape));
        let plain = source.tensor(part, &shape).unwrap();
        for i in 0..shape[0] {
            let row: Vec<f32> =
                plain.read(i..i + 1, Dtype::F32).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(rows.row(i), wudao_device::cpu::QuantKind::Int4.encode(&row), "{part} row {i}");
        }
    }
    // A second conversion to the same type copies blocks.
    let again = dir.path().join("again.gguf");
    gguf::write(&again, &Source::open(&path).unwrap(), TensorType::Q4_0, &[]).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
    // Rows of 8 columns are no blocks of 32.
    let (_, narrow) = every_family().swap_remove(0);
    let (_dir, path) = written(&narrow, TensorType::Q8_0, &[]).unwrap();
    assert_eq!(File::open(&path).unwrap().tensor("blk.0.attn_q.weight").unwrap().kind, TensorType::BF16);
}

#[test]
fn a_folder_in_fewer_bits_is_rounded_once() {
    let config = wide();
    let (dir, store) = folder(&config);
    for (dtype, name) in [(Dtype::F16, "float16"), (Dtype::BF16, "bfloat16")] {
        let out = dir.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let files = weights::copy(&Source::open(dir.path()).unwrap(), &out, dtype, 20_000).unwrap();
        assert!(files.len() > 4, "in shards");
        assert!(std::fs::read_to_string(out.join("config.json")).unwrap().contains(name));
        let rounded = |x: f64| match dtype {
            Dtype::F16 => half::f16::from_f64(x).to_f64(),
            _ => half::bf16::from_f64(x).to_f64(),
        };
        let expected: BTreeMap<String, Vec<f64>> =
            by_name(&dev(), &store).into_iter().map(|(n, x)| (n, x.into_iter().map(rounded).collect())).collect();
        assert_eq!(loaded(&out, &config).unwrap(), expected);
    }
}

#[test]
fn values_come_back_as_they_were() {
    let fields: Vec<(String, Field)> = [
        ("a", Field::Whole(7)),
        ("b", Field::Number(1e-5)),
        ("c", Field::Flag(true)),
        ("d", Field::Text("悟道".into())),
        ("e", Field::Wholes(vec![-1, 2])),
        ("f", Field::Numbers(vec![0.5, -0.25])),
        ("g", Field::Texts(vec!["".into(), "a b".into()])),
    ]
    .map(|(k, f)| (format!("test.{k}"), f))
    .to_vec();
    let (_dir, path) = written(&wide(), TensorType::F32, &fields).unwrap();
    let file = File::open(&path).unwrap();
    let get = |key: &str| file.get(&format!("test.{key}")).unwrap();
    assert_eq!(get("a").whole(), Some(7));
    assert_eq!(get("b").number(), Some(1e-5), "the decimal, not its nearest number of 32 bits");
    assert_eq!(get("c").flag(), Some(true));
    assert_eq!(get("d").text(), Some("悟道"));
    assert_eq!(
        get("e").array().unwrap().all(|v| if let Value::Signed(n) = v { Some(n) } else { None }),
        Some(vec![-1, 2])
    );
    assert_eq!(get("f").array().unwrap().all(Value::number), Some(vec![0.5, -0.25]));
    assert_eq!(get("g").array().unwrap().all(Value::text), Some(vec!["", "a b"]));
    assert_eq!(get("g").array().unwrap().all(Value::whole), None);
    assert_eq!(file.get("test.h"), None);
    assert!(weights::tensors(&path).unwrap().iter().any(|t| t.name == "blk.0.ffn_up.weight" && t.shape == [96, 64]));
}
