//! A persistent pool of threads with a cheap hand-off.
//!
//! A step of a small model is thousands of kernels of 20 µs to 2 ms, so a hand-off must cost about a microsecond, and a
//! thread that the system has put aside must not hold up the others. A job is `tasks` calls of one closure; threads
//! take task numbers from a shared counter. What a task computes depends on its number alone, never on the thread that
//! took it: that is why results do not depend on the number of threads.
//!
//! Workers *join* a job, they are not assigned to it. The whole protocol is one word, the [`Gate`]: the number of the
//! job, whether it is open, and how many workers are inside.
//!
//! - The caller writes the job, opens the gate under a new number, and takes tasks like everyone else. When the
//!   counter has run out it closes the gate, waits for those inside, and returns: the closure on its stack and the job
//!   may go, because nobody can enter any more.
//! - A worker that sees an open gate with a number it has not served enters by counting itself in (a compare-exchange
//!   on the whole word, so it cannot enter a job that has just been closed), takes tasks, and counts itself out. Entering
//!   acquires the job that opening released; leaving releases the results that the caller's wait acquires.
//! - A worker with nothing to do polls, then polls giving way to other programs, then sleeps. Before sleeping it
//!   announces itself and looks at the gate once more; the caller opens the gate and then looks for sleepers. These four
//!   accesses are sequentially consistent, so one of the two sees the other and no wake-up is lost.
//!
//! A pool runs one job at a time. A call from inside a task, or while another thread's job runs, does its tasks by
//! itself: it cannot deadlock, and the result is the same.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread without work polls …
const POLL: Duration = Duration::from_micros(20);
/// … and polls giving way to others, both from the start, before it sleeps.
const POLL_POLITELY: Duration = Duration::from_micros(200);

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The job in progress: a closure and how many tasks it has.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

/// The gate's word: job number (31 bits), open (1 bit), workers inside (32 bits).
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const INSIDE: u64 = (1 << 32) - 1;
    const OPEN: u64 = 1 << 32;
    const NUMBER: u64 = !(Self::INSIDE | Self::OPEN);

    /// Open under the next number, nobody inside.
    fn next(self) -> Gate {
        Gate((self.0 & Self::NUMBER).wrapping_add(Self::OPEN << 1) | Self::OPEN)
    }
    /// The job's number, if it may be entered.
    fn open(self) -> Option<u64> {
        (self.0 & Self::OPEN != 0).then_some(self.0 & Self::NUMBER)
    }
    fn inside(self) -> u64 {
        self.0 & Self::INSIDE
    }
}

/// Keeps what several threads write off each other's cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Default)]
struct Shared {
    gate: Apart<AtomicU64>,
    /// The next task to take.
    next: Apart<AtomicUsize>,
    /// Written by the caller while the gate is closed and nobody is inside, read by those inside.
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}
// SAFETY: `job` is handed over by the gate (see the module's text); its pointer is only followed inside the gate, and the
// closure it leads to is `Sync`. All else is `Sync` by itself.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Runs the tasks of one job at a time on a fixed set of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// True while a job runs.
    running: AtomicBool,
}

impl Pool {
    /// A pool of `threads` threads (at least one: the caller of [`Pool::run`]).
    pub fn new(threads: usize) -> Self {
        Self::on(threads, &[])
    }

    /// A pool whose threads stay on processors of their own: thread i, the calling thread being the first, on the i-th of
    /// those that the process may use (modulo their number). On a machine that others use too this can be slower, since the
    /// system may then not move a thread away from a busy processor. Where the system has no such thing, as [`Pool::new`].
    pub fn pinned(threads: usize) -> Self {
        let processors = affinity::allowed();
        if let Some(&first) = processors.first() {
            affinity::stay_on(first);
        }
        Self::on(threads, &processors)
    }

