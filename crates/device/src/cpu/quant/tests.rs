//! Products against a plain sum in f64, kernels against each other, and bits against everything that must not matter.

use super::rows::RowBlock;
use super::*;
use crate::check::Random;
use crate::cpu::testing::cpu;
use crate::cpu::{Memory, Pool};
use crate::{DType, Tensor, tolerance};
use bytemuck::Zeroable;
use proptest::prelude::*;

fn random(seed: u64, n: usize) -> Vec<f32> {
    Random(seed).values(n).iter().map(|&x| x as f32).collect()
}

/// A matrix of random bits, but for scales of order 2⁻⁷: every code occurs.
fn noise(cpu: &Cpu, kind: QuantKind, [n, k]: [usize; 2], seed: u64) -> QuantMatrix {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = (0..n * k / BLOCK * kind.block_bytes()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for half in block[..kind.head_bytes()].chunks_exact_mut(2) {
            half.copy_from_slice(&half::f16::from_f64(random.uniform() / 128.0).to_le_bytes());
        }
    }
    let row = k / BLOCK * kind.block_bytes();
    QuantMatrix::from_blocks(cpu, kind, [n, k], |i| &bytes[i * row..][..row]).expect("whole blocks")
}

/// What a row is rounded to, by the definition.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        let most = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (scale, inverse) = if most == 0.0 { (0.0, 0.0) } else { (most / 127.0, 127.0 / most) };
        x.iter().map(|x| f64::from((x * inverse).round_ties_even()) * f64::from(scale)).collect::<Vec<_>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

/// A call with one kernel and one number of threads.
fn call(
    kernel: &'static Kernel,
    threads: usize,
    bands: &[Range<usize>],
    x: &[f32],
    w: &[&QuantMatrix],
    y: Option<&[f32]>,
) -> Vec<f32> {
    let ([n, k], t) = (w[0].shape, bands.last().map_or(0, |b| b.end));
    let (pool, memory) = (Pool::new(threads), Memory::default());
    let mut out = y.map_or(vec![f32::NAN; t * n], <[f32]>::to_vec);
    let shape = [t, n, k];
    Call { pool: &pool, memory: &memory, kernel, bands, w, shape, accumulate: y.is_some() }.run(x, &mut out);
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every kernel and kind, on any shape: the same bits, near a sum in f64 of what was rounded.
    #[test]
    fn kernels_agree_with_each_other_and_with_a_plain_sum(
        sizes in prop::collection::vec(0usize..40, 1..4),
        n in 1usize..70,
        blocks in 1usize..6,
        kind in prop::sample::select(QuantKind::ALL.to_vec()),
        accumulate: bool,
        seed: u64,
    ) {
        let (cpu, k) = (cpu(), blocks * BLOCK);
        let mut at = 0;
        let bands: Vec<_> = sizes.iter().map(|&m| { at += m; at - m..at }).collect();
        let w: Vec<_> = (0..sizes.len()).map(|e| noise(&cpu, kind, [n, k], seed ^ e as u64)).collect();
        let w: Vec<_> = w.iter().collect();
        let (x, before) = (random(seed, at * k), random(seed ^ 99, at * n));
        let y = accumulate.then_some(&before[..]);
        let best = call(Kernel::best(), 2, &bands, &x, &w, y);
        for kernel in Kernel::all() {
            for threads in [1, 3] {
                let other = call(kernel, threads, &bands, &x, &w, y);
                prop_assert_eq!(bits(&other), bits(&best), "{} on {} threads", kernel.name, threads);
            }
        }
        let tolerance = tolerance::of("quant gemm", DType::F32);
        for (band, w) in bands.iter().zip(w) {
            let weights = w.dequantize();
            for i in band.clone() {
                let x = rounded(&x[i * k..][..k]);
                for j in 0..n {
                    let sum: f64 = x.iter().zip(&weights[j * k..]).map(|(x, &w)| x * f64::from(w)).sum();
                    let expected = sum + y.map_or(0.0, |y| f64::from(y[i * n + j]));
                    let actual = f64::from(best[i * n + j]);
                    prop_assert!((actual - expected).abs() <= tolerance.allowed(expected), "{expected} {actual}");
                }
            }
        }
    }

    /// A row's bits do not change with the rows beside it.
    #[test]
    fn rows_are_alone(t in 2usize..60, kind in prop::sample::select(QuantKind::ALL.to_vec()), seed: u64) {
        let (cpu, n, k) = (cpu(), 50, 96);
        let (w, x) = (noise(&cpu, kind, [n, k], seed), random(seed, t * k));
        for kernel in Kernel::all() {
            let all = call(kernel, 2, std::slice::from_ref(&(0..t)), &x, &[&w], None);
            for i in [0, t / 2, t - 1] {
                let alone = call(kernel, 1, std::slice::from_ref(&(0..1)), &x[i * k..][..k], &[&w], None);
                prop_assert_eq!(bits(&alone), bits(&all[i * n..][..n]));
            }
        }
    }

    /// What is packed is what was in the file.
    #[test]
    fn packing_keeps_weights_exactly(n in 1usize..40, blocks in 1usize..5, seed: u64) {
        let (cpu, k) = (cpu(), blocks * BLOCK);
        for kind in QuantKind::ALL {
            let weights = random(seed, n * k);
            let bytes = kind.encode(&weights);
            let row = blocks * kind.block_bytes();
            let packed = QuantMatrix::from_blocks(&cpu, kind, [n, k], |i| &bytes[i * row..][..row]).expect("whole blocks");
            let coded = QuantMatrix::from_f32(&cpu, kind, [n, k], &weights).expect("whole blocks");
            prop_assert_eq!(bits(&packed.dequantize()), bits(&kind.decode(&bytes)));
            prop_assert_eq!(packed.panels(), coded.panels());
        }
    }
}

