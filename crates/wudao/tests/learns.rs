//! It learns: after a short training on the sample, held-out text costs less than under a model of single tokens.

mod common;

use common::{data, json, ok, text};
use std::path::Path;
use wudao_data::manifest::Split;
use wudao_data::shard::ShardSet;

/// Nats a held-out token costs under the best model that knows nothing but how common each token is: that of the
/// held-out text's own frequencies (ends of documents included). No unigram model learned from other text can be better.
fn unigram(data: &Path) -> f64 {
    let set = ShardSet::open(data, Split::Validation).unwrap();
    let mut counts = vec![0.0; set.tokenizer().vocab_size as usize];
    for index in 0..set.documents() {
        set.doc(index).tokens.iter().for_each(|id| counts[id as usize] += 1.0);
        counts[set.tokenizer().end_of_text as usize] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    counts.iter().filter(|&&n| n > 0.0).map(|n| -n / total * (n / total).ln()).sum()
}

#[test]
fn a_short_training_beats_single_token_frequencies() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    ok(&["train", "--preset", "tiny", "--data", text(data()), "--out", text(&run), "--steps", "250"]);
    let report = json(&["eval", "--model", text(&run), "--data", text(data()), "--json"]);
    let loss = report["total"]["nll"].as_f64().unwrap();
    let limit = unigram(data());
    assert!(loss < 0.95 * limit, "{loss} nats a token, single tokens cost {limit}");
}
