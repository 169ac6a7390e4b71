//! Completions that must have a form: JSON of a schema, a regular expression, a grammar.
//!
//! A [`Form`] says what a text must be. A [`Vocabulary`], made once for a tokenizer, turns it into a [`Constraint`], and a
//! [`Guide`] follows one text: before each token it says which may come, and what may come can always be completed. The
//! sampler sees the logits of those alone, so a text has its form whatever the model would rather say; it may end only where
//! it is whole, and ends at once where nothing more can follow.
//!
//! The work is done by the crate `llguidance`: derivatives of regular expressions make tokens of the grammar, an Earley parser
//! reads them, and a trie of the vocabulary is walked with both (Koo et al. 2024 tell of the idea). None of its types leaves
//! this module. What it may spend is bounded when a form is compiled and at every token, and each text has a guide of its own
//! that shares nothing: what one is told never depends on another.
//!
//! Not here: what a model ought to be told of the form it must write. It sees only its prompt.

mod error;
mod form;
mod schema;
mod vocabulary;

pub use error::ConstraintError;
pub use form::Form;
pub use schema::{FORMATS, KEYWORDS, check as check_schema};
pub use vocabulary::Vocabulary;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use std::sync::Arc;

/// A form that was compiled for a vocabulary; a copy costs nothing.
#[derive(Clone)]
pub struct Constraint {
    matcher: Arc<Matcher>,
    /// Tokens that cannot begin a text.
    not_first: Option<Arc<SimpleVob>>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

/// Only a constraint and its copies are equal.
impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.matcher, &other.matcher)
    }
}

impl Constraint {
    /// A guide for a text that begins. It has tables of its own, so it takes a moment and some memory.
    pub fn guide(&self) -> Guide {
        Guide { matcher: self.matcher.deep_clone(), not_first: self.not_first.clone(), allowed: None }
    }
}

/// Follows one text, token by token.
pub struct Guide {
    matcher: Matcher,
    /// Tokens that cannot begin the text, until it has begun.
    not_first: Option<Arc<SimpleVob>>,
    /// What may come next, if that is known already.
    allowed: Option<SimpleVob>,
}

impl Guide {
    /// Whether the text may end here.
    pub fn complete(&mut self) -> Result<bool, ConstraintError> {
        self.matcher.is_accepting().map_err(ConstraintError::during)
    }

    /// Whether the text must end here: it is whole, and nothing can follow.
    pub fn finished(&mut self) -> Result<bool, ConstraintError> {
        Ok(self.matcher.is_stopped() || self.complete()? && self.allowed()?.is_zero())
    }

    /// Whether this token may come next.
    pub fn allows(&mut self, id: u32) -> Result<bool, ConstraintError> {
        Ok(allows(self.allowed()?, id))
    }

    fn allowed(&mut self) -> Result<&SimpleVob, ConstraintError> {
        if self.allowed.is_none() {
            let mask = match self.matcher.is_stopped() && !self.matcher.is_error() {
                true => SimpleVob::new(),
                false => self.mask()?,
            };
            self.allowed = Some(mask);
        }
        self.allowed.as_ref().ok_or_else(|| ConstraintError::Lost("no mask".into()))
    }

    /// Where the text is whole and nothing can follow, the crate calls an empty mask an error.
    fn mask(&mut self) -> Result<SimpleVob, ConstraintError> {
        let complete = self.complete()?;
        match self.matcher.compute_mask() {
            Ok(mut mask) => {
                if let Some(banned) = &self.not_first {
                    mask.sub(banned);
                }
                Ok(mask)
            }
            Err(error) if complete && error::is_nothing(&error) => Ok(SimpleVob::new()),
            Err(error) => Err(ConstraintError::during(error)),
        }
    }

    /// The next token by `sample`, which is given logits in which only what may come is more than negative infinity; none
    /// where the text must end. Of `ends`, tokens that end the text, all may come where it is whole and none elsewhere.
    pub fn draw(
        &mut self,
        logits: &mut [f32],
        ends: &[u32],
        sample: impl FnOnce(&mut [f32]) -> u32,
    ) -> Result<Option<u32>, ConstraintError> {
        if self.finished()? {
            return Ok(None);
        }
        self.apply(logits, ends)?;
        let id = sample(logits);
        if logits.get(id as usize).is_some_and(|x| *x > f32::NEG_INFINITY) {
            return Ok(Some(id));
        }
        // The logits of all that may come are no numbers: then any of it is as good.
        let mut first: Option<u32> = None;
        self.allowed()?.iter_set_entries(|id| first = first.or(Some(id as u32)));
        first.or(ends.first().copied()).map(Some).ok_or(ConstraintError::DeadEnd)
    }

    /// Bans from `logits` (one per token) what may not come next.
    fn apply(&mut self, logits: &mut [f32], ends: &[u32]) -> Result<(), ConstraintError> {
        let complete = self.complete()?;
        let end = |&id: &u32| Some((id as usize, *logits.get(id as usize)?));
        let ends: Vec<(usize, f32)> = ends.iter().filter_map(end).collect();
        let allowed = self.allowed()?;
        let mut any = false;
        for (id, x) in (0..).zip(logits.iter_mut()) {
            match allows(allowed, id) {
                true => any = true,
                false => *x = f32::NEG_INFINITY,
            }
        }
        for (id, x) in ends {
            logits[id] = if complete { x } else { f32::NEG_INFINITY };
            any |= complete;
        }
        if any { Ok(()) } else { Err(ConstraintError::DeadEnd) }
    }

    /// Goes on behind a token, which must be one that may come next.
    pub fn take(&mut self, id: u32) -> Result<(), ConstraintError> {
        (self.allowed, self.not_first) = (None, None);
        self.matcher.consume_token(id).map_err(ConstraintError::during)
    }
}

fn allows(mask: &SimpleVob, id: u32) -> bool {
    (id as usize) < mask.len() && mask.is_allowed(id)
}

#[cfg(test)]
mod tests;
