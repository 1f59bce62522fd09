//! Errors: one line for a person, one exit code for a script.

pub use codinet_config::exit::{Exit, OF_TRAINED, OF_TRAINING};

use std::fmt;
use std::io;
use std::path::Path;

/// An error that ends the program.
#[derive(Clone, Debug)]
pub struct Error {
    /// The process's exit code.
    pub exit: Exit,
    /// What is wrong, where, and how to fix it: one line, or one for each problem of a config.
    pub message: String,
    /// Whether every rank has this same error, so that all can leave in order. Otherwise a rank that has it must abort the
    /// job.
    pub agreed: bool,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this rank, until [`crate::dist::agree`] gives it to all.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), agreed: false }
    }

    /// An error that every rank creates alike.
    pub fn on_all_ranks(exit: Exit, message: impl Into<String>) -> Self {
        Self { agreed: true, ..Self::new(exit, message) }
    }

    /// An error of every rank: numbers of step `step` are not finite.
    pub fn diverged(step: u64, what: &str) -> Self {
        let message = format!(
            "step {step}: {what}; lower stages.*.lr or raise stages.*.warmup_epochs, and start a new run or resume \
             from the last checkpoint with --resume RUN"
        );
        Self::on_all_ranks(Exit::Diverged, message)
    }

    /// A failed operation on a file or folder: "cannot `action` `path`".
    pub fn disk(action: &str, path: &Path, error: &dyn fmt::Display) -> Self {
        let path = path.display();
        let what = format!(
            "cannot {action} {path}: {error}; check its space and permissions, or choose another folder"
        );
        Self::new(Exit::Disk, what)
    }
}

/// Errors that keys of the config cause, collected so that a user reads all of them at once.
#[derive(Debug, Default)]
pub struct Problems(Vec<(&'static str, Error)>);

impl Problems {
    /// The value of `result`; its error, which `key` causes, is added.
    pub fn collect<T>(&mut self, key: &'static str, result: Result<T, impl Into<Error>>) -> Option<T> {
        result.map_err(|error| self.0.push((key, error.into()))).ok()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Each key with its line; `place` is where a key is set.
    pub fn lines(&self, place: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
        let line = |(key, error): &(&'static str, Error)| {
            let place = place(key).map(|place| format!("{place}: ")).unwrap_or_default();
            (*key, format!("{place}{error}"))
        };
        self.0.iter().map(line).collect()
    }

    /// One error with a line for each, and the exit code of the first; ok if there are none.
    pub fn into_result(self, place: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let lines: Vec<String> = self.lines(place).into_iter().map(|(_, line)| line).collect();
        match self.0.first() {
            Some((_, first)) => Err(Error::new(first.exit, lines.join("\n"))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<codinet_dataloader::Error> for Error {
    fn from(error: codinet_dataloader::Error) -> Self {
        let exit = match &error {
            codinet_dataloader::Error::InvalidArgument(_) => Exit::Config,
            codinet_dataloader::Error::Io { cause, .. } if cause.kind() == io::ErrorKind::OutOfMemory => {
                Exit::Memory
            }
            _ => Exit::Data,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<codinet_config::exit::Error> for Error {
    fn from(error: codinet_config::exit::Error) -> Self {
        Self::new(error.exit, error.message)
    }
}
