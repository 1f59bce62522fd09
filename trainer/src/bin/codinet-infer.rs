//! `codinet-infer`.

use codinet_trainer::cli::program::Program;
use codinet_trainer::infer::cli::{self, Args};

fn main() {
    let shell = |args: &Args| args.completions;
    Program { name: "codinet-infer", mend: "lower --batch", shell }.run_alone(cli::run);
}
