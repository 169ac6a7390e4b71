//! Blocks as files hold them (GGUF): 32 weights of one row behind their scale.
//!
//! | kind | bytes | layout |
//! |---|---|---|
//! | `Int8` (Q8_0) | 34 | d: f16, 32 × i8 |
//! | `Int4` (Q4_0) | 18 | d: f16, 16 bytes of two weights each |
//! | `Int4Min` (Q4_1) | 20 | d: f16, m: f16, 16 bytes of two weights each |
//!
//! Byte i of the last two holds weight i in its lower half and weight i + 16 in its upper half. This is the order that
//! files are read and written in; kernels read another ([`super::pack`]), made once from this one, without rounding.
//!
//! Encoding follows the reference formulas of the format, so that a model converted here has the codes that others'
//! tools give it: the largest weight of a block falls on a code exactly, and the rest to the nearest.

use half::f16;

/// Weights that share a scale, side by side along the inner dimension of a product.
pub const BLOCK: usize = 32;

/// How the weights of a [`QuantMatrix`](super::QuantMatrix) are coded. `d` and `m` are of a block of [`BLOCK`] weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum QuantKind {
    /// `w = d·q`, q in −128..=127: 8.5 bits a weight. GGUF calls it Q8_0.
    Int8,
    /// `w = d·(q − 8)`, q in 0..16: 4.5 bits a weight. GGUF calls it Q4_0.
    Int4,
    /// `w = d·q + m`, q in 0..16: 5 bits a weight. GGUF calls it Q4_1.
    Int4Min,
}

impl QuantKind {
    /// Every kind.
    pub const ALL: [QuantKind; 3] = [QuantKind::Int8, QuantKind::Int4, QuantKind::Int4Min];

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        self.head_bytes() + self.code_bytes()
    }

    /// Bytes of a block before its codes.
    pub(super) const fn head_bytes(self) -> usize {
        if self.has_min() { 4 } else { 2 }
    }

    /// Bytes of a block's codes.
    pub(super) const fn code_bytes(self) -> usize {
        match self {
            QuantKind::Int8 => BLOCK,
            QuantKind::Int4 | QuantKind::Int4Min => BLOCK / 2,
        }
    }

    /// Whether a block has an `m`.
    pub(super) const fn has_min(self) -> bool {
        matches!(self, QuantKind::Int4Min)
    }

    /// The code of `w = 0` (of `w = m`), once codes are made unsigned.
    pub(super) const fn zero(self) -> u8 {
        match self {
            QuantKind::Int8 => 128,
            QuantKind::Int4 => 8,
            QuantKind::Int4Min => 0,
        }
    }

    /// Codes rows of weights as blocks, one after another. Panics unless there are whole blocks.
    pub fn encode(self, weights: &[f32]) -> Vec<u8> {
        let (blocks, rest) = weights.as_chunks::<BLOCK>();
        assert!(rest.is_empty(), "{} weights in blocks of {BLOCK}", weights.len());
        let mut bytes = Vec::with_capacity(blocks.len() * self.block_bytes());
        for block in blocks {
            match self {
                QuantKind::Int8 => {
                    let d = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
                    bytes.extend(f16::from_f32(d).to_le_bytes());
                    let inverse = inverse(d);
                    bytes.extend(block.map(|x| ((x * inverse).round() as i8).cast_unsigned()));
                }
                QuantKind::Int4 => {
                    let largest = block.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
                    let d = largest / -8.0;
                    bytes.extend(f16::from_f32(d).to_le_bytes());
                    let inverse = inverse(d);
                    bytes.extend(halves(block.map(|x| (x * inverse + 8.5) as u8)));
                }
                QuantKind::Int4Min => {
                    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
                    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let d = (max - min) / 15.0;
                    bytes.extend(f16::from_f32(d).to_le_bytes());
                    bytes.extend(f16::from_f32(min).to_le_bytes());
                    let inverse = inverse(d);
                    bytes.extend(halves(block.map(|x| ((x - min) * inverse + 0.5) as u8)));
                }
            }
        }
        bytes
    }

    /// The weights of whole blocks, each rounded once to f32. Panics unless there are whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        assert!(bytes.len().is_multiple_of(self.block_bytes()), "{} bytes in blocks of {self:?}", bytes.len());
        let mut weights = Vec::with_capacity(bytes.len() / self.block_bytes() * BLOCK);
        for block in bytes.chunks_exact(self.block_bytes()) {
            let [d, m] = self.head(block).map(|x| x.to_f32());
            weights.extend(self.codes(block).map(|code| weight(self, d, m, code)));
        }
        weights
    }

    /// `d` and `m` of a block, `m` = 0 where there is none.
    pub(super) fn head(self, block: &[u8]) -> [f16; 2] {
        let half = |i: usize| f16::from_le_bytes([block[2 * i], block[2 * i + 1]]);
        [half(0), if self.has_min() { half(1) } else { f16::ZERO }]
    }

    /// The codes of a block in the order of the weights, made unsigned: see [`QuantKind::zero`].
    pub(super) fn codes(self, block: &[u8]) -> [u8; BLOCK] {
        let bytes = &block[self.head_bytes()..];
        std::array::from_fn(|i| match self {
            QuantKind::Int8 => bytes[i] ^ 0x80,
            QuantKind::Int4 | QuantKind::Int4Min => bytes[i % 16] >> (i / 16 * 4) & 15,
        })
    }
}

