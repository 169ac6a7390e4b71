//! Where a training run is in its data, and the order in which it goes through it.
//!
//! Each epoch visits every document once, in an order of its own. The order is not a shuffled list, which would have to
//! be kept in memory and saved with every checkpoint, but a keyed permutation that can be asked for any position: a
//! Feistel network over the smallest even number of bits that holds the number of documents, with cycle walking (an
//! image outside the range is permuted again; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
//! So a [`Cursor`] of a few numbers says all there is to say, and going on from one gives the very same batches.

use serde::{Deserialize, Serialize};

/// A place in the endless stream of training documents, always between two global batches. It does not depend on the
/// number of ranks: a run may go on with another number of ranks as long as the rows of the global batch stay the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Seed of the order; a stream with another seed refuses the cursor.
    pub seed: u64,
    /// Number of documents; a stream over another number of documents refuses the cursor.
    pub documents: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// Documents of this epoch's order that are used up.
    pub position: u64,
    /// Predictions of the next document that are used up; a document of n tokens has n + 1.
    pub offset: u64,
}

/// A bijection of `0..len` onto itself, chosen by a key; no memory, O(1) expected time.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; Self::ROUNDS],
}

impl Permutation {
    const ROUNDS: usize = 6;

    /// The permutation of `0..len` that belongs to this seed and stream number (such as an epoch).
    pub fn new(len: u64, seed: u64, stream: u64) -> Permutation {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = mix(seed ^ mix(stream ^ 0x9e37_79b9_7f4a_7c15));
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        });
        Permutation { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `index` goes.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "{index} of {}", self.len);
        let mut image = index;
        loop {
            image = self.network(image);
            if image < self.len {
                return image;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input reaches every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permutation_is_a_bijection(len in 1u64..3000, seed: u64, epoch: u64) {
            let order = Permutation::new(len, seed, epoch);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let image = order.at(index) as usize;
                prop_assert!(!seen[image]);
                seen[image] = true;
            }
        }

        #[test]
        fn permutation_stays_in_range_for_any_length(len in 1u64.., seed: u64, index: u64) {
            prop_assert!(Permutation::new(len, seed, 0).at(index % len) < len);
        }
    }

    #[test]
    fn orders_look_random_and_differ_by_seed_and_epoch() {
        let len = 10_000;
        let orders: Vec<Vec<u64>> = [(1, 0), (1, 1), (2, 0)]
            .map(|(seed, epoch)| {
                let order = Permutation::new(len, seed, epoch);
                (0..len).map(|index| order.at(index)).collect()
            })
            .into();
        for order in &orders {
            // A random permutation has one fixed point and one pair of neighbours in order on average.
            let fixed = order.iter().enumerate().filter(|&(index, &image)| index as u64 == image).count();
            let neighbours = order.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            assert!(fixed < 10 && neighbours < 10, "{fixed} {neighbours}");
            // Rank correlation of order and identity: its standard deviation is 1 / sqrt(len - 1) = 0.01.
            let mean = (len - 1) as f64 / 2.0;
            let moment = |pairs: &mut dyn Iterator<Item = (f64, f64)>| -> f64 {
                pairs.map(|(a, b)| (a - mean) * (b - mean)).sum()
            };
            let cross = moment(&mut order.iter().enumerate().map(|(index, &image)| (index as f64, image as f64)));
            let own = moment(&mut (0..len).map(|index| (index as f64, index as f64)));
            assert!((cross / own).abs() < 0.05, "{}", cross / own);
        }
        let same = |a: &[u64], b: &[u64]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(same(&orders[0], &orders[1]) < 10 && same(&orders[0], &orders[2]) < 10);
    }
}
