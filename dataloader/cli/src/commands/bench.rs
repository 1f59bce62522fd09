//! `codinet-data bench`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use codinet_dataloader::random::{self, Domain};
use codinet_dataloader::transform::{Renderer, View};
use codinet_dataloader::{
    Augment, BadImage, BatchPlan, Channels, Crop, Dataset, Decoder, EpochOrder, Loader, LoaderSpec,
    OnBadSample, Result, Transform, jpeg,
};

use super::progress::ProgressMeter;
use super::{Shards, print};

const EXAMPLES: &str = "\
Examples:
  codinet-data bench data/imagenet/train --threads 8 --views 2
  codinet-data bench data/cifar10/train --image-size 32 --brief";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    shards: Shards,

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

    /// How often the loader goes through the data, after once to warm up.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..1000))]
    epochs: u64,

    /// Turns each batch to normalised floats as well, on the thread that takes it.
    #[arg(long)]
    floats: bool,

    /// Times the loader alone, and prints samples per second alone.
    #[arg(long)]
    brief: bool,
}

/// ImageNet's augmentation: RandomResizedCrop(0.08 to 1) and a flip.
fn transform() -> Transform {
    let crop = Crop::RandomResized { scale: (0.08, 1.0), ratio: (0.75, 4.0 / 3.0) };
    Transform::Train { crop, flip: 0.5, augment: Augment::NONE }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    transform().check(arguments.image_size)?;
    let dataset = Arc::new(Dataset::open(&arguments.shards.shards)?);
    if arguments.brief {
        print(&format!("{:.1}\n", loader(&dataset, arguments)?));
        return Ok(());
    }
    let stages = Stages::time(&dataset, arguments)?;
    let samples = dataset.len() as f64;
    let mut text = format!(
        "{} samples, {:.1} kB each, {:.0} % of them tiled; {} view(s) of {} px\n\nstage, one thread         samples/s   ms/sample\n",
        dataset.len(),
        stages.bytes as f64 / samples / 1e3,
        100.0 * stages.tiled as f64 / samples,
        arguments.views,
        arguments.image_size,
    );
    let mut row = |name: &str, time: Duration| {
        let each = time.as_secs_f64() / samples;
        text += &format!("{name:<24} {:>10.0}  {:>10.3}\n", 1.0 / each, 1e3 * each);
    };
    row("read", stages.read);
    row("entropy decoding, whole", stages.entropy);
    row("decode, whole", stages.whole);
    row("decode, what is shown", stages.shown);
    row("resize and flip", stages.render);
    row("read, decode, resize", stages.read + stages.shown + stages.render);
    let rate = loader(&dataset, arguments)?;
    let images = rate * arguments.views as f64;
    text +=
        &format!("\nloader, {} thread(s): {rate:.1} samples/s, {images:.1} images/s\n", arguments.threads);
    print(&text);
    Ok(())
}

/// Samples a second of the loader as training uses it, over all epochs but the first.
fn loader(dataset: &Arc<Dataset>, arguments: &Arguments) -> Result<f64> {
    let Arguments { threads, views, image_size, batch, epochs, .. } = *arguments;
    let spec = LoaderSpec {
        transform: transform(),
        image_size,
        channels: 3,
        views,
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
    let (mut start, mut served) = (Instant::now(), 0);
    let mut floats = Vec::new();
    let (meter, all) = (ProgressMeter::new()?, (epochs + 1) * len as u64);
    while let Some(batch) = loader.next() {
        let batch = batch?;
        match batch.epoch {
            0 => start = Instant::now(),
            _ => served += batch.samples.len(),
        }
        meter.update(len as u64 + served as u64, all, None);
        if arguments.floats {
            normalise(&batch.images, &mut floats);
            std::hint::black_box(&floats);
        }
        loader.recycle(batch);
    }
    meter.finish();
    Ok(served as f64 / start.elapsed().as_secs_f64())
}

/// u8 `[…, 3]` → (x/255 − mean)/std, with ImageNet's.
fn normalise(images: &[u8], floats: &mut Vec<f32>) {
    const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    const STD: [f32; 3] = [0.229, 0.224, 0.225];
    let (scale, shift) = (STD.map(|std| 1.0 / (255.0 * std)), [0, 1, 2].map(|c| -MEAN[c] / STD[c]));
    floats.clear();
    let pixels = images.as_chunks::<3>().0.iter();
    floats.extend(pixels.flat_map(|pixel| [0, 1, 2].map(|c| f32::from(pixel[c]) * scale[c] + shift[c])));
}

/// Time and bytes of all samples, one after another.
#[derive(Default)]
struct Stages {
    bytes: usize,
    tiled: usize,
    read: Duration,
    entropy: Duration,
    whole: Duration,
    shown: Duration,
    render: Duration,
}

impl Stages {
    fn time(dataset: &Dataset, arguments: &Arguments) -> Result<Stages> {
        let Arguments { views, image_size, .. } = *arguments;
        let (mut decoder, mut renderer) = (Decoder::new(), Renderer::new());
        let (mut encoded, mut pixels) = (Vec::new(), Vec::new());
        let (mut groups, mut group_of) = (Vec::new(), Vec::new());
        let mut out = vec![0; image_size as usize * image_size as usize * 3];
        let mut stages = Stages::default();
        let meter = ProgressMeter::new()?;
        for sample in 0..dataset.len() {
            meter.update(sample as u64, dataset.len() as u64, None);
            let mut start = Instant::now();
            let mut lap = |stage: &mut Duration| {
                *stage += start.elapsed();
                start = Instant::now();
            };
            let info = dataset.read(sample, &mut encoded)?;
            lap(&mut stages.read);
            jpeg::entropy_decode(&encoded, &mut pixels);
            lap(&mut stages.entropy);
            let mut rest = || {
                let header = decoder.header(&encoded)?;
                decoder.decode(&encoded, &header, Channels::Rgb, &mut pixels)?;
                lap(&mut stages.whole);
                let header = decoder.header(&encoded)?;
                let draw = |view| {
                    let mut rng = random::stream(Domain::View, 0, 0, sample as u64, view);
                    transform().draw_view(header.width, header.height, image_size, &mut rng)
                };
                let views: Vec<View> = (0..views as u64).map(draw).collect::<Result<_, _>>()?;
                let regions: Vec<_> = views.iter().map(|view| view.region).collect();
                decoder.share(&header, &regions, &mut groups, &mut group_of);
                for (group, &region) in groups.iter().enumerate() {
                    let shown =
                        decoder.decode_region(&encoded, &header, Channels::Rgb, region, &mut pixels)?;
                    lap(&mut stages.shown);
                    for (view, _) in views.iter().zip(&group_of).filter(|(_, of)| **of == group) {
                        renderer.render(&pixels, shown, Channels::Rgb, view, image_size, &mut out)?;
                    }
                    lap(&mut stages.render);
                }
                stages.tiled += usize::from(header.is_tiled());
                Ok(())
            };
            rest().map_err(|bad: BadImage| bad.in_sample(info.shard, info.key))?;
            stages.bytes += encoded.len();
        }
        meter.finish();
        Ok(stages)
    }
}
