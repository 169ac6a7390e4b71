//! Learning merges: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016).
//!
//! Again and again, the pair of adjacent symbols that occurs most often (of equals, the one with the smallest ids) becomes
//! a new symbol. The result is that of the `tokenizers` crate's trainer, and a test holds it to that; this one takes a
//! third of the memory and a fraction of the time, because the words lie in one array in which symbols grow in place, and
//! every pair knows where it occurs. Nothing here depends on the order of a hash table, so the same words in any order
//! give the same merges.

use ahash::AHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Words longer than this are not learned from: they are no words (encoded data, mostly).
const MAX_WORD: usize = 1 << 10;

/// Distinct words with the number of times each occurred, in bounded memory.
///
/// When the distinct words together exceed the limit, the rarest are forgotten until half of it is left ("lossy
/// counting", Manku and Motwani, 2002). What is frequent stays, and what is rare would not have made a merge.
#[derive(Debug)]
pub(super) struct Words {
    counts: AHashMap<Box<[u8]>, u64>,
    bytes: usize,
    limit: usize,
}

impl Words {
    /// No words yet; at most `limit` bytes of distinct words are kept.
    pub fn new(limit: usize) -> Words {
        Words { counts: AHashMap::new(), bytes: 0, limit }
    }

    pub fn add(&mut self, word: &[u8]) {
        // A single byte is a symbol already.
        if word.len() < 2 || word.len() > MAX_WORD {
            return;
        }
        if let Some(count) = self.counts.get_mut(word) {
            *count += 1;
            return;
        }
        self.counts.insert(word.into(), 1);
        self.bytes += word.len();
        if self.bytes > self.limit {
            self.forget_rare();
        }
    }

    fn forget_rare(&mut self) {
        // Bytes of the words that occurred once, twice, …; the last entry is for all above.
        let mut by_count = [0usize; 256];
        let class = |count: u64| count.min(255) as usize;
        for (word, &count) in &self.counts {
            by_count[class(count)] += word.len();
        }
        let mut rarest = 0;
        while self.bytes > self.limit / 2 && rarest < 255 {
            rarest += 1;
            self.bytes -= by_count[rarest];
        }
        self.counts.retain(|_, &mut count| class(count) > rarest);
        self.bytes = self.counts.keys().map(|word| word.len()).sum();
    }
}

/// A merge: two symbols and the one they become.
pub(super) type Merge = (u32, u32, u32);

/// Learns at most `merges` merges over the words. The symbol of byte b is `bytes[b]`, new symbols are numbered from
/// `first`. Pairs that occur only once are not merged, so there may be fewer.
pub(super) fn learn(words: Words, bytes: &[u32; 256], first: u32, merges: usize) -> Vec<Merge> {
    let mut learner = Learner::new(words, bytes);
    let mut learned = Vec::with_capacity(merges);
    while learned.len() < merges {
        let Some(pair) = learner.most_frequent() else { break };
        let symbol = first + learned.len() as u32;
        learner.merge(pair, symbol);
        learned.push((pair.0, pair.1, symbol));
    }
    learned
}

type Pair = (u32, u32);

/// Marks a place inside a symbol, which is not the start of one.
const INSIDE: u32 = u32::MAX;

#[derive(Default)]
struct Occurrences {
    count: u64,
    /// Where the left symbol starts, ascending. Places where the pair has gone since are still listed.
    places: Vec<u32>,
}

