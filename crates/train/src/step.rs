//! One optimizer step: batches through the model and back, sums over ranks, one update.
//!
//! The rules of accumulation, stated once:
//!
//! - The loss of a step is the mean over all predicted tokens of the global batch: every micro-batch, every rank. So each
//!   token's gradient is scaled by one over their number before it is added, and neither the number of micro-batches nor
//!   that of ranks changes what is computed, but for the order of sums. (The load-balance loss alone sees the loads up to
//!   its own micro-batch, not those still to come.)
//! - Dense gradients are summed over ranks. An expert lives on one rank, where the exchange has brought every token that
//!   chose it: its gradient is whole already.
//! - The slot of a correction bias in the gradients counts loads; it is summed like a gradient, and has no part in the
//!   norm, the clipping or the optimizer.

use crate::guard;
use crate::optimizer::{Optimizer, Rates};
use crate::settings::TrainSettings;
use wudao_comm::Comm;
use wudao_data::batch::Batch;
use wudao_device::{DType, Device, Fault, Tensor};
use wudao_model::config::ConfigError;
use wudao_model::layer::{Auxiliary, RouterStats};
use wudao_model::model::Options;
use wudao_model::store::{Kind, Shard};
use wudao_model::{Config, Cx, Model, Packing, RouterLog, Store};

/// A model in training: weights, gradients, optimizer.
pub struct Learner<'a, D: Device> {
    /// The machine.
    pub device: &'a D,
    /// The other ranks.
    pub comm: &'a dyn Comm<D>,
    /// The network.
    pub model: Model<D>,
    /// Its weights.
    pub weights: Store<D>,
    /// Moments.
    pub optimizer: Optimizer<D>,
    grads: Store<D>,
    balance: f64,
    z: f64,
    grad_clip: f64,
    bias_update_rate: f64,
}

/// What a step did. All numbers are of the global batch.
#[derive(Clone, PartialEq, Debug)]
pub struct StepResult {
    /// Mean cross entropy in nats per predicted token, before the update.
    pub loss: f64,
    /// The load-balance loss, coefficient included, summed over layers; not part of `loss`.
    pub balance_loss: f64,
    /// The z-loss, coefficient included, summed over layers; not part of `loss`.
    pub z_loss: f64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Norm of the gradient of everything trainable, before clipping.
    pub grad_norm: f64,
    /// What clipping multiplied the gradient by.
    pub grad_scale: f64,
    /// False if the loss or the gradient was not finite and nothing was updated.
    pub applied: bool,
    /// What the routers did.
    pub routers: RouterLog,
}

/// Sums over the global batch.
struct Sums {
    loss: f64,
    tokens: f64,
    routers: RouterLog,
}

impl<'a, D: Device> Learner<'a, D> {
    /// A learner with weights of zero that multiplies in `dtype`. Each rank takes its share of the experts.
    pub fn new(
        device: &'a D,
        comm: &'a dyn Comm<D>,
        config: &Config,
        settings: &TrainSettings,
        dtype: DType,
    ) -> Result<Self, ConfigError> {
        let shard = Shard { rank: comm.rank(), size: comm.size() };
        let recompute = settings.recompute.in_model();
        let model = Model::new(device, config, settings.seq_len, Options { dtype, recompute, shard })?;
        Ok(Learner {
            weights: model.no_weights(device),
            grads: model.gradients(device),
            optimizer: Optimizer::new(device, model.layout(), dtype, settings),
            balance: settings.router_aux_loss_coef,
            z: settings.router_z_loss_coef,
            grad_clip: settings.grad_clip,
            bias_update_rate: settings.bias_update_rate,
            device,
            comm,
            model,
        })
    }

    /// One step over this rank's micro-batches of the global batch.
    pub fn step(&mut self, batches: &[Batch], rates: Rates) -> Result<StepResult, Fault> {
        let sums = self.gradients(batches)?;
        self.update(sums, rates)
    }

    /// A step that changes nothing: the same work, to see how long it takes.
    pub fn rehearse(&mut self, batches: &[Batch]) -> Result<(), Fault> {
        self.gradients(batches)?;
        self.optimizer.step(self.device, &self.grads, &mut self.weights, Rates { lr: 0.0, muon_lr: 0.0 }, 1.0);
        self.optimizer.reset(self.device);
        self.device.sync()
    }

