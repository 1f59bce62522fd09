//! The environment variables that `codinet-train` reads, and its machine's name. docs/env.md is made from this table and the
//! launcher's.

use std::ffi::OsString;

/// A variable's name, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What is read from it, or set by it.
    pub what: &'static str,
}

macro_rules! variables {
    ($($constant:ident $name:literal $what:literal)*) => {
        $(#[doc = $what] pub const $constant: Variable = Variable { name: $name, what: $what };)*
        /// All of them.
        pub const ALL: &[Variable] = &[$($constant),*];
    };
}

variables! {
    OMPI_COMM_WORLD_RANK "OMPI_COMM_WORLD_RANK" "compared with the rank that MPI tells; who prints before ranks have met"
    OMPI_COMM_WORLD_SIZE "OMPI_COMM_WORLD_SIZE" "tells that mpirun started this rank; compared with the size that MPI tells"
    OMPI_COMM_WORLD_LOCAL_RANK "OMPI_COMM_WORLD_LOCAL_RANK" "compared with the local rank that MPI tells"
    PMIX_RANK "PMIX_RANK" "as OMPI_COMM_WORLD_RANK, under srun --mpi=pmix and Open MPI 5"
    PMIX_VERSION "PMIX_VERSION" "told by codinet-launch doctor"
    PMI_RANK "PMI_RANK" "as OMPI_COMM_WORLD_RANK, under MPICH and Intel MPI"
    PMI_SIZE "PMI_SIZE" "as OMPI_COMM_WORLD_SIZE, under MPICH and Intel MPI"
    MPI_LOCALRANKID "MPI_LOCALRANKID" "as OMPI_COMM_WORLD_LOCAL_RANK, under MPICH and Intel MPI"
    SLURM_PROCID "SLURM_PROCID" "as OMPI_COMM_WORLD_RANK, under srun"
    SLURM_LOCALID "SLURM_LOCALID" "as OMPI_COMM_WORLD_LOCAL_RANK, under srun"
    SLURM_STEP_NUM_TASKS "SLURM_STEP_NUM_TASKS" "as OMPI_COMM_WORLD_SIZE, under srun"
    SLURM_JOB_ID "SLURM_JOB_ID" "told in the log"
    SLURM_RESTART_COUNT "SLURM_RESTART_COUNT" "how often the job has been requeued: told in the log"
    CUDA_VISIBLE_DEVICES "CUDA_VISIBLE_DEVICES" "GPUs that this rank sees; where it is set and empty, that none is used goes without saying"
    GLIBC_TUNABLES "GLIBC_TUNABLES" "settings of the allocator; where it has none of glibc.malloc, codinet-train sets them and starts itself anew"
}

/// A variable's value, where it has one that is text and not empty.
pub fn get(variable: Variable) -> Option<String> {
    std::env::var(variable.name).ok().filter(|value| !value.is_empty())
}

/// A variable's value, whatever it is.
pub fn raw(variable: Variable) -> Option<OsString> {
    std::env::var_os(variable.name)
}

/// Whether a variable is set, to nothing perhaps.
pub fn is_set(variable: Variable) -> bool {
    raw(variable).is_some()
}

/// This machine's name; empty where the system does not tell it.
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}
