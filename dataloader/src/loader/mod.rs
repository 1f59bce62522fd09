//! The loader: from a plan of batches to batches of pixels, prepared ahead by a pool of threads.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::decode::{Channels, Decoder};
use crate::error::{BadImage, Error, Result};
use crate::random::{self, Domain};
use crate::region::Region;
use crate::transform::{Augmenter, Renderer, Transform, View};

mod mix;
mod order;
mod pool;

pub use mix::{Mix, MixTargets};
pub use order::{BatchPlan, EpochOrder, Lanes, Replacements, eval_samples};

use pool::{Fill, Pending, Pool};

/// What a [`Loader`] makes of each sample, and with how many hands.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSpec {
    /// How images become network inputs.
    pub transform: Transform,
    /// Width and height of a view in pixels.
    pub image_size: u32,
    /// Colour channels of a view: 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// M, the views of each sample.
    pub views: usize,
    /// Seed of the crops and flips.
    pub seed: u64,
    /// Decode threads.
    pub threads: usize,
    /// Batches prepared ahead of the one being consumed. Together with that one, this many are in memory.
    pub prefetch: usize,
    /// What becomes of samples that can't be read or decoded.
    pub on_bad: OnBadSample,
}

/// What becomes of a sample that can't be read or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnBadSample {
    /// It is an error.
    #[default]
    Fail,
    /// Another sample, the next good one that the same place of a batch would have had, is served instead: batches stay as
    /// large as they are. An evaluation, which has none to spare, leaves the bad one out.
    Replace,
}

/// A sample that couldn't be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSample {
    /// Dataset index.
    pub sample: u32,
    /// The shard that holds it.
    pub shard: PathBuf,
    /// Its key in the shard.
    pub key: String,
    /// What is wrong, and how to mend it.
    pub reason: String,
}

/// A batch of L samples with M views each.
#[derive(Debug)]
pub struct Batch {
    /// The epoch it was planned for.
    pub epoch: u64,
    /// Dataset indices, `[L]`: of what is there, not of what was planned.
    pub samples: Vec<u32>,
    /// Class numbers, `[L]`.
    pub labels: Vec<i64>,
    /// Samples that were planned, or their replacements, and couldn't be served.
    pub bad: Vec<BadSample>,
    /// M.
    pub views: usize,
    /// Pixels, contiguous u8 `[L, M, H, W, C]`.
    pub images: BytesMut,
}

/// Serves batches in the order of the plan: `Some(Ok(batch))` each, then `None`.
///
/// What is in a batch is a function of the dataset, the plan and the seed; the number of threads and timing have
/// no part in it. What can't be used is handled by [`OnBadSample`]; an `Err`, in the place of its batch, is the last thing
/// served.
/// Dropping the loader stops its threads.
pub struct Loader {
    pool: Option<Pool<Served>>,
    plan: Box<dyn Iterator<Item = BatchPlan> + Send>,
    in_flight: VecDeque<Arc<Pending<Served>>>,
    prefetch: usize,
    views: usize,
    sample_bytes: usize,
    spare: Vec<BytesMut>,
    waited: Duration,
}

impl Loader {
    /// Starts the threads, and with them the first batches.
    ///
    /// # Errors
    /// Settings that can't be right, or threads that can't be started.
    pub fn new(
        dataset: Arc<Dataset>,
        spec: LoaderSpec,
        plan: impl Iterator<Item = BatchPlan> + Send + 'static,
    ) -> Result<Loader> {
        spec.transform.check(spec.image_size)?;
        let channels = Channels::new(spec.channels)?;
        for (name, value) in [("views", spec.views), ("threads", spec.threads), ("prefetch", spec.prefetch)] {
            if value == 0 {
                return Err(Error::InvalidArgument(format!("{name} must be at least 1, not 0")));
            }
        }
        let view_bytes = spec.image_size as usize * spec.image_size as usize * channels.count();
        let worker = |_| Worker::new(dataset.clone(), spec.clone(), channels, view_bytes);
        let workers = (0..spec.threads).map(worker).collect();
        let mut loader = Loader {
            pool: Some(Pool::new(workers)?),
            plan: Box::new(plan.fuse()),
            in_flight: VecDeque::with_capacity(spec.prefetch),
            prefetch: spec.prefetch,
            views: spec.views,
            sample_bytes: spec.views * view_bytes,
            spare: Vec::new(),
            waited: Duration::ZERO,
        };
        loader.top_up();
        Ok(loader)
    }

    /// Gives a consumed batch's memory back, for a later batch. Without it each batch allocates its own.
    pub fn recycle(&mut self, batch: Batch) {
        if self.spare.len() <= self.prefetch {
            self.spare.push(batch.images);
        }
    }

    /// How long [`next`](Iterator::next) has waited for batches, in total: time in which the consumer was
    /// starved of data.
    pub fn stall_time(&self) -> Duration {
        self.waited
    }

    /// Submits batches until `prefetch` are in flight, or the plan ends.
    fn top_up(&mut self) {
        let Some(pool) = &self.pool else { return };
        while self.in_flight.len() < self.prefetch {
            let Some(plan) = self.plan.next() else { return };
            let bytes = plan.samples.len() * self.sample_bytes;
            // Only a buffer of the same size will do: all batches but an evaluation's last have one size.
            let spare = self.spare.pop().filter(|buffer| buffer.len() == bytes);
            let buffer = spare.unwrap_or_else(|| BytesMut::zeroed(bytes));
            self.in_flight.push_back(pool.submit(plan, buffer));
        }
    }

