//! `codinet-data`: makes and examines the shards that training reads.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod commands;

/// Exit code where the data is at fault, or a disk. (Clap exits with 2 where the command line is.)
const DATA_ERROR: u8 = 3;

/// Make and examine the tar shards that codinet-train reads.
#[derive(Parser)]
#[command(name = "codinet-data", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Convert a published data set to shards.
    Import(commands::import::Arguments),
    /// Say what shards hold, and try to decode some of it.
    Inspect(commands::inspect::Arguments),
}

const EXAMPLES: &str = "\
Examples:
  codinet-data import fashion-mnist --src /usr/share/datasets/fashion-mnist --out data/fashion-mnist
  codinet-data inspect data/fashion-mnist/train
  codinet-data inspect 'data/imagenet/train-{000000..000012}.tar'

Exit codes: 0 done, 2 wrong usage, 3 something is wrong with the data or a disk.";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Import(arguments) => commands::import::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(DATA_ERROR)
        }
    }
}