struct Learner {
    /// The symbol that starts at each byte of all words, or [`INSIDE`].
    symbols: Vec<u32>,
    /// Length in bytes of a symbol, at its first and its last byte.
    lens: Vec<u16>,
    /// The word each byte belongs to.
    words: Vec<u32>,
    /// How often each word occurs.
    counts: Vec<u64>,
    pairs: AHashMap<Pair, Occurrences>,
    /// Pairs by count, the smallest ids first among equals. Counts may be out of date; they only ever fall.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl Learner {
    fn new(words: Words, bytes: &[u32; 256]) -> Learner {
        let mut learner = Learner {
            symbols: Vec::with_capacity(words.bytes),
            lens: vec![1; words.bytes],
            words: Vec::with_capacity(words.bytes),
            counts: Vec::with_capacity(words.counts.len()),
            pairs: AHashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (word, count) in words.counts {
            let number = learner.counts.len() as u32;
            for &byte in &word {
                learner.symbols.push(bytes[usize::from(byte)]);
                learner.words.push(number);
            }
            learner.counts.push(count);
        }
        for left in 0..learner.symbols.len().saturating_sub(1) {
            if learner.words[left] == learner.words[left + 1] {
                learner.add((learner.symbols[left], learner.symbols[left + 1]), left);
            }
        }
        learner.queue = learner.pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
        learner
    }

    /// Counts a pair whose left symbol starts at `place`; true if there was none before.
    fn add(&mut self, pair: Pair, place: usize) -> bool {
        let found = self.pairs.entry(pair).or_default();
        found.count += self.counts[self.words[place] as usize];
        found.places.push(place as u32);
        found.places.len() == 1
    }

    fn remove(&mut self, pair: Pair, place: usize) {
        if let Some(found) = self.pairs.get_mut(&pair) {
            found.count -= self.counts[self.words[place] as usize];
        }
    }

    /// The pair to merge next, if any occurs at least twice.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            let now = self.pairs.get(&pair).map_or(0, |found| found.count);
            if now < 2 {
                self.pairs.remove(&pair);
            } else if now == count {
                return Some(pair);
            } else {
                self.queue.push((now, Reverse(pair)));
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair, symbol: u32) {
        let places = self.pairs.remove(&pair).unwrap_or_default().places;
        let mut new = Vec::new();
        for place in places {
            let left = place as usize;
            if self.symbols[left] != pair.0 {
                continue;
            }
            let right = left + usize::from(self.lens[left]);
            if self.symbol_in_word_of(left, right) != Some(pair.1) {
                continue;
            }
            let len = self.lens[left] + self.lens[right];
            let next = right + usize::from(self.lens[right]);
            if let Some(after) = self.symbol_in_word_of(left, next) {
                self.remove((pair.1, after), left);
                if self.add((symbol, after), left) {
                    new.push((symbol, after));
                }
            }
            if left > 0 && self.words[left - 1] == self.words[left] {
                let previous = left - usize::from(self.lens[left - 1]);
                let before = self.symbols[previous];
                self.remove((before, pair.0), left);
                if self.add((before, symbol), previous) {
                    new.push((before, symbol));
                }
            }
            self.symbols[left] = symbol;
            self.symbols[right] = INSIDE;
            self.lens[left] = len;
            self.lens[next - 1] = len;
        }
        for pair in new {
            self.queue.push((self.pairs[&pair].count, Reverse(pair)));
        }
    }

    /// The symbol that starts at `place`, if that is in the same word as `other`.
    fn symbol_in_word_of(&self, other: usize, place: usize) -> Option<u32> {
        (self.words.get(place) == Some(&self.words[other])).then(|| self.symbols[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::pieces::byte_to_char;
    use compact_str::CompactString;
    use proptest::prelude::*;
    use tokenizers::Model;
    use tokenizers::models::bpe::{BPE, BpeTrainer};

    /// Our merges as pairs of strings, and the crate's.
    fn both(words: &[Vec<u8>], merges: usize) -> [Vec<Vec<u8>>; 2] {
        let mut counts = Words::new(usize::MAX);
        let mut theirs = AHashMap::new();
        for word in words {
            counts.add(word);
            let word: CompactString = word.iter().map(|&byte| byte_to_char(byte)).collect();
            *theirs.entry(word).or_default() += 1;
        }
        // The crate numbers the bytes by the character that stands for them.
        let mut order: Vec<u8> = (0..=255).collect();
        order.sort_by_key(|&byte| byte_to_char(byte));
        let mut bytes = [0; 256];
        for (id, &byte) in order.iter().enumerate() {
            bytes[usize::from(byte)] = id as u32;
        }
        let mut pieces: Vec<Vec<u8>> = order.iter().map(|&byte| vec![byte]).collect();
        for (left, right, _) in learn(counts, &bytes, 256, merges) {
            pieces.push([pieces[left as usize].as_slice(), &pieces[right as usize]].concat());
        }

        let trainer = BpeTrainer::builder()
            .vocab_size(256 + merges)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet((0..=255).map(byte_to_char).collect())
            .build();
        let mut model = BPE::default();
        trainer.do_train(&theirs, &mut model).unwrap();
        let table = crate::tokenizer::pieces::char_to_byte();
        let theirs = (0..model.get_vocab_size() as u32)
            .map(|id| model.id_to_token(id).unwrap().chars().map(|c| table[c as usize].unwrap()).collect())
            .collect();
        [pieces, theirs]
    }

    proptest! {
        #[test]
        fn merges_are_those_of_the_crate(words in proptest::collection::vec("[abc]{1,12}", 1..60), merges in 0usize..80) {
            let words: Vec<Vec<u8>> = words.into_iter().map(String::into_bytes).collect();
            let [ours, theirs] = both(&words, merges);
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn repetitions_are_merged_from_the_left() {
        for words in [vec![b"aaaaaaa".to_vec(); 3], vec![b"abababab".to_vec(), b"aaab".to_vec(), b"aab".to_vec()]] {
            let [ours, theirs] = both(&words, 20);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn rare_words_are_forgotten_when_there_are_too_many() {
        let mut words = Words::new(1000);
        for number in 0..10_000u32 {
            words.add(format!("rare{number}").as_bytes());
            words.add("常见".as_bytes());
            words.add(b"frequent");
        }
        assert!(words.bytes <= 1000 && words.bytes == words.counts.keys().map(|word| word.len()).sum::<usize>());
        assert_eq!(words.counts["常见".as_bytes()], 10_000);
        assert_eq!(words.counts[b"frequent".as_slice()], 10_000);
    }
}
