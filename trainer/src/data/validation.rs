//! The validation images.

use super::{Normalise, open, spec};
use crate::config::Config;
use crate::data::bad_samples::BadSamples;
use crate::dist::World;
use crate::sys::error::Result;
use codinet_dataloader::{Batch, BatchPlan, Dataset, Loader};
use std::cell::RefCell;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The validation images, as this rank sees them.
#[derive(Debug)]
pub struct Validation {
    /// All of them.
    pub set: Arc<Dataset>,
    /// Those that could not be read or decoded.
    pub(super) bad: RefCell<BadSamples>,
    normalise: Normalise,
}

impl Validation {
    /// Opens `data.val`; its labels are not checked yet.
    pub fn open(config: &Config, device: Device) -> Result<Self> {
        let set = open(&config.data.val, config, config.evaluation())?;
        let bad = RefCell::new(BadSamples::new("val", set.len(), config.data.max_bad_fraction));
        Ok(Self { set, bad, normalise: Normalise::new(&config.data, config.run.precision, device) })
    }

    /// This rank's share: over all ranks, each image once.
    pub fn all(&self, config: &Config, world: &World) -> Result<Loader> {
        share(&self.set, (0..self.set.len() as u32).collect(), config, world)
    }

    /// This rank's share of at most `most`, evenly spaced.
    pub fn some(&self, config: &Config, world: &World, most: usize) -> Result<Loader> {
        let stride = self.set.len().div_ceil(most.max(1)).max(1);
        share(&self.set, (0..self.set.len() as u32).step_by(stride).collect(), config, world)
    }

    /// This rank: notes the bad samples of a batch.
    pub fn note_bad(&self, batch: &Batch) -> Result<()> {
        self.bad.borrow_mut().note(&batch.bad)
    }

    /// As [`Normalise::tensors`].
    pub fn tensors(&self, batch: &Batch) -> (Tensor, Tensor) {
        self.normalise.tensors(batch)
    }
}

/// This rank's share of `samples`, as evaluation sees images.
pub(super) fn share(
    dataset: &Arc<Dataset>,
    samples: Vec<u32>,
    config: &Config,
    world: &World,
) -> Result<Loader> {
    let batch = config.optim.eval_batch_size.div_ceil(world.ranks());
    let mine = codinet_dataloader::eval_samples(samples.len(), world.rank(), world.ranks());
    let mine = samples[mine.start as usize..mine.end as usize].to_vec();
    let plans: Vec<BatchPlan> =
        mine.chunks(batch).map(|samples| BatchPlan::new(0, samples.to_vec())).collect();
    Ok(Loader::new(dataset.clone(), spec(config, config.evaluation(), 1), plans.into_iter())?)
}
