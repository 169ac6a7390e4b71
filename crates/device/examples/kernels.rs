//! Speed of every kernel, in f32 and in bf16: `cargo run --release -p wudao-device --example kernels [THREADS]`.

use wudao_device::{Cpu, DType, bench};

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let cpu = Cpu::new(threads);
    println!("{threads} threads: read {:.1} GB/s", cpu.read_gbytes_per_s());
    for dtype in [DType::F32, DType::Bf16] {
        println!("\n{:<64}{:>10}{:>10}{:>12}{:>12}", format!("{dtype:?}"), "ms", "GB/s", "Gelem/s", "GFLOP/s");
        for t in bench::kernels(&cpu, bench::Shape { dtype, ..Default::default() }) {
            print!("{:<64}{:>10.3}{:>10.1}{:>12.2}", t.kernel, t.seconds * 1e3, t.gbytes_per_s(), t.gelements_per_s());
            println!("{}", if t.flops > 0.0 { format!("{:>12.1}", t.gflops()) } else { String::new() });
        }
    }
}
