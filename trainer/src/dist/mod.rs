//! Where ranks meet. The trainer knows [`World`] alone, which hands collectives to the thread that makes them; a world of
//! one, MPI and NCCL stand behind it, and nothing else in the crate asks which of them it is.
//!
//! Every collective is started by all ranks, in the same order; none stands under an `if rank == 0`.

pub mod device;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod reducer;
pub mod replicas;
mod single;
mod watchdog;
mod world;

pub(crate) use nccl::Nccl;
pub use reducer::Gradients;
pub use world::{Pending, Queue, Traffic, World};

use crate::env::{self, Variable};
use crate::sys::error::{Error, Exit, Result};
use tch::kind::Element;
use tch::{Kind, Tensor};

/// A backend: a group of ranks, each a process, as one thread of each speaks with the others.
pub trait Collective: Send {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// The library behind it, with its version, and how threads may call it: for `codinet-launch doctor`.
    fn about(&self) -> String {
        self.name().to_owned()
    }

    /// This process's number, `0..ranks()`.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// This rank's number among those on the same host, and how many those are.
    fn local(&self) -> (usize, usize);

    /// Afterwards `tensor` holds on every rank what it held on rank `root`.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()>;

    /// Afterwards `tensor` (f32, f64 or bf16) holds on every rank the sum over ranks, to the bit the same on all.
    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()>;

    /// Returns `[world, …]`: every rank's `tensor`, which has the same shape and kind on all, in rank order.
    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Returns once every rank has come here.
    fn barrier(&self) -> Result<()>;
}

/// A number from the environment.
fn number(variable: Variable) -> Option<usize> {
    env::get(variable)?.parse().ok()
}

/// Where launchers tell a process its rank, and its rank among those of its host. Those of mpirun come first: under it,
/// SLURM's are the batch script's.
const RANK: [Variable; 4] = [env::OMPI_COMM_WORLD_RANK, env::PMIX_RANK, env::PMI_RANK, env::SLURM_PROCID];
const LOCAL_RANK: [Variable; 3] = [env::OMPI_COMM_WORLD_LOCAL_RANK, env::MPI_LOCALRANKID, env::SLURM_LOCALID];

/// This process's rank as its launcher tells it, for use before [`join`]; 0 where there is none.
pub fn launched_rank() -> usize {
    RANK.into_iter().find_map(number).unwrap_or(0)
}

/// Joins the world that the launcher made: MPI's where one of its launchers started this process, a world
/// of one otherwise. To be called once, before anything that may fail on one rank only.
pub fn join() -> Result<World> {
    World::start()
}

/// The backend that fits how this process was started.
fn start_backend() -> Result<Box<dyn Collective>> {
    const LAUNCHED: [Variable; 4] = [env::OMPI_COMM_WORLD_SIZE, env::PMIX_RANK, env::PMI_RANK, env::PMI_SIZE];
    let launched = LAUNCHED.into_iter().any(env::is_set);
    let world: Box<dyn Collective> = if launched { started_by_mpi()? } else { Box::new(single::Alone) };
    // Ranks that cannot find one another would each train alone, in the same directory.
    let started =
        [env::OMPI_COMM_WORLD_SIZE, env::PMI_SIZE, env::SLURM_STEP_NUM_TASKS].into_iter().find_map(number);
    match started {
        Some(tasks) if tasks != world.ranks() && (launched || env::is_set(env::SLURM_PROCID)) => {
            Err(Error::new(
                Exit::Communication,
                format!(
                    "the launcher started {tasks} ranks, but MPI joins {}; start them with the mpirun of the MPI \
                     that this program was built with, or with srun --mpi=pmix",
                    world.ranks()
                ),
            ))
        }
        _ if launched => {
            compare(&*world)?;
            Ok(world)
        }
        _ => Ok(world),
    }
}

