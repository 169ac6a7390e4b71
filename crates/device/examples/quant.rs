//! Speed of products with coded weights: `cargo run --release -p wudao-device --example quant [THREADS [WORD …]]`.
//!
//! Medians of several runs, and the fastest: on a shared machine they may be far apart. One row at a time is bound by memory: the figure to look at is GB/s of weights, beside the
//! speed of plain reading measured in the same run; each call takes another matrix of a set that no cache holds. Many rows
//! are bound by arithmetic: GOP/s, of which the bf16 product of the same shape, also in the table, is the measure. With
//! words, only the lines that contain all of them.

use std::ops::Range;
use std::time::Instant;
use wudao_device::check::Random;
use wudao_device::cpu::{BLOCK, QuantKind, QuantMatrix};
use wudao_device::{Cpu, DType, Device, Gemm, Operand, Tensor};

/// Bytes of weights that a measurement goes through before it comes back to the first.
const SET: usize = 192 << 20;

/// Products `[T, N, K]`: of a small and of a middle-sized model, and a head.
const PRODUCTS: &[[usize; 3]] = &[
    [1, 1024, 1024],
    [1, 2048, 2048],
    [1, 32000, 1024],
    [2, 2048, 2048],
    [4, 2048, 2048],
    [16, 2048, 2048],
    [64, 1024, 1024],
    [512, 1024, 1024],
    [512, 576, 1536],
    [512, 2048, 2048],
];

/// Experts, rows of each, N, K.
const EXPERTS: &[(usize, [usize; 3])] =
    &[(4, [1, 1024, 1024]), (4, [1, 1024, 512]), (32, [2, 1024, 1024]), (32, [64, 1024, 1024]), (32, [64, 1024, 512])];

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let words: Vec<String> = std::env::args().skip(2).collect();
    let cpu = Cpu::new(threads);
    println!("{threads} threads, {}: read {:.1} GB/s", cpu.quant_instructions(), cpu.read_gbytes_per_s());
    println!("{:<44}{:>10}{:>9}{:>9}{:>10}{:>9}{:>9}", "y[T,N], K", "ms", "GOP/s", "GB/s", "best ms", "GOP/s", "GB/s");
    let wanted = |name: &str| words.iter().all(|word| name.contains(word.as_str()));
    for (experts, [t, n, k]) in PRODUCTS.iter().map(|&p| (1, p)).chain(EXPERTS.iter().copied()) {
        let bands: Vec<_> = (0..experts).map(|e| e * t..(e + 1) * t).collect();
        let x = Tensor::from_host(&cpu, [experts * t, k], &values(1, experts * t * k));
        let mut y = Tensor::zeros(&cpu, [experts * t, n], DType::F32);
        let ops = 2 * experts * t * n * k;
        for kind in QuantKind::ALL {
            let name = name(&format!("{kind:?}"), experts, [t, n, k]);
            if !wanted(&name) {
                continue;
            }
            let weights = values(2, n * k);
            let (blocks, row) = (kind.encode(&weights), k / BLOCK * kind.block_bytes());
            let of = || QuantMatrix::from_blocks(&cpu, kind, [n, k], |i| &blocks[i * row..][..row]).expect("blocks");
            let bytes = experts * of().bytes();
            let set: Vec<Vec<_>> = (0..copies(bytes)).map(|_| (0..experts).map(|_| of()).collect()).collect();
            let set: Vec<Vec<&QuantMatrix>> = set.iter().map(|w| w.iter().collect()).collect();
            let mut turn = set.iter().cycle();
            let seconds = times(|| {
                let w = turn.next().expect("a set");
                cpu.quant(&bands, x.view(), w, false, y.view_mut());
            });
            line(&name, seconds, ops, bytes);
        }
        let name = name("Bf16", experts, [t, n, k]);
        if wanted(&name) {
            bf16(&cpu, &name, &bands, [t, n, k]);
        }
    }
}

/// The same with bf16 on all sides.
fn bf16(cpu: &Cpu, name: &str, bands: &[Range<usize>], [t, n, k]: [usize; 3]) {
    let (experts, bytes) = (bands.len(), bands.len() * n * k * 2);
    let x = Tensor::zeros(cpu, [experts * t, k], DType::Bf16);
    let mut y = Tensor::zeros(cpu, [experts * t, n], DType::F32);
    let weights = || Tensor::zeros(cpu, [n, k], DType::Bf16);
    let set: Vec<Vec<_>> = (0..copies(bytes)).map(|_| (0..experts).map(|_| weights()).collect()).collect();
    let set: Vec<Vec<Operand<Cpu>>> = set.iter().map(|w| w.iter().map(|w| w.view().into()).collect()).collect();
    let mut turn = set.iter().cycle();
    let seconds = times(|| {
        let w = turn.next().expect("a set");
        cpu.gemm_bands(Gemm::NT, bands, x.view(), w, y.view_mut());
    });
    line(name, seconds, 2 * experts * t * n * k, bytes);
}

fn values(seed: u64, n: usize) -> Vec<f32> {
    Random(seed).values(n).into_iter().map(|x| x as f32).collect()
}

/// Matrices of a set.
fn copies(bytes: usize) -> usize {
    (SET / bytes).clamp(1, 64)
}

fn name(kind: &str, experts: usize, [t, n, k]: [usize; 3]) -> String {
    let experts = if experts > 1 { format!("{experts} experts ") } else { String::new() };
    format!("{kind}: {experts}{t}×{n}, {k}")
}

/// Median and least seconds of a run, of about a fifth of a second of runs.
fn times(mut f: impl FnMut()) -> [f64; 2] {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.2 {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[0]]
}

fn line(name: &str, seconds: [f64; 2], ops: usize, bytes: usize) {
    print!("{name:<44}");
    for s in seconds {
        print!("{:>10.3}{:>9.1}{:>9.1}", s * 1e3, ops as f64 / s / 1e9, bytes as f64 / s / 1e9);
    }
    println!();
}
