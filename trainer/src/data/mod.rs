//! The way in: data sets, and a batch of bytes made a normalised tensor.

mod bad_samples;
mod normalise;
pub mod prefetch;
mod validation;

pub use normalise::Normalise;
pub use validation::Validation;

use crate::config::Config;
use crate::data::bad_samples::BadSamples;
use crate::dist::World;
use crate::sys::error::{Error, Exit, Result};
use codinet_dataloader::{
    BadSample, Batch, BatchPlan, Dataset, EpochOrder, Loader, LoaderSpec, Mix, OnBadSample, Replacements,
    Transform,
};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The data of a run, as this rank sees it.
#[derive(Debug)]
pub struct Input {
    /// Training samples.
    pub train: Arc<Dataset>,
    /// Validation images.
    pub val: Validation,
    /// Training samples that are trained on.
    pub samples: usize,
    /// Of the samples in use, which are held out from training.
    held_out: HeldOut,
    /// Training samples that could not be read or decoded.
    bad: RefCell<BadSamples>,
    normalise: Normalise,
}

impl Input {
    /// Opens both datasets and checks that they suit the config and the world.
    pub fn open(config: &Config, world: &World, device: Device) -> Result<Self> {
        let data = &config.data;
        let val = Validation::open(config, device)?;
        let train = open(&data.train, config, config.augmentation())?;
        check_classes(&train, &val)?;
        train.check_labels(data.classes as usize)?;
        val.set.check_labels(data.classes as usize)?;
        check_lanes(config, &train)?;
        let used = train.len().min(data.train_samples.unwrap_or(usize::MAX));
        let held_out =
            HeldOut::new(used, if config.calibrates() { config.cost.calibration_samples } else { 0 })?;
        let samples = used - held_out.count;
        check_batch(config, world.ranks())?;
        let batch = config.optim.batch_size;
        if samples < batch {
            let what = format!(
                "{} gives {samples} samples, fewer than one batch of {batch}; lower optim.batch_size",
                data.train
            );
            return Err(Error::new(Exit::Data, what));
        }
        let normalise = Normalise::new(data, config.run.precision, device);
        let bad = RefCell::new(BadSamples::new("train", train.len(), data.max_bad_fraction));
        Ok(Self { train, val, samples, held_out, bad, normalise })
    }

    /// Steps of one epoch; a tail smaller than a batch is left out, another one each epoch.
    pub fn steps(&self, config: &Config) -> u64 {
        // Lanes are of equal length, to the sample.
        let (lanes, batch) = (config.data.lanes.map_or(1, |lanes| lanes.count), config.optim.batch_size);
        (self.samples / lanes / (batch / lanes)) as u64
    }

    /// This rank's training batches, from step `first` of epoch `from` to the end of epoch `to` − 1; epochs are
    /// counted over all stages.
    pub fn training(&self, config: &Config, world: &World, from: u64, first: u64, to: u64) -> Result<Loader> {
        let (seed, samples, batch) = (config.run.seed, self.samples, config.optim.batch_size);
        let (rank, ranks, steps) = (world.rank(), world.ranks(), self.steps(config));
        let held_out = self.held_out;
        let trained = move || (0..samples as u32).map(move |place| held_out.trained(place));
        let lanes = config.data.lanes.map(|lanes| (lanes, self.by_shard(trained())));
        let plan = (from..to).flat_map(move |epoch| {
            let order = Arc::new(match &lanes {
                Some((lanes, shards)) => EpochOrder::in_lanes(shards, *lanes, batch, seed, epoch),
                None => EpochOrder::shuffle(trained().collect(), seed, epoch),
            });
            let start = if epoch == from { first } else { 0 };
            (start..steps).map(move |step| {
                let samples = order.rank_samples(step as usize, batch, rank, ranks).to_vec();
                let first = step as usize * batch + rank * (batch / ranks);
                let replacements = Replacements { order: order.clone(), first, global_batch: batch };
                BatchPlan { epoch, samples, replacements: Some(replacements) }
            })
        });
        Ok(Loader::new(self.train.clone(), spec(config, config.augmentation(), config.data.views), plan)?)
    }

