use super::*;
use crate::settings::{OptimizerKind, Recompute};
use crate::testing::{batches, documents, tiny_dense, tiny_moe, tiny_settings, tiny_softmax};
use std::thread;
use wudao_comm::{Solo, Threads};
use wudao_device::{Cpu, tolerance};
use wudao_model::weights::Snapshot;

const RATES: Rates = Rates { lr: 1e-2, muon_lr: 1e-2 };

/// Settings in which every term of a step is on.
fn everything(config: &Config, optimizer: OptimizerKind) -> TrainSettings {
    let softmax = config.moe.as_ref().is_some_and(|m| !m.sigmoid);
    let router_z_loss_coef = if softmax { 1e-3 } else { 0.0 };
    TrainSettings { optimizer, router_z_loss_coef, bias_update_rate: 1e-2, grad_clip: 0.5, ..tiny_settings() }
}

/// Takes `steps` steps of `n` micro-batches of `rows` rows and returns what they did and the weights.
fn learn(
    comm: &dyn Comm<Cpu>,
    config: &Config,
    settings: &TrainSettings,
    dtype: DType,
    (steps, n, rows): (usize, usize, usize),
    threads: usize,
) -> (Vec<StepResult>, Snapshot) {
    let cpu = Cpu::new(threads);
    let mut learner = Learner::new(&cpu, comm, config, settings, dtype).unwrap();
    learner.weights = learner.model.init(&cpu, 3);
    let data = batches(&documents(1, 30), 16, rows, n * steps, comm.rank(), comm.size());
    let results = data.chunks(n).map(|step| learner.step(step, RATES).unwrap()).collect();
    (results, Snapshot::of(&cpu, &learner.weights, ""))
}

fn numbers(snapshot: &Snapshot) -> Vec<(&str, Vec<f64>)> {
    let decode = |b: &[u8]| b.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect();
    snapshot.tensors.iter().map(|t| (t.name.as_str(), decode(&t.bytes))).collect()
}

/// Asserts that two f64 runs agree up to the order of sums.
fn assert_agree(a: &(Vec<StepResult>, Snapshot), b: &(Vec<StepResult>, Snapshot)) {
    let bound = tolerance::of("ranks", DType::F64);
    let close = |what: &str, x: f64, y: f64| assert!((x - y).abs() <= bound.allowed(x), "{what}: {x} {y}");
    for (x, y) in a.0.iter().zip(&b.0) {
        close("loss", x.loss, y.loss);
        close("balance loss", x.balance_loss, y.balance_loss);
        close("z-loss", x.z_loss, y.z_loss);
        close("norm", x.grad_norm, y.grad_norm);
        assert_eq!((x.tokens, x.applied, x.routers.layers.len()), (y.tokens, y.applied, y.routers.layers.len()));
        for (x, y) in x.routers.layers.iter().zip(&y.routers.layers) {
            assert_eq!((&x.load, x.tokens), (&y.load, y.tokens));
            close("entropy", x.entropy, y.entropy);
        }
    }
    let (a, mut b) = (numbers(&a.1), numbers(&b.1));
    assert_eq!(a.len(), b.len());
    b.sort_by_key(|(name, _)| *name);
    for (name, x) in a {
        let y = &b[b.binary_search_by_key(&name, |(n, _)| n).unwrap()].1;
        x.iter().zip(y).for_each(|(x, y)| close(name, *x, *y));
    }
}

#[test]
fn accumulating_two_micro_batches_is_one_large_batch() {
    for (config, kind) in [
        (tiny_dense(), OptimizerKind::AdamW),
        (tiny_moe(), OptimizerKind::AdamW),
        (tiny_softmax(), OptimizerKind::Muon),
    ] {
        let s = everything(&config, kind);
        let once = learn(&Solo, &config, &s, DType::F64, (3, 1, 4), 1);
        let twice = learn(&Solo, &config, &s, DType::F64, (3, 2, 2), 1);
        assert_agree(&once, &twice);
        assert!(once.0.iter().any(|r| r.grad_scale < 1.0), "clipping must have its part in this");
    }
}

