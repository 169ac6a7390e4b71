//! Speed of matrix products: `cargo run --release -p wudao-device --example gemm [THREADS]`.
//!
//! Medians of several runs, beside the machine's peak measured in the same run: on a shared machine only the ratio says
//! something.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use wudao_device::{Cpu, DType, Device, Gemm, Tensor};

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let cpu = Cpu::new(threads);
    let (peak, read) = (cpu.peak_gflops(), cpu.read_gbytes_per_s());
    println!("{threads} threads, {}: peak {peak:.0} GFLOP/s, read {read:.1} GB/s", cpu.instructions());
    if threads > 1 {
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
    println!("{:<34}{:>10}{:>9}{:>9}{:>9}", "C[M,N], K", "ms", "GFLOP/s", "of peak", "GB/s");
    let (nn, nt, tn) = (Gemm::NN, Gemm::NT, Gemm::TN_ACC);
    for (name, g, m, n, k) in [
        ("A·Bᵀ forward", nt, 4096, 1536, 512),
        ("A·B  input gradient", nn, 4096, 512, 1536),
        ("Aᵀ·B weight gradient", tn, 512, 1536, 4096),
        ("A·Bᵀ", nt, 512, 768, 512),
        ("A·B", nn, 512, 768, 512),
        ("A·Bᵀ", nt, 64, 768, 512),
        ("A·B", nn, 64, 768, 512),
        ("A·Bᵀ head", nt, 512, 32000, 512),
        ("A·B  head", nn, 512, 512, 32000),
        ("Aᵀ·B head", tn, 32000, 512, 512),
        ("A·Bᵀ router", nt, 4096, 8, 512),
        ("A·Bᵀ decode", nt, 1, 1536, 512),
        ("A·Bᵀ decode", nt, 1, 32000, 512),
        ("A·Bᵀ decode", nt, 4, 32000, 512),
        ("A·Bᵀ decode", nt, 8, 32000, 512),
    ] {
        let f32s = |[rows, cols]: [usize; 2]| Tensor::zeros(&cpu, [rows, cols], DType::F32);
        let a = f32s(if g.ta { [k, m] } else { [m, k] });
        let b = f32s(if g.tb { [n, k] } else { [k, n] });
        let mut c = f32s([m, n]);
        let s = median(|| cpu.gemm(g, a.view(), b.view(), c.view_mut()));
        report(&format!("{name} {m}×{n}, {k}"), s, peak, 2 * m * n * k, 4 * (m * k + k * n + m * n));
    }
    for (name, experts, rows, n, k) in [
        ("experts", 8usize, 1024usize, 1536usize, 512usize),
        ("experts", 64, 256, 512, 512),
        ("experts", 64, 64, 768, 512),
        ("decode, experts", 4, 1, 1536, 512),
    ] {
        let total = experts * rows;
        let a = Tensor::zeros(&cpu, [total, k], DType::F32);
        let mut c = Tensor::zeros(&cpu, [total, n], DType::F32);
        let w: Vec<_> = (0..experts).map(|_| Tensor::zeros(&cpu, [n, k], DType::F32)).collect();
        let bands: Vec<_> = (0..experts).map(|e| e * rows..(e + 1) * rows).collect();
        let (flops, bytes) = (2 * total * n * k, 4 * (total * (k + n) + experts * n * k));
        let b: Vec<_> = w.iter().map(Tensor::view).collect();
        let s = median(|| cpu.gemm_bands(Gemm::NT, &bands, a.view(), &b, c.view_mut()));
        report(&format!("{experts} {name} {rows}×{n}, {k}"), s, peak, flops, bytes);
        if rows > 1 {
            let mut dw: Vec<_> = (0..experts).map(|_| Tensor::zeros(&cpu, [k, n], DType::F32)).collect();
            let s = median(|| {
                cpu.gemm_bands_outer(&bands, a.view(), c.view(), dw.iter_mut().map(Tensor::view_mut).collect())
            });
            report(&format!("{experts} {name} gradient {k}×{n}, {rows}"), s, peak, flops, bytes);
        }
    }
}

/// Median seconds of a run, of about a third of a second of runs.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn report(name: &str, s: f64, peak: f64, flops: usize, bytes: usize) {
    let (gflops, gbytes) = (flops as f64 / s / 1e9, bytes as f64 / s / 1e9);
    println!("{name:<34}{:>10.3}{gflops:>9.1}{:>8.0}%{gbytes:>9.1}", s * 1e3, 100.0 * gflops / peak);
}
