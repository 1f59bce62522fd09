//! The data of a run: the data sets, batches on the device, normalised images.

mod ahead;
mod bad_samples;
mod missing;
mod normalise;
mod prefetch;
mod sampling;
mod validation;

pub use normalise::Normalise;
pub use prefetch::{DeviceBatch, Prefetcher, StepIndex, Uploads, copy_to_device};
pub use validation::Validation;

use crate::config::Config;
use crate::data::bad_samples::BadSamples;
use crate::data::sampling::draw_groups;
use crate::dist::World;
use crate::sys::error::{Error, Exit, Problems, Result};
use crate::text::counted;
use codinet_dataloader::{
    BadSample, Batch, BatchPlan, Dataset, EpochOrder, Loader, LoaderSpec, Mix, OnBadSample, Transform,
    describe_view_fit,
};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The key of the training set.
pub const TRAIN: &str = "data.train";
/// The key of the validation set.
pub const VAL: &str = "data.val";

/// The training and validation sets of a run, on this rank.
#[derive(Debug)]
pub struct Datasets {
    /// Training samples.
    pub train: Arc<Dataset>,
    /// The validation set.
    pub val: Validation,
    /// Samples in an epoch.
    pub samples: usize,
    /// How many training samples are trained on.
    trained: usize,
    /// The training samples that are held out for calibration.
    held_out: HeldOut,
    /// Training samples that could not be read or decoded.
    bad: RefCell<BadSamples>,
    normalise: Normalise,
}

impl Datasets {
    /// Opens both sets and checks them against the config.
    pub fn open(config: &Config, device: Device) -> Result<Self, Problems> {
        let data = &config.data;
        let mut problems = Problems::default();
        let val = problems.collect("data.val", Validation::open(config, device));
        let train = problems.collect(
            "data.train",
            open(TRAIN, &data.train.paths(), config, config.augmentation(), config.smallest_view()),
        );
        let (Some(train), Some(val)) = (train, val) else { return Err(problems) };
        problems.collect("data.val", check_classes(&train, &val));
        problems.collect("data.classes", check_labels(TRAIN, &train, config));
        problems.collect("data.classes", check_labels(VAL, &val.set, config));
        problems.collect("data.lanes", check_lanes(config, &train));
        let used = train.len().min(data.train_samples.unwrap_or(usize::MAX));
        let calibration = if config.calibrates() { config.cost.calibration_samples } else { 0 };
        let held_out = problems.collect("cost.calibration_samples", HeldOut::new(used, calibration));
        let Some(held_out) = held_out else { return Err(problems) };
        let trained = used - held_out.count;
        let samples = data.train.epoch_samples().unwrap_or(trained);
        problems.collect("optim.batch_size", check_full_batch(config, samples));
        if !problems.is_empty() {
            return Err(problems);
        }
        let normalise = Normalise::new(data, config.run.precision, device);
        let bad = RefCell::new(BadSamples::new("train", train.len(), data.max_bad_fraction));
        Ok(Self { train, val, samples, trained, held_out, bad, normalise })
    }

    /// One rank: prints what is not read of the sets, and whether views show only a small part of their images.
    pub fn print_notes(&self, config: &Config) -> Result<()> {
        print_data_notes(TRAIN, &self.train, &config.augmentation(), config.smallest_view())?;
        print_data_notes(VAL, &self.val.set, &config.evaluation(), config.data.eval_size())
    }

    /// Steps of one epoch. A tail smaller than a batch is left out, a different one each epoch.
    pub fn steps_per_epoch(&self, config: &Config) -> u64 {
        let lanes = config.data.lanes.map_or(1, |lanes| lanes.count); // of equal length, to the sample
        (self.samples / lanes / (config.optim.batch_size / lanes)) as u64
    }

