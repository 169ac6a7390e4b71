//! Weights as kernels read them: panels of 16 rows, packed once.
//!
//! A row of W is a column of the result, so the 16 rows of a panel are the 16 lanes of a vector of sums. A panel is one
//! block of all rows after another, each of
//!
//! ```text
//! d, m  [16]  f16         scales and minima of the 16 rows: 64 bytes
//! q     [8][16][4]  u8    Int8: groups of 4 consecutive weights of each row
//!       [4][16][4]  u8    4 bits: group 2j in the lower halves, group 2j + 1 in the upper ones
//! ```
//!
//! or, where there is no m, two blocks after another: the scales of both, the codes of the first, the codes of the second.
//! So every load of codes is one whole cache line, and a matrix is one stream of memory from its beginning to its end, which
//! is what memory reads fastest. (Scales and codes apart were tried: at every panel a stream began anew, and products of
//! one row took up to twice the time.)
//!
//! A group of 4 bytes a lane is what one multiply-add instruction of bytes takes, and 64 bytes are one vector of 512 bits
//! or two of 256. Codes are unsigned (see [`QuantKind::zero`](super::QuantKind)), because the instructions want one side so,
//! and the weights' side costs nothing at run time. Rows that fill up the last panel have scale 0.

use super::format::{BLOCK, QuantKind};
use half::f16;

/// Rows of a panel.
pub(super) const LANES: usize = 16;
/// Consecutive weights of a row that lie together.
pub(super) const GROUP: usize = 4;
/// Groups of a block.
#[cfg(target_arch = "x86_64")]
pub(super) const GROUPS: usize = BLOCK / GROUP;
/// Bytes of a block's scales (or minima) in a panel.
pub(super) const SCALES: usize = LANES * size_of::<f16>();

/// Bytes before the codes: the scales and minima of one block, or the scales of two.
pub(super) const HEAD: usize = 64;

/// Where things lie in a panel, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    /// Blocks of a row.
    pub blocks: usize,
    /// Blocks that share a head.
    pub together: usize,
    /// Codes of one block of all rows.
    pub step: usize,
    /// The end: the next panel.
    pub bytes: usize,
}

impl Layout {
    /// Of rows of `blocks` blocks.
    pub const fn new(kind: QuantKind, blocks: usize) -> Self {
        let together = if kind.has_min() { 1 } else { 2 };
        let step = LANES * kind.code_bytes();
        Layout { blocks, together, step, bytes: blocks.div_ceil(together) * HEAD + blocks * step }
    }

    /// The head of block b.
    const fn head(self, b: usize) -> usize {
        b / self.together * (HEAD + self.together * self.step)
    }

    /// The scales of block b. Minima are [`SCALES`] on.
    pub const fn scales(self, b: usize) -> usize {
        self.head(b) + b % self.together * SCALES
    }

    /// The codes of block b.
    pub const fn codes(self, b: usize) -> usize {
        self.head(b) + HEAD + b % self.together * self.step
    }
}

/// Packs up to 16 rows, each of `layout.blocks` blocks of a file, into a panel.
pub(super) fn pack<T: AsRef<[u8]>>(kind: QuantKind, layout: Layout, rows: impl Iterator<Item = T>, panel: &mut [u8]) {
    panel.fill(0);
    for (lane, row) in rows.enumerate() {
        for (b, block) in row.as_ref().chunks_exact(kind.block_bytes()).enumerate() {
            let [d, m] = kind.head(block);
            let at = layout.scales(b) + lane * size_of::<f16>();
            panel[at..][..2].copy_from_slice(&d.to_le_bytes());
            if kind.has_min() {
                panel[at + SCALES..][..2].copy_from_slice(&m.to_le_bytes());
            }
            let codes = &mut panel[layout.codes(b)..][..layout.step];
            for (g, group) in kind.codes(block).as_chunks::<GROUP>().0.iter().enumerate() {
                match kind {
                    QuantKind::Int8 => codes[(g * LANES + lane) * GROUP..][..GROUP].copy_from_slice(group),
                    QuantKind::Int4 | QuantKind::Int4Min => {
                        let to = &mut codes[(g / 2 * LANES + lane) * GROUP..][..GROUP];
                        to.iter_mut().zip(group).for_each(|(to, code)| *to |= code << (g % 2 * 4));
                    }
                }
            }
        }
    }
}

/// `d` and `m` of a block of one lane, and its codes, in the order of the weights.
pub(super) fn unpack(kind: QuantKind, layout: Layout, panel: &[u8], b: usize, lane: usize) -> ([f32; 2], [u8; BLOCK]) {
    let half = |at: usize| f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
    let at = layout.scales(b) + lane * size_of::<f16>();
    let m = if kind.has_min() { half(at + SCALES) } else { 0.0 };
    let codes = &panel[layout.codes(b)..][..layout.step];
    let code = |i: usize| {
        let (g, k) = (i / GROUP, i % GROUP);
        match kind {
            QuantKind::Int8 => codes[(g * LANES + lane) * GROUP + k],
            QuantKind::Int4 | QuantKind::Int4Min => codes[(g / 2 * LANES + lane) * GROUP + k] >> (g % 2 * 4) & 15,
        }
    };
    ([half(at), m], std::array::from_fn(code))
}
