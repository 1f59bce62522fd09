//! `codinet-export`: parse, run, and turn what happened into one line and an exit code.

use clap::{CommandFactory, Parser};
use codinet_trainer::export::cli::{self, Args};

fn main() {
    let args = Args::parse();
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), "codinet-export", &mut std::io::stdout());
        return;
    }
    if let Err(error) = cli::run(&args) {
        eprintln!("error: {error}");
        std::process::exit(error.exit as i32);
    }
}
