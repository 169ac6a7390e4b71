use std::time::Instant;
use wudao_device::check::Random;
use wudao_device::{Cpu, DType, Device, Heads, Tensor};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let threads: usize = a[1].parse().unwrap();
    let what = &a[2];
    let dtype = if a[3] == "f32" { DType::F32 } else if a[3] == "f64" { DType::F64 } else { DType::Bf16 };
    let segment: usize = a[4].parse().unwrap();
    let (q, kv, dim) = (a[5].parse().unwrap(), a[6].parse().unwrap(), a[7].parse().unwrap());
    let secs: f64 = a[8].parse().unwrap();
    let cpu = Cpu::new(threads);
    let heads = Heads { q, kv, dim };
    let t = 4096;
    let tensor = |rows: usize, cols: usize| {
        let values = Tensor::from_host(&cpu, [rows, cols], &Random(1).values(rows * cols));
        let mut t = Tensor::new(&cpu, [rows, cols], dtype);
        cpu.copy(values.view(), t.view_mut());
        t
    };
    let (width, wide, scale) = (heads.width(), heads.q * heads.dim, 1.0 / (heads.dim as f64).sqrt());
    let segments: Vec<u32> = (0..=t / segment).map(|i| (i * segment) as u32).collect();
    let (qkv, dout) = (tensor(t, width), tensor(t, wide));
    let (mut out, mut dqkv) = (tensor(t, wide), tensor(t, width));
    let mut lse = Tensor::zeros(&cpu, [t, heads.q], Cpu::statistics(dtype));
    let product = (t * segment.div_ceil(2) * heads.q * 2 * heads.dim) as f64 / 1e9;
    cpu.attention(heads, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut());
    let mut times = vec![];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < secs {
        let s = Instant::now();
        if what == "f" {
            cpu.attention(heads, scale, &segments, qkv.view(), out.view_mut(), lse.view_mut());
        } else {
            cpu.attention_backward(heads, scale, &segments, qkv.view(), out.view(), lse.view(), dout.view(), dqkv.view_mut());
        }
        times.push(s.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let n = if what == "f" { 2.0 } else { 5.0 };
    println!("{} {:?}: median {:.1} best {:.1} GFLOP/s", what, dtype, n * product / times[times.len() / 2], n * product / times[0]);
}
