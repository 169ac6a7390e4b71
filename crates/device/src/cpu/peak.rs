//! What this machine can do at best, measured: the denominators of "share of peak".
//!
//! Arithmetic: fused multiply-adds on registers alone, on all threads at once, with the widest vectors that the
//! matrix products use. Memory: summing a block that no cache holds. Both are cut into many small tasks, so that a
//! thread that is late to wake or is disturbed by other programs does less instead of holding up the rest, and the best
//! of several tries counts.

#[cfg(target_arch = "x86_64")]
use super::gemm::amx;
use super::gemm::{GemmScalar, Thirds, multiplies_bf16};
use super::lines::fetch;
use super::memory::{Memory, Scratch};
use super::{Cpu, Pool};
use crate::DType;
use std::hint::black_box;
use std::time::{Duration, Instant};

const TRIES: usize = 5;
/// Length of a try.
const TRY: Duration = Duration::from_millis(15);
/// Independent chains: more than latency times throughput of any machine's multiply-add.
const CHAINS: usize = 12;
/// Larger than caches: of 128 MB a server's third cache of 260 keeps so much that they seemed to come at up to 53 GB/s, from
/// memory that gives 32.
const READ_BYTES: usize = 512 << 20;

impl Cpu {
    /// Measured peak in GFLOP/s: multiply-adds of such operands on all threads, summed in f32. A machine that does not
    /// multiply bf16 does it in f32; one that multiplies f32 in parts makes six products of one. Takes about 0.1 s.
    pub fn peak_gflops(&self, operands: DType) -> f64 {
        match operands {
            DType::Bf16 => self.burn(bf16_burner()),
            _ if self.thirds => self.burn(bf16_burner()) / 6.0,
            _ => self.burn(burner()),
        }
    }

    fn burn(&self, (burn, flops): Burner) -> f64 {
        // SAFETY: `burner` and `bf16_burner` choose what this machine supports.
        let chunk = |steps: usize| unsafe { burn(steps) };
        // How many steps a thread takes in a 64th of a try.
        let (mut steps, mut time) = (1 << 10, Duration::ZERO);
        while time < TRY / 64 {
            steps *= 2;
            let start = Instant::now();
            chunk(steps);
            time = start.elapsed();
        }
        let tasks = 64 * self.pool().threads();
        let time = best(self.pool(), tasks, |_| chunk(steps));
        (tasks * steps * flops) as f64 / time.as_secs_f64() / 1e9
    }

    /// Instructions that matrix products use, chosen when the program runs: `amx_f32`, `avx512`, `avx2` or `portable`.
    pub fn instructions(&self) -> &'static str {
        if self.thirds { Thirds::kernel().name } else { f32::kernel().name }
    }

    /// Whether the machine multiplies bf16 sooner than f32. Elsewhere such products are made in f32, to the same bits.
    pub fn multiplies_bf16(&self) -> bool {
        multiplies_bf16()
    }

    /// Measured rate of reading memory in GB/s, on all threads. Takes about 0.3 s and 512 MB, in huge pages as weights are.
    pub fn read_gbytes_per_s(&self) -> f64 {
        // From a memory of its own, which returns it. Zeros are written: what was never written is read from one page.
        let block = Scratch::<u64>::zeros(&Memory::default(), READ_BYTES / size_of::<u64>());
        let piece = (1 << 20) / size_of::<u64>();
        let pieces: Vec<&[u64]> = block.get().chunks(piece).collect();
        let time = best(self.pool(), pieces.len(), |i| {
            black_box(sum(pieces[i]));
        });
        READ_BYTES as f64 / time.as_secs_f64() / 1e9
    }
}

/// Shortest time of several jobs.
fn best(pool: &Pool, tasks: usize, task: impl Fn(usize) + Sync) -> Duration {
    let time = || {
        let start = Instant::now();
        pool.run(tasks, &task);
        start.elapsed()
    };
    (0..TRIES).map(|_| time()).min().expect("at least one try")
}

fn sum(x: &[u64]) -> u64 {
    // Eight streams of whole cache lines; wrapping, since only the reading matters.
    let (lines, _) = x.as_chunks::<8>();
    let mut sums = [0u64; 8];
    for line in lines {
        // As products fetch weights: a processor alone does not look far enough ahead.
        fetch(line.as_ptr().wrapping_byte_add(8192));
        for (s, x) in sums.iter_mut().zip(line) {
            *s = s.wrapping_add(*x);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// A loop of multiply-adds on registers: `burn(steps)`, and the floating-point operations of a step.
type Burner = (unsafe fn(usize), usize);

/// The widest that this machine supports.
fn burner() -> Burner {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return (avx512, 2 * CHAINS * 16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return (avx2, 2 * CHAINS * 8);
        }
    }
    (portable, 2 * CHAINS * 4)
}

/// The same, of bf16 operands.
fn bf16_burner() -> Burner {
    #[cfg(target_arch = "x86_64")]
    if amx::supported() {
        return (amx::burn, amx::BURN_FLOPS);
    }
    #[cfg(target_arch = "x86_64")]
    if multiplies_bf16() {
        return (avx512_bf16, 2 * CHAINS * 32);
    }
    burner()
}

fn portable(steps: usize) {
    let (a, b) = (black_box(0.999f32), black_box(0.001f32));
    let mut x = [[0f32; 4]; CHAINS];
    for _ in 0..steps {
        for x in x.as_flattened_mut() {
            *x = if cfg!(target_arch = "aarch64") { x.mul_add(a, b) } else { *x * a + b };
        }
    }
    black_box(x);
}

#[cfg(target_arch = "x86_64")]
macro_rules! burner {
    ($name:ident, $feature:literal, $splat:ident, $fma:ident) => {
        #[target_feature(enable = $feature)]
        fn $name(steps: usize) {
            use std::arch::x86_64::*;
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(0.001)));
            let mut x = [b; CHAINS];
            for _ in 0..steps {
                for x in &mut x {
                    *x = $fma(*x, a, b);
                }
            }
            black_box(x);
        }
    };
}
#[cfg(target_arch = "x86_64")]
burner!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
burner!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16(steps: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let (a, b, mut x) = (_mm512_cvtne2ps_pbh(a, a), _mm512_cvtne2ps_pbh(b, b), [b; CHAINS]);
    for _ in 0..steps {
        for x in &mut x {
            *x = _mm512_dpbf16_ps(*x, a, b);
        }
    }
    black_box(x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_are_not_slower_than_a_scalar_machine() {
        let cpu = Cpu::new(2);
        // Any machine that this runs on does a multiply-add per nanosecond and reads a byte in that time.
        assert!(cpu.peak_gflops(DType::F32) > 2.0);
        assert!(cpu.peak_gflops(DType::Bf16) > 2.0);
        assert!(cpu.read_gbytes_per_s() > 1.0);
    }
}
