//! The environment variables that `codinet-launch` reads. docs/env.md is made from this table and the trainer's.

/// A variable's name, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What is read from it.
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
    MPIRUN "CODINET_MPIRUN" "the mpirun to use; by default the one that PATH finds"
    CUDA_VISIBLE_DEVICES "CUDA_VISIBLE_DEVICES" "GPUs of this machine that may be used: so many ranks by default"
    SLURM_JOB_ID "SLURM_JOB_ID" "tells that this is a SLURM job"
    SLURM_NTASKS "SLURM_NTASKS" "ranks by default, in a SLURM job"
    SLURM_NNODES "SLURM_NNODES" "nodes of the SLURM job"
    SLURM_GPUS_ON_NODE "SLURM_GPUS_ON_NODE" "ranks per node by default, where SLURM_NTASKS is not set"
    SLURM_STEP_NUM_TASKS "SLURM_STEP_NUM_TASKS" "refused where srun starts several launchers"
    SLURM_RESTART_COUNT "SLURM_RESTART_COUNT" "told at the start of a requeued job"
    PBS_JOBID "PBS_JOBID" "tells that this is a PBS job"
    PBS_NODEFILE "PBS_NODEFILE" "hosts of the PBS job, a line per rank"
    OMPI_COMM_WORLD_SIZE "OMPI_COMM_WORLD_SIZE" "refused where mpirun starts the launcher"
}

/// A variable's value, where it has one that is text and not empty.
pub fn get(variable: Variable) -> Option<String> {
    std::env::var(variable.name).ok().filter(|value| !value.is_empty())
}

/// Whether a variable is set, to nothing perhaps.
pub fn is_set(variable: Variable) -> bool {
    std::env::var_os(variable.name).is_some()
}
