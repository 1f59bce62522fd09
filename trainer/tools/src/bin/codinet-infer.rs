//! `codinet-infer`.

use codinet_tools::infer::cli::{self, Args};
use codinet_trainer::cli::program::Program;

fn main() {
    let completions = |args: &Args| args.completions;
    Program { name: "codinet-infer", oom_advice: "lower --batch", completions }.run_single(cli::run);
}
