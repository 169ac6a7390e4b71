//! Many ranks in one process, a thread each.
//!
//! A collective is: every rank posts its part, all meet, every rank reads what it needs, all meet again. Parts travel as
//! host bytes, which is slow and simple; the point is proof, not speed. A rank that leaves (its work done, or on the way
//! out of an error or a panic) comes to no meeting any more, so that whoever waits for it, then or later, gets a fault
//! instead of waiting for ever.

use crate::{Comm, Pending};
use std::sync::{Arc, Condvar, Mutex};
use wudao_device::{DType, Device, Fault, Tensor, ViewMut};

struct Meeting {
    waiting: usize,
    round: u64,
    /// Whether a rank has left. The rest can never again be all.
    left: bool,
    /// What rank `from` posted for rank `to`: `mail[from][to]`.
    mail: Vec<Vec<Vec<u8>>>,
}

struct World {
    size: usize,
    meeting: Mutex<Meeting>,
    all_here: Condvar,
}

/// A rank's place in the meetings, given up when the last handle on it goes.
struct Seat {
    rank: usize,
    world: Arc<World>,
}

/// One rank of a world inside this process.
pub struct Threads(Arc<Seat>);

impl Threads {
    /// A world of `size` ranks; give each to a thread of its own.
    pub fn world(size: usize) -> Vec<Threads> {
        let mail = vec![vec![Vec::new(); size]; size];
        let meeting = Mutex::new(Meeting { waiting: 0, round: 0, left: false, mail });
        let world = Arc::new(World { size, meeting, all_here: Condvar::new() });
        (0..size).map(|rank| Threads(Arc::new(Seat { rank, world: world.clone() }))).collect()
    }

    /// A second handle on the same rank, for a transfer that is waited for later.
    fn same_rank(&self) -> Threads {
        Threads(self.0.clone())
    }

    fn meet(&self) -> Result<(), Fault> {
        let w = &*self.0.world;
        let mut m = w.meeting.lock().unwrap_or_else(|e| e.into_inner());
        let round = m.round;
        // Nobody counts for a meeting that cannot be complete any more: asked for often enough, it would seem so.
        m.waiting += usize::from(!m.left);
        if m.waiting == w.size {
            m.waiting = 0;
            m.round += 1;
            w.all_here.notify_all();
        }
        while m.round == round && !m.left {
            m = w.all_here.wait(m).unwrap_or_else(|e| e.into_inner());
        }
        // A meeting that all came to has taken place, whoever left right after it.
        if m.round == round { Err(Fault("another rank failed; this rank stops too".into())) } else { Ok(()) }
    }

    /// Posts `parts[to]` for every rank and returns what every rank posted for this one.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault> {
        let (rank, world) = (self.0.rank, &*self.0.world);
        let lock = || world.meeting.lock().unwrap_or_else(|e| e.into_inner());
        lock().mail[rank] = parts;
        self.meet()?;
        let got = {
            let m = lock();
            (0..world.size).map(|from| m.mail[from][rank].clone()).collect()
        };
        self.meet()?;
        Ok(got)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.world.meeting.lock().unwrap_or_else(|e| e.into_inner()).left = true;
        self.world.all_here.notify_all();
    }
}

/// Sums `parts`, each a slice of the same length, in order.
fn sum_in_order<T: bytemuck::Pod + std::ops::AddAssign>(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut sum: Vec<T> = bytemuck::allocation::pod_collect_to_vec(&parts[0]);
    for part in &parts[1..] {
        let part: Vec<T> = bytemuck::allocation::pod_collect_to_vec(part);
        assert_eq!(part.len(), sum.len(), "ranks called different collectives");
        sum.iter_mut().zip(part).for_each(|(s, x)| *s += x);
    }
    bytemuck::allocation::pod_collect_to_vec(&sum)
}

impl<D: Device> Comm<D> for Threads {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn size(&self) -> usize {
        self.0.world.size
    }

