//! Every parameter of a tiny model of every kind, against central differences of the loss, in f64.

mod common;

use common::families::every_family;
use common::{Batch, auxiliary_for, by_name, documents, log_for, model, pass, solo};
use wudao_comm::Solo;
use wudao_device::check::{assert_close, assert_gradient};
use wudao_device::tolerance::of;
use wudao_device::{Cpu, DType, Device, Tensor};
use wudao_model::layer::Auxiliary;
use wudao_model::model::Recomputation;
use wudao_model::store::{Home, Kind, Shard};
use wudao_model::{Config, RouterLog};

const SCALE: f64 = 0.37;

/// The auxiliary losses, written out from what the routers did. The share of the choices is a constant to the
/// gradient.
fn auxiliary(config: &Config, aux: Auxiliary, log: &RouterLog) -> f64 {
    let Some(m) = &config.moe else { return 0.0 };
    let layer = |l: &wudao_model::layer::RouterStats| {
        let choices: f64 = l.load.iter().sum();
        assert_eq!(choices, l.tokens * m.num_experts_per_tok as f64);
        let f_p: f64 = l.load.iter().zip(&l.score).map(|(n, s)| n / choices * (s / aux.tokens)).sum();
        aux.balance * m.num_experts as f64 * f_p + aux.z * l.z / aux.tokens
    };
    log.layers.iter().map(layer).sum()
}

fn every_parameter(name: &str, config: &Config) {
    let dev = Cpu::new(1);
    let (model, mut weights) = model(&dev, config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
    let batch = Batch::of(&documents(config.vocab_size, &[9, 1, 6], 2));
    let aux = auxiliary_for(config, batch.ids.len());
    let first = pass(&dev, &model, &weights, &Solo, &batch, SCALE, aux);
    let choices: Vec<Vec<f64>> = first.log.layers.iter().map(|l| l.load.clone()).collect();
    let mut idle = 0;
    for (home, param) in weights.params() {
        let analytic = first.grads.get(home).to_f64(&dev);
        let what = format!("{name}, {}", param.parts[0].name);
        if param.kind == Kind::Correction {
            // It has no gradient: its place counts the load.
            assert!(choices.contains(&analytic), "{what}: {analytic:?} is not among {choices:?}");
            continue;
        }
        if let Home::Expert(layer, expert, _) = home
            && choices[layer][expert] == 0.0
        {
            assert!(analytic.iter().all(|g| *g == 0.0), "{what}: nobody chose it");
            idle += 1;
            continue;
        }
        assert!(analytic.iter().any(|g| *g != 0.0), "{what}: nothing flows here, so nothing is proven");
        let x = weights.get(home).to_f64(&dev);
        let loss = |x: &[f64]| {
            dev.copy_from_host(bytemuck::cast_slice(x), weights.get_mut(home));
            let mut log = log_for(config);
            let mut cx = solo(&dev, &weights, &batch.packing, aux, Some(&mut log));
            let losses = model.losses(&mut cx, &batch.ids, &batch.targets).unwrap();
            let same = log.layers.iter().map(|l| &l.load).eq(&choices);
            assert!(same, "{what}: a choice flipped, and the loss is not smooth there: take another seed");
            // Differences from where we stand: a sum of them is rounded less than a difference of sums.
            let change: f64 = losses.iter().zip(&first.losses).map(|(now, before)| now - before).sum();
            SCALE * change + (auxiliary(config, aux, &log) - auxiliary(config, aux, &first.log))
        };
        assert_gradient(&what, loss, &x, &analytic);
        dev.copy_from_host(bytemuck::cast_slice(&x), weights.get_mut(home));
    }
    assert!(idle <= 4, "{name}: {idle} matrices of experts that nobody chose: too many for a proof");
}

macro_rules! every_parameter {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let (name, config) = every_family().into_iter().find(|f| f.0 == stringify!($name)).unwrap();
            every_parameter(name, &config);
        })*

        #[test]
        fn no_family_is_left_out() {
            assert_eq!(every_family().into_iter().map(|f| f.0).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}
every_parameter!(llama llama_tied qwen3 mixtral qwen3_moe qwen3_moe_norm glm4_moe glm4_moe_plain mistral qwen2 qwen2_moe olmoe);

#[test]
fn recomputation_changes_no_bit() {
    let dev = Cpu::new(2);
    for (name, config) in every_family() {
        let batch = Batch::of(&documents(config.vocab_size, &[6, 2, 5], 3));
        let aux = auxiliary_for(&config, batch.ids.len());
        for dtype in [DType::F32, DType::Bf16] {
            let run = |recompute| {
                let (model, weights) = model(&dev, &config, dtype, recompute, Shard::WHOLE, 8);
                let out = pass(&dev, &model, &weights, &Solo, &batch, SCALE, aux);
                (out.losses, by_name(&dev, &out.grads), out.log)
            };
            let kept = run(Recomputation::None);
            assert!(run(Recomputation::Attention) == kept, "{name} in {dtype:?}: attention");
            assert!(run(Recomputation::Block) == kept, "{name} in {dtype:?}: blocks");
        }
    }
}

/// A sum of gradients that begins where another was is that sum alone, to the bit; and one that nothing was added to is zero.
#[test]
fn a_sum_forgets_the_one_before() {
    let dev = Cpu::new(2);
    for (name, config) in every_family() {
        for dtype in [DType::F32, DType::Bf16] {
            let (model, weights) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 8);
            let batches = [[6, 2, 5], [3, 9, 1]].map(|lens| Batch::of(&documents(config.vocab_size, &lens, 3)));
            let none = Auxiliary::default();
            let mut grads = model.zeros(&dev);
            let add = |grads: &mut _, batch: &Batch| {
                let mut cx = solo(&dev, &weights, &batch.packing, none, None);
                model.losses_and_gradients(&mut cx, grads, &batch.ids, &batch.targets, SCALE).unwrap();
            };
            batches.iter().for_each(|batch| add(&mut grads, batch));
            let both = by_name(&dev, &grads);
            for _ in 0..2 {
                grads.begin_sum(&dev);
                batches.iter().for_each(|batch| add(&mut grads, batch));
                grads.end_sum(&dev);
                assert!(by_name(&dev, &grads) == both, "{name} in {dtype:?}");
            }
            grads.begin_sum(&dev);
            grads.end_sum(&dev);
            assert!(by_name(&dev, &grads).values().flatten().all(|&g| g == 0.0), "{name} in {dtype:?}: zero");
        }
    }
}

