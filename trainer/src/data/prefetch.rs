//! Batches on the device, one step ahead of their use.
//!
//! On a GPU a thread with a stream of its own takes a batch from the loader, mixes it, draws its noise, and copies it to pinned
//! memory and from there to the device, while the device computes the step before. The step's stream waits for the copy by
//! an event; the host waits for nothing. libtorch's caching allocators reuse both ends of a copy by events too: the pinned
//! end after the copy, the device's after the step.
//!
//! The loader decodes into ordinary memory, and the pinned memory is a copy of it. Pinned buffers of the loader's own would
//! have to be registered with CUDA and outlive every copy, which libtorch's allocator takes care of already.
//!
//! On a CPU nothing is prefetched, and nothing is copied twice. The GPU's part is untested: no GPU has run it yet.

use super::ahead::Ahead;
use crate::config::{Config, Noise, Routing};
use crate::loss::Labels;
use crate::model::{drop_path_factors, gumbel_noise};
use crate::sys::error::Result;
use crate::sys::{Event, pin_memory, pin_slice, record_stream};
use crate::sys::{Phase, range};
use codinet_dataloader::{BadSample, Batch, Loader, MixTargets};
use std::time::Duration;
use tch::kind::Element;
use tch::{Device, Tensor};

/// The inputs of a step on one rank, on its device.
#[derive(Debug)]
pub struct DeviceBatch {
    /// u8 `[L·M, H, W, C]`, mixed if the config asks for it.
    pub pixels: Tensor,
    /// Of L samples.
    pub labels: Labels,
    /// g₁ − g₀ of every view and gate, f32 `[L·M, n]`. With stochastic depth what multiplies the branch of every view and block,
    /// f32 `[L·M, blocks]`.
    pub noise: Tensor,
    /// M.
    pub views: usize,
    /// The samples' numbers in their data set, `[L]`.
    pub samples: Vec<u32>,
    /// Their class numbers on the host, `[L]`.
    pub classes: Vec<i64>,
    /// Samples that could not be read or decoded.
    pub bad: Vec<BadSample>,
    /// The end of the copies; `None` if they are over.
    ready: Option<Event>,
}

/// What a batch is given on its way to the device.
struct Additions {
    /// Labels after mixing.
    mix: MixTargets,
    /// [`DeviceBatch::noise`], on the host.
    noise: Tensor,
}

/// Mixes a batch and draws its noise.
type Add = dyn FnMut(&mut Batch) -> Result<Additions> + Send;

/// A loader's batches, copied to the device in order.
pub struct Uploads {
    loader: Loader,
    device: Device,
    channels: i64,
    add: Box<Add>,
}

impl Uploads {
    /// Starts the copies.
    fn upload(&self, batch: &mut Batch, additions: Additions) -> DeviceBatch {
        let Self { device, channels, .. } = *self;
        let size = i64::from(batch.image_size);
        let Additions { mix: MixTargets { labels: partners, lambda }, noise } = additions;
        let partner = || (copy_to_device(&partners, device), lambda);
        DeviceBatch {
            pixels: copy_to_device(&batch.images, device).view([-1, size, size, channels]),
            labels: Labels {
                own: copy_to_device(&batch.labels, device),
                partner: (lambda < 1.0).then(partner),
            },
            noise: match device {
                Device::Cuda(_) => copy_pinned_to_device(&pin_memory(&noise), device),
                _ => noise,
            },
            views: batch.views,
            samples: batch.samples.clone(),
            classes: batch.labels.clone(),
            bad: std::mem::take(&mut batch.bad),
            ready: Event::record(device),
        }
    }
}

impl Iterator for Uploads {
    type Item = Result<DeviceBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = match self.loader.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let uploaded = (self.add)(&mut batch).map(|additions| self.upload(&mut batch, additions));
        self.loader.recycle(batch);
        Some(uploaded)
    }
}

/// A loader's batches on the device, in order. An error is reported in its batch's turn.
pub struct Prefetcher(Ahead<Uploads>);

