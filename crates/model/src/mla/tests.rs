//! Latent attention against plain loops over tokens, heads and columns, written from the paper: keys and values of every
//! head, pairs turned where they stand, no latents in the scores.

use super::*;
use crate::block::{AnyAttention, Block};
use crate::common::{by_name, families::latent_families, randomize, solo};
use crate::layer::{Auxiliary, Packing};
use crate::model::Options;
use crate::rope::{frequencies, rope_table};
use crate::store::{Layout, Shard, Store};
use std::collections::BTreeMap;
use wudao_device::check::{Random, assert_close};
use wudao_device::{Cpu, PAGE};

type Weights = BTreeMap<String, Vec<f64>>;

/// `W·x (+ b)`, `W` row by row.
fn project(w: &Weights, at: &str, x: &[f64]) -> Vec<f64> {
    let y = w[&format!("{at}.weight")].chunks(x.len()).map(|row| dot(row, x));
    match w.get(&format!("{at}.bias")) {
        Some(b) => y.zip(b).map(|(y, b)| y + b).collect(),
        None => y.collect(),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normed(w: &Weights, at: &str, x: &[f64]) -> Vec<f64> {
    let mean = dot(x, x) / x.len() as f64;
    x.iter().zip(&w[&format!("{at}.weight")]).map(|(x, w)| x / (mean + 1e-6).sqrt() * w).collect()
}

/// Turns the pairs of a vector, each where it stands.
fn turn(config: &Config, position: usize, x: &mut [f64]) {
    let by = config.rope_scaling.as_ref().map_or(1.0, |s| s.attention_factor());
    let half = x.len() / 2;
    for (i, f) in frequencies(config).into_iter().enumerate() {
        let (a, b) = if config.mla.unwrap().rope_interleave { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (sin, cos) = (position as f64 * f).sin_cos();
        (x[a], x[b]) = (by * (x[a] * cos - x[b] * sin), by * (x[b] * cos + x[a] * sin));
    }
}

/// What the layer answers each token of one text.
fn plain(config: &Config, w: &Weights, at: &str, xs: &[&[f64]]) -> Vec<f64> {
    let m = config.mla.unwrap();
    let (nope, rope, h) = (m.qk_nope_head_dim, m.qk_rope_head_dim, config.num_attention_heads);
    let name = |x: &str| format!("{at}.{x}");
    let mut heads: Vec<Vec<[Vec<f64>; 3]>> = vec![];
    for (position, x) in xs.iter().enumerate() {
        let q = match m.q_lora_rank {
            None => project(w, &name("q_proj"), x),
            Some(_) => {
                let latent = normed(w, &name("q_a_layernorm"), &project(w, &name("q_a_proj"), x));
                project(w, &name("q_b_proj"), &latent)
            }
        };
        let down = project(w, &name("kv_a_proj_with_mqa"), x);
        let (latent, shared) = down.split_at(m.kv_lora_rank);
        let kv = project(w, &name("kv_b_proj"), &normed(w, &name("kv_a_layernorm"), latent));
        let mut shared = shared.to_vec();
        turn(config, position, &mut shared);
        let head = |h: usize| {
            let mut q = q[h * (nope + rope)..(h + 1) * (nope + rope)].to_vec();
            turn(config, position, &mut q[nope..]);
            let kv = &kv[h * (nope + m.v_head_dim)..(h + 1) * (nope + m.v_head_dim)];
            [q, [&kv[..nope], &shared].concat(), kv[nope..].to_vec()]
        };
        heads.push((0..h).map(head).collect());
    }
    let mscale = config.rope_scaling.as_ref().map_or(1.0, |s| match *s {
        RopeScaling::Yarn { factor, mscale_all_dim: Some(all), .. } => 0.1 * all * factor.ln() + 1.0,
        _ => 1.0,
    });
    let scale = mscale * mscale / ((nope + rope) as f64).sqrt();
    let mut all = vec![];
    for i in 0..xs.len() {
        let answer = |h: usize| {
            let e: Vec<f64> = (0..=i).map(|j| (scale * dot(&heads[i][h][0], &heads[j][h][1])).exp()).collect();
            let sum: f64 = e.iter().sum();
            let column = |c| (0..=i).map(|j| e[j] / sum * heads[j][h][2][c]).sum::<f64>();
            (0..m.v_head_dim).map(column).collect::<Vec<f64>>()
        };
        let out: Vec<f64> = (0..h).flat_map(answer).collect();
        all.extend(project(w, &name("o_proj"), &out));
    }
    all
}

#[test]
fn latent_attention_is_what_the_paper_says_in_both_ways() {
    for (name, config) in latent_families() {
        let dev = Cpu::new(2);
        let layout = Layout::new(&config, Shard::WHOLE);
        let mut weights = Store::zeros(&dev, &layout, DType::F64);
        randomize(&dev, &mut weights, 4);
        let options = Options { dtype: DType::F64, ..Options::default() };
        let table = Arc::new(rope_table(&dev, &config, 20, DType::F64));
        let block = Block::new(&config, 1, &layout.blocks[1], table, &options);
        let AnyAttention::Latent(mla) = &block.attention else { panic!("{name}: not latent") };

        let (lengths, d) = ([3, 17], config.hidden_size);
        let t = lengths.iter().sum();
        let x = Random(5).values(t * d);
        let rows: Vec<&[f64]> = x.chunks(d).collect();
        let (by_name, at) = (by_name(&dev, &weights), "model.layers.1.self_attn");
        let (first, second) = rows.split_at(lengths[0]);
        let expected = [plain(&config, &by_name, at, first), plain(&config, &by_name, at, second)].concat();

        let packing = Packing::of_lengths(&lengths);
        let cx = solo(&dev, &weights, &packing, Auxiliary::default(), None);
        let x = Tensor::from_host(&dev, [t, d], &x);
        let answer = |way: &mut dyn FnMut(ViewMut<Cpu>)| {
            let mut y = Tensor::zeros(&dev, [t, d], DType::F64);
            way(y.view_mut());
            assert_close(name, "latent attention", DType::F64, &expected, &y.view().to_f64(&dev));
        };
        answer(&mut |y| mla.forward(&cx, x.view(), y));
        let shape = [3, PAGE * config.cache_width()];
        let cache = || Tensor::zeros(&dev, shape, DType::F64);
        let sequences = [Paged { rows: 0..3, past: 0, pages: &[1] }, Paged { rows: 3..20, past: 0, pages: &[2, 0] }];
        let mut pages = LayerCache { k: cache(), v: cache() };
        answer(&mut |y| mla.forward_paged(&cx, &mut pages, &sequences, x.view(), y));
    }
}

#[test]
fn the_widest_piece() {
    assert_eq!(gcd(&[128, 64, 128, 192]), 64);
    assert_eq!(gcd(&[12, 8, 10]), 2);
    assert_eq!(gcd(&[0, 7]), 7);
}