/// Each document packed with others gives the losses it has alone, and the batch's gradient is the sum of theirs.
#[test]
fn documents_do_not_see_each_other() {
    let dev = Cpu::new(1);
    for (name, config) in every_family() {
        let (model, weights) = model(&dev, &config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
        let docs = documents(config.vocab_size, &[7, 1, 4, 9], 11);
        let none = Auxiliary::default();
        let packed = pass(&dev, &model, &weights, &Solo, &Batch::of(&docs), SCALE, none);
        let mut losses = vec![];
        let mut sum = model.zeros(&dev);
        for doc in &docs {
            let batch = Batch::of(std::slice::from_ref(doc));
            let mut cx = solo(&dev, &weights, &batch.packing, none, None);
            // Into the same gradients: this is accumulation over micro-batches too.
            let l = model.losses_and_gradients(&mut cx, &mut sum, &batch.ids, &batch.targets, SCALE).unwrap();
            losses.extend(l);
        }
        assert_close(name, "ranks", DType::F64, &losses, &packed.losses);
        let (sum, packed) = (by_name(&dev, &sum), by_name(&dev, &packed.grads));
        for (tensor, g) in &packed {
            assert_close(&format!("{name}, {tensor}"), "ranks", DType::F64, &sum[tensor], g);
        }
    }
}

/// More rows than the head takes at a time: the same as in two batches.
#[test]
fn the_head_works_in_chunks() {
    let dev = Cpu::new(1);
    let (name, config) = every_family().swap_remove(1);
    let (model, weights) = model(&dev, &config, DType::F64, Recomputation::None, Shard::WHOLE, 5);
    let docs = documents(config.vocab_size, &[3; 1500], 4);
    let whole = pass(&dev, &model, &weights, &Solo, &Batch::of(&docs), SCALE, Auxiliary::default());
    assert!(whole.losses.len() > 4096, "or there is one chunk only");
    let halves = [0..700, 700..1500]
        .map(|half| pass(&dev, &model, &weights, &Solo, &Batch::of(&docs[half]), SCALE, Auxiliary::default()));
    let losses: Vec<f64> = halves.iter().flat_map(|h| h.losses.clone()).collect();
    assert_close(name, "ranks", DType::F64, &losses, &whole.losses);
    let halves = halves.map(|h| by_name(&dev, &h.grads));
    for (tensor, g) in by_name(&dev, &whole.grads) {
        let sum: Vec<f64> = halves[0][&tensor].iter().zip(&halves[1][&tensor]).map(|(a, b)| a + b).collect();
        assert_close(&tensor, "ranks", DType::F64, &sum, &g);
    }
}

/// The whole chain is smooth in f32 too: the same model in two types.
#[test]
fn single_precision_is_close_to_double() {
    let dev = Cpu::new(1);
    for (name, config) in every_family() {
        let batch = Batch::of(&documents(config.vocab_size, &[8, 5], 9));
        let run = |dtype| {
            let (model, mut weights) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 8);
            // The same numbers in both types.
            for (home, _) in weights.params() {
                let view = weights.get(home);
                let mut narrow = Tensor::new(&dev, view.shape(), DType::F32);
                dev.copy(view, narrow.view_mut());
                dev.copy(narrow.view(), weights.get_mut(home));
            }
            let out = pass(&dev, &model, &weights, &Solo, &batch, SCALE, Auxiliary::default());
            (out.losses, by_name(&dev, &out.grads))
        };
        let ((losses64, grads64), (losses32, grads32)) = (run(DType::F64), run(DType::F32));
        assert_close(name, "golden logits", DType::F32, &losses64, &losses32);
        for (tensor, g) in &grads64 {
            assert_close(&format!("{name}, {tensor}"), "golden gradients", DType::F32, g, &grads32[tensor]);
        }
    }
}

