//! The engine's thread: takes requests up, and makes the model's steps for all of them at once (Yu et al. 2022, "Orca").
//!
//! A step reads one token of every sequence that writes, and of those whose prompts are still read as many tokens as the
//! budget allows, the eldest first (Agrawal et al. 2024, "Sarathi"). While somebody writes, the budget is what takes about
//! [`GAP`], so that no stream stands still for long. What a sequence is told depends on none of this, to the bit.
//!
//! Memory: a sequence takes pages as it grows. It is taken up when its prompt fits; where there is none left for those who
//! run, the youngest gives its pages back and waits to be read again, as the first in turn. The eldest is never thrown
//! out, and one sequence fits always, so everything ends.

use super::draft::guess;
use super::drafter::Drafter;
use super::pages::{Content, Pages};
use super::queue::Queue;
use super::sequence::{Over, Sequence};
use super::{Embed, EngineError, EngineOptions, Pooling, Shared, Status, lock};
use crate::checkpoint::Checkpoint;
use crate::generate::Stop;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use wudao_comm::Solo;
use wudao_data::tokenizer::Tokenizer;
use wudao_device::{DType, Device, Fault, PAGE, View};
use wudao_model::{Config, Cx, Model, PackedWeights, Packing, PagedCache, Step};

/// How long reading prompts may keep those waiting who write, about: the pace of the last steps may not be that of the next,
/// which stand further on, and the answers take their time too.
const GAP: Duration = Duration::from_millis(60);

/// Logits that are in memory at once.
const LOGITS: usize = 4 << 20;

/// What the thread owns.
pub(super) struct Worker<D: Device> {
    device: D,
    model: Model<D>,
    weights: PackedWeights<D>,
    cache: PagedCache<D>,
    pages: Pages,
    /// What guesses, instead of the text itself.
    drafter: Option<Drafter<D>>,
    /// Seconds of a token of a prompt, about.
    pace: f64,
    options: EngineOptions,
    status: Status,
}

/// A sequence with its pages.
pub(super) struct Running<'t> {
    pub sequence: Sequence<'t>,
    pub pages: Vec<u32>,
    /// Tokens whose keys and values are in the pages.
    pub read: usize,
    /// Those of them that are also in the pages of the model that guesses.
    pub drafted: usize,
    /// Guesses that follow the tokens in this step.
    pub guess: Vec<u32>,
    /// Pages that are known, and the content of the last of them.
    known: (usize, Content),
    /// Why it is over.
    over: Option<Over>,
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

/// What a cache of keys and values has room for.
pub(super) struct Room {
    /// Tokens of one sequence.
    context: usize,
    pub pages: usize,
}

impl Room {
    /// Of a model and perhaps one that guesses for it: of each what it is, and the type of its operands.
    pub fn of(models: &[(&Config, DType)], options: &EngineOptions) -> Result<Room, EngineError> {
        for &(_, operands) in models {
            let dtype = options.cache_dtype.unwrap_or(operands);
            let coded = dtype == DType::I8 && operands != DType::F64;
            if dtype != operands && !coded && (operands, dtype) != (DType::F32, DType::Bf16) {
                return Err(EngineError::CacheType { asked: dtype, model: operands });
            }
        }
        // A page of both models: they are taken and given back together.
        let bytes: usize = models.iter().map(|&(config, operands)| options.page_bytes(config, operands)).sum();
        let limit = |models: &[(&Config, DType)]| {
            models.iter().map(|(config, _)| config.max_position_embeddings).min().unwrap_or(usize::MAX)
        };
        let (limit, draft_limit) = (limit(models), limit(models.get(1..).unwrap_or_default()));
        let fit = options.cache_bytes / bytes;
        let context = if options.context == 0 { limit.min(fit.max(1) * PAGE) } else { options.context };
        let needed = context.div_ceil(PAGE);
        if needed > fit {
            return Err(EngineError::Cache {
                bytes: options.cache_bytes,
                tokens: fit * PAGE,
                context,
                needed: needed * bytes,
            });
        }
        if context > draft_limit {
            return Err(EngineError::DraftContext { context, limit: draft_limit });
        }
        // More than all sequences could hold is good for prefixes alone.
        let most = needed.saturating_mul(options.batch).saturating_mul(if options.prefix_cache { 4 } else { 1 });
        Ok(Room { context, pages: fit.min(most) })
    }
}

