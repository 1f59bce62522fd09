//! How a program starts and ends: parse the command line, connect the ranks if there are several, run, and turn an error or a
//! panic into one line and an exit code.

use crate::config::key_as_option;
use crate::dist::{self, World};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Allocator, is_gpu_error, is_out_of_memory, restart_with_settings, shorten};
use crate::text::error_lines;
use clap::Parser;
use clap_complete::Shell;
use std::io::Write;

/// What a user can do when a GPU has failed.
const GPU_ADVICE: &str = "`dmesg | grep Xid` on that host shows whether the GPU itself is at fault; on a sound GPU, \
                          CUDA_LAUNCH_BLOCKING=1 finds the operation";

/// A program whose command line is `A`.
#[derive(Clone, Copy)]
pub struct Program<A> {
    /// The program's name.
    pub name: &'static str,
    /// The allocator that it is linked with.
    pub allocator: Allocator,
    /// What a user can do when memory runs out.
    pub oom_advice: &'static str,
    /// The shell for which the command line asks for a completion script, instead of a run.
    pub completions: fn(&A) -> Option<Shell>,
}

impl<A: Parser> Program<A> {
    /// Runs `work` in one process.
    pub fn run_single(self, work: impl FnOnce(&A) -> Result<()>) {
        restart_with_settings(self.allocator);
        let Some(args) = self.parse(0) else { return };
        self.install_panic_hook(String::new());
        work(&args).unwrap_or_else(|error| exit_with(&error, 0));
    }

    /// Runs `work` on this rank. `prepare` runs before the ranks are connected, which may take long.
    pub fn run_ranks<P>(
        self,
        prepare: impl FnOnce() -> Result<P>,
        work: impl FnOnce(&A, &mut World, P) -> Result<()>,
    ) {
        restart_with_settings(self.allocator);
        let launched_rank = dist::launched_rank();
        let Some(args) = self.parse(launched_rank) else { return };
        self.install_panic_hook(format!(" on rank {launched_rank}"));
        let prepared = prepare().unwrap_or_else(|error| exit_with(&error, launched_rank));
        let mut world = dist::join().unwrap_or_else(|error| exit_with(&error, launched_rank));
        if let Err(error) = work(&args, &mut world, prepared) {
            // All ranks leave together if all have the error; otherwise this rank has to end the others.
            if !error.agreed || world.barrier().is_err() {
                let rank = format!(" (rank {} of {})", world.rank(), world.ranks());
                crate::eprint_line!("{}{rank}", error_lines(&error.message));
                dist::abort(error.exit as i32);
            }
            let rank = world.rank();
            drop(world);
            exit_with(&error, rank);
        }
    }

    /// The command line; none if it only asked for a completion script.
    fn parse(&self, rank: usize) -> Option<A> {
        let args = A::try_parse().unwrap_or_else(|error| {
            let words: Vec<String> = std::env::args().collect();
            let has_keys = A::command().get_arguments().any(|option| option.get_long() == Some("set"));
            match key_as_option(&error, &words).filter(|_| has_keys) {
                _ if rank > 0 => std::process::exit(error.exit_code()),
                Some(what) => exit_with(&Error::new(Exit::Config, what), rank),
                None => error.exit(), // prints the help, or what is wrong with the command line
            }
        });
        let Some(shell) = (self.completions)(&args) else { return Some(args) };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut A::command(), self.name, &mut script);
        let _ = std::io::stdout().write_all(&script); // a closed pipe (`| head`) is not an error
        None
    }

    /// From now on a panic prints one line and ends the job. `rank` names the rank in it.
    fn install_panic_hook(&self, rank: String) {
        let Self { name, oom_advice, .. } = *self;
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload_as_str().unwrap_or("unknown").replace('\n', " ");
            if is_out_of_memory(&message) {
                crate::eprint_line!("error: out of memory{rank}: {}; {oom_advice}", shorten(&message));
                dist::abort(Exit::Memory as i32);
            }
            if is_gpu_error(&message) {
                let gpu = dist::device::describe_gpu();
                crate::eprint_line!("error: {gpu}{rank}: {}; {GPU_ADVICE}", shorten(&message));
                dist::abort(Exit::Gpu as i32);
            }
            let location = panic.location().map(ToString::to_string).unwrap_or_default();
            crate::eprint_line!("error: a bug in {name}{rank} at {location}: {message}; please report it");
            dist::abort(Exit::Panic as i32);
        }));
    }
}

/// Ends this process with the error's exit code; rank 0 prints the error.
fn exit_with(error: &Error, rank: usize) -> ! {
    match error.exit {
        _ if rank > 0 => {}
        Exit::Interrupted => crate::eprint_line!("{error}"),
        _ => crate::eprint_line!("{}", error_lines(&error.message)),
    }
    std::process::exit(error.exit as i32)
}
