//! The subcommands.

use std::fmt::Write as _;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command};
use codinet_dataloader::import::{ENTRIES, Entry};
use codinet_dataloader::{LeftOut, LeftOutKind};

pub mod bench;
pub mod fetch;
pub mod import;
pub mod index;
pub mod inspect;
mod progress;
pub mod verify;

/// `command` with a subcommand for each of some data sets.
fn with_subcommands(
    command: Command,
    sets: impl Iterator<Item = Command>,
    examples: &'static str,
) -> Command {
    command.subcommands(sets).subcommand_required(true).arg_required_else_help(true).after_help(examples)
}

/// The data set that a subcommand of [`with_subcommands`] names, and its arguments.
fn chosen_set(matches: &ArgMatches) -> Result<(&'static Entry, &ArgMatches), clap::Error> {
    let chosen = matches
        .subcommand()
        .and_then(|(name, matches)| Some((ENTRIES.iter().find(|entry| entry.name == name)?, matches)));
    chosen.ok_or_else(|| clap::Error::new(ErrorKind::MissingSubcommand))
}

/// The data that a command reads.
#[derive(clap::Args)]
struct Shards {
    /// A folder of shards, a glob ('x-*.tar', quoted), a range ('x-{000000..000012}.tar'), one shard, a list of
    /// shards by another tool ('_info.json#train') or a folder of class folders; local or, but for the last, after
    /// s3://, gs://, https://.
    shards: String,
}

/// The limit of an image's size.
#[derive(clap::Args)]
struct ImageLimit {
    /// Limit of an image's pixels; a larger image is bad. Decoding takes 3 to 9 bytes of memory a pixel in each thread.
    #[arg(long, value_name = "N", default_value_t = codinet_dataloader::DEFAULT_MAX_PIXELS)]
    max_pixels: u64,
}

/// Writes a line for each kind of files and members that were left out.
fn describe_left_out(text: &mut String, left_out: &LeftOut) -> std::fmt::Result {
    for (kind, LeftOutKind { count, first }) in left_out.kinds() {
        writeln!(text, "left out {count} {kind}, first {first}")?;
    }
    Ok(())
}

/// The default number of threads.
fn count_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
