//! Element types. The engine computes in `F32`; `F64` exists so that gradients can be proven; `Bf16` is storage for
//! checkpoints today and an operand type tomorrow; `U32` holds token and expert ids.

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// bfloat16: the upper half of an `F32`.
    Bf16,
    /// Unsigned 32-bit integer: ids and indices.
    U32,
    /// Codes of 8 bits of keys and values in a cache, and their scales ([`crate::page_len`]): no other kernel knows them.
    I8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::U32 => 4,
            DType::Bf16 => 2,
            DType::I8 => 1,
        }
    }
}

/// A Rust type that is the host image of a [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// The type's tag.
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