    /// Rising places in the training set, shard by shard.
    fn by_shard(&self, places: impl Iterator<Item = u32>) -> Vec<Vec<u32>> {
        let ends = self.train.shards().scan(0, |end, shard| {
            *end += shard.samples;
            Some(*end as u32)
        });
        let mut places = places.peekable();
        ends.map(|end| std::iter::from_fn(|| places.next_if(|&place| place < end)).collect()).collect()
    }

    /// This rank's share of the training samples that are held out, as evaluation sees images.
    pub fn held_out(&self, config: &Config, world: &World) -> Result<impl Iterator<Item = Result<Batch>>> {
        let samples = (0..self.held_out.count as u32).map(|i| self.held_out.held(i)).collect();
        Ok(validation::share(&self.train, samples, config, world)?.map(|batch| Ok(batch?)))
    }

    /// What the classes are called, in the order of their numbers, where one of the sets knows.
    pub fn class_names(&self) -> Option<&[String]> {
        class_names(&self.val.set).or_else(|| class_names(&self.train))
    }

    /// From here on bad samples are recorded in a run's folder.
    pub fn record_in(&self, dir: &Path) {
        self.bad.borrow_mut().record_in(dir);
        self.val.bad.borrow_mut().record_in(dir);
    }

    /// This rank: notes the bad samples of a batch of training samples, those held out among them.
    pub fn note_bad(&self, bad: &[BadSample]) -> Result<()> {
        self.bad.borrow_mut().note(bad)
    }

    /// As [`Normalise::pixels`].
    pub fn pixels(&self, pixels: &Tensor) -> Tensor {
        self.normalise.pixels(pixels)
    }

    /// As [`Normalise::tensors`].
    pub fn tensors(&self, batch: &Batch) -> (Tensor, Tensor) {
        self.normalise.tensors(batch)
    }
}

/// What a batch must be a multiple of where `ranks` ranks share it.
pub fn batch_unit(config: &Config, ranks: usize) -> usize {
    let pairs = if config.data.mix == Mix::default() { 1 } else { 2 };
    let unit = ranks * config.optim.accumulate * pairs;
    let lanes = config.data.lanes.map_or(1, |lanes| lanes.count);
    let mut multiples = (1..).map(|times| times * unit);
    multiples.find(|unit| unit.is_multiple_of(lanes)).expect("at the latest unit × lanes")
}

/// Refuses a batch that `ranks` ranks cannot share evenly.
fn check_batch(config: &Config, ranks: usize) -> Result<()> {
    let (batch, micros) = (config.optim.batch_size, config.optim.accumulate);
    let parts = ranks * micros;
    let uneven = |key: &str, value: usize| {
        format!(
            "{key} is {value}, which {ranks} ranks cannot share evenly in {micros} micro-batches each; set a multiple of \
             {parts}"
        )
    };
    let what = match config.data.lanes {
        _ if !batch.is_multiple_of(parts) => uneven("optim.batch_size", batch),
        _ if config.data.mix != Mix::default() && !(batch / parts).is_multiple_of(2) => format!(
            "data.mix mixes neighbours, so each micro-batch of each rank must be even, not {} samples; set \
             optim.batch_size to a multiple of {}",
            batch / parts,
            2 * parts
        ),
        Some(lanes) if !lanes.count.is_multiple_of(parts) => uneven("data.lanes.count", lanes.count),
        _ => return Ok(()),
    };
    Err(Error::new(Exit::Config, what))
}

/// What the classes are called, in the order of their numbers, where the set knows.
fn class_names(set: &Dataset) -> Option<&[String]> {
    set.info()?.class_names.as_deref()
}

