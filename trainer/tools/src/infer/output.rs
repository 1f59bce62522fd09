//! The file that a command writes.

use codinet_trainer::sys::error::{Error, Exit, Result};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

/// Creates the file that a command writes; standard output if `path` is none.
pub fn create_output(path: Option<&Path>) -> Result<Box<dyn Write>> {
    let Some(path) = path else { return Ok(Box::new(std::io::stdout().lock())) };
    let file = File::create(path).map_err(|error| Error::disk("write", path, &error))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// The error of writing to it. If the reader of standard output has gone (`| head`), the program ends: nobody waits for more.
pub fn output_error(path: Option<&Path>, error: &std::io::Error) -> Error {
    if path.is_none() && error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(Exit::Done as i32);
    }
    Error::disk("write", path.unwrap_or(Path::new("standard output")), error)
}
