//! Latent attention: its keys, and the matrix that files keep in two halves.
//!
//! Rows of Hugging Face's `kv_b_proj` are, head by head, those of U, which makes keys of a latent, then those of V, which
//! makes values ([`crate::mla`]). llama.cpp takes queries to the latents as our decoding does, and its files hold what it
//! multiplies with: `attn_k_b`, each head's Uᵀ, and `attn_v_b`, each head's V. Blocks lie along rows, so the rows of U can
//! only be had by decoding Uᵀ: an [`Expansion`] is decoded once, where all other tensors are read where they lie. Older
//! files have the matrix as Hugging Face has it, `attn_kv_b`, and need none of this.
//!
//! Over latents attention has one key and one value for all heads, and in files with two halves `head_count_kv`,
//! `key_length` and `value_length` are of these; sizes of the heads stand under names that end in `_mla`. In older files
//! they stand under the plain ones. Pairs of rotated columns are neighbours, in files as in DeepSeek's checkpoints.

use super::config::{Keys, Writer};
use super::file::{File, Rows};
use super::names::place;
use crate::config::{Config, ConfigError, MlaConfig};
use crate::mla::LATENT_EPS;
use crate::weights::WeightsError;
use std::ops::Range;
use std::sync::OnceLock;

/// The key that files with two halves have, and older ones have not.
const SPLIT: &str = "attention.key_length_mla";

/// The widths of latent attention. Whether queries have a latent is told by their tensors.
pub(super) fn read(keys: &Keys, heads: usize) -> Result<MlaConfig, WeightsError> {
    let kv_lora_rank = keys.required("attention.kv_lora_rank")?;
    let qk_rope_head_dim = keys.required("rope.dimension_count")?;
    let (key, value) = match keys.count(SPLIT)?.filter(|&n| n > 0) {
        Some(_) => {
            keys.only("attention.head_count_kv", 1)?;
            keys.only("attention.key_length", kv_lora_rank.saturating_add(qk_rope_head_dim))?;
            keys.only("attention.value_length", kv_lora_rank)?;
            (SPLIT, "attention.value_length_mla")
        }
        None => {
            keys.only("attention.head_count_kv", heads)?;
            ("attention.key_length", "attention.value_length")
        }
    };
    let width = keys.required(key)?;
    let Some(qk_nope_head_dim) = width.checked_sub(qk_rope_head_dim).filter(|&n| n > 0) else {
        let problem = format!("{width} must be above rope.dimension_count, {qk_rope_head_dim}");
        return Err(keys.file.wrong(&keys.full(key), &problem));
    };
    let q_latent = keys.file.tensor("blk.0.attn_q_a.weight").is_some();
    Ok(MlaConfig {
        q_lora_rank: if q_latent { Some(keys.required("attention.q_lora_rank")?) } else { None },
        kv_lora_rank,
        qk_nope_head_dim,
        qk_rope_head_dim,
        v_head_dim: keys.required(value)?,
        rope_interleave: true,
    })
}

