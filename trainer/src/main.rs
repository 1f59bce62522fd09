//! `codinet-train`.

use codinet_trainer::cli;
use codinet_trainer::cli::program::Program;
use codinet_trainer::config::TrainArgs;
use codinet_trainer::sys::memory;

fn main() {
    let shell = |args: &TrainArgs| args.completions;
    // Signals are watched before anything takes time: one that comes early is not lost.
    Program { name: "codinet-train", mend: memory::MEND, shell }.run(cli::stop_on_signals, cli::run);
}
