//! Benchmark steps: profiling and the batch-size search.

use super::{Start, Trainer};
use crate::config::Config;
use crate::data::{Prefetcher, StepIndex};
use crate::dist::World;
use crate::model::{Costs, Net};
use crate::sys::error::{Error, Exit, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// Training steps of a run's first stage, as many as asked for. Writes nothing.
pub struct BenchmarkRun<'a> {
    trainer: Trainer<'a>,
    batches: Prefetcher,
}

impl<'a> BenchmarkRun<'a> {
    /// All ranks: opens the data and builds the network, as a run of `config` does.
    pub fn new(world: &'a World, config: &'a Config, device: Device, stop: Arc<AtomicBool>) -> Result<Self> {
        let net = Net::from_config(config, device);
        let started = Start {
            config,
            rank: world.rank(),
            ranks: world.ranks(),
            device: Some(device),
            has_data: true,
            directory: None,
            place: &|_| None,
        }
        .start(world, &net)?;
        let trainer = Trainer::new(world, config, net, started, device, stop, String::new())?;
        let batches = trainer.batches(0, StepIndex::default(), u64::MAX)?;
        Ok(Self { trainer, batches })
    }

    /// All ranks: one step.
    ///
    /// # Errors
    /// A rank was asked to stop.
    pub fn step(&mut self) -> Result<()> {
        let trainer = &mut self.trainer;
        let config = trainer.config;
        let stage = &config.stages[0];
        let steps = trainer.data.steps_per_epoch(config);
        let scheduled = trainer.scheduled(stage);
        if trainer.train_step(&mut self.batches, stage, scheduled)? {
            return Err(Error::on_all_ranks(Exit::Interrupted, "stopped on request"));
        }
        if trainer.step_in_stage().is_multiple_of(steps) {
            trainer.state.epoch_samples = 0; // another epoch of samples, and the learning rate from its start
        }
        Ok(())
    }

    /// Waits until the device has completed all work.
    pub fn synchronize(&self) {
        if let Device::Cuda(index) = self.trainer.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// The cost of each part of the network.
    pub fn costs(&self) -> &Costs {
        &self.trainer.model.net.costs
    }
}
