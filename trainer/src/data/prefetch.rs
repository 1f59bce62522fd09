//! Batches on the device, one step ahead of their use.
//!
//! On a GPU a batch is copied to pinned memory, and from there on a stream of its own while the device computes the step
//! before. The step's stream waits for the copy by an event; the host waits for nothing. libtorch's caching allocators
//! reuse both ends of a copy by events too: the pinned end after the copy, the device's after the step.
//!
//! The loader decodes into ordinary memory, and the pinned memory is a copy of it. Pinned buffers of the loader's own would
//! have to be registered with CUDA and outlive every copy, which libtorch's allocator takes care of already. All of
//! libtorch's threads make the copy while the host would otherwise wait for the device.
//!
//! On a CPU nothing is prefetched, and nothing is copied twice. The GPU's part is untested: no GPU has run it yet.

use crate::config::{Config, Noise, Routing};
use crate::loss::Labels;
use crate::model::{drop_path_factors, gumbel_noise};
use crate::sys::error::Result;
use crate::sys::{Event, Stream, pin_memory, pin_slice, record_stream};
use crate::sys::{Phase, range};
use codinet_dataloader::{BadSample, Loader, MixTargets};
use std::time::Duration;
use tch::kind::Element;
use tch::{Device, Tensor};

/// The inputs of a training step on one rank, on its device.
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
    /// Samples that could not be read or decoded.
    pub bad: Vec<BadSample>,
    /// The end of the copies; `None` if they are over.
    ready: Option<Event>,
}

/// A loader's batches on the device, in order.
pub struct Prefetcher<'a> {
    loader: Loader,
    config: &'a Config,
    device: Device,
    /// Of [`DeviceBatch::noise`].
    columns: usize,
    next: StepIndex,
    steps_per_epoch: u64,
    stream: Option<Stream>,
    /// Whether batches are prefetched.
    enabled: bool,
    /// The prefetched batch; an error is reported when its turn comes.
    prefetched: Option<Result<DeviceBatch>>,
}

/// The step that a batch is for: mixing and noise depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepIndex {
    /// In its epoch, from 0.
    pub in_epoch: u64,
    /// In the run, from 0.
    pub global: u64,
}

impl<'a> Prefetcher<'a> {
    /// The batches of `loader`, from the one for the step `first` on, whose noise has `columns` columns. A run resumed after an
    /// epoch's last step has `first.in_epoch == steps_per_epoch`: its first batch is the next epoch's.
    pub fn new(
        loader: Loader,
        config: &'a Config,
        device: Device,
        columns: usize,
        first: StepIndex,
        steps_per_epoch: u64,
    ) -> Self {
        let next = StepIndex { in_epoch: first.in_epoch % steps_per_epoch, ..first };
        let stream = Stream::from_pool(device);
        let enabled = stream.is_some();
        Self { loader, config, device, columns, next, steps_per_epoch, stream, enabled, prefetched: None }
    }

    /// Enables prefetching on a CPU too, where it gains nothing.
    #[cfg(test)]
    fn enable(mut self) -> Self {
        self.enabled = true;
        self
    }

    /// Starts the next batch's way to the device, once a step's work is queued there. Waits for the loader, not for the
    /// device.
    pub fn prefetch(&mut self) {
        if self.enabled && self.prefetched.is_none() {
            self.prefetched = self.load();
        }
    }

    /// The total time spent waiting for the loader.
    pub fn stall_time(&self) -> Duration {
        self.loader.stall_time()
    }

    fn load(&mut self) -> Option<Result<DeviceBatch>> {
        let waiting = range(Phase::Loader);
        let batch = self.loader.next()?;
        drop(waiting);
        let mut batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let Self { config, device, next: step, .. } = *self;
        self.next =
            StepIndex { in_epoch: (step.in_epoch + 1) % self.steps_per_epoch, global: step.global + 1 };
        let size = config.data.image_size;
        let seed = config.run.seed;
        let MixTargets { labels: partners, lambda } =
            match config.data.mix.apply(&mut batch, size, seed, step.in_epoch) {
                Ok(targets) => targets,
                Err(error) => return Some(Err(error.into())),
            };
        let sharing = match config.model.routing {
            Routing::Random(_) => Noise::PerSample,
            Routing::Routers | Routing::Fixed(_) => config.model.router.noise,
        };
        let rate = config.model.drop_path;
        let noise = if rate > 0.0 {
            drop_path_factors(seed, step.global, &batch.samples, batch.views, self.columns, rate)
        } else {
            gumbel_noise(seed, step.global, &batch.samples, batch.views, self.columns, sharing)
        };
        let shape = [-1, size.into(), size.into(), config.data.channels.into()];
        let copy = || {
            let partner = || (copy_to_device(&partners, device), lambda);
            DeviceBatch {
                pixels: copy_to_device(&batch.images, device).view(shape),
                labels: Labels {
                    own: copy_to_device(&batch.labels, device),
                    partner: (lambda < 1.0).then(partner),
                },
                noise: match device {
                    Device::Cuda(_) => copy_pinned_to_device(&pin_memory(&noise), device),
                    _ => noise,
                },
                views: batch.views,
                bad: std::mem::take(&mut batch.bad),
                ready: Event::record(device),
            }
        };
        let device_batch = match &mut self.stream {
            Some(stream) => stream.run(copy),
            None => copy(),
        };
        self.loader.recycle(batch);
        Some(Ok(device_batch))
    }
}

impl Iterator for Prefetcher<'_> {
    type Item = Result<DeviceBatch>;

    /// The next batch, which this thread's stream may use at once.
    fn next(&mut self) -> Option<Result<DeviceBatch>> {
        let batch = self.prefetched.take().or_else(|| self.load())?;
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
    fn batches_from<'a>(from: u64, folder: &Path, config: &'a Config, on_bad: OnBadSample) -> Prefetcher<'a> {
        let data = Arc::new(Dataset::open(&folder.to_string_lossy()).unwrap());
        let plan = (from..6).map(|step| {
            let first = 4 * (step % 3) as u32;
            BatchPlan::new(step / 3, (first..first + 4).collect())
        });
        let mut spec = data::loader_spec(config, config.augmentation(), 2);
        spec.on_bad = on_bad;
        spec.threads = 2;
        let first = StepIndex { in_epoch: from, global: 30 + from };
        Prefetcher::new(Loader::new(data, spec, plan).unwrap(), config, Device::Cpu, 5, first, 3)
    }

    fn batches<'a>(folder: &Path, config: &'a Config, on_bad: OnBadSample) -> Prefetcher<'a> {
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
            let mut prefetcher = batches(folder.path(), config, OnBadSample::Replace).enable();
            for (step, expected) in direct.map(Result::unwrap).enumerate() {
                let found = prefetcher.next().unwrap().unwrap();
                prefetcher.prefetch();
                assert_eq!(prefetcher.prefetched.is_some(), step < 5);
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
        let mut prefetcher = batches(folder.path(), &plain, OnBadSample::Fail).enable();
        for _ in 0..2 {
            assert!(prefetcher.next().unwrap().is_ok());
            prefetcher.prefetch();
        }
        let error = prefetcher.next().unwrap().unwrap_err();
        assert!(error.to_string().contains("09"), "{error}");
    }
}