/// The step that a batch is for: mixing and noise depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepIndex {
    /// In its epoch, from 0.
    pub in_epoch: u64,
    /// In the run, from 0.
    pub global: u64,
}

impl Uploads {
    /// The batches of training from the one for the step `first` on, whose noise has `columns` columns. A run resumed after an
    /// epoch's last step has `first.in_epoch == steps_per_epoch`: its first batch is the next epoch's.
    pub fn of_training(
        loader: Loader,
        config: &Config,
        device: Device,
        columns: usize,
        first: StepIndex,
        steps_per_epoch: u64,
    ) -> Self {
        let mut next = StepIndex { in_epoch: first.in_epoch % steps_per_epoch, ..first };
        let seed = config.run.seed;
        let mix = config.data.mix.clone();
        let rate = config.model.drop_path;
        let sharing = match config.model.routing {
            Routing::Random(_) => Noise::PerSample,
            Routing::Routers | Routing::Fixed(_) => config.model.router.noise,
        };
        let add = move |batch: &mut Batch| {
            let step = next;
            next = StepIndex { in_epoch: (step.in_epoch + 1) % steps_per_epoch, global: step.global + 1 };
            let mix = mix.apply(batch, seed, step.in_epoch)?;
            let noise = if rate > 0.0 {
                drop_path_factors(seed, step.global, &batch.samples, batch.views, columns, rate)
            } else {
                gumbel_noise(seed, step.global, &batch.samples, batch.views, columns, sharing)
            };
            Ok(Additions { mix, noise })
        };
        Self { loader, device, channels: config.data.channels.into(), add: Box::new(add) }
    }

    /// Unmixed batches, with the noise that `noise` returns for their samples.
    pub fn of_evaluation(
        loader: Loader,
        config: &Config,
        device: Device,
        mut noise: impl FnMut(&[u32]) -> Tensor + Send + 'static,
    ) -> Self {
        let add = move |batch: &mut Batch| {
            let mix = MixTargets { labels: Vec::new(), lambda: 1.0 };
            Ok(Additions { mix, noise: noise(&batch.samples) })
        };
        Self { loader, device, channels: config.data.channels.into(), add: Box::new(add) }
    }
}

impl Prefetcher {
    /// These batches.
    pub fn new(uploads: Uploads) -> Self {
        let device = uploads.device;
        Self(Ahead::new(uploads, device))
    }

    /// The total time spent waiting for the loader, on a GPU for what its thread does with a batch too.
    pub fn stall_time(&self) -> Duration {
        self.0.waited(|uploads| uploads.loader.stall_time())
    }
}

impl Iterator for Prefetcher {
    type Item = Result<DeviceBatch>;

    /// The next batch, which this thread's stream may use at once.
    fn next(&mut self) -> Option<Result<DeviceBatch>> {
        let waiting = range(Phase::Loader);
        let batch = self.0.next()?;
        drop(waiting);
        if let Ok(DeviceBatch { pixels, labels, noise, ready: Some(ready), .. }) = &batch {
            ready.block();
            let partner = labels.partner.as_ref().map(|(labels, _)| labels);
            [pixels, &labels.own, noise].into_iter().chain(partner).for_each(record_stream);
        }
        Some(batch)
    }
}

/// `values` on `device`, `[values]`; to a GPU through pinned memory on this thread's stream, without waiting.
pub fn copy_to_device<T: Element>(values: &[T], device: Device) -> Tensor {
    match device {
        Device::Cuda(_) => copy_pinned_to_device(&pin_slice(values), device),
        _ => Tensor::from_slice(values),
    }
}

