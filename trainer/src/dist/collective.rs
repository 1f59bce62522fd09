//! What a backend is: [`Collective`].

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

/// Rejects a tensor whose kind no backend can sum.
pub(super) fn check_summable(tensor: &Tensor) -> Result<()> {
    match tensor.kind() {
        Kind::Float | Kind::Double | Kind::BFloat16 => Ok(()),
        kind => Err(Error::new(Exit::Communication, format!("cannot sum tensors of {kind:?} over ranks"))),
    }
}
