//! `codinet-infer`'s command line.

use super::{bench, curve, predict};
use crate::hardware::Hardware;
use crate::trained::Trained;
use clap::{Parser, Subcommand};
use codinet_trainer::sys::error::{Error, Exit, OF_TRAINED, Result};
use codinet_trainer::sys::load_cuda;
use std::path::{Path, PathBuf};
use tch::Device;

const EXAMPLES: &str = "\
Examples:
  codinet-infer --checkpoint runs/a photos/ --output preds.jsonl
  codinet-infer --checkpoint runs/a/checkpoints/best data/fashion-mnist/test
  codinet-infer curve --checkpoint runs/a      accuracy at other budgets
  codinet-infer bench --checkpoint runs/a      what skipping gains in time";

/// Classify images by a trained network, each block running only for the images that take it.
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
    tool: Option<Tool>,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<clap_complete::Shell>,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Time dynamic inference against the static backbone.
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Find accuracy and cost at several budgets, by a bias on the gates.
    #[command(after_help = curve::EXAMPLES)]
    Curve(curve::Args),
}

/// Which network, and where it runs.
#[derive(Debug, clap::Args)]
pub struct Network {
    /// A run directory, a `step-…` folder, `checkpoints/best` or a .safetensors file.
    #[arg(long, value_name = "RUN|FILE", required = true)]
    pub checkpoint: Option<PathBuf>,

    /// What the weights are of, where they lie in no run: a config file, or a shipped one's name.
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<String>,

    /// Where it runs.
    #[command(flatten)]
    pub hardware: Hardware,
}

/// What images become predictions.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// JPEG and PNG files, folders of them, shards as `data.val` takes them, or a folder of the run's class folders.
    #[arg(value_name = "IMAGES")]
    pub images: Vec<PathBuf>,
}

impl Network {
    /// Opens the network.
    pub fn open(&self, device: Device) -> Result<Trained> {
        let checkpoint = self.checkpoint.as_deref().expect("clap requires it where there is no subcommand");
        Trained::open(checkpoint, self.config.as_deref(), device)
    }
}

/// A file that a command writes, or standard output.
pub fn output(path: Option<&Path>) -> Result<Box<dyn std::io::Write>> {
    Ok(match path {
        None => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let file = std::fs::File::create(path).map_err(|error| Error::disk("write", path, &error))?;
            Box::new(std::io::BufWriter::new(file))
        }
    })
}

/// Does what the command line asks for.
pub fn run(args: &Args) -> Result<()> {
    load_cuda();
    match &args.tool {
        None => predict::run(&args.predict),
        Some(Tool::Bench(args)) => bench::run(args),
        Some(Tool::Curve(args)) => curve::run(args),
    }
}
