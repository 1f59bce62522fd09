//! The way to the device of a training step's inputs. On a GPU they travel a batch ahead of the step that uses them: into
//! pinned memory, and from there by a stream of their own while the device computes the step before. Nothing waits but
//! the step's stream, for an event. Both ends of a copy go back to libtorch's allocators by events too: the pinned one
//! after the copy, the device's after the step.
//!
//! The loader decodes into ordinary memory, of which the pinned one is a copy: pinned buffers of the loader's own would have
//! to be told apart, registered with CUDA and never freed early, where libtorch's allocator does all this already. The copy
//! is made by all of libtorch's threads while the host would otherwise wait for the device.
//!
//! On a CPU nothing goes ahead, and nothing is copied twice. What needs a GPU is untested: none has run it yet.

use crate::config::Config;
use crate::loss::Labels;
use crate::model::gumbel_noise;
use crate::sys::error::Result;
use crate::sys::native::{Event, Stream, pinned, pinned_tensor, used_here};
use crate::sys::span::{Phase, range};
use codinet_dataloader::{BadSample, Loader, MixTargets};
use std::time::Duration;
use tch::kind::Element;
use tch::{Device, Tensor};

/// What a training step takes from its batch, on the device.
#[derive(Debug)]
pub struct Upload {
    /// u8 `[L·M, H, W, C]`, mixed where the config asks for it.
    pub pixels: Tensor,
    /// Of L samples.
    pub labels: Labels,
    /// g₁ − g₀ of every view and gate, f32 `[L·M, n]`.
    pub noise: Tensor,
    /// M.
    pub views: usize,
    /// Samples that couldn't be served.
    pub bad: Vec<BadSample>,
    /// When all of it is there; none: now.
    there: Option<Event>,
}

/// A loader's batches as [`Upload`]s, in order.
pub struct Uploads<'a> {
    loader: Loader,
    config: &'a Config,
    device: Device,
    gates: usize,
    next: Turn,
    steps: u64,
    stream: Option<Stream>,
    /// Whether a batch goes ahead, and that batch; an error waits for its turn.
    goes_ahead: bool,
    ahead: Option<Result<Upload>>,
}

/// Which step a batch is for: mixing and noise depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// In its epoch, from 0.
    pub of_epoch: u64,
    /// In the run, from 0.
    pub of_run: u64,
}

impl<'a> Uploads<'a> {
    /// The batches of `loader`, the first of which is for `first`, epochs being of `steps` steps; for a network of `gates`
    /// gates. A run that is resumed after an epoch's last step stands at `steps` of it: the first batch is the next epoch's.
    pub fn new(
        loader: Loader,
        config: &'a Config,
        device: Device,
        gates: usize,
        first: Turn,
        steps: u64,
    ) -> Self {
        let next = Turn { of_epoch: first.of_epoch % steps, ..first };
        let stream = Stream::beside(device);
        let goes_ahead = stream.is_some();
        Self { loader, config, device, gates, next, steps, stream, goes_ahead, ahead: None }
    }

    /// Has a batch go ahead on a CPU too, which gains nothing there.
    #[cfg(test)]
    fn go_ahead(mut self) -> Self {
        self.goes_ahead = true;
        self
    }

    /// Once a step has been handed to the device: sends off the batch after it. Waits for the loader, not for the device.
    pub fn send_ahead(&mut self) {
        if self.goes_ahead && self.ahead.is_none() {
            self.ahead = self.upload();
        }
    }

    /// How long the loader has been waited for, in total.
    pub fn wait(&self) -> Duration {
        self.loader.stall_time()
    }

    fn upload(&mut self) -> Option<Result<Upload>> {
        let waiting = range(Phase::Loader);
        let batch = self.loader.next()?;
        drop(waiting);
        let mut batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let (config, device, turn) = (self.config, self.device, self.next);
        self.next = Turn { of_epoch: (turn.of_epoch + 1) % self.steps, of_run: turn.of_run + 1 };
        let (size, seed) = (config.data.image_size, config.run.seed);
        let MixTargets { labels: partners, lambda } =
            match config.data.mix.apply(&mut batch, size, seed, turn.of_epoch) {
                Ok(mixed) => mixed,
                Err(error) => return Some(Err(error.into())),
            };
        let noise = gumbel_noise(seed, turn.of_run, &batch.samples, batch.views, self.gates);
        let shape = [-1, size.into(), size.into(), config.data.channels.into()];
        let all = || {
            let partner = || (on_device(&partners, device), lambda);
            Upload {
                pixels: on_device(&batch.images, device).view(shape),
                labels: Labels {
                    own: on_device(&batch.labels, device),
                    partner: (lambda < 1.0).then(partner),
                },
                noise: match device {
                    Device::Cuda(_) => sent(&pinned_tensor(&noise), device),
                    _ => noise,
                },
                views: batch.views,
                bad: std::mem::take(&mut batch.bad),
                there: Event::record(device),
            }
        };
        let upload = match &mut self.stream {
            Some(stream) => stream.run(all),
            None => all(),
        };
        self.loader.recycle(batch);
        Some(Ok(upload))
    }
}