/// The keys of latent attention, of a file with two halves.
pub(super) fn write(
    config: &Config,
    m: &MlaConfig,
    to: &mut Writer,
    must: impl Fn(&'static str, bool, &str) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    must("rope_interleave", m.rope_interleave, "with neighbouring columns turned")?;
    // It has one epsilon for all norms.
    must("rms_norm_eps", config.rms_norm_eps == LATENT_EPS, "with 1e-6, which the norms of latents have")?;
    // Models of these sizes it takes for DeepSeek-V2-Lite and its like.
    let lite = matches!((config.num_hidden_layers, config.vocab_size), (26 | 27, _) | (48, 128_256));
    let how = format!("without it where there are {} layers", config.num_hidden_layers);
    must("q_lora_rank", m.q_lora_rank.is_none() || !lite, &how)?;
    to.count("attention.head_count_kv", 1);
    to.count("attention.key_length", m.kv_lora_rank + m.qk_rope_head_dim);
    to.count("attention.value_length", m.kv_lora_rank);
    to.count(SPLIT, m.qk_nope_head_dim + m.qk_rope_head_dim);
    to.count("attention.value_length_mla", m.v_head_dim);
    to.count("attention.kv_lora_rank", m.kv_lora_rank);
    // It must be there, even if there is no such latent.
    to.count("attention.q_lora_rank", m.q_lora_rank.unwrap_or(0));
    Ok(())
}

/// A tensor that has some rows of each head of a Hugging Face tensor.
#[derive(Clone, Debug)]
pub(super) struct Half {
    pub name: String,
    pub heads: usize,
    /// Rows that a head has in all, …
    pub per_head: usize,
    /// … and those of them that are here.
    pub rows: Range<usize>,
    pub columns: usize,
    /// Each head's rows are columns here.
    pub transposed: bool,
}

impl Half {
    /// The shape in a file, outermost first.
    pub fn shape(&self) -> [usize; 3] {
        let (rows, columns) = (self.rows.len(), self.columns);
        if self.transposed { [self.heads, columns, rows] } else { [self.heads, rows, columns] }
    }

    /// A head's elements from one order into the other; `x` has so many columns.
    pub fn turned(&self, x: Vec<f32>, columns: usize) -> Vec<f32> {
        if !self.transposed {
            return x;
        }
        (0..columns).flat_map(|j| x.iter().skip(j).step_by(columns)).copied().collect()
    }
}

/// The halves of the tensor that is called `name` where it is whole, if it is one of those.
pub(super) fn halves(config: &Config, name: &str) -> Option<[Half; 2]> {
    let (m, at) = (config.mla?, name.strip_suffix("attn_kv_b.weight")?);
    let per_head = m.qk_nope_head_dim + m.v_head_dim;
    let half = |name: &str, rows: Range<usize>, transposed| Half {
        name: format!("{at}{name}.weight"),
        heads: config.num_attention_heads,
        per_head,
        rows,
        columns: m.kv_lora_rank,
        transposed,
    };
    Some([half("attn_k_b", 0..m.qk_nope_head_dim, true), half("attn_v_b", m.qk_nope_head_dim..per_head, false)])
}

/// As [`halves`], of a file that has them.
pub(super) fn halves_in(file: &File, config: &Config, name: &str) -> Option<[Half; 2]> {
    let halves = halves(config, name)?;
    let key = format!("{}.{SPLIT}", file.architecture().ok()?);
    file.get(&key)?.whole().filter(|&n| n > 0).map(|_| halves)
}

/// The matrix in two halves.
#[derive(Debug)]
pub struct Expansion<'a> {
    halves: [(Half, Rows<'a>); 2],
    /// Decoded when they are asked for: whoever only checks a file does not.
    numbers: OnceLock<Vec<f32>>,
}

impl<'a> Expansion<'a> {
    /// The Hugging Face tensor `part`, which has the shape `shape`; `None` if the file has it whole.
    pub(super) fn find(
        file: &'a File,
        config: &Config,
        part: &str,
        shape: &[usize],
    ) -> Result<Option<Expansion<'a>>, WeightsError> {
        let halves = place(config, part).and_then(|place| halves_in(file, config, &place.name));
        let Some([keys, values]) = halves else { return Ok(None) };
        let all = [keys.heads * keys.per_head, keys.columns];
        if shape != all {
            return Err(WeightsError::tensor(file.path(), &keys.name, format!("is of {all:?}, expected {shape:?}")));
        }
        let [k, v] = [&keys, &values].map(|half| file.stacked(&half.name, part, half.shape()));
        Ok(Some(Expansion { halves: [(keys, k?), (values, v?)], numbers: OnceLock::new() }))
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        let half = &self.halves[0].0;
        [half.heads * half.per_head, half.columns]
    }

    /// What of the file it is made of.
    pub fn rows(&self) -> [&Rows<'a>; 2] {
        self.halves.each_ref().map(|(_, rows)| rows)
    }

    /// All numbers, row by row, as Hugging Face has them.
    pub fn numbers(&self) -> &[f32] {
        self.numbers.get_or_init(|| self.decode())
    }

    fn decode(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.shape().iter().product()];
        for (half, rows) in &self.halves {
            let [_, n, columns] = half.shape();
            for (head, x) in all.chunks_exact_mut(half.per_head * half.columns).enumerate() {
                let mut coded = vec![0.0; n * columns];
                rows.decode(head * n..(head + 1) * n, &mut coded);
                let x = &mut x[half.rows.start * half.columns..half.rows.end * half.columns];
                x.copy_from_slice(&half.turned(coded, columns));
            }
        }
        all
    }
}