/// Refuses sets that number their classes differently, as folders do of which one set lacks one.
fn check_classes(train: &Dataset, val: &Validation) -> Result<()> {
    let (Some(train), Some(val)) = (class_names(train), class_names(&val.set)) else { return Ok(()) };
    let differs = (0..train.len().max(val.len())).find(|&class| train.get(class) != val.get(class));
    let Some(class) = differs else { return Ok(()) };
    let name = |names: &[String]| names.get(class).map_or("missing".to_owned(), |name| format!("'{name}'"));
    let what = format!(
        "class {class} is {} in data.train and {} in data.val; give both the same classes",
        name(train),
        name(val)
    );
    Err(Error::new(Exit::Data, what))
}

/// Refuses more lanes than there are shards for them: some would have nothing to read, or always the same.
fn check_lanes(config: &Config, train: &Dataset) -> Result<()> {
    let shards = train.shards().len();
    match config.data.lanes {
        Some(lanes) if shards < lanes.count => Err(Error::new(
            Exit::Config,
            format!(
                "data.lanes.count is {}, but {} has {shards} shards; lower it, or import to more (--shard-size)",
                lanes.count, config.data.train
            ),
        )),
        _ => Ok(()),
    }
}

/// Which of the training samples are not trained on: the last of each of the first `count` stretches of `stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeldOut {
    count: usize,
    stride: usize,
}

impl HeldOut {
    /// Holds `count` of `samples` out, evenly spaced, for shards may be sorted by class.
    fn new(samples: usize, count: usize) -> Result<Self> {
        if count > samples / 2 {
            return Err(Error::new(
                Exit::Config,
                format!(
                    "cost.calibration_samples is {count}, more than half of the {samples} training samples"
                ),
            ));
        }
        Ok(Self { count, stride: samples / count.max(1) })
    }

    /// The place in the data set of the `i`-th sample that is held out.
    fn held(&self, i: u32) -> u32 {
        (i + 1) * self.stride as u32 - 1
    }

    /// The place in the data set of the `i`-th sample that is trained on.
    fn trained(&self, i: u32) -> u32 {
        let between = self.stride as u32 - 1;
        i + i.checked_div(between).unwrap_or(0).min(self.count as u32)
    }
}

/// Opens a data set, and makes its first image what the run will see: settings that do not suit the images end the run here.
fn open(shards: &str, config: &Config, transform: Transform) -> Result<Arc<Dataset>> {
    let dataset = Arc::new(Dataset::open_with(shards, &config.dataset_options())?);
    let first = std::iter::once(BatchPlan::new(0, vec![0]));
    let spec = LoaderSpec { on_bad: OnBadSample::Fail, ..spec(config, transform, 1) };
    Loader::new(dataset.clone(), spec, first)?.try_for_each(|batch| batch.map(drop))?;
    Ok(dataset)
}

/// How a loader makes views of the config's kind.
pub fn spec(config: &Config, transform: Transform, views: usize) -> LoaderSpec {
    LoaderSpec {
        transform,
        image_size: config.data.image_size,
        channels: config.data.channels as usize,
        views,
        seed: config.run.seed,
        threads: config.data.decode_threads.unwrap_or_else(|| tch::get_num_threads() as usize),
        prefetch: config.data.prefetch,
        on_bad: config.data.on_bad_sample,
    }
}

#[cfg(test)]
mod tests {
    use super::HeldOut;

    #[test]
    fn what_is_held_out_is_not_trained_on() {
        for (samples, count) in [(10, 0), (10, 3), (10, 5), (103, 10), (7, 1)] {
            let split = HeldOut::new(samples, count).unwrap();
            let held = (0..count as u32).map(|i| split.held(i));
            let trained = (0..(samples - count) as u32).map(|i| split.trained(i));
            let mut all: Vec<u32> = held.chain(trained).collect();
            all.sort_unstable();
            assert_eq!(all, (0..samples as u32).collect::<Vec<u32>>(), "{count} of {samples}");
        }
        assert!(HeldOut::new(10, 6).is_err());
    }
}
