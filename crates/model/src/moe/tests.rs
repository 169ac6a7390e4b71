//! The sparse layer against a plain loop over tokens and experts that shares no line with it: no sorting, no bands, no
//! device.

use super::*;
use crate::block::{Block, FeedForward};
use crate::common::{by_name, families::all_families, log_for, randomize, solo};
use crate::config::MoeConfig;
use crate::layer::{Auxiliary, Packing};
use crate::model::Options;
use crate::rope::rope_table;
use crate::store::{Layout, Shard};
use std::collections::BTreeMap;
use std::sync::Arc;
use wudao_device::check::{Random, assert_close};
use wudao_device::{Cpu, DType};

type Weights = BTreeMap<String, Vec<f64>>;

/// `w·x`, `w` row by row.
fn times(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn feed_forward(gate: &[f64], up: &[f64], down: &[f64], x: &[f64]) -> Vec<f64> {
    let act: Vec<f64> = times(gate, x).iter().zip(times(up, x)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    times(down, &act)
}

/// The experts of a token and their weights, from the definition.
fn choose(m: &MoeConfig, logits: &[f64], bias: Option<&Vec<f64>>) -> Vec<(usize, f64)> {
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    let score = |e: usize| if m.sigmoid { 1.0 / (1.0 + (-logits[e]).exp()) } else { logits[e].exp() / sum };
    let key = |e: usize| score(e) + bias.map_or(0.0, |b| b[e]);
    let by_key = |a: &usize, b: &usize| key(*b).total_cmp(&key(*a));
    let size = m.num_experts / m.n_group;
    let group_score = |g: usize| {
        let mut members: Vec<usize> = (g * size..(g + 1) * size).collect();
        members.sort_by(by_key);
        if m.sigmoid { key(members[0]) + key(members[1]) } else { key(members[0]) }
    };
    let mut groups: Vec<usize> = (0..m.n_group).collect();
    if m.n_group > 1 {
        groups.sort_by(|a, b| group_score(*b).total_cmp(&group_score(*a)));
    }
    let mut open: Vec<usize> = groups[..m.topk_group].iter().flat_map(|g| g * size..(g + 1) * size).collect();
    open.sort_by(by_key);
    let chosen = &open[..m.num_experts_per_tok];
    let total: f64 = chosen.iter().map(|&e| score(e)).sum();
    let divisor = if m.norm_topk_prob { total } else { 1.0 };
    chosen.iter().map(|&e| (e, score(e) / divisor * m.routed_scaling_factor)).collect()
}

/// One token's output, and its choices.
fn oracle(m: &MoeConfig, w: &Weights, at: &str, mixtral: bool, x: &[f64]) -> (Vec<f64>, Vec<usize>) {
    let names = if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    let logits = times(&w[&format!("{at}.gate.weight")], x);
    let chosen = choose(m, &logits, w.get(&format!("{at}.gate.e_score_correction_bias")));
    let mut y = vec![0.0; x.len()];
    for &(e, weight) in &chosen {
        let [gate, up, down] = names.map(|n| &w[&format!("{at}.experts.{e}.{n}.weight")]);
        let out = feed_forward(gate, up, down, x);
        y.iter_mut().zip(out).for_each(|(y, o)| *y += weight * o);
    }
    if m.n_shared_experts > 0 {
        let gated = w.get(&format!("{at}.shared_expert_gate.weight"));
        let one = if gated.is_some() { "shared_expert" } else { "shared_experts" };
        let [gate, up, down] = names.map(|n| &w[&format!("{at}.{one}.{n}.weight")]);
        let share = gated.map_or(1.0, |w| 1.0 / (1.0 + (-times(w, x)[0]).exp()));
        y.iter_mut().zip(feed_forward(gate, up, down, x)).for_each(|(y, o)| *y += share * o);
    }
    (y, chosen.into_iter().map(|(e, _)| e).collect())
}

#[test]
fn the_sparse_layer_is_a_loop_over_tokens_and_experts() {
    let mut routers = vec![];
    for (name, config) in all_families() {
        let (Some(m), Some(&l)) = (config.moe.clone(), config.moe_layers().first()) else { continue };
        routers.push((m.sigmoid, m.norm_topk_prob, m.n_group > 1));
        let dev = Cpu::new(2);
        let layout = Layout::new(&config, Shard::WHOLE);
        let mut weights = Store::zeros(&dev, &layout, DType::F64);
        randomize(&dev, &mut weights, 4);
        let options = Options { dtype: DType::F64, ..Options::default() };
        let rope = Arc::new(rope_table(&dev, &config, 1, DType::F64));
        let block = Block::new(&config, l, &layout.blocks[l], rope, &options);
        let FeedForward::Sparse(moe) = &block.feed_forward else { panic!("{name}: layer {l} is dense") };

        let (t, d) = (60, config.hidden_size);
        let x = Random(5).values(t * d);
        let packing = Packing::default();
        let mut log = log_for(&config);
        let mut cx = solo(&dev, &weights, &packing, Auxiliary::default(), Some(&mut log));
        let mut y = Tensor::zeros(&dev, [t, d], DType::F64);
        moe.forward(&mut cx, Tensor::from_host(&dev, [t, d], &x).view(), y.view_mut()).unwrap();

        let mixtral = config.family == crate::Family::Mixtral;
        let at = format!("model.layers.{l}.{}", if mixtral { "block_sparse_moe" } else { "mlp" });
        let by_name = by_name(&dev, &weights);
        let mut load = vec![0.0; m.num_experts];
        let mut expected = vec![];
        for x in x.chunks(d) {
            let (y, chosen) = oracle(&m, &by_name, &at, mixtral, x);
            expected.extend(y);
            chosen.into_iter().for_each(|e| load[e] += 1.0);
        }
        assert_close(name, "moe", DType::F64, &expected, &y.view().to_f64(&dev));
        assert_eq!(log.layers[moe.layer].load, load, "{name}");
    }
    routers.sort();
    routers.dedup();
    assert_eq!(routers.len(), 5, "softmax and sigmoid, with and without division and groups: {routers:?}");
}
