//! `codinet-train`.

use codinet_trainer::cli;
use codinet_trainer::cli::program::Program;
use codinet_trainer::config::TrainArgs;
use codinet_trainer::sys::{Allocator, OOM_ADVICE};

fn main() {
    let completions = |args: &TrainArgs| args.completions;
    // Signals are watched first, so that an early one is not lost.
    Program { name: "codinet-train", allocator: Allocator::Glibc, oom_advice: OOM_ADVICE, completions }
        .run_ranks(cli::watch_signals, cli::run);
}