    /// This rank's training batches, from step `first` of epoch `from` to the end of epoch `to` − 1; epochs are
    /// counted over all stages.
    pub fn training_loader(
        &self,
        config: &Config,
        world: &World,
        from: u64,
        first: u64,
        to: u64,
    ) -> Result<Loader> {
        let Self { samples, trained, held_out, .. } = *self;
        let seed = config.run.seed;
        let batch = config.optim.batch_size;
        let rank = world.rank();
        let ranks = world.ranks();
        let steps = self.steps_per_epoch(config);
        let places = (0..trained as u32).map(move |place| held_out.trained(place));
        let lanes = config.data.lanes.map(|lanes| (lanes, self.by_shard(places.clone())));
        let groups = draw_groups(&config.data.train, &self.train, places, samples);
        let image_size_at = config.image_size_by_epoch();
        let plan = (from..to).flat_map(move |epoch| {
            let order = Arc::new(match &lanes {
                Some((lanes, shards)) => EpochOrder::in_lanes(shards, *lanes, batch, seed, epoch),
                None => EpochOrder::draw(&groups, seed, epoch),
            });
            let start = if epoch == from { first } else { 0 };
            let image_size = image_size_at(epoch);
            (start..steps).map(move |step| {
                order.rank_plan(epoch, step as usize, batch, rank, ranks).with_image_size(image_size)
            })
        });
        let spec = loader_spec(config, config.augmentation(), config.data.image_size, config.data.views);
        let loader = Loader::new(self.train.clone(), spec, plan)?;
        world.watch_loader(&loader);
        Ok(loader)
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
        let samples = (0..self.held_out.count as u32).map(|i| self.held_out.held_out(i)).collect();
        Ok(validation::share_loader(&self.train, samples, config, world)?.map(|batch| Ok(batch?)))
    }

    /// The classes' names in the order of their numbers, if one of the sets has them.
    pub fn class_names(&self) -> Option<&[String]> {
        class_names(&self.val.set).or_else(|| class_names(&self.train))
    }

    /// From now on bad samples are recorded in the run directory `dir`.
    pub fn record_bad_in(&self, dir: &Path) {
        self.bad.borrow_mut().record_in(dir);
        self.val.bad.borrow_mut().record_in(dir);
    }

    /// This rank: records the bad samples of a batch of training or held-out samples.
    pub fn record_bad(&self, bad: &[BadSample]) -> Result<()> {
        self.bad.borrow_mut().record(bad)
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

/// `optim.batch_size` must be a multiple of this for `ranks` ranks.
pub fn batch_size_unit(config: &Config, ranks: usize) -> usize {
    let pairs = if config.data.mix == Mix::default() { 1 } else { 2 };
    let unit = ranks * config.optim.accumulate * pairs;
    let lanes = config.data.lanes.map_or(1, |lanes| lanes.count);
    let mut multiples = (1..).map(|times| times * unit);
    multiples.find(|unit| unit.is_multiple_of(lanes)).expect("at the latest unit × lanes")
}

/// Checks that `ranks` ranks can share a batch evenly.
pub fn check_batch_size(config: &Config, ranks: usize) -> Result<()> {
    let batch = config.optim.batch_size;
    let micros = config.optim.accumulate;
    let parts = ranks * micros;
    let fewer = (1..ranks).rev().find(|ranks| batch.is_multiple_of(batch_size_unit(config, *ranks)));
    let fewer = fewer.map(|ranks| format!(", or start {}", counted(ranks, "rank"))).unwrap_or_default();
    let uneven = |key: &str, value: usize| {
        format!(
            "{key} is {value}, which {ranks} ranks cannot share evenly in {micros} micro-batches each; set a multiple of \
             {parts}{fewer}"
        )
    };
    let what = match config.data.lanes {
        _ if !batch.is_multiple_of(parts) => uneven("optim.batch_size", batch),
        _ if config.data.mix != Mix::default() && !(batch / parts).is_multiple_of(2) => format!(
            "data.mix mixes neighbours, so each micro-batch of each rank must be even, not {} samples; set \
             optim.batch_size to a multiple of {}{fewer}",
            batch / parts,
            2 * parts
        ),
        Some(lanes) if !lanes.count.is_multiple_of(parts) => uneven("data.lanes.count", lanes.count),
        _ => return Ok(()),
    };
    Err(Error::new(Exit::Config, what))
}

/// Checks that an epoch has a batch.
fn check_full_batch(config: &Config, samples: usize) -> Result<()> {
    let batch = config.optim.batch_size;
    if samples >= batch {
        return Ok(());
    }
    let what = format!(
        "optim.batch_size is {batch}, more than the {samples} samples of data.train ({}); lower it",
        config.data.train
    );
    Err(Error::new(Exit::Data, what))
}

/// Checks that each label of the data set `key` is one of the classes.
fn check_labels(key: &str, dataset: &Dataset, config: &Config) -> Result<()> {
    dataset.check_labels(config.data.classes as usize).map_err(|error| {
        let error = Error::from(error);
        Error { message: format!("data.classes: {key}: {error}"), ..error }
    })
}

/// The classes' names in the order of their numbers, if the set has them.
fn class_names(set: &Dataset) -> Option<&[String]> {
    set.info()?.class_names.as_deref()
}

/// Checks that both sets number their classes alike: a set that lacks a class folder would not.
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

/// Checks that every lane has a shard to read.
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

/// The samples that are held out from training: the last of each of the first `count` runs of `stride` samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeldOut {
    count: usize,
    stride: usize,
}

impl HeldOut {
    /// Holds out `count` of `samples`, evenly spaced, because shards may be sorted by class.
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

