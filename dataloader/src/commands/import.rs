//! `codinet-data import`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use codinet_dataloader::Result;
use codinet_dataloader::encode::Encoding;
use codinet_dataloader::import::{
    ImageImport, ImageNetSplit, ImageSource, Import, Outcome, Progress, Published, Split,
};

use super::meter::Meter;
use super::{cores, print};

const EXAMPLES: &str = "\
Examples:
  codinet-data import fashion-mnist --src /usr/share/datasets/fashion-mnist --output data/fashion-mnist
  codinet-data import cifar10 --src downloads/cifar-10-batches-bin --output data/cifar10
  codinet-data import imagenet --src downloads --output data/imagenet
  codinet-data import imagefolder --src photos --output data/photos --max-side 500
  codinet-data import parquet --src 'downloads/train-*.parquet' --output data/train";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    dataset: DatasetName,
}

#[derive(Subcommand)]
enum DatasetName {
    /// Fashion-MNIST: 70,000 grey 28x28 images of clothing in 10 classes.
    FashionMnist(Pixels),
    /// CIFAR-10: 60,000 colour 32x32 photographs in 10 classes, from the binary version (or its .tar.gz).
    Cifar10(Pixels),
    /// CIFAR-100: 60,000 colour 32x32 photographs in 100 classes, from the binary version (or its .tar.gz).
    Cifar100(Pixels),
    /// SVHN: 99,289 colour 32x32 digits (630,420 with extra_32x32.mat), from the .mat files of cropped
    /// digits.
    Svhn(Pixels),
    /// ImageNet (ILSVRC 2012): its archives as downloaded, read in place, or unpacked.
    Imagenet(ImageNet),
    /// A folder of folders, one a class, of .jpg, .jpeg and .png files.
    Imagefolder(ImageFolder),
    /// Parquet files of images as Hugging Face distributes them, with columns image.bytes and label.
    Parquet(Parquet),
}

#[derive(Args)]
struct ImageNet {
    /// Folder of ILSVRC2012_img_train.tar (or train/), ILSVRC2012_img_val.tar (or val/) and, for the labels
    /// of val, ILSVRC2012_devkit_t12.tar.gz; nothing in it is changed.
    #[arg(long, value_name = "DIR")]
    src: PathBuf,

    /// Which images to import.
    #[arg(long, value_enum, default_value = "both")]
    split: SplitName,

    /// Labels of the validation images, instead of the devkit's: a line per image, in the order of their
    /// names, of a WordNet id or a class number (0 to 999 in the order of WordNet ids), or of a name and one
    /// of these.
    #[arg(long, value_name = "FILE")]
    val_labels: Option<PathBuf>,

    #[command(flatten)]
    images: Images,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Val,
    Both,
}

#[derive(Args)]
struct ImageFolder {
    /// Folder that holds a folder for each class; nothing in it is changed. Classes are numbered by sorted
    /// names.
    #[arg(long, value_name = "DIR")]
    src: PathBuf,

    #[command(flatten)]
    images: Images,
}

#[derive(Args)]
struct Parquet {
    /// Files of one split, or folders or quoted globs of them; nothing in them is changed.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    src: Vec<String>,

    #[command(flatten)]
    images: Images,
}

/// What all imports of encoded images take.
#[derive(Args)]
struct Images {
    /// Folder for the shards (ImageNet: for folders train and val of shards). An import that was killed goes
    /// on where it was when it is given the same settings again; with other settings it is refused.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    /// Samples in each shard; 1000 of ImageNet are about 110 MB.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,

    /// Decides the order of the samples, which are shuffled so that each shard is a fair sample of all
    /// classes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Threads; each writes a shard of its own [default: the number of cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Keeps the bytes of JPEGs as they are, rather than make them tiled, so that a crop is decoded without the rest; the
    /// pixels are the same.
    #[arg(long)]
    no_tile: bool,

    /// Shrinks images whose longer side is over so many pixels, and encodes them again at quality 95: this changes
    /// the data.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,

