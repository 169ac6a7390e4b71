//! Speed of attention in every type: `cargo run --release -p wudao-device --example attention [THREADS]`.
//!
//! Operations are those of the visible pairs: two products of `dim` forward; four backward, and the scores once more.
//! Medians of several runs, beside the peak of f32 and the rate of reading memory in the same run.

use std::time::Instant;
use wudao_device::check::Random;
use wudao_device::{Cpu, DType, Device, Heads, PAGE, Paged, Tensor};

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let cpu = Cpu::new(threads);
    let (peak, read) = (cpu.peak_gflops(DType::F32), cpu.read_gbytes_per_s());
    println!("{threads} threads, {}: f32 peak {peak:.0} GFLOP/s, read {read:.1} GB/s", cpu.instructions());
    println!("{:<44}{:>10}{:>9}", "GFLOP/s", "forward", "backward");
    for (tokens, segment, heads) in [
        (4096, 512, Heads { q: 8, kv: 8, dim: 64 }),
        (4096, 512, Heads { q: 8, kv: 2, dim: 64 }),
        (4096, 512, Heads { q: 4, kv: 2, dim: 128 }),
        (4096, 64, Heads { q: 8, kv: 8, dim: 64 }),
        (4096, 4096, Heads { q: 8, kv: 8, dim: 64 }),
        (4096, 4096, Heads { q: 8, kv: 2, dim: 128 }),
        (4096, 512, Heads { q: 5, kv: 1, dim: 64 }),
    ] {
        for dtype in [DType::F32, DType::Bf16] {
            let [forward, backward] = train(&cpu, dtype, tokens, segment, heads);
            let name = format!("{dtype:?} {}/{} heads of {}, segments of {segment}", heads.q, heads.kv, heads.dim);
            println!("{name:<44}{forward:>10.1}{backward:>9.1}");
        }
    }
    println!("{:<44}{:>10}{:>9}{:>10}{:>9}", "attention over a cache", "µs", "GB/s", "paged µs", "GB/s");
    for (past, n) in [(31, 1), (511, 1), (4095, 1), (32767, 1), (4092, 4), (0, 256), (3840, 256)] {
        for (heads, dtype) in [(8, DType::F32), (8, DType::Bf16), (2, DType::F32), (2, DType::Bf16)]
            .map(|(kv, dtype)| (Heads { q: 8, kv, dim: 64 }, dtype))
        {
            let [seconds, paged] = cached(&cpu, dtype, past, n, heads);
            let bytes = (2 * (past + n) * heads.kv * heads.dim * dtype.size()) as f64 / 1e9;
            let name = format!("{dtype:?} {}/{} heads of 64, {n} after {past}", heads.q, heads.kv);
            let [rate, paged_rate] = [bytes / seconds, bytes / paged];
            println!("{name:<44}{:>10.1}{rate:>9.1}{:>10.1}{paged_rate:>9.1}", seconds * 1e6, paged * 1e6);
        }
    }
}

fn tensor(cpu: &Cpu, dtype: DType, rows: usize, cols: usize) -> Tensor<Cpu> {
    let values = Tensor::from_host(cpu, [rows, cols], &Random(1).values(rows * cols));
    let mut t = Tensor::new(cpu, [rows, cols], dtype);
    cpu.copy(values.view(), t.view_mut());
    t
}

/// GFLOP/s forward and backward.
fn train(cpu: &Cpu, dtype: DType, t: usize, segment: usize, heads: Heads) -> [f64; 2] {
    let (width, wide, scale) = (heads.width(), heads.q * heads.dim, 1.0 / (heads.dim as f64).sqrt());
    let segments: Vec<u32> = (0..=t / segment).map(|i| (i * segment) as u32).collect();
    let (qkv, dout) = (tensor(cpu, dtype, t, width), tensor(cpu, dtype, t, wide));
    let (mut out, mut dqkv) = (tensor(cpu, dtype, t, wide), tensor(cpu, dtype, t, width));
    let mut lse = Tensor::zeros(cpu, [t, heads.q], Cpu::statistics(dtype));
    let product = (t * segment.div_ceil(2) * heads.q * 2 * heads.dim) as f64 / 1e9;
    let forward = median(|| cpu.attention(heads, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut()));
    let backward = median(|| {
        let (o, l) = (out.view(), lse.view());
        cpu.attention_backward(heads, scale, &segments, qkv.view(), o, l, dout.view(), dqkv.view_mut());
    });
    [2.0 * product / forward, 5.0 * product / backward]
}

/// Seconds for `n` rows over `past`, in one piece and over pages.
fn cached(cpu: &Cpu, dtype: DType, past: usize, n: usize, heads: Heads) -> [f64; 2] {
    let (kv, wide, scale) = (heads.kv * heads.dim, heads.q * heads.dim, 1.0 / (heads.dim as f64).sqrt());
    let (mut k, mut v) = (tensor(cpu, dtype, past + n, kv), tensor(cpu, dtype, past + n, kv));
    let (qkv, mut out) = (tensor(cpu, dtype, n, heads.width()), tensor(cpu, dtype, n, wide));
    let whole =
        median(|| cpu.attention_cached(heads, scale, past, qkv.view(), k.view_mut(), v.view_mut(), out.view_mut()));
    let count = (past + n).div_ceil(PAGE);
    let (mut k, mut v) = (tensor(cpu, dtype, count, PAGE * kv), tensor(cpu, dtype, count, PAGE * kv));
    // Neighbours lie apart.
    let pages: Vec<u32> = (0..count as u32).step_by(2).chain((1..count as u32).step_by(2)).collect();
    let one = [Paged { rows: 0..n, past, pages: &pages }];
    let paged =
        median(|| cpu.attention_paged(heads, scale, &one, qkv.view(), k.view_mut(), v.view_mut(), out.view_mut()));
    [whole, paged]
}

/// Median seconds of a run, of about a quarter of a second of runs.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || start.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
