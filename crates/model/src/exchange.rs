//! Carries one row per (token, choice) to whoever owns the chosen expert, and back.
//!
//! A slot is a (token, choice) pair, numbered `t·K + k`. [`Plan`] sorts the slots by expert; rows travel to the ranks that
//! hold those experts (nobody, if this is the only rank) and are sorted there by local expert, so that each expert's rows
//! are one band. It is a permutation: its inverse is its transpose is its gradient. So [`Plan::dispatch`], which copies a
//! token's row to each of its experts, is the backward pass of [`Plan::combine`], which adds up what they answer, and the
//! other way round. No row is ever dropped.

use crate::layer::Cx;
use std::ops::Range;
use wudao_device::{DType, Device, Fault, Tensor, View, ViewMut};

/// Where every slot goes.
pub struct Plan {
    /// Slots in the order of their experts: what this rank sends.
    order: Vec<u32>,
    /// Position in `order` of each slot: its inverse.
    place: Vec<u32>,
    /// Rows sent to and received from each rank.
    send: Vec<usize>,
    recv: Vec<usize>,
    /// Received row of each position in the experts' order; its inverse. Empty on a single rank, where it is the identity.
    arrive: Vec<u32>,
    depart: Vec<u32>,
    /// The rows of each local expert.
    pub bands: Vec<Range<usize>>,
    /// Choices of this rank's tokens that fell on each expert.
    pub load: Vec<u64>,
    top_k: usize,
}

fn invert(p: &[u32]) -> Vec<u32> {
    let mut q = vec![0; p.len()];
    p.iter().enumerate().for_each(|(i, &s)| q[s as usize] = i as u32);
    q
}

impl Plan {
    /// Plans the choices `[T, K]` of this rank's tokens over `experts` experts in all.
    pub fn new<D: Device>(cx: &Cx<D>, choice: &[u32], experts: usize, top_k: usize) -> Result<Plan, Fault> {
        // A counting sort: stable, so an expert sees its rows in the order of the tokens.
        let mut load = vec![0u64; experts];
        choice.iter().for_each(|&e| load[e as usize] += 1);
        let mut next: Vec<usize> = Vec::with_capacity(experts);
        let mut sum = 0;
        for &n in &load {
            next.push(sum);
            sum += n as usize;
        }
        let mut order = vec![0; choice.len()];
        for (slot, &e) in choice.iter().enumerate() {
            order[next[e as usize]] = slot as u32;
            next[e as usize] += 1;
        }
        let place = invert(&order);

        let ranks = cx.comm.size();
        let local = experts / ranks;
        let send: Vec<usize> = load.chunks(local).map(|c| c.iter().sum::<u64>() as usize).collect();
        // counts[r·local + e]: rows that rank r sends for our expert e.
        let counts = cx.comm.all_to_all_host(&load)?;
        let count = |r: usize, e: usize| counts[r * local + e] as usize;
        let recv: Vec<usize> = (0..ranks).map(|r| (0..local).map(|e| count(r, e)).sum()).collect();
        let mut bands = Vec::with_capacity(local);
        let mut arrive = vec![];
        let mut at = 0;
        for e in 0..local {
            let from = at;
            let mut block = 0;
            for (r, rows) in recv.iter().enumerate() {
                let start = block + (0..e).map(|f| count(r, f)).sum::<usize>();
                if ranks > 1 {
                    arrive.extend((start..start + count(r, e)).map(|i| i as u32));
                }
                block += rows;
                at += count(r, e);
            }
            bands.push(from..at);
        }
        let depart = invert(&arrive);
        Ok(Plan { order, place, send, recv, arrive, depart, bands, load, top_k })
    }

    /// Rows that this rank's experts work on.
    pub fn rows(&self) -> usize {
        self.bands.last().map_or(0, |b| b.end)
    }

    /// Token rows `[T, D]` to expert rows `[N, D]` in `dtype`.
    pub fn dispatch<D: Device>(&self, cx: &Cx<D>, x_td: View<D>, dtype: DType) -> Result<Tensor<D>, Fault> {
        let k = self.top_k as u32;
        let tokens: Vec<u32> = self.order.iter().map(|s| s / k).collect();
        self.there(cx, gather(cx, &tokens, x_td, dtype))
    }

    /// Expert rows `[N, D]` to sums of each token's K rows, added to `acc_y` `[T, D]`.
    pub fn combine<D: Device>(&self, cx: &Cx<D>, rows: Tensor<D>, acc_y: ViewMut<D>) -> Result<(), Fault> {
        let rows = self.back(cx, rows)?;
        cx.device.gather_sum(self.top_k, &self.place, rows.view(), acc_y);
        Ok(())
    }

    /// A number for every slot `[T, K]` to one for every expert row `[N, 1]`.
    pub fn dispatch_slots<D: Device>(&self, cx: &Cx<D>, w_tk: View<D>) -> Result<Tensor<D>, Fault> {
        let column = w_tk.reshape([w_tk.len(), 1]);
        self.there(cx, gather(cx, &self.order, column, w_tk.dtype()))
    }

    /// The other way: one number for every expert row `[N, 1]` to one for every slot `[T·K, 1]`.
    pub fn combine_slots<D: Device>(&self, cx: &Cx<D>, w_n: Tensor<D>) -> Result<Tensor<D>, Fault> {
        let w = self.back(cx, w_n)?;
        Ok(gather(cx, &self.place, w.view(), w.dtype()))
    }

    fn there<D: Device>(&self, cx: &Cx<D>, sent: Tensor<D>) -> Result<Tensor<D>, Fault> {
        if cx.comm.size() == 1 {
            return Ok(sent);
        }
        let got = cx.comm.all_to_all(cx.device, sent, &self.send, &self.recv).wait()?;
        Ok(gather(cx, &self.arrive, got.view(), got.dtype()))
    }

    fn back<D: Device>(&self, cx: &Cx<D>, rows: Tensor<D>) -> Result<Tensor<D>, Fault> {
        if cx.comm.size() == 1 {
            return Ok(rows);
        }
        let rows = gather(cx, &self.depart, rows.view(), rows.dtype());
        cx.comm.all_to_all(cx.device, rows, &self.recv, &self.send).wait()
    }
}

fn gather<D: Device>(cx: &Cx<D>, index: &[u32], x: View<D>, dtype: DType) -> Tensor<D> {
    let mut y = Tensor::new(cx.device, [index.len(), x.shape()[1]], dtype);
    cx.device.gather(index, x, y.view_mut());
    y
}
