//! The ids of byte-pair merging without merging: the longest tokens that go together.
//!
//! Merging starts from bytes and looks at every pair on its way up. The same ids can be found from the top. Say that two
//! tokens go together if merging the bytes of both gives just these two. Then a sequence of tokens is what merging gives
//! for its bytes if and only if all neighbours go together: merging inside a token knows nothing of what is around it
//! until a pair across an edge is merged, and the first such pair lies in two neighbours. So the text is covered from
//! left to right with the longest token that goes together with the one before; if there is none, the last token was
//! wrong and a shorter one is tried in its place. For each prefix of the text there is one sequence only, so a place from
//! which there is no way on need not be tried twice, and the time is proportional to the length. (The idea is that of
//! GitHub's `bpe` crate, whose tables need a vocabulary without hash collisions and which knows ranks, not merges.)
//!
//! This holds for a vocabulary in which every token comes from one merge, its parts come from earlier ones, and merging
//! the bytes of a token gives that token. [`Greedy::new`] looks at every token; learned vocabularies pass.

use super::bpe::{Bpe, Scratch, Table};

const NONE: u32 = u32::MAX;
const BYTES: u32 = 256;

/// Tokens are numbered by rank here: the 256 bytes, then the merges in order.
#[derive(Clone, Debug)]
pub struct Greedy {
    tokens: Vec<Token>,
    pairs: Table,
    trie: Trie,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    len: u32,
    /// The longest token that is a proper prefix of this one.
    prefix: u32,
    left: u32,
    right: u32,
}

impl Greedy {
    /// The encoder for the merges `(left, right, merged)` in order of rank, if it gives what `bpe` gives.
    pub fn new(bytes: &[u32; 256], merges: &[(u32, u32, u32)], bpe: &Bpe) -> Option<Greedy> {
        let ids = bytes.iter().copied().chain(merges.iter().map(|merge| merge.2));
        let mut number_of = vec![NONE; ids.clone().max()? as usize + 1];
        let mut texts: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut tokens = Vec::with_capacity(texts.len() + merges.len());
        let mut scratch = Scratch::default();
        for (id, rank) in ids.zip(0..) {
            let (mut left, mut right) = (NONE, NONE);
            if rank >= BYTES {
                let merge = merges[(rank - BYTES) as usize];
                left = number_of[merge.0 as usize];
                right = number_of[merge.1 as usize];
                let parts = [texts.get(left as usize)?.as_slice(), texts.get(right as usize)?];
                texts.push(parts.concat());
            }
            let text = &texts[rank as usize];
            let mut merged = Vec::new();
            bpe.encode(text, &mut scratch, &mut merged);
            if number_of[id as usize] != NONE || merged != [id] {
                return None;
            }
            number_of[id as usize] = rank;
            tokens.push(Token { id, len: text.len() as u32, prefix: NONE, left, right });
        }
        let made = tokens.iter().zip(0..).skip(BYTES as usize);
        let pairs = Table::new(merges.len(), made.map(|(token, rank)| (token.left, token.right, (rank, rank))));
        let trie = Trie::new(&texts);
        for (token, text) in tokens.iter_mut().zip(&texts) {
            token.prefix = trie.longest(&text[..text.len() - 1]);
        }
        Some(Greedy { tokens, pairs, trie })
    }

    /// Appends the ids of one pre-token to `out`.
    pub fn encode(&self, piece: &[u8], dead: &mut Vec<u64>, out: &mut Vec<u32>) {
        let start = out.len();
        dead.clear();
        dead.resize(piece.len() / 64 + 1, 0);
        let mut at = 0;
        let mut next = self.trie.longest(piece);
        while at < piece.len() {
            let token = self.tokens[next as usize];
            let end = at + token.len as usize;
            let before = out[start..].last();
            if dead[end / 64] >> (end % 64) & 1 == 0 && before.is_none_or(|&before| self.go_together(before, next)) {
                out.push(next);
                at = end;
                next = self.trie.longest(&piece[at..]);
            } else if token.prefix != NONE {
                next = token.prefix;
            } else {
                dead[at / 64] |= 1 << (at % 64);
                // The first token cannot be wrong in all its lengths: merging gives something for every text.
                next = out.pop().expect("some token begins the text");
                at -= self.tokens[next as usize].len as usize;
            }
        }
        for number in &mut out[start..] {
            *number = self.tokens[*number as usize].id;
        }
    }

