//! `codinet-export`.

use codinet_trainer::cli::program::Program;
use codinet_trainer::export::cli::{self, Args};

fn main() {
    let shell = |args: &Args| args.completions;
    Program { name: "codinet-export", mend: "free some of it", shell }.run_alone(cli::run);
}
