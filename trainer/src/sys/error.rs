//! What can go wrong, as a person reads it and as a script sees it: one line, one exit code.

pub use codinet_config::exit::{Exit, OF_TRAINED, OF_TRAINING};

use std::fmt;
use std::path::Path;

/// One line for the terminal, and the exit code.
#[derive(Clone, Debug)]
pub struct Error {
    /// The process's exit code.
    pub exit: Exit,
    /// What is wrong, where, and how to mend it: one line.
    pub message: String,
    /// Whether every rank holds this same error, so that all can leave in order; otherwise the rank that
    /// has it must abort the job.
    pub agreed: bool,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this rank alone, until [`crate::dist::agree`] has spread it.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), agreed: false }
    }

    /// The same error on every rank, each of which makes it.
    pub fn on_all_ranks(exit: Exit, message: impl Into<String>) -> Self {
        Self { agreed: true, ..Self::new(exit, message) }
    }

    /// Every rank's error where training has left the numbers behind.
    pub fn diverged(step: u64, what: &str) -> Self {
        let message = format!(
            "step {step}: {what}; lower stages.*.lr or raise stages.*.warmup_epochs, and start anew or go on from \
             the last checkpoint with --resume RUN"
        );
        Self::on_all_ranks(Exit::Diverged, message)
    }

    /// A file or folder that cannot be made, written or read.
    pub fn disk(doing: &str, path: &Path, error: &dyn fmt::Display) -> Self {
        Self::new(
            Exit::Disk,
            format!(
                "cannot {doing} {}: {error}; see to its space and permissions, or choose another folder",
                path.display()
            ),
        )
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
        let exit = match error {
            codinet_dataloader::Error::InvalidArgument(_) => Exit::Config,
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
