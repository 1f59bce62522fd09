//! A world of one: neither MPI nor a launcher.

use super::{Collective, reducible};
use crate::sys::error::Result;
use tch::Tensor;

/// The only rank of its world.
pub struct Alone;

impl Collective for Alone {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn local(&self) -> (usize, usize) {
        (0, 1)
    }

    fn broadcast(&self, _: &Tensor, _: usize) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        reducible(tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.detach().unsqueeze(0))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
