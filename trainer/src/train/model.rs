//! [`Model`]: what a step changes and a checkpoint saves.

use crate::config::Config;
use crate::dist::{Reducer, World};
use crate::model::{BnMode, Net, RankMean};
use crate::optim::{self, Ema, Optimizer};
use tch::{Device, Tensor};

/// A network in training, on one rank: its weights, their gradient, the optimiser and the moving average.
pub(crate) struct Model {
    pub net: Net,
    /// Holds the gradient.
    pub reducer: Reducer,
    pub optimizer: Box<dyn Optimizer>,
    pub ema: Option<Ema>,
    /// c_k of Eq. 11, `[n]`.
    pub costs: Tensor,
    /// What each gate adds when its block runs, in shares of the static network, `[n]`.
    pub cost_shares: Tensor,
    /// Averages batch norm's statistics over ranks, if `model.sync_batch_norm` is set.
    sync_batch_norm: Option<RankMean>,
}

impl Model {
    /// All ranks: puts `net` in training.
    pub fn new(world: &World, config: &Config, net: Net, device: Device) -> Self {
        Self {
            reducer: Reducer::new(&net.params, world, &config.collective),
            optimizer: optim::new_optimizer(&net.params, &config.optim),
            ema: config.optim.ema_decay.map(|decay| Ema::new(&net.params, decay)),
            costs: Tensor::from_slice(&net.costs.gate_costs(config.cost.unit)).to_device(device),
            cost_shares: Tensor::from_slice(&net.costs.gate_shares()).to_device(device),
            sync_batch_norm: config.model.sync_batch_norm.then(|| world.differentiable_mean()),
            net,
        }
    }

    /// Batch norm's statistics in training.
    pub fn batch_statistics(&self) -> BnMode<'_> {
        BnMode::Batch { update_running: true, sync: self.sync_batch_norm.as_ref() }
    }

    /// The tensors that must be bit-identical on all ranks.
    pub fn replicated(&self) -> Vec<&Tensor> {
        let ema = self.ema.as_ref().map(|ema| &ema.flat);
        [self.net.params.flat(), self.optimizer.state()].into_iter().chain(ema).collect()
    }

    /// Exchanges the weights and their moving average, if there is one; a second call undoes it.
    pub fn exchange_ema(&mut self) {
        if let Some(ema) = &mut self.ema {
            ema.exchange(&self.net.params);
        }
    }

    /// The tensors of a checkpoint.
    pub fn saved(&self) -> Vec<&Tensor> {
        let params = &self.net.params;
        let ema = self.ema.iter().flat_map(|ema| [&ema.flat, &ema.buffers]);
        [params.flat(), params.flat_buffers(), self.optimizer.state()].into_iter().chain(ema).collect()
    }
}
