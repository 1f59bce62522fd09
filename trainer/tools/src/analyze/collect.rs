//! A validation set as a trained network saw it, in plain arrays: each rank passes its share through the network, and all
//! of them come to hold all of it.

use super::augment::{self, Augmentation};
use super::divergence;
use codinet_dataloader::{Batch, BatchPlan, Dataset, Loader, OnBadSample, eval_samples};
use codinet_trainer::config::Config;
use codinet_trainer::data::{self, Normalise};
use codinet_trainer::dist::{World, agree, all_gather_lists};
use codinet_trainer::model::{BnMode, Decisions, Net, NetOutput, hard_decisions, relaxed_decisions};
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::sync::Arc;
use tch::kind::Element;
use tch::{Device, Kind, Tensor, no_grad};

/// The settings of a collection.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// Whether each image is augmented too.
    pub augmented: bool,
    /// The maximum number of images with features, evenly spaced.
    pub features: usize,
    /// The number of images with a group of augmentations, evenly spaced.
    pub groups: usize,
    /// Largest angle of a rotation, in degrees.
    pub rotation: f64,
    /// Seed of all draws.
    pub seed: u64,
}

/// The network's outputs for N images, in the order of the set; the same on every rank.
#[derive(Debug, Default)]
pub struct ImageOutputs {
    /// Their indices in the set, `[N]`.
    pub samples: Vec<u32>,
    /// Their classes, `[N]`.
    pub labels: Vec<i64>,
    /// Their most probable classes, `[N]`.
    pub predictions: Vec<i64>,
    /// n.
    pub gates: usize,
    /// v = σ(logit/T), without noise, `[N, n]`.
    pub relaxed: Vec<f32>,
    /// u (Eq. 13), `[N, n]`.
    pub paths: Vec<u8>,
    /// The outputs for the augmented images, in the order of [`Augmentation::ALL`]; empty without augmentation.
    pub augmented: Vec<Augmented>,
    /// Which of the N images have features, `[K]`.
    pub chosen: Vec<usize>,
    /// The mean over pixels that the classifier sees, `[K, F]`.
    pub features: Vec<f32>,
    /// v of [`VIEWS`] augmentations each of some images, `[groups · VIEWS, n]`.
    pub groups: Vec<f32>,
    /// Number of images that cannot be read or decoded; they do not count.
    pub bad: usize,
}

/// One augmentation of each of the N images.
#[derive(Clone, Debug, Default)]
pub struct Augmented {
    /// Their most probable classes, `[N]`.
    pub predictions: Vec<i64>,
    /// u, `[N, n]`.
    pub paths: Vec<u8>,
    /// KL divergence of the augmented image's path from the image's own, in nats, `[N]`: see [`divergence::of_paths`].
    pub path_kl: Vec<f64>,
    /// Of its predicted probabilities, in nats, `[N]`.
    pub prediction_kl: Vec<f64>,
}

/// Augmentations in a group, as in the paper's Section 4.4.3.
pub const VIEWS: usize = 10;

/// A network and the set that it is shown.
pub struct Subject<'a> {
    /// The config that the network was trained by.
    pub config: &'a Config,
    /// The network.
    pub net: &'a Net,
    /// The images.
    pub data: &'a Arc<Dataset>,
    /// Where the network's tensors lie.
    pub device: Device,
}

/// What one rank has of it.
#[derive(Default)]
struct Share {
    labels: Vec<i64>,
    predictions: Vec<i64>,
    samples: Vec<u32>,
    relaxed: Vec<f32>,
    paths: Vec<u8>,
    augmented: Vec<Augmented>,
    features: Vec<f32>,
    groups: Vec<f32>,
}

