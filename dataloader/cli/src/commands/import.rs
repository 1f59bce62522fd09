//! `codinet-data import`. Its subcommands are the [`ENTRIES`] of the library.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use codinet_dataloader::Result;
use codinet_dataloader::encode::Encoding;
use codinet_dataloader::import::{
    ENTRIES, Entry, ImageImport, ImageImporter, ImageRequest, ImportOption, Importer, PIXEL_JPEG_QUALITY,
    PixelImport, PixelImporter, Progress, Split, SplitStatus,
};

use super::progress::ProgressMeter;
use super::{ImageLimit, chosen_set, count_cores, with_subcommands};
use codinet_config::text::print;

const EXAMPLES: &str = "\
Examples:
  codinet-data import fashion-mnist --src /usr/share/datasets/fashion-mnist --output data/fashion-mnist
  codinet-data import cifar10 --src downloads/cifar-10-batches-bin --output data/cifar10
  codinet-data import imagenet --src downloads --output data/imagenet
  codinet-data import imagefolder --src photos --output data/photos --max-side 500
  codinet-data import parquet --src 'downloads/train-*.parquet' --output data/train";

const SRC: &str = "src";

pub struct Arguments {
    sources: Vec<String>,
    settings: Settings,
}

enum Settings {
    Pixels(&'static PixelImporter, PixelArguments),
    Images(&'static ImageImporter, ImageArguments, BTreeMap<&'static str, String>),
}

/// The arguments of imports of encoded images.
#[derive(Args)]
struct ImageArguments {
    /// Folder for the shards (ImageNet: for folders train and val of shards). An import that was killed resumes when it
    /// is run again with the same settings; with other settings it is refused.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    /// Samples in each shard; 1000 of ImageNet are about 110 MB.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,

    /// Decides the order of the samples, which are shuffled so that each shard is a fair sample of all
    /// classes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Threads; each writes its own shard [default: the number of cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Keeps the bytes of JPEGs. By default they become tiled, so that a crop is decoded without the rest; the pixels
    /// stay the same.
    #[arg(long)]
    no_tile: bool,

    /// Shrinks images whose longer side has more pixels, and encodes them again at quality 95: this changes the data.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    max_side: Option<u32>,

    #[command(flatten)]
    limit: ImageLimit,

    /// Leaves out images that training couldn't decode, and lists them in bad_imports.txt, instead of stopping at the
    /// first.
    #[arg(long)]
    skip_bad: bool,
}

/// The arguments of imports of raw pixels.
#[derive(Args)]
struct PixelArguments {
    /// Folder for the shards: train/ and test/ are made in it. Complete splits are kept.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    /// How images are stored: jpeg (quality 98) or png (lossless).
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

impl Args for Arguments {
    fn augment_args(command: Command) -> Command {
        with_subcommands(command, ENTRIES.iter().map(define_subcommand), EXAMPLES)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Arguments, clap::Error> {
        let (entry, matches) = chosen_set(matches)?;
        let sources = matches.get_many::<String>(SRC).unwrap_or_default().cloned().collect();
        let settings = match &entry.importer {
            Importer::Pixels(importer) => {
                Settings::Pixels(importer, PixelArguments::from_arg_matches(matches)?)
            }
            Importer::Images(importer) => {
                let value = |option: &ImportOption| {
                    Some((option.name, matches.get_one::<String>(option.name)?.clone()))
                };
                let options = importer.options.iter().filter_map(value).collect();
                Settings::Images(importer, ImageArguments::from_arg_matches(matches)?, options)
            }
        };
        Ok(Arguments { sources, settings })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn define_subcommand(entry: &'static Entry) -> Command {
    let source = Arg::new(SRC).long(SRC).required(true).help(entry.source);
    let command = Command::new(entry.name);
    let command = match &entry.importer {
        Importer::Pixels(importer) => {
            let default = match importer.encoding {
                Encoding::Jpeg { .. } => "jpeg",
                Encoding::Png => "png",
            };
            PixelArguments::augment_args(command.arg(source.value_name("DIR")))
                .mut_arg("format", |format| format.default_value(default))
        }
        Importer::Images(importer) => {
            let source = if importer.several_sources {
                source.value_name("FILE").num_args(1..).action(ArgAction::Append)
            } else {
                source.value_name("DIR")
            };
            let command = command.arg(source).args(importer.options.iter().map(define_option));
            ImageArguments::augment_args(command)
        }
    };
    command.about(entry.about) // in place of the description of the arguments' type
}

fn define_option(option: &'static ImportOption) -> Arg {
    let argument = Arg::new(option.name).long(option.name).value_name(option.value_name).help(option.help);
    let argument = match option.default {
        Some(default) => argument.default_value(default),
        None => argument,
    };
    if option.values.is_empty() {
        argument
    } else {
        argument.value_parser(PossibleValuesParser::new(option.values))
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.settings {
        Settings::Pixels(importer, settings) => {
            let source = arguments.sources.first().map(PathBuf::from).unwrap_or_default();
            import_pixels(importer, source, settings)
        }
        Settings::Images(importer, settings, options) => {
            let request = ImageRequest {
                sources: arguments.sources.clone(),
                out: settings.output.clone(),
                options: options.clone(),
            };
            import_images(importer, request, settings)
        }
    }
}

fn import_pixels(importer: &'static PixelImporter, source: PathBuf, settings: &PixelArguments) -> Result<()> {
    let import = PixelImport {
        importer,
        source,
        out: settings.output.clone(),
        encoding: match settings.format {
            Some(Format::Jpeg) => Encoding::Jpeg { quality: PIXEL_JPEG_QUALITY },
            Some(Format::Png) => Encoding::Png,
            None => importer.encoding,
        },
        shard_size: settings.shard_size,
    };
    let meter = ProgressMeter::new()?;
    let splits = import.run(|done, total| meter.update(done, total, None));
    meter.finish();
    print_report(&splits?);
    Ok(())
}

fn import_images(
    importer: &'static ImageImporter,
    request: ImageRequest,
    settings: &ImageArguments,
) -> Result<()> {
    let import = ImageImport {
        importer,
        request,
        seed: settings.seed,
        shard_size: settings.shard_size,
        threads: settings.threads.unwrap_or_else(count_cores),
        tile: !settings.no_tile,
        max_side: settings.max_side,
        max_pixels: settings.limit.max_pixels,
        skip_bad: settings.skip_bad,
    };
    let meter = ProgressMeter::new()?;
    let splits = import.run(&|Progress { done, total, bytes }| meter.update(done, total, Some(bytes)));
    meter.finish();
    print_report(&splits?);
    if let Some(side) = settings.max_side {
        print(&format!("images of over {side} pixels were shrunk and encoded again: this is other data\n"));
    }
    Ok(())
}

fn print_report(splits: &[Split]) {
    for Split { folder, info, status, bad, left_out } in splits {
        let verb = match status {
            SplitStatus::Written => "wrote",
            SplitStatus::AlreadyComplete => "already complete:",
        };
        let folder = folder.display();
        print(&format!("{verb} {folder} (samples: {}, shards: {})\n", info.samples, info.shards));
        if !left_out.is_empty() {
            print(&format!("left out {left_out}\n"));
        }
        if *bad > 0 {
            print(&format!("left out {bad} bad images, listed in {folder}/bad_imports.txt\n"));
        }
    }
}
