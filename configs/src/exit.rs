//! How a process ends: one line for a person, one exit code for a script. This is the only table of the codes; `--help` of
//! every program and docs/resume.md repeat it.

use std::fmt;

/// Whether `codinet-launch --max-restarts` starts a job again that ended so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    /// It did not fail.
    NotFailed,
    /// It would end the same way.
    No,
    /// It may end better.
    Yes,
    /// Only where ranks have run before: a host that was reached once may come back.
    AfterCrash,
}

macro_rules! exit_codes {
    ($($name:ident = $code:literal, $restart:ident, $meaning:literal;)*) => {
        /// How a process ends. The numbers are part of the interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit {
            $(#[doc = $meaning] $name = $code),*
        }

        impl Exit {
            /// Every exit code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it means, in a few words.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning),*
                }
            }

            fn restart(self) -> Restart {
                match self {
                    $(Self::$name => Restart::$restart),*
                }
            }
        }
    };
}

exit_codes! {
    Done = 0, NotFailed, "done";
    Config = 2, No, "the config or the command line is wrong";
    Data = 3, No, "samples cannot be found, read or decoded";
    Checkpoint = 4, No, "a checkpoint is missing, damaged, or of another network";
    Diverged = 5, No, "the loss or a gradient is not finite";
    Disk = 6, No, "a file or folder cannot be written";
    Communication = 7, Yes, "ranks cannot reach each other, or do not match";
    Hang = 8, Yes, "a rank did not reach a collective or get data in time";
    Lost = 9, Yes, "a rank, or the host it ran on, was lost";
    Memory = 10, No, "out of memory";
    Gpu = 11, Yes, "a GPU or its driver reported an error";
    Interrupted = 75, NotFailed, "stopped on request, with a checkpoint to resume from";
    Panic = 101, Yes, "a bug (panic)";
    NotStarted = 127, AfterCrash, "mpirun, a host or codinet-train could not be started";
}

/// The exit codes of `codinet-train`.
pub const OF_TRAINING: &[Exit] = &[
    Exit::Done,
    Exit::Config,
    Exit::Data,
    Exit::Checkpoint,
    Exit::Diverged,
    Exit::Disk,
    Exit::Communication,
    Exit::Hang,
    Exit::Memory,
    Exit::Gpu,
    Exit::Interrupted,
    Exit::Panic,
];

/// The exit codes of the programs that use a trained network.
pub const OF_TRAINED: &[Exit] = &[
    Exit::Done,
    Exit::Config,
    Exit::Data,
    Exit::Checkpoint,
    Exit::Disk,
    Exit::Communication,
    Exit::Memory,
    Exit::Gpu,
    Exit::Panic,
];

impl Exit {
    /// The exit code with this number.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|exit| *exit as i32 == code)
    }

    /// What mpirun's exit code means. A code of codinet-train is passed on. A signal (128 and more), and what mpirun ends with
    /// when a host has gone, is a lost rank; but 127 is a program that could not be loaded, and 137 a rank that the
    /// system killed if it killed one for its memory meanwhile. Without any output from a rank, mpirun has started none.
    pub fn of_mpirun(code: Option<i32>, any_output: bool, out_of_memory: bool) -> Self {
        match code {
            Some(137) if out_of_memory => Self::Memory,
            Some(129..=192) | None => Self::Lost,
            Some(127) => Self::NotStarted,
            Some(code) => match Self::from_code(code) {
                Some(exit) if OF_TRAINING.contains(&exit) => exit,
                _ if any_output => Self::Lost,
                _ => Self::NotStarted,
            },
        }
    }

    /// Whether another start may end better; `first` if the job that ended was the first one.
    pub fn restartable(self, first: bool) -> bool {
        match self.restart() {
            Restart::Yes => true,
            Restart::AfterCrash => !first,
            Restart::No | Restart::NotFailed => false,
        }
    }

    /// For `--help`: these exit codes, each with its meaning.
    pub fn list(of: &[Self]) -> String {
        let lines = of.iter().map(|exit| format!("\n  {:<5}{}", *exit as u8, exit.meaning()));
        format!("Exit codes:{}", lines.collect::<String>())
    }

    /// For the launcher's `--help`: every exit code, its meaning, and whether the launcher restarts the job.
    pub fn table() -> String {
        let lines = Self::ALL.iter().map(|exit| {
            let restarted = match exit.restart() {
                Restart::NotFailed => "-",
                Restart::No => "no",
                Restart::Yes => "yes",
                Restart::AfterCrash => "after a crash",
            };
            format!("\n  {:<5}{:<58}{restarted}", *exit as u8, exit.meaning())
        });
        format!("{:<65}restarted{}", "Exit codes:", lines.collect::<String>())
    }
}

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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpirun_passes_the_trainers_codes_on() {
        for exit in OF_TRAINING {
            assert_eq!(Exit::of_mpirun(Some(*exit as i32), true, false), *exit);
        }
        for code in [Some(137), Some(1), Some(213), Some(9), None] {
            assert_eq!(Exit::of_mpirun(code, true, false), Exit::Lost);
        }
        assert_eq!(Exit::of_mpirun(Some(1), false, false), Exit::NotStarted);
        assert_eq!(Exit::of_mpirun(Some(127), true, false), Exit::NotStarted);
        assert_eq!(Exit::of_mpirun(Some(137), false, false), Exit::Lost);
        assert_eq!(Exit::of_mpirun(Some(137), true, true), Exit::Memory);
        assert_eq!(Exit::of_mpirun(Some(139), true, true), Exit::Lost);
        assert_eq!(Exit::of_mpirun(Some(255), false, false), Exit::NotStarted);
    }

    #[test]
    fn codes_and_restarts_are_as_released() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| *exit as u8).collect();
        assert_eq!(codes, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 75, 101, 127]);
        for exit in Exit::ALL {
            let code = *exit as u8;
            assert_eq!(exit.restartable(true), [7, 8, 9, 11, 101].contains(&code), "{code}");
            assert_eq!(exit.restartable(false), [7, 8, 9, 11, 101, 127].contains(&code), "{code}");
        }
    }
}
