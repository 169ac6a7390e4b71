//! Many ranks in one process, a thread each.
//!
//! A collective is: every rank posts its part, all meet, every rank reads what it needs, all meet again. Parts travel as
//! host bytes, which is slow and simple; the point is proof, not speed. A rank that panics breaks the meeting for all,
//! so that the others report a fault instead of waiting for ever.

use crate::{Comm, Pending};
use std::sync::{Arc, Condvar, Mutex};
use wudao_device::{DType, Device, Fault, Tensor, ViewMut};

struct Meeting {
    waiting: usize,
    round: u64,
    broken: bool,
    /// What rank `from` posted for rank `to`: `mail[from][to]`.
    mail: Vec<Vec<Vec<u8>>>,
}

struct World {
    size: usize,
    meeting: Mutex<Meeting>,
    all_here: Condvar,
}

/// One rank of a world inside this process.
pub struct Threads {
    rank: usize,
    world: Arc<World>,
}

impl Threads {
    /// A world of `size` ranks; give each to a thread of its own.
    pub fn world(size: usize) -> Vec<Threads> {
        let mail = vec![vec![Vec::new(); size]; size];
        let meeting = Mutex::new(Meeting { waiting: 0, round: 0, broken: false, mail });
        let world = Arc::new(World { size, meeting, all_here: Condvar::new() });
        (0..size).map(|rank| Threads { rank, world: world.clone() }).collect()
    }

    /// A second handle on the same rank, for a transfer that is waited for later.
    fn same_rank(&self) -> Threads {
        Threads { rank: self.rank, world: self.world.clone() }
    }

    fn meet(&self) -> Result<(), Fault> {
        let w = &*self.world;
        let mut m = w.meeting.lock().unwrap_or_else(|e| e.into_inner());
        let round = m.round;
        m.waiting += 1;
        if m.waiting == w.size {
            m.waiting = 0;
            m.round += 1;
            w.all_here.notify_all();
        }
        while m.round == round && !m.broken {
            m = w.all_here.wait(m).unwrap_or_else(|e| e.into_inner());
        }
        if m.broken { Err(Fault("another rank failed; this rank stops too".into())) } else { Ok(()) }
    }

    /// Posts `parts[to]` for every rank and returns what every rank posted for this one.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Fault> {
        let lock = || self.world.meeting.lock().unwrap_or_else(|e| e.into_inner());
        lock().mail[self.rank] = parts;
        self.meet()?;
        let got = {
            let m = lock();
            (0..self.world.size).map(|from| m.mail[from][self.rank].clone()).collect()
        };
        self.meet()?;
        Ok(got)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.meeting.lock().unwrap_or_else(|e| e.into_inner()).broken = true;
            self.world.all_here.notify_all();
        }
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
        self.rank
    }

    fn size(&self) -> usize {
        self.world.size
    }

    fn all_reduce(&self, device: &D, t: ViewMut<D>) -> Result<(), Fault> {
        let mut mine = vec![0; t.len() * t.dtype().size()];
        device.copy_to_host(t.as_view(), &mut mine);
        let parts = self.exchange(vec![mine; self.world.size])?;
        let sum = match t.dtype() {
            DType::F32 => sum_in_order::<f32>(&parts),
            DType::F64 => sum_in_order::<f64>(&parts),
            other => panic!("all_reduce of {other:?}"),
        };
        device.copy_from_host(&sum, t);
        Ok(())
    }

    fn all_reduce_host(&self, x: &mut [f64]) -> Result<(), Fault> {
        let parts = self.exchange(vec![bytemuck::allocation::pod_collect_to_vec(x); self.world.size])?;
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
        let n = self.world.size;
        assert_eq!(x.len() % n, 0);
        let parts = (0..n)
            .map(|r| bytemuck::allocation::pod_collect_to_vec(&x[r * x.len() / n..(r + 1) * x.len() / n]))
            .collect();
        Ok(self.exchange(parts)?.iter().flat_map(|p| bytemuck::allocation::pod_collect_to_vec::<u8, u64>(p)).collect())
    }
}
