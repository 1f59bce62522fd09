//! `codinet-export`'s command line.

use super::weights;
use crate::trained::NetworkArgs;
use clap::{Parser, ValueEnum};
use codinet_trainer::config::Skip;
use codinet_trainer::run::write_atomically;
use codinet_trainer::sys::error::{Error, Exit, OF_TRAINED, Result};
use codinet_trainer::text::print_line;
use std::path::PathBuf;
use tch::Device;

const EXAMPLES: &str = "\
Examples:
  codinet-export --checkpoint runs/a --format safetensors --output a.safetensors
  codinet-export --checkpoint runs/a --format onnx --output a.onnx
  codinet-export --checkpoint runs/a --format onnx --skip --output one.onnx";

/// Write a trained network for other programs.
#[derive(Debug, Parser)]
#[command(name = "codinet-export", version, after_help = format!("{EXAMPLES}\n\n{}", Exit::list(OF_TRAINED)))]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,

    /// The file format.
    #[arg(long, required = true)]
    format: Option<Format>,

    /// With onnx: a file for one image at a time, in which a block that is skipped is not computed: an `If` around each block.
    #[arg(long)]
    skip: bool,

    /// The file to write.
    #[arg(long, short, value_name = "FILE", required = true)]
    output: Option<PathBuf>,

    /// Print a completion script for a shell, and exit.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<clap_complete::Shell>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// All tensors, by torchvision's names, and the architecture; the package in examples/python reads it.
    Safetensors,
    /// Not written here: the package in examples/python makes it from a safetensors export.
    Torchscript,
    /// ONNX, opset 17; every block is computed, and masked if it is skipped, unless --skip is given.
    Onnx,
    /// The static backbone for torchvision's own models.
    Torchvision,
}

/// Runs the program.
pub fn run(args: &Args) -> Result<()> {
    let format = args.format.expect("clap requires it");
    let output = args.output.as_deref().expect("clap requires it");
    if format == Format::Torchscript {
        let what = "--format torchscript: TorchScript is deprecated since torch 2.11; export as safetensors, then run \
                    python -m codinet FILE (examples/python) with --export OUT.pt2 (torch.export) or --torchscript OUT.pt";
        return Err(Error::new(Exit::Config, what));
    }
    if args.skip && format != Format::Onnx {
        return Err(Error::new(Exit::Config, "--skip is for --format onnx"));
    }
    let skip = if args.skip { Skip::Real } else { Skip::Masked };
    let network = args.network.load(Device::Cpu)?;
    let bytes = match format {
        Format::Onnx => super::onnx(&network, skip),
        Format::Torchvision => super::torchvision(&network)?,
        Format::Safetensors | Format::Torchscript => super::safetensors(&network),
    };
    write_atomically(output, &bytes)?;
    if format == Format::Torchvision
        && let Some(note) = weights::torchvision_note(&network.config)
    {
        codinet_trainer::eprint_line!("{note}");
    }
    let megabytes = bytes.len() as f64 / 1e6;
    print_line(&format!("{}: {megabytes:.1} MB, from {}", output.display(), network.file.display()));
    Ok(())
}
