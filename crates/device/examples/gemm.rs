//! Speed of matrix products: `cargo run --release -p wudao-device --example gemm [THREADS [WORD …]]`.
//!
//! Medians of several runs, beside the machine's peak measured in the same run: on a shared machine only the ratio says
//! something. With words, only the lines that contain all of them; a first word `unit` multiplies f32 on the matrix unit, as
//! training does.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use wudao_device::{Cpu, DType, Device, Gemm, Operand, Tensor};

const NN: Gemm = Gemm::NN;
const NT: Gemm = Gemm::NT;
/// As training makes it: with the squares of its numbers.
const TN: Gemm = Gemm::TN.measured(true);

/// `C[M, N]` of a sum over K: name, form, M, N, K.
const PRODUCTS: &[(&str, Gemm, [usize; 3])] = &[
    ("A·Bᵀ forward", NT, [4096, 1536, 512]),
    ("A·B  input gradient", NN, [4096, 512, 1536]),
    ("Aᵀ·B weight gradient", TN, [512, 1536, 4096]),
    ("A·Bᵀ", NT, [4096, 512, 512]),
    ("A·Bᵀ", NT, [512, 768, 512]),
    ("A·B ", NN, [512, 768, 512]),
    ("A·Bᵀ", NT, [64, 768, 512]),
    ("A·B ", NN, [64, 768, 512]),
    ("A·Bᵀ head", NT, [2048, 32000, 512]),
    ("A·B  head", NN, [2048, 512, 32000]),
    ("Aᵀ·B head", TN, [32000, 512, 2048]),
    ("A·Bᵀ router", NT, [4096, 8, 512]),
    ("A·Bᵀ router", NT, [4096, 64, 512]),
    ("Aᵀ·B router", TN, [64, 512, 4096]),
    ("Aᵀ·B router", TN, [8, 512, 4096]),
    ("A·Bᵀ decode", NT, [1, 1536, 512]),
    ("A·Bᵀ decode", NT, [1, 32000, 512]),
    ("A·Bᵀ decode", NT, [4, 32000, 512]),
    ("A·Bᵀ decode", NT, [8, 32000, 512]),
];

