//! Starting ranks: which MPI this machine has, where ranks may run, the words that `mpirun` needs here, and what to do
//! when a job ends. Beside that, [`plan`] predicts what more GPUs would do, and [`doctor`] looks for what is wrong.

pub mod allocation;
pub mod doctor;
pub mod env;
pub mod exit;
pub mod machine;
pub mod mpi;
pub mod output;
pub mod plan;
pub mod restart;
pub mod start;
pub mod supervise;

use std::path::{Path, PathBuf};

/// `codinet-train`: beside this program where it was installed or built together with it, else from `PATH`.
pub fn trainer() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("codinet-train")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| Path::new("codinet-train").into())
}

/// A word as a shell would need it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
