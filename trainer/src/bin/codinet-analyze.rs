//! `codinet-analyze`: parse, join the other ranks, run, and turn what happened into one line and an exit code.

use clap::{CommandFactory, Parser};
use codinet_trainer::analyze::{self, Args};
use codinet_trainer::collective;
use codinet_trainer::error::{Error, Exit};
use codinet_trainer::memory;

fn main() {
    memory::tune();
    let launched_rank = collective::launched_rank();
    let args = Args::try_parse().unwrap_or_else(|error| match launched_rank {
        0 => error.exit(), // prints help, or what is wrong with the command line
        _ => std::process::exit(error.exit_code()),
    });
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), "codinet-analyze", &mut std::io::stdout());
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let what = panic.payload_as_str().unwrap_or("unknown").replace('\n', " ");
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        eprintln!("error: a bug in codinet-analyze at {place}: {what}; please report it");
        collective::abort(Exit::Panic as i32);
    }));
    let mut world = collective::join().unwrap_or_else(|error| leave(&error, launched_rank));
    if let Err(error) = analyze::run(&args, &mut world) {
        if !error.agreed || world.barrier().is_err() {
            eprintln!("error: {error} (rank {} of {})", world.rank(), world.world());
            collective::abort(error.exit as i32);
        }
        let rank = world.rank();
        drop(world);
        leave(&error, rank);
    }
}

/// Ends this process with the error's code; rank 0 says why.
fn leave(error: &Error, rank: usize) -> ! {
    if rank == 0 {
        eprintln!("error: {error}");
    }
    std::process::exit(error.exit as i32)
}
