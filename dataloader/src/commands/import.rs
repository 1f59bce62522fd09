//! `codinet-data import`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use codinet_dataloader::encode::Encoding;
use codinet_dataloader::import::{Import, Outcome, Published, Split};
use codinet_dataloader::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::print;

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    dataset: DatasetName,
}

#[derive(Subcommand)]
enum DatasetName {
    /// Fashion-MNIST: 70,000 grey 28x28 images of clothing in 10 classes.
    FashionMnist(Common),
    /// CIFAR-10: 60,000 colour 32x32 photographs in 10 classes, from the binary version (or its .tar.gz).
    Cifar10(Common),
    /// CIFAR-100: 60,000 colour 32x32 photographs in 100 classes, from the binary version (or its .tar.gz).
    Cifar100(Common),
    /// SVHN: 99,289 colour 32x32 digits (630,420 with extra_32x32.mat), from the .mat files of cropped digits.
    Svhn(Common),
}

#[derive(Args)]
struct Common {
    /// Folder of the published files, as downloaded or unpacked; nothing in it is changed.
    #[arg(long, value_name = "DIR")]
    src: PathBuf,

    /// Folder for the shards: train/ and test/ are made in it. What is complete there already is kept.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// How images are stored: jpeg (of quality 98) or png (lossless) [default: jpeg for fashion-mnist, else png].
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Samples in each shard.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    samples_per_shard: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Jpeg,
    Png,
}

/// On Fashion-MNIST, pixels come back within 4 of 255 levels, on average within 0.4.
const JPEG_QUALITY: u8 = 98;

pub fn run(arguments: &Arguments) -> Result<()> {
    let (dataset, default, common) = match &arguments.dataset {
        DatasetName::FashionMnist(common) => (Published::FashionMnist, Format::Jpeg, common),
        DatasetName::Cifar10(common) => (Published::Cifar10, Format::Png, common),
        DatasetName::Cifar100(common) => (Published::Cifar100, Format::Png, common),
        DatasetName::Svhn(common) => (Published::Svhn, Format::Png, common),
    };
    let import = Import {
        dataset,
        source: common.src.clone(),
        out: common.out.clone(),
        encoding: match common.format.unwrap_or(default) {
            Format::Jpeg => Encoding::Jpeg { quality: JPEG_QUALITY },
            Format::Png => Encoding::Png,
        },
        samples_per_shard: common.samples_per_shard,
    };
    // Draws on a terminal only; elsewhere the final lines have to do.
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} images, {eta} left")
        .map_err(|error| Error::InvalidArgument(error.to_string()))?;
    bar.set_style(style);
    let splits = import.run(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    for split in splits? {
        let verb = match split.outcome {
            Outcome::Written => "wrote",
            Outcome::AlreadyComplete => "already complete:",
        };
        let Split { folder, info, .. } = split;
        print(&format!("{verb} {} (samples: {}, shards: {})\n", folder.display(), info.samples, info.shards));
    }
    Ok(())
}
