//! Steps for what they cost, not for what they teach: a profile's, and those of a batch size that is tried.

use super::Trainer;
use crate::error::{Error, Exit, Result};
use crate::upload::{Place, Uploads};

/// A run of the first stage that writes nothing, as one rank holds it.
pub struct Trial<'t, 'a> {
    trainer: &'t mut Trainer<'a>,
    uploads: Uploads<'a>,
}

impl<'a> Trainer<'a> {
    /// All ranks: steps from the start of the first stage, as many as are asked for.
    pub fn trial(&mut self) -> Result<Trial<'_, 'a>> {
        let uploads = self.uploads(0, Place { of_epoch: 0, of_run: 0 }, u64::MAX)?;
        Ok(Trial { trainer: self, uploads })
    }

    /// MACs of an image in a training step's forward pass: both ways of each gated block are computed.
    pub fn forward_macs(&self) -> i64 {
        let costs = &self.net.costs;
        let blocks =
            costs.blocks.iter().map(|block| block.run + block.router.map_or(0, |router| router + block.skip));
        costs.stem + costs.head + blocks.sum::<i64>()
    }
}

impl Trial<'_, '_> {
    /// All ranks: one step. That any rank was asked to stop ends it on all.
    pub fn step(&mut self) -> Result<()> {
        let trainer = &mut *self.trainer;
        let (config, stage) = (trainer.config, &trainer.config.stages[0]);
        let steps = trainer.input.steps(config);
        let lr = config.lr_at(stage, trainer.step_of_stage() as f64 / steps as f64);
        if trainer.next_step(&mut self.uploads, stage, lr)? {
            return Err(Error {
                exit: Exit::Interrupted,
                message: "stopped on request".into(),
                agreed: true,
            });
        }
        if trainer.step_of_stage().is_multiple_of(steps) {
            trainer.state.sample = 0; // the loader goes on with another epoch, the learning rate from the start
        }
        Ok(())
    }

    /// Waits until the device has done what it was asked for.
    pub fn settle(&self) {
        if let tch::Device::Cuda(index) = self.trainer.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}