#[test]
fn two_ranks_are_one() {
    for (config, kind, balance) in [
        (tiny_moe(), OptimizerKind::Muon, 0.0),
        (tiny_softmax(), OptimizerKind::AdamW, 0.02),
        (tiny_dense(), OptimizerKind::AdamW, 0.0),
    ] {
        let s = TrainSettings { router_aux_loss_coef: balance, ..everything(&config, kind) };
        let alone = learn(&Solo, &config, &s, DType::F64, (3, 1, 4), 1);
        let ranks: Vec<_> = thread::scope(|scope| {
            let learn = |comm| {
                let (config, s) = (&config, &s);
                scope.spawn(move || learn(&comm, config, s, DType::F64, (3, 1, 2), 1))
            };
            Threads::world(2)
                .into_iter()
                .map(learn)
                .collect::<Vec<_>>()
                .into_iter()
                .map(|h| h.join().unwrap())
                .collect()
        });
        let mut together = ranks[0].1.clone();
        together.append(ranks[1].1.clone());
        assert_agree(&alone, &(ranks[0].0.clone(), together.clone()));
        assert_agree(&alone, &(ranks[1].0.clone(), together));
    }
}

/// Same seed, same bits, whatever the number of threads.
#[test]
fn threads_do_not_change_a_bit() {
    for (config, kind) in [(tiny_moe(), OptimizerKind::Muon), (tiny_softmax(), OptimizerKind::AdamW)] {
        let s = TrainSettings { router_aux_loss_coef: 0.01, ..everything(&config, kind) };
        for dtype in [DType::F32, DType::Bf16] {
            let one = learn(&Solo, &config, &s, dtype, (3, 2, 2), 1);
            for threads in [2, 3] {
                assert!(learn(&Solo, &config, &s, dtype, (3, 2, 2), threads) == one, "{dtype:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn recomputation_does_not_change_a_bit() {
    for config in [tiny_moe(), tiny_softmax()] {
        let s = TrainSettings { router_aux_loss_coef: 0.01, ..everything(&config, OptimizerKind::AdamW) };
        let kept = learn(&Solo, &config, &s, DType::F32, (2, 2, 2), 1);
        for recompute in [Recompute::Attention, Recompute::Block] {
            let again = TrainSettings { recompute, ..s.clone() };
            assert!(learn(&Solo, &config, &again, DType::F32, (2, 2, 2), 1) == kept, "{recompute:?}");
        }
    }
}

/// The norm that products make on their way is that of the gradients when they are read, with one micro-batch and with two, and
/// its bits do not depend on the number of threads.
#[test]
fn the_norm_is_that_of_the_gradients() {
    let bound = tolerance::of("squares", DType::F32);
    let norms = |learner: &mut Learner<Cpu>, data: &[Batch]| {
        learner.weights = learner.model.init(learner.device, 3);
        learner.gradients(data).unwrap();
        let norm = learner.grad_norm().unwrap();
        // Whoever may have written there has to read.
        learner.grads.trainable_mut();
        let read = learner.grad_norm().unwrap();
        assert!((norm - read).abs() <= bound.allowed(read), "{norm} is not {read}");
        norm
    };
    for (config, dtype) in [(tiny_dense(), DType::F32), (tiny_moe(), DType::F32), (tiny_softmax(), DType::Bf16)] {
        let settings = everything(&config, OptimizerKind::AdamW);
        let data = batches(&documents(1, 30), 16, 2, 2, 0, 1);
        for n in [1, 2] {
            let bits = [1, 3].map(|threads| {
                let cpu = Cpu::new(threads);
                let mut learner = Learner::new(&cpu, &Solo, &config, &settings, dtype).unwrap();
                norms(&mut learner, &data[..n]).to_bits()
            });
            assert_eq!(bits[0], bits[1]);
        }
        let of_ranks: Vec<f64> = thread::scope(|scope| {
            let norm = |comm: Threads| {
                let (config, settings) = (&config, &settings);
                scope.spawn(move || {
                    let (cpu, comm): (_, &dyn Comm<Cpu>) = (Cpu::new(1), &comm);
                    let data = batches(&documents(1, 30), 16, 2, 1, comm.rank(), comm.size());
                    norms(&mut Learner::new(&cpu, comm, config, settings, dtype).unwrap(), &data)
                })
            };
            let handles: Vec<_> = Threads::world(2).into_iter().map(norm).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        assert_eq!(of_ranks[0].to_bits(), of_ranks[1].to_bits(), "ranks clip alike");
    }
}

/// A poisoned gradient (an element of a dense matrix, of an expert) changes neither weights nor moments nor biases.
#[test]
fn what_is_not_finite_never_reaches_the_weights() {
    let (cpu, settings) = (Cpu::new(1), everything(&tiny_moe(), OptimizerKind::Muon));
    let mut learner = Learner::new(&cpu, &Solo, &tiny_moe(), &settings, DType::F32).unwrap();
    learner.weights = learner.model.init(&cpu, 3);
    let data = batches(&documents(1, 30), 16, 2, 3, 0, 1);
    learner.step(&data[..1], RATES).unwrap();
    for poison in [f64::NAN, f64::INFINITY] {
        for stretch in [0, 2] {
            let before = (Snapshot::of(&cpu, &learner.weights, ""), learner.optimizer.snapshot(&cpu));
            let sums = learner.gradients(&data[1..2]).unwrap();
            let mut stretches = learner.grads.trainable_mut();
            cpu.fill(poison, stretches[stretch].reborrow().part(5..6, [1, 1]));
            let result = learner.update(sums, RATES).unwrap();
            assert!(!result.applied && !result.grad_norm.is_finite());
            let after = (Snapshot::of(&cpu, &learner.weights, ""), learner.optimizer.snapshot(&cpu));
            assert!(before == after);
        }
    }
    let before = Snapshot::of(&cpu, &learner.weights, "");
    assert!(learner.step(&data[2..], RATES).unwrap().applied, "a clean batch after it is learned from");
    assert!(before != Snapshot::of(&cpu, &learner.weights, ""));
    assert_eq!(learner.optimizer.updates(), 2);
}

#[test]
fn a_rehearsal_leaves_no_trace() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let (cpu, settings) = (Cpu::new(1), everything(&tiny_moe(), kind));
        let data = batches(&documents(1, 30), 16, 2, 3, 0, 1);
        let run = |rehearsals: usize| {
            let mut learner = Learner::new(&cpu, &Solo, &tiny_moe(), &settings, DType::F32).unwrap();
            learner.weights = learner.model.init(&cpu, 3);
            (0..rehearsals).for_each(|_| learner.rehearse(&data[..2]).unwrap());
            let results: Vec<_> = data.iter().map(|b| learner.step(std::slice::from_ref(b), RATES).unwrap()).collect();
            (results, Snapshot::of(&cpu, &learner.weights, ""), learner.optimizer.snapshot(&cpu))
        };
        assert!(run(0) == run(2));
    }
}

/// The bias of an expert with less load than the mean goes up, with more goes down, by the set amount.
#[test]
fn correction_biases_follow_the_load() {
    let (cpu, settings) = (Cpu::new(1), everything(&tiny_moe(), OptimizerKind::AdamW));
    let mut learner = Learner::new(&cpu, &Solo, &tiny_moe(), &settings, DType::F64).unwrap();
    learner.weights = learner.model.init(&cpu, 3);
    let data = batches(&documents(1, 30), 16, 2, 1, 0, 1);
    let result = learner.step(&data, RATES).unwrap();
    let load = &result.routers.layers[0].load;
    let mean = load.iter().sum::<f64>() / load.len() as f64;
    let biases = Snapshot::of_some(&cpu, &learner.weights, "", |p| p.kind == Kind::Correction);
    let expected: Vec<f64> = load.iter().map(|n| 0.01 * (mean - n).partial_cmp(&0.0).unwrap() as i8 as f64).collect();
    assert_eq!(numbers(&biases)[0].1, expected);
    assert!(expected.iter().any(|&b| b != 0.0));
}
