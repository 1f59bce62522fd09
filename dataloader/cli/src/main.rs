//! `codinet-data` makes and examines the shards that training reads.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use codinet_config::text::error_lines;
use codinet_dataloader::Error;

mod commands;

/// Exit code of a wrong command line, also used by clap.
const USAGE_ERROR: u8 = 2;
/// Exit code of wrong data or a failed disk.
const DATA_ERROR: u8 = 3;

/// Make and examine the tar shards that codinet-train reads.
#[derive(Parser)]
#[command(name = "codinet-data", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Prints a completion script for a shell, and exits.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,
}

#[derive(Subcommand)]
enum Command {
    /// Show where a published data set is, its checksums and its terms; with --output, download it.
    Fetch(commands::fetch::Arguments),
    /// Convert a published data set to shards.
    Import(commands::import::Arguments),
    /// Time reading, decoding and resizing, stage by stage, and the loader as a whole.
    Bench(commands::bench::Arguments),
    /// Make or check the index of every shard, so that training starts at once.
    Index(commands::index::Arguments),
    /// Describe shards, and decode some of the images; with --sheet, draw the views that training makes.
    Inspect(commands::inspect::Arguments),
    /// Decode every image, and list what is wrong or odd.
    Verify(commands::verify::Arguments),
}

const EXAMPLES: &str = "\
Examples:
  codinet-data import fashion-mnist --src /usr/share/datasets/fashion-mnist --output data/fashion-mnist
  codinet-data inspect data/fashion-mnist/train
  codinet-data import --help              and every other command has examples of its own

Exit codes: 0 done, 2 wrong usage, 3 something is wrong with the data or a disk.";

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(shell) = cli.completions {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "codinet-data", &mut script);
        let _ = std::io::stdout().write_all(&script); // a closed pipe (`| head`) is no error
        return ExitCode::SUCCESS;
    }
    let result = match cli.command {
        Some(Command::Fetch(arguments)) => commands::fetch::run(&arguments),
        Some(Command::Import(arguments)) => commands::import::run(&arguments),
        Some(Command::Bench(arguments)) => commands::bench::run(&arguments),
        Some(Command::Index(arguments)) => commands::index::run(&arguments),
        Some(Command::Inspect(arguments)) => commands::inspect::run(&arguments),
        Some(Command::Verify(arguments)) => commands::verify::run(&arguments),
        None => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            codinet_config::eprint_line!("{}", error_lines(&error.to_string()));
            ExitCode::from(if matches!(error, Error::InvalidArgument(_)) { USAGE_ERROR } else { DATA_ERROR })
        }
    }
}