/// Mixed precision computes the same function, up to the rounding of its operands: each loss, and each parameter's
/// gradient as a whole. Where two experts are nearly as good, rounding may change a token's choice, and with it everything
/// after: the test looks at a batch in which it does not.
#[test]
fn mixed_precision_is_close_to_double() {
    let dev = Cpu::new(1);
    for (name, config) in every_family() {
        let run = |dtype, batch: &Batch| {
            let (model, mut weights) = model(&dev, &config, dtype, Recomputation::None, Shard::WHOLE, 8);
            // The same numbers in both types.
            for (home, _) in weights.params() {
                let view = weights.get(home);
                let mut narrow = Tensor::new(&dev, view.shape(), DType::Bf16);
                dev.copy(view, narrow.view_mut());
                dev.copy(narrow.view(), weights.get_mut(home));
            }
            let out = pass(&dev, &model, &weights, &Solo, batch, SCALE, Auxiliary::default());
            let loads: Vec<Vec<f64>> = out.log.layers.into_iter().map(|layer| layer.load).collect();
            (loads, out.losses, by_name(&dev, &out.grads))
        };
        let batches = (9..20).map(|seed| Batch::of(&documents(config.vocab_size, &[8, 5], seed)));
        let ((_, losses64, grads64), (_, losses16, grads16)) = batches
            .map(|batch| (run(DType::F64, &batch), run(DType::Bf16, &batch)))
            .find(|(double, mixed)| double.0 == mixed.0)
            .expect("a batch whose tokens choose the same experts");
        assert_close(name, "mixed losses", DType::Bf16, &losses64, &losses16);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let mut errors = Vec::new();
        for (tensor, g) in &grads64 {
            let error = norm(&mut g.iter().zip(&grads16[tensor]).map(|(a, b)| a - b));
            let size = norm(&mut g.iter().copied());
            let allowed = of("mixed gradient", DType::Bf16).rel * size;
            assert!(error <= allowed, "{name}, {tensor}: off by {error} of {size}");
            errors.extend((size > 0.0).then_some(error / size));
        }
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(mean <= of("mixed gradients", DType::Bf16).rel, "{name}: gradients are off by {mean}");
    }
}
