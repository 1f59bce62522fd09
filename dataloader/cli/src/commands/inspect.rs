//! `codinet-data inspect`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use codinet_dataloader::contact_sheet::ContactSheet;
use codinet_dataloader::{
    Channels, Dataset, Decoder, EpochOrder, Error, IndexState, LoaderSpec, OnBadSample, Result, Transform,
    describe_view_fit,
};

use super::{ImageLimit, count_cores, describe_left_out};
use codinet_config::text::print;

const EXAMPLES: &str = "\
Examples:
  codinet-data inspect data/fashion-mnist/train
  codinet-data inspect 'data/imagenet/train/train-{000000..000012}.tar' --sheet sheet.png
  codinet-data inspect --config my.yaml --sheet sheet.png";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A folder of shards, a glob ('x-*.tar', quoted), a range ('x-{000000..000012}.tar'), one shard, a list of
    /// shards by another tool ('_info.json#train') or a folder of class folders; local or, but for the last, after
    /// s3://, gs://, https:// [default with --config: its data.train].
    #[arg(required_unless_present = "config")]
    shards: Option<String>,

    /// A training config: a path, or the name of a shipped one. Checks that its views show enough of the images; with
    /// --sheet, draws the views that it trains.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["transform", "image_size", "views", "seed", "max_pixels"])]
    config: Option<String>,

    #[command(flatten)]
    limit: ImageLimit,

    /// How many images to decode, evenly spread over the samples.
    #[arg(long, value_name = "N", default_value_t = 100)]
    decode: usize,

    #[command(flatten)]
    sheet: SheetArguments,
}

#[derive(Args)]
struct SheetArguments {
    /// Draws a contact sheet to this PNG file instead: the first samples of epoch 0, each followed by the views that
    /// training with this seed makes of it.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "sheet.png")]
    sheet: Option<PathBuf>,

    /// Samples on the sheet.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "sheet")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,

    /// Views of each sample.
    #[arg(long, value_name = "M", default_value_t = 4, requires = "sheet")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=100))]
    views: u16,

    /// The seed, as in training.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sheet")]
    seed: u64,

    /// The transform, as JSON.
    #[arg(long, value_name = "JSON", default_value = IMAGENET_TRAINING, requires = "sheet")]
    transform: String,

    /// Width and height of a view in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 224, requires = "sheet")]
    image_size: u32,
}

const IMAGENET_TRAINING: &str = r#"{"train":{"crop":{"random_resized":{"scale":[0.08,1.0],"ratio":[0.75,1.3333333333333333]}},"flip":0.5}}"#;

/// The views to draw, and the data set that they are of.
struct Views {
    dataset: Dataset,
    spec: LoaderSpec,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let views = match &arguments.config {
        Some(name) => open_config(name, arguments)?,
        None => open_shards(arguments)?,
    };
    if arguments.config.is_some() {
        let LoaderSpec { transform, image_size, .. } = &views.spec;
        if let Some(warning) = describe_view_fit(&views.dataset, transform, *image_size)? {
            codinet_config::eprint_line!("warning: {warning}");
        }
    }
    match &arguments.sheet.sheet {
        Some(path) => draw_sheet(views, path, arguments.sheet.samples),
        None => describe(&views, arguments.decode),
    }
}

/// Opens the data of a training config, with the views that it trains.
fn open_config(name: &str, arguments: &Arguments) -> Result<Views> {
    let config =
        codinet_config::load(name, &[]).map_err(|error| Error::InvalidArgument(error.to_string()))?;
    let patterns = arguments.shards.as_deref().map_or(config.data.train.paths(), |pattern| vec![pattern]);
    let spec = LoaderSpec {
        transform: config.augmentation(),
        image_size: config.data.image_size,
        channels: config.data.channels as usize,
        views: config.data.views,
        normalization: None,
        max_pixels: config.data.max_pixels,
        seed: config.run.seed,
        threads: count_cores(),
        prefetch: 2,
        on_bad: OnBadSample::Fail,
    };
    let options = config.dataset_options();
    let sets = patterns.into_iter().map(|pattern| Dataset::open_with(pattern, &options));
    let dataset = Dataset::join(sets.collect::<Result<_>>()?)?;
    dataset.check_labels(config.data.classes as usize)?;
    Ok(Views { dataset, spec })
}

/// Opens shards, with the views that the options describe.
fn open_shards(arguments: &Arguments) -> Result<Views> {
    let dataset = Dataset::open(arguments.shards.as_deref().unwrap_or_default())?;
    let transform: Transform = serde_json::from_str(&arguments.sheet.transform)
        .map_err(|error| Error::InvalidArgument(format!("--transform: {error}; correct the JSON")))?;
    let spec = LoaderSpec {
        transform,
        image_size: arguments.sheet.image_size,
        channels: dataset.info().map_or(3, |info| info.channels),
        views: arguments.sheet.views.into(),
        normalization: None,
        max_pixels: arguments.limit.max_pixels,
        seed: arguments.sheet.seed,
        threads: count_cores(),
        prefetch: 2,
        on_bad: OnBadSample::Fail,
    };
    Ok(Views { dataset, spec })
}

