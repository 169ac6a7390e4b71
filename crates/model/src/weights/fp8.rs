//! Matrices of 8 bits: e4m3 numbers (Micikevicius et al. 2022, "FP8 formats for deep learning"), and a scale for each square
//! block, by which they are multiplied. So DeepSeek-V3 and Qwen3's 8-bit folders have their projections.

use super::convert::encode;
use safetensors::Dtype;

/// The side of the square blocks that share a scale.
pub(super) const BLOCK: usize = 128;
/// What the name of a matrix' scales has after its own.
pub(super) const SCALE: &str = "_scale_inv";
/// The largest number.
const LARGEST: f64 = 448.0;

/// The name of a matrix' scales.
pub(super) fn scale_name(matrix: &str) -> String {
    format!("{matrix}{SCALE}")
}

/// Shape of the scales of a matrix of a shape.
pub(super) fn grid(shape: &[usize]) -> Vec<usize> {
    shape.iter().map(|n| n.div_ceil(BLOCK)).collect()
}

/// Whether a matrix is written so: transformers takes the blocks of one whose sides are neither within a block nor whole blocks for
/// smaller ones (192 rows for two times 96), or refuses it.
pub(super) fn fits(shape: &[usize]) -> bool {
    shape.len() == 2 && shape.iter().all(|&n| n <= BLOCK || n.is_multiple_of(BLOCK))
}

/// What a byte stands for: a sign, 4 bits of exponent, 3 of mantissa; no infinities, one NaN of each sign.
fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if byte < 128 { size } else { -size }
}

/// What bytes without a sign stand for, but the last: they ascend.
fn sizes() -> [f64; 127] {
    std::array::from_fn(|byte| e4m3(byte as u8))
}

/// The byte of the nearest number, of the even one of two; what is larger than all is the largest.
fn nearest(x: f64, sizes: &[f64; 127]) -> u8 {
    let sign = if x.is_sign_negative() { 128 } else { 0 };
    if x.is_nan() {
        return sign | 127;
    }
    let above = sizes.partition_point(|&size| size < x.abs()).min(sizes.len() - 1);
    let below = above.saturating_sub(1);
    let [up, down] = [sizes[above] - x.abs(), x.abs() - sizes[below]];
    let above_is_nearer = up < down || up == down && above % 2 == 0;
    sign | if above_is_nearer { above as u8 } else { below as u8 }
}

/// Rows of an e4m3 matrix of `columns` columns, from row `first` on, each block times its scale. `scales` is the whole
/// matrix's, `[⌈rows / 128⌉, ⌈columns / 128⌉]`.
pub(super) fn dequantize(bytes: &[u8], first: usize, columns: usize, scales: &[f64], to: Dtype) -> Vec<u8> {
    let table: [f64; 256] = std::array::from_fn(|byte| e4m3(byte as u8));
    let rows = bytes.chunks(columns.max(1)).enumerate();
    let values = rows.flat_map(|(i, row)| {
        let scales = &scales[(first + i) / BLOCK * columns.div_ceil(BLOCK)..];
        row.iter().enumerate().map(|(j, &byte)| table[usize::from(byte)] * scales[j / BLOCK])
    });
    encode(to, values)
}

/// The scales of a matrix of `columns` columns, or of rows of it from a multiple of [`BLOCK`] on: by its block's, the largest number
/// of the block becomes the largest there is.
pub(super) fn scales(values: &[f32], columns: usize) -> Vec<f32> {
    let columns = columns.max(1);
    let blocks = values.chunks(BLOCK * columns).flat_map(|rows| {
        let mut largest = vec![0f32; columns.div_ceil(BLOCK)];
        for row in rows.chunks(columns) {
            for (largest, block) in largest.iter_mut().zip(row.chunks(BLOCK)) {
                *largest = block.iter().fold(*largest, |largest, x| largest.max(x.abs()));
            }
        }
        largest
    });
    let scale = |largest: f32| {
        let scale = (f64::from(largest) / LARGEST) as f32;
        // Of zeros, and of what is too small for a scale, any will do.
        if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
    };
    blocks.map(scale).collect()
}

