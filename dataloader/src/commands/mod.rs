//! The subcommands.

use std::io::{self, Write};

pub mod import;
pub mod index;
pub mod inspect;

/// Prints to stdout. A reader that has gone away (`| head`) is no error.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
