//! One model, many readers: completions are made by a thread of their own.
//!
//! A [`Request`] goes in with [`Engine::submit`] and comes back as [`Event`]s, each given to the request's [`Sink`] on the
//! engine's thread. An [`Engine`] is a handle: cheap to clone, without the type of the machine, which the thread owns. What
//! is not here: HTTP, chat templates, several answers to one request (they are several requests).

mod complete;
mod draft;
mod drafter;
pub(crate) mod pages;
mod queue;
mod sequence;
mod status;
mod worker;

pub use crate::sampler::Logprob;
pub use complete::{CompleteError, Completed};
pub use status::{Counters, Histogram, Status};

use crate::checkpoint::Checkpoint;
use crate::constraint::{Constraint, ConstraintError, Form, Vocabulary};
use crate::generate::Stop;
use crate::sampler::{Sampling, SamplingError};
use sequence::{Slot, Waiting};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use worker::Room;
use wudao_data::tokenizer::{Tokenizer, TokenizerError};
use wudao_device::{DType, Device, Meta};
use wudao_model::{Config, PagedCache};

/// One completion to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The tokens to continue, as they are: nothing is put before them.
    pub prompt: Vec<u32>,
    /// Most tokens to write; 0 only reads the prompt (for [`Request::prompt_logprobs`]).
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Ends the completion where one of these begins; the string itself is not part of it.
    pub stop: Vec<String>,
    /// Tokens that end it beside those of the model.
    pub stop_tokens: Vec<u32>,
    /// Write on after the model has ended the text.
    pub ignore_eos: bool,
    /// The form that the completion must have (see [`Engine::constrain`]). It ends only where it is whole, and there also
    /// without a token that ends it, if nothing could follow.
    pub constraint: Option<Constraint>,
    /// With each token its log probability, and this many of the likeliest.
    pub logprobs: Option<usize>,
    /// The same of every token of the prompt, in one [`Event::Prompt`].
    pub prompt_logprobs: Option<usize>,
    /// Special tokens leave no text.
    pub skip_special: bool,
    /// Who asks: those who wait are served in turns, one request of each.
    pub client: u64,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            prompt: Vec::new(),
            max_tokens: 16,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            skip_special: true,
            client: 0,
        }
    }
}

/// What happens to a request, in this order: perhaps `Prompt`, any number of `Token`, then `Done` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log probabilities of the prompt's tokens; the first has none.
    Prompt(Vec<Option<Logprob>>),
    /// A token is written.
    Token {
        /// Its id. That of the token that ends the text comes too, without text of its own.
        id: u32,
        /// The characters that are certain with it: perhaps none, perhaps some of the tokens before it.
        text: String,
        /// If asked for.
        logprob: Option<Logprob>,
    },
    /// The completion is finished.
    Done {
        /// Why.
        stop: Stop,
        /// The stop string that came.
        stop_string: Option<String>,
        /// What it took.
        usage: Usage,
    },
    /// The machine failed, or the engine was shut down.
    Failed(String),
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the prompt, those whose keys and values another request had left.
    pub cached_tokens: usize,
    /// Written, the one that ended the text included.
    pub completion_tokens: usize,
}

/// Where events go; `false` says that the reader has left. It is called on the engine's thread and must not wait.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Where an embedding goes: the vector, or what went wrong.
pub type EmbedSink = Box<dyn FnOnce(Result<Vec<f32>, String>) + Send>;

/// How a text becomes one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all final hidden states.
    #[default]
    Mean,
    /// The last one.
    Last,
}

/// How an engine works.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Most tokens of a prompt and its completion; 0 is as many as the model takes and the cache holds.
    pub context: usize,
    /// Most sequences at once.
    pub batch: usize,
    /// Most requests that wait while `batch` run.
    pub queue: usize,
    /// Bytes of memory for keys and values of all sequences.
    pub cache_bytes: usize,
    /// Type of keys and values in memory: that of the model's operands, or [`DType::Bf16`], of half the size beside f32, or
    /// [`DType::I8`], of about a quarter.
    pub cache_dtype: Option<DType>,
    /// Most tokens of prompts that one step reads.
    pub prefill_chunk: usize,
    /// Most tokens that a step guesses, to write several at once: from what the text has said before, or with a small model
    /// ([`Engine::start_with_draft`]). What is written stays the same, to the bit. It pays where few texts are written at
    /// once, and where they repeat their prompts or the small model is good and fast. 0 guesses none, or with a small model
    /// as many as do well mostly.
    pub guesses: usize,
    /// Keep what was read of a prompt for others that begin with the same tokens.
    pub prefix_cache: bool,
}

impl EngineOptions {
    /// Bytes that keys and values will take, at most [`EngineOptions::cache_bytes`]: of a model and perhaps one that guesses
    /// for it, of each what it is and the type of its operands.
    pub fn bytes_for(&self, models: &[(&Config, DType)]) -> Result<usize, EngineError> {
        let page: usize = models.iter().map(|&(config, operands)| self.page_bytes(config, operands)).sum();
        Ok(Room::of(models, self)?.pages * page)
    }

