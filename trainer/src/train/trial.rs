//! Steps for what they cost, not for what they teach: a profile's, and those of a batch size that is tried.

use super::Trainer;
use crate::config::Config;
use crate::data::Input;
use crate::data::prefetch::{Turn, Uploads};
use crate::dist::{World, agree};
use crate::model::Costs;
use crate::run::Place;
use crate::sys::error::{Error, Exit, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// The first stage of a run, as many steps of it as are asked for; writes nothing.
pub struct Trial<'a> {
    trainer: Trainer<'a>,
    uploads: Uploads<'a>,
}

impl<'a> Trial<'a> {
    /// All ranks: opens the data and builds the network, as a run of `config` would.
    pub fn new(world: &'a World, config: &'a Config, device: Device, stop: Arc<AtomicBool>) -> Result<Self> {
        let input = agree(world, Input::open(config, world, device))?;
        let nowhere = Place { dir: PathBuf::new(), checkpoint: None };
        let trainer = Trainer::new(world, config, nowhere, input, device, stop, String::new())?;
        let uploads = trainer.uploads(0, Turn::default(), u64::MAX)?;
        Ok(Self { trainer, uploads })
    }

    /// All ranks: one step. That any rank was asked to stop ends it on all.
    pub fn step(&mut self) -> Result<()> {
        let trainer = &mut self.trainer;
        let (config, stage) = (trainer.config, &trainer.config.stages[0]);
        let steps = trainer.input.steps(config);
        let lr = config.lr_at(stage, trainer.step_of_stage() as f64 / steps as f64);
        if trainer.next_step(&mut self.uploads, stage, lr)? {
            return Err(Error::on_all_ranks(Exit::Interrupted, "stopped on request"));
        }
        if trainer.step_of_stage().is_multiple_of(steps) {
            trainer.state.epoch_samples = 0; // the loader goes on with another epoch, the learning rate from the start
        }
        Ok(())
    }

    /// Waits until the device has done what it was asked for.
    pub fn settle(&self) {
        if let Device::Cuda(index) = self.trainer.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// What each part of the network costs.
    pub fn costs(&self) -> &Costs {
        &self.trainer.net.costs
    }
}
