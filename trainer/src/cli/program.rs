//! How a program starts and ends: parse, join the other ranks where there may be some, run, and turn what happened into one
//! line and an exit code.

use crate::dist::{self, World};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{is_out_of_memory, tune_allocator};
use clap::Parser;
use clap_complete::Shell;

/// What a program is told apart by.
#[derive(Clone, Copy)]
pub struct Program<A> {
    /// Its name.
    pub name: &'static str,
    /// What to do where memory does not suffice.
    pub mend: &'static str,
    /// For which shell a completion script was asked for, instead of anything else.
    pub shell: fn(&A) -> Option<Shell>,
}

impl<A: Parser> Program<A> {
    /// Runs it as one process.
    pub fn run_alone(self, work: impl FnOnce(&A) -> Result<()>) {
        tune_allocator();
        let Some(args) = self.parse(0) else { return };
        self.watch_panics(String::new());
        work(&args).unwrap_or_else(|error| leave(&error, 0));
    }

    /// Runs it on this rank. `prepare` runs before ranks meet, which may take its time.
    pub fn run<P>(
        self,
        prepare: impl FnOnce() -> Result<P>,
        work: impl FnOnce(&A, &mut World, P) -> Result<()>,
    ) {
        tune_allocator();
        let launched_rank = dist::launched_rank();
        let Some(args) = self.parse(launched_rank) else { return };
        self.watch_panics(format!(" on rank {launched_rank}"));
        let prepared = prepare().unwrap_or_else(|error| leave(&error, launched_rank));
        let mut world = dist::join().unwrap_or_else(|error| leave(&error, launched_rank));
        if let Err(error) = work(&args, &mut world, prepared) {
            if !error.agreed || world.barrier().is_err() {
                eprintln!("error: {error} (rank {} of {})", world.rank(), world.ranks());
                dist::abort(error.exit as i32);
            }
            let rank = world.rank();
            drop(world);
            leave(&error, rank);
        }
    }

    /// The command line; none where a completion script was all that it asked for.
    fn parse(&self, rank: usize) -> Option<A> {
        let args = A::try_parse().unwrap_or_else(|error| match rank {
            0 => error.exit(), // prints help, or what is wrong with the command line
            _ => std::process::exit(error.exit_code()),
        });
        let Some(shell) = (self.shell)(&args) else { return Some(args) };
        clap_complete::generate(shell, &mut A::command(), self.name, &mut std::io::stdout());
        None
    }

    /// From here on a panic is one line, and ends the job.
    fn watch_panics(&self, place: String) {
        let (name, mend) = (self.name, self.mend);
        std::panic::set_hook(Box::new(move |panic| {
            let what = panic.payload_as_str().unwrap_or("unknown").replace('\n', " ");
            if is_out_of_memory(&what) {
                eprintln!("error: out of memory{place}: {}; {mend}", brief(&what));
                dist::abort(Exit::Memory as i32);
            }
            let at = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            eprintln!("error: a bug in {name} at {at}: {what}; please report it");
            dist::abort(Exit::Panic as i32);
        }));
    }
}

/// libtorch's words for memory that is not to be had, without Rust's before and its advice behind them.
fn brief(words: &str) -> &str {
    let starts = ["CUDA out of memory", "DefaultCPUAllocator"];
    let said = starts.iter().find_map(|start| words.find(start)).map_or(words, |at| &words[at..]);
    let ends = [" If reserved but", "\\n", " Exception raised"];
    ends.iter().fold(said, |said, end| said.split(end).next().unwrap_or(said)).trim_end_matches('.')
}

/// Ends this process with the error's code; rank 0 says why.
fn leave(error: &Error, rank: usize) -> ! {
    match error.exit {
        _ if rank > 0 => {}
        Exit::Interrupted => eprintln!("{error}"),
        _ => eprintln!("error: {error}"),
    }
    std::process::exit(error.exit as i32)
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn what_ran_out_is_told_without_its_wrapping() {
        // As libtorch 2.11 says it on a GPU, by its source.
        let gpu = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 20.00 MiB. \
                   GPU 0 has a total capacity of 79.11 GiB of which 2.00 MiB is free. If reserved but unallocated memory is \
                   large try setting PYTORCH_ALLOC_CONF\\nException raised from malloc\")";
        let told = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 2.00 \
                    MiB is free";
        assert_eq!(brief(gpu), told);
        assert_eq!(brief("std::bad_alloc"), "std::bad_alloc");
    }
}