impl<D: Device> Worker<D> {
    /// With `options.context` 0, it becomes what fits.
    pub fn new(
        device: D,
        model: Model<D>,
        weights: PackedWeights<D>,
        draft: Option<Checkpoint<D>>,
        options: &mut EngineOptions,
    ) -> Result<Self, EngineError> {
        let small = draft.as_ref().map(|draft| (&draft.config, draft.model.dtype()));
        let models: Vec<(&Config, DType)> = [(model.config(), model.dtype())].into_iter().chain(small).collect();
        let Room { context, pages: count } = Room::of(&models, options)?;
        options.context = context;
        let dtype = |operands| options.cache_dtype.unwrap_or(operands);
        let cache = PagedCache::new(&device, model.config(), count, dtype(model.dtype()));
        let bytes: usize = models.iter().map(|&(config, operands)| options.page_bytes(config, operands)).sum();
        let status = Status { cache_total: count * PAGE, cache_token_bytes: bytes / PAGE, ..Status::default() };
        let pages = Pages::new(count);
        let drafter = draft.map(|draft| {
            let dtype = dtype(draft.model.dtype());
            Drafter::new(draft, count, dtype)
        });
        Ok(Worker { device, model, weights, cache, pages, drafter, pace: 0.0, options: options.clone(), status })
    }

    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Until the engine is closed.
    pub fn run(mut self, shared: &Shared) {
        let _gone = Gone(shared);
        let mut work = Work::default();
        loop {
            let mut inbox = lock(&shared.inbox);
            while work.is_empty() && inbox.requests.is_empty() && inbox.embeds.is_empty() && inbox.closed.is_none() {
                inbox = shared.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
            inbox.requests.drain(..).for_each(|waiting| work.queue.push(waiting));
            let embeds = std::mem::take(&mut inbox.embeds);
            let closed = inbox.closed;
            drop(inbox);
            embeds.into_iter().for_each(|embed| self.embed(embed));
            if closed.is_some_and(|by| Instant::now() >= by) {
                self.fail(&mut work, shared, "the engine was shut down");
            }
            self.sweep(&mut work);
            self.admit(&mut work, &shared.tokenizer);
            self.report(&work, shared);
            if let Err(fault) = self.step(&mut work) {
                self.fail(&mut work, shared, &fault.to_string());
            }
            self.report(&work, shared);
            if closed.is_some() && work.is_empty() {
                return;
            }
        }
    }

    fn report(&mut self, work: &Work, shared: &Shared) {
        self.status.running = work.running.len();
        self.status.waiting = work.queue.len() + work.paused.len();
        self.status.cache_used = self.pages.held() * PAGE;
        self.status.cache_peak = self.status.cache_peak.max(self.status.cache_used);
        self.status.experts = self.weights.expert_reads().unwrap_or_default();
        lock(&shared.status).clone_from(&self.status);
    }

    /// Ends everything.
    fn fail(&mut self, work: &mut Work, shared: &Shared, why: &str) {
        for lost in work.running.drain(..).chain(work.paused.drain(..)) {
            self.pages.release(&lost.pages);
            self.status.counters.failed += 1;
            lost.sequence.fail(why);
        }
        while let Some(waiting) = work.queue.pop() {
            self.status.counters.failed += 1;
            Sequence::new(waiting, &shared.tokenizer, self.options.context).fail(why);
        }
    }

    fn finish(&mut self, Running { sequence, pages, .. }: Running, stop: Stop) {
        self.pages.release(&pages);
        self.status.counters.finished(stop);
        sequence.finish(stop);
    }

    /// Lets go those whose readers have left.
    fn sweep(&mut self, work: &mut Work) {
        self.status.counters.cancelled += work.queue.sweep() as u64;
        for list in [&mut work.running, &mut work.paused] {
            list.extract_if(.., |r| r.sequence.cancelled()).for_each(|gone| self.finish(gone, Stop::Reader));
        }
    }

    /// Takes up who fits: first those who had to pause, then those whose turn it is.
    fn admit<'t>(&mut self, work: &mut Work<'t>, tokenizer: &'t Tokenizer) {
        while work.running.len() < self.options.batch {
            let ids = match (work.paused.last(), work.queue.front()) {
                (Some(paused), _) => &paused.sequence.ids,
                (None, Some(waiting)) => &waiting.request.prompt,
                (None, None) => return,
            };
            // Its tokens and one more, and a page to grow for everyone. Known pages come on top: that is only cautious.
            let needed = (ids.len() + 1).div_ceil(PAGE) + work.running.len();
            if !work.running.is_empty() && needed > self.pages.available() {
                return;
            }
            let fresh = work.paused.is_empty();
            let sequence = match work.paused.pop() {
                Some(paused) => paused.sequence,
                None => match work.queue.pop() {
                    Some(waiting) => Sequence::new(waiting, tokenizer, self.options.context),
                    None => return,
                },
            };
            let mut next =
                Running { sequence, pages: vec![], read: 0, drafted: 0, guess: vec![], known: (0, 0), over: None };
            if self.options.prefix_cache {
                // The logits that it wants must be computed, at least those of the last token.
                let usable = &next.sequence.ids[..next.sequence.wants_logits_from()];
                let (pages, content) = self.pages.find(usable);
                (next.read, next.known) = (pages.len() * PAGE, (pages.len(), content));
                (next.pages, next.drafted) = (pages, next.read);
            }
            if fresh {
                next.sequence.cached = next.read;
                let counters = &mut self.status.counters;
                counters.queued.observe(next.sequence.age());
                counters.prompt_tokens += next.sequence.prompt as u64;
                counters.cached_tokens += next.read as u64;
            }
            work.running.push(next);
        }
    }