/// Starts a copy.
fn copy_pinned_to_device(pinned: &Tensor, device: Device) -> Tensor {
    pinned.to_device_(device, pinned.kind(), true, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::data;
    use codinet_dataloader::encode::{Encoder, Encoding};
    use codinet_dataloader::{BatchPlan, Channels, Dataset, OnBadSample, ShardWriter};
    use std::path::Path;
    use std::sync::Arc;

    /// Two epochs of three steps of four samples, from step `from` on; sample 9 is broken.
    fn batches_from(from: u64, folder: &Path, config: &Config, on_bad: OnBadSample) -> Uploads {
        let data = Arc::new(Dataset::open(&folder.to_string_lossy()).unwrap());
        let plan = (from..6).map(|step| {
            let first = 4 * (step % 3) as u32;
            BatchPlan::new(step / 3, (first..first + 4).collect())
        });
        let mut spec = data::loader_spec(config, config.augmentation(), config.data.image_size, 2);
        spec.on_bad = on_bad;
        spec.threads = 2;
        let first = StepIndex { in_epoch: from, global: 30 + from };
        Uploads::of_training(Loader::new(data, spec, plan).unwrap(), config, Device::Cpu, 5, first, 3)
    }

    fn batches(folder: &Path, config: &Config, on_bad: OnBadSample) -> Uploads {
        batches_from(0, folder, config, on_bad)
    }

    #[test]
    fn prefetched_batch_equals_direct() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "grey", 12).unwrap();
        let mut encoder = Encoder::new(Encoding::Png).unwrap();
        for sample in 0..12u32 {
            let pixels: Vec<u8> = (0..28 * 28).map(|at| (at * (sample + 3) % 251) as u8).collect();
            let mut png = encoder.encode(&pixels, 28, 28, Channels::Grey).unwrap();
            if sample == 9 {
                png.truncate(40);
            }
            writer.write(&format!("{sample:02}"), "png", &png, sample % 3).unwrap();
        }
        writer.finish().unwrap();
        let load = |set: &[String]| config::load("fashion_r20.yaml", set).unwrap();
        let plain = load(&[]);
        let mixed = load(&["data.mix.mixup_alpha=1".into()]);

        // The third batch lacks sample 9: it is odd and cannot be mixed.
        for (config, steps) in [(&plain, 6), (&mixed, 2)] {
            let direct = batches(folder.path(), config, OnBadSample::Replace).take(steps);
            let uploads = batches(folder.path(), config, OnBadSample::Replace);
            let mut prefetcher = Ahead::on_thread(uploads, Device::Cpu);
            for (step, expected) in direct.map(Result::unwrap).enumerate() {
                let found = prefetcher.next().unwrap().unwrap();
                let samples = if step % 3 == 2 { 3 } else { 4 };
                assert_eq!(found.pixels.size(), [2 * samples, 28, 28, 1], "step {step}");
                assert_eq!(found.noise.size(), [2 * samples, 5]);
                assert!(found.pixels.equal(&expected.pixels) && found.noise.equal(&expected.noise));
                assert!(found.labels.own.equal(&expected.labels.own));
                match (found.labels.partner, expected.labels.partner) {
                    (Some(found), Some(expected)) => {
                        assert!(found.0.equal(&expected.0) && found.1 == expected.1)
                    }
                    (None, None) => assert_eq!(steps, 6),
                    _ => panic!("mixed or not"),
                }
                assert_eq!(found.bad, expected.bad);
                assert_eq!(found.bad.len(), usize::from(step % 3 == 2));
            }
        }

        // A run that stopped after its first epoch continues as if it had not. Only whole batches are mixed.
        let from_start = batches(folder.path(), &mixed, OnBadSample::Replace);
        let mut resumed = batches_from(3, folder.path(), &mixed, OnBadSample::Replace);
        let fourth = from_start.filter_map(Result::ok).nth(2).unwrap();
        assert!(resumed.next().unwrap().unwrap().pixels.equal(&fourth.pixels));

        // An error in a batch is reported in its turn, not when it is prefetched.
        let mut prefetcher = Ahead::on_thread(batches(folder.path(), &plain, OnBadSample::Fail), Device::Cpu);
        assert!(prefetcher.next().unwrap().is_ok() && prefetcher.next().unwrap().is_ok());
        let error = prefetcher.next().unwrap().unwrap_err();
        assert!(error.to_string().contains("09"), "{error}");
    }
}