    /// Whether merging the bytes of both tokens gives just these two.
    ///
    /// Merging makes tokens in the order of their ranks, so its steps can be taken back from the end: the later of the
    /// two is taken apart, which leaves the part of it that touches the other. A pair across the edge is merged if its
    /// rank comes before that of the step that took one of the two away; on the right side the pair also comes before
    /// an equal rank, because it begins further left.
    fn go_together(&self, mut left: u32, mut right: u32) -> bool {
        let mut limit = NONE;
        loop {
            if self.pairs.get(left, right).0 < limit {
                return false;
            }
            if left.max(right) < BYTES {
                return true;
            }
            if left > right {
                limit = left;
                left = self.tokens[left as usize].right;
            } else {
                limit = right + 1;
                right = self.tokens[right as usize].left;
            }
        }
    }
}

/// All tokens by their bytes: a double array (Aoe, 1989) in which the child of a node for a byte lies at base ⊕ byte.
#[derive(Clone, Debug)]
struct Trie {
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    base: u32,
    /// [`NONE`] for a free cell and for the root, which is the first.
    parent: u32,
    token: u32,
}

const FREE: Cell = Cell { base: 0, parent: NONE, token: NONE };

impl Trie {
    fn new(texts: &[Vec<u8>]) -> Trie {
        let mut order: Vec<u32> = (0..texts.len() as u32).collect();
        order.sort_unstable_by_key(|&token| &texts[token as usize]);
        let mut trie = Trie { cells: vec![FREE; 256] };
        let mut first_free = 1;
        // Nodes whose children are to be placed, with the sorted texts below them and the length of their prefix.
        let mut open = vec![(0, order.as_slice(), 0)];
        while let Some((node, below, depth)) = open.pop() {
            let below = match below {
                [token, rest @ ..] if texts[*token as usize].len() == depth => {
                    trie.cells[node].token = *token;
                    rest
                }
                _ => below,
            };
            let byte_of = |token: &u32| texts[*token as usize][depth];
            let groups: Vec<&[u32]> = below.chunk_by(|a, b| byte_of(a) == byte_of(b)).collect();
            if groups.is_empty() {
                continue;
            }
            let bytes: Vec<usize> = groups.iter().map(|group| usize::from(byte_of(&group[0]))).collect();
            let base = trie.find_base(&bytes, &mut first_free);
            trie.cells[node].base = base as u32;
            for (byte, group) in bytes.into_iter().zip(groups) {
                trie.cells[base ^ byte].parent = node as u32;
                open.push((base ^ byte, group, depth + 1));
            }
        }
        trie
    }

    /// A base with free cells for all these children; the array grows when none is found soon.
    fn find_base(&mut self, bytes: &[usize], first_free: &mut usize) -> usize {
        let free = |cells: &[Cell], at: usize| at != 0 && cells[at].parent == NONE;
        while *first_free < self.cells.len() && !free(&self.cells, *first_free) {
            *first_free += 1;
        }
        let places = (*first_free..self.cells.len()).filter(|&at| free(&self.cells, at)).take(256);
        let found = places.map(|at| at ^ bytes[0]).find(|base| bytes.iter().all(|byte| free(&self.cells, base ^ byte)));
        found.unwrap_or_else(|| {
            let base = self.cells.len();
            self.cells.resize(base + 256, FREE);
            base
        })
    }