    fn all_reduce(&self, device: &D, t: ViewMut<D>) -> Result<(), Fault> {
        let mut mine = vec![0; t.len() * t.dtype().size()];
        device.copy_to_host(t.as_view(), &mut mine);
        let parts = self.exchange(vec![mine; self.0.world.size])?;
        let sum = match t.dtype() {
            DType::F32 => sum_in_order::<f32>(&parts),
            DType::F64 => sum_in_order::<f64>(&parts),
            other => panic!("all_reduce of {other:?}"),
        };
        device.copy_from_host(&sum, t);
        Ok(())
    }

    fn all_reduce_host(&self, x: &mut [f64]) -> Result<(), Fault> {
        let parts = self.exchange(vec![bytemuck::allocation::pod_collect_to_vec(x); self.0.world.size])?;
        x.copy_from_slice(&bytemuck::allocation::pod_collect_to_vec::<u8, f64>(&sum_in_order::<f64>(&parts)));
        Ok(())
    }

    fn all_to_all(&self, device: &D, t: Tensor<D>, send: &[usize], recv: &[usize]) -> Pending<D> {
        let (me, device, send, recv) = (self.same_rank(), device.clone(), send.to_vec(), recv.to_vec());
        Pending::new(move || {
            let (cols, dtype) = (t.shape()[1], t.dtype());
            let mut at = 0;
            let parts = send.iter().map(|&n| {
                let mut bytes = vec![0; n * cols * dtype.size()];
                device.copy_to_host(t.view().rows(at..at + n), &mut bytes);
                at += n;
                bytes
            });
            let got = me.exchange(parts.collect())?.concat();
            let mut t = Tensor::new(&device, [recv.iter().sum(), cols], dtype);
            device.copy_from_host(&got, t.view_mut());
            Ok(t)
        })
    }

    fn all_to_all_host(&self, x: &[u64]) -> Result<Vec<u64>, Fault> {
        let n = self.0.world.size;
        assert_eq!(x.len() % n, 0);
        let parts = (0..n)
            .map(|r| bytemuck::allocation::pod_collect_to_vec(&x[r * x.len() / n..(r + 1) * x.len() / n]))
            .collect();
        Ok(self.exchange(parts)?.iter().flat_map(|p| bytemuck::allocation::pod_collect_to_vec::<u8, u64>(p)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wudao_device::Cpu;

    fn sum(comm: &Threads, x: f64) -> Result<f64, Fault> {
        let mut sum = [x];
        Comm::<Cpu>::all_reduce_host(comm, &mut sum)?;
        Ok(sum[0])
    }

    /// A rank that returns early with an error does not leave the others waiting, neither those that wait for it already
    /// nor those that come later.
    #[test]
    fn a_rank_that_leaves_is_not_waited_for() {
        let ranks = Threads::world(3).into_iter().enumerate().map(|(rank, comm)| {
            std::thread::spawn(move || {
                assert_eq!(sum(&comm, 1.0).unwrap(), 3.0);
                if rank == 1 {
                    return Err(Fault("no more memory".into()));
                }
                // Not even by asking again and again.
                let mut answer = Ok(0.0);
                for _ in 0..5 {
                    answer = sum(&comm, 1.0);
                }
                answer
            })
        });
        let results: Vec<_> = ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect();
        for rank in [0, 2] {
            assert!(results[rank].as_ref().is_err_and(|fault| fault.0.contains("another rank failed")));
        }
    }

    /// A meeting that all came to gives its result, however soon some of them are gone.
    #[test]
    fn a_rank_that_is_done_may_go() {
        for _ in 0..50 {
            let ranks = Threads::world(4).into_iter().map(|comm| std::thread::spawn(move || sum(&comm, 2.0)));
            for rank in ranks.collect::<Vec<_>>() {
                assert_eq!(rank.join().unwrap().unwrap(), 8.0);
            }
        }
    }
}
