//! Rows of activations, rounded to 8 bits.
//!
//! Every 32 of a row share a scale, as the weights they meet do: `x ≈ s·a` with `s = max|x|/127` and a in −127..=127. A
//! kernel wants more than these: what the unsigned codes of the weights are too large by, `zero·Σa`, and what their
//! minima are multiplied by, `s·Σa`. All of it stands beside the 32 numbers, 48 bytes in one place.
//!
//! Rows are taken in groups as tall as the micro-kernel, and a group lies interleaved, block by block: a kernel then
//! reads it from one end to the other with one address.

use super::format::{BLOCK, QuantKind};
use crate::cpu::Stored;
use crate::cpu::simd::versions;

/// 32 activations of a row.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct RowBlock {
    /// `a`.
    pub codes: [i8; BLOCK],
    /// `s`.
    pub scale: f32,
    /// `s·Σa`.
    pub sum: f32,
    /// `−zero·Σa` for kinds whose zero is 128 …
    pub less_128: i32,
    /// … and for those whose zero is 8.
    pub less_8: i32,
}

impl RowBlock {
    /// What the sum of products of a kind begins with, so that unsigned codes count as signed.
    pub fn less(&self, kind: QuantKind) -> i32 {
        match kind {
            QuantKind::Int8 => self.less_128,
            QuantKind::Int4 => self.less_8,
            QuantKind::Int4Min => 0,
        }
    }
}

/// Largest magnitudes below this are taken as 0: their inverse would not be finite.
const LEAST: f32 = 1e-30;

versions! {
    /// Rounds a row. Its blocks go to `out[0]`, `out[stride]`, …
    ///
    /// The largest magnitude is found among bits, whose order is that of magnitudes: in it a NaN is larger than all, so
    /// that it spoils the scale and is not lost. Adding 1.5·2²³ leaves the nearest integer (ties to even) in the lowest
    /// bits.
    pub(super) fn round_row<A: Stored<Real = f32>; S>(x: &[A], stride: usize, out: &mut [RowBlock]) {
        const ROUND: f32 = 1.5 * (1u32 << 23) as f32;
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.iter_mut().step_by(stride)) {
            let mut wide = [0.0f32; BLOCK];
            let mut most = 0u32;
            for (wide, x) in wide.iter_mut().zip(x) {
                *wide = x.widen();
            }
            for x in wide {
                most = most.max(x.to_bits() & 0x7fff_ffff);
            }
            let most = f32::from_bits(most);
            let scale = if most < LEAST { 0.0 } else { most / 127.0 };
            let inverse = if most < LEAST { 0.0 } else { 127.0 / most };
            let mut sum = 0i32;
            for (code, x) in out.codes.iter_mut().zip(wide) {
                let a = (x * inverse + ROUND).to_bits() as i8;
                *code = a;
                sum += i32::from(a);
            }
            out.scale = scale;
            out.sum = scale * sum as f32;
            out.less_128 = -128 * sum;
            out.less_8 = -8 * sum;
        }
    }
}
