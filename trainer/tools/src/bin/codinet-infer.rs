//! `codinet-infer`.

use codinet_tools::infer::cli::{self, Args};
use codinet_trainer::cli::program::Program;

fn main() {
    let shell = |args: &Args| args.completions;
    Program { name: "codinet-infer", mend: "lower --batch", shell }.run_alone(cli::run);
}