impl Iterator for Uploads<'_> {
    type Item = Result<Upload>;

    /// The next batch, which this thread's stream may use at once.
    fn next(&mut self) -> Option<Result<Upload>> {
        let upload = self.ahead.take().or_else(|| self.upload())?;
        if let Ok(Upload { pixels, labels, noise, there: Some(there), .. }) = &upload {
            there.block();
            let partner = labels.partner.as_ref().map(|(labels, _)| labels);
            [pixels, &labels.own, noise].into_iter().chain(partner).for_each(used_here);
        }
        Some(upload)
    }
}

/// `values` on `device`, `[values]`: to a GPU by pinned memory and this thread's stream, while the host goes on.
pub fn on_device<T: Element>(values: &[T], device: Device) -> Tensor {
    match device {
        Device::Cuda(_) => sent(&pinned(values), device),
        _ => Tensor::from_slice(values),
    }
}

/// A copy on its way.
fn sent(pinned: &Tensor, device: Device) -> Tensor {
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

    /// Uploads of two epochs of three steps of four samples, from step `from` on; sample 9 is broken.
    fn uploads_from<'a>(from: u64, folder: &Path, config: &'a Config, on_bad: OnBadSample) -> Uploads<'a> {
        let data = Arc::new(Dataset::open(&folder.to_string_lossy()).unwrap());
        let plan = (from..6).map(|step| {
            let first = 4 * (step % 3) as u32;
            BatchPlan::new(step / 3, (first..first + 4).collect())
        });
        let mut spec = data::spec(config, config.augmentation(), 2);
        (spec.on_bad, spec.threads) = (on_bad, 2);
        let first = Turn { of_epoch: from, of_run: 30 + from };
        Uploads::new(Loader::new(data, spec, plan).unwrap(), config, Device::Cpu, 5, first, 3)
    }

    fn uploads<'a>(folder: &Path, config: &'a Config, on_bad: OnBadSample) -> Uploads<'a> {
        uploads_from(0, folder, config, on_bad)
    }

    #[test]
    fn a_batch_that_goes_ahead_is_the_same_in_its_turn() {
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
        let (plain, mixed) = (load(&[]), load(&["data.mix.mixup_alpha=1".into()]));

        // A third batch is odd for want of sample 9, and cannot be mixed.
        for (config, batches) in [(&plain, 6), (&mixed, 2)] {
            let in_turn = uploads(folder.path(), config, OnBadSample::Replace).take(batches);
            let mut ahead = uploads(folder.path(), config, OnBadSample::Replace).go_ahead();
            for (step, expected) in in_turn.map(Result::unwrap).enumerate() {
                let found = ahead.next().unwrap().unwrap();
                ahead.send_ahead();
                assert_eq!(ahead.ahead.is_some(), step < 5);
                let samples = if step % 3 == 2 { 3 } else { 4 };
                assert_eq!(found.pixels.size(), [2 * samples, 28, 28, 1], "step {step}");
                assert_eq!(found.noise.size(), [2 * samples, 5]);
                assert!(found.pixels.equal(&expected.pixels) && found.noise.equal(&expected.noise));
                assert!(found.labels.own.equal(&expected.labels.own));
                match (found.labels.partner, expected.labels.partner) {
                    (Some(found), Some(expected)) => {
                        assert!(found.0.equal(&expected.0) && found.1 == expected.1)
                    }
                    (None, None) => assert_eq!(batches, 6),
                    _ => panic!("mixed or not"),
                }
                assert_eq!(found.bad, expected.bad);
                assert_eq!(found.bad.len(), usize::from(step % 3 == 2));
            }
        }

        // A run that stopped after its first epoch goes on as if it had not; only whole batches are mixed.
        let from_start = uploads(folder.path(), &mixed, OnBadSample::Replace);
        let mut resumed = uploads_from(3, folder.path(), &mixed, OnBadSample::Replace);
        let fourth = from_start.filter_map(Result::ok).nth(2).unwrap();
        assert!(resumed.next().unwrap().unwrap().pixels.equal(&fourth.pixels));

        // What is wrong with a batch is told in its turn, not when it goes ahead.
        let mut ahead = uploads(folder.path(), &plain, OnBadSample::Fail).go_ahead();
        for _ in 0..2 {
            assert!(ahead.next().unwrap().is_ok());
            ahead.send_ahead();
        }
        let error = ahead.next().unwrap().unwrap_err();
        assert!(error.to_string().contains("09"), "{error}");
    }
}
