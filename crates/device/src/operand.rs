//! What a product's right side may be.

use crate::{Device, View};

/// A matrix to multiply by, or to gather rows of: in memory as it is, or packed ([`Device::pack`]).
pub enum Operand<'a, D: Device> {
    /// As it is.
    Plain(View<'a, D>),
    /// Packed: only ever read, and multiplied by as `Wᵀ`.
    Packed(&'a D::Packed),
}

impl<D: Device> Clone for Operand<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for Operand<'_, D> {}

impl<'a, D: Device> From<View<'a, D>> for Operand<'a, D> {
    fn from(x: View<'a, D>) -> Self {
        Operand::Plain(x)
    }
}

impl<'a, D: Device> Operand<'a, D> {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Operand::Plain(x) => x.shape(),
            Operand::Packed(w) => D::packed_shape(w),
        }
    }

    /// As it is in memory. Panics if it is packed: only who trains asks, and nobody trains packed weights.
    pub fn plain(self) -> View<'a, D> {
        match self {
            Operand::Plain(x) => x,
            Operand::Packed(_) => panic!("packed weights are only multiplied by, as Wᵀ"),
        }
    }
}