    /// The index in the data set of the `i`-th held-out sample.
    fn held_out(&self, i: u32) -> u32 {
        (i + 1) * self.stride as u32 - 1
    }

    /// The index in the data set of the `i`-th training sample.
    fn trained(&self, i: u32) -> u32 {
        let between = self.stride as u32 - 1;
        i + i.checked_div(between).unwrap_or(0).min(self.count as u32)
    }
}

/// Opens the sets of the key `key` as one and decodes the first image of each as the run will: settings that do not suit the
/// images fail here.
fn open(
    key: &str,
    sets: &[&str],
    config: &Config,
    transform: Transform,
    image_size: u32,
) -> Result<Arc<Dataset>> {
    let options = config.dataset_options();
    let open_set = |shards: &&str| {
        Dataset::open_with(shards, &options).map_err(|error| missing::explain(key, shards, error))
    };
    let opened = sets.iter().map(open_set).collect::<Result<Vec<_>>>()?;
    let join_and_decode = || {
        let dataset = Arc::new(Dataset::join(opened)?);
        let starts = dataset.set_sizes().iter().scan(0, |start, &size| {
            *start += size as u32;
            Some(*start - size as u32)
        });
        let first = std::iter::once(BatchPlan::new(0, starts.collect()));
        let spec = LoaderSpec { on_bad: OnBadSample::Fail, ..loader_spec(config, transform, image_size, 1) };
        Loader::new(dataset.clone(), spec, first)?.try_for_each(|batch| batch.map(drop))?;
        Ok(dataset)
    };
    join_and_decode().map_err(|error| missing::explain(key, &sets.join(", "), error))
}

/// One rank: prints what is not read of the data set `name`, and whether views of `image_size` show only a small part of its images.
pub fn print_data_notes(name: &str, dataset: &Dataset, transform: &Transform, image_size: u32) -> Result<()> {
    let left_out = dataset.left_out();
    if !left_out.is_empty() {
        crate::eprint_line!("note: left out of {name}: {left_out}");
    }
    if let Some(warning) = describe_view_fit(dataset, transform, image_size)? {
        crate::eprint_line!("warning: {name}: {warning}");
    }
    Ok(())
}

/// The loader's settings for views of `image_size`.
pub fn loader_spec(config: &Config, transform: Transform, image_size: u32, views: usize) -> LoaderSpec {
    LoaderSpec {
        transform,
        image_size,
        channels: config.data.channels as usize,
        views,
        normalization: None,
        max_pixels: config.data.max_pixels,
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
    fn held_out_and_training_samples_partition_the_set() {
        for (samples, count) in [(10, 0), (10, 3), (10, 5), (103, 10), (7, 1)] {
            let split = HeldOut::new(samples, count).unwrap();
            let held = (0..count as u32).map(|i| split.held_out(i));
            let trained = (0..(samples - count) as u32).map(|i| split.trained(i));
            let mut all: Vec<u32> = held.chain(trained).collect();
            all.sort_unstable();
            assert_eq!(all, (0..samples as u32).collect::<Vec<u32>>(), "{count} of {samples}");
        }
        assert!(HeldOut::new(10, 6).is_err());
    }
}
