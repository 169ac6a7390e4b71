//! Memory and kernels of one machine.
//!
//! Read [`device`] first: it is the whole contract. [`cpu`] is the machine that every computer has and the
//! specification that other machines must agree with; [`meta`] allocates nothing and counts bytes and operations, so
//! that the real model code can be planned at any size; [`check`] compares a kernel with central differences and with
//! another device, within the one [`tolerance`] table.

pub mod bench;
pub mod check;
mod coding;
pub mod cpu;
pub mod device;
mod dtype;
mod fault;
pub mod meta;
mod operand;
mod tensor;
pub mod tolerance;

pub use coding::Coding;
pub use cpu::{Cpu, QuantKind};
pub use device::{
    AdamW, Device, Gemm, Heads, IGNORE, Nesterov, PAGE, Paged, Rotation, Routing, SQUARE_UNIT, Score, page_len,
};
pub use dtype::{DType, Element};
pub use fault::Fault;
pub use meta::{Meta, Usage};
pub use operand::Operand;
pub use tensor::{Tensor, View, ViewMut};
