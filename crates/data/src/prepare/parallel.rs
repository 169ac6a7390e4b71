//! A pipeline of three stations: one thread produces, several work, and the calling thread consumes in the order of
//! production, so that what comes out does not depend on how many work.
//!
//! Memory is bounded by weight: the producer waits while the items between production and consumption weigh more than a
//! budget. One item may always be under way, however heavy.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The pipeline has ended before its time; the producer should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

/// How the pipeline is sized.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Working threads.
    pub threads: usize,
    /// Most weight between production and consumption.
    pub budget: usize,
}

/// What the consumer is called with.
pub(super) enum Event<O> {
    /// The next result.
    Item(O),
    /// Nothing has come for a while: a moment to show progress.
    Tick,
}

type Panic = Box<dyn Any + Send>;

struct State<I, O, E> {
    queue: VecDeque<(u64, I, usize)>,
    results: BTreeMap<u64, (Result<O, E>, usize)>,
    weight: usize,
    produced: u64,
    /// How the producer ended.
    end: Option<Result<(), E>>,
    closed: bool,
    panic: Option<Panic>,
}

struct Line<I, O, E> {
    state: Mutex<State<I, O, E>>,
    room: Condvar,
    work: Condvar,
    done: Condvar,
}

/// Where the producer puts its items.
pub(super) struct Feed<'l, I, O, E> {
    line: &'l Line<I, O, E>,
    budget: usize,
}

impl<I, O, E> Feed<'_, I, O, E> {
    /// Sends one item on its way, waiting for room.
    pub fn send(&self, item: I, weight: usize) -> Result<(), Closed> {
        let mut state = self.line.lock();
        while state.weight > 0 && state.weight + weight > self.budget && !state.closed {
            state = wait(&self.line.room, state);
        }
        if state.closed {
            return Err(Closed);
        }
        state.weight += weight;
        let number = state.produced;
        state.produced += 1;
        state.queue.push_back((number, item, weight));
        self.line.work.notify_one();
        Ok(())
    }
}

impl<I, O, E> Line<I, O, E> {
    /// A poisoned lock means that a thread panicked while holding it, which none of the short sections here can do.
    fn lock(&self) -> MutexGuard<'_, State<I, O, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, panic: Option<Panic>) {
        let mut state = self.lock();
        state.closed = true;
        if state.panic.is_none() {
            state.panic = panic;
        }
        self.room.notify_all();
        self.work.notify_all();
        self.done.notify_all();
    }

    fn labour<S>(&self, mut tools: S, work: &impl Fn(&mut S, I) -> Result<O, E>) {
        loop {
            let mut state = self.lock();
            let (number, item, weight) = loop {
                if state.closed {
                    return;
                }
                if let Some(job) = state.queue.pop_front() {
                    break job;
                }
                if state.end.is_some() {
                    return;
                }
                state = wait(&self.work, state);
            };
            drop(state);
            match catch_unwind(AssertUnwindSafe(|| work(&mut tools, item))) {
                Ok(result) => {
                    self.lock().results.insert(number, (result, weight));
                    self.done.notify_all();
                }
                Err(panic) => return self.close(Some(panic)),
            }
        }
    }
}

fn wait<'a, T>(on: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    on.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Runs the pipeline to its end. `tools` makes what each working thread keeps to itself. The first error in order of
/// production ends it; a panic in any thread is passed on to the caller.
pub(super) fn ordered<I, O, E, S>(
    size: Size,
    tools: impl Fn() -> S + Sync,
    produce: impl FnOnce(&Feed<'_, I, O, E>) -> Result<(), E> + Send,
    work: impl Fn(&mut S, I) -> Result<O, E> + Sync,
    mut consume: impl FnMut(Event<O>) -> Result<(), E>,
) -> Result<(), E>
where
    I: Send,
    O: Send,
    E: Send,
{
    let line = Line {
        state: Mutex::new(State {
            queue: VecDeque::new(),
            results: BTreeMap::new(),
            weight: 0,
            produced: 0,
            end: None,
            closed: false,
            panic: None,
        }),
        room: Condvar::new(),
        work: Condvar::new(),
        done: Condvar::new(),
    };
    let outcome = std::thread::scope(|scope| {
        let line = &line;
        scope.spawn(move || {
            let feed = Feed { line, budget: size.budget };
            match catch_unwind(AssertUnwindSafe(|| produce(&feed))) {
                Ok(end) => {
                    line.lock().end = Some(end);
                    line.work.notify_all();
                    line.done.notify_all();
                }
                Err(panic) => line.close(Some(panic)),
            }
        });
        for _ in 0..size.threads.max(1) {
            let (tools, work) = (&tools, &work);
            scope.spawn(move || line.labour(tools(), work));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| gather(line, &mut consume)));
        line.close(None);
        outcome
    });
    let mut state = line.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (outcome, state.panic.take()) {
        (Ok(result), None) => result,
        (Err(panic), _) | (_, Some(panic)) => resume_unwind(panic),
    }
}

