//! The loader turns a plan of batches into batches of pixels. A pool of threads prepares them ahead.

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
use crate::transform::{Augmenter, Normalization, Normalizer, Renderer, Transform, View};

mod mix;
mod monitor;
mod order;
mod pool;
mod view_fit;

pub use mix::{Mix, MixTargets};
pub use monitor::{LoaderMonitor, Stall};
pub use order::{BatchPlan, DrawGroup, EpochOrder, Lanes, Replacements, apportion, eval_samples};
pub use view_fit::describe_view_fit;

use monitor::Wait;
use pool::{PendingBatch, SlotWorker, WorkerPool};

/// How a [`Loader`] transforms each sample, and with how many threads.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSpec {
    /// The transform from images to network inputs.
    pub transform: Transform,
    /// Width and height of a view in pixels, unless a batch's plan has others.
    pub image_size: u32,
    /// Colour channels of a view: 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// M, the views of each sample.
    pub views: usize,
    /// Makes batches of f32, (value/255 − mean)/std, instead of u8.
    pub normalization: Option<Normalization>,
    /// Limit of an image's pixels; a larger image is bad. See [`DEFAULT_MAX_PIXELS`](crate::DEFAULT_MAX_PIXELS).
    pub max_pixels: u64,
    /// Seed of the crops and flips.
    pub seed: u64,
    /// Decode threads.
    pub threads: usize,
    /// Batches prepared ahead. One more, the batch being consumed, is in memory as well.
    pub prefetch: usize,
    /// What happens at a sample that can't be read or decoded.
    pub on_bad: OnBadSample,
}

/// What happens at a sample that can't be read or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnBadSample {
    /// The loader ends with an error.
    #[default]
    Fail,
    /// Another sample replaces it: the next good one in the same slot of a later batch. Batches keep their size. An
    /// evaluation has no replacements and leaves the bad sample out.
    Replace,
}

/// A sample that couldn't be read or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSample {
    /// Dataset index.
    pub sample: u32,
    /// The shard that holds it.
    pub shard: PathBuf,
    /// Its key in the shard.
    pub key: String,
    /// What is wrong, and how to fix it.
    pub reason: String,
}

/// A batch of L samples with M views each.
#[derive(Debug)]
pub struct Batch {
    /// The epoch it was planned for.
    pub epoch: u64,
    /// Dataset indices, `[L]`, of the samples in the batch; replacements differ from the plan.
    pub samples: Vec<u32>,
    /// Class numbers, `[L]`.
    pub labels: Vec<i64>,
    /// Samples, planned or replacements, that couldn't be read or decoded.
    pub bad: Vec<BadSample>,
    /// M.
    pub views: usize,
    /// H and W.
    pub image_size: u32,
    /// Pixels, contiguous u8 `[L, M, H, W, C]`; with a [`Normalization`], the bytes of f32 in the processor's order.
    pub images: BytesMut,
}

/// Iterates over batches in the order of the plan: `Some(Ok(batch))` for each, then `None`.
///
/// The contents of a batch are a function of the dataset, the plan and the seed; they don't depend on the number of
/// threads or on timing. [`OnBadSample`] decides about bad samples. An `Err` comes in the place of its batch, and
/// nothing follows it. Dropping the loader stops its threads.
pub struct Loader {
    pool: Option<WorkerPool<SlotResult>>,
    plan: Box<dyn Iterator<Item = BatchPlan> + Send>,
    in_flight: VecDeque<Arc<PendingBatch<SlotResult>>>,
    prefetch: usize,
    views: usize,
    image_size: u32,
    /// Of a pixel of all views of a sample.
    pixel_bytes: usize,
    free_buffers: Vec<BytesMut>,
    stall_time: Duration,
    wait: Arc<Wait>,
}

