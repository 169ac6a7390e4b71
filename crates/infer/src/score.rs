//! How well a model predicts documents: nats a token, perplexity, bits a byte, by source and language.

use crate::checkpoint::Checkpoint;
use wudao_comm::Solo;
use wudao_data::batch::{BatchError, EvalStream, Layout};
use wudao_data::shard::Documents;
use wudao_data::tally::Tally;
use wudao_device::{Device, Fault};
use wudao_model::{Cx, Packing};

/// Why documents could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The documents do not fit the model.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The machine failed.
    #[error(transparent)]
    Device(#[from] Fault),
    /// Longer windows than the model takes.
    #[error(
        "seq_len = {seq_len} is more than the model takes (max_position_embeddings = {limit}): choose a smaller --seq-len"
    )]
    SeqLen {
        /// What was asked for.
        seq_len: usize,
        /// The model's limit.
        limit: usize,
    },
}

impl<D: Device> Checkpoint<D> {
    /// Scores every document once, in windows of `layout.seq_len` predictions. `progress` hears the predictions done.
    pub fn score(
        &self,
        documents: impl Documents,
        layout: Layout,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Tally, ScoreError> {
        let limit = self.config.max_position_embeddings;
        if layout.seq_len > limit {
            return Err(ScoreError::SeqLen { seq_len: layout.seq_len, limit });
        }
        let mut stream = EvalStream::new(documents, layout)?;
        let mut tally = Tally::default();
        let mut done = 0;
        while let Some(batch) = stream.next_batch()? {
            let packing = Packing { positions: batch.positions.clone(), segments: batch.cu_seqlens.clone() };
            let mut cx = Cx {
                device: &self.device,
                comm: &Solo,
                weights: &self.weights,
                packing: &packing,
                aux: Default::default(),
                log: None,
                again: false,
            };
            let losses = self.model.losses(&mut cx, &batch.inputs, &batch.targets)?;
            tally.add(&batch, &losses);
            done += batch.predictions() as u64;
            progress(done);
        }
        Ok(tally)
    }
}
