//! Learning a tokenizer.

use super::learn::{Words, learn};
use super::pieces::byte_to_char;
use super::scan::{SPLITS, Scanner};
use super::{TOKENIZER_CONFIG_FILE, Tokenizer, TokenizerError};
use ahash::AHashMap;
use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// Text beyond this many bytes is not read for learning, unless told otherwise.
pub const DEFAULT_TRAIN_BYTES: u64 = 512 << 20;

/// Special tokens of a new tokenizer, ids from 0. The first begins and ends every text; the reserved ones are for later
/// uses (tools, thinking, images) without a new vocabulary.
pub const SPECIAL_TOKENS: [&str; 16] = [
    "<|endoftext|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
    "<|reserved_2|>",
    "<|reserved_3|>",
    "<|reserved_4|>",
    "<|reserved_5|>",
    "<|reserved_6|>",
    "<|reserved_7|>",
    "<|reserved_8|>",
    "<|reserved_9|>",
    "<|reserved_10|>",
    "<|reserved_11|>",
];

/// The smallest vocabulary: special tokens and bytes.
pub const MIN_VOCAB_SIZE: usize = SPECIAL_TOKENS.len() + 256;

/// Bytes of distinct words that are kept while counting: bounds the memory of learning to about 0.6 GB.
const DISTINCT_BYTES: usize = 24 << 20;

/// How to learn a tokenizer.
///
/// Memory does not grow with the text: at most 24 MB of distinct words are kept, the rarest are forgotten beyond that.
/// All text counts alike, so give a sample that is mixed as the training data will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Number of ids, special tokens and bytes included; exactly this many come out.
    pub vocab_size: usize,
    /// Reading stops after the text that reaches this many bytes.
    pub max_bytes: u64,
}

impl TrainOptions {
    /// A vocabulary of this size, learned from at most [`DEFAULT_TRAIN_BYTES`].
    pub fn new(vocab_size: usize) -> TrainOptions {
        TrainOptions { vocab_size, max_bytes: DEFAULT_TRAIN_BYTES }
    }
}

pub(super) fn train(
    texts: impl IntoIterator<Item = impl AsRef<str>>,
    options: &TrainOptions,
) -> Result<Tokenizer, TokenizerError> {
    let fail = |reason: String| TokenizerError::Train { reason };
    if options.vocab_size < MIN_VOCAB_SIZE || options.vocab_size > 1 << 24 {
        return Err(fail(format!(
            "a vocabulary of {} is outside {MIN_VOCAB_SIZE} (special tokens and bytes) to {}",
            options.vocab_size,
            1 << 24
        )));
    }
    let scanner = Scanner::new();
    let mut words = Words::new(DISTINCT_BYTES);
    let mut read = 0;
    for text in texts {
        let text = text.as_ref();
        scanner.split_for_training(text, |piece| words.add(piece.as_bytes()));
        read += text.len() as u64;
        if read >= options.max_bytes {
            break;
        }
    }

    // The ids: special tokens, bytes, merges. Bytes go by the characters that stand for them, as in every such file.
    let mut tokens: Vec<String> = SPECIAL_TOKENS.map(str::to_owned).into();
    let mut alphabet: Vec<u8> = (0..=255).collect();
    alphabet.sort_by_key(|&byte| byte_to_char(byte));
    let mut bytes = [0; 256];
    for byte in alphabet {
        bytes[usize::from(byte)] = tokens.len() as u32;
        tokens.push(byte_to_char(byte).to_string());
    }
    let mut merges = Vec::new();
    for (left, right, _) in learn(words, &bytes, MIN_VOCAB_SIZE as u32, options.vocab_size - MIN_VOCAB_SIZE) {
        let pair = (tokens[left as usize].clone(), tokens[right as usize].clone());
        tokens.push(format!("{}{}", pair.0, pair.1));
        merges.push(pair);
    }
    // Little text has few pairs that occur twice. The size that was asked for is kept with tokens that no text yields.
    let special = SPECIAL_TOKENS.map(str::to_owned).into_iter();
    let unused = (0..options.vocab_size - tokens.len()).map(|number| format!("<|unused_{number}|>"));
    let special: Vec<AddedToken> = special.chain(unused).map(|token| AddedToken::from(token, true)).collect();
    let vocab: AHashMap<String, u32> = tokens.into_iter().zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocab, merges).build().map_err(|error| fail(error.to_string()))?;

    let mut inner = tokenizers::Tokenizer::new(model);
    let mut steps = Vec::new();
    for pattern in SPLITS {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split =
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| fail(error.to_string()))?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    let byte_level = ByteLevel::new(false, true, false);
    steps.push(PreTokenizerWrapper::ByteLevel(byte_level));
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_post_processor(Some(ByteLevel::new(true, false, true)));
    inner.with_decoder(Some(byte_level));
    inner.add_special_tokens(special).map_err(|error| fail(error.to_string()))?;
    let json = inner.to_string(true).map_err(|error| fail(error.to_string()))?;
    Tokenizer::parse(json.into_bytes(), Some(config()), TOKENIZER_CONFIG_FILE)
}

/// The settings that `transformers` needs to open the folder, with a ChatML template.
fn config() -> Vec<u8> {
    let template = "{% for message in messages %}\
        {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
        {% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let mut config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[1],
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000_000_u64,
        "chat_template": template,
    });
    config.sort_all_objects();
    let mut bytes = serde_json::to_vec_pretty(&config).expect("a JSON value can be written");
    bytes.push(b'\n');
    bytes
}