    /// Leaves out files that aren't images, and lists them in bad_imports.txt, instead of stopping at the
    /// first.
    #[arg(long)]
    skip_bad: bool,
}

/// What all imports of raw pixels take.
#[derive(Args)]
struct Pixels {
    /// Folder of the published files, as downloaded or unpacked; nothing in it is changed.
    #[arg(long, value_name = "DIR")]
    src: PathBuf,

    /// Folder for the shards: train/ and test/ are made in it. What is complete there already is kept.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    /// How images are stored: jpeg (of quality 98) or png (lossless) [default: jpeg for fashion-mnist, else
    /// png].
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Samples in each shard.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Jpeg,
    Png,
}

/// On Fashion-MNIST, pixels come back within 4 of 255 levels, on average within 0.4.
const JPEG_QUALITY: u8 = 98;

pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.dataset {
        DatasetName::FashionMnist(settings) => pixels(Published::FashionMnist, Format::Jpeg, settings),
        DatasetName::Cifar10(settings) => pixels(Published::Cifar10, Format::Png, settings),
        DatasetName::Cifar100(settings) => pixels(Published::Cifar100, Format::Png, settings),
        DatasetName::Svhn(settings) => pixels(Published::Svhn, Format::Png, settings),
        DatasetName::Imagenet(ImageNet { src, split, val_labels, images: settings }) => {
            let splits = match split {
                SplitName::Train => vec![ImageNetSplit::Train],
                SplitName::Val => vec![ImageNetSplit::Val],
                SplitName::Both => vec![ImageNetSplit::Train, ImageNetSplit::Val],
            };
            let (folder, val_labels) = (src.clone(), val_labels.clone());
            images(ImageSource::ImageNet { folder, splits, val_labels }, settings)
        }
        DatasetName::Imagefolder(folder) => images(ImageSource::Folder(folder.src.clone()), &folder.images),
        DatasetName::Parquet(parquet) => images(ImageSource::Parquet(parquet.src.clone()), &parquet.images),
    }
}

/// Imports a set of raw pixels.
fn pixels(dataset: Published, default: Format, settings: &Pixels) -> Result<()> {
    let import = Import {
        dataset,
        source: settings.src.clone(),
        out: settings.output.clone(),
        encoding: match settings.format.unwrap_or(default) {
            Format::Jpeg => Encoding::Jpeg { quality: JPEG_QUALITY },
            Format::Png => Encoding::Png,
        },
        shard_size: settings.shard_size,
    };
    let meter = Meter::new()?;
    let splits = import.run(|done, total| meter.set(done, total, None));
    meter.finish();
    report(&splits?);
    Ok(())
}

/// Imports a set of encoded images.
fn images(source: ImageSource, settings: &Images) -> Result<()> {
    let import = ImageImport {
        source,
        out: settings.output.clone(),
        seed: settings.seed,
        shard_size: settings.shard_size,
        threads: settings.threads.unwrap_or_else(cores),
        tile: !settings.no_tile,
        max_side: settings.max_side,
        skip_bad: settings.skip_bad,
    };
    let meter = Meter::new()?;
    let splits = import.run(&|Progress { done, total, bytes }| meter.set(done, total, Some(bytes)));
    meter.finish();
    report(&splits?);
    if let Some(side) = settings.max_side {
        print(&format!("images of over {side} pixels were shrunk and encoded again: this is other data\n"));
    }
    Ok(())
}

fn report(splits: &[Split]) {
    for Split { folder, info, outcome, left_out, ignored } in splits {
        let verb = match outcome {
            Outcome::Written => "wrote",
            Outcome::AlreadyComplete => "already complete:",
        };
        let folder = folder.display();
        print(&format!("{verb} {folder} (samples: {}, shards: {})\n", info.samples, info.shards));
        if *ignored > 0 {
            print(&format!("passed over {ignored} files that aren't called .jpg, .jpeg or .png\n"));
        }
        if *left_out > 0 {
            print(&format!("left out {left_out} bad images, listed in {folder}/bad_imports.txt\n"));
        }
    }
}
