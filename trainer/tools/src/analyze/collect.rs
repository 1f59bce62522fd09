//! Passes the validation set through the network: each rank its share, and then every rank has all results in plain arrays.

use super::augment::{self, Augmentation};
use super::divergence;
use crate::progress;
use codinet_dataloader::{
    Batch, BatchPlan, Dataset, Loader, LoaderSpec, OnBadSample, Transform, eval_samples,
};
use codinet_trainer::config::Config;
use codinet_trainer::data::{self, Normalise};
use codinet_trainer::dist::{World, agree, all_gather_lists};
use codinet_trainer::metrics::classes::Prediction;
use codinet_trainer::model::{BnMode, Decisions, Net, NetOutput, hard_decisions, relaxed_decisions};
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::sync::Arc;
use tch::kind::Element;
use tch::{Device, Kind, Tensor, no_grad};

/// What to collect.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// Whether to augment each image, too.
    pub augmented: bool,
    /// The most images with features, evenly spaced.
    pub features: usize,
    /// The most images with a group of augmentations, evenly spaced.
    pub groups: usize,
    /// The largest angle of a rotation, in degrees.
    pub rotation: f64,
    /// The seed of all draws.
    pub seed: u64,
}

/// The results for N images in the order of the set; the same on every rank.
#[derive(Debug, Default)]
pub struct Observations {
    /// The number of each image in the set, `[N]`.
    pub samples: Vec<u32>,
    /// The class, `[N]`.
    pub labels: Vec<i64>,
    /// The predicted class, `[N]`.
    pub predictions: Vec<i64>,
    /// Its probability, `[N]`.
    pub probabilities: Vec<f32>,
    /// n.
    pub gates: usize,
    /// v = σ(logit/T), without noise, `[N, n]`.
    pub relaxed: Vec<f32>,
    /// u (Eq. 13), `[N, n]`.
    pub paths: Vec<u8>,
    /// In the order of [`Augmentation::ALL`]; empty without augmentation.
    pub augmented: Vec<AugmentedResults>,
    /// Which of the N images have features, `[K]`.
    pub with_features: Vec<usize>,
    /// The classifier's input, `[K, F]`.
    pub features: Vec<f32>,
    /// v of [`VIEWS`] augmentations each of some images, `[groups · VIEWS, n]`.
    pub groups: Vec<f32>,
    /// The number of images that cannot be read or decoded, and do not count.
    pub bad: usize,
}

/// The results for one augmentation of each of the N images.
#[derive(Clone, Debug, Default)]
pub struct AugmentedResults {
    /// The predicted class, `[N]`.
    pub predictions: Vec<i64>,
    /// u, `[N, n]`.
    pub paths: Vec<u8>,
    /// [`divergence::path_kl`] from the image, `[N]`.
    pub path_kl: Vec<f64>,
    /// [`divergence::prediction_kl`] from the image, `[N]`.
    pub prediction_kl: Vec<f64>,
}

/// Augmentations in a group, as in the paper's Section 4.4.3.
pub const VIEWS: usize = 10;

/// A network and its images.
pub struct Subject<'a> {
    pub config: &'a Config,
    pub net: &'a Net,
    pub data: &'a Arc<Dataset>,
    pub device: Device,
}

