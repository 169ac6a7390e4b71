//! The engine's thread: takes requests up and makes the model's steps.

use super::sequence::{Sequence, Waiting};
use super::{Embed, EngineError, EngineOptions, Pooling, Shared, Status, lock};
use crate::generate::Stop;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Instant;
use wudao_comm::Solo;
use wudao_device::{Device, Fault, View};
use wudao_model::{Cx, KvCache, Model, Packing, Store};

/// What the thread owns.
pub(super) struct Worker<D: Device> {
    device: D,
    model: Model<D>,
    weights: Store<D>,
    context: usize,
    chunk: usize,
    status: Status,
}

/// Says that the thread has ended, however it did.
struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut inbox = lock(&self.0.inbox);
        inbox.gone = true;
        // Without their sinks readers see the end of the stream.
        let rest = (std::mem::take(&mut inbox.requests), std::mem::take(&mut inbox.embeds));
        drop(inbox);
        drop(rest);
    }
}

impl<D: Device> Worker<D> {
    pub fn new(device: D, model: Model<D>, weights: Store<D>, options: &EngineOptions) -> Result<Self, EngineError> {
        let status = Status { cache_total: options.context, ..Status::default() };
        Ok(Worker { device, model, weights, context: options.context, chunk: options.prefill_chunk, status })
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Until the engine is closed.
    pub fn run(mut self, shared: &Shared) {
        let _gone = Gone(shared);
        let mut queue: VecDeque<Waiting> = VecDeque::new();
        loop {
            let mut inbox = lock(&shared.inbox);
            while queue.is_empty() && inbox.requests.is_empty() && inbox.embeds.is_empty() && inbox.closed.is_none() {
                inbox = shared.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
            queue.extend(inbox.requests.drain(..));
            let embeds = std::mem::take(&mut inbox.embeds);
            let closed = inbox.closed;
            drop(inbox);
            for embed in embeds {
                self.embed(embed);
            }
            self.status.waiting = queue.len();
            let Some(waiting) = queue.pop_front() else {
                if closed.is_some() {
                    return;
                }
                continue;
            };
            self.status.waiting = queue.len();
            let mut sequence = Sequence::new(waiting, &shared.tokenizer, self.context);
            self.status.running = 1;
            self.status.counters.prompt_tokens += sequence.prompt as u64;
            match self.complete(&mut sequence, shared) {
                Ok(Some(stop)) => {
                    self.status.counters.finished(stop);
                    sequence.finish(stop);
                }
                Ok(None) => {
                    self.status.counters.failed += 1;
                    sequence.fail("the engine was shut down");
                }
                Err(fault) => {
                    self.status.counters.failed += 1;
                    sequence.fail(&fault.to_string());
                }
            }
            self.status.running = 0;
            lock(&shared.status).clone_from(&self.status);
        }
    }

    /// Why it ended; nothing if the engine was shut down meanwhile.
    fn complete(&mut self, sequence: &mut Sequence, shared: &Shared) -> Result<Option<Stop>, Fault> {
        let config = self.model.config();
        let eos = config.eos_token_id.clone();
        let mut cache = KvCache::new(&self.device, config, sequence.limit(), self.model.dtype());
        loop {
            if sequence.cancelled() {
                return Ok(Some(Stop::Reader));
            }
            if lock(&shared.inbox).closed.is_some_and(|by| Instant::now() >= by) {
                return Ok(None);
            }
            let past = cache.len();
            let end = sequence.ids.len().min(past + self.chunk);
            let from = sequence.wants_logits_from().clamp(past, end);
            let packing = packing(past, end);
            let mut cx = cx(&self.device, &self.weights, &packing);
            let rows = from - past..end - past;
            let logits = self.model.decode_rows(&mut cx, &mut cache, &sequence.ids[past..end], rows)?;
            self.status.counters.steps += 1;
            for position in from..end {
                let mut row = to_f32(logits.view().rows(position - from..position - from + 1), &self.device);
                if let Some(stop) = sequence.take(position, &mut row, &eos, &mut self.status.counters) {
                    return Ok(Some(stop));
                }
            }
            lock(&shared.status).clone_from(&self.status);
        }
    }

    fn embed(&self, Embed { ids, pooling, sink }: Embed) {
        let packing = packing(0, ids.len());
        let hidden = self.model.hidden(&mut cx(&self.device, &self.weights, &packing), &ids);
        let hidden = hidden.and_then(|h_td| self.device.sync().map(|()| h_td));
        sink(match hidden {
            Ok(h_td) => {
                let (h, [t, d]) = (h_td.view().to_f64(&self.device), h_td.shape());
                let mean = |c: usize| (h.iter().skip(c).step_by(d).sum::<f64>() / t as f64) as f32;
                Ok(match pooling {
                    Pooling::Mean => (0..d).map(mean).collect(),
                    Pooling::Last => h[(t - 1) * d..].iter().map(|&x| x as f32).collect(),
                })
            }
            Err(fault) => Err(fault.to_string()),
        });
    }
}

fn packing(from: usize, to: usize) -> Packing {
    Packing { positions: (from as u32..to as u32).collect(), segments: vec![0, (to - from) as u32] }
}

fn cx<'a, D: Device>(device: &'a D, weights: &'a Store<D>, packing: &'a Packing) -> Cx<'a, D> {
    Cx { device, comm: &Solo, weights, packing, aux: Default::default(), log: None, again: false }
}

fn to_f32<D: Device>(x: View<D>, device: &D) -> Vec<f32> {
    x.to_f64(device).into_iter().map(|x| x as f32).collect()
}