/// The largest sums there can be: no kernel saturates.
#[test]
fn extreme_codes_are_exact() {
    let (cpu, n, k) = (cpu(), 32, 64);
    for (kind, code) in
        [(QuantKind::Int8, 0x80), (QuantKind::Int8, 0x7f), (QuantKind::Int4, 0), (QuantKind::Int4Min, 0xff)]
    {
        let mut block = vec![code; kind.block_bytes()];
        block[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
        if kind.has_min() {
            block[2..4].copy_from_slice(&half::f16::from_f32(2.0).to_le_bytes());
        }
        let row = block.repeat(k / BLOCK);
        let w = QuantMatrix::from_blocks(&cpu, kind, [n, k], |_| &row).expect("whole blocks");
        let weight = f32::from(w.dequantize()[0] as i16);
        for sign in [127.0, -127.0] {
            for kernel in Kernel::all() {
                let y = call(kernel, 1, std::slice::from_ref(&(0..3)), &vec![sign; 3 * k], &[&w], None);
                assert!(y.iter().all(|&y| y == sign * weight * k as f32), "{} {kind:?} {}", kernel.name, y[0]);
            }
        }
    }
}

/// Large products, which are cut in both directions, with a product per expert and with one.
#[test]
fn large_products_do_not_depend_on_threads() {
    let (cpu, n, k, t) = (cpu(), 300, 1024, 700);
    let w = [noise(&cpu, QuantKind::Int4, [n, k], 1), noise(&cpu, QuantKind::Int8, [n, k], 2)];
    let x = random(5, t * k);
    for bands in [vec![0..t, t..t], vec![0..1, 1..t]] {
        let one = call(Kernel::best(), 1, &bands, &x, &[&w[0], &w[1]], None);
        for threads in [2, 5] {
            let several = call(Kernel::best(), threads, &bands, &x, &[&w[0], &w[1]], None);
            assert_eq!(bits(&several), bits(&one));
        }
    }
    let alone = call(Kernel::best(), 3, std::slice::from_ref(&(0..t)), &x, &[&w[0]], None);
    let beside = call(Kernel::best(), 1, &[0..t, t..t], &x, &[&w[0], &w[1]], None);
    assert_eq!(bits(&alone), bits(&beside));
}

/// A number that is none makes its whole row none; zeros and the smallest numbers make zeros.
#[test]
fn what_is_not_a_number_is_not_lost() {
    let (cpu, n, k) = (cpu(), 20, 64);
    for kind in QuantKind::ALL {
        let w = noise(&cpu, kind, [n, k], 4);
        for kernel in Kernel::all() {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = random(6, 2 * k);
                x[k + 40] = bad;
                let y = call(kernel, 1, std::slice::from_ref(&(0..2)), &x, &[&w], None);
                assert!(
                    y[..n].iter().all(|y| y.is_finite()) && y[n..].iter().all(|y| !y.is_finite()),
                    "{}",
                    kernel.name
                );
            }
            let y = call(kernel, 1, std::slice::from_ref(&(0..1)), &vec![1e-40; k], &[&w], None);
            assert!(y.iter().all(|&y| y == 0.0));
        }
    }
}

