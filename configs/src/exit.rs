//! How a process ends: one line for a person, one exit code for a script.

use std::fmt;

/// How a process ends; the numbers are part of the interface (`--help` and docs/resume.md list them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Exit {
    /// The config or the command line is wrong.
    Config = 2,
    /// Samples cannot be found, read or decoded.
    Data = 3,
    /// A checkpoint is missing, broken, or of another network.
    Checkpoint = 4,
    /// The loss or a gradient is no longer finite.
    Diverged = 5,
    /// A file or folder cannot be written.
    Disk = 6,
    /// Ranks cannot reach one another, or do not fit together.
    Communication = 7,
    /// A rank did not come to a collective in time.
    Hang = 8,
    /// The memory of the device, or of the host, does not suffice.
    Memory = 10,
    /// Stopped on request, with a checkpoint to go on from.
    Interrupted = 75,
    /// A bug: a panic, on whatever rank.
    Panic = 101,
}

/// The exit codes of a program that trains: all of them.
pub const OF_TRAINING: &[Exit] = &[
    Exit::Config,
    Exit::Data,
    Exit::Checkpoint,
    Exit::Diverged,
    Exit::Disk,
    Exit::Communication,
    Exit::Hang,
    Exit::Memory,
    Exit::Interrupted,
    Exit::Panic,
];

/// The exit codes of a program that uses a trained network.
pub const OF_TRAINED: &[Exit] =
    &[Exit::Config, Exit::Data, Exit::Checkpoint, Exit::Disk, Exit::Communication, Exit::Memory, Exit::Panic];

/// One line for the terminal, and the exit code.
#[derive(Clone, Debug)]
pub struct Error {
    /// The process's exit code.
    pub exit: Exit,
    /// What is wrong, where, and how to fix it: one line.
    pub message: String,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl Exit {
    /// The exit code with this number, where there is one.
    pub fn from_code(code: i32) -> Option<Self> {
        OF_TRAINING.iter().copied().find(|exit| *exit as i32 == code)
    }

    /// For `--help`: these exit codes, each with its meaning.
    pub fn list(of: &[Self]) -> String {
        let lines = of.iter().map(|exit| format!("\n  {:<5}{}", *exit as i32, exit.meaning()));
        format!("Exit codes:\n  0    done{}", lines.collect::<String>())
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Config => "the config or the command line is wrong",
            Self::Data => "samples cannot be found, read or decoded",
            Self::Checkpoint => "a checkpoint is missing, broken, or of another network",
            Self::Diverged => "the loss or a gradient is no longer finite",
            Self::Disk => "a file or folder cannot be written",
            Self::Communication => "ranks cannot reach one another, or do not fit together",
            Self::Hang => "a rank did not come to a collective in time",
            Self::Memory => "out of memory",
            Self::Interrupted => "stopped on request, with a checkpoint to go on from (--resume auto)",
            Self::Panic => "a bug (panic)",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