    /// How many tokens each sequence reads now, guesses included; whoever has no room left is sent to pause.
    fn plan(&mut self, work: &mut Work) -> Vec<usize> {
        let writing = work.running.iter().filter(|r| r.left() == 1).count();
        let mut budget = self.options.prefill_chunk;
        if writing > 0 && self.pace > 0.0 {
            budget = budget.min(((GAP.as_secs_f64() / self.pace) as usize).max(PAGE));
        }
        let mut counts: Vec<usize> = Vec::new();
        // All guesses together are no more than one sequence may have: with many rows they cost what they save.
        let most = self.options.guesses / writing.max(1);
        for r in &mut work.running {
            let left = r.left();
            let n = if left == 1 {
                let most = most.min(r.sequence.room());
                if self.drafter.is_none() {
                    r.guess = guess(&r.sequence.ids, most).to_vec();
                    r.sequence.sift(&mut r.guess);
                }
                // Who guesses well knows only later how many it will be.
                1 + if self.drafter.is_some() { most } else { r.guess.len() }
            } else {
                r.guess.clear();
                left.min(budget)
            };
            budget -= if left == 1 { 0 } else { n };
            counts.push(n);
        }
        let mut i = 0;
        while i < work.running.len() {
            let r = &mut work.running[i];
            let missing = (r.read + counts[i]).div_ceil(PAGE).saturating_sub(r.pages.len());
            match self.pages.take(missing) {
                Some(pages) => {
                    r.pages.extend(pages);
                    i += 1;
                }
                None => {
                    // The youngest goes, perhaps this one; if it is the only one, all pages are its own or free.
                    let Some(mut youngest) = work.running.pop() else { break };
                    self.pages.release(&youngest.pages);
                    youngest.pages.clear();
                    self.status.counters.preemptions += 1;
                    work.paused.push(youngest);
                }
            }
        }
        counts.truncate(work.running.len());
        counts
    }

