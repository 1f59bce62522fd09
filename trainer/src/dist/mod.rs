//! Communication between ranks, each a process with one device.
//!
//! The rest of the crate uses [`World`]: it hands collectives to one thread, which calls the backend. A backend is a
//! [`Collective`]: MPI, NCCL, or none for a single process; only this folder knows which.
//!
//! Every rank starts the same collectives in the same order. No collective is under an `if rank == 0`.

mod agreement;
pub mod device;
mod kernel_choice;
mod launched;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod nccl_choice;
mod reducer;
pub mod replicas;
mod single;
mod watchdog;
mod world;

pub use agreement::{agree, all_gather_lists, all_gather_objects, on_rank_zero};
pub(crate) use kernel_choice::enable_kernels;
pub use launched::launched_rank;
pub(crate) use nccl::Nccl;
pub use reducer::Reducer;
pub use world::{CollectiveQueue, Pending, Traffic, World};

use crate::sys::error::{Error, Exit, Result};
use tch::{Kind, Tensor};

/// A group of ranks that exchange tensors: what a backend implements.
///
/// The methods that communicate are collective: every rank calls the same ones in the same order, from the thread that
/// created the group, with tensors of one shape and kind. A call returns when this rank's part is done; for a GPU's tensors
/// over NCCL, when it is queued on the thread's stream. After an error the group is unusable and the job has to end.
pub trait Collective: Send {
    /// The backend's name in messages.
    fn name(&self) -> &'static str;

    /// The library with its version and thread level, for `codinet-launch doctor`.
    fn library_version(&self) -> String {
        self.name().to_owned()
    }

    /// This process's rank, `0..ranks()`.
    fn rank(&self) -> usize;

    /// The number of ranks, the world size W.
    fn ranks(&self) -> usize;

    /// This rank among the ranks of its host.
    fn local_rank(&self) -> LocalRank;

    /// Copies rank `root`'s `tensor` into every rank's, which is bit-identical afterwards.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()>;

    /// Replaces `tensor` (f32, f64 or bf16) by its sum over ranks, which is bit-identical on all of them.
    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()>;

    /// Returns every rank's `tensor`, `[…]`, stacked in rank order: `[W, …]`, on the device of `tensor`.
    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()>;
}

/// A rank among the ranks of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRank {
    /// Its number, `0..count`.
    pub index: usize,
    /// How many ranks the host has.
    pub count: usize,
}

/// Connects to the ranks that the launcher started: over MPI if an MPI launcher started this process, else as a world of
/// one. Call it once, before anything that may fail on one rank only.
pub fn join() -> Result<World> {
    World::start()
}

/// Ends every rank of the job at once, from any state and any thread: for panics and for errors that only one rank has.
pub fn abort(code: i32) -> ! {
    #[cfg(feature = "mpi")]
    mpi::abort_if_joined(code);
    std::process::exit(code)
}

/// Rejects a tensor whose kind no backend can sum.
fn check_summable(tensor: &Tensor) -> Result<()> {
    match tensor.kind() {
        Kind::Float | Kind::Double | Kind::BFloat16 => Ok(()),
        kind => Err(Error::new(Exit::Communication, format!("cannot sum tensors of {kind:?} over ranks"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_process_collectives_keep_values_and_count_traffic() {
        let world = join().unwrap();
        let tensor = Tensor::from_slice(&[1.5f32, 2.5]);
        world.all_reduce_sum(&tensor).unwrap();
        world.broadcast(&tensor, 0).unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.5, 2.5]);
        assert_eq!(world.all_gather(&tensor).unwrap().size(), [1, 2]);
        assert_eq!(all_gather_lists(&world, b"abc").unwrap(), [b"abc".to_vec()]);
        assert_eq!(on_rank_zero(&world, || Ok("runs/x".to_owned())).unwrap(), "runs/x");
        // The tensor three times, the list's length and bytes, and the object's: {"Ok":"runs/x"}.
        let traffic = world.traffic();
        assert_eq!((traffic.calls, traffic.bytes), (7, 3 * 8 + (8 + 3) + (8 + 15)));
    }

    #[test]
    fn agreed_error_keeps_its_exit_code_and_message() {
        let world = join().unwrap();
        let error = agree::<()>(&world, Err(Error::new(Exit::Data, "no shards in x"))).unwrap_err();
        assert!(error.agreed);
        assert_eq!((error.exit, error.message.as_str()), (Exit::Data, "no shards in x"));
        assert!(agree(&world, Ok(7)).is_ok_and(|value| value == 7));
        let error = on_rank_zero::<u64>(&world, || Err(Error::new(Exit::Disk, "disk full"))).unwrap_err();
        assert!(error.agreed);
        assert_eq!((error.exit, error.message.as_str()), (Exit::Disk, "disk full"));
    }

    #[test]
    fn summing_integers_is_an_error() {
        assert!(join().unwrap().all_reduce_sum(&Tensor::from_slice(&[1i64])).is_err());
    }
}
