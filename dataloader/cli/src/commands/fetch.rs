//! `codinet-data fetch`. Its subcommands are the [`ENTRIES`] of the library that name where they are published.

use std::cell::Cell;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{chosen_set, with_subcommands};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use codinet_config::text::{counted, print, shell_quote};
use codinet_dataloader::import::{Access, ENTRIES, Entry, FetchStatus, Published, PublishedFile, fetch};
use codinet_dataloader::{Error, Result};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

const EXAMPLES: &str = "\
Examples:
  codinet-data fetch cifar10                        where it is published, and its terms
  codinet-data fetch cifar10 --output downloads     the same, and downloads it
  codinet-data fetch svhn --output downloads --mirror https://mirror.example.org/svhn";

pub struct Arguments {
    entry: &'static Entry,
    published: &'static Published,
    download: Option<DownloadArguments>,
}

/// The arguments of sets that may be downloaded.
#[derive(Args)]
struct DownloadArguments {
    /// Folder for the files. A download that was killed resumes when it is run again. Without it, nothing is downloaded.
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Where the files are, if not at their authors: a URL, or a folder.
    #[arg(long, value_name = "URL|DIR")]
    mirror: Option<String>,

    /// Downloads the optional files, too.
    #[arg(long)]
    all: bool,
}

impl Args for Arguments {
    fn augment_args(command: Command) -> Command {
        let subcommand = |entry: &Entry| {
            let command = Command::new(entry.name);
            let command = match entry.published?.access {
                Access::Download { .. } => DownloadArguments::augment_args(command),
                Access::Account(_) => command,
            };
            Some(command.about(entry.about)) // in place of the description of the arguments' type
        };
        with_subcommands(command, ENTRIES.iter().filter_map(subcommand), EXAMPLES)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Arguments {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Arguments, clap::Error> {
        let (entry, matches) = chosen_set(matches)?;
        let published = entry.published.ok_or_else(|| clap::Error::new(ErrorKind::MissingSubcommand))?;
        let download = match published.access {
            Access::Download { .. } => Some(DownloadArguments::from_arg_matches(matches)?),
            Access::Account(_) => None,
        };
        Ok(Arguments { entry, published, download })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    print(&describe(arguments.entry, arguments.published));
    let name = arguments.entry.name;
    let mut folder = Path::new("downloads");
    if let (Some(download), Access::Download { base, files }) =
        (&arguments.download, &arguments.published.access)
    {
        let Some(output) = &download.output else {
            print(&format!("download: codinet-data fetch {name} --output downloads\n"));
            return Ok(());
        };
        folder = output;
        let base = download.mirror.as_deref().unwrap_or(base);
        let files: Vec<_> = files.iter().filter(|file| download.all || !file.optional).collect();
        download_files(&files, base, folder)?;
    }
    let source = shell_quote(&folder.to_string_lossy());
    print(&format!("next: codinet-data import {name} --src {source} --output data/{name}\n"));
    Ok(())
}

/// Where the set is published, its files and its terms.
fn describe(entry: &Entry, published: &Published) -> String {
    let mut text = format!("{}\npage: {}\nterms: {}\n", entry.about, published.page, published.terms);
    let written = match &published.access {
        Access::Download { base, files } => files.iter().try_for_each(|file| {
            let PublishedFile { name, bytes, md5, sha256, optional } = file;
            let note = if *optional { ", optional: --all" } else { "" };
            let bytes = HumanCount(*bytes);
            writeln!(text, "file: {base}{name}, {bytes} bytes{note}\n  md5 {md5}\n  sha256 {sha256}")
        }),
        Access::Account(steps) => steps.iter().try_for_each(|step| writeln!(text, "{step}")),
    };
    written.expect("a string can be written");
    text
}

fn download_files(files: &[&PublishedFile], base: &str, folder: &Path) -> Result<()> {
    let total = HumanBytes(files.iter().map(|file| file.bytes).sum());
    print(&format!("fetching {} of {total} from {base}\n", counted(files.len(), "file")));
    if !cfg!(feature = "remote") && base.contains("://") {
        let what = "this codinet-data cannot download: it was built without the feature `remote`. Build with it \
                    (docs/data.md), or fetch the files by other means (curl -L -C - -O URL)";
        return Err(Error::InvalidArgument(what.into()));
    }
    let style =
        ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
    for file in files {
        let bar = ProgressBar::new(file.bytes).with_style(style.clone()).with_message(file.name);
        let first = Cell::new(None);
        let status = fetch(file, base, folder, &|bytes| {
            bar.set_position(bytes);
            if first.get().is_none() {
                first.set(Some(bytes));
                bar.reset_eta(); // the speed is that of this call
            }
        });
        bar.finish_and_clear();
        let resumed_from = first.get().filter(|&bytes| bytes > 0);
        let path = folder.join(file.name);
        let path = path.display();
        print(&match (status?, resumed_from) {
            (FetchStatus::AlreadyComplete, _) => format!("already complete: {path}\n"),
            (FetchStatus::Downloaded, None) => format!("downloaded {path}, {}\n", HumanBytes(file.bytes)),
            (FetchStatus::Downloaded, Some(from)) => {
                format!("downloaded {path}, {}, resumed from {}\n", HumanBytes(file.bytes), HumanBytes(from))
            }
        });
    }
    Ok(())
}
