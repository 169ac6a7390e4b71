//! Many ranks, one checkpoint: what they hold travels to the first, which writes.

use wudao_comm::Comm;
use wudao_device::{DType, Device, Fault, Tensor};
use wudao_model::weights::{HostTensor, Snapshot};

/// All ranks' tensors on rank 0, in the order of the ranks; nothing on the others. Every rank must have the same types,
/// and tensors of the same names as if it were alone in its share: the names and shapes travel along.
pub(crate) fn gather<D: Device>(device: &D, comm: &dyn Comm<D>, snapshot: Snapshot) -> Result<Snapshot, Fault> {
    if comm.size() == 1 {
        return Ok(snapshot);
    }
    let mine = pack(&snapshot);
    let sizes = comm.all_to_all_host(&vec![mine.len() as u64; comm.size()])?;
    let first = comm.rank() == 0;
    // A rank sends everything to rank 0 and nothing to the others.
    let send: Vec<usize> = (0..comm.size()).map(|r| if r == 0 { mine.len() } else { 0 }).collect();
    let recv: Vec<usize> = sizes.iter().map(|&n| if first { n as usize } else { 0 }).collect();
    let words = Tensor::from_host(device, [mine.len(), 1], &mine);
    let words = comm.all_to_all(device, words, &send, &recv).wait()?.view().to_host::<u32>(device);
    let (mut all, mut at) = (Snapshot::default(), 0);
    for n in recv {
        let part = unpack(&words[at..at + n]).ok_or_else(|| Fault("ranks disagree about a checkpoint".into()))?;
        all.append(part);
        at += n;
    }
    Ok(all)
}

fn tag(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F64 => 1,
        DType::Bf16 => 2,
        DType::U32 => 3,
        DType::I8 => 4,
    }
}

/// A snapshot as words: for each tensor its type, the lengths of its name, shape and bytes, then these.
fn pack(snapshot: &Snapshot) -> Vec<u32> {
    let mut words = vec![];
    let push = |words: &mut Vec<u32>, bytes: &[u8]| {
        words.extend(bytes.chunks(4).map(|c| {
            let mut word = [0; 4];
            word[..c.len()].copy_from_slice(c);
            u32::from_le_bytes(word)
        }));
    };
    for t in &snapshot.tensors {
        let (high, low) = ((t.bytes.len() >> 32) as u32, t.bytes.len() as u32);
        words.extend([tag(t.dtype), t.name.len() as u32, t.shape.len() as u32, high, low]);
        words.extend(t.shape.iter().map(|&n| n as u32));
        push(&mut words, t.name.as_bytes());
        push(&mut words, &t.bytes);
    }
    words
}

/// The inverse of [`pack`]; `None` if the words are not that.
fn unpack(mut words: &[u32]) -> Option<Snapshot> {
    let mut take = |n: usize| {
        let (head, tail) = words.split_at_checked(n)?;
        words = tail;
        Some(head)
    };
    let bytes = |words: &[u32], n: usize| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.truncate(n);
        bytes
    };
    let mut tensors = vec![];
    while let Some(&[dtype, name, shape, high, low]) = take(5) {
        let dtype =
            [DType::F32, DType::F64, DType::Bf16, DType::U32, DType::I8].into_iter().find(|&d| tag(d) == dtype)?;
        let (name, length) = (name as usize, (high as usize) << 32 | low as usize);
        let shape = take(shape as usize)?.iter().map(|&n| n as usize).collect();
        let name = String::from_utf8(bytes(take(name.div_ceil(4))?, name)).ok()?;
        let bytes = bytes(take(length.div_ceil(4))?, length);
        tensors.push(HostTensor { name, dtype, shape, bytes });
    }
    Some(Snapshot { tensors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use wudao_comm::Threads;
    use wudao_device::Cpu;

    fn of(rank: usize) -> Snapshot {
        let tensor = |n: usize| HostTensor {
            name: format!("层.{rank}.{n}"),
            dtype: if n == 0 { DType::Bf16 } else { DType::F32 },
            shape: vec![rank + 1, n],
            bytes: (0..(rank + 3) * 2 + n).map(|b| b as u8 ^ 0x80).collect(),
        };
        Snapshot { tensors: (0..=rank).map(tensor).collect() }
    }

    #[test]
    fn everything_arrives_on_the_first_rank() {
        let got: Vec<Snapshot> = thread::scope(|s| {
            let one =
                |comm: Threads| s.spawn(move || gather(&Cpu::new(1), &comm, of(Comm::<Cpu>::rank(&comm))).unwrap());
            Threads::world(3).into_iter().map(one).collect::<Vec<_>>().into_iter().map(|h| h.join().unwrap()).collect()
        });
        let mut expected = of(0);
        expected.append(of(1));
        expected.append(of(2));
        assert!(got[0] == expected);
        assert!(got[1].tensors.is_empty() && got[2].tensors.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(unpack(&[9, 0, 0, 0, 0]).is_none());
        assert!(unpack(&[0, 1, 0, 0, 400, 0]).is_none());
    }
}