fn gather<I, O, E>(line: &Line<I, O, E>, consume: &mut impl FnMut(Event<O>) -> Result<(), E>) -> Result<(), E> {
    let mut next = 0;
    loop {
        let mut state = line.lock();
        let result = loop {
            if state.closed {
                return Ok(());
            }
            if let Some((result, weight)) = state.results.remove(&next) {
                state.weight -= weight;
                line.room.notify_all();
                break Some(result);
            }
            if next == state.produced && state.end.is_some() {
                return state.end.take().unwrap_or(Ok(()));
            }
            let waited = line.done.wait_timeout(state, Duration::from_millis(100));
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                break None;
            }
        };
        drop(state);
        match result {
            Some(result) => {
                next += 1;
                consume(Event::Item(result?))?;
            }
            None => consume(Event::Tick)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicIsize, Ordering};

    fn size(threads: usize) -> Size {
        Size { threads, budget: 10 }
    }

    fn slow_square(_: &mut (), n: u64) -> Result<u64, String> {
        std::thread::sleep(Duration::from_micros(n * 7 % 300));
        if n == 77 { Err(format!("{n} is not wanted")) } else { Ok(n * n) }
    }

    #[test]
    fn results_come_in_order_with_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut out = Vec::new();
            let produce = |feed: &Feed<'_, u64, u64, String>| {
                (100..400).try_for_each(|n| feed.send(n, (n % 20) as usize)).map_err(|_| "closed".to_string())
            };
            ordered(
                size(threads),
                || (),
                produce,
                slow_square,
                |event| {
                    if let Event::Item(n) = event {
                        out.push(n);
                    }
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(out, (100u64..400).map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn weight_under_way_is_bounded() {
        let (under_way, most) = (AtomicIsize::new(0), AtomicIsize::new(0));
        let produce = |feed: &Feed<'_, (), (), String>| {
            for _ in 0..200 {
                most.fetch_max(under_way.fetch_add(3, Ordering::SeqCst), Ordering::SeqCst);
                feed.send((), 3).map_err(|_| "closed".to_string())?;
            }
            Ok(())
        };
        ordered(
            size(4),
            || (),
            produce,
            |_, ()| Ok(()),
            |event| {
                if let Event::Item(()) = event {
                    under_way.fetch_sub(3, Ordering::SeqCst);
                }
                Ok(())
            },
        )
        .unwrap();
        // The consumer subtracts a moment after the room was given back, for the one item it has in hand.
        assert!(most.load(Ordering::SeqCst) <= 10 + 3, "{most:?}");
    }

    #[test]
    fn errors_of_every_station_end_it() {
        let endless = |feed: &Feed<'_, u64, u64, String>| {
            (0..).try_for_each(|n| feed.send(n, 1)).map_err(|_| "closed".to_string())
        };
        let mut last = 0;
        let error = ordered(
            size(3),
            || (),
            endless,
            slow_square,
            |event| {
                if let Event::Item(n) = event {
                    last = n;
                }
                Ok(())
            },
        );
        assert_eq!((error, last), (Err("77 is not wanted".to_string()), 76 * 76));
        let error = ordered(size(3), || (), endless, slow_square, |_| Err("full".to_string()));
        assert_eq!(error, Err("full".to_string()));
        let produce = |feed: &Feed<'_, u64, u64, String>| {
            feed.send(1, 1).map_err(|_| "closed".to_string())?;
            Err("no more".to_string())
        };
        let error = ordered(size(3), || (), produce, slow_square, |_| Ok(()));
        assert_eq!(error, Err("no more".to_string()));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_no_thread_waiting() {
        let endless = |feed: &Feed<'_, u64, u64, String>| {
            (0..).try_for_each(|n| feed.send(n, 1)).map_err(|_| "closed".to_string())
        };
        let work = |_: &mut (), n: u64| if n == 5 { panic!("five") } else { Ok(n) };
        let caught = catch_unwind(AssertUnwindSafe(|| ordered(size(2), || (), endless, work, |_| Ok(()))));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"five"));
    }
}
