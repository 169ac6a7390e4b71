//! Guesses the next tokens with a small model beside the large one (speculative decoding; Leviathan et al. 2023, Chen et al.
//! 2023).
//!
//! A guess is kept as `draft.rs` says: if the sampler draws it from the large model's logits. So it is guessed with a copy of
//! that very sampler, at the same place of its random stream, with the same penalties: where both models think alike, the
//! copy draws what the sampler will draw, at any temperature, and what is written has the bits that it has without guesses.
//!
//! The small model has keys and values of its own, in pages that have the numbers of the large one's: a page of the one and a
//! page of the other hold the same tokens. It reads all that the large one reads, in the same step, and may be a token behind
//! where all guesses came true (the last of them it has not read itself). What it holds of guesses that did not come true is
//! written over.

use super::worker::{Running, cx, to_f32};
use crate::checkpoint::Checkpoint;
use crate::sampler::Sampler;
use wudao_data::tokenizer::Tokenizer;
use wudao_device::{DType, Device, Fault};
use wudao_model::{Config, Model, PackedWeights, PagedCache, Step};

/// Guesses of a step if nobody says how many.
pub(super) const GUESSES: usize = 4;

/// A small model that guesses.
pub(super) struct Drafter<D: Device> {
    device: D,
    model: Model<D>,
    weights: PackedWeights<D>,
    cache: PagedCache<D>,
}

impl<D: Device> Drafter<D> {
    /// With keys and values in as many pages as the large model's cache has.
    pub fn new(checkpoint: Checkpoint<D>, pages: usize, cache_dtype: DType) -> Self {
        let Checkpoint { device, config, model, weights, .. } = checkpoint;
        let cache = PagedCache::new(&device, &config, pages, cache_dtype);
        Drafter { device, model, weights, cache }
    }

    /// Reads what the large model will have read after this step, `counts` tokens more of each sequence. Where it writes, that
    /// is one token and guesses that are hoped for: they are made, and the count becomes what came of it.
    pub fn guess(&mut self, running: &mut [Running], counts: &mut [usize], large: &Config) -> Result<(), Fault> {
        let begin = |(r, &n): (&mut Running, &usize)| {
            r.guess.clear();
            let hope = if r.left() == 1 { n.saturating_sub(1) } else { 0 };
            let sampler = (hope > 0).then(|| r.sequence.sampler());
            Draft { text: r.sequence.ids[..r.read + n - hope].to_vec(), hope, sampler }
        };
        let mut drafts: Vec<Draft> = running.iter_mut().zip(&*counts).map(begin).collect();
        // In the first round everybody reads, in the others whoever still hopes.
        let mut first = true;
        loop {
            let reads = |i: &usize| (first || drafts[*i].hope > 0) && running[*i].drafted < drafts[*i].text.len();
            let who: Vec<usize> = (0..running.len()).filter(reads).collect();
            first = false;
            if who.is_empty() {
                break;
            }
            self.round(&who, running, &mut drafts, large)?;
        }
        for (r, n) in running.iter_mut().zip(counts).filter(|(r, _)| r.left() == 1) {
            r.sequence.sift(&mut r.guess);
            *n = 1 + r.guess.len();
        }
        Ok(())
    }

    /// Reads, and guesses one token for each that hopes for one.
    fn round(
        &mut self,
        who: &[usize],
        running: &mut [Running],
        drafts: &mut [Draft],
        large: &Config,
    ) -> Result<(), Fault> {
        let step = |&i: &usize| {
            let ids = &drafts[i].text[running[i].drafted..];
            let wanted = ids.len() - usize::from(drafts[i].hope > 0)..ids.len();
            Step { ids, past: running[i].drafted, pages: &running[i].pages, wanted }
        };
        let steps: Vec<Step> = who.iter().map(step).collect();
        let packing = Step::packing(&steps);
        let mut cx = cx(&self.device, &self.weights, &packing);
        let h_td = self.model.decode_batch(&mut cx, &mut self.cache, &steps)?;
        who.iter().for_each(|&i| running[i].drafted = drafts[i].text.len());
        let asking: Vec<usize> = who.iter().copied().filter(|&i| drafts[i].hope > 0).collect();
        if asking.is_empty() {
            return Ok(());
        }
        let logits = self.model.logits_of(&cx, h_td.view())?;
        let mut logits = to_f32(logits.view(), &self.device);
        let width = self.model.config().vocab_size;
        for (&i, row) in asking.iter().zip(logits.chunks_mut(width)) {
            let (r, draft) = (&mut running[i], &mut drafts[i]);
            let Some(sampler) = &mut draft.sampler else { continue };
            // Rows beyond the large model's are padding.
            let row = &mut row[..width.min(large.vocab_size)];
            let id = sampler.sample(row, &draft.text, r.sequence.prompt);
            r.guess.push(id);
            draft.text.push(id);
            // Few texts go on after their end.
            draft.hope = if large.eos_token_id.contains(&id) { 0 } else { draft.hope - 1 };
        }
        Ok(())
    }
}

/// A sequence as the small model goes on with it.
struct Draft {
    /// What is read after this step, and guesses.
    text: Vec<u32>,
    /// Guesses still to be made.
    hope: usize,
    /// What will draw from the large model's logits, where guesses are wanted.
    sampler: Option<Sampler>,
}

/// Why a model cannot guess for another, if it cannot: their tokens must be the same.
pub(super) fn differs(small: &Tokenizer, large: &Tokenizer) -> Option<String> {
    let (a, b) = (small.vocab_size(), large.vocab_size());
    if a != b {
        return Some(format!("it has {a} tokens, the model {b}"));
    }
    let same =
        |&id: &u32| small.token_bytes(id) == large.token_bytes(id) && small.is_special(id) == large.is_special(id);
    let id = (0..b as u32).find(|id| !same(id))?;
    let name = |of: &Tokenizer| String::from_utf8_lossy(of.token_bytes(id).unwrap_or_default()).into_owned();
    Some(format!("token {id} is {:?}, of the model {:?}", name(small), name(large)))
}
