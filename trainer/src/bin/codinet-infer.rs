//! `codinet-infer`: parse, run, and turn what happened into one line and an exit code.

use clap::{CommandFactory, Parser};
use codinet_trainer::infer::cli::{self, Args};
use codinet_trainer::memory;

fn main() {
    memory::tune();
    memory::tune();
    let args = Args::parse();
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), "codinet-infer", &mut std::io::stdout());
        return;
    }
    if let Err(error) = cli::run(&args) {
        eprintln!("error: {error}");
        std::process::exit(error.exit as i32);
    }
}