    /// One pass of the model, and what follows from it for every sequence.
    fn step(&mut self, work: &mut Work) -> Result<(), Fault> {
        let mut counts = self.plan(work);
        if counts.iter().sum::<usize>() == 0 {
            return Ok(());
        }
        let start = Instant::now();
        if let Some(drafter) = &mut self.drafter {
            drafter.guess(&mut work.running, &mut counts, self.model.config())?;
        }
        let step = |(r, &n): (&'_ Running, &usize)| {
            let end = r.read + n;
            let from = r.sequence.wants_logits_from().clamp(r.read, end);
            let ids = r.sequence.ids[r.read..].iter().chain(&r.guess).take(n).copied().collect::<Vec<u32>>();
            (ids, r.read..end, from)
        };
        let spans: Vec<_> = work.running.iter().zip(&counts).map(step).collect();
        let steps: Vec<Step> = (work.running.iter().zip(&spans))
            .map(|(r, (ids, at, from))| Step {
                ids,
                past: at.start,
                pages: &r.pages,
                wanted: from - at.start..at.len(),
            })
            .collect();
        let packing = Step::packing(&steps);
        let mut cx = cx(&self.device, &self.weights, &packing);
        let h_td = self.model.decode_batch(&mut cx, &mut self.cache, &steps)?;
        let rows = packing.tokens();
        if rows >= 2 * PAGE {
            let pace = start.elapsed().as_secs_f64() / rows as f64;
            self.pace = if self.pace == 0.0 { pace } else { (self.pace + pace) / 2.0 };
        }
        self.status.counters.steps += 1;

        // Rows of hidden states, by sequence and position.
        let wanted: Vec<(usize, usize)> =
            spans.iter().enumerate().flat_map(|(i, (_, at, from))| (*from..at.end).map(move |p| (i, p))).collect();
        let eos = &self.model.config().eos_token_id;
        let vocab = self.model.config().vocab_size;
        let at_once = (LOGITS / vocab).max(1);
        for (chunk, first) in wanted.chunks(at_once).zip((0..).step_by(at_once)) {
            let logits = self.model.logits_of(&cx, h_td.view().rows(first..first + chunk.len()))?;
            let mut logits = to_f32(logits.view(), &self.device);
            for (&(i, position), row) in chunk.iter().zip(logits.chunks_mut(vocab)) {
                let r = &mut work.running[i];
                // What follows a wrong guess is void.
                let (fed, at, _) = &spans[i];
                if r.over.is_none() && r.sequence.ids.get(position) == fed.get(position - at.start) {
                    r.over = r.sequence.take(position, row, eos, &mut self.status.counters);
                }
            }
        }
        for (r, (_, at, _)) in work.running.iter_mut().zip(&spans) {
            // Of guesses, those that came true.
            let end = at.end.min(r.sequence.ids.len() - 1);
            let right = (end - r.read).saturating_sub(1).min(r.guess.len());
            self.status.counters.guessed += r.guess.len() as u64;
            self.status.counters.guessed_right += right as u64;
            r.read = end;
            r.drafted = if self.drafter.is_some() { r.drafted.min(end) } else { end };
            if self.options.prefix_cache {
                r.publish(&mut self.pages);
            }
        }
        for mut r in work.running.extract_if(.., |r| r.over.is_some()) {
            match r.over.take() {
                Some(Over::Failed(why)) => {
                    self.pages.release(&r.pages);
                    self.status.counters.failed += 1;
                    r.sequence.fail(&why);
                }
                Some(Over::Stop(stop)) => self.finish(r, stop),
                None => self.finish(r, Stop::Reader),
            }
        }
        Ok(())
    }

    fn embed(&self, Embed { ids, pooling, sink }: Embed) {
        let packing = Packing::of_lengths(&[ids.len()]);
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

/// Everything that is to be done.
#[derive(Default)]
struct Work<'t> {
    queue: Queue,
    /// The eldest first.
    running: Vec<Running<'t>>,
    /// Those who gave their pages back, the eldest last.
    paused: Vec<Running<'t>>,
}

impl Work<'_> {
    fn is_empty(&self) -> bool {
        self.running.is_empty() && self.paused.is_empty() && self.queue.len() == 0
    }
}

impl Running<'_> {
    /// Tokens to be read before the next can be written.
    pub fn left(&self) -> usize {
        self.sequence.ids.len() - self.read
    }

    /// Makes pages known that have become full, for both models.
    fn publish(&mut self, pages: &mut Pages) {
        let full = self.sequence.ids[..self.drafted].as_chunks::<PAGE>().0;
        for (&page, tokens) in self.pages.iter().zip(full).skip(self.known.0) {
            self.known = (self.known.0 + 1, pages.publish(page, self.known.1, tokens));
        }
    }
}

pub(super) fn cx<'a, D: Device>(device: &'a D, weights: &'a PackedWeights<D>, packing: &'a Packing) -> Cx<'a, D> {
    Cx { device, comm: &Solo, weights, packing, aux: Default::default(), log: None, again: false }
}

pub(super) fn to_f32<D: Device>(x: View<D>, device: &D) -> Vec<f32> {
    match x.dtype() {
        DType::F32 => x.to_host(device),
        _ => x.to_f64(device).into_iter().map(|x| x as f32).collect(),
    }
}
