//! One request on its way: what it has read and written, and what its reader is told.
//!
//! A sequence knows nothing of the model. It is given logits and answers whether it wants more.

use super::status::Counters;
use super::{Event, Request, Sink, Usage};
use crate::constraint::{ConstraintError, Guide};
use crate::generate::Stop;
use crate::sampler::{Logprob, Sampler, log_probabilities};
use crate::text::Text;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wudao_data::tokenizer::Tokenizer;

/// A request that nobody has taken up.
pub(super) struct Waiting {
    pub request: Request,
    pub guide: Option<Guide>,
    pub sink: Sink,
    pub cancelled: Arc<AtomicBool>,
    pub since: Instant,
    pub slot: Option<Slot>,
}

/// A place among all requests that the engine has; gone with the request.
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// A place, if fewer than `most` are taken; else their number.
    pub fn take(taken: &Arc<AtomicUsize>, most: usize) -> Result<Slot, usize> {
        let more = |n| (n < most).then_some(n + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map(|_| Slot(taken.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Waiting {
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Why a sequence is over.
#[derive(Clone, Debug)]
pub(super) enum Over {
    /// It has ended.
    Stop(Stop),
    /// It cannot go on.
    Failed(String),
}

impl From<ConstraintError> for Over {
    fn from(error: ConstraintError) -> Over {
        Over::Failed(error.to_string())
    }
}

/// A request that is read or written.
pub(super) struct Sequence<'t> {
    /// Prompt and completion.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the prompt that were found in the prefix cache.
    pub cached: usize,
    /// Log probabilities of the prompt so far, if asked for.
    scores: Option<Vec<Option<Logprob>>>,
    /// Tokens of prompt and completion that end it, and what that is called.
    limit: (usize, Stop),
    request: Request,
    /// Follows the completion, if it must have a form.
    guide: Option<Guide>,
    sampler: Sampler,
    text: Text<'t>,
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    since: Instant,
    _slot: Option<Slot>,
    /// When the last token was written.
    wrote: Option<Instant>,
}

impl<'t> Sequence<'t> {
    /// Takes a request up. `context` is the most tokens of prompt and completion.
    pub fn new(waiting: Waiting, tokenizer: &'t Tokenizer, context: usize) -> Self {
        let Waiting { mut request, guide, sink, cancelled, since, slot } = waiting;
        let ids = std::mem::take(&mut request.prompt);
        let wanted = ids.len().saturating_add(request.max_tokens);
        let limit = if wanted > context { (context, Stop::Context) } else { (wanted, Stop::MaxTokens) };
        Sequence {
            prompt: ids.len(),
            cached: 0,
            scores: request.prompt_logprobs.map(|_| vec![None]),
            limit,
            sampler: Sampler::new(request.sampling.clone()),
            text: Text::new(tokenizer, request.skip_special, std::mem::take(&mut request.stop)),
            ids,
            request,
            guide,
            sink,
            cancelled,
            since,
            _slot: slot,
            wrote: None,
        }
    }

    /// The reader has left.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Tokens that may be guessed beyond those there are.
    pub fn room(&self) -> usize {
        (self.limit.0 - 1).saturating_sub(self.ids.len())
    }

    /// Forgets guesses of which the form allows not even the first. The others show when they are drawn: a form says what
    /// may follow a text, not what may follow a guess.
    pub fn sift(&mut self, guess: &mut Vec<u32>) {
        if let (Some(guide), Some(&first)) = (&mut self.guide, guess.first())
            && !guide.allows(first).unwrap_or(false)
        {
            guess.clear();
        }
    }

    /// A copy of what draws the next token.
    pub fn sampler(&self) -> Sampler {
        self.sampler.clone()
    }

    /// Time since it came.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Tokens of the prompt whose logits are wanted are those from here on; all but the last serve only scores.
    pub fn wants_logits_from(&self) -> usize {
        match &self.scores {
            Some(scores) => scores.len() - 1,
            None => self.ids.len() - 1,
        }
    }

    /// Takes the logits after the token at `position`: scores the token that follows in the prompt, or writes the next.
    /// Why the sequence is over, if it is.
    pub fn take(&mut self, position: usize, logits: &mut [f32], eos: &[u32], counters: &mut Counters) -> Option<Over> {
        if position + 1 < self.ids.len() {
            if let (Some(scores), Some(top)) = (&mut self.scores, self.request.prompt_logprobs) {
                scores.push(Some(log_probabilities(logits, self.ids[position + 1], top)));
            }
            return None;
        }
        match self.write(logits, eos, counters) {
            Ok(stop) => stop.map(Over::Stop),
            Err(error) => Some(error.into()),
        }
    }

    /// False if nobody reads any more: then the sink is not called again.
    fn tell(&mut self, event: Event) -> bool {
        if self.cancelled() {
            return false;
        }
        let goes_on = (self.sink)(event);
        if !goes_on {
            self.cancelled.store(true, Ordering::Release);
        }
        goes_on
    }

    fn write(
        &mut self,
        logits: &mut [f32],
        eos: &[u32],
        counters: &mut Counters,
    ) -> Result<Option<Stop>, ConstraintError> {
        if let Some(scores) = self.scores.take()
            && !self.tell(Event::Prompt(scores))
        {
            return Ok(Some(Stop::Reader));
        }
        if self.ids.len() >= self.limit.0 {
            return Ok(Some(self.limit.1));
        }
        let before = self.request.logprobs.map(|_| logits.to_vec());
        let eos = if self.request.ignore_eos { &[] } else { eos };
        let Some(id) = self.draw(logits, eos)? else { return Ok(Some(Stop::EndOfText)) };
        let logprob = before.zip(self.request.logprobs).map(|(logits, top)| log_probabilities(&logits, id, top));
        self.ids.push(id);
        let now = Instant::now();
        match self.wrote.replace(now) {
            Some(last) => counters.between_tokens.observe(now - last),
            None => counters.first_token.observe(now - self.since),
        }
        counters.completion_tokens += 1;

        let mut text = String::new();
        let mut emit = |piece: &str| {
            text.push_str(piece);
            true
        };
        let stop = if self.request.stop_tokens.contains(&id) || eos.contains(&id) {
            Some(Stop::EndOfText)
        } else {
            let whole = match &mut self.guide {
                Some(guide) => guide.take(id).and_then(|()| guide.finished())?,
                None => false,
            };
            let limit = (self.ids.len() >= self.limit.0).then_some(self.limit.1);
            self.text.push(id, &mut emit).or(whole.then_some(Stop::EndOfText)).or(limit)
        };
        let stop = stop.map(|stop| self.text.finish(stop, &mut emit).1);
        if !self.tell(Event::Token { id, text, logprob }) {
            return Ok(Some(Stop::Reader));
        }
        Ok(stop)
    }

    /// The next token, or none where the text is whole before it has begun.
    fn draw(&mut self, logits: &mut [f32], eos: &[u32]) -> Result<Option<u32>, ConstraintError> {
        let mut sample = |logits: &mut [f32]| self.sampler.sample(logits, &self.ids, self.prompt);
        match &mut self.guide {
            None => Ok(Some(sample(logits))),
            Some(guide) => guide.draw(logits, &[&self.request.stop_tokens, eos].concat(), sample),
        }
    }

    /// Tokens read and written.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt,
            cached_tokens: self.cached,
            completion_tokens: self.ids.len() - self.prompt,
        }
    }

    /// The last word.
    pub fn finish(mut self, stop: Stop) {
        let stop_string = self.text.stop_string().map(str::to_owned);
        let usage = self.usage();
        self.tell(Event::Done { stop, stop_string, usage });
    }

    /// The last word where something broke.
    pub fn fail(mut self, why: &str) {
        self.tell(Event::Failed(why.to_owned()));
    }
}
