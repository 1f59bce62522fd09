//! `codinet-export`.

use codinet_tools::export::cli::{self, Args};
use codinet_trainer::cli::program::Program;
use codinet_trainer::sys::Allocator;

fn main() {
    let completions = |args: &Args| args.completions;
    Program {
        name: "codinet-export",
        allocator: Allocator::Glibc,
        oom_advice: "free some of it",
        completions,
    }
    .run_single(cli::run);
}