/// Rounding keeps what it says it keeps.
#[test]
fn rounded_rows_hold_their_sums() {
    let x = random(8, 4 * BLOCK);
    let mut out = [RowBlock::zeroed(); 8];
    rows::round_row(&x, 2, &mut out[1..]);
    for (i, block) in out.iter().enumerate() {
        let sum: i32 = block.codes.iter().map(|&a| i32::from(a)).sum();
        assert_eq!((block.less_128, block.less_8, block.sum), (-128 * sum, -8 * sum, block.scale * sum as f32));
        assert_eq!(block.scale > 0.0, i % 2 == 1);
        assert_eq!(block.codes.iter().any(|a| a.abs() == 127), i % 2 == 1, "the largest takes the last code");
    }
    let back: Vec<f64> =
        out.iter().skip(1).step_by(2).flat_map(|b| b.codes.map(|a| f64::from(a) * f64::from(b.scale))).collect();
    assert_eq!(back, rounded(&x));
}

/// bf16 on either side is the same product, rounded where it is stored.
#[test]
fn bf16_is_widened_and_rounded_once() {
    let (cpu, t, n, k) = (cpu(), 9, 40, 64);
    let w = QuantMatrix::from_f32(&cpu, QuantKind::Int8, [n, k], &random(1, n * k)).expect("whole blocks");
    let x: Vec<bf16> = random(2, t * k).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let (x, wide) = (Tensor::from_host(&cpu, [t, k], &x), Tensor::from_host(&cpu, [t, k], &wide));
    let mut y = Tensor::zeros(&cpu, [t, n], DType::F32);
    cpu.quant(std::slice::from_ref(&(0..t)), wide.view(), &[&w], false, y.view_mut());
    let expected = y.view().to_host::<f32>(&cpu);
    let mut same = Tensor::zeros(&cpu, [t, n], DType::F32);
    cpu.quant(std::slice::from_ref(&(0..t)), x.view(), &[&w], false, same.view_mut());
    assert_eq!(bits(&same.view().to_host::<f32>(&cpu)), bits(&expected));
    let mut half = Tensor::zeros(&cpu, [t, n], DType::Bf16);
    let bands = [0..4, 4..4, 4..t];
    cpu.quant(&bands, x.view(), &[&w, &w, &w], false, half.view_mut());
    let rounded: Vec<bf16> = expected.iter().map(|&y| bf16::from_f32(y)).collect();
    assert_eq!(half.view().to_host::<bf16>(&cpu), rounded);
}

#[test]
fn bad_sizes_are_named() {
    let (cpu, kind) = (cpu(), QuantKind::Int4);
    let bytes = [0u8; 36];
    let of = |shape, len| QuantMatrix::from_blocks(&cpu, kind, shape, |_| &bytes[..len]).err();
    assert_eq!(of([2, 64], 36), None);
    assert_eq!(of([2, 63], 36), Some(QuantError::Columns(63)));
    assert_eq!(of([2, 0], 0), Some(QuantError::Columns(0)));
    assert_eq!(of([2, 64], 35), Some(QuantError::Row { row: 0, found: 35, expected: 36 }));
    for shape in [[0, 1 << 62], [1 << 40, 1 << 30], [usize::MAX, 32]] {
        assert_eq!(of(shape, 36), Some(QuantError::Size(shape[0], shape[1])));
    }
}