/// The weight that an unsigned code stands for: `d·(code − zero) + m`, rounded once.
pub(super) fn weight(kind: QuantKind, d: f32, m: f32, code: u8) -> f32 {
    d.mul_add(f32::from(i16::from(code) - i16::from(kind.zero())), m)
}

/// 1/d, or 0: a block of zeros has no scale.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Two codes a byte, those above 15 (a half rounded up) as 15.
fn halves(codes: [u8; BLOCK]) -> [u8; BLOCK / 2] {
    std::array::from_fn(|i| codes[i].min(15) | codes[i + 16].min(15) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;

    /// By hand: one block of each kind, bytes and weights.
    #[test]
    fn blocks_have_the_layout_of_files() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let m = f16::from_f32(-3.0).to_le_bytes();
        let eight: Vec<u8> = d.into_iter().chain((0..32u8).map(|i| if i == 0 { 0x80 } else { i })).collect();
        let weights = QuantKind::Int8.decode(&eight);
        assert_eq!((weights[0], weights[1], weights[31]), (-64.0, 0.5, 15.5));
        let nibbles = (0..16u8).map(|i| i | (15 - i) << 4);
        let four: Vec<u8> = d.into_iter().chain(nibbles.clone()).collect();
        let weights = QuantKind::Int4.decode(&four);
        assert_eq!((weights[0], weights[15], weights[16], weights[31]), (-4.0, 3.5, 3.5, -4.0));
        let min: Vec<u8> = d.into_iter().chain(m).chain(nibbles).collect();
        let weights = QuantKind::Int4Min.decode(&min);
        assert_eq!((weights[0], weights[15], weights[16], weights[31]), (-3.0, 4.5, 4.5, -3.0));
    }

    /// A weight that stands for a code keeps it; any other moves by no more than a code's half width and the rounding of
    /// the scale (and clipping of a code by one where the scale was rounded down).
    #[test]
    fn encoding_is_near_and_stable() {
        for kind in QuantKind::ALL {
            let weights: Vec<f32> = Random(3).values(64 * BLOCK).iter().map(|&x| x as f32).collect();
            let bytes = kind.encode(&weights);
            let decoded = kind.decode(&bytes);
            let bound = crate::tolerance::of("quant encode", crate::DType::F32);
            for (block, near) in weights.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
                let most = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let width = match kind {
                    QuantKind::Int8 => most / 127.0,
                    QuantKind::Int4 => 2.0 * most / 8.0,
                    QuantKind::Int4Min => 2.0 * most / 15.0,
                };
                for (x, y) in block.iter().zip(near) {
                    assert!(
                        f64::from((x - y).abs()) <= 0.5 * f64::from(width) + bound.allowed(most.into()),
                        "{kind:?}"
                    );
                }
            }
            assert_eq!(kind.encode(&[0.0; BLOCK]).len(), kind.block_bytes());
            assert!(kind.decode(&kind.encode(&[0.0; BLOCK])).iter().all(|&w| w == 0.0));
        }
    }
}
