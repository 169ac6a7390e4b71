//! Speed of what is bound by memory, as it is in a step: operands that no cache has. `cargo run --release -p wudao-device --example cold
//! [WORD …]`; with words, only the lines that contain one of them.
//!
//! Every tensor is one of 16, taken in turn; medians and the best of 32 calls, at the shapes of the preset `bench-c` and two wider
//! experts. `wudao bench kernels` has the same kernels on operands that caches hold in part.

use std::time::Instant;
use wudao_device::check::Random;
use wudao_device::{Cpu, DType, Device, Heads, Rotation, Tensor};

const TURNS: usize = 16;
const TOKENS: usize = 4096;
const WIDTH: usize = 512;
/// Rows of all experts, as many in each.
const ROWS: usize = 4 * TOKENS;
const EXPERTS: usize = 64;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let cpu = Cpu::new(2);
    println!("{}: reads {:.1} GB/s", cpu.instructions(), cpu.read_gbytes_per_s());
    println!("{:<28}{:>10}{:>10}{:>9}", "", "ms", "best", "GB/s");
    let mut random = Random(1);
    let mut tokens: Vec<u32> = (0..ROWS).map(|_| random.below(TOKENS) as u32).collect();
    tokens.chunks_mut(ROWS / EXPERTS).for_each(<[_]>::sort_unstable);
    let places: Vec<u32> = (0..ROWS).map(|i| (i * 4099 % ROWS) as u32).collect();
    let positions: Vec<u32> = (0..TOKENS as u32).map(|i| i % 512).collect();
    let segments: Vec<u32> = (0..=8).map(|i| i * 512).collect();
    for dtype in [DType::F32, DType::Bf16] {
        let time = |name: &str, bytes: usize, f: &mut dyn FnMut(usize)| {
            let name = format!("{name} {dtype:?}");
            if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
                return;
            }
            let mut times: Vec<f64> = (0..3 * TURNS)
                .map(|i| {
                    let start = Instant::now();
                    f(i % TURNS);
                    start.elapsed().as_secs_f64()
                })
                .skip(TURNS)
                .collect();
            times.sort_by(f64::total_cmp);
            let median = times[TURNS];
            println!("{name:<28}{:>10.2}{:>10.2}{:>9.1}", median * 1e3, times[0] * 1e3, bytes as f64 / median / 1e9);
        };
        let tensors = |rows, width, dtype| -> Vec<Tensor<Cpu>> {
            (0..TURNS).map(|_| Tensor::zeros(&cpu, [rows, width], dtype)).collect()
        };
        let one = |rows, width| Tensor::zeros(&cpu, [rows, width], DType::F32);
        let heads = Heads { q: 8, kv: 8, dim: 64 };
        let table = one(512, heads.dim);
        let by = Rotation { heads, table: table.view(), positions: &positions };
        let (x, mut sums) = (tensors(TOKENS, WIDTH, DType::F32), tensors(TOKENS, WIDTH, DType::F32));
        let (mut y, mut rows) = (tensors(TOKENS, WIDTH, dtype), tensors(ROWS, WIDTH, dtype));
        let (mut qkv, mut turned) = (tensors(TOKENS, heads.width(), dtype), tensors(TOKENS, heads.width(), dtype));
        let mut dqkv = tensors(TOKENS, heads.width(), dtype);
        let (gain, gain_head, mut rstd, mut rstd_heads) =
            (one(1, WIDTH), one(1, heads.dim), one(TOKENS, 1), one(TOKENS, heads.q + heads.kv));
        let (mut dgain, mut dq, mut dk, mut lse) =
            (one(1, WIDTH), one(1, heads.dim), one(1, heads.dim), one(TOKENS, heads.q));
        let size = TOKENS * WIDTH;
        let (wide, s) = (size * 4, size * dtype.size());

        time("gather", wide + 4 * s, &mut |i| cpu.gather(&tokens, x[i].view(), rows[i].view_mut()));
        time("gather_sum", 2 * wide + 4 * s, &mut |i| {
            cpu.gather_sum(4, &places, rows[i].view(), sums[i].view_mut());
        });
        time("copy", wide + s, &mut |i| cpu.copy(x[i].view(), y[i].view_mut()));
        time("sum_of_squares", 4 * s, &mut |i| assert!(cpu.sum_of_squares(rows[i].view()) >= 0.0));
        time("rms_norm", wide + s, &mut |i| {
            cpu.rms_norm(1e-6, x[i].view(), gain.view(), y[i].view_mut(), rstd.view_mut());
        });
        time("rms_norm_backward", 3 * wide + s, &mut |i| {
            let (dx, dgain) = (sums[i].view_mut(), dgain.view_mut());
            cpu.rms_norm_backward(x[i].view(), gain.view(), rstd.view(), y[i].view(), dx, dgain);
        });
        time("qk_norm", 6 * s, &mut |i| {
            let (y, w) = (turned[i].view_mut(), gain_head.view());
            cpu.qk_norm(heads, 1e-6, qkv[i].view(), w, w, &by, y, rstd_heads.view_mut());
        });
        time("qk_norm_backward", 9 * s, &mut |i| {
            let (x, w, rstd, dy) = (qkv[i].view(), gain_head.view(), rstd_heads.view(), turned[i].view());
            cpu.qk_norm_backward(heads, x, w, w, rstd, &by, dy, dqkv[i].view_mut(), dq.view_mut(), dk.view_mut());
        });
        time("rope", 6 * s, &mut |i| cpu.rope(&by, false, qkv[i].view_mut()));
        time("attention", 4 * s, &mut |i| {
            cpu.attention(heads, 0.125, &segments, qkv[i].view(), y[i].view_mut(), lse.view_mut());
        });
        time("attention_backward", 8 * s, &mut |i| {
            let (x, y, dy) = (qkv[i].view(), y[i].view(), turned[i].view().part(0..size, [TOKENS, WIDTH]));
            cpu.attention_backward(heads, 0.125, &segments, x, y, lse.view(), dy, dqkv[i].view_mut());
        });
        for (rows, f) in [(ROWS, 256), (2 * TOKENS, 768), (TOKENS, 1536)] {
            let (mut gate_up, mut y) = (tensors(rows, 2 * f, dtype), tensors(rows, f, dtype));
            let s = rows * f * dtype.size();
            time(&format!("swiglu {f}"), 3 * s, &mut |i| cpu.swiglu(gate_up[i].view(), None, y[i].view_mut()));
            time(&format!("swiglu_backward {f}"), 6 * s, &mut |i| {
                cpu.swiglu_backward(None, gate_up[i].view_mut(), y[i].view_mut(), None);
            });
        }
    }
}
