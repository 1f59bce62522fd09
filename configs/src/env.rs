//! The environment variables that the programs read. docs/env.md is generated from this table.

use std::ffi::OsString;

/// A variable, and what each program reads it for.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Programs that read it, each with its purpose.
    pub readers: &'static [(&'static str, &'static str)],
}

macro_rules! variables {
    ($($name:ident { $($program:literal $purpose:literal),* })*) => {
        $(#[doc = concat!($("`", $program, "`: ", $purpose, ". "),*)]
        pub const $name: Variable =
            Variable { name: stringify!($name), readers: &[$(($program, $purpose)),*] };)*
        /// All of them.
        pub const ALL: &[Variable] = &[$($name),*];
    };
}

variables! {
    CODINET_MPIRUN { "codinet-launch" "the mpirun to use; default: the first one on PATH" }
    CODINET_PROGRESS {
        "codinet-train" "set by codinet-launch on a terminal: rank 0 prints its progress for the launcher's bar"
    }
    CUDA_VISIBLE_DEVICES {
        "codinet-train" "GPUs that this rank sees; set and empty: the GPU is hidden on purpose, so no note says that it is unused",
        "codinet-launch" "GPUs of this machine to use: the default number of ranks"
    }
    GLIBC_TUNABLES {
        "codinet-train" "settings of the allocator; if it has none of glibc.malloc, codinet-train sets them and restarts itself"
    }
    GOMP_CPU_AFFINITY { "codinet-train" "as OMP_PROC_BIND" }
    HOME { "codinet-train" "the user's folder: .cache/codinet in it keeps compiled kernels (run.cuda_kernels)" }
    LD_LIBRARY_PATH { "codinet-launch" "named where codinet-train cannot be loaded: it may lead to another libtorch" }
    MIMALLOC_PURGE_DELAY {
        "codinet-infer" "of its allocator; if it is not set, codinet-infer sets it to -1 (keeps freed memory) and restarts itself"
    }
    MPI_LOCALRANKID { "codinet-train" "as OMPI_COMM_WORLD_LOCAL_RANK, under MPICH and Intel MPI" }
    OMPI_COMM_WORLD_LOCAL_RANK { "codinet-train" "compared with the local rank that MPI reports" }
    OMPI_COMM_WORLD_RANK { "codinet-train" "compared with the rank that MPI reports; decides who prints before MPI is initialised" }
    OMPI_COMM_WORLD_SIZE {
        "codinet-train" "shows that mpirun started this rank; compared with the size that MPI reports",
        "codinet-launch" "shows that mpirun started the launcher, which is refused"
    }
    OMP_PLACES { "codinet-train" "as OMP_PROC_BIND" }
    OMP_PROC_BIND {
        "codinet-train" "removed: OpenMP would bind all of a rank's threads, decoders too, to one core",
        "codinet-launch" "doctor says that it has no effect"
    }
    PBS_JOBID { "codinet-launch" "shows that this is a PBS job" }
    PBS_NODEFILE { "codinet-launch" "hosts of the PBS job, one line a rank" }
    PMIX_RANK { "codinet-train" "as OMPI_COMM_WORLD_RANK, under srun --mpi=pmix and Open MPI 5" }
    PMIX_VERSION { "codinet-train" "reported by codinet-launch doctor" }
    PMI_RANK { "codinet-train" "as OMPI_COMM_WORLD_RANK, under MPICH and Intel MPI" }
    PMI_SIZE { "codinet-train" "as OMPI_COMM_WORLD_SIZE, under MPICH and Intel MPI" }
    SLURM_GPUS_ON_NODE { "codinet-launch" "default number of ranks a node, if SLURM_NTASKS is not set" }
    SLURM_JOB_ID {
        "codinet-train" "logged",
        "codinet-launch" "shows that this is a SLURM job"
    }
    SLURM_LOCALID { "codinet-train" "as OMPI_COMM_WORLD_LOCAL_RANK, under srun" }
    SLURM_NNODES { "codinet-launch" "nodes of the SLURM job" }
    SLURM_NTASKS { "codinet-launch" "default number of ranks in a SLURM job" }
    SLURM_PROCID { "codinet-train" "as OMPI_COMM_WORLD_RANK, under srun" }
    SLURM_RESTART_COUNT {
        "codinet-train" "how often the job was requeued: logged",
        "codinet-launch" "printed at the start of a requeued job"
    }
    SLURM_STEP_NUM_TASKS {
        "codinet-train" "as OMPI_COMM_WORLD_SIZE, under srun",
        "codinet-launch" "shows that srun started several launchers, which is refused"
    }
    XDG_CACHE_HOME { "codinet-train" "as HOME, in place of .cache" }
}

/// A variable's value, if it is set to text that is not empty.
pub fn get(variable: Variable) -> Option<String> {
    std::env::var(variable.name).ok().filter(|value| !value.is_empty())
}

/// A variable's value, text or not.
pub fn raw(variable: Variable) -> Option<OsString> {
    std::env::var_os(variable.name)
}

/// Whether a variable is set, even if it is empty.
pub fn is_set(variable: Variable) -> bool {
    raw(variable).is_some()
}
