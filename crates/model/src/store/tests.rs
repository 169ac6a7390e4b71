//! Sums of gradients: what products say of their squares.

use super::*;
use crate::Config;
use crate::common::families::every_family;
use wudao_device::Cpu;
use wudao_device::check::{Random, assert_close};

fn brings_squares(p: &Param) -> bool {
    matches!(p.kind, Kind::Matrix | Kind::Output | Kind::Head | Kind::Embedding)
}

/// Gradients of all matrices that are made by products, and of embeddings by rows, too, of numbers of about such a size.
/// Experts of even number have no rows in the last of two products.
fn gradients(cpu: &Cpu, config: &Config, shard: Shard, size: f64, poison: Option<f64>) -> Store<Cpu> {
    let (mut r, rows, factor) = (Random(5), 40, size.sqrt());
    let mut random = |width: usize, size: f64| {
        let mut values: Vec<f64> = r.values(rows * width).iter().map(|x| x * size).collect();
        values[0] = poison.unwrap_or(values[0]);
        let mut x = Tensor::new(cpu, [rows, width], DType::F32);
        cpu.copy(Tensor::from_host(cpu, [rows, width], &values).view(), x.view_mut());
        x
    };
    let layout = Layout::new(config, shard);
    let mut grads = Store::gradients(cpu, &layout, DType::F32);
    for time in 0..2 {
        for (id, p) in layout.dense().filter(|(_, p)| brings_squares(p)) {
            let add = if time == 0 { Store::add_part } else { Store::add };
            let embedding = p.kind == Kind::Embedding;
            if !embedding || config.tie_word_embeddings {
                add(
                    &mut grads,
                    cpu,
                    Gemm::TN,
                    id,
                    random(p.shape[0], factor).view(),
                    random(p.shape[1], factor).view(),
                );
            }
            if embedding {
                let ids: Vec<u32> = (0..rows).map(|i| (i * i % p.shape[0]) as u32).collect();
                grads.add_rows(cpu, id, &ids, random(p.shape[1], size).view());
            }
        }
        for (layer, experts) in layout.experts.iter().enumerate() {
            let n = experts.len();
            let band = |e: usize| match time {
                0 => rows * e / n..rows * (e + 1) / n,
                _ => rows * (e / 2) / (n / 2)..rows * e.div_ceil(2) / (n / 2),
            };
            let bands: Vec<_> = (0..n).map(band).collect();
            for part in ExpertPart::BOTH {
                let [n, k] = experts[0][part as usize].shape;
                grads.add_experts(cpu, layer, part, &bands, random(n, factor).view(), random(k, factor).view());
            }
        }
    }
    grads.end_sum(cpu);
    grads
}

/// Numbers that products speak for.
fn said(grads: &Store<Cpu>, cpu: &Cpu) -> usize {
    grads.squares(cpu, true).1
}

#[test]
fn squares_are_those_that_are_read() {
    let cpu = Cpu::new(2);
    for (name, config) in every_family() {
        for size in [1e-4, 1e-9, 1.0] {
            let grads = gradients(&cpu, &config, Shard::WHOLE, size, None);
            let layout = grads.layout();
            let (read, none) = grads.squares(&cpu, false);
            assert_eq!(none, 0);
            assert_close(name, "squares", DType::F32, &read, &grads.sums_of_squares(&cpu));
            // Those of even number were not touched in the end.
            let dense: usize = layout.dense().filter(|(_, p)| brings_squares(p)).map(|(_, p)| p.at.len()).sum();
            let experts: usize = layout.experts().filter(|(_, e, _)| e % 2 == 1).map(|(.., p)| p[1].at.end).sum();
            match size {
                1.0 => assert!(said(&grads, &cpu) < dense, "{name}: some numbers are too large"),
                _ => assert_eq!(said(&grads, &cpu), dense + experts, "{name}"),
            }
            if size == 1e-9 {
                assert_eq!(grads.sums_of_squares(&cpu), read, "{name}: cut squares are nothing");
            }
        }
    }
}

/// Nothing is said of what may have been written since.
#[test]
fn whoever_writes_is_believed() {
    let cpu = Cpu::new(2);
    for (name, config) in every_family() {
        let make = || gradients(&cpu, &config, Shard::WHOLE, 1e-4, None);
        let mut grads = make();
        for (home, _) in grads.params() {
            cpu.fill(1.0, grads.get_mut(home));
            let read = grads.squares(&cpu, false).0;
            assert_close(name, "squares", DType::F32, &read, &grads.sums_of_squares(&cpu));
        }
        let layout = grads.layout().clone();
        let n = layout.len() - layout.dense_len() + layout.trainable();
        assert_eq!(grads.sums_of_squares(&cpu).iter().sum::<f64>(), n as f64, "{name}: ones");

        let mut grads = make();
        for layer in 0..layout.experts.len() {
            for part in ExpertPart::BOTH {
                grads.experts_mut(layer, part);
            }
        }
        let dense = said(&grads, &cpu);
        assert!(dense > 0 && dense < layout.dense_len());
        grads.dense_mut();
        assert_eq!(said(&grads, &cpu), 0, "{name}");
        let mut grads = make();
        grads.trainable_mut();
        assert_eq!(said(&grads, &cpu), 0, "{name}");
        let mut grads = make();
        grads.clear(&cpu);
        assert_eq!((said(&grads, &cpu), grads.sums_of_squares(&cpu)), (0, [0.0; 2]), "{name}");
        let mut grads = make();
        grads.begin_sum(&cpu);
        grads.end_sum(&cpu);
        let embeddings = layout.dense().filter(|(_, p)| p.kind == Kind::Embedding);
        let zeros: usize = embeddings.map(|(_, p)| p.at.len()).sum();
        assert_eq!((said(&grads, &cpu), grads.sums_of_squares(&cpu)), (zeros, [0.0; 2]), "{name}");
    }
}

#[test]
fn what_is_not_finite_is_seen() {
    let cpu = Cpu::new(2);
    for (name, config) in every_family() {
        for poison in [f64::NAN, f64::INFINITY] {
            let [dense, experts] = gradients(&cpu, &config, Shard::WHOLE, 1e-4, Some(poison)).sums_of_squares(&cpu);
            assert!(!(dense + experts).is_finite(), "{name}");
        }
    }
}

/// Ranks sum the dense part after its products, so these say nothing of it.
#[test]
fn ranks_read_what_they_sum() {
    let cpu = Cpu::new(2);
    for (name, config) in every_family().into_iter().filter(|(_, config)| config.moe.is_some()) {
        let grads = gradients(&cpu, &config, Shard { rank: 1, size: 2 }, 1e-4, None);
        let all: usize = grads.layout().experts().map(|(.., p)| p[1].at.end).sum();
        assert!((1..=all).contains(&said(&grads, &cpu)), "{name}");
        let read = grads.squares(&cpu, false).0;
        assert_eq!(grads.sums_of_squares(&cpu)[0], read[0], "{name}");
    }
}
