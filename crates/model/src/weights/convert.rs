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
        // In a folder of 8 bits, that of what has more.
        Dtype::BF16 | Dtype::F8_E4M3 => "bfloat16",
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
