//! Matrix products.

use super::pool::Pool;
use crate::{Element, Gemm};
use std::ops::Range;

/// A type that matrices can be multiplied in.
pub(crate) trait GemmScalar: Element + std::ops::Mul<Output = Self> + std::ops::Add<Output = Self> {}
impl GemmScalar for f32 {}
impl GemmScalar for f64 {}

/// A dense row-major matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
}

/// A dense row-major matrix to write.
pub(crate) struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Panics if the slice does not have `rows · cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        Mat { data, rows, cols }
    }
}

impl<'a, T> MatMut<'a, T> {
    /// Panics if the slice does not have `rows · cols` elements.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows}×{cols} matrix");
        MatMut { data, rows, cols }
    }
}

/// `C[M,N] (+)= op(A)[M,K] · op(B)[K,N]`.
pub(crate) fn gemm<T: GemmScalar>(_pool: &Pool, g: Gemm, a: Mat<T>, b: Mat<T>, c: MatMut<T>) {
    let (m, k) = if g.ta { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let (kb, n) = if g.tb { (b.cols, b.rows) } else { (b.rows, b.cols) };
    assert_eq!((k, m, n), (kb, c.rows, c.cols), "shapes of a product");
    for i in 0..m {
        for j in 0..n {
            let mut s = T::zeroed();
            for p in 0..k {
                let x = if g.ta { a.data[p * m + i] } else { a.data[i * k + p] };
                let y = if g.tb { b.data[j * k + p] } else { b.data[p * n + j] };
                s = s + x * y;
            }
            let z = &mut c.data[i * n + j];
            *z = if g.accumulate { *z + s } else { s };
        }
    }
}

/// For every expert e: `C[band_e] (+)= A[band_e] · op(B_e)`.
pub(crate) fn gemm_bands<T: GemmScalar>(
    pool: &Pool,
    g: Gemm,
    bands: &[Range<usize>],
    a: Mat<T>,
    b: &[Mat<T>],
    c: MatMut<T>,
) {
    assert!(!g.ta, "bands of rows need A as stored");
    assert_eq!(bands.len(), b.len(), "a band for every B");
    for (band, b) in bands.iter().zip(b) {
        let rows = |cols: usize| band.start * cols..band.end * cols;
        gemm(
            pool,
            g,
            Mat::new(&a.data[rows(a.cols)], band.len(), a.cols),
            *b,
            MatMut::new(&mut c.data[rows(c.cols)], band.len(), c.cols),
        );
    }
}

/// For every expert e: `acc_C_e[M,N] += A[band_e]ᵀ · B[band_e]`; empty bands leave `C_e`.
pub(crate) fn gemm_bands_outer<T: GemmScalar>(
    pool: &Pool,
    bands: &[Range<usize>],
    a: Mat<T>,
    b: Mat<T>,
    acc_c: Vec<MatMut<T>>,
) {
    assert_eq!(bands.len(), acc_c.len(), "a band for every C");
    for (band, c) in bands.iter().zip(acc_c) {
        let rows = |cols: usize| band.start * cols..band.end * cols;
        gemm(
            pool,
            Gemm::TN_ACC,
            Mat::new(&a.data[rows(a.cols)], band.len(), a.cols),
            Mat::new(&b.data[rows(b.cols)], band.len(), b.cols),
            c,
        );
    }
}
