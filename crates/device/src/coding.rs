//! How weights that are only read may be coded.

use crate::DType;
use crate::cpu::{BLOCK, QuantKind};
use half::bf16;

/// How a matrix of weights that is only multiplied by is kept: see [`crate::Device::pack`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Coding {
    /// As they are.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// In blocks of 32 along K with a scale.
    Quant(QuantKind),
}

impl Coding {
    /// Every coding.
    pub const ALL: [Coding; 5] = [
        Coding::F32,
        Coding::Bf16,
        Coding::Quant(QuantKind::Int8),
        Coding::Quant(QuantKind::Int4),
        Coding::Quant(QuantKind::Int4Min),
    ];

    /// Weights in the type of operands.
    pub fn plain(operands: DType) -> Coding {
        match operands {
            DType::F32 => Coding::F32,
            DType::Bf16 => Coding::Bf16,
            other => panic!("nothing is packed in {other:?}"),
        }
    }

    /// Its name, as files and their readers have it.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::F32 => "f32",
            Coding::Bf16 => "bf16",
            Coding::Quant(QuantKind::Int8) => "q8_0",
            Coding::Quant(QuantKind::Int4) => "q4_0",
            Coding::Quant(QuantKind::Int4Min) => "q4_1",
        }
    }

    /// Whether rows of `k` weights can be coded so.
    pub fn fits(self, k: usize) -> bool {
        match self {
            Coding::F32 | Coding::Bf16 => true,
            Coding::Quant(_) => k > 0 && k.is_multiple_of(BLOCK),
        }
    }

    /// Bytes of a row of `k` weights in a file.
    pub fn row_bytes(self, k: usize) -> usize {
        match self {
            Coding::F32 => 4 * k,
            Coding::Bf16 => 2 * k,
            Coding::Quant(kind) => k / BLOCK * kind.block_bytes(),
        }
    }

    /// A row of weights as a file holds it: little-endian elements, or blocks. Panics unless they fit.
    pub fn encode(self, weights: &[f32]) -> Vec<u8> {
        match self {
            Coding::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Coding::Bf16 => weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect(),
            Coding::Quant(kind) => kind.encode(weights),
        }
    }
}
