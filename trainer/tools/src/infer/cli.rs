//! `codinet-infer`'s command line.

use super::{bench, curve, path, predict};
use clap::{Parser, Subcommand};
use codinet_trainer::sys::error::{Exit, OF_TRAINED, Result};
use codinet_trainer::sys::load_cuda;

const EXAMPLES: &str = "\
Examples:
  codinet-infer --checkpoint runs/a photos/ --output preds.jsonl
  codinet-infer --checkpoint runs/a/checkpoints/best data/fashion-mnist/test
  codinet-infer curve --checkpoint runs/a      accuracy at other budgets
  codinet-infer path --checkpoint runs/a --gates 6      the best fixed path, for model.routing
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
    /// Choose a fixed path: the gates whose blocks most images run.
    #[command(after_help = path::EXAMPLES)]
    Path(path::Args),
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    load_cuda();
    match &args.command {
        None => predict::run(&args.predict),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Curve(args)) => curve::run(args),
        Some(Command::Path(args)) => path::run(args),
    }
}