fn draw_sheet(Views { dataset, spec }: Views, path: &Path, samples: u32) -> Result<()> {
    let order = EpochOrder::new(spec.seed, 0, dataset.len());
    let samples = &order.samples()[..dataset.len().min(samples as usize)];
    let sheet = ContactSheet::draw_samples(&Arc::new(dataset), &spec, samples)?;
    fs::write(path, sheet.png()?).map_err(|cause| Error::Io {
        action: "write",
        path: path.to_owned(),
        cause,
    })?;
    print(&format!("drew {} samples to {}\n", samples.len(), path.display()));
    Ok(())
}

fn describe(Views { dataset, spec }: &Views, decode: usize) -> Result<()> {
    let images = decode_some(dataset, decode, spec.max_pixels)?;
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = describe_shards(&mut text, dataset);
    let _ = describe_left_out(&mut text, &dataset.left_out());
    let _ = describe_classes(&mut text, dataset);
    let _ = describe_images(&mut text, &images);
    print(&text);
    if let Some(classes) = dataset.classes() {
        dataset.check_labels(classes)?;
    }
    match images.bad.into_iter().next() {
        Some(bad) => Err(bad),
        None => Ok(()),
    }
}

fn describe_shards(text: &mut String, dataset: &Dataset) -> std::fmt::Result {
    if let Some(info) = dataset.info() {
        let colours = if info.channels == 1 { "grey" } else { "RGB" };
        let size = info.image_size.map_or(String::new(), |size| format!(", {size}x{size}"));
        writeln!(text, "name     {}, {} classes, {colours}{size}", info.name, info.classes)?;
    }
    let bytes: u64 = dataset.shards().map(|shard| shard.bytes).sum();
    let index = |state| dataset.shards().filter(|shard| shard.index == state).count();
    let rebuilt = index(IndexState::Rebuilt);
    let unsaved = index(IndexState::Unsaved);
    writeln!(text, "shards   {}, {:.1} MB", dataset.shards().len(), bytes as f64 / 1e6)?;
    writeln!(text, "samples  {}", dataset.len())?;
    match (rebuilt, unsaved) {
        (0, 0) => writeln!(text, "index    up to date"),
        (_, 0) => writeln!(text, "index    {rebuilt} missing or out of date, rebuilt"),
        _ => writeln!(text, "index    {unsaved} missing or out of date, and the folder can't be written"),
    }?;
    writeln!(text, "content  sha256 {}", dataset.fingerprint())
}

fn describe_classes(text: &mut String, dataset: &Dataset) -> std::fmt::Result {
    let mut counts = BTreeMap::<u32, usize>::new();
    for label in
        (0..dataset.len()).filter_map(|sample| dataset.sample_info(sample)).map(|sample| sample.label)
    {
        *counts.entry(label).or_default() += 1;
    }
    writeln!(text, "labels   {} different", counts.len())?;
    let names = dataset.info().and_then(|info| info.class_names.as_deref()).unwrap_or_default();
    let largest = counts.values().copied().max().unwrap_or(1);
    for (label, count) in counts {
        let bar = "#".repeat((count * 30).div_ceil(largest));
        let name = names.get(label as usize).map_or("", String::as_str);
        writeln!(text, "  {label:>5}  {count:>8}  {bar:<30}  {name}")?;
    }
    Ok(())
}

/// The result of decoding some of the images.
struct Images {
    decoded: usize,
    /// Format and size, and how many have them.
    kinds: BTreeMap<String, usize>,
    bad: Vec<Error>,
}

fn decode_some(dataset: &Dataset, limit: usize, max_pixels: u64) -> Result<Images> {
    let channels = Channels::new(dataset.info().map_or(3, |info| info.channels))?;
    let mut images = Images { decoded: 0, kinds: BTreeMap::new(), bad: Vec::new() };
    let mut decoder = Decoder::with_max_pixels(max_pixels);
    let mut encoded = Vec::new();
    let mut pixels = Vec::new();
    let count = limit.min(dataset.len());
    for sample in (0..count).map(|step| step * dataset.len() / count) {
        let info = dataset.read(sample, &mut encoded)?;
        let decoded = decoder.header(&encoded).and_then(|header| {
            decoder.decode(&encoded, &header, channels, &mut pixels)?;
            Ok(format!("{} {}x{}", header.format, header.width, header.height))
        });
        images.decoded += 1;
        match decoded {
            Ok(kind) => *images.kinds.entry(kind).or_default() += 1,
            Err(bad) => images.bad.push(bad.in_sample(info.shard, info.key)),
        }
    }
    Ok(images)
}

fn describe_images(text: &mut String, images: &Images) -> std::fmt::Result {
    const MAX_KINDS: usize = 10; // photographs come in hundreds of sizes
    writeln!(text, "images   {} decoded, {} bad", images.decoded, images.bad.len())?;
    let mut kinds: Vec<_> = images.kinds.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (kind, count) in kinds.iter().take(MAX_KINDS) {
        writeln!(text, "  {count:>5}  {kind}")?;
    }
    if kinds.len() > MAX_KINDS {
        let rest: usize = kinds[MAX_KINDS..].iter().map(|(_, count)| **count).sum();
        writeln!(text, "  {rest:>5}  in {} other sizes", kinds.len() - MAX_KINDS)?;
    }
    for bad in &images.bad {
        writeln!(text, "  bad    {bad}")?;
    }
    Ok(())
}