/// The bytes of such a matrix, or of such rows, each block by its own of [`scales`].
pub(super) fn quantize(values: &[f32], columns: usize) -> Vec<u8> {
    let (sizes, columns, scales) = (sizes(), columns.max(1), scales(values, columns));
    let rows = values.chunks(columns).enumerate().flat_map(|(i, row)| {
        let scales = &scales[i / BLOCK * columns.div_ceil(BLOCK)..];
        row.iter().enumerate().map(|(j, &x)| f64::from(x) / f64::from(scales[j / BLOCK]))
    });
    rows.map(|x| nearest(x, &sizes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_eight_bits() {
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x40, 2.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb9, -1.125),
        ] {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e4m3(0x80).is_sign_negative());
        assert!((0..0x7e).all(|b| e4m3(b) < e4m3(b + 1)), "they ascend");
    }

    #[test]
    fn every_number_is_found_again_and_others_are_rounded() {
        let sizes = sizes();
        for byte in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(nearest(e4m3(byte), &sizes), byte);
        }
        assert!(e4m3(nearest(f64::NAN, &sizes)).is_nan());
        for (x, rounded) in [
            (1.0625, 1.0),
            (1.1875, 1.25),
            (1.06251, 1.125),
            (-1.9375, -2.0),
            (1.0 / 1024.0, 0.0),
            (3.0 / 1024.0, 1.0 / 256.0),
            (460.0, 448.0),
            (f64::NEG_INFINITY, -448.0),
        ] {
            assert_eq!(e4m3(nearest(x, &sizes)), rounded, "{x}");
        }
    }

    #[test]
    fn a_matrix_comes_back_as_near_as_its_blocks_allow() {
        let (rows, columns) = (300, 200);
        // Rows and columns of very different size; one block of zeros, and one too small for a scale.
        let value = |i: usize, j: usize| match (i / BLOCK, j / BLOCK) {
            (0, 1) => 0.0,
            (1, 0) => 1e-44,
            (bi, bj) => {
                ((i * 31 + j * 17) % 101) as f32
                    * 0.37f32.powi((i + 3 * j) as i32 % 9)
                    * 10f32.powi((5 * bi + bj) as i32)
            }
        };
        let values: Vec<f32> =
            (0..rows * columns).map(|at| value(at / columns, at % columns) * [1.0, -1.0][at % 2]).collect();
        let (bytes, scales) = (quantize(&values, columns), scales(&values, columns));
        assert_eq!(scales.len(), grid(&[rows, columns]).iter().product::<usize>());
        let wide: Vec<f64> = scales.iter().map(|&s| f64::from(s)).collect();
        let back = dequantize(&bytes, 0, columns, &wide, Dtype::F64);
        for (at, (x, back)) in values.iter().zip(back.as_chunks().0).enumerate() {
            let (x, back) = (f64::from(*x), f64::from_le_bytes(*back));
            let scale = wide[at / columns / BLOCK * 2 + at % columns / BLOCK];
            // Half of the last bit of a mantissa of three, or of the smallest number.
            let near = (x.abs() / 16.0).max(scale / 1024.0) * (1.0 + 1e-6);
            assert!((x - back).abs() <= near, "{x} came back as {back}, scale {scale}");
        }
        // In pieces of whole blocks it is the same.
        let (first, second) = values.split_at(BLOCK * columns);
        let parts = [first, second];
        assert_eq!(parts.map(|part| quantize(part, columns)).concat(), bytes);
        assert_eq!(parts.map(|part| super::scales(part, columns)).concat(), scales);
    }

    #[test]
    fn each_block_has_its_scale() {
        // 130 × 129: blocks of 128 and of what is left.
        let (rows, columns) = (130, 129);
        let scales = [1.0, 2.0, 3.0, 4.0];
        let ones = vec![0x38; rows * columns];
        let numbers = |first: usize, bytes: &[u8]| -> Vec<f64> {
            let out = dequantize(bytes, first, columns, &scales, Dtype::F64);
            out.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
        };
        let whole = numbers(0, &ones);
        for (i, row) in whole.chunks(columns).enumerate() {
            let [left, right] = if i < 128 { [1.0, 2.0] } else { [3.0, 4.0] };
            assert!(row[..128].iter().all(|&x| x == left) && row[128] == right, "row {i}");
        }
        assert_eq!(numbers(127, &ones[127 * columns..]), whole[127 * columns..], "the same in pieces");
    }
}
