//! A persistent pool of threads with a cheap hand-off.
//!
//! A step of a small model is thousands of kernels of 20 µs to 2 ms, so a hand-off must cost about a microsecond:
//! workers spin briefly for the next job and only then sleep (a pure spin collapses on a shared machine). A job is
//! `tasks` calls of one closure; threads take task numbers from a shared counter. What a task computes depends on
//! its number alone, never on the thread that took it: that is why results do not depend on the number of threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// About 20 µs of polling before a worker sleeps.
const SPINS: u32 = 4000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The job in progress: a closure and how many tasks it has.
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}
// SAFETY: the pointer is only followed between the start and the end of `Pool::run`, which outlives the job.
unsafe impl Send for Job {}

struct Shared {
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Counts jobs: workers compare it to know that there is a new one.
    epoch: AtomicUsize,
    next: AtomicUsize,
    /// Workers that have not yet finished the job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Runs the tasks of one job at a time on a fixed set of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least one: the caller of [`Pool::run`]).
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("wudao-{i}"))
                    .spawn(move || work(&shared))
                    .expect("cannot start a worker thread")
            })
            .collect();
        Pool { shared, workers, running: Mutex::new(()) }
    }

    /// Threads that take part in a job.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0), …, task(tasks - 1)`, each once, on any thread, and returns when all are done.
    /// A panic in a task is raised again here. Must not be called from inside a task.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(task);
        }
        let _one_at_a_time: MutexGuard<()> = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let s = &*self.shared;
        let task: &Task = &task;
        // SAFETY: only the lifetime is erased; workers drop the pointer before `busy` reaches 0, and we wait for that.
        let erased: *const Task<'static> = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        s.next.store(0, Ordering::Relaxed);
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        {
            let mut job = s.job.lock().expect("pool lock");
            *job = Some(Job { task: erased, tasks });
            s.epoch.fetch_add(1, Ordering::Release);
        }
        s.wake.notify_all();
        let mine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take_tasks(s, task, tasks)));
        let mut spins = 0u32;
        while s.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let theirs = s.panicked.swap(false, Ordering::Relaxed);
        match mine {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) if theirs => panic!("a task panicked on a worker thread"),
            Ok(()) => {}
        }
    }

    /// Splits `0..n` into pieces of `piece` and calls `f` with each. The pieces do not depend on the threads.
    pub fn ranges(&self, n: usize, piece: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        let piece = piece.max(1);
        self.run(n.div_ceil(piece), |i| f(i * piece..((i + 1) * piece).min(n)));
    }
}

fn take_tasks(s: &Shared, task: &Task, tasks: usize) {
    loop {
        let i = s.next.fetch_add(1, Ordering::Relaxed);
        if i >= tasks {
            return;
        }
        task(i);
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        let mut spins = 0u32;
        while s.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let mut job = s.job.lock().expect("pool lock");
        while s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Relaxed) {
            job = s.wake.wait(job).expect("pool lock");
        }
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        seen = s.epoch.load(Ordering::Acquire);
        let Some((task, tasks)) = job.as_ref().map(|j| (j.task, j.tasks)) else { continue };
        drop(job);
        // SAFETY: `run` keeps the closure alive until `busy` is 0, which happens after our last use of it.
        let task = unsafe { &*task };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take_tasks(s, task, tasks))).is_err() {
            s.panicked.store(true, Ordering::Relaxed);
        }
        s.busy.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = self.shared.job.lock();
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4);
        for tasks in [0, 1, 2, 3, 17, 1000] {
            let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, |i| {
                seen[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..8 {
            let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(8, |i| assert_ne!(i, bad));
            }));
            assert!(r.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(100, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}
