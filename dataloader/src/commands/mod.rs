//! The subcommands.

use std::io::{self, Write};

pub mod bench;
pub mod import;
pub mod index;
pub mod inspect;
mod meter;
pub mod verify;

/// Prints to stdout. A reader that has gone away (`| head`) is no error.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The number of threads to use where none was asked for.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
