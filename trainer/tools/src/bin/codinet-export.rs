//! `codinet-export`.

use codinet_tools::export::cli::{self, Args};
use codinet_trainer::cli::program::Program;

fn main() {
    let shell = |args: &Args| args.completions;
    Program { name: "codinet-export", mend: "free some of it", shell }.run_alone(cli::run);
}