impl Subject<'_> {
    /// All ranks: passes the set through the network.
    ///
    /// # Errors
    /// On every rank: images that cannot be read; a set without a usable image.
    pub fn collect(&self, world: &World, options: CollectOptions) -> Result<Observations> {
        let share = agree(world, self.collect_share(world, options))?;
        let mut all = share.gather(world)?;
        if all.samples.is_empty() {
            let what =
                format!("no image of {} can be used; codinet-data verify says why", self.config.data.val);
            return Err(Error::on_all_ranks(Exit::Data, what));
        }
        let selected = Spaced::new(self.data.len(), options.features);
        all.with_features = (0..all.samples.len()).filter(|&i| selected.contains(all.samples[i])).collect();
        all.gates = self.net.costs.gated().count();
        all.bad = self.data.len() - all.samples.len();
        Ok(all)
    }

    /// This rank's part of the observations.
    fn collect_share(&self, world: &World, options: CollectOptions) -> Result<Observations> {
        let config = self.config;
        let data = &config.data;
        let normalise = Normalise::new(data, config.run.precision, self.device);
        let black = augment::black(data).to_device(self.device);
        let mine = eval_samples(self.data.len(), world.rank(), world.ranks());
        let mine: Vec<u32> = (mine.start as u32..mine.end as u32).collect();
        let batch = config.optim.eval_batch_size.div_ceil(world.ranks());
        let plan = || mine.chunks(batch).map(|samples| BatchPlan::new(0, samples.to_vec())).collect();
        let mut share = Observations::default();
        let progress = progress::bar(world.rank() == 0, "passing images", mine.len());
        let with_features = Spaced::new(self.data.len(), options.features);
        let mut cropped = None;
        if options.augmented {
            share.augmented = vec![AugmentedResults::default(); Augmentation::ALL.len()];
            cropped = Some(self.loader(augment::crop(data), 1, options.seed, plan())?);
        }
        for batch in self.loader(config.evaluation(), 1, options.seed, plan())? {
            let batch = batch?;
            let crops = cropped.as_mut().map(|loader| next_batch(loader, &batch)).transpose()?;
            if batch.samples.is_empty() {
                continue;
            }
            let (images, _) = normalise.tensors(&batch);
            let output = self.forward(&images);
            let features = to_host(&output.features);
            let rows = features.chunks(features.len() / batch.samples.len());
            for (&sample, row) in batch.samples.iter().zip(rows) {
                if with_features.contains(sample) {
                    share.features.extend(row);
                }
            }
            for (kind, results) in Augmentation::ALL.into_iter().zip(&mut share.augmented) {
                let augmented = match kind {
                    Augmentation::Crop => normalise.tensors(crops.as_ref().expect("loaded above")).0,
                    Augmentation::Flip => images.flip([3]),
                    Augmentation::VerticalFlip => images.flip([2]),
                    Augmentation::Rotation => {
                        let angle =
                            |&sample: &u32| augment::draw_angle(options.seed, sample, 0, options.rotation);
                        let angles: Vec<f64> = batch.samples.iter().map(angle).collect();
                        augment::rotate(&images, &black, &angles)
                    }
                };
                results.extend(&output, &self.forward(&augmented), config.final_temperature());
            }
            progress.inc(batch.samples.len() as u64);
            share.samples.extend(&batch.samples);
            share.labels.extend(&batch.labels);
            share.predictions.extend(predicted_classes(&output));
            let probabilities = output.logits.softmax(1, Kind::Float).amax([1].as_slice(), false);
            share.probabilities.extend(to_host(&probabilities));
            share.relaxed.extend(self.relaxed_path(&output));
            share.paths.extend(hard_path(&output));
        }
        // Each rank has the groups of its own images, so that gathering keeps their order.
        let grouped = Spaced::new(self.data.len(), options.groups);
        let mine: Vec<u32> = mine.iter().copied().filter(|&sample| grouped.contains(sample)).collect();
        progress.set_message("passing groups of augmented images");
        progress.set_length(mine.len() as u64);
        progress.reset();
        let plan = mine.chunks((batch / VIEWS).max(1)).map(|part| BatchPlan::new(1, part.to_vec())).collect();
        for batch in self.loader(augment::crop(data), VIEWS, options.seed, plan)? {
            let batch = batch?;
            if !batch.samples.is_empty() {
                let (crops, _) = normalise.tensors(&batch);
                let views = self.flip_and_rotate(&crops, &black, &batch.samples, options);
                share.groups.extend(self.relaxed_path(&self.forward(&views)));
            }
            progress.inc(batch.samples.len() as u64);
        }
        progress.finish_and_clear();
        Ok(share)
    }

    fn loader(&self, transform: Transform, views: usize, seed: u64, plan: Vec<BatchPlan>) -> Result<Loader> {
        let spec = data::loader_spec(self.config, transform, self.config.data.eval_size(), views);
        let spec = LoaderSpec { seed, on_bad: OnBadSample::Replace, ..spec };
        Ok(Loader::new(self.data.clone(), spec, plan.into_iter())?)
    }

    /// Flips views `[L·M, C, H, W]` both ways with probability ½ and rotates them, each by its own draw.
    fn flip_and_rotate(
        &self,
        views: &Tensor,
        black: &Tensor,
        samples: &[u32],
        options: CollectOptions,
    ) -> Tensor {
        let CollectOptions { seed, rotation, .. } = options;
        let mut horizontal = Vec::new();
        let mut vertical = Vec::new();
        let mut angles = Vec::new();
        for &sample in samples {
            for view in 0..VIEWS as u64 {
                let (flip, vertical_flip) = augment::draw_flips(seed, sample, view);
                horizontal.push(flip);
                vertical.push(vertical_flip);
                angles.push(augment::draw_angle(seed, sample, view + 1, rotation));
            }
        }
        let mask = |flips: &[bool]| Tensor::from_slice(flips).view([-1, 1, 1, 1]).to_device(self.device);
        let x = views.flip([3]).where_self(&mask(&horizontal), views);
        let x = x.flip([2]).where_self(&mask(&vertical), &x);
        augment::rotate(&x, black, &angles)
    }

    fn forward(&self, images: &Tensor) -> NetOutput {
        no_grad(|| self.net.forward(images, Decisions::Hard, BnMode::Running))
    }

    fn relaxed_path(&self, output: &NetOutput) -> Vec<f32> {
        to_host(&relaxed_decisions(&output.gate_logits, self.config.final_temperature()))
    }
}

