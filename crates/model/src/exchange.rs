//! Carries one row per (token, choice) to whoever owns the chosen expert, and back.
//!
//! A slot is a (token, choice) pair, numbered `t·K + k`. [`Plan`] sorts the slots by expert; rows travel to the ranks that
//! hold those experts (nobody, if this is the only rank) and are sorted there by local expert, so that each expert's rows
//! are one band. It is a permutation: its inverse is its transpose is its gradient. So [`Plan::dispatch`] is the backward
//! pass of [`Plan::combine`], and the other way round. No row is ever dropped.

use crate::layer::Cx;
use std::ops::Range;
use wudao_device::{Device, Fault, Tensor, View};

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

    /// Token rows `[T, D]` to expert rows `[N, D]`.
    pub fn dispatch_tokens<D: Device>(&self, cx: &Cx<D>, x_td: View<D>) -> Result<Tensor<D>, Fault> {
        let k = self.top_k as u32;
        let tokens: Vec<u32> = self.order.iter().map(|s| s / k).collect();
        self.there(cx, gather(cx, &tokens, x_td))
    }

    /// Slot rows `[T·K, D]` to expert rows `[N, D]`.
    pub fn dispatch<D: Device>(&self, cx: &Cx<D>, slots: View<D>) -> Result<Tensor<D>, Fault> {
        self.there(cx, gather(cx, &self.order, slots))
    }

    /// Expert rows `[N, D]` to slot rows `[T·K, D]`.
    pub fn combine<D: Device>(&self, cx: &Cx<D>, rows: Tensor<D>) -> Result<Tensor<D>, Fault> {
        let mut rows = rows;
        if cx.comm.size() > 1 {
            rows = gather(cx, &self.depart, rows.view());
            rows = cx.comm.all_to_all(cx.device, rows, &self.recv, &self.send).wait()?;
        }
        Ok(gather(cx, &self.place, rows.view()))
    }

    fn there<D: Device>(&self, cx: &Cx<D>, sent: Tensor<D>) -> Result<Tensor<D>, Fault> {
        if cx.comm.size() == 1 {
            return Ok(sent);
        }
        let got = cx.comm.all_to_all(cx.device, sent, &self.send, &self.recv).wait()?;
        Ok(gather(cx, &self.arrive, got.view()))
    }
}

fn gather<D: Device>(cx: &Cx<D>, index: &[u32], x: View<D>) -> Tensor<D> {
    let mut y = Tensor::new(cx.device, [index.len(), x.shape()[1]], x.dtype());
    cx.device.gather(index, x, y.view_mut());
    y
}
