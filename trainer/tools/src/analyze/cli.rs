//! `codinet-analyze`'s command line.

use crate::hardware::Hardware;
use clap::{Parser, Subcommand, ValueEnum};
use codinet_trainer::sys::error::{Exit, OF_TRAINED};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  codinet-analyze runs/a                      everything, into runs/a/analysis/
  mpirun -n 8 codinet-analyze runs/a          the same, images shared among ranks
  codinet-analyze runs/a paths similarity --features moco.npy
  codinet-analyze runs/a --checkpoint runs/a/checkpoints/best --output best
  codinet-analyze compare runs/a runs/b       side by side, into comparison/";

/// Look at the routing paths of a trained network: how many there are, who takes them, whether they hold under
/// augmentation and follow the images' likeness. It writes report.html, pictures, tables and TensorBoard's files.
#[derive(Debug, Parser)]
#[command(name = "codinet-analyze", version, after_help = format!("{EXAMPLES}\n\n{}", Exit::list(OF_TRAINED)))]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// A run directory.
    #[arg(value_name = "RUN", required_unless_present = "completions")]
    pub run: Option<PathBuf>,

    /// What to look at; everything where nothing is named.
    #[arg(value_name = "WHAT")]
    pub what: Vec<What>,

    /// Other weights than those of the run's newest checkpoint: a `step-…` folder, `checkpoints/best` or a .safetensors
    /// file.
    #[arg(long, value_name = "RUN|FILE")]
    pub checkpoint: Option<PathBuf>,

    /// What the weights are of, where they lie in no run: a config file, or a shipped one's name.
    #[arg(long, value_name = "CONFIG")]
    pub config: Option<String>,

    /// Other images than the run's data.val: shards or a folder.
    #[arg(long, value_name = "SHARDS")]
    pub data: Option<String>,

    /// Where everything is written [default: RUN/analysis].
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Features to compare paths with, a row an image, in place of the network's own: a .npy or .safetensors file, or
    /// FILE.safetensors:NAME.
    #[arg(long, value_name = "FILE")]
    pub features: Option<String>,

    /// The most images whose pairs are compared, evenly spaced in the set.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub similarity_images: usize,

    /// The most images that t-SNE lays out, evenly spaced in the set.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub tsne_images: usize,

    /// t-SNE's perplexity: about how many neighbours count.
    #[arg(long, value_name = "X", default_value_t = 30.0, value_parser = at_least_one)]
    pub perplexity: f64,

    /// t-SNE's steps.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub tsne_steps: usize,

    /// Classes with a colour of their own in t-SNE's picture, at most ten [default: the first ten].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub classes: Vec<usize>,

    /// Images that are augmented ten times each; the paper's Figure 10 has 150.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub groups: usize,

    /// Largest angle that images are turned by, in degrees.
    #[arg(long, value_name = "DEGREES", default_value_t = 15.0, value_parser = angle)]
    pub rotation: f64,

    /// Seed of the augmentations and of t-SNE.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Where the network runs.
    #[command(flatten)]
    pub hardware: Hardware,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<clap_complete::Shell>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set runs side by side: settings, paths, cost and accuracy, and what their analyses found.
    #[command(after_help = "Examples:\n  codinet-analyze compare runs/a runs/b --output ab")]
    Compare {
        /// Run directories that came to their end.
        #[arg(value_name = "RUN", required = true)]
        runs: Vec<PathBuf>,
        /// Where the comparison is written.
        #[arg(long, short, value_name = "DIR", default_value = "comparison")]
        output: PathBuf,
    },
}

/// A part of the analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Distinct paths, their frequencies and entropy; how often each block runs, for each class.
    Paths,
    /// Paths and predictions under augmentation.
    Consistency,
    /// The correlation between likeness of features and of paths.
    Similarity,
    /// Relaxed paths laid out in the plane.
    Tsne,
    /// Images that share a path.
    Sheets,
}

impl Args {
    /// Whether a part is asked for.
    pub fn wants(&self, what: What) -> bool {
        self.what.is_empty() || self.what.contains(&what)
    }
}

fn angle(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|angle| (0.0..=180.0).contains(angle)).ok_or("0 to 180".into())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x >= 1.0 && x.is_finite()).ok_or("at least 1".into())
}
