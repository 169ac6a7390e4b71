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

/// No pair: larger than any entry of [`Merges`].
const NONE: u64 = u64::MAX;

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
            _ if piece.len() <= SHORT => self.encode_short(piece, scratch, out),
            _ => self.encode_long(piece, scratch, out),
        }
    }

    fn encode_short(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, pairs, .. } = scratch;
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.bytes[usize::from(byte)]));
        pairs.clear();
        pairs.extend(ids.windows(2).map(|pair| self.merges.get(pair[0], pair[1])));
        loop {
            let mut at = 0;
            let mut lowest = NONE;
            for (index, &pair) in pairs.iter().enumerate() {
                if pair < lowest {
                    (at, lowest) = (index, pair);
                }
            }
            if lowest == NONE {
                break;
            }
            ids[at] = lowest as u32;
            ids.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = self.merges.get(ids[at - 1], ids[at]);
            }
            if at < pairs.len() {
                pairs[at] = self.merges.get(ids[at], ids[at + 1]);
            }
        }
        out.extend_from_slice(ids);
    }

    fn encode_long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, links, heap, .. } = scratch;
        let len = piece.len();
        ids.clear();
        ids.extend(piece.iter().map(|&byte| self.bytes[usize::from(byte)]));
        // A symbol that was merged into the one before it links to itself.
        links.clear();
        links.extend((0..len).map(|at| (at.wrapping_sub(1), at + 1)));
        heap.clear();
        heap.extend(ids.windows(2).enumerate().filter_map(|(at, pair)| {
            let found = self.merges.get(pair[0], pair[1]);
            (found != NONE).then_some(Reverse((found, at)))
        }));
        while let Some(Reverse((found, at))) = heap.pop() {
            let next = links[at].1;
            if next == at || next == len || self.merges.get(ids[at], ids[next]) != found {
                continue; // the pair was changed by a merge since
            }
            let after = links[next].1;
            ids[at] = found as u32;
            links[next] = (next, next);
            links[at].1 = after;
            if after < len {
                links[after].0 = at;
                let pair = self.merges.get(ids[at], ids[after]);
                if pair != NONE {
                    heap.push(Reverse((pair, at)));
                }
            }
            let before = links[at].0;
            if before < len {
                let pair = self.merges.get(ids[before], ids[at]);
                if pair != NONE {
                    heap.push(Reverse((pair, before)));
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
    pairs: Vec<u64>,
    links: Vec<(usize, usize)>,
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

/// Pair of ids → rank << 32 | merged id: an open-addressing table that is at most half full.
#[derive(Clone, Debug)]
struct Merges {
    slots: Vec<(u64, u64)>,
    shift: u32,
}

impl Merges {
    fn new(merges: &[(u32, u32, u32)]) -> Merges {
        let bits = (2 * merges.len()).next_power_of_two().trailing_zeros().max(4);
        let mut table = Merges { slots: vec![(NONE, NONE); 1 << bits], shift: 64 - bits };
        for (rank, &(left, right, merged)) in merges.iter().enumerate() {
            let key = key(left, right);
            let at = table.find(key);
            // Of a pair that is listed twice the later rank counts, as in the `tokenizers` crate.
            table.slots[at] = (key, (rank as u64) << 32 | u64::from(merged));
        }
        table
    }

    /// The slot of `key`, or the empty one where it belongs.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.slots[at].0 != key && self.slots[at].0 != NONE {
            at = (at + 1) & mask;
        }
        at
    }

    fn get(&self, left: u32, right: u32) -> u64 {
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
