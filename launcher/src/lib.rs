//! Starts the ranks of a job under this machine's MPI, supervises and restarts it. [`doctor`] checks a machine, [`plan`]
//! predicts the throughput on more GPUs.

mod allocation;
pub mod command_line;
pub mod doctor;
mod machine;
mod mpi;
mod output;
pub mod plan;
mod restart;
pub mod start;
mod supervise;
pub mod table;

use std::path::{Path, PathBuf};

/// `codinet-train`: the one next to this program, else the one on `PATH`.
fn trainer() -> PathBuf {
    let sibling = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("codinet-train")));
    sibling.filter(|path| path.exists()).unwrap_or_else(|| Path::new("codinet-train").into())
}
