//! The validation set.

use super::{Normalise, Prefetcher, Uploads, loader_spec, open};
use crate::config::Config;
use crate::data::bad_samples::BadSamples;
use crate::dist::World;
use crate::sys::error::Result;
use codinet_dataloader::{BadSample, Batch, BatchPlan, Dataset, Loader};
use std::cell::RefCell;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The validation set, on this rank.
#[derive(Debug)]
pub struct Validation {
    /// All images.
    pub set: Arc<Dataset>,
    /// Images that could not be read or decoded.
    pub(super) bad: RefCell<BadSamples>,
    normalise: Normalise,
    device: Device,
}

impl Validation {
    /// Opens `data.val`; its labels are not checked yet.
    pub fn open(config: &Config, device: Device) -> Result<Self> {
        let set =
            open(super::VAL, &[&config.data.val], config, config.evaluation(), config.data.eval_size())?;
        let bad = RefCell::new(BadSamples::new("val", set.len(), config.data.max_bad_fraction));
        let normalise = Normalise::new(&config.data, config.run.precision, device);
        Ok(Self { set, bad, normalise, device })
    }

    /// This rank's share of all images; each image belongs to one rank.
    fn loader(&self, config: &Config, world: &World) -> Result<Loader> {
        share_loader(&self.set, (0..self.set.len() as u32).collect(), config, world)
    }

    /// This rank's share of at most `limit` images, evenly spaced in the set.
    pub fn sample_loader(&self, config: &Config, world: &World, limit: usize) -> Result<Loader> {
        let stride = self.set.len().div_ceil(limit.max(1)).max(1);
        share_loader(&self.set, (0..self.set.len() as u32).step_by(stride).collect(), config, world)
    }

    /// This rank: records the bad samples of a batch.
    pub fn record_bad(&self, bad: &[BadSample]) -> Result<()> {
        self.bad.borrow_mut().record(bad)
    }

    /// This rank's share of all images, on the device; `noise` returns the noise of samples.
    pub fn batches(
        &self,
        config: &Config,
        world: &World,
        noise: impl FnMut(&[u32]) -> Tensor + Send + 'static,
    ) -> Result<Prefetcher> {
        let loader = self.loader(config, world)?;
        Ok(Prefetcher::new(Uploads::of_evaluation(loader, config, self.device, noise)))
    }

    /// As [`Normalise::images`].
    pub fn normalise(&self, pixels: &Tensor) -> Tensor {
        self.normalise.images(pixels)
    }

    /// As [`Normalise::tensors`].
    pub fn tensors(&self, batch: &Batch) -> (Tensor, Tensor) {
        self.normalise.tensors(batch)
    }
}

/// This rank's share of `samples`, transformed as in evaluation.
pub(super) fn share_loader(
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
    let spec = loader_spec(config, config.evaluation(), config.data.eval_size(), 1);
    let loader = Loader::new(dataset.clone(), spec, plans.into_iter())?;
    world.watch_loader(&loader);
    Ok(loader)
}
