//! `codinet-data bench`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use codinet_dataloader::random::{self, Domain};
use codinet_dataloader::transform::{Renderer, View};
use codinet_dataloader::{
    Augment, BadImage, BatchPlan, Channels, Crop, Dataset, Decoder, EpochOrder, Error, Loader, LoaderSpec,
    Normalization, OnBadSample, Region, Result, Transform, jpeg,
};

use super::progress::ProgressMeter;
use super::{ImageLimit, Shards};
use codinet_config::text::print;

const EXAMPLES: &str = "\
Examples:
  codinet-data bench data/imagenet/train --threads 8 --views 2
  codinet-data bench data/cifar10/train --image-size 32 --brief";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    shards: Shards,

    #[command(flatten)]
    limit: ImageLimit,

    /// Decode threads of the loader; the stages are timed on one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,

    /// Views of each sample.
    #[arg(long, value_name = "M", default_value_t = 1)]
    views: usize,

    /// Width and height of a view, in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    image_size: u32,

    /// Samples a batch.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Measured epochs of the loader, after one to warm up.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..1000))]
    epochs: u64,

    /// The loader makes normalised floats instead of bytes.
    #[arg(long)]
    floats: bool,

    /// Times only the loader, and prints only its samples per second.
    #[arg(long)]
    brief: bool,

    /// Times only the loader, and prints a line for each batch: the time in seconds since 1970, and its samples.
    #[arg(long, conflicts_with = "brief")]
    timeline: bool,
}

/// ImageNet's augmentation: RandomResizedCrop(0.08 to 1) and a flip.
fn transform() -> Transform {
    let crop = Crop::RandomResized { scale: (0.08, 1.0), ratio: (0.75, 4.0 / 3.0) };
    Transform::Train { crop, flip: 0.5, augment: Augment::NONE }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    transform().check(arguments.image_size)?;
    let dataset = Arc::new(Dataset::open(&arguments.shards.shards)?);
    if arguments.brief || arguments.timeline {
        let speed = time_loader(&dataset, arguments)?;
        if arguments.timeline {
            let line = |(time, samples): &(Duration, usize)| format!("{:.6} {samples}\n", time.as_secs_f64());
            print(&speed.batches.iter().map(line).collect::<String>());
        } else {
            print(&format!("{:.1}\n", speed.samples_per_second));
        }
        report_bad(speed.bad, &dataset);
        return Ok(());
    }
    let stages = Stages::time(&dataset, arguments)?;
    let samples = stages.samples as f64;
    let mut text = format!(
        "{} samples, {:.1} kB each, {:.0} % of them tiled; {} view(s) of {} px\n\nstage, one thread         samples/s   ms/sample\n",
        stages.samples,
        stages.bytes as f64 / samples / 1e3,
        100.0 * stages.tiled as f64 / samples,
        arguments.views,
        arguments.image_size,
    );
    let mut row = |name: &str, time: Duration| {
        let each = time.as_secs_f64() / samples;
        text += &format!("{name:<24} {:>10.0}  {:>10.3}\n", 1.0 / each, 1e3 * each);
    };
    let Times { read, entropy, whole, regions, render } = stages.times;
    row("read", read);
    row("entropy decoding, whole", entropy);
    row("decode, whole", whole);
    row("decode, what is shown", regions);
    row("resize and flip", render);
    row("read, decode, resize", read + regions + render);
    let speed = time_loader(&dataset, arguments)?;
    let rate = speed.samples_per_second;
    let images = rate * arguments.views as f64;
    text +=
        &format!("\nloader, {} thread(s): {rate:.1} samples/s, {images:.1} images/s\n", arguments.threads);
    print(&text);
    report_bad(speed.bad, &dataset);
    Ok(())
}

/// Says on stderr how many samples had no part in the measurement.
fn report_bad(bad: usize, dataset: &Dataset) {
    if bad > 0 {
        codinet_config::eprint_line!(
            "{bad} of {} samples are bad and were left out; codinet-data verify lists them",
            dataset.len()
        );
    }
}

/// The error of a dataset without a good sample.
fn all_bad(dataset: &Dataset, path: &str, reason: &str) -> Error {
    let what = format!("all {} samples are bad; one of them: {reason}", dataset.len());
    Error::Malformed { path: path.into(), what }
}

/// The speed of the loader.
struct LoaderSpeed {
    samples_per_second: f64,
    /// Each batch's time since 1970, and its samples.
    batches: Vec<(Duration, usize)>,
    /// Samples that can't be used.
    bad: usize,
}

