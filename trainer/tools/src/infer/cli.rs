//! `codinet-infer`'s command line.

use super::{bench, curve, predict};
use crate::hardware::Hardware;
use crate::trained::NetworkArgs;
use clap::{Parser, Subcommand};
use codinet_trainer::sys::error::{Error, Exit, OF_TRAINED, Result};
use codinet_trainer::sys::load_cuda;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  codinet-infer --checkpoint runs/a photos/ --output preds.jsonl
  codinet-infer --checkpoint runs/a/checkpoints/best data/fashion-mnist/test
  codinet-infer curve --checkpoint runs/a      accuracy at other budgets
  codinet-infer bench --checkpoint runs/a      time saved by skipping";

/// Classify images with a trained network; each block runs only for the images whose path takes it.
#[derive(Debug, Parser)]
#[command(
    name = "codinet-infer",
    version,
    after_help = format!("{EXAMPLES}\n\n{}", Exit::list(OF_TRAINED)),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(flatten)]
    predict: predict::Args,

    #[command(subcommand)]
    command: Option<Command>,

    /// Print a completion script for a shell, and exit.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<clap_complete::Shell>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time dynamic inference against the static backbone.
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Find accuracy and cost at several budgets, by a bias on the gates.
    #[command(after_help = curve::EXAMPLES)]
    Curve(curve::Args),
}

/// A network, and the images that it classifies.
#[derive(Debug, clap::Args)]
pub(super) struct InputArgs {
    #[command(flatten)]
    pub network: NetworkArgs,

    #[command(flatten)]
    pub hardware: Hardware,

    /// JPEG and PNG files, folders of them, shards as in `data.val`, or a folder with a subfolder for each of the run's classes.
    #[arg(value_name = "IMAGES")]
    pub images: Vec<PathBuf>,
}

/// Creates the file that a command writes; standard output if `path` is none.
pub(super) fn create_output(path: Option<&Path>) -> Result<Box<dyn Write>> {
    let Some(path) = path else { return Ok(Box::new(std::io::stdout().lock())) };
    let file = File::create(path).map_err(|error| Error::disk("write", path, &error))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// The error of writing to it.
pub(super) fn output_error(path: Option<&Path>, error: &std::io::Error) -> Error {
    Error::disk("write", path.unwrap_or(Path::new("standard output")), error)
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    load_cuda();
    match &args.command {
        None => predict::run(&args.predict),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Curve(args)) => curve::run(args),
    }
}
