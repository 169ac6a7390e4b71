//! The gradient of every kind of layer by its input, and by every parameter that it has, against central differences.
//! The whole-model proof passes through the same code; this one says which layer is wrong.

use super::*;
use crate::Config;
use crate::block::{Block, FeedForward, Recompute};
use crate::common::{auxiliary_for, families::every_family, log_for, randomize, solo};
use crate::model::Options;
use crate::norm::Norm;
use crate::rope::rope_table;
use crate::store::{Layout, Shard};
use std::sync::Arc;
use wudao_device::check::{Random, assert_gradient};
use wudao_device::{Cpu, DType};

/// A branch without the stream beside it.
struct Alone<'a, B>(&'a B);

impl<B: Branch<Cpu>> Layer<Cpu> for Alone<'_, B> {
    type Saved = (Tensor<Cpu>, B::Saved);
    fn forward(&self, cx: &mut Cx<Cpu>, x: Tensor<Cpu>) -> Result<(Tensor<Cpu>, Self::Saved), Fault> {
        let mut y = Tensor::zeros(cx.device, x.shape(), x.dtype());
        let saved = self.0.forward(cx, x.view(), y.view_mut())?;
        Ok((y, (x, saved)))
    }
    fn backward(
        &self,
        cx: &mut Cx<Cpu>,
        grads: &mut Store<Cpu>,
        (x, saved): Self::Saved,
        dy: Tensor<Cpu>,
    ) -> Result<Tensor<Cpu>, Fault> {
        self.0.backward(cx, grads, x.view(), saved, dy.view())
    }
}

struct OnlyNorm<'a>(&'a Norm);

impl Layer<Cpu> for OnlyNorm<'_> {
    type Saved = (Tensor<Cpu>, Tensor<Cpu>);
    fn forward(&self, cx: &mut Cx<Cpu>, x: Tensor<Cpu>) -> Result<(Tensor<Cpu>, Self::Saved), Fault> {
        let (y, rstd) = self.0.forward(cx, x.view());
        Ok((y, (x, rstd)))
    }
    fn backward(
        &self,
        cx: &mut Cx<Cpu>,
        grads: &mut Store<Cpu>,
        (x, rstd): Self::Saved,
        dy: Tensor<Cpu>,
    ) -> Result<Tensor<Cpu>, Fault> {
        let mut dx = Tensor::zeros(cx.device, x.shape(), x.dtype());
        self.0.backward(cx, grads, x.view(), rstd.view(), dy.view(), dx.view_mut());
        Ok(dx)
    }
}

struct Fixture {
    device: Cpu,
    config: Config,
    weights: Store<Cpu>,
    packing: Packing,
    aux: Auxiliary,
}

impl Fixture {
    /// `Σ c·y` for fixed random c, plus the auxiliary losses: a number that depends on every output. With it, the output's
    /// gradient c.
    fn loss<L: Layer<Cpu>>(&self, layer: &L, x: &[f64]) -> f64 {
        let mut log = log_for(&self.config);
        let mut cx = solo(&self.device, &self.weights, &self.packing, self.aux, Some(&mut log));
        let x = Tensor::from_host(&self.device, [self.packing.tokens(), self.config.hidden_size], x);
        let (y, _) = layer.forward(&mut cx, x).unwrap();
        let direct: f64 = y.view().to_f64(&self.device).iter().zip(self.direction()).map(|(y, c)| y * c).sum();
        let auxiliary = |l: &RouterStats| self.aux.balance * l.balance_loss() + self.aux.z * l.z_loss();
        direct + log.layers.iter().filter(|l| l.tokens > 0.0).map(auxiliary).sum::<f64>()
    }

    fn direction(&self) -> Vec<f64> {
        Random(77).values(self.packing.tokens() * self.config.hidden_size)
    }