impl Loader {
    /// Starts the threads, and the first batches.
    ///
    /// # Errors
    /// Settings out of bounds, or threads that can't be started.
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
        let value_bytes = if spec.normalization.is_some() { size_of::<f32>() } else { 1 };
        let pixel_bytes = channels.count() * value_bytes;
        let worker = |_| Worker::new(dataset.clone(), spec.clone(), channels);
        let workers = (0..spec.threads).map(worker).collect();
        let mut loader = Loader {
            pool: Some(WorkerPool::new(workers)?),
            plan: Box::new(plan.fuse()),
            in_flight: VecDeque::with_capacity(spec.prefetch),
            prefetch: spec.prefetch,
            views: spec.views,
            image_size: spec.image_size,
            pixel_bytes: spec.views * pixel_bytes,
            free_buffers: Vec::new(),
            stall_time: Duration::ZERO,
            wait: Arc::new(Wait::new(&dataset)),
        };
        loader.submit_ahead();
        Ok(loader)
    }

    /// Takes a consumed batch's memory back for a later batch. Batches that aren't recycled are allocated.
    pub fn recycle(&mut self, batch: Batch) {
        if self.free_buffers.len() <= self.prefetch {
            self.free_buffers.push(batch.images);
        }
    }

    /// The total time that [`next`](Iterator::next) has waited for batches.
    pub fn stall_time(&self) -> Duration {
        self.stall_time
    }

    /// Watches this loader from another thread.
    pub fn monitor(&self) -> LoaderMonitor {
        LoaderMonitor::new(&self.wait)
    }

    /// Submits batches until `prefetch` are in flight, or the plan ends.
    fn submit_ahead(&mut self) {
        let Some(pool) = &self.pool else { return };
        while self.in_flight.len() < self.prefetch {
            let Some(plan) = self.plan.next() else { return };
            let bytes = plan.samples.len() * self.sample_bytes(self.size_of(&plan));
            // An epoch's or an evaluation's last batch may be smaller, and so may its views.
            let free = self.free_buffers.pop().filter(|buffer| buffer.capacity() >= bytes);
            let mut buffer = free.unwrap_or_else(|| BytesMut::zeroed(bytes));
            buffer.resize(bytes, 0);
            self.in_flight.push_back(pool.submit_batch(plan, buffer));
        }
    }

    /// Width and height of a batch's views.
    fn size_of(&self, plan: &BatchPlan) -> u32 {
        plan.image_size.unwrap_or(self.image_size)
    }

    /// Bytes of a sample's views.
    fn sample_bytes(&self, image_size: u32) -> usize {
        image_size as usize * image_size as usize * self.pixel_bytes
    }

    /// Assembles a batch; slots without a sample are removed.
    fn assemble_batch(&self, plan: &BatchPlan, mut images: BytesMut, slots: Vec<SlotResult>) -> Batch {
        let image_size = self.size_of(plan);
        let sample_bytes = self.sample_bytes(image_size);
        let mut batch = Batch {
            epoch: plan.epoch,
            samples: Vec::with_capacity(slots.len()),
            labels: Vec::with_capacity(slots.len()),
            bad: Vec::new(),
            views: self.views,
            image_size,
            images: BytesMut::new(),
        };
        for (slot, SlotResult { sample, bad }) in slots.into_iter().enumerate() {
            batch.bad.extend(bad);
            let Some((sample, label)) = sample else { continue };
            let from = slot * sample_bytes;
            let to = batch.samples.len() * sample_bytes;
            if from != to {
                images.copy_within(from..from + sample_bytes, to);
            }
            batch.samples.push(sample);
            batch.labels.push(label);
        }
        images.truncate(batch.samples.len() * sample_bytes);
        batch.images = images;
        batch
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let front = self.in_flight.pop_front()?;
        self.submit_ahead();
        let start = Instant::now();
        self.wait.begin(&front);
        let finished = front.wait();
        self.stall_time += start.elapsed();
        if finished.is_err() {
            self.in_flight.clear();
            self.pool = None; // no batch follows an error
        }
        self.wait.end();
        Some(finished.map(|(images, slots)| self.assemble_batch(&front.plan, images, slots)))
    }
}

/// The result of filling one slot.
struct SlotResult {
    /// The sample and its label; none where the sample was bad and had no replacement.
    sample: Option<(u32, i64)>,
    bad: Vec<BadSample>,
}

/// One decode thread's decoder and buffers.
struct Worker {
    dataset: Arc<Dataset>,
    spec: LoaderSpec,
    channels: Channels,
    decoder: Decoder,
    renderer: Renderer,
    augmenter: Augmenter,
    normalizer: Option<Normalizer>,
    /// A view before it becomes floats.
    view: Vec<u8>,
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    views: Vec<View>,
    regions: Vec<Region>,
    /// Regions that are decoded one at a time, and for each view the number of its group.
    groups: Vec<Region>,
    group_of: Vec<usize>,
}

impl Worker {
    fn new(dataset: Arc<Dataset>, spec: LoaderSpec, channels: Channels) -> Worker {
        let max_pixels = spec.max_pixels;
        let normalizer = spec.normalization.as_ref().map(|factors| Normalizer::new(factors, channels));
        Worker {
            dataset,
            spec,
            channels,
            decoder: Decoder::with_max_pixels(max_pixels),
            renderer: Renderer::new(),
            augmenter: Augmenter::new(),
            normalizer,
            view: Vec::new(),
            encoded: Vec::new(),
            pixels: Vec::new(),
            views: Vec::new(),
            regions: Vec::new(),
            groups: Vec::new(),
            group_of: Vec::new(),
        }
    }

