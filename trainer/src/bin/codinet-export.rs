//! `codinet-export`.

use codinet_trainer::export::cli::{self, Args};
use codinet_trainer::program::Program;

fn main() {
    let shell = |args: &Args| args.completions;
    Program { name: "codinet-export", mend: "free some of it", shell }.run_alone(cli::run);
}
