//! How the elements of a tensor are coded.
//!
//! A row is a whole number of blocks; a block is a fixed number of elements in a fixed number of bytes. Plain numbers are
//! blocks of one. The sizes of kinds that we cannot decode are known all the same, so that a file that holds one can be
//! listed and the tensor named.

use wudao_device::QuantKind;

/// The name, elements and bytes of a block, by the number in a file. Numbers that are missing were never in use in files
/// of these versions, or no longer are.
const TABLE: &[(u32, &str, usize, usize)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
];

/// The type of a tensor's elements, by its number in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType(u32);

impl TensorType {
    /// Numbers of 32 bits.
    pub const F32: TensorType = TensorType(0);
    /// Numbers of 16 bits, 5 of them for the exponent.
    pub const F16: TensorType = TensorType(1);
    /// 32 numbers of 4 bits under a scale.
    pub const Q4_0: TensorType = TensorType(2);
    /// 32 numbers of 4 bits under a scale and a minimum.
    pub const Q4_1: TensorType = TensorType(3);
    /// 32 numbers of 5 bits under a scale.
    pub const Q5_0: TensorType = TensorType(6);
    /// 32 numbers of 5 bits under a scale and a minimum.
    pub const Q5_1: TensorType = TensorType(7);
    /// 32 numbers of 8 bits under a scale.
    pub const Q8_0: TensorType = TensorType(8);
    /// 256 numbers of 4 bits, each 32 under a scale and a minimum of 6 bits.
    pub const Q4_K: TensorType = TensorType(12);
    /// 256 numbers of 5 bits, each 32 under a scale and a minimum of 6 bits.
    pub const Q5_K: TensorType = TensorType(13);
    /// 256 numbers of 6 bits, each 16 under a scale of 8 bits.
    pub const Q6_K: TensorType = TensorType(14);
    /// Numbers of 16 bits, 8 of them for the exponent.
    pub const BF16: TensorType = TensorType(30);

    /// Every type whose elements can be read.
    pub const READABLE: [TensorType; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The kind of block that products read, if it is one.
    pub fn quant(self) -> Option<QuantKind> {
        match self {
            Self::Q8_0 => Some(QuantKind::Int8),
            Self::Q4_0 => Some(QuantKind::Int4),
            Self::Q4_1 => Some(QuantKind::Int4Min),
            _ => None,
        }
    }

    /// By its number in a file, if there is such a type.
    pub fn from_number(n: u32) -> Option<TensorType> {
        TABLE.iter().any(|row| row.0 == n).then_some(TensorType(n))
    }

    /// Its number in a file.
    pub fn number(self) -> u32 {
        self.0
    }

    fn row(self) -> &'static (u32, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self.0).expect("only numbers of the table become types")
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements of a block.
    pub fn block(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether its elements can be read.
    pub fn is_readable(self) -> bool {
        Self::READABLE.contains(&self)
    }

    /// Bytes of a row of so many elements, if they are whole blocks.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        elements.is_multiple_of(self.block()).then(|| elements / self.block() * self.block_bytes())
    }

    /// The names of the readable types, for messages.
    pub(super) fn readable_names() -> String {
        Self::READABLE.map(TensorType::name).join(", ")
    }
}

impl std::fmt::Debug for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