/// Times the loader as training uses it, over all epochs but the first.
fn time_loader(dataset: &Arc<Dataset>, arguments: &Arguments) -> Result<LoaderSpeed> {
    let Arguments { threads, views, image_size, batch, epochs, .. } = *arguments;
    let spec = LoaderSpec {
        transform: transform(),
        image_size,
        channels: 3,
        views,
        normalization: arguments.floats.then_some(Normalization::IMAGENET),
        max_pixels: arguments.limit.max_pixels,
        seed: 0,
        threads,
        prefetch: 3,
        on_bad: OnBadSample::Replace,
    };
    let len = dataset.len();
    let plan = (0..=epochs).flat_map(move |epoch| {
        let order = EpochOrder::new(0, epoch, len);
        let batches: Vec<_> = order
            .samples()
            .chunks(batch as usize)
            .map(|samples| BatchPlan::new(epoch, samples.to_vec()))
            .collect();
        batches
    });
    let mut loader = Loader::new(dataset.clone(), spec, plan)?;
    let mut start = Instant::now();
    let mut served = 0;
    let mut bad = BTreeMap::new();
    let mut batches = Vec::new();
    let meter = ProgressMeter::new()?;
    let total = (epochs + 1) * len as u64;
    while let Some(batch) = loader.next() {
        let mut batch = batch?;
        batches.push((SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), batch.samples.len()));
        if batch.epoch == 0 {
            start = Instant::now();
        } else {
            served += batch.samples.len();
        }
        // A crop may not touch the damage of an image that another crop touches.
        bad.extend(batch.bad.drain(..).map(|bad| (bad.sample, bad.reason)));
        meter.update(len as u64 + served as u64, total, None);
        loader.recycle(batch);
    }
    meter.finish();
    if let Some((_, reason)) = bad.first_key_value().filter(|_| served == 0) {
        return Err(all_bad(dataset, &arguments.shards.shards, reason));
    }
    let samples_per_second = served as f64 / start.elapsed().as_secs_f64();
    Ok(LoaderSpeed { samples_per_second, batches, bad: bad.len() })
}

/// Times of the stages of one sample, or of several in sum.
#[derive(Default, Clone, Copy)]
struct Times {
    read: Duration,
    entropy: Duration,
    whole: Duration,
    regions: Duration,
    render: Duration,
}

/// The stages of all good samples, one after another.
#[derive(Default)]
struct Stages {
    samples: usize,
    bytes: usize,
    tiled: usize,
    times: Times,
}

impl Stages {
    fn time(dataset: &Dataset, arguments: &Arguments) -> Result<Stages> {
        let mut timer = StageTimer::new(arguments);
        let mut stages = Stages::default();
        let mut first_bad = None;
        let meter = ProgressMeter::new()?;
        for sample in 0..dataset.len() {
            meter.update(sample as u64, dataset.len() as u64, None);
            let start = Instant::now();
            dataset.read(sample, &mut timer.encoded)?;
            let read = start.elapsed();
            match timer.time_sample(sample) {
                Ok((times, is_tiled)) => {
                    stages.samples += 1;
                    stages.bytes += timer.encoded.len();
                    stages.tiled += usize::from(is_tiled);
                    stages.times.read += read;
                    stages.times.entropy += times.entropy;
                    stages.times.whole += times.whole;
                    stages.times.regions += times.regions;
                    stages.times.render += times.render;
                }
                Err(BadImage(reason)) => _ = first_bad.get_or_insert(reason),
            }
        }
        meter.finish();
        match first_bad {
            Some(reason) if stages.samples == 0 => Err(all_bad(dataset, &arguments.shards.shards, &reason)),
            _ => Ok(stages),
        }
    }
}

/// Decodes samples stage by stage, reusing its buffers.
struct StageTimer {
    views: usize,
    image_size: u32,
    decoder: Decoder,
    renderer: Renderer,
    encoded: Vec<u8>,
    pixels: Vec<u8>,
    view: Vec<u8>,
    groups: Vec<Region>,
    group_of: Vec<usize>,
}

impl StageTimer {
    fn new(arguments: &Arguments) -> StageTimer {
        let image_size = arguments.image_size;
        StageTimer {
            views: arguments.views,
            image_size,
            decoder: Decoder::with_max_pixels(arguments.limit.max_pixels),
            renderer: Renderer::new(),
            encoded: Vec::new(),
            pixels: Vec::new(),
            view: vec![0; image_size as usize * image_size as usize * 3],
            groups: Vec::new(),
            group_of: Vec::new(),
        }
    }

    /// Times the stages of the sample in `encoded` but its reading; returns also whether the image is tiled.
    fn time_sample(&mut self, sample: usize) -> Result<(Times, bool), BadImage> {
        let StageTimer {
            image_size,
            decoder,
            renderer,
            encoded,
            pixels,
            view: view_buf,
            groups,
            group_of,
            ..
        } = self;
        let mut times = Times::default();
        let mut start = Instant::now();
        let mut lap = |stage: &mut Duration| {
            *stage += start.elapsed();
            start = Instant::now();
        };
        jpeg::entropy_decode(encoded, pixels);
        lap(&mut times.entropy);
        let header = decoder.header(encoded)?;
        decoder.decode(encoded, &header, Channels::Rgb, pixels)?;
        lap(&mut times.whole);
        let header = decoder.header(encoded)?;
        let draw = |view| {
            let mut rng = random::stream(Domain::View, 0, 0, sample as u64, view);
            transform().draw_view(header.width, header.height, *image_size, &mut rng)
        };
        let views: Vec<View> = (0..self.views as u64).map(draw).collect::<Result<_, _>>()?;
        let regions: Vec<_> = views.iter().map(|view| view.region).collect();
        decoder.group_regions(&header, &regions, groups, group_of);
        for (group, &region) in groups.iter().enumerate() {
            let decoded = decoder.decode_region(encoded, &header, Channels::Rgb, region, pixels)?;
            lap(&mut times.regions);
            for (view, _) in views.iter().zip(&*group_of).filter(|(_, of)| **of == group) {
                renderer.render(pixels, decoded, Channels::Rgb, view, *image_size, view_buf)?;
            }
            lap(&mut times.render);
        }
        Ok((times, header.is_tiled()))
    }
}
