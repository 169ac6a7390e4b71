//! From coded rows to numbers.
//!
//! `d` and `m` are the scale and the minimum of a block (f16); `q` a code. Every formula is exact in f32 but for its last
//! operation, so a number does not depend on the order in which one computes: `d·q` has 11 + 8 bits, and where there is
//! a second scale `d·s` has 11 + 8 bits and `d·s·q` is rounded once; where a minimum is subtracted, both products are exact.
//!
//! | type | bytes | number i |
//! |---|---|---|
//! | Q4_0, Q4_1, Q8_0 | | see [`QuantKind`] |
//! | Q5_0 | d, 4 of fifth bits, 16 of low halves | `d·(q − 16)` |
//! | Q5_1 | d, m, 4 of fifth bits, 16 of low halves | `d·q + m` |
//! | Q4_K | d, m, 12 of scales, 128 of codes | `d·s·q − m·t`, s and t of 6 bits for each 32 |
//! | Q5_K | d, m, 12 of scales, 32 of fifth bits, 128 of low halves | as Q4_K |
//! | Q6_K | 128 of low halves, 64 of high bits, 16 scales, d | `d·s·(q − 32)`, s of 8 bits for each 16 |

use super::types::TensorType;
use half::{bf16, f16};
use wudao_device::cpu::QuantKind;

/// Elements of a K block.
const SUPER: usize = 256;

/// Decodes whole blocks of a readable type into `out`. Panics if the type is not readable or the sizes do not agree.
pub(super) fn decode(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(kind.row_bytes(out.len()), Some(bytes.len()), "{} numbers of type {kind}", out.len());
    match kind {
        TensorType::F32 => plain(bytes, out, f32::from_le_bytes),
        TensorType::F16 => plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::BF16 => plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        TensorType::Q4_0 => out.copy_from_slice(&QuantKind::Int4.decode(bytes)),
        TensorType::Q4_1 => out.copy_from_slice(&QuantKind::Int4Min.decode(bytes)),
        TensorType::Q8_0 => out.copy_from_slice(&QuantKind::Int8.decode(bytes)),
        TensorType::Q5_0 => blocks(bytes, out, five),
        TensorType::Q5_1 => blocks(bytes, out, five_min),
        TensorType::Q4_K => blocks(bytes, out, four_k),
        TensorType::Q5_K => blocks(bytes, out, five_k),
        TensorType::Q6_K => blocks(bytes, out, six_k),
        other => panic!("{other} is not readable"),
    }
}

/// Codes whole blocks of a type that we write. Panics if the type is not one of these or the blocks are not whole.
pub(super) fn encode(kind: TensorType, numbers: &[f32]) -> Vec<u8> {
    match kind {
        TensorType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        TensorType::BF16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        TensorType::Q4_0 => QuantKind::Int4.encode(numbers),
        TensorType::Q8_0 => QuantKind::Int8.encode(numbers),
        other => panic!("{other} is not written"),
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, &b)| *x = number(b));
}

fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| decode(b, x));
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Code i of 32 codes of 5 bits: byte i of `low` has those of i and i + 16, bit i of `high` is the fifth.
fn code_of_five(low: &[u8], high: u32, i: usize) -> f32 {
    let low = low[i % 16] >> (i / 16 * 4) & 15;
    f32::from(low | ((high >> i & 1) as u8) << 4)
}

fn five(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, high) = (half_at(block, 0), u32::from_le_bytes([block[2], block[3], block[4], block[5]]));
    out.iter_mut().enumerate().for_each(|(i, x)| *x = d * (code_of_five(&block[6..], high, i) - 16.0));
}

fn five_min(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    out.iter_mut().enumerate().for_each(|(i, x)| *x = d * code_of_five(&block[8..], high, i) + m);
}

/// Scale and minimum `i` of the 8 pairs of 6 bits in 12 bytes. The first four pairs lie in the lower six bits of bytes 0–3
/// and 4–7; the others have their lower four bits in bytes 8–11 and their upper two above those of the first.
fn scale_and_min(packed: &[u8], i: usize) -> [f32; 2] {
    let pair = match i {
        0..4 => [packed[i] & 63, packed[i + 4] & 63],
        _ => [packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4],
    };
    pair.map(f32::from)
}

