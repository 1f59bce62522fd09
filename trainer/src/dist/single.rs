//! A world of one process, without MPI or a launcher.

use super::collective::{Collective, LocalRank, check_summable};
use crate::sys::error::Result;
use tch::Tensor;

/// The only rank of its world: tensors stay as they are.
pub struct SingleProcess;

impl Collective for SingleProcess {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn local_rank(&self) -> LocalRank {
        LocalRank { index: 0, count: 1 }
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        check_summable(tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.detach().unsqueeze(0))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
