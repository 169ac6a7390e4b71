//! Tensors and their borrows.
//!
//! A tensor is dense, row-major and of rank two, always: rows are tokens, columns are features. No strides, no
//! broadcasting, no reference counts. It owns its block and gives it back to the device's pool when dropped, so
//! lifetimes *are* the memory plan. A [`View`] borrows a tensor or a band of its rows; Rust's borrow rules then forbid,
//! at compile time, that a kernel reads what another one is writing.

use crate::{DType, Device, Element};
use std::marker::PhantomData;
use std::ops::Range;

/// An owned block of `shape[0] × shape[1]` elements.
pub struct Tensor<D: Device> {
    buf: D::Buf,
    shape: [usize; 2],
    dtype: DType,
}

/// A shared borrow of a tensor, of a band of its rows, or of a part of a flat one.
pub struct View<'a, D: Device> {
    ptr: D::Ptr,
    shape: [usize; 2],
    dtype: DType,
    life: PhantomData<&'a D::Buf>,
}

/// An exclusive borrow of a tensor, of a band of its rows, or of a part of a flat one.
pub struct ViewMut<'a, D: Device> {
    ptr: D::Ptr,
    shape: [usize; 2],
    dtype: DType,
    life: PhantomData<&'a mut D::Buf>,
}

impl<D: Device> Clone for View<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for View<'_, D> {}

fn bytes([rows, columns]: [usize; 2], dtype: DType) -> usize {
    rows.checked_mul(columns).and_then(|n| n.checked_mul(dtype.size())).expect("tensor too large")
}

impl<D: Device> Tensor<D> {
    /// Contents are unspecified (NaN in debug builds): every kernel that takes a fresh tensor assigns all of it.
    pub fn new(device: &D, shape: [usize; 2], dtype: DType) -> Self {
        Tensor { buf: device.alloc(bytes(shape, dtype)), shape, dtype }
    }

    /// As [`Tensor::new`], with rows that may never be touched, and then should take no memory.
    pub fn sparse(device: &D, shape: [usize; 2], dtype: DType) -> Self {
        Tensor { buf: device.alloc_sparse(bytes(shape, dtype)), shape, dtype }
    }

    /// All elements zero.
    pub fn zeros(device: &D, shape: [usize; 2], dtype: DType) -> Self {
        let mut t = Self::new(device, shape, dtype);
        device.fill(0.0, t.view_mut());
        t
    }

    /// Uploads a host slice of exactly `shape[0] * shape[1]` elements.
    pub fn from_host<T: Element>(device: &D, shape: [usize; 2], host: &[T]) -> Self {
        let mut t = Self::new(device, shape, T::DTYPE);
        device.copy_from_host(bytemuck::cast_slice(host), t.view_mut());
        t
    }

    /// A copy with the same shape and type.
    pub fn copy_of(device: &D, x: View<D>) -> Self {
        let mut t = Self::new(device, x.shape, x.dtype);
        device.copy(x, t.view_mut());
        t
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Borrows the whole tensor.
    pub fn view(&self) -> View<'_, D> {
        View { ptr: D::ptr(&self.buf), shape: self.shape, dtype: self.dtype, life: PhantomData }
    }

    /// Borrows the whole tensor for writing.
    pub fn view_mut(&mut self) -> ViewMut<'_, D> {
        ViewMut { ptr: D::ptr(&self.buf), shape: self.shape, dtype: self.dtype, life: PhantomData }
    }
}

impl<'a, D: Device> View<'a, D> {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Address of the first element, for a device's kernels.
    pub fn ptr(&self) -> D::Ptr {
        self.ptr
    }
    /// The same elements under another shape. Panics if the number of elements differs.
    pub fn reshape(self, shape: [usize; 2]) -> Self {
        assert_eq!(self.len(), shape[0] * shape[1], "reshape {:?} to {shape:?}", self.shape);
        View { shape, ..self }
    }
    /// A band of rows.
    pub fn rows(self, band: Range<usize>) -> Self {
        assert!(band.start <= band.end && band.end <= self.shape[0], "rows {band:?} of {:?}", self.shape);
        let ptr = D::offset(self.ptr, band.start * self.shape[1] * self.dtype.size());
        View { ptr, shape: [band.len(), self.shape[1]], ..self }
    }
    /// Elements `at` of a flat view, under a shape.
    pub fn part(self, at: Range<usize>, shape: [usize; 2]) -> Self {
        let n = self.len();
        self.reshape([n, 1]).rows(at).reshape(shape)
    }
    /// Downloads to the host, in the tensor's own type. Panics if `T` is not that type.
    pub fn to_host<T: Element>(&self, device: &D) -> Vec<T> {
        assert_eq!(T::DTYPE, self.dtype);
        let mut host = vec![T::zeroed(); self.len()];
        device.copy_to_host(*self, bytemuck::cast_slice_mut(&mut host));
        host
    }
    /// Downloads a floating-point tensor as `f64`.
    pub fn to_f64(&self, device: &D) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.to_host::<f64>(device),
            DType::F32 => self.to_host::<f32>(device).into_iter().map(f64::from).collect(),
            DType::Bf16 => self.to_host::<half::bf16>(device).into_iter().map(f64::from).collect(),
            DType::U32 | DType::I8 => panic!("not a floating-point tensor"),
        }
    }
}

impl<'a, D: Device> ViewMut<'a, D> {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Address of the first element, for a device's kernels.
    pub fn ptr(&self) -> D::Ptr {
        self.ptr
    }
    /// Borrows for reading for as long as this borrow is not used.
    pub fn as_view(&self) -> View<'_, D> {
        View { ptr: self.ptr, shape: self.shape, dtype: self.dtype, life: PhantomData }
    }
    /// A shorter exclusive borrow of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, D> {
        ViewMut { ptr: self.ptr, shape: self.shape, dtype: self.dtype, life: PhantomData }
    }
    /// The same elements under another shape. Panics if the number of elements differs.
    pub fn reshape(self, shape: [usize; 2]) -> Self {
        assert_eq!(self.len(), shape[0] * shape[1], "reshape {:?} to {shape:?}", self.shape);
        ViewMut { shape, ..self }
    }
    /// A band of rows, giving up the rest of the borrow.
    pub fn rows(self, band: Range<usize>) -> Self {
        assert!(band.start <= band.end && band.end <= self.shape[0], "rows {band:?} of {:?}", self.shape);
        let ptr = D::offset(self.ptr, band.start * self.shape[1] * self.dtype.size());
        ViewMut { ptr, shape: [band.len(), self.shape[1]], ..self }
    }
    /// Elements `at` of a flat view, under a shape.
    pub fn part(self, at: Range<usize>, shape: [usize; 2]) -> Self {
        let n = self.len();
        self.reshape([n, 1]).rows(at).reshape(shape)
    }
    /// Two disjoint bands: rows before `row`, and from `row` on.
    pub fn split(self, row: usize) -> (Self, Self) {
        let [rows, cols] = self.shape;
        assert!(row <= rows, "split at {row} of {rows}");
        let tail = D::offset(self.ptr, row * cols * self.dtype.size());
        (
            ViewMut { shape: [row, cols], ptr: self.ptr, dtype: self.dtype, life: PhantomData },
            ViewMut { shape: [rows - row, cols], ptr: tail, dtype: self.dtype, life: PhantomData },
        )
    }
}