impl Subject<'_> {
    /// All ranks: passes the set through the network.
    ///
    /// # Errors
    /// On every rank: images that cannot be read, a set without one that can be used.
    pub fn collect(&self, world: &World, options: CollectOptions) -> Result<ImageOutputs> {
        let share = agree(world, self.share(world, options))?;
        let gates = self.net.costs.gated().count();
        let samples: Vec<i64> = share.samples.iter().map(|&sample| sample.into()).collect();
        let samples: Vec<u32> = gather(world, &samples)?.into_iter().map(|sample| sample as u32).collect();
        if samples.is_empty() {
            let what =
                format!("no image of {} can be used; codinet-data verify says why", self.config.data.val);
            return Err(Error::on_all_ranks(Exit::Data, what));
        }
        let chosen = spaced(self.data.len(), options.features);
        let chosen: Vec<usize> = (0..samples.len()).filter(|&at| chosen.contains(samples[at])).collect();
        let all = |part: &Augmented| -> Result<Augmented> {
            Ok(Augmented {
                predictions: gather(world, &part.predictions)?,
                paths: gather(world, &part.paths)?,
                path_kl: gather(world, &part.path_kl)?,
                prediction_kl: gather(world, &part.prediction_kl)?,
            })
        };
        Ok(ImageOutputs {
            labels: gather(world, &share.labels)?,
            predictions: gather(world, &share.predictions)?,
            gates,
            relaxed: gather(world, &share.relaxed)?,
            paths: gather(world, &share.paths)?,
            augmented: share.augmented.iter().map(all).collect::<Result<_>>()?,
            chosen,
            features: gather(world, &share.features)?,
            groups: gather(world, &share.groups)?,
            bad: self.data.len() - samples.len(),
            samples,
        })
    }

    /// This rank's share.
    fn share(&self, world: &World, options: CollectOptions) -> Result<Share> {
        let config = self.config;
        let data = &self.config.data;
        let normalise = Normalise::new(data, config.run.precision, self.device);
        let black = augment::black(data).to_device(self.device);
        let mine = eval_samples(self.data.len(), world.rank(), world.ranks());
        let mine: Vec<u32> = (mine.start as u32..mine.end as u32).collect();
        let batch = config.optim.eval_batch_size.div_ceil(world.ranks());
        let plan = || mine.chunks(batch).map(|samples| BatchPlan::new(0, samples.to_vec())).collect();
        let kinds = if options.augmented { Augmentation::ALL.len() } else { 0 };
        let mut share = Share { augmented: vec![Augmented::default(); kinds], ..Share::default() };
        let with_features = spaced(self.data.len(), options.features);
        let mut cropped = if options.augmented {
            Some(self.loader(augment::crop(data), 1, options.seed, plan())?)
        } else {
            None
        };
        for batch in self.loader(config.evaluation(), 1, options.seed, plan())? {
            let batch = batch?;
            let crops = match &mut cropped {
                Some(loader) => Some(next_of(loader, &batch)?),
                None => None,
            };
            if batch.samples.is_empty() {
                continue;
            }
            let (images, _) = normalise.tensors(&batch);
            let out = self.pass(&images);
            let rows = host(&out.features);
            for (at, sample) in batch.samples.iter().enumerate() {
                if with_features.contains(*sample) {
                    let width = rows.len() / batch.samples.len();
                    share.features.extend(&rows[at * width..(at + 1) * width]);
                }
            }
            for (kind, into) in Augmentation::ALL.into_iter().zip(&mut share.augmented) {
                let changed = match kind {
                    Augmentation::Crop => normalise.tensors(crops.as_ref().expect("options")).0,
                    Augmentation::Flip => images.flip([3]),
                    Augmentation::VerticalFlip => images.flip([2]),
                    Augmentation::Rotation => {
                        let angle = |&sample: &u32| augment::angle(options.seed, sample, 0, options.rotation);
                        let angles: Vec<f64> = batch.samples.iter().map(angle).collect();
                        augment::rotate(&images, &black, &angles)
                    }
                };
                into.extend(&out, &self.pass(&changed), self.config.model.router.temperature);
            }
            share.samples.extend(&batch.samples);
            share.labels.extend(&batch.labels);
            share.predictions.extend(first(&out));
            share.relaxed.extend(self.relaxed(&out));
            share.paths.extend(path_bits(&out));
        }
        // Groups: their images' shares are the ranks', so that they come in order, too.
        let grouped = spaced(self.data.len(), options.groups);
        let mine: Vec<u32> = mine.iter().copied().filter(|&sample| grouped.contains(sample)).collect();
        let plan = mine.chunks((batch / VIEWS).max(1)).map(|part| BatchPlan::new(1, part.to_vec())).collect();
        for batch in self.loader(augment::crop(data), VIEWS, options.seed, plan)? {
            let batch = batch?;
            if !batch.samples.is_empty() {
                let changed = self.augment_all(&normalise.tensors(&batch).0, &black, &batch.samples, options);
                share.groups.extend(self.relaxed(&self.pass(&changed)));
            }
        }
        Ok(share)
    }

    fn loader(
        &self,
        transform: codinet_dataloader::Transform,
        views: usize,
        seed: u64,
        plan: Vec<BatchPlan>,
    ) -> Result<Loader> {
        let spec = data::loader_spec(self.config, transform, views);
        let spec = codinet_dataloader::LoaderSpec { seed, on_bad: OnBadSample::Replace, ..spec };
        Ok(Loader::new(self.data.clone(), spec, plan.into_iter())?)
    }

    /// Cropped views `[L·M, C, H, W]` → flipped both ways with probability ½ and turned, each by its own draw.
    fn augment_all(
        &self,
        views: &Tensor,
        black: &Tensor,
        samples: &[u32],
        options: CollectOptions,
    ) -> Tensor {
        let drawn = samples.iter().flat_map(|&sample| (0..VIEWS as u64).map(move |view| (sample, view)));
        let drawn: Vec<(u32, u64)> = drawn.collect();
        let flips: Vec<(bool, bool)> =
            drawn.iter().map(|&(sample, view)| augment::flips(options.seed, sample, view)).collect();
        let angles: Vec<f64> = drawn
            .iter()
            .map(|&(sample, view)| augment::angle(options.seed, sample, view + 1, options.rotation))
            .collect();
        let which = |flips: Vec<bool>| Tensor::from_slice(&flips).view([-1, 1, 1, 1]).to_device(self.device);
        let sideways = which(flips.iter().map(|flip| flip.0).collect());
        let over = which(flips.iter().map(|flip| flip.1).collect());
        let x = views.flip([3]).where_self(&sideways, views);
        let x = x.flip([2]).where_self(&over, &x);
        augment::rotate(&x, black, &angles)
    }

    fn pass(&self, images: &Tensor) -> NetOutput {
        no_grad(|| self.net.forward(images, Decisions::Hard, BnMode::Running))
    }

    fn relaxed(&self, out: &NetOutput) -> Vec<f32> {
        host(&relaxed_decisions(&out.gate_logits, self.config.model.router.temperature))
    }
}

