//! `codinet-export`.

use codinet_tools::export::cli::{self, Args};
use codinet_trainer::cli::program::Program;

fn main() {
    let completions = |args: &Args| args.completions;
    Program { name: "codinet-export", oom_advice: "free some of it", completions }.run_single(cli::run);
}
