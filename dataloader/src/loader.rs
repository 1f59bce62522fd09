//! The loader: from a plan of batches to batches of pixels, prepared ahead by a pool of threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::dataset::Dataset;
use crate::decode::{Channels, Decoder};
use crate::error::{Error, Result};
use crate::pool::{Fill, Pending, Pool};
use crate::random::{self, Domain};
use crate::transform::{Augmenter, Renderer, Transform};

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
}

/// The samples of one batch, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    /// The epoch, which the crops depend on.
    pub epoch: u64,
    /// Dataset indices.
    pub samples: Vec<u32>,
}

/// A batch of L samples with M views each.
#[derive(Debug)]
pub struct Batch {
    /// The epoch it was planned for.
    pub epoch: u64,
    /// Dataset indices, `[L]`.
    pub samples: Vec<u32>,
    /// Class numbers, `[L]`.
    pub labels: Vec<i64>,
    /// M.
    pub views: usize,
    /// Pixels, contiguous u8 `[L, M, H, W, C]`.
    pub images: BytesMut,
}

/// Serves batches in the order of the plan: `Some(Ok(batch))` each, then `None`.
///
/// What is in a batch is a function of the dataset, the plan and the seed; the number of threads and timing have
/// no part in it. A sample that can't be used is an `Err` in the place of its batch, the last thing served.
/// Dropping the loader stops its threads.
pub struct Loader {
    pool: Option<Pool>,
    plan: Box<dyn Iterator<Item = BatchPlan> + Send>,
    in_flight: VecDeque<Arc<Pending>>,
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
        let workers: Result<Vec<Worker>> = (0..spec.threads)
            .map(|_| Worker::new(dataset.clone(), spec.clone(), channels, view_bytes))
            .collect();
        let mut loader = Loader {
            pool: Some(Pool::new(workers?)?),
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
    pub fn wait(&self) -> Duration {
        self.waited
    }

    /// Submits batches until `prefetch` are in flight, or the plan ends.
    fn top_up(&mut self) {
        let Some(pool) = &self.pool else { return };
        while self.in_flight.len() < self.prefetch {
            let Some(BatchPlan { epoch, samples }) = self.plan.next() else { return };
            let bytes = samples.len() * self.sample_bytes;
            // Only a buffer of the same size will do: all batches but an evaluation's last have one size.
            let spare = self.spare.pop().filter(|buffer| buffer.len() == bytes);
            let buffer = spare.unwrap_or_else(|| BytesMut::zeroed(bytes));
            self.in_flight.push_back(pool.submit(epoch, samples, buffer));
        }
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
        Some(done.map(|(images, labels)| Batch {
            epoch: front.epoch,
            samples: front.samples.clone(),
            labels,
            views: self.views,
            images,
        }))
    }
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
}

impl Worker {
    fn new(dataset: Arc<Dataset>, spec: LoaderSpec, channels: Channels, view_bytes: usize) -> Result<Worker> {
        let (decoder, renderer, augmenter) = (Decoder::new()?, Renderer::new(), Augmenter::new());
        let (encoded, pixels) = (Vec::new(), Vec::new());
        Ok(Worker { dataset, spec, channels, view_bytes, decoder, renderer, augmenter, encoded, pixels })
    }
}

impl Fill for Worker {
    /// All views of a sample, [M, H, W, C], from one read and one decode.
    fn fill(&mut self, epoch: u64, sample: u32, piece: &mut [u8]) -> Result<i64> {
        let Worker { dataset, spec, channels, decoder, renderer, augmenter, encoded, pixels, .. } = self;
        let info = dataset.read(sample as usize, encoded)?;
        let mut render = || {
            let header = decoder.header(encoded)?;
            // Every view is drawn before the decode, which thus could be of the parts they show only.
            let draw = |view| {
                let mut rng = random::stream(Domain::View, spec.seed, epoch, sample.into(), view);
                spec.transform.draw(header.width, header.height, spec.image_size, &mut rng)
            };
            let views: Vec<_> = (0..spec.views as u64).map(draw).collect::<Result<_, _>>()?;
            decoder.decode(encoded, &header, *channels, pixels)?;
            for (view, out) in views.iter().zip(piece.chunks_exact_mut(self.view_bytes)) {
                renderer.render(pixels, header.width, *channels, view, spec.image_size, out)?;
                augmenter.apply(&view.ops, out, spec.image_size, *channels);
            }
            Ok(())
        };
        render().map_err(|bad: crate::BadImage| bad.at(info.shard, info.key))?;
        Ok(info.label.into())
    }
}