impl Augmented {
    /// Takes in a batch: what the network made of the images, and of the changed ones.
    fn extend(&mut self, own: &NetOutput, changed: &NetOutput, temperature: f64) {
        self.predictions.extend(first(changed));
        self.paths.extend(path_bits(changed));
        let path_kl =
            divergence::of_paths(&(&own.gate_logits / temperature), &(&changed.gate_logits / temperature));
        let prediction_kl = divergence::of_predictions(&own.logits, &changed.logits);
        self.path_kl.extend(Vec::<f64>::try_from(path_kl).expect("numbers"));
        self.prediction_kl.extend(Vec::<f64>::try_from(prediction_kl).expect("numbers"));
    }
}

/// The batch of another view of the same samples.
fn next_of(loader: &mut Loader, batch: &Batch) -> Result<Batch> {
    let next = loader.next().expect("as many batches")?;
    if next.samples != batch.samples {
        let what = "some images can be used for evaluation, but not cropped at random; codinet-data verify lists them";
        return Err(Error::new(Exit::Data, what));
    }
    Ok(next)
}

fn first(out: &NetOutput) -> Vec<i64> {
    Vec::try_from(out.logits.argmax(1, false)).expect("classes")
}

fn path_bits(out: &NetOutput) -> Vec<u8> {
    Vec::try_from(hard_decisions(&out.gate_logits).to_kind(Kind::Uint8).to_device(Device::Cpu).view(-1))
        .expect("bits")
}

fn host(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().view(-1)).expect("numbers")
}

/// Which numbers of a set of `all` are among `most` that are evenly spaced.
#[derive(Clone, Copy, Debug)]
pub struct Spaced {
    stride: usize,
}

/// At most `most` of `all`, evenly spaced, the first among them; none where `most` is 0.
pub fn spaced(all: usize, most: usize) -> Spaced {
    Spaced { stride: if most == 0 { usize::MAX } else { all.div_ceil(most).max(1) } }
}

impl Spaced {
    /// Whether the set's image of this number is one of them.
    pub fn contains(self, sample: u32) -> bool {
        self.stride != usize::MAX && (sample as usize).is_multiple_of(self.stride)
    }
}

/// All ranks: every rank's values, in rank order.
fn gather<T: Element + Copy + Default>(world: &World, values: &[T]) -> Result<Vec<T>> {
    Ok(all_gather_lists(world, values)?.concat())
}

#[cfg(test)]
mod tests {
    use super::spaced;

    #[test]
    fn some_are_evenly_spaced() {
        let of = |all: usize, most: usize| -> Vec<u32> {
            (0..all as u32).filter(|&sample| spaced(all, most).contains(sample)).collect()
        };
        assert_eq!(of(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(of(10, 4), [0, 3, 6, 9]);
        assert_eq!(of(3, 100), [0, 1, 2]);
        assert!(of(3, 0).is_empty());
    }
}