    /// Bytes of a page of keys and values.
    pub fn page_bytes(&self, config: &Config, operands: DType) -> usize {
        PagedCache::<Meta>::page_bytes(config, self.cache_dtype.unwrap_or(operands))
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            context: 0,
            batch: 16,
            queue: 256,
            cache_bytes: 1 << 30,
            cache_dtype: None,
            prefill_chunk: 256,
            guesses: 0,
            prefix_cache: true,
        }
    }
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// More than the model was made for.
    #[error("a context of {asked} tokens is more than the model's {limit} (max_position_embeddings): ask for less")]
    Context {
        /// As asked for.
        asked: usize,
        /// The model's.
        limit: usize,
    },
    /// An option that leaves nothing to do.
    #[error("{option} is 0: the engine could do nothing")]
    Zero {
        /// Which.
        option: &'static str,
    },
    /// Keys and values cannot be kept so.
    #[error("keys and values of a model in {model:?} cannot be kept in {asked:?}, only in {model:?}, I8 or (f32) Bf16")]
    CacheType {
        /// As asked for.
        asked: DType,
        /// What the model multiplies.
        model: DType,
    },
    /// No room for one sequence.
    #[error(
        "{bytes} bytes of cache hold {tokens} tokens, but one sequence may have {context}: give the cache {needed} bytes or \
         the context fewer tokens"
    )]
    Cache {
        /// As asked for.
        bytes: usize,
        /// What fits.
        tokens: usize,
        /// Tokens of a sequence.
        context: usize,
        /// What would be enough.
        needed: usize,
    },
    /// A small model of another vocabulary.
    #[error("the draft model cannot guess for this model: {0}; take one that was made with the same tokenizer")]
    Vocabulary(String),
    /// A small model that reads less.
    #[error("the draft model reads {limit} tokens, but the context is {context}: ask for a context of {limit} or less")]
    DraftContext {
        /// The large model's.
        context: usize,
        /// The small model's.
        limit: usize,
    },
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[from] std::io::Error),
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Rejected {
    /// Too many wait.
    #[error("{waiting} requests wait already, the most that may: try again later")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
    },
    /// No room for an answer.
    #[error("the prompt has {tokens} tokens, but prompt and completion may have {limit} in all: shorten the prompt")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens of prompt and completion.
        limit: usize,
    },
    /// Nothing to continue.
    #[error("the prompt has no tokens: give at least one")]
    Empty,
    /// A setting out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The engine was shut down.
    #[error("the engine is shut down and takes no more requests")]
    Closed,
    /// A token that is not of this model.
    #[error("the prompt has token {id}, but the model's are 0 to {}: was it encoded with another tokenizer?", vocab - 1)]
    BadToken {
        /// The token.
        id: u32,
        /// Tokens that the model has.
        vocab: usize,
    },
}

/// A request in the engine's hands. Dropped, the request is cancelled.
#[must_use = "a dropped ticket cancels its request"]
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
    detached: bool,
}

impl Ticket {
    /// Ends the request: it gets at most the events of the step that runs.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Lets the request run without its ticket: only its sink can end it.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.detached {
            self.cancel();
        }
    }
}

/// What goes from the handles to the thread.
struct Inbox {
    requests: Vec<Waiting>,
    embeds: Vec<Embed>,
    /// No more requests; those that run have until then.
    closed: Option<Instant>,
    /// The thread has ended.
    gone: bool,
}

/// Tokens that become one vector.
struct Embed {
    ids: Vec<u32>,
    pooling: Pooling,
    sink: EmbedSink,
}

/// What handles and thread share.
struct Shared {
    config: Config,
    tokenizer: Tokenizer,
    /// Made for the first constraint.
    vocabulary: OnceLock<Result<Vocabulary, ConstraintError>>,
    options: EngineOptions,
    /// Requests that wait or run.
    taken: Arc<AtomicUsize>,
    inbox: Mutex<Inbox>,
    /// Something is in the inbox.
    bell: Condvar,
    status: Mutex<Status>,
}

/// Nothing behind these locks is ever left half done, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the thread with the last handle.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn close(&self, grace: Duration) {
        let now = Instant::now();
        let by = now.checked_add(grace).unwrap_or(now);
        let mut inbox = lock(&self.shared.inbox);
        inbox.closed = Some(inbox.closed.map_or(by, |earlier| earlier.min(by)));
        drop(inbox);
        self.shared.bell.notify_all();
        let thread = lock(&self.thread).take();
        // A handle may be dropped by a sink, on the thread itself.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            // A panic there has been printed, and every sink has been dropped.
            let _ = thread.join();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

/// A handle to a model that serves many readers. When the last one is dropped the engine stops, whatever runs.
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
}

impl Engine {
    /// Starts the thread, which takes the model.
    pub fn start<D: Device>(checkpoint: Checkpoint<D>, options: EngineOptions) -> Result<Engine, EngineError> {
        Engine::begin(checkpoint, None, options)
    }

