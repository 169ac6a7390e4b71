//! Weights as kernels read them: panels of 16 rows, packed once.
//!
//! A row of W is a column of the result, so the 16 rows of a panel are the 16 lanes of a vector of sums. A panel is
//!
//! ```text
//! d   [blocks][16]  f16                  scales of the 16 rows, block after block
//! m   [blocks][16]  f16                  (Int4Min only)
//!     zeros up to a multiple of 64 bytes
//! q   [blocks][8][16][4]  u8             Int8: groups of 4 consecutive weights of each row
//!     [blocks][4][16][4]  u8             4 bits: group 2j in the lower halves, group 2j + 1 in the upper ones
//! ```
//!
//! A group of 4 bytes a lane is what one multiply-add instruction of bytes takes, and 64 bytes are one vector of 512 bits
//! or two of 256. Scales and codes are two streams, so that every load of codes is of one whole cache line: between the
//! codes, the 32 bytes of scales would shift every other block to two lines a load. Codes are unsigned (see
//! [`QuantKind::zero`](super::QuantKind)), because the instructions want one side so, and the weights' side costs nothing
//! at run time. Rows that fill up the last panel have scale 0.

use super::format::{BLOCK, QuantKind};
use half::f16;

/// Rows of a panel.
pub(super) const LANES: usize = 16;
/// Consecutive weights of a row that lie together.
pub(super) const GROUP: usize = 4;
/// Groups of a block.
pub(super) const GROUPS: usize = BLOCK / GROUP;
/// Bytes of a block's scales (or minima) in a panel.
pub(super) const SCALES: usize = LANES * size_of::<f16>();

/// Where things lie in a panel, in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    /// Blocks of a row.
    pub blocks: usize,
    /// The minima, if there are any.
    pub mins: usize,
    /// The codes.
    pub codes: usize,
    /// Codes of one block of all rows.
    pub step: usize,
    /// The end: the next panel.
    pub bytes: usize,
}

impl Layout {
    /// Of rows of `blocks` blocks.
    pub const fn new(kind: QuantKind, blocks: usize) -> Self {
        let mins = blocks * SCALES;
        let heads = if kind.has_min() { 2 * mins } else { mins };
        let (codes, step) = (heads.next_multiple_of(64), LANES * kind.code_bytes());
        Layout { blocks, mins, codes, step, bytes: codes + blocks * step }
    }
}

/// Packs up to 16 rows, each of `layout.blocks` blocks of a file, into a panel.
pub(super) fn pack<T: AsRef<[u8]>>(kind: QuantKind, layout: Layout, rows: impl Iterator<Item = T>, panel: &mut [u8]) {
    panel.fill(0);
    for (lane, row) in rows.enumerate() {
        for (b, block) in row.as_ref().chunks_exact(kind.block_bytes()).enumerate() {
            let [d, m] = kind.head(block);
            let at = b * SCALES + lane * size_of::<f16>();
            panel[at..][..2].copy_from_slice(&d.to_le_bytes());
            if kind.has_min() {
                panel[layout.mins + at..][..2].copy_from_slice(&m.to_le_bytes());
            }
            let codes = &mut panel[layout.codes + b * layout.step..][..layout.step];
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
    let at = b * SCALES + lane * size_of::<f16>();
    let m = if kind.has_min() { half(layout.mins + at) } else { 0.0 };
    let codes = &panel[layout.codes + b * layout.step..][..layout.step];
    let code = |i: usize| {
        let (g, k) = (i / GROUP, i % GROUP);
        match kind {
            QuantKind::Int8 => codes[(g * LANES + lane) * GROUP + k],
            QuantKind::Int4 | QuantKind::Int4Min => codes[(g / 2 * LANES + lane) * GROUP + k] >> (g % 2 * 4) & 15,
        }
    };
    ([half(at), m], std::array::from_fn(code))
}
