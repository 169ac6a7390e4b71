//! Byte-pair merging, fast.
//!
//! Inside a pre-token, the adjacent pair of lowest rank is merged, the leftmost first, until no pair has a rank. That is
//! all there is to it, and the ids are those of the `tokenizers` crate by construction; the tests compare them on random
//! text. What makes it fast: pairs are looked up in one flat table; short pre-tokens are merged in a flat array rather
//! than a heap; and the ids of short pre-tokens, which come again and again, are kept in a small table of fixed size.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pre-tokens longer than this are merged with a heap: O(n log n) rather than O(n²).
const SHORT: usize = 96;

/// Rank of a pair that is not merged.
const NO_RANK: u32 = u32::MAX;

/// Merge rules of a byte-level BPE model.
#[derive(Clone, Debug)]
pub struct Bpe {
    bytes: [u32; 256],
    merges: Merges,
}

impl Bpe {
    /// A model from the id of each byte and the merges `(left, right, merged)` in order of rank.
    pub fn new(bytes: [u32; 256], merges: &[(u32, u32, u32)]) -> Bpe {
        Bpe { bytes, merges: Merges::new(merges) }
    }

    /// Appends the ids of one pre-token to `out`. `scratch` is only memory.
    pub fn encode(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        match piece {
            [] => {}
            [byte] => out.push(self.bytes[usize::from(*byte)]),
            _ if piece.len() <= SHORT => self.encode_short(piece, out),
            _ => self.encode_long(piece, scratch, out),
        }
    }

    /// The symbols stay where they began, linked to their neighbours, so that nothing has to be moved.
    fn encode_short(&self, piece: &[u8], out: &mut Vec<u32>) {
        let len = piece.len();
        let mut ids = [0u32; SHORT];
        let mut previous = [0u8; SHORT];
        let mut next = [0u8; SHORT];
        // Rank and result of the pair that begins at each symbol.
        let mut ranks = [NO_RANK; SHORT];
        let mut merged = [0u32; SHORT];
        for (at, &byte) in piece.iter().enumerate() {
            ids[at] = self.bytes[usize::from(byte)];
            previous[at] = at.wrapping_sub(1) as u8;
            next[at] = at as u8 + 1;
        }
        for at in 0..len - 1 {
            (ranks[at], merged[at]) = self.merges.get(ids[at], ids[at + 1]);
        }
        loop {
            let lowest = ranks[..len].iter().fold(NO_RANK, |lowest, &rank| lowest.min(rank));
            if lowest == NO_RANK {
                break;
            }
            let at = ranks[..len].iter().position(|&rank| rank == lowest).unwrap_or_default();
            let gone = usize::from(next[at]);
            let after = usize::from(next[gone]);
            ids[at] = merged[at];
            next[at] = after as u8;
            ranks[gone] = NO_RANK;
            ranks[at] = NO_RANK;
            if after < len {
                previous[after] = at as u8;
                (ranks[at], merged[at]) = self.merges.get(ids[at], ids[after]);
            }
            if at > 0 {
                let before = usize::from(previous[at]);
                (ranks[before], merged[before]) = self.merges.get(ids[before], ids[at]);
            }
        }
        let mut at = 0;
        while at < len {
            out.push(ids[at]);
            at = usize::from(next[at]);
        }
    }

    fn encode_long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
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

/// Pair of ids → rank and merged id: an open-addressing table that is at most half full.
#[derive(Clone, Debug)]
struct Merges {
    slots: Vec<(u64, (u32, u32))>,
    shift: u32,
}

const EMPTY: u64 = u64::MAX;

impl Merges {
    fn new(merges: &[(u32, u32, u32)]) -> Merges {
        let bits = (2 * merges.len()).next_power_of_two().trailing_zeros().max(4);
        let mut table = Merges { slots: vec![(EMPTY, (NO_RANK, 0)); 1 << bits], shift: 64 - bits };
        for (rank, &(left, right, merged)) in merges.iter().enumerate() {
            let key = key(left, right);
            let at = table.find(key);
            // Of a pair that is listed twice the later rank counts, as in the `tokenizers` crate.
            table.slots[at] = (key, (rank as u32, merged));
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

    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        self.slots[self.find(key(left, right))].1
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A table of the ids of short pre-tokens; each may stand in one place only, and the newest stays.
#[derive(Clone, Debug)]
pub struct Cache {
    slots: Vec<Slot>,
}

const CACHE_BITS: u32 = 15;
const CACHED_BYTES: usize = 24;
const CACHED_IDS: usize = 6;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: [u64; CACHED_BYTES / 8],
    /// 0 for an empty slot.
    len: u8,
    count: u8,
    ids: [u32; CACHED_IDS],
}

impl Cache {
    /// An empty cache of 1.8 MB.
    pub fn new() -> Cache {
        Cache { slots: vec![Slot::default(); 1 << CACHE_BITS] }
    }

    /// Appends the ids of one pre-token to `out`, from the cache if it is there.
    pub fn encode(&mut self, bpe: &Bpe, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if piece.len() < 2 || piece.len() > CACHED_BYTES {
            return bpe.encode(piece, scratch, out);
        }
        let mut bytes = [0; CACHED_BYTES];
        bytes[..piece.len()].copy_from_slice(piece);
        let mut key = [0; CACHED_BYTES / 8];
        for (word, bytes) in key.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let hash = key
            .iter()
            .fold(piece.len() as u64, |hash, word| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        let slot = &mut self.slots[(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - CACHE_BITS)) as usize];
        if slot.len == piece.len() as u8 && slot.key == key {
            out.extend_from_slice(&slot.ids[..usize::from(slot.count)]);
            return;
        }
        let start = out.len();
        bpe.encode(piece, scratch, out);
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