    /// Decodes a sample of the batch into `slot_buf` and returns its label.
    fn decode_sample(
        &mut self,
        plan: &BatchPlan,
        sample: u32,
        repeat: u32,
        slot_buf: &mut [u8],
    ) -> Result<i64> {
        let dataset = self.dataset.clone();
        let info = dataset.read(sample as usize, &mut self.encoded)?;
        self.render_views(plan, sample, repeat, slot_buf)
            .map_err(|bad| bad.in_sample(info.shard, info.key))?;
        Ok(info.label.into())
    }

    /// Renders all views of the encoded image, [M, H, W, C].
    fn render_views(
        &mut self,
        plan: &BatchPlan,
        sample: u32,
        repeat: u32,
        slot_buf: &mut [u8],
    ) -> Result<(), BadImage> {
        let LoaderSpec { transform, views, seed, .. } = &self.spec;
        let image_size = plan.image_size.unwrap_or(self.spec.image_size);
        let view_bytes = slot_buf.len() / *views;
        let header = self.decoder.header(&self.encoded)?;
        // Every view is drawn before the decode, so that only the regions of the views are decoded.
        self.views.clear();
        let first = u64::from(repeat) * *views as u64;
        for view in first..first + *views as u64 {
            let mut rng = random::stream(Domain::View, *seed, plan.epoch, sample.into(), view);
            self.views.push(transform.draw_view(header.width, header.height, image_size, &mut rng)?);
        }
        self.regions.clear();
        self.regions.extend(self.views.iter().map(|view| view.region));
        self.decoder.group_regions(&header, &self.regions, &mut self.groups, &mut self.group_of);
        for (group, &region) in self.groups.iter().enumerate() {
            let shown = self.decoder.decode_region(
                &self.encoded,
                &header,
                self.channels,
                region,
                &mut self.pixels,
            )?;
            let view_bufs = slot_buf.chunks_exact_mut(view_bytes);
            for ((view, out), _) in
                self.views.iter().zip(view_bufs).zip(&self.group_of).filter(|(_, of)| **of == group)
            {
                let Some(normalizer) = &self.normalizer else {
                    self.renderer.render(&self.pixels, shown, self.channels, view, image_size, out)?;
                    self.augmenter.apply(&view.ops, out, image_size, self.channels);
                    continue;
                };
                self.view.resize(view_bytes / size_of::<f32>(), 0);
                // Without operations, which see the mirrored view, the flip takes no pass of its own.
                let flips_last = view.flip && view.ops.is_empty();
                let View { region, scaled, corner, flip, .. } = *view;
                let drawn = View { region, scaled, corner, flip: flip && !flips_last, ops: Vec::new() };
                self.renderer.render(
                    &self.pixels,
                    shown,
                    self.channels,
                    &drawn,
                    image_size,
                    &mut self.view,
                )?;
                self.augmenter.apply(&view.ops, &mut self.view, image_size, self.channels);
                normalizer.normalize(&self.view, image_size as usize, flips_last, out);
            }
        }
        Ok(())
    }
}

impl SlotWorker for Worker {
    type Output = SlotResult;

    /// Fills a slot with all views of its sample, [M, H, W, C], or of the first good replacement.
    fn fill_slot(&mut self, plan: &BatchPlan, slot: usize, slot_buf: &mut [u8]) -> Result<SlotResult> {
        let mut bad = Vec::new();
        let mut sample = plan.samples[slot];
        let mut repeat = plan.repeat(slot);
        loop {
            let reason = match self.decode_sample(plan, sample, repeat, slot_buf) {
                Ok(label) => return Ok(SlotResult { sample: Some((sample, label)), bad }),
                Err(error) if self.spec.on_bad == OnBadSample::Fail => return Err(error),
                Err(Error::Undecodable { reason, .. }) => reason,
                Err(error) => error.to_string(),
            };
            let info = self.dataset.sample_info(sample as usize);
            let shard = info.map_or_else(PathBuf::new, |info| info.shard.to_owned());
            let key = info.map_or_else(String::new, |info| info.key.to_owned());
            bad.push(BadSample { sample, shard, key, reason });
            sample = match &plan.replacements {
                None => return Ok(SlotResult { sample: None, bad }),
                Some(replacements) if bad.len() < Replacements::MAX_TRIES => {
                    repeat = replacements.repeat(slot, bad.len());
                    replacements.pick(slot, bad.len())
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