    /// The longest token that `text` begins with, or [`NONE`].
    fn longest(&self, text: &[u8]) -> u32 {
        let mut found = NONE;
        let mut node = 0;
        for &byte in text {
            let child = self.cells[node].base as usize ^ usize::from(byte);
            if self.cells[child].parent != node as u32 {
                break;
            }
            node = child;
            if self.cells[node].token != NONE {
                found = self.cells[node].token;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::learn::{Words, learn};
    use proptest::prelude::*;

    const IDENTITY: fn() -> [u32; 256] = || std::array::from_fn(|byte| byte as u32);

    fn both(greedy: &Greedy, bpe: &Bpe, text: &[u8]) -> [Vec<u32>; 2] {
        let [mut ours, mut merged] = [vec![9], vec![9]];
        greedy.encode(text, &mut Vec::new(), &mut ours);
        bpe.encode(text, &mut Scratch::default(), &mut merged);
        [ours, merged]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn learned_vocabularies_pass_and_give_the_ids_of_merging(
            words in proptest::collection::vec("[abc]{1,12}", 1..80),
            texts in proptest::collection::vec("[abcd]{0,90}", 1..10),
        ) {
            let mut counts = Words::new(usize::MAX);
            words.iter().for_each(|word| counts.add(word.as_bytes()));
            let merges = learn(counts, &IDENTITY(), 256, 100);
            let bpe = Bpe::new(IDENTITY(), &merges);
            let greedy = Greedy::new(&IDENTITY(), &merges, &bpe).unwrap();
            for text in texts.iter().chain(&words) {
                let [ours, merged] = both(&greedy, &bpe, text.as_bytes());
                prop_assert_eq!(ours, merged);
            }
        }

        /// Vocabularies that nobody learned: refused, or as good as any.
        #[test]
        fn any_vocabulary_is_refused_or_gives_the_ids_of_merging(
            pairs in proptest::collection::vec((0usize..40, 0usize..40), 0..30),
            texts in proptest::collection::vec("[abc]{0,40}", 1..10),
        ) {
            let mut merges: Vec<(u32, u32, u32)> = Vec::new();
            for (left, right) in pairs {
                let symbol = |at: usize| match at % (merges.len() + 3) {
                    at @ 0..3 => u32::from(b'a') + at as u32,
                    at => 256 + at as u32 - 3,
                };
                let (left, right) = (symbol(left), symbol(right));
                merges.push((left, right, 256 + merges.len() as u32));
            }
            let bpe = Bpe::new(IDENTITY(), &merges);
            if let Some(greedy) = Greedy::new(&IDENTITY(), &merges, &bpe) {
                for text in texts {
                    let [ours, merged] = both(&greedy, &bpe, text.as_bytes());
                    prop_assert_eq!(ours, merged);
                }
            }
        }
    }

    #[test]
    fn unreachable_token_is_refused() {
        let [a, b, c] = [97, 98, 99];
        // In "abc", the pair "bc" comes first, so "ab" + "c" is never seen.
        let merges = [(b, c, 256), (a, b, 257), (257, c, 258)];
        let bpe = Bpe::new(IDENTITY(), &merges);
        assert!(Greedy::new(&IDENTITY(), &merges, &bpe).is_none());
        assert!(Greedy::new(&IDENTITY(), &merges[..2], &bpe).is_some());
    }

    #[test]
    fn trie_finds_the_longest_token() {
        let texts: Vec<Vec<u8>> = (0..=255)
            .map(|byte| vec![byte])
            .chain(["中国", "中华人民", "\0\0", "ab"].map(|text| text.as_bytes().to_vec()))
            .collect();
        let trie = Trie::new(&texts);
        assert_eq!(trie.longest("中国人".as_bytes()), 256);
        assert_eq!(trie.longest("中华人".as_bytes()), u32::from("中".as_bytes()[0]));
        assert_eq!(trie.longest(b"\0\0\0"), 258);
        assert_eq!(trie.longest(b"abc"), 259);
        assert_eq!(trie.longest(b""), NONE);
    }
}
