//! What the launcher's environment tells a process about the job, and the backend that follows from it.

use super::collective::{Collective, LocalRank};
use super::single::SingleProcess;
use crate::env::{self, Variable};
use crate::sys::error::{Error, Exit, Result};

/// Variables with a process's rank. Those of mpirun come first: under it, SLURM's describe the batch script.
const RANK: [Variable; 4] = [env::OMPI_COMM_WORLD_RANK, env::PMIX_RANK, env::PMI_RANK, env::SLURM_PROCID];
/// Variables with its rank among those of its host.
const LOCAL_RANK: [Variable; 3] = [env::OMPI_COMM_WORLD_LOCAL_RANK, env::MPI_LOCALRANKID, env::SLURM_LOCALID];
/// Variables with the number of ranks.
const WORLD_SIZE: [Variable; 3] = [env::OMPI_COMM_WORLD_SIZE, env::PMI_SIZE, env::SLURM_STEP_NUM_TASKS];
/// Variables that only an MPI launcher sets.
const MPI_LAUNCHER: [Variable; 4] = [env::OMPI_COMM_WORLD_SIZE, env::PMIX_RANK, env::PMI_RANK, env::PMI_SIZE];

const LAUNCHER_ADVICE: &str =
    "start ranks with the mpirun of the MPI that this program was built with, or with srun --mpi=pmix";

fn number(variable: Variable) -> Option<usize> {
    env::get(variable)?.parse().ok()
}

/// The first of `variables` that is a number: its name and value.
fn first_number(variables: &[Variable]) -> Option<(&'static str, usize)> {
    variables.iter().find_map(|&variable| Some((variable.name, number(variable)?)))
}

/// This process's rank by its launcher, for use before [`super::join`]; 0 without a launcher.
pub fn launched_rank() -> usize {
    first_number(&RANK).map_or(0, |(_, rank)| rank)
}

/// The backend that fits how this process was started.
pub(super) fn start_backend() -> Result<Box<dyn Collective>> {
    let by_mpi = MPI_LAUNCHER.into_iter().any(env::is_set);
    let world: Box<dyn Collective> = if by_mpi { join_mpi()? } else { Box::new(SingleProcess) };
    // Ranks that do not find each other would all train as single processes, into the same directory.
    let by_launcher = by_mpi || env::is_set(env::SLURM_PROCID);
    let started = first_number(&WORLD_SIZE).filter(|_| by_launcher);
    if let Some((_, tasks)) = started.filter(|(_, tasks)| *tasks != world.ranks()) {
        let joined = world.ranks();
        let what =
            format!("the launcher started {tasks} ranks, but MPI connects {joined}; {LAUNCHER_ADVICE}");
        return Err(Error::new(Exit::Communication, what));
    }
    if by_mpi {
        compare_with_launcher(&*world)?;
    }
    Ok(world)
}

/// Rank and local rank are MPI's own; checks that the launcher's agree.
fn compare_with_launcher(world: &dyn Collective) -> Result<()> {
    let rank = world.rank();
    if let Some((name, launched)) = first_number(&RANK).filter(|(_, launched)| *launched != rank) {
        let what = format!("this is rank {rank} by MPI, but rank {launched} by {name}; {LAUNCHER_ADVICE}");
        return Err(Error::new(Exit::Communication, what));
    }
    let LocalRank { index, .. } = world.local_rank();
    if let Some((name, launched)) = first_number(&LOCAL_RANK).filter(|(_, launched)| *launched != index) {
        crate::eprint_line!(
            "note: rank {rank} is number {index} of its host by MPI, and number {launched} by {name}; MPI's chooses the GPU"
        );
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn join_mpi() -> Result<Box<dyn Collective>> {
    Ok(Box::new(super::mpi::MpiWorld::join()?))
}

#[cfg(not(feature = "mpi"))]
fn join_mpi() -> Result<Box<dyn Collective>> {
    let what =
        "an MPI launcher started this program, which was built without MPI; build it with --features mpi";
    Err(Error::new(Exit::Communication, what))
}
