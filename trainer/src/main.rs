//! `codinet-train`.

use codinet_trainer::cli::program::Program;
use codinet_trainer::cli::{self, Args};
use codinet_trainer::sys::memory;

fn main() {
    let shell = |args: &Args| args.completions;
    // Signals are watched before anything takes time: one that comes early is not lost.
    Program { name: "codinet-train", mend: memory::MEND, shell }.run(cli::stop_on_signals, cli::run);
}
