//! Between the element types of files and of stores. Values go through f64, which holds every other type exactly, so a
//! conversion rounds once.

use half::{bf16, f16};
use safetensors::Dtype;
use std::borrow::Cow;
use wudao_device::DType;

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian, and weights are copied as they are");

/// The name of a store's type in a file.
pub(super) fn file_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::Bf16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
        DType::I8 => Dtype::I8,
    }
}

/// The name of a file's type in `config.json`.
pub(super) fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F64 => "float64",
        _ => "float32",
    }
}

/// True for the types of a file that can become weights.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// The same numbers in another type. `from` must be a floating-point type.
pub(super) fn convert(bytes: Cow<[u8]>, from: Dtype, to: Dtype) -> Cow<[u8]> {
    if from == to {
        return bytes;
    }
    let b = &*bytes;
    Cow::Owned(match from {
        Dtype::F16 => encode(to, b.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64())),
        Dtype::BF16 => encode(to, b.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64())),
        Dtype::F32 => encode(to, b.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b)))),
        Dtype::F64 => encode(to, b.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b))),
        other => panic!("{other:?} is not a floating-point type"),
    })
}

/// The side of the square blocks that share a scale.
pub(super) const BLOCK: usize = 128;

/// An e4m3 number (Micikevicius et al. 2022, "FP8 formats for deep learning"): a sign, 4 bits of exponent, 3 of mantissa;
/// no infinities, one NaN of each sign.
fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if byte < 128 { size } else { -size }
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

/// Values as elements of a file, which must be floating-point numbers.
pub(super) fn encode(to: Dtype, values: impl Iterator<Item = f64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.size_hint().0 * to.bitsize() / 8);
    match to {
        Dtype::F32 => values.for_each(|x| out.extend((x as f32).to_le_bytes())),
        Dtype::F64 => values.for_each(|x| out.extend(x.to_le_bytes())),
        Dtype::BF16 => values.for_each(|x| out.extend(bf16::from_f32(x as f32).to_le_bytes())),
        Dtype::F16 => values.for_each(|x| out.extend(f16::from_f64(x).to_le_bytes())),
        other => panic!("weights are not {other:?}"),
    }
    out
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
