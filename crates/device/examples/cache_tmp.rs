use std::time::Instant;
use wudao_device::check::Random;
use wudao_device::{Cpu, DType, Device, Heads, Tensor};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let g = |i: usize| a[i].parse::<usize>().unwrap();
    let dtype = if a[2] == "f32" { DType::F32 } else { DType::Bf16 };
    let (past, n, q, kv, dim) = (g(3), g(4), g(5), g(6), g(7));
    let cpu = Cpu::new(g(1));
    let heads = Heads { q, kv, dim };
    let tensor = |rows: usize, cols: usize| {
        let values: Vec<f32> = Random(1).values(rows * cols).iter().map(|&x| x as f32).collect();
        let values = Tensor::from_host(&cpu, [rows, cols], &values);
        let mut t = Tensor::new(&cpu, [rows, cols], dtype);
        cpu.copy(values.view(), t.view_mut());
        t
    };
    let (width, wide, scale) = (heads.width(), heads.q * heads.dim, 0.125);
    let (mut k, mut v) = (tensor(past + n, kv * dim), tensor(past + n, kv * dim));
    let (qkv, mut out) = (tensor(n, width), tensor(n, wide));
    let mut times = vec![];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 1.5 {
        let s = Instant::now();
        cpu.attention_cached(heads, scale, past, qkv.view(), k.view_mut(), v.view_mut(), out.view_mut());
        times.push(s.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let bytes = (2 * (past + n) * kv * dim * dtype.size()) as f64 / 1e9;
    println!("{a:?}: median {:.1} best {:.1} GB/s", bytes / times[times.len() / 2], bytes / times[0]);
}
