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
  codinet-analyze runs/static accuracy        the part that a network without gates has
  codinet-analyze runs/a --checkpoint runs/a/checkpoints/best --output best
  codinet-analyze compare runs/a runs/b       runs next to each other, into comparison/";

/// Analyze a trained network: which classes it confuses, how many routing paths there are, which images take them, whether they
/// stay the same under augmentation and follow the similarity of images. Writes report.html, charts, tables and TensorBoard's files.
#[derive(Debug, Parser)]
#[command(name = "codinet-analyze", version, after_help = format!("{EXAMPLES}\n\n{}", Exit::list(OF_TRAINED)))]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,

    /// A run directory.
    #[arg(value_name = "RUN", required_unless_present = "completions")]
    pub(super) run: Option<PathBuf>,

    /// Parts of the analysis [default: all].
    #[arg(value_name = "WHAT")]
    pub(super) what: Vec<What>,

    /// Other weights than the run's newest checkpoint: a `step-…` folder, `checkpoints/best` or a .safetensors file.
    #[arg(long, value_name = "RUN|FILE")]
    pub(super) checkpoint: Option<PathBuf>,

    /// The config of weights outside a run directory: a file, or a shipped config's name.
    #[arg(long, value_name = "CONFIG")]
    pub(super) config: Option<String>,

    /// Other images than the run's data.val: shards or a folder.
    #[arg(long, value_name = "SHARDS")]
    pub(super) data: Option<String>,

    /// The folder to write [default: RUN/analysis].
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,

    /// Features to compare paths with, one row per image, instead of the network's own: a .npy or .safetensors file, or
    /// FILE.safetensors:NAME.
    #[arg(long, value_name = "FILE")]
    pub(super) features: Option<String>,

    /// The most images whose pairs are compared, evenly spaced in the set.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(super) similarity_images: usize,

    /// The most images in t-SNE, evenly spaced in the set.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub(super) tsne_images: usize,

    /// t-SNE's perplexity: about the number of neighbours that count.
    #[arg(long, value_name = "X", default_value_t = 30.0, value_parser = at_least_one)]
    pub(super) perplexity: f64,

    /// t-SNE's steps.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) tsne_steps: usize,

    /// Classes with their own colour in t-SNE's chart, at most ten [default: the first ten].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub(super) classes: Vec<usize>,

    /// The number of images that are augmented ten times each; the paper's Figure 10 has 150.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(super) groups: usize,

    /// The largest angle of rotation, in degrees.
    #[arg(long, value_name = "DEGREES", default_value_t = 15.0, value_parser = angle)]
    pub(super) rotation: f64,

    /// Seed of the augmentations and of t-SNE.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,

    #[command(flatten)]
    pub(super) hardware: Hardware,

    /// Print a completion script for a shell, and exit.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<clap_complete::Shell>,
}

/// A command other than the analysis of one run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put runs next to each other: settings, paths, cost, accuracy and the numbers of their analyses.
    #[command(after_help = "Examples:\n  codinet-analyze compare runs/a runs/b --output ab")]
    Compare {
        /// Run directories of finished runs.
        #[arg(value_name = "RUN", required = true)]
        runs: Vec<PathBuf>,
        /// The folder to write.
        #[arg(long, short, value_name = "DIR", default_value = "comparison")]
        output: PathBuf,
    },
}

/// A part of the analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The confusion matrix, accuracy and cost by class, the images that are most confidently wrong.
    Accuracy,
    /// Distinct paths, their frequencies and entropy; how often each block runs, for each class.
    Paths,
    /// Paths and predictions under augmentation.
    Consistency,
    /// The correlation between the similarities of features and of paths.
    Similarity,
    /// Relaxed paths in the plane.
    Tsne,
    /// Images that share a path.
    Sheets,
}

impl Args {
    /// Whether the command line includes a part.
    pub fn includes(&self, what: What) -> bool {
        self.what.is_empty() || self.what.contains(&what)
    }
}

fn angle(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|angle| (0.0..=180.0).contains(angle)).ok_or("0 to 180".into())
}

fn at_least_one(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x >= 1.0 && x.is_finite()).ok_or("at least 1".into())
}