/// Codes of 4 bits in 128 bytes: of each 32 bytes the lower halves, then the upper halves.
fn code_of_four(codes: &[u8], i: usize) -> u8 {
    codes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

fn four_k(block: &[u8; 144], out: &mut [f32; SUPER]) {
    with_mins(block, out, |i| code_of_four(&block[16..], i));
}

fn five_k(block: &[u8; 176], out: &mut [f32; SUPER]) {
    with_mins(block, out, |i| code_of_four(&block[48..], i) | (block[16 + i % 32] >> (i / 32) & 1) << 4);
}

fn with_mins(block: &[u8], out: &mut [f32; SUPER], code: impl Fn(usize) -> u8) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (part, x) in out.chunks_exact_mut(32).enumerate() {
        let [s, t] = scale_and_min(&block[4..16], part);
        let (d, m) = (d * s, m * t);
        x.iter_mut().enumerate().for_each(|(i, x)| *x = d * f32::from(code(part * 32 + i)) - m);
    }
}

fn six_k(block: &[u8; 210], out: &mut [f32; SUPER]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, x) in out.iter_mut().enumerate() {
        // Each half of the block: four stretches of 32. Stretches 0 and 1 are the lower halves of 64 bytes, 2 and 3 the
        // upper; the high bits of all four share 32 bytes.
        let (half, stretch, j) = (i / 128, i / 32 % 4, i % 32);
        let four = low[half * 64 + stretch % 2 * 32 + j] >> (stretch / 2 * 4) & 15;
        let two = high[half * 32 + j] >> (stretch * 2) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *x = scale * (f32::from(four | two << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/golden/gguf_blocks.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn bytes(hex: &Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    /// Exactly: each number is rounded once, however one computes it.
    #[test]
    fn numbers_are_those_of_the_reference() {
        let golden = golden();
        for kind in TensorType::READABLE.into_iter().filter(|&kind| kind != TensorType::F32) {
            let case = &golden["decoded"][kind.name()];
            let (blocks, numbers) = (bytes(&case["blocks"]), bytes(&case["numbers"]));
            let mut ours = vec![0.0; numbers.len() / 4];
            decode(kind, &blocks, &mut ours);
            let numbers: Vec<f32> = numbers.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(ours, numbers, "{kind}");
        }
    }

    #[test]
    fn blocks_are_those_of_the_reference() {
        let golden = golden();
        for kind in [TensorType::F16, TensorType::BF16, TensorType::Q4_0, TensorType::Q8_0] {
            let case = &golden["encoded"][kind.name()];
            let numbers: Vec<f32> =
                bytes(&case["numbers"]).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            assert_eq!(encode(kind, &numbers), bytes(&case["blocks"]), "{kind}");
        }
    }

    proptest! {
        /// What a block stands for has that block again: codes do not drift when a file is converted twice.
        #[test]
        fn coded_numbers_are_coded_as_they_were(bytes in prop::collection::vec(any::<u8>(), 34), scale in -1e3f32..1e3) {
            for kind in [TensorType::Q4_0, TensorType::Q8_0] {
                let mut block = bytes[..kind.block_bytes()].to_vec();
                block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                let mut once = [0.0; 32];
                decode(kind, &block, &mut once);
                let mut twice = [0.0; 32];
                decode(kind, &encode(kind, &once), &mut twice);
                let mut thrice = [0.0; 32];
                decode(kind, &encode(kind, &twice), &mut thrice);
                prop_assert_eq!(twice, thrice, "{}", kind);
            }
        }

        /// Any bits decode to something, and rows decode alone as they do together.
        #[test]
        fn rows_decode_alone(bytes in prop::collection::vec(any::<u8>(), 2 * 210)) {
            for kind in TensorType::READABLE {
                let n = 2 * kind.block();
                let bytes = &bytes[..2 * kind.block_bytes()];
                let mut all = vec![0.0; n];
                decode(kind, bytes, &mut all);
                for (block, x) in bytes.chunks(kind.block_bytes()).zip(all.chunks(kind.block())) {
                    let mut one = vec![0.0; kind.block()];
                    decode(kind, block, &mut one);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&one), bits(x), "{}", kind);
                }
            }
        }
    }
}
