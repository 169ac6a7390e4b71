//! Byte-pair merging by its definition, and what makes encoding fast around it.
//!
//! Inside a pre-token, the adjacent pair of lowest rank is merged, the leftmost first, until no pair has a rank. That is
//! all there is to it, and the ids are those of the `tokenizers` crate by construction; the tests compare them on random
//! text. [`super::greedy`] finds the same ids faster and is checked against this.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Rank of a pair that is not merged.
const NO_RANK: u32 = u32::MAX;

/// Merge rules of a byte-level BPE model.
#[derive(Clone, Debug)]
pub struct Bpe {
    bytes: [u32; 256],
    /// Rank and merged id of each pair.
    merges: Table,
}

impl Bpe {
    /// A model from the id of each byte and the merges `(left, right, merged)` in order of rank.
    pub fn new(bytes: [u32; 256], merges: &[(u32, u32, u32)]) -> Bpe {
        let entries = merges.iter().zip(0..).map(|(&(left, right, merged), rank)| (left, right, (rank, merged)));
        Bpe { bytes, merges: Table::new(merges.len(), entries) }
    }

    /// Appends the ids of one pre-token to `out`. `scratch` is only memory.
    pub fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, links, heap } = scratch;
        let len = piece.len();
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.bytes[usize::from(byte)]));
        // Previous and next symbol; one that was merged into the symbol before it links to itself.
        links.clear();
        links.extend((0..len).map(|at| (at.wrapping_sub(1), at + 1)));
        heap.clear();
        heap.extend(ids.windows(2).enumerate().filter_map(|(at, pair)| {
            let (rank, _) = self.merges.get(pair[0], pair[1]);
            (rank != NO_RANK).then_some(Reverse((rank, at)))
        }));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let next = links[at].1;
            if next == at || next == len {
                continue;
            }
            let (now, merged) = self.merges.get(ids[at], ids[next]);
            if now != rank {
                continue; // the pair was changed by a merge since
            }
            let after = links[next].1;
            ids[at] = merged;
            links[next] = (next, next);
            links[at].1 = after;
            if after < len {
                links[after].0 = at;
                let (rank, _) = self.merges.get(ids[at], ids[after]);
                if rank != NO_RANK {
                    heap.push(Reverse((rank, at)));
                }
            }
            let before = links[at].0;
            if before < len {
                let (rank, _) = self.merges.get(ids[before], ids[at]);
                if rank != NO_RANK {
                    heap.push(Reverse((rank, before)));
                }
            }
        }
        out.extend(ids.iter().zip(links.iter().enumerate()).filter(|(_, (at, link))| link.1 != *at).map(|(&id, _)| id));
    }
}

/// Working memory of [`Bpe::encode`], kept between calls.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    ids: Vec<u32>,
    links: Vec<(usize, usize)>,
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

/// A pair of numbers → what its merge gives: an open-addressing table that is at most half full.
#[derive(Clone, Debug)]
pub(super) struct Table {
    slots: Vec<(u64, (u32, u32))>,
    shift: u32,
}

const EMPTY: u64 = u64::MAX;

impl Table {
    /// A table of `count` entries `(left, right, value)`.
    pub fn new(count: usize, entries: impl Iterator<Item = (u32, u32, (u32, u32))>) -> Table {
        let bits = (2 * count).next_power_of_two().trailing_zeros().max(4);
        let mut table = Table { slots: vec![(EMPTY, (NO_RANK, 0)); 1 << bits], shift: 64 - bits };
        for (left, right, value) in entries {
            let key = key(left, right);
            let at = table.find(key);
            // Of a pair that is listed twice the later counts, as in the `tokenizers` crate.
            table.slots[at] = (key, value);
        }
        table
    }

    /// The slot of `key`, or the empty one where it belongs.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.slots[at].0 != key && self.slots[at].0 != EMPTY {
            at = (at + 1) & mask;
        }
        at
    }

    /// The entry of a pair; rank `u32::MAX` if there is none.
    pub fn get(&self, left: u32, right: u32) -> (u32, u32) {
        self.slots[self.find(key(left, right))].1
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A table of the ids of short pre-tokens, which come again and again. Each may stand in one place only, and the newest
/// stays, so the size is fixed.
#[derive(Clone, Debug)]
pub struct Cache {
    slots: Vec<Slot>,
}

/// What fits the second-level cache of a core beside the tables of the vocabulary.
const CACHE_BITS: u32 = 13;
const CACHED_BYTES: usize = 16;
const CACHED_IDS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: u128,
    /// 0 for an empty slot.
    len: u8,
    count: u8,
    ids: [u32; CACHED_IDS],
}

impl Cache {
    /// An empty cache of 0.4 MB.
    pub fn new() -> Cache {
        Cache { slots: vec![Slot::default(); 1 << CACHE_BITS] }
    }

    /// Appends the ids of one pre-token to `out`, from the cache if it is there, else by `encode`.
    pub fn encode(&mut self, piece: &[u8], out: &mut Vec<u32>, encode: impl FnOnce(&[u8], &mut Vec<u32>)) {
        if piece.len() > CACHED_BYTES {
            return encode(piece, out);
        }
        let mut bytes = [0; CACHED_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        let key = u128::from_le_bytes(bytes);
        let hash = ((key as u64) ^ (key >> 64) as u64 ^ piece.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slot = &mut self.slots[(hash >> (64 - CACHE_BITS)) as usize];
        if slot.len == piece.len() as u8 && slot.key == key {
            out.extend_from_slice(&slot.ids[..usize::from(slot.count)]);
            return;
        }
        let start = out.len();
        encode(piece, out);
        let ids = &out[start..];
        if ids.len() <= CACHED_IDS {
            *slot = Slot { key, len: piece.len() as u8, count: ids.len() as u8, ids: [0; CACHED_IDS] };
            slot.ids[..ids.len()].copy_from_slice(ids);
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Cache::new()
    }
}
