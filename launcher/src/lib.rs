//! Starting ranks: which MPI this machine has, where ranks may run, the words that `mpirun` needs here, and what to do
//! when a job ends. Beside that, [`plan`] predicts what more GPUs would do, and [`doctor`] looks for what is wrong.

mod allocation;
pub mod doctor;
mod machine;
mod mpi;
mod output;
pub mod plan;
mod restart;
pub mod start;
mod supervise;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Prints to stdout. A reader that has gone away (`| head`) is no error.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// `codinet-train`: beside this program where it was installed or built together with it, else from `PATH`.
fn trainer() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("codinet-train")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| Path::new("codinet-train").into())
}
