//! `codinet-train`.

use codinet_trainer::cli::{self, Args};
use codinet_trainer::program;

fn main() {
    let shell = |args: &Args| args.completions;
    // Signals are watched before anything takes time: one that comes early is not lost.
    program::run("codinet-train", shell, cli::stop_on_signals, cli::run);
}
