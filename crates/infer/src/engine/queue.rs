//! Who waits, and whose turn it is: one request of each client after another, each client's in their order.

use super::sequence::Waiting;
use std::collections::{HashMap, VecDeque};

/// Requests that nobody has taken up.
#[derive(Default)]
pub(super) struct Queue {
    /// Clients with requests, in turns.
    turns: VecDeque<u64>,
    requests: HashMap<u64, VecDeque<Waiting>>,
    len: usize,
}

impl Queue {
    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, waiting: Waiting) {
        let client = waiting.request.client;
        let own = self.requests.entry(client).or_default();
        if own.is_empty() {
            self.turns.push_back(client);
        }
        own.push_back(waiting);
        self.len += 1;
    }

    /// Whose turn it is.
    pub fn front(&self) -> Option<&Waiting> {
        self.requests.get(self.turns.front()?)?.front()
    }

    pub fn pop(&mut self) -> Option<Waiting> {
        let client = self.turns.pop_front()?;
        let own = self.requests.get_mut(&client)?;
        let waiting = own.pop_front();
        if own.is_empty() {
            self.requests.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        self.len -= usize::from(waiting.is_some());
        waiting
    }

    /// Takes out those whose readers have left, and says how many.
    pub fn sweep(&mut self) -> usize {
        let before = self.len;
        self.requests.values_mut().for_each(|own| own.retain(|w| !w.cancelled()));
        self.requests.retain(|_, own| !own.is_empty());
        self.turns.retain(|client| self.requests.contains_key(client));
        self.len = self.requests.values().map(VecDeque::len).sum();
        before - self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Request;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    fn waiting(client: u64, mark: usize, cancelled: bool) -> Waiting {
        Waiting {
            request: Request { client, max_tokens: mark, ..Request::default() },
            guide: None,
            sink: Box::new(|_| true),
            cancelled: Arc::new(AtomicBool::new(cancelled)),
            since: Instant::now(),
            slot: None,
        }
    }

    #[test]
    fn clients_take_turns() {
        let mut queue = Queue::default();
        for (client, mark) in [(7, 1), (7, 2), (7, 3), (9, 4), (9, 5), (8, 6)] {
            queue.push(waiting(client, mark, false));
        }
        assert_eq!(queue.front().unwrap().request.max_tokens, 1);
        let order: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|w| w.request.max_tokens).collect();
        assert_eq!((order, queue.len()), (vec![1, 4, 6, 2, 5, 3], 0));
        for (mark, cancelled) in [(1, true), (2, false), (3, true)] {
            queue.push(waiting(mark as u64 % 2, mark, cancelled));
        }
        assert_eq!((queue.sweep(), queue.len()), (2, 1));
        assert_eq!(queue.pop().unwrap().request.max_tokens, 2);
        assert!(queue.pop().is_none() && queue.front().is_none());
    }
}
