//! `codinet-export`'s command line.

use super::weights;
use crate::trained::Trained;
use clap::{Parser, ValueEnum};
use codinet_trainer::run::{print_line, write_atomically};
use codinet_trainer::sys::error::{Error, Exit, OF_TRAINED, Result};
use std::path::PathBuf;
use tch::Device;

const EXAMPLES: &str = "\
Examples:
  codinet-export --checkpoint runs/a --format safetensors --output a.safetensors
  codinet-export --checkpoint runs/a --format onnx --output a.onnx";

/// Write a trained network for other programs.
#[derive(Debug, Parser)]
#[command(name = "codinet-export", version, after_help = format!("{EXAMPLES}\n\n{}", Exit::list(OF_TRAINED)))]
pub struct Args {
    /// A run directory, a `step-…` folder, `checkpoints/best` or a .safetensors file.
    #[arg(long, value_name = "RUN|FILE", required_unless_present = "completions")]
    checkpoint: Option<PathBuf>,

    /// What the weights are of, where they lie in no run: a config file, or a shipped one's name.
    #[arg(long, value_name = "CONFIG")]
    config: Option<String>,

    /// The form that is written.
    #[arg(long, required_unless_present = "completions")]
    format: Option<Format>,

    /// The file to write.
    #[arg(long, short, value_name = "FILE", required_unless_present = "completions")]
    output: Option<PathBuf>,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<clap_complete::Shell>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// All tensors with torchvision's names, and what builds the network: read by examples/codinet.py.
    Safetensors,
    /// Made by examples/codinet.py from a safetensors export.
    Torchscript,
    /// ONNX, opset 17: every block is computed, and masked where it is skipped.
    Onnx,
    /// The static backbone for torchvision's own models.
    Torchvision,
}

/// Does what the command line asks for.
pub fn run(args: &Args) -> Result<()> {
    let (Some(checkpoint), Some(format), Some(output)) = (&args.checkpoint, args.format, &args.output) else {
        return Err(Error::new(Exit::Config, "--checkpoint, --format and --output are needed"));
    };
    if format == Format::Torchscript {
        let what = "--format torchscript: TorchScript is deprecated since torch 2.11; export as safetensors, then run \
                    examples/codinet.py FILE with --export OUT.pt2 (torch.export) or --torchscript OUT.pt";
        return Err(Error::new(Exit::Config, what));
    }
    let trained = Trained::open(checkpoint, args.config.as_deref(), Device::Cpu)?;
    let bytes = match format {
        Format::Onnx => super::onnx(&trained),
        Format::Torchvision => super::torchvision(&trained)?,
        _ => super::gated(&trained),
    };
    write_atomically(output, &bytes)?;
    if format == Format::Torchvision
        && let Some(said) = weights::caution(&trained.config)
    {
        eprintln!("{said}");
    }
    let megabytes = bytes.len() as f64 / 1e6;
    let file = trained.file.display();
    print_line(&format!("{}: {megabytes:.1} MB, from {file}", output.display()));
    Ok(())
}
