//! Duplicates: the same text twice, and nearly the same text twice.
//!
//! *Exact* duplicates have the same 128-bit hash of the cleaned text. *Near* duplicates are found with MinHash and
//! banding (Broder 1997, "On the resemblance and containment of documents"; for language models, Lee et al. 2022,
//! arXiv:2107.06499): a document becomes the set of its shingles, the runs of five units (five Han characters, or five
//! words: see [`crate::profile`]), and a signature of `bands × rows` numbers, each of which two documents share with the
//! probability that is the Jaccard similarity of their sets. The signature is cut into bands; documents that share a
//! whole band are duplicates. With 16 bands of 8 rows that happens with probability 1 − (1 − s⁸)¹⁶ at similarity s:
//!
//! | s | 0.5 | 0.6 | 0.7 | 0.8 | 0.9 |
//! |---|---|---|---|---|---|
//! | taken for a duplicate | 6 % | 24 % | 61 % | 95 % | 99.99 % |
//!
//! The classic scheme hashes each shingle once per number. Here each shingle is hashed once: the hash says which number it
//! competes for and with what value (one permutation hashing, Li, Owen and Zhang 2012), and numbers that no shingle
//! competed for are borrowed from others by the densification of Shrivastava 2017 (arXiv:1703.04664), which keeps the
//! estimate unbiased and its variance near the classic one. That is what makes the search cost less than reading.
//!
//! Of duplicates the first in input order stays: a document is removed when any earlier document, removed or not, shares
//! its exact hash or a band with it. This needs no clusters, only "was this key seen before", which [`Seen`] answers in
//! bounded memory for any number of documents.

mod seen;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::profile::{GOLDEN, mix};
use crate::quality::ngrams;

pub use seen::{Marks, Seen, SeenError};

/// How duplicates are searched for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupOptions {
    /// Whether exact duplicates are removed.
    pub exact: bool,
    /// Whether near duplicates are removed.
    pub near: bool,
    /// Bands of a signature.
    pub bands: usize,
    /// Numbers in a band.
    pub rows: usize,
    /// Units in a shingle.
    pub shingle: usize,
}

impl Default for DedupOptions {
    fn default() -> DedupOptions {
        DedupOptions { exact: true, near: true, bands: 16, rows: 8, shingle: 5 }
    }
}

impl DedupOptions {
    /// What is wrong with the numbers, if anything is.
    pub fn check(&self) -> Result<(), String> {
        let DedupOptions { bands, rows, shingle, .. } = *self;
        if self.near && !(1..=64).contains(&bands) {
            return Err(format!("dedup.bands is {bands}; use 1 to 64"));
        }
        if self.near && !(1..=64).contains(&rows) {
            return Err(format!("dedup.rows is {rows}; use 1 to 64"));
        }
        if self.near && !(1..=100).contains(&shingle) {
            return Err(format!("dedup.shingle is {shingle}; use 1 to 100"));
        }
        Ok(())
    }
}

/// The 128-bit hash of a text.
pub fn exact_hash(text: &str) -> u128 {
    xxh3_128(text.as_bytes())
}

/// Makes signatures; keeps its table between documents. One for each thread.
#[derive(Debug)]
pub struct Signer {
    bands: usize,
    rows: usize,
    shingle: usize,
    minima: Vec<u32>,
    dense: Vec<u32>,
}

/// A number no shingle has competed for.
const EMPTY: u32 = u32::MAX;

impl Signer {
    /// A maker of signatures; without [`DedupOptions::near`] they are empty.
    pub fn new(options: &DedupOptions) -> Signer {
        let bands = if options.near { options.bands } else { 0 };
        Signer { bands, rows: options.rows, shingle: options.shingle, minima: Vec::new(), dense: Vec::new() }
    }

    /// How many keys a signature has.
    pub fn keys(&self) -> usize {
        self.bands
    }

    /// Appends one key per band for a document of these units. A document without units gets none that it could share.
    pub fn sign(&mut self, units: &[u64], exact: u128, keys: &mut Vec<u64>) {
        if self.bands == 0 {
            return;
        }
        if units.is_empty() {
            keys.extend((0..self.bands as u64).map(|band| mix(exact as u64 ^ mix(band.wrapping_add(1)))));
            return;
        }
        self.minimize(units);
        self.densify();
        for (band, rows) in self.dense.chunks_exact(self.rows).enumerate() {
            let mut bytes = [0u8; 4 * 64];
            for (slot, row) in bytes.chunks_exact_mut(4).zip(rows) {
                slot.copy_from_slice(&row.to_le_bytes());
            }
            keys.push(xxh3_64_with_seed(&bytes[..4 * rows.len()], band as u64 + 1));
        }
    }

    /// The least value of all shingles that fall to each number.
    fn minimize(&mut self, units: &[u64]) {
        let size = self.bands * self.rows;
        self.minima.clear();
        self.minima.resize(size, EMPTY);
        let minima = &mut self.minima;
        // A text shorter than a shingle is one shingle.
        ngrams(units, self.shingle.min(units.len()), |hash| {
            let hash = mix(hash);
            let at = ((hash >> 32) * size as u64) >> 32;
            // Bits that did not choose the number, and never the mark for empty.
            let value = (hash as u32).min(EMPTY - 1);
            let slot = &mut minima[at as usize];
            *slot = value.min(*slot);
        });
    }

    /// Fills the empty numbers with those of others, chosen by hashing the number and the attempt.
    fn densify(&mut self) {
        let size = self.minima.len();
        self.dense.clear();
        for at in 0..size {
            let mut from = at;
            let mut attempt = 0u64;
            while self.minima[from] == EMPTY {
                attempt += 1;
                let hash = mix((at as u64).wrapping_mul(GOLDEN) ^ attempt.wrapping_mul(0xd6e8_feb8_6659_fd93));
                from = (((hash >> 32) * size as u64) >> 32) as usize;
            }
            self.dense.push(self.minima[from]);
        }
    }

    /// Signature of a document, for tests of the estimate.
    #[cfg(test)]
    fn numbers(&mut self, units: &[u64]) -> Vec<u32> {
        self.minimize(units);
        self.densify();
        self.dense.clone()
    }
}

#[cfg(test)]
mod tests;
