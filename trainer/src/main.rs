//! `codinet-train`.

use codinet_trainer::cli;
use codinet_trainer::cli::program::Program;
use codinet_trainer::config::TrainArgs;
use codinet_trainer::sys::OOM_ADVICE;

fn main() {
    let shell = |args: &TrainArgs| args.completions;
    // Signals are watched before anything takes time: one that comes early is not lost.
    Program { name: "codinet-train", mend: OOM_ADVICE, shell }.run(cli::stop_on_signals, cli::run);
}