    fn check<L: Layer<Cpu>>(&mut self, what: &str, layer: &L) {
        let x = Random(3).values(self.packing.tokens() * self.config.hidden_size);
        let shape = [self.packing.tokens(), self.config.hidden_size];
        let dy = Tensor::from_host(&self.device, shape, &self.direction());
        let mut grads = Store::zeros(&self.device, self.weights.layout(), DType::F64);
        let dx = {
            let mut log = log_for(&self.config);
            let mut cx = solo(&self.device, &self.weights, &self.packing, self.aux, Some(&mut log));
            let (_, saved) = layer.forward(&mut cx, Tensor::from_host(&self.device, shape, &x)).unwrap();
            layer.backward(&mut cx, &mut grads, saved, dy).unwrap()
        };
        let dx = dx.view().to_f64(&self.device);
        assert!(dx.iter().all(|g| *g != 0.0), "{what}: nothing flows");
        assert_gradient(&format!("{what} by its input"), |x| self.loss(layer, x), &x, &dx);
        for (home, param) in self.weights.params() {
            let analytic = grads.get(home).to_f64(&self.device);
            // What the layer does not have, and what counts load, has no gradient.
            if param.kind == crate::store::Kind::Correction || analytic.iter().all(|g| *g == 0.0) {
                continue;
            }
            let w = self.weights.get(home).to_f64(&self.device);
            let loss = |w: &[f64]| {
                self.device.copy_from_host(bytemuck::cast_slice(w), self.weights.get_mut(home));
                self.loss(layer, &x)
            };
            assert_gradient(&format!("{what} by {}", param.parts[0].name), loss, &w, &analytic);
            self.device.copy_from_host(bytemuck::cast_slice(&w), self.weights.get_mut(home));
        }
    }
}

#[test]
fn every_kind_of_layer() {
    for (name, config) in every_family() {
        let device = Cpu::new(1);
        let layout = Layout::new(&config, Shard::WHOLE);
        let mut weights = Store::zeros(&device, &layout, DType::F64);
        randomize(&device, &mut weights, 1);
        let packing = Packing::of_lengths(&[4, 2]);
        let aux = auxiliary_for(&config, packing.tokens());
        let options = Options { dtype: DType::F64, ..Options::default() };
        let rope = Arc::new(rope_table(&device, &config, 8, DType::F64));
        let mut f = Fixture { device, config: config.clone(), weights, packing, aux };
        for (l, ids) in layout.blocks.iter().enumerate() {
            let block = Block::new(&config, l, ids, rope.clone(), &options);
            f.check(&format!("{name}: norm {l}"), &OnlyNorm(&block.norm1));
            f.check(&format!("{name}: attention {l}"), &Alone(&block.attention));
            match &block.feed_forward {
                FeedForward::Dense(mlp) => f.check(&format!("{name}: mlp {l}"), &Alone(mlp)),
                FeedForward::Sparse(moe) => f.check(&format!("{name}: moe {l}"), &Alone(moe)),
            }
            if l == 0 {
                f.check(&format!("{name}: block {l}"), &Recompute { layer: block, on: true });
            }
        }
    }
}

/// A log that already has a micro-batch in it, and a pass that is repeated: what is recorded is recorded once.
#[test]
fn repeating_a_pass_records_nothing() {
    let (_, config) = every_family().swap_remove(3);
    let device = Cpu::new(1);
    let layout = Layout::new(&config, Shard::WHOLE);
    let mut weights = Store::zeros(&device, &layout, DType::F64);
    randomize(&device, &mut weights, 1);
    let packing = Packing::of_lengths(&[5]);
    let rope = Arc::new(rope_table(&device, &config, 8, DType::F64));
    let options = Options { dtype: DType::F64, ..Options::default() };
    let block = Block::new(&config, 0, &layout.blocks[0], rope, &options);
    let mut log = log_for(&config);
    let x = || Tensor::from_host(&device, [5, config.hidden_size], &Random(3).values(5 * config.hidden_size));
    let mut cx = solo(&device, &weights, &packing, auxiliary_for(&config, 5), Some(&mut log));
    block.forward(&mut cx, x()).unwrap();
    cx.again = true;
    block.forward(&mut cx, x()).unwrap();
    assert_eq!(log.layers[0].tokens, 5.0);
    assert_eq!(log.layers[0].load.iter().sum::<f64>(), 10.0);
    assert_eq!(log.layers[1], log_for(&config).layers[1]);
}
