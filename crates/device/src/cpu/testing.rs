//! What the tests of the kernels share: tensors from plain vectors and back, all in f64.

use crate::{Cpu, DType, Device, Tensor};

/// Two threads, so that tasks really run side by side.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(2)
}

pub(crate) fn up(cpu: &Cpu, shape: [usize; 2], values: &[f64]) -> Tensor<Cpu> {
    Tensor::from_host(cpu, shape, values)
}

/// [`up`] in another type.
pub(crate) fn up_as(cpu: &Cpu, dtype: DType, shape: [usize; 2], values: &[f64]) -> Tensor<Cpu> {
    let mut x = Tensor::new(cpu, shape, dtype);
    cpu.copy(up(cpu, shape, values).view(), x.view_mut());
    x
}

pub(crate) fn fresh(cpu: &Cpu, shape: [usize; 2]) -> Tensor<Cpu> {
    Tensor::new(cpu, shape, DType::F64)
}

pub(crate) fn down(cpu: &Cpu, x: &Tensor<Cpu>) -> Vec<f64> {
    x.view().to_f64(cpu)
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `after − before`: what a kernel accumulated.
pub(crate) fn added(before: &[f64], after: &[f64]) -> Vec<f64> {
    after.iter().zip(before).map(|(a, b)| a - b).collect()
}
