//! Weights packed for products, in any coding.

use super::bands::{bands, piece};
use super::gemm::{Panels, gemm_packed};
use super::quant::QuantMatrix;
use super::{Cpu, mat, mat_mut, slice_mut};
use crate::{Coding, DType, Gemm, Operand, View, ViewMut};
use half::bf16;
use std::borrow::Cow;
use std::ops::Range;

/// A matrix of weights W `[N, K]`.
pub struct Packed(Form);

enum Form {
    /// As it is, in panels.
    F32(Panels<f32>),
    /// Rounded, in panels.
    Bf16(Panels<bf16>),
    /// In blocks.
    Quant(QuantMatrix),
}

/// Bytes that a matrix takes.
pub(crate) fn packed_bytes(coding: Coding, shape: [usize; 2]) -> usize {
    match coding {
        Coding::F32 => Panels::<f32>::bytes(shape),
        Coding::Bf16 => Panels::<bf16>::bytes(shape),
        Coding::Quant(kind) => QuantMatrix::bytes_of(kind, shape),
    }
}

impl Packed {
    pub(super) fn new<'a>(
        cpu: &Cpu,
        coding: Coding,
        shape: [usize; 2],
        row: &(dyn Fn(usize) -> Cow<'a, [u8]> + Sync),
    ) -> Self {
        let expected = coding.row_bytes(shape[1]);
        let row = |i| {
            let bytes = row(i);
            assert_eq!(bytes.len(), expected, "bytes of row {i} of {shape:?} in {coding:?}");
            bytes
        };
        Packed(match coding {
            Coding::F32 => Form::F32(Panels::pack(&cpu.pool, &cpu.memory, shape, row)),
            Coding::Bf16 => Form::Bf16(Panels::pack(&cpu.pool, &cpu.memory, shape, row)),
            Coding::Quant(kind) => {
                Form::Quant(QuantMatrix::from_rows(cpu, kind, shape, row).expect("a coding that fits the matrix"))
            }
        })
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        match &self.0 {
            Form::F32(w) => w.shape(),
            Form::Bf16(w) => w.shape(),
            Form::Quant(w) => w.shape(),
        }
    }

    pub(super) fn coding(&self) -> Coding {
        match &self.0 {
            Form::F32(_) => Coding::F32,
            Form::Bf16(_) => Coding::Bf16,
            Form::Quant(w) => Coding::Quant(w.kind()),
        }
    }
}

/// The packed matrices that operands are. Panics if one is not.
pub(super) fn all<'a>(operands: &[Operand<'a, Cpu>]) -> Vec<&'a Packed> {
    let packed = |operand: &Operand<'a, Cpu>| match operand {
        Operand::Packed(w) => *w,
        Operand::Plain(_) => panic!("plain and packed matrices in one call"),
    };
    operands.iter().map(packed).collect()
}

/// The matrices of one kind.
macro_rules! only {
    ($w:expr, $kind:ident) => {{
        let only = $w.iter().map(|w| match &w.0 {
            Form::$kind(w) => w,
            _ => panic!("matrices in {:?} and {:?} in one call", $w[0].coding(), w.coding()),
        });
        only.collect::<Vec<_>>()
    }};
}

/// For every expert e: `C[band_e] (+)= A[band_e] · W_eᵀ`.
pub(super) fn gemm(cpu: &Cpu, g: Gemm, bands: &[Range<usize>], a: View<Cpu>, w: &[&Packed], c: ViewMut<Cpu>) {
    assert!(!g.ta && g.tb, "packed weights are multiplied by as Wᵀ");
    let (pool, add) = (&*cpu.pool, g.accumulate);
    let coding = w[0].coding();
    match (&w[0].0, a.dtype(), c.dtype()) {
        (Form::F32(_), DType::F32 | DType::Bf16, DType::F32) => {
            gemm_packed::<f32, f32>(pool, add, bands, mat(a), &only!(w, F32), mat_mut(c))
        }
        (Form::F32(_), DType::F32 | DType::Bf16, DType::Bf16) => {
            gemm_packed::<f32, bf16>(pool, add, bands, mat(a), &only!(w, F32), mat_mut(c))
        }
        (Form::Bf16(_), DType::Bf16, DType::F32) => {
            gemm_packed::<bf16, f32>(pool, add, bands, mat(a), &only!(w, Bf16), mat_mut(c))
        }
        (Form::Bf16(_), DType::Bf16, DType::Bf16) => {
            gemm_packed::<bf16, bf16>(pool, add, bands, mat(a), &only!(w, Bf16), mat_mut(c))
        }
        (Form::Quant(_), ..) => cpu.quant(bands, a, &only!(w, Quant), add, c),
        (_, a, c) => panic!("no product of {a:?} and weights packed in {coding:?} to {c:?}"),
    }
}

/// `y[i] = W[index[i]]` for rows.
pub(super) fn gather(cpu: &Cpu, index: &[u32], w: &Packed, y: ViewMut<Cpu>) {
    match y.dtype() {
        DType::F32 => rows(cpu, index, w, slice_mut::<f32>(y), |w, y| y.copy_from_slice(w)),
        DType::Bf16 => rows(cpu, index, w, slice_mut::<bf16>(y), |w, y| {
            y.iter_mut().zip(w).for_each(|(y, &w)| *y = super::Stored::narrow(w));
        }),
        other => panic!("packed weights are not gathered to {other:?}"),
    }
}