    /// Starts it with a small model of the same vocabulary, `draft`, which guesses what the large one will say.
    pub fn start_with_draft<D: Device>(
        checkpoint: Checkpoint<D>,
        draft: Checkpoint<D>,
        mut options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        if let Some(why) = drafter::differs(&draft.tokenizer, &checkpoint.tokenizer) {
            return Err(EngineError::Vocabulary(why));
        }
        if options.guesses == 0 {
            options.guesses = drafter::GUESSES;
        }
        Engine::begin(checkpoint, Some(draft), options)
    }

    fn begin<D: Device>(
        checkpoint: Checkpoint<D>,
        draft: Option<Checkpoint<D>>,
        mut options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let limit = checkpoint.config.max_position_embeddings;
        if options.context > limit {
            return Err(EngineError::Context { asked: options.context, limit });
        }
        let counts = [("batch", options.batch), ("queue", options.queue), ("prefill_chunk", options.prefill_chunk)];
        if let Some((option, _)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err(EngineError::Zero { option });
        }
        let Checkpoint { device, config, model, weights, tokenizer } = checkpoint;
        let worker = worker::Worker::new(device, model, weights, draft, &mut options)?;
        let shared = Arc::new(Shared {
            config,
            tokenizer,
            vocabulary: OnceLock::new(),
            options,
            taken: Arc::default(),
            inbox: Mutex::new(Inbox { requests: vec![], embeds: vec![], closed: None, gone: false }),
            bell: Condvar::new(),
            status: Mutex::new(worker.status()),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || worker.run(&for_thread))?;
        Ok(Engine { owner: Arc::new(Owner { shared, thread: Mutex::new(Some(thread)) }) })
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// Takes a request; its events go to `sink`.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, Rejected> {
        request.sampling.check()?;
        self.check(&request.prompt, request.max_tokens.min(1))?;
        // Here, for on the thread everybody would wait for it.
        let guide = request.constraint.as_ref().map(Constraint::guide);
        let mut inbox = self.open()?;
        let EngineOptions { queue, batch, .. } = self.shared().options;
        let slot = Slot::take(&self.shared().taken, queue.saturating_add(batch));
        let slot = slot.map_err(|taken| Rejected::QueueFull { waiting: taken - batch })?;
        let cancelled = Arc::new(AtomicBool::new(false));
        inbox.requests.push(Waiting {
            request,
            guide,
            sink,
            cancelled: cancelled.clone(),
            since: Instant::now(),
            slot: Some(slot),
        });
        drop(inbox);
        self.shared().bell.notify_all();
        Ok(Ticket { cancelled, detached: false })
    }

    /// Compiles a form for [`Request::constraint`], mostly in a few milliseconds. The first makes the vocabulary, too.
    pub fn constrain(&self, form: &Form) -> Result<Constraint, ConstraintError> {
        let Shared { vocabulary, tokenizer, .. } = self.shared();
        vocabulary.get_or_init(|| Vocabulary::new(tokenizer)).as_ref().map_err(Clone::clone)?.compile(form)
    }

    /// One vector for a text: its final hidden states, pooled, not scaled to a length.
    pub fn embed(&self, ids: Vec<u32>, pooling: Pooling, sink: EmbedSink) -> Result<(), Rejected> {
        self.check(&ids, 0)?;
        let mut inbox = self.open()?;
        let waiting = inbox.embeds.len();
        if waiting >= self.shared().options.queue {
            return Err(Rejected::QueueFull { waiting });
        }
        inbox.embeds.push(Embed { ids, pooling, sink });
        drop(inbox);
        self.shared().bell.notify_all();
        Ok(())
    }

    fn open(&self) -> Result<MutexGuard<'_, Inbox>, Rejected> {
        let inbox = lock(&self.shared().inbox);
        if inbox.gone || inbox.closed.is_some() { Err(Rejected::Closed) } else { Ok(inbox) }
    }

    fn check(&self, ids: &[u32], room: usize) -> Result<(), Rejected> {
        let (limit, vocab) = (self.shared().options.context, self.config().vocab_size);
        if ids.is_empty() {
            return Err(Rejected::Empty);
        }
        if ids.len() + room > limit {
            return Err(Rejected::TooLong { tokens: ids.len(), limit });
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(Rejected::BadToken { id, vocab }),
            None => Ok(()),
        }
    }

    /// What the engine does and has done.
    pub fn status(&self) -> Status {
        let arrived = lock(&self.shared().inbox).requests.len();
        let mut status = lock(&self.shared().status).clone();
        status.waiting += arrived;
        status
    }

    /// Most tokens of a prompt and its completion.
    pub fn context(&self) -> usize {
        self.shared().options.context
    }

    /// A text as the beginning of a document, as [`Checkpoint::generate`] reads a prompt.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        crate::generate::prompt_ids(self.config(), self.tokenizer(), prompt)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared().tokenizer
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.shared().config
    }

    /// Takes no more requests, gives the others `grace` to end (then they fail), and waits for that.
    pub fn shutdown(self, grace: Duration) {
        self.owner.close(grace);
    }
}

#[cfg(test)]
mod tests;
