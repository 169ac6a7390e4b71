//! Who has which page of the cache, and which pages can be used again.
//!
//! A page is free, held by one or more sequences, or idle: nobody holds it, but it is full and its content is known, so a
//! text that begins with the same tokens takes it up instead of reading them (as vLLM and SGLang do). Idle pages are taken
//! for new content when nothing is free, the longest unused first.
//!
//! What a page holds follows from its tokens and all before them. A known page is found by its own tokens and the number of
//! the page before it, which is never given twice: this is exact, where a hash of the whole prefix could be taken in. If a
//! page goes, those after it cannot be found any more, so of a text the last pages go first.

use std::collections::{BTreeMap, HashMap};
use wudao_device::PAGE;

/// The number of a page's content: 0 is that of no tokens.
pub(crate) type Content = u64;

type Key = (Content, [u32; PAGE]);

#[derive(Default)]
struct Page {
    holders: u32,
    known: Option<Key>,
    /// When it became idle.
    since: u64,
}

/// All pages of the cache.
pub(crate) struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// The page of a content, and the content's number.
    known: HashMap<Key, (u32, Content)>,
    /// Idle pages by when they became idle.
    idle: BTreeMap<u64, u32>,
    last_content: Content,
    clock: u64,
}

impl Pages {
    /// So many free pages.
    pub fn new(count: usize) -> Self {
        Pages {
            pages: (0..count).map(|_| Page::default()).collect(),
            free: (0..count as u32).rev().collect(),
            known: HashMap::new(),
            idle: BTreeMap::new(),
            last_content: 0,
            clock: 0,
        }
    }

    /// Pages that somebody holds.
    pub fn held(&self) -> usize {
        self.pages.len() - self.available()
    }

    /// Pages that can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes `n` pages, idle ones if need be; all or none.
    pub fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        if self.available() < n {
            return None;
        }
        let mut one = || {
            let id = match self.free.pop() {
                Some(id) => id,
                None => self.idle.pop_first()?.1,
            };
            let page = &mut self.pages[id as usize];
            page.holders = 1;
            if let Some(key) = page.known.take() {
                self.known.remove(&key);
            }
            Some(id)
        };
        (0..n).map(|_| one()).collect()
    }

    /// Takes up the known pages that `ids` begins with, and the content of the last.
    pub fn find(&mut self, ids: &[u32]) -> (Vec<u32>, Content) {
        let (mut found, mut content) = (Vec::new(), 0);
        for tokens in ids.as_chunks::<PAGE>().0 {
            let Some(&(id, own)) = self.known.get(&(content, *tokens)) else { break };
            let page = &mut self.pages[id as usize];
            if page.holders == 0 {
                self.idle.remove(&page.since);
            }
            page.holders += 1;
            found.push(id);
            content = own;
        }
        (found, content)
    }

    /// Makes a full page known, which follows `before`: the number of its content.
    pub fn publish(&mut self, id: u32, before: Content, tokens: &[u32; PAGE]) -> Content {
        let key = (before, *tokens);
        if let Some(&(_, content)) = self.known.get(&key) {
            // Somebody read the same at the same time: theirs stays the known one.
            return content;
        }
        self.last_content += 1;
        self.known.insert(key, (id, self.last_content));
        self.pages[id as usize].known = Some(key);
        self.last_content
    }

    /// Gives a sequence's pages back, in its order.
    pub fn release(&mut self, ids: &[u32]) {
        for &id in ids.iter().rev() {
            let page = &mut self.pages[id as usize];
            page.holders -= 1;
            if page.holders > 0 {
                continue;
            }
            if page.known.is_some() {
                self.clock += 1;
                page.since = self.clock;
                self.idle.insert(self.clock, id);
            } else {
                self.free.push(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A text that somebody has, and the content of its full pages.
    struct Text {
        ids: Vec<u32>,
        pages: Vec<u32>,
        content: Content,
        published: usize,
    }

    fn grow(pages: &mut Pages, ids: Vec<u32>) -> Option<Text> {
        let (mut own, content) = pages.find(&ids);
        let published = own.len();
        match pages.take(ids.len().div_ceil(PAGE) - own.len()) {
            Some(more) => own.extend(more),
            None => {
                pages.release(&own);
                return None;
            }
        }
        let mut text = Text { ids, pages: own, content, published };
        for (i, tokens) in text.ids.as_chunks::<PAGE>().0.iter().enumerate().skip(published) {
            text.content = pages.publish(text.pages[i], text.content, tokens);
            text.published += 1;
        }
        Some(text)
    }

    proptest! {
        /// Texts that share beginnings come and go in any order: a page's tokens are those of everyone who holds it, nothing
        /// is lost, and when all are gone everything can be taken again.
        #[test]
        fn pages_are_never_lost_nor_mixed_up(
            moves in prop::collection::vec((any::<bool>(), 0u32..3, 0u32..3, 1usize..90), 1..60), count in 6usize..20,
        ) {
            let mut pages = Pages::new(count);
            let mut texts: Vec<Text> = vec![];
            let mut written: HashMap<u32, Vec<u32>> = HashMap::new();
            for (come, a, b, len) in moves {
                if come {
                    // The first 40 tokens are `a`, the rest `b`.
                    let ids: Vec<u32> = (0..len).map(|i| if i < 40 { a } else { 10 + b }).collect();
                    let before = pages.available();
                    let Some(text) = grow(&mut pages, ids) else {
                        prop_assert_eq!(pages.available(), before);
                        continue;
                    };
                    for (i, tokens) in text.ids.chunks(PAGE).enumerate() {
                        let all = text.ids[..i * PAGE + tokens.len()].to_vec();
                        let shared = texts.iter().any(|t| t.pages.contains(&text.pages[i]));
                        let old = written.insert(text.pages[i], all.clone());
                        prop_assert!(!shared || old == Some(all));
                    }
                    texts.push(text);
                } else if !texts.is_empty() {
                    let gone = texts.swap_remove(len % texts.len());
                    pages.release(&gone.pages);
                }
                let mut held: Vec<u32> = texts.iter().flat_map(|t| t.pages.clone()).collect();
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(held.len(), pages.held());
                prop_assert!(texts.iter().all(|t| t.published == t.ids.len() / PAGE));
            }
            texts.drain(..).for_each(|t| pages.release(&t.pages));
            prop_assert_eq!(pages.take(count).map(|p| p.len()), Some(count));
            prop_assert!(pages.known.is_empty() && pages.take(1).is_none());
        }
    }

    #[test]
    fn the_last_pages_of_the_oldest_text_go_first() {
        let mut pages = Pages::new(4);
        let old = grow(&mut pages, vec![1; 2 * PAGE]).unwrap();
        pages.release(&old.pages);
        let new = grow(&mut pages, vec![2; 2 * PAGE]).unwrap();
        pages.release(&new.pages);
        assert_eq!(pages.take(1).unwrap(), [old.pages[1]]);
        assert_eq!(pages.find(&old.ids).0, [old.pages[0]]);
        assert_eq!(pages.find(&new.ids).0, new.pages);
        assert_eq!(pages.find(&[2; PAGE - 1]).0, [0u32; 0]);
    }
}