impl Observations {
    /// The prediction for each image, `[N]`.
    pub fn by_image(&self) -> Vec<Prediction> {
        let prediction = |i: usize| Prediction {
            sample: self.samples[i],
            label: self.labels[i] as usize,
            predicted: self.predictions[i] as usize,
            probability: self.probabilities[i],
            blocks_run: self.path(i).iter().filter(|&&ran| ran == 1).count(),
        };
        (0..self.samples.len()).map(prediction).collect()
    }

    /// u of the `i`-th image, `[n]`.
    pub fn path(&self, i: usize) -> &[u8] {
        &self.paths[i * self.gates..(i + 1) * self.gates]
    }

    /// All ranks: the ranks' parts together.
    fn gather(&self, world: &World) -> Result<Self> {
        let samples: Vec<i64> = self.samples.iter().map(|&sample| sample.into()).collect();
        let augmented = |part: &AugmentedResults| -> Result<AugmentedResults> {
            Ok(AugmentedResults {
                predictions: gather(world, &part.predictions)?,
                paths: gather(world, &part.paths)?,
                path_kl: gather(world, &part.path_kl)?,
                prediction_kl: gather(world, &part.prediction_kl)?,
            })
        };
        Ok(Self {
            samples: gather(world, &samples)?.into_iter().map(|sample| sample as u32).collect(),
            labels: gather(world, &self.labels)?,
            predictions: gather(world, &self.predictions)?,
            probabilities: gather(world, &self.probabilities)?,
            relaxed: gather(world, &self.relaxed)?,
            paths: gather(world, &self.paths)?,
            augmented: self.augmented.iter().map(augmented).collect::<Result<_>>()?,
            features: gather(world, &self.features)?,
            groups: gather(world, &self.groups)?,
            ..Self::default()
        })
    }
}

impl AugmentedResults {
    /// Adds a batch: the network's outputs for the images and for their augmentations.
    fn extend(&mut self, images: &NetOutput, augmented: &NetOutput, temperature: f64) {
        self.predictions.extend(predicted_classes(augmented));
        self.paths.extend(hard_path(augmented));
        let path_kl = divergence::path_kl(
            &(&images.gate_logits / temperature),
            &(&augmented.gate_logits / temperature),
        );
        let prediction_kl = divergence::prediction_kl(&images.logits, &augmented.logits);
        self.path_kl.extend(Vec::<f64>::try_from(path_kl).expect("numbers"));
        self.prediction_kl.extend(Vec::<f64>::try_from(prediction_kl).expect("numbers"));
    }
}

/// The next batch of `loader`, which must have the samples of `batch`.
fn next_batch(loader: &mut Loader, batch: &Batch) -> Result<Batch> {
    let next = loader.next().expect("as many batches")?;
    if next.samples != batch.samples {
        let what = "some images can be used for evaluation, but not cropped at random; codinet-data verify lists them";
        return Err(Error::new(Exit::Data, what));
    }
    Ok(next)
}

fn predicted_classes(output: &NetOutput) -> Vec<i64> {
    Vec::try_from(output.logits.argmax(1, false)).expect("classes")
}

fn hard_path(output: &NetOutput) -> Vec<u8> {
    let path = hard_decisions(&output.gate_logits).to_kind(Kind::Uint8);
    Vec::try_from(path.to_device(Device::Cpu).view(-1)).expect("bits")
}

fn to_host(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().view(-1)).expect("numbers")
}

/// Evenly spaced images of a set.
#[derive(Clone, Copy, Debug)]
struct Spaced {
    /// `None`: no images.
    stride: Option<usize>,
}

impl Spaced {
    /// At most `limit` of `images`, the first among them; none if `limit` is 0.
    fn new(images: usize, limit: usize) -> Self {
        Self { stride: (limit > 0).then(|| images.div_ceil(limit).max(1)) }
    }

    fn contains(self, sample: u32) -> bool {
        self.stride.is_some_and(|stride| (sample as usize).is_multiple_of(stride))
    }
}

/// All ranks: every rank's values, in rank order.
fn gather<T: Element + Copy + Default>(world: &World, values: &[T]) -> Result<Vec<T>> {
    Ok(all_gather_lists(world, values)?.concat())
}

#[cfg(test)]
mod tests {
    use super::Spaced;

    #[test]
    fn images_are_evenly_spaced() {
        let select = |images: usize, limit: usize| -> Vec<u32> {
            let selected = Spaced::new(images, limit);
            (0..images as u32).filter(|&sample| selected.contains(sample)).collect()
        };
        assert_eq!(select(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(select(10, 4), [0, 3, 6, 9]);
        assert_eq!(select(3, 100), [0, 1, 2]);
        assert!(select(3, 0).is_empty());
    }
}