    fn on(threads: usize, processors: &[usize]) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..threads)
            .map(|i| {
                let shared = shared.clone();
                let processor = processors.get(i % processors.len().max(1)).copied();
                std::thread::Builder::new()
                    .name(format!("wudao-{i}"))
                    .spawn(move || {
                        processor.into_iter().for_each(affinity::stay_on);
                        shared.work()
                    })
                    .expect("cannot start a worker thread")
            })
            .collect();
        Pool { shared, workers, running: AtomicBool::new(false) }
    }

    /// Threads that take part in a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0), …, task(tasks - 1)`, each once, on any thread, and returns when all are done.
    /// A panic in a task is raised again here; tasks that nobody has begun by then are left out.
    /// From inside a task, or while another thread's job runs, all tasks run on the calling thread.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || self.running.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(task);
        }
        let outcome = self.shared.run(tasks, &task);
        self.running.store(false, Ordering::Release);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    /// Splits `0..n` into pieces of `piece` and calls `f` with each. The pieces do not depend on the threads.
    pub fn ranges(&self, n: usize, piece: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        let piece = piece.max(1);
        self.run(n.div_ceil(piece), |i| f(i * piece..((i + 1) * piece).min(n)));
    }
}

impl Shared {
    /// One job, from opening the gate to the last worker's leaving. Only one thread may be in here.
    fn run(&self, tasks: usize, task: &Task) -> Result<(), Box<dyn Any + Send>> {
        let task: *const Task = task;
        // SAFETY: only the lifetime is erased; the pointer is followed inside the gate alone, and we do not return before
        // the gate is closed and empty.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let job = Job { task, tasks };
        // SAFETY: the gate is closed and empty, so no worker reads.
        unsafe { *self.job.get() = Some(job) };
        self.next.0.store(0, Ordering::Relaxed);
        let last = Gate(self.gate.0.load(Ordering::Relaxed));
        self.gate.0.store(last.next().0, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = self.lock_sleep();
            self.wake.notify_all();
        }
        self.take_tasks(job);
        self.gate.0.fetch_and(!Gate::OPEN, Ordering::Relaxed);
        poll(|| Gate(self.gate.0.load(Ordering::Acquire)).inside() == 0, Duration::MAX);
        match self.panic.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(panic) => Err(panic),
            None => Ok(()),
        }
    }

    /// Takes tasks until there are none. The first panic is kept for the caller, and ends the job.
    fn take_tasks(&self, job: Job) {
        // SAFETY: the caller, who owns the closure, is in here itself or waits for us inside the gate.
        let task = unsafe { &*job.task };
        let all = || {
            loop {
                let i = self.next.0.fetch_add(1, Ordering::Relaxed);
                if i >= job.tasks {
                    return;
                }
                task(i);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            self.next.0.fetch_max(job.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut served = None;
        loop {
            let fresh = || Gate(self.gate.0.load(Ordering::SeqCst)).open().is_some_and(|job| Some(job) != served);
            let stop = || self.stop.load(Ordering::Relaxed);
            if !poll(|| fresh() || stop(), POLL_POLITELY) {
                let mut sleep = self.lock_sleep();
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !fresh() && !stop() {
                    sleep = self.wake.wait(sleep).unwrap_or_else(|e| e.into_inner());
                }
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
            }
            if stop() {
                return;
            }
            let seen = Gate(self.gate.0.load(Ordering::Relaxed));
            let Some(number) = seen.open() else { continue };
            if served != Some(number)
                && self.gate.0.compare_exchange(seen.0, seen.0 + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                // SAFETY: we are inside, so the caller does not write the job.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.take_tasks(job);
                }
                served = Some(number);
                self.gate.0.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn lock_sleep(&self) -> MutexGuard<'_, ()> {
        self.sleep.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Polls until `done`, or until the time is over: then false.
fn poll(done: impl Fn() -> bool, limit: Duration) -> bool {
    let mut start = None;
    loop {
        // Looking at the clock costs as much as a hand-off, so not too often.
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let waited = start.get_or_insert_with(Instant::now).elapsed();
        if waited > limit {
            return false;
        }
        if waited > POLL {
            std::thread::yield_now();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _sleep = self.shared.lock_sleep();
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

/// Which processors a thread may run on.
#[cfg(target_os = "linux")]
mod affinity {
    /// Those that the calling thread may use, ascending; none if the system does not say.
    pub fn allowed() -> Vec<usize> {
        let mut set = empty();
        // SAFETY: the kernel writes at most as many bytes as it is told the set has; 0 is the calling thread.
        let known = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } == 0;
        // SAFETY: the numbers are below the size of the set.
        (0..libc::CPU_SETSIZE as usize).filter(|&i| known && unsafe { libc::CPU_ISSET(i, &set) }).collect()
    }

    /// Keeps the calling thread on one processor; a refusal does no harm.
    pub fn stay_on(processor: usize) {
        let mut set = empty();
        // SAFETY: the number came from `allowed`, hence is below the size of the set, which is ours.
        unsafe {
            libc::CPU_SET(processor, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }

    fn empty() -> libc::cpu_set_t {
        // SAFETY: a set of bits, for which all zeros is a value: the empty set.
        unsafe { std::mem::zeroed() }
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    pub fn allowed() -> Vec<usize> {
        vec![]
    }
    pub fn stay_on(_: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = if cfg!(miri) { 20 } else { 20_000 };

    fn counters(n: usize) -> Vec<AtomicUsize> {
        (0..n).map(|_| AtomicUsize::new(0)).collect()
    }

    /// In a thread of its own, which may then be left where it was put.
    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn pinned_threads_stay_where_they_were_put() {
        let places = std::thread::spawn(|| {
            let before = affinity::allowed();
            let pool = Pool::pinned(3);
            let places = Mutex::new(std::collections::BTreeSet::new());
            pool.run(64, |_| {
                std::thread::sleep(Duration::from_micros(200));
                let now = affinity::allowed();
                assert_eq!(now.len(), 1);
                places.lock().unwrap().insert(now[0]);
            });
            (before, places.into_inner().unwrap())
        });
        let (before, places) = places.join().unwrap();
        assert!(places.iter().all(|p| before.contains(p)) && places.contains(&before[0]), "{places:?} of {before:?}");
    }

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4);
        for tasks in [0, 1, 2, 3, 17, 1000] {
            let seen = counters(tasks);
            pool.run(tasks, |i| {
                seen[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }

    /// Short jobs one after another: the closure, the results and the number of tasks are each job's own. The results
    /// are plain memory, so a missing hand-over is a data race that Miri reports.
    #[test]
    fn jobs_do_not_mix() {
        struct Slots<'a>(&'a [UnsafeCell<usize>]);
        // SAFETY: each task writes its own slot.
        unsafe impl Sync for Slots<'_> {}
        let pool = Pool::new(3);
        for job in 0..MANY {
            let tasks = 2 + job % 5;
            let results: Vec<UnsafeCell<usize>> = (0..tasks).map(|_| UnsafeCell::new(0)).collect();
            let slots = Slots(&results);
            let slots = &slots;
            // SAFETY: task i is the only one that touches slot i while the job runs.
            pool.run(tasks, move |i| unsafe { *slots.0[i].get() = job + i });
            for (i, result) in results.into_iter().enumerate() {
                assert_eq!(result.into_inner(), job + i);
            }
        }
    }

    /// Pauses of all lengths between jobs, so that workers are met polling, falling asleep and asleep.
    #[test]
    fn sleeping_workers_wake_and_do_not_delay() {
        let pool = Pool::new(3);
        let done = AtomicUsize::new(0);
        for pause in (0..400).step_by(if cfg!(miri) { 100 } else { 1 }) {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(pause) {
                std::hint::spin_loop();
            }
            pool.run(3, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let jobs = if cfg!(miri) { 4 } else { 400 };
        assert_eq!(done.into_inner(), 3 * jobs);
        // A worker that must come is woken: both tasks wait for each other.
        std::thread::sleep(Duration::from_millis(2));
        let arrived = AtomicUsize::new(0);
        pool.run(2, |_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_job_inside_a_task_runs_there() {
        let pool = Pool::new(3);
        let seen = counters(5 * 7);
        pool.run(5, |i| {
            let thread = std::thread::current().id();
            pool.run(7, |j| {
                assert_eq!(std::thread::current().id(), thread);
                seen[i * 7 + j].fetch_add(1, Ordering::Relaxed);
            });
        });
        assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn several_threads_share_a_pool() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..MANY / 20 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..8 {
            let panic = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, |i| {
                    if i == bad {
                        resume_unwind(Box::new(i))
                    }
                });
            }));
            assert_eq!(panic.expect_err("a panic").downcast_ref(), Some(&bad));
        }
        let sum = AtomicUsize::new(0);
        pool.run(100, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn job_numbers_wrap() {
        let last = Gate(Gate::NUMBER);
        assert_eq!(last.open(), None);
        assert_eq!(last.next().open(), Some(0));
        assert_eq!(last.next().inside(), 0);
    }
}
