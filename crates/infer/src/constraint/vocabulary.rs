//! The trie of a tokenizer's vocabulary, and the compiler that knows it.

use super::error::NO_TEXT;
use super::{Constraint, ConstraintError, Form, Guide};
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use std::sync::Arc;
use wudao_data::tokenizer::Tokenizer;

/// What a form may cost when it is compiled and at each token. A million units of the lexer's fuel are about 20 ms, and at a
/// token 100,000 are about 7; a thousand items of the parser are about 50 µs.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Most bytes of a token in the trie; longer ones, long lines of one character, are never allowed.
const LONGEST_TOKEN: usize = 512;
/// Most tokens, and most nodes of the trie, that its numbers can hold.
const MOST_TOKENS: usize = 1 << 23;
const MOST_NODES: usize = 1 << 22;

/// The compiler goes down into what it is given by recursion, as deep as there are rules in a grammar or schemas in a schema:
/// so many that a thread's usual stack is too small. Memory that is not touched costs nothing.
const STACK: usize = 512 << 20;

/// A vocabulary as constraints see it: the bytes of each token, in a trie. Made once for a tokenizer, in a good part
/// of a second if it is large.
pub struct Vocabulary {
    factory: ParserFactory,
    /// Tokens that cannot begin a text.
    not_first: Option<Arc<SimpleVob>>,
}

impl Vocabulary {
    /// The vocabulary of a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Result<Vocabulary, ConstraintError> {
        if !tokenizer.joins_bytes() {
            return Err(ConstraintError::Tokenizer);
        }
        let size = tokenizer.vocab_size();
        let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(tokenizer, id)).collect();
        for (what, count, limit) in [("tokens", size, MOST_TOKENS), ("nodes", nodes(&words), MOST_NODES)] {
            if count > limit {
                return Err(ConstraintError::TooLarge { what: format!("{count} {what} of the vocabulary"), limit });
            }
        }
        // A space that is not written is not there.
        let not_first = tokenizer.trims_space().then(|| {
            let begins: Vec<bool> = words.iter().map(|word| word.first() == Some(&b' ')).collect();
            Arc::new(SimpleVob::from_slice(&begins))
        });
        // Which tokens end a text is the request's business.
        let info = TokRxInfo::new(size as u32, INVALID_TOKEN);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let can = InferenceCapabilities::default();
        let factory = ParserFactory::new(&environment, can, &SlicedBiasComputer::general_slices());
        let mut factory = factory.map_err(ConstraintError::compiling)?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Vocabulary { factory, not_first })
    }

    /// Compiles a form, or says why it cannot be kept.
    pub fn compile(&self, form: &Form) -> Result<Constraint, ConstraintError> {
        let compile = || {
            let parser = self.factory.create_parser(form.grammar()?).map_err(ConstraintError::compiling)?;
            let not_first = self.not_first.clone();
            let mut guide = Guide { matcher: Matcher::new(Ok(parser)), not_first, allowed: None };
            // Without a token, this looks whether the text is whole already and nothing can follow.
            guide.matcher.consume_tokens(&[]).map_err(ConstraintError::compiling)?;
            // Something must be able to come, or to be left out. What is found out here, all texts know.
            let empty = guide.allowed().map_err(|error| ConstraintError::compiling(error.reason()))?.is_zero();
            match empty && !guide.complete()? {
                true => Err(ConstraintError::compiling(NO_TEXT)),
                false => Ok(Constraint { matcher: Arc::new(guide.matcher), not_first: guide.not_first }),
            }
        };
        let broken = || ConstraintError::Malformed("it is beyond what the compiler of grammars can do".into());
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|_| broken())?;
            thread.join().unwrap_or_else(|_| Err(broken()))
        })
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vocabulary")
    }
}

/// The bytes of a token. Special ones have none that a text could have: they begin with 0xff, and a grammar may name them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let special = tokenizer.is_special(id);
    match bytes.first() {
        Some(&TokTrie::SPECIAL_TOKEN_MARKER) if !special => Vec::new(),
        _ if bytes.len() >= LONGEST_TOKEN => Vec::new(),
        Some(_) if special => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        _ => bytes.to_vec(),
    }
}

/// Nodes of the trie: bytes of each word beyond those that it shares with the one before it in order.
fn nodes(words: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let shared = |pair: &[&[u8]]| pair[0].iter().zip(pair[1]).take_while(|(a, b)| a == b).count();
    let all: usize = sorted.iter().map(|word| word.len()).sum();
    1 + all - sorted.windows(2).map(shared).sum::<usize>()
}