/// Rank and local rank are MPI's own; what the launcher says of them has to agree.
fn compare(world: &dyn Collective) -> Result<()> {
    let told = |variables: &[Variable]| {
        variables.iter().find_map(|&variable| Some((variable.name, number(variable)?)))
    };
    match told(&RANK) {
        Some((name, rank)) if rank != world.rank() => {
            return Err(Error::new(
                Exit::Communication,
                format!(
                    "{name} says that this is rank {rank}, MPI that it is rank {}; start ranks with the mpirun of the \
                     MPI that this program was built with, or with srun --mpi=pmix",
                    world.rank()
                ),
            ));
        }
        _ => {}
    }
    let (local, _) = world.local();
    if let Some((name, theirs)) = told(&LOCAL_RANK).filter(|&(_, theirs)| theirs != local) {
        eprintln!(
            "note: rank {} is number {local} of its host by MPI, and takes that GPU; {name} says {theirs}",
            world.rank()
        );
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn started_by_mpi() -> Result<Box<dyn Collective>> {
    Ok(Box::new(mpi::MpiWorld::join()?))
}

#[cfg(not(feature = "mpi"))]
fn started_by_mpi() -> Result<Box<dyn Collective>> {
    let what =
        "an MPI launcher started this program, which was built without MPI; build it with --features mpi";
    Err(Error::new(Exit::Communication, what))
}

/// Ends every rank of the job at once, from any state: for panics and for errors that one rank has alone.
pub fn abort(code: i32) -> ! {
    #[cfg(feature = "mpi")]
    mpi::abort_if_joined(code);
    std::process::exit(code)
}

/// All ranks: every rank's list, in rank order; lengths may differ.
pub fn all_gather_lists<T: Element + Copy + Default>(world: &World, own: &[T]) -> Result<Vec<Vec<T>>> {
    let lengths = world.all_gather(&Tensor::from(own.len() as i64))?;
    let lengths = Vec::<i64>::try_from(&lengths).expect("a number per rank");
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut padded = own.to_vec();
    padded.resize(longest as usize, T::default());
    let rows = world.all_gather(&Tensor::from_slice(&padded))?.view([world.ranks() as i64, longest]);
    let mut lists = Vec::<Vec<T>>::try_from(&rows).expect("a row per rank");
    lists.iter_mut().zip(lengths).for_each(|(list, length)| list.truncate(length as usize));
    Ok(lists)
}

/// All ranks: rank 0's text, on every rank.
pub fn broadcast_text(world: &World, text: &str) -> Result<String> {
    let mine = if world.rank() == 0 { text.as_bytes() } else { &[] };
    let all = all_gather_lists(world, mine)?;
    Ok(String::from_utf8_lossy(&all[0]).into_owned())
}

/// All ranks: what rank 0, and no other, decides, or why it could not.
pub fn rank_zeros(world: &World, decide: impl FnOnce() -> Result<String>) -> Result<String> {
    let mine = agree(world, if world.rank() == 0 { decide() } else { Ok(String::new()) })?;
    broadcast_text(world, &mine)
}

/// All ranks: turns "some rank failed" into "every rank failed, of the same cause" (the lowest failing
/// rank's), so that all of them leave in order and one line is printed.
pub fn agree<T>(world: &World, result: Result<T>) -> Result<T> {
    let mine = match &result {
        Ok(_) => Vec::new(),
        Err(error) => {
            let mut bytes = (error.exit as i32).to_le_bytes().to_vec();
            bytes.extend_from_slice(error.message.as_bytes());
            bytes
        }
    };
    let all = all_gather_lists(world, &mine)?;
    match all.iter().find(|bytes| bytes.len() >= 4) {
        None => result,
        Some(bytes) => {
            let code = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let message = String::from_utf8_lossy(&bytes[4..]).into_owned();
            Err(Error::on_all_ranks(Exit::from_code(code).unwrap_or(Exit::Panic), message))
        }
    }
}

/// Refuses what no backend here can carry, with a message that names it.
fn reducible(tensor: &Tensor) -> Result<()> {
    match tensor.kind() {
        Kind::Float | Kind::Double | Kind::BFloat16 => Ok(()),
        kind => Err(Error::new(Exit::Communication, format!("cannot sum tensors of {kind:?} over ranks"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_of_one_is_a_world() {
        let world = join().unwrap();
        let tensor = Tensor::from_slice(&[1.5f32, 2.5]);
        world.all_reduce_mean(&tensor).unwrap();
        world.broadcast(&tensor, 0).unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.5, 2.5]);
        assert_eq!(world.all_gather(&tensor).unwrap().size(), [1, 2]);
        assert_eq!(all_gather_lists(&world, b"abc").unwrap(), [b"abc".to_vec()]);
        assert_eq!(broadcast_text(&world, "runs/x").unwrap(), "runs/x");
        let traffic = world.traffic();
        assert_eq!((traffic.calls, traffic.bytes), (7, 3 * 8 + (8 + 3) + (8 + 6)));
    }

    #[test]
    fn an_agreed_error_keeps_its_code_and_words() {
        let world = join().unwrap();
        let error = agree::<()>(&world, Err(Error::new(Exit::Data, "no shards in x"))).unwrap_err();
        assert!(error.agreed);
        assert_eq!((error.exit, error.message.as_str()), (Exit::Data, "no shards in x"));
        assert!(agree(&world, Ok(7)).is_ok_and(|value| value == 7));
    }

    #[test]
    fn integers_are_not_summed_silently() {
        assert!(join().unwrap().all_reduce_sum(&Tensor::from_slice(&[1i64])).is_err());
    }
}
