//! Communication between ranks, each a process with one device.
//!
//! The rest of the crate uses [`World`]: it hands collectives to one thread, which calls the backend. A backend is a
//! [`Collective`]: MPI, NCCL, or none for a single process; only this folder knows which.
//!
//! Every rank starts the same collectives in the same order. No collective is under an `if rank == 0`.

mod agreement;
mod collective;
pub mod device;
mod kernel_choice;
mod launched;
#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod nccl_choice;
mod progress;
mod reducer;
pub mod replicas;
mod single;
mod watchdog;
mod world;

pub use agreement::{agree, all_gather_lists, all_gather_objects, on_rank_zero};
pub use collective::{Collective, LocalRank};
pub(crate) use kernel_choice::enable_kernels;
pub use launched::launched_rank;
pub(crate) use nccl::Nccl;
pub use nccl_choice::use_device;
pub use progress::Traffic;
pub use reducer::Reducer;
pub use watchdog::start_watchdog;
pub use world::{CollectiveQueue, Pending, World};

use crate::sys::error::Result;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::error::{Error, Exit};
    use tch::Tensor;

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