fn rows<Y: Copy + Send>(cpu: &Cpu, index: &[u32], w: &Packed, y: &mut [Y], put: impl Fn(&[f32], &mut [Y]) + Sync) {
    let k = w.shape()[1];
    if k == 0 || index.is_empty() {
        return;
    }
    bands(&cpu.pool, index.len(), piece(8 * k), (y,), |at, (y,)| {
        let mut wide = vec![0.0; k];
        for (&i, y) in index[at].iter().zip(y.chunks_exact_mut(k)) {
            match &w.0 {
                Form::F32(w) => w.row(i as usize, &mut wide),
                Form::Bf16(w) => w.row(i as usize, &mut wide),
                Form::Quant(w) => w.row(i as usize, &mut wide),
            }
            put(&wide, y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;
    use crate::cpu::testing::{cpu, up_as};
    use crate::{Device, Tensor};
    use proptest::prelude::*;

    fn bits(cpu: &Cpu, x: &Tensor<Cpu>) -> Vec<u64> {
        x.view().to_f64(cpu).into_iter().map(f64::to_bits).collect()
    }

    /// `x·Wᵀ` for some bands, plain and packed, from the same start.
    fn both(threads: usize, types: [DType; 3], bands: &[Range<usize>], [n, k]: [usize; 2], add: bool, seed: u64) {
        let (cpu, mut r) = (Cpu::new(threads), Random(seed));
        let t = bands.last().map_or(0, |b| b.end);
        // A matrix keeps the bits that it was packed in.
        let g = Gemm { accumulate: add, exact: true, ..Gemm::NT };
        let coding = Coding::plain(types[1]);
        let x = up_as(&cpu, types[0], [t, k], &r.values(t * k));
        let weights: Vec<Vec<f32>> =
            bands.iter().map(|_| r.values(n * k).into_iter().map(|w| w as f32).collect()).collect();
        let plain: Vec<Tensor<Cpu>> = weights
            .iter()
            .map(|w| up_as(&cpu, types[1], [n, k], &w.iter().map(|&w| w.into()).collect::<Vec<f64>>()))
            .collect();
        let packed: Vec<Packed> = weights
            .iter()
            .map(|w| cpu.pack(coding, [n, k], &|i| coding.encode(&w[i * k..(i + 1) * k]).into()))
            .collect();
        let start = r.values(t * n);
        let [mut expected, mut found] = [0, 1].map(|_| up_as(&cpu, types[2], [t, n], &start));
        let plain: Vec<_> = plain.iter().map(|w| w.view().into()).collect();
        let packed: Vec<_> = packed.iter().map(Operand::Packed).collect();
        cpu.gemm_bands(g, bands, x.view(), &plain, expected.view_mut());
        cpu.gemm_bands(g, bands, x.view(), &packed, found.view_mut());
        assert_eq!(bits(&cpu, &found), bits(&cpu, &expected), "{types:?}, {bands:?} of {n}×{k}");
        if n > 0 {
            let index: Vec<u32> = (0..7).map(|_| r.below(n) as u32).collect();
            let [mut expected, mut found] = [0, 1].map(|_| Tensor::new(&cpu, [7, k], types[2]));
            cpu.gather(&index, plain[0], expected.view_mut());
            cpu.gather(&index, packed[0], found.view_mut());
            assert_eq!(bits(&cpu, &found), bits(&cpu, &expected), "rows");
        }
    }

    const TYPES: [[DType; 3]; 6] = [
        [DType::F32, DType::F32, DType::F32],
        [DType::F32, DType::F32, DType::Bf16],
        [DType::Bf16, DType::F32, DType::F32],
        [DType::Bf16, DType::F32, DType::Bf16],
        [DType::Bf16, DType::Bf16, DType::F32],
        [DType::Bf16, DType::Bf16, DType::Bf16],
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Packing changes no bit of a product.
        #[test]
        fn packed_is_plain(
            rows in prop::collection::vec(0usize..40, 1..4), n in 0usize..100, k in 1usize..90, add: bool,
            threads in 1usize..4, seed: u64,
        ) {
            let mut at = 0;
            let bands: Vec<_> = rows.iter().map(|&n| { at += n; at - n..at }).collect();
            for types in TYPES {
                both(threads, types, &bands, [n, k], add, seed);
            }
        }
    }

    /// Several blocks of k, and more rows than one piece may have.
    #[test]
    fn long_sums_and_many_rows() {
        for types in TYPES {
            for k in [1024, 1027, 2600] {
                both(2, types, &[0..1, 1..4, 4..20], [70, k], true, 5);
            }
            both(3, types, std::slice::from_ref(&(0..600)), [33, 1500], false, 6);
        }
    }

    /// Rows of blocks are multiplied as the weights that they stand for, and every row is found again.
    #[test]
    fn blocks_are_gathered_as_they_were() {
        let (cpu, mut r, [n, k]) = (cpu(), Random(7), [40, 96]);
        let weights: Vec<f32> = r.values(n * k).into_iter().map(|w| w as f32).collect();
        for coding in Coding::ALL {
            let rows: Vec<Vec<u8>> = weights.chunks(k).map(|w| coding.encode(w)).collect();
            let w = cpu.pack(coding, [n, k], &|i| Cow::Borrowed(&rows[i][..]));
            assert_eq!(Cpu::packed_shape(&w), [n, k]);
            assert!(Cpu::packed_bytes(&w) >= n * coding.row_bytes(k));
            let mut y = Tensor::new(&cpu, [3, k], DType::F32);
            cpu.gather(&[39, 0, 17], Operand::Packed(&w), y.view_mut());
            let found: Vec<u8> = y.view().to_host::<f32>(&cpu).chunks(k).flat_map(|w| coding.encode(w)).collect();
            let again = |i: usize| match coding {
                Coding::Quant(kind) => coding.encode(&kind.decode(&rows[i])),
                _ => rows[i].clone(),
            };
            assert_eq!(found, [39, 0, 17].map(again).concat(), "{coding:?}");
        }
    }
}