    /// Fills `grads` with the gradient of the global batch's mean loss.
    fn gradients(&mut self, batches: &[Batch]) -> Result<Sums, Fault> {
        let (device, comm) = (self.device, self.comm);
        let mut counts = [0.0, 0.0];
        for batch in batches {
            counts[0] += batch.predictions() as f64;
            counts[1] += batch.inputs.len() as f64;
        }
        comm.all_reduce_host(&mut counts)?;
        let [tokens, positions] = counts;

        let config = self.model.config();
        let experts = config.moe.as_ref().map_or(0, |m| m.num_experts);
        let mut log = RouterLog::new(config.moe_layers().len(), experts);
        let mut loss = 0.0;
        self.grads.begin_sum(device);
        for batch in batches {
            let packing = packing(batch);
            let mut cx = Cx {
                device,
                comm,
                weights: &self.weights,
                packing: &packing,
                aux: Auxiliary { balance: self.balance, z: self.z, tokens: positions },
                log: Some(&mut log),
                again: false,
            };
            let (ids, targets) = (&batch.inputs, &batch.targets);
            let losses =
                self.model.losses_and_gradients(&mut cx, &mut self.grads, ids, targets, 1.0 / tokens.max(1.0))?;
            loss += losses.iter().sum::<f64>();
        }
        self.grads.end_sum(device);
        if comm.size() > 1 {
            comm.all_reduce(device, self.grads.dense_mut())?;
        }
        let mut loss = [loss];
        comm.all_reduce_host(&mut loss)?;
        log.all_reduce(comm)?;
        Ok(Sums { loss: loss[0], tokens, routers: log })
    }

    /// Norm of the whole gradient: the dense part, which every rank has, once; the experts of all ranks.
    fn grad_norm(&self) -> Result<f64, Fault> {
        let [dense, experts] = self.grads.sums_of_squares(self.device);
        let mut experts = [experts];
        self.comm.all_reduce_host(&mut experts)?;
        Ok((dense + experts[0]).sqrt())
    }

    fn update(&mut self, sums: Sums, rates: Rates) -> Result<StepResult, Fault> {
        let loss = sums.loss / sums.tokens.max(1.0);
        let grad_norm = self.grad_norm()?;
        let applied = guard::is_sound(loss, grad_norm);
        let too_long = self.grad_clip > 0.0 && grad_norm > self.grad_clip;
        let grad_scale = if too_long { self.grad_clip / grad_norm } else { 1.0 };
        if applied {
            self.optimizer.step(self.device, &self.grads, &mut self.weights, rates, grad_scale);
            self.nudge();
        }
        self.device.sync()?;
        let layers = &sums.routers.layers;
        Ok(StepResult {
            loss,
            balance_loss: self.balance * layers.iter().map(RouterStats::balance_loss).sum::<f64>(),
            z_loss: self.z * layers.iter().map(RouterStats::z_loss).sum::<f64>(),
            tokens: sums.tokens as u64,
            grad_norm,
            grad_scale,
            applied,
            routers: sums.routers,
        })
    }

    /// `b_e += γ·sign(mean load − load_e)`: balance without an auxiliary loss (DeepSeek-V3, section 2.1.2).
    fn nudge(&mut self) {
        let layout = self.weights.layout().clone();
        for (id, _) in layout.dense().filter(|(_, p)| p.kind == Kind::Correction) {
            let load = self.grads.at(id).to_f64(self.device);
            let mean = load.iter().sum::<f64>() / load.len() as f64;
            let mut bias = self.weights.at(id).to_f64(self.device);
            for (b, n) in bias.iter_mut().zip(&load) {
                match mean.total_cmp(n) {
                    std::cmp::Ordering::Greater => *b += self.bias_update_rate,
                    std::cmp::Ordering::Less => *b -= self.bias_update_rate,
                    std::cmp::Ordering::Equal => (),
                }
            }
            let bias = Tensor::from_host(self.device, [1, bias.len()], &bias);
            self.device.copy(bias.view(), self.weights.at_mut(id));
        }
    }
}

/// How a batch's documents lie.
pub fn packing(batch: &Batch) -> Packing {
    Packing { positions: batch.positions.clone(), segments: batch.cu_seqlens.clone() }
}

#[cfg(test)]
mod tests;