/// Experts of so many rows each: form (TN is the outer one), number, `[M, N, K]` of one.
const EXPERTS: &[(Gemm, usize, [usize; 3])] = &[
    (NT, 8, [1024, 1536, 512]),
    (NN, 8, [1024, 512, 1536]),
    (TN, 8, [1536, 512, 1024]),
    (NT, 8, [1024, 512, 768]),
    (NN, 8, [1024, 768, 512]),
    (TN, 8, [512, 768, 1024]),
    (NT, 64, [256, 512, 512]),
    (NN, 64, [256, 512, 512]),
    (TN, 64, [512, 512, 256]),
    (NT, 64, [256, 512, 256]),
    (NN, 64, [256, 256, 512]),
    (TN, 64, [512, 256, 256]),
    (NT, 64, [128, 512, 512]),
    (NT, 64, [64, 512, 512]),
    (NT, 64, [48, 512, 512]),
    (NT, 64, [32, 512, 512]),
    (NT, 64, [16, 512, 512]),
    (NN, 64, [128, 512, 512]),
    (NN, 64, [64, 512, 512]),
    (NN, 64, [32, 512, 512]),
    (NN, 64, [16, 512, 512]),
    (TN, 64, [512, 512, 64]),
    (TN, 64, [512, 512, 16]),
    (NT, 4, [1, 1536, 512]),
];

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let mut words: Vec<String> = std::env::args().skip(2).collect();
    let mut cpu = Cpu::new(threads);
    if words.first().is_some_and(|word| word == "unit") {
        words.remove(0);
        cpu = cpu.with_matrix_unit();
    }
    println!("{threads} threads, {}: reads {:.1} GB/s", cpu.instructions(), cpu.read_gbytes_per_s());
    if threads > 1 && words.is_empty() {
        // Two tasks that wait for each other: how long until another thread has joined.
        let hand_off = median(|| {
            let arrived = AtomicUsize::new(0);
            cpu.pool().run(2, |_| {
                arrived.fetch_add(1, Relaxed);
                while arrived.load(Relaxed) < 2 {
                    std::hint::spin_loop();
                }
            });
        });
        println!("hand-off {:.2} µs", hand_off * 1e6);
    }
    println!("{:<52}{:>10}{:>9}{:>9}{:>9}", "C[M,N], K", "ms", "GFLOP/s", "of peak", "GB/s");
    use DType::{Bf16, F32};
    for (types, operands, result) in [("f32", F32, F32), ("bf16 to f32", Bf16, F32), ("bf16 to bf16", Bf16, Bf16)] {
        let peak = cpu.peak_gflops(operands);
        let wanted = |g: Gemm, name: &str, [m, n, k]: [usize; 3]| {
            let name = format!("{types}: {name} {m}×{n}, {k}");
            let wanted = !(g.ta && result == Bf16) && words.iter().all(|word| name.contains(word.as_str()));
            wanted.then_some(name)
        };
        let report = |name: &str, [m, n, k]: [usize; 3], experts: usize, f: &mut dyn FnMut()| {
            let bytes = experts * (operands.size() * (m * k + k * n) + result.size() * m * n);
            line(name, median(f), peak, 2 * experts * m * n * k, bytes);
        };
        for &(name, g, [m, n, k]) in PRODUCTS {
            let Some(name) = wanted(g, name, [m, n, k]) else { continue };
            let a = Tensor::zeros(&cpu, if g.ta { [k, m] } else { [m, k] }, operands);
            let b = Tensor::zeros(&cpu, if g.tb { [n, k] } else { [k, n] }, operands);
            let mut c = Tensor::zeros(&cpu, [m, n], result);
            report(&name, [m, n, k], 1, &mut || {
                if g.ta {
                    cpu.gemm_bands_outer(g, std::slice::from_ref(&(0..k)), a.view(), b.view(), vec![c.view_mut()]);
                } else {
                    cpu.gemm(g, a.view(), b.view(), c.view_mut());
                }
            });
        }
        for &(g, experts, [m, n, k]) in EXPERTS {
            let name = format!(
                "{experts} experts {}",
                if g.ta {
                    "Aᵀ·B"
                } else if g.tb {
                    "A·Bᵀ"
                } else {
                    "A·B "
                }
            );
            let Some(name) = wanted(g, &name, [m, n, k]) else { continue };
            let rows = if g.ta { k } else { m };
            let bands: Vec<_> = (0..experts).map(|e| e * rows..(e + 1) * rows).collect();
            let a = Tensor::zeros(&cpu, [experts * rows, if g.ta { m } else { k }], operands);
            if g.ta {
                let b = Tensor::zeros(&cpu, [experts * rows, n], operands);
                let mut c: Vec<_> = (0..experts).map(|_| Tensor::zeros(&cpu, [m, n], result)).collect();
                report(&name, [m, n, k], experts, &mut || {
                    cpu.gemm_bands_outer(g, &bands, a.view(), b.view(), c.iter_mut().map(Tensor::view_mut).collect());
                });
            } else {
                let shape = if g.tb { [n, k] } else { [k, n] };
                let b: Vec<_> = (0..experts).map(|_| Tensor::zeros(&cpu, shape, operands)).collect();
                let b: Vec<Operand<Cpu>> = b.iter().map(|b| b.view().into()).collect();
                let mut c = Tensor::zeros(&cpu, [experts * rows, n], result);
                report(&name, [m, n, k], experts, &mut || cpu.gemm_bands(g, &bands, a.view(), &b, c.view_mut()));
            }
        }
    }
}

/// Median seconds of a run, of about a fifth of a second of runs.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.2 {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn line(name: &str, s: f64, peak: f64, flops: usize, bytes: usize) {
    let (gflops, gbytes) = (flops as f64 / s / 1e9, bytes as f64 / s / 1e9);
    println!("{name:<52}{:>10.3}{gflops:>9.1}{:>8.0}%{gbytes:>9.1}", s * 1e3, 100.0 * gflops / peak);
}