    /// Puts a batch together; slots that stayed empty are closed up.
    fn batch(&self, epoch: u64, mut images: BytesMut, served: Vec<Served>) -> Batch {
        let mut batch = Batch {
            epoch,
            samples: Vec::with_capacity(served.len()),
            labels: Vec::with_capacity(served.len()),
            bad: Vec::new(),
            views: self.views,
            images: BytesMut::new(),
        };
        for (slot, Served { sample, bad }) in served.into_iter().enumerate() {
            batch.bad.extend(bad);
            let Some((sample, label)) = sample else { continue };
            let (from, to) = (slot * self.sample_bytes, batch.samples.len() * self.sample_bytes);
            if from != to {
                images.copy_within(from..from + self.sample_bytes, to);
            }
            batch.samples.push(sample);
            batch.labels.push(label);
        }
        images.truncate(batch.samples.len() * self.sample_bytes);
        batch.images = images;
        batch
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let front = self.in_flight.pop_front()?;
        self.top_up();
        let start = Instant::now();
        let done = front.wait();
        self.waited += start.elapsed();
        if done.is_err() {
            self.in_flight.clear();
            self.pool = None; // no batch is served after an error
        }
        Some(done.map(|(images, served)| self.batch(front.plan.epoch, images, served)))
    }
}

/// What a slot holds.
struct Served {
    /// The sample and its label; none where it and all its replacements were bad.
    sample: Option<(u32, i64)>,
    bad: Vec<BadSample>,
}

/// One decode thread's tools and buffers.
struct Worker {
    dataset: Arc<Dataset>,
    spec: LoaderSpec,
    channels: Channels,
    view_bytes: usize,
    decoder: Decoder,
    renderer: Renderer,
    augmenter: Augmenter,
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    views: Vec<View>,
    regions: Vec<Region>,
    /// What is decoded at a time, and where among them each view's region is.
    groups: Vec<Region>,
    group_of: Vec<usize>,
}

impl Worker {
    fn new(dataset: Arc<Dataset>, spec: LoaderSpec, channels: Channels, view_bytes: usize) -> Worker {
        Worker {
            dataset,
            spec,
            channels,
            view_bytes,
            decoder: Decoder::new(),
            renderer: Renderer::new(),
            augmenter: Augmenter::new(),
            encoded: Vec::new(),
            pixels: Vec::new(),
            views: Vec::new(),
            regions: Vec::new(),
            groups: Vec::new(),
            group_of: Vec::new(),
        }
    }

    /// Fills `piece` and returns the label.
    fn serve(&mut self, epoch: u64, sample: u32, piece: &mut [u8]) -> Result<i64> {
        let dataset = self.dataset.clone();
        let info = dataset.read(sample as usize, &mut self.encoded)?;
        self.render(epoch, sample, piece).map_err(|bad| bad.at(info.shard, info.key))?;
        Ok(info.label.into())
    }

    /// All views of the encoded image, [M, H, W, C].
    fn render(&mut self, epoch: u64, sample: u32, piece: &mut [u8]) -> Result<(), BadImage> {
        let LoaderSpec { transform, image_size, views, seed, .. } = &self.spec;
        let header = self.decoder.header(&self.encoded)?;
        // Every view is drawn before the decode, which is of the parts that they show.
        self.views.clear();
        for view in 0..*views as u64 {
            let mut rng = random::stream(Domain::View, *seed, epoch, sample.into(), view);
            self.views.push(transform.draw(header.width, header.height, *image_size, &mut rng)?);
        }
        self.regions.clear();
        self.regions.extend(self.views.iter().map(|view| view.region));
        self.decoder.share(&header, &self.regions, &mut self.groups, &mut self.group_of);
        for (group, &region) in self.groups.iter().enumerate() {
            let shown = self.decoder.decode_region(
                &self.encoded,
                &header,
                self.channels,
                region,
                &mut self.pixels,
            )?;
            let pieces = piece.chunks_exact_mut(self.view_bytes);
            for ((view, out), _) in
                self.views.iter().zip(pieces).zip(&self.group_of).filter(|(_, of)| **of == group)
            {
                self.renderer.render(&self.pixels, shown, self.channels, view, *image_size, out)?;
                self.augmenter.apply(&view.ops, out, *image_size, self.channels);
            }
        }
        Ok(())
    }
}

impl Fill for Worker {
    type Done = Served;

    /// All views of a sample, [M, H, W, C], from one read.
    fn fill(&mut self, plan: &BatchPlan, slot: usize, piece: &mut [u8]) -> Result<Served> {
        let mut bad = Vec::new();
        let mut sample = plan.samples[slot];
        loop {
            let reason = match self.serve(plan.epoch, sample, piece) {
                Ok(label) => return Ok(Served { sample: Some((sample, label)), bad }),
                Err(error) if self.spec.on_bad == OnBadSample::Fail => return Err(error),
                Err(Error::Undecodable { reason, .. }) => reason,
                Err(error) => error.to_string(),
            };
            let place = self.dataset.sample_info(sample as usize);
            let (shard, key) =
                place.map_or_else(Default::default, |place| (place.shard.to_owned(), place.key.to_owned()));
            bad.push(BadSample { sample, shard, key, reason });
            sample = match &plan.replacements {
                None => return Ok(Served { sample: None, bad }),
                Some(replacements) if bad.len() < Replacements::MAX_TRIES => {
                    replacements.sample(slot, bad.len())
                }
                Some(_) => {
                    let count = bad.len();
                    let BadSample { shard, key, reason, .. } = bad.swap_remove(count - 1);
                    let reason = format!(
                        "{count} samples one after another can't be used, this one the last: {reason}"
                    );
                    return Err(Error::Undecodable { shard, key, reason });
                }
            }
        }
    }
}
